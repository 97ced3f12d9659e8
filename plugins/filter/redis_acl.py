# SPDX-License-Identifier: MIT
"""The filters by which the role redis writes the rules of a user of Redis into users.acl.

Each purpose gets a selector, so that a command goes only with the keys of its own. The role's vars/main.yml
has the rights of each user.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

# The end of a queue's name in the rule for the lists of its other priorities: kombu's separator has two
# bytes, and Celery's priorities on Redis are 1 to 9.
STEPS = "??[1-9]"

PLACEHOLDER = re.compile(r"<(\w+)>")


def patterns(rule: str, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the patterns that a rule of vars/main.yml stands for.

    Args:
        rule: A pattern of keys or channels. `<name>` stands for each of the names of that kind, and `<steps>`
            at the end for the lists of a queue's priorities: without anything, and with each of them.
        names: The names of each kind.

    Raises:
        KeyError: There is no such kind.
    """
    if rule.endswith("<steps>"):
        short = rule.removesuffix("<steps>")
        return [one + end for one in patterns(short, names) for end in ("", STEPS)]
    found = PLACEHOLDER.search(rule)
    if not found:
        return [rule]
    parts = [rule[: found.start()] + name + rule[found.end() :] for name in names[found[1]]]
    return [pattern for part in parts for pattern in patterns(part, names)]


def user_rules(
    user: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, Sequence[str]],
    *,
    calls: Sequence[str],
    loads: Sequence[str],
) -> str:
    """Return what a user may do, as it stands in users.acl.

    A purpose of which nothing is left, since there are no names of its kind, or that `when` switches off, is
    left out.

    Args:
        user: `commands` without keys, and `purposes`, each with `keys`, `channels` and `commands`; the groups
            that it has as well are in `allow`, and `scripts` says whether it calls scripts.
        groups: What users have in common, as `commands` and `purposes`.
        names: The names of each kind.
        calls: The commands that call a script. They need the keys of several purposes in one selector; Redis
            then checks each command of the script by itself, with the rules of the user that calls it.
        loads: The commands without keys that such a user needs besides.
    """
    parts = [*(groups[name] for name in user["allow"]), user]
    commands = [command for part in parts for command in part.get("commands", ())]
    selectors, keys = [], []
    for purpose in (one for part in parts for one in part.get("purposes", ()) if one.get("when", True)):
        of_keys = [one for rule in purpose.get("keys", ()) for one in patterns(rule, names)]
        of_channels = ["&" + one for rule in purpose.get("channels", ()) for one in patterns(rule, names)]
        if of_keys or of_channels:
            selectors.append([*of_keys, *of_channels, *("+" + command for command in purpose["commands"])])
            keys += [key for key in of_keys if key.startswith("~")]
    if user.get("scripts"):
        commands += loads
        selectors.append([*keys, *("+" + command for command in calls)])
    root = ["resetchannels", "-@all", *("+" + command for command in unique(commands))]
    return " ".join([*root, *(f"({' '.join(unique(words))})" for words in selectors)])


def clashes(prefixes: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the prefixes that begin one of the names, or begin with it."""
    names = list(names)
    return sorted(one for one in set(prefixes) if any(n.startswith(one) or one.startswith(n) for n in names))


def unique(words: Iterable[str]) -> list[str]:
    """Return the words, each once, in their order."""
    return list(dict.fromkeys(words))


def libraries(texts: Iterable[str]) -> dict[str, str]:
    """Return the text of each library of functions by its name, which is in its first line."""
    return {text.partition("\n")[0].removeprefix("#!lua name="): text for text in texts}


def library_files(named: Mapping[str, str], folder: str) -> list[dict[str, str]]:
    """Return the files of libraries in a folder, as fleet_files wants them."""
    return [{"path": f"{folder}/{name}.lua", "content": text} for name, text in named.items()]


class FilterModule:
    """Tells Ansible of the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {
            "fleet_redis_user_rules": user_rules,
            "fleet_redis_clashes": clashes,
            "fleet_redis_libraries": libraries,
            "fleet_redis_library_files": library_files,
        }
