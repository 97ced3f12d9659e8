# SPDX-License-Identifier: MIT
"""The Lua scripts of the runtime, each in a file of its own beside this one.

The head of a file says what its script does, and lists KEYS, ARGV and the result. A file that begins with
`#!lua flags=allow-oom` runs on a Redis at its memory limit, too (Redis 7.0, "Script flags"); the others are
refused there. `broker.functions` calls the scripts, by the SHA-1 of their text. `make functions` writes them
as functions of Redis for the role redis.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
#: First line of a script that runs on a Redis at its memory limit.
ALLOW_OOM = "#!lua flags=allow-oom\n"


def names() -> list[str]:
    """Return the name of each script: that of its file, without the suffix."""
    return sorted(path.stem for path in FOLDER.glob("*.lua"))


def text(name: str) -> str:
    """Return the text of a script.

    Raises:
        FileNotFoundError: There is no script of that name.
    """
    return (FOLDER / f"{name}.lua").read_text(encoding="utf-8")


COUNT_CRASH = text("count_crash")
DEAD_LETTER = text("dead_letter")
FETCH_AND_ACK = text("fetch_and_ack")
FORGET_NODE = text("forget_node")
ONCE_FINISH = text("once_finish")
ONCE_RENEW = text("once_renew")
RENEW_LEASE = text("renew_lease")
REQUEUE_ONE = text("requeue_one")
REQUEUE_UNACKED = text("requeue_unacked")
STORE_RESULT = text("store_result")
TAKE_DEAD_LETTER = text("take_dead_letter")
UNPREFETCH = text("unprefetch")
