# SPDX-License-Identifier: MIT
"""Calls scripts as functions of Redis, which the administrator of the fleet has loaded.

Whoever may load a script can stop Redis by it, so on the fleet nobody may but the administrator. Each script
of the runtime, of kombu, Celery, RedBeat and redis-py is a function there, which is named by the script's
SHA-1: nodes of two releases find each what they know. Functions are in the append-only file, and on replicas;
loaded scripts are not. A function gives its caller no right: Redis checks each command in it.

A Redis that has no such function gets the script itself, if its access rules allow that, as with plain Redis.
If they do not, it is as good as away: it was started or promoted just now, and its host loads the functions.
Whoever waits for a Redis that is away waits for them, for as long.
"""

from __future__ import annotations

import hashlib
import time
from functools import partial, wraps
from itertools import count
from typing import TYPE_CHECKING, Any

from redis.client import Pipeline
from redis.commands import core
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

PREFIX = "fleet_"
# A second function beside each, which does nothing but be there.
PRESENT = "_present"

# Seconds between two calls of a function that is missing.
PAUSE = 1.0

# How redis-py calls a script.
_original: Callable[..., Any] = core.Script.__call__

# Whether Redis has the function, of the scripts that were asked for so far.
_present: dict[str, bool] = {}


class FunctionMissingError(NoConnectionError):
    """Redis does not have a function, and may have it soon: it counts as a Redis that is away."""


def sha(script: str) -> str:
    """Return the SHA-1 of a script, by which Redis names it."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def command(digest: str, client: Any) -> tuple[str, str]:
    """Return how to call a script: the command, and the name that it takes.

    Args:
        digest: The script's SHA-1.
        client: Of Redis, to ask it the first time whether it has the function.
    """
    return ("FCALL", PREFIX + digest) if is_present(digest, client) else ("EVALSHA", digest)


def is_present(digest: str, client: Any) -> bool:
    """Return whether Redis has the function of a script; it is asked once by each process."""
    if digest not in _present:
        try:
            client.fcall(PREFIX + digest + PRESENT, 0)
        except ResponseError:  # no function, no right to call one, or a Redis before 7
            _present[digest] = False
        else:
            _present[digest] = True
    return _present[digest]


def is_missing(error: Exception) -> bool:
    """Return whether an error says that Redis has a function no more, or a script, or lets nobody run one."""
    text = str(error)
    no_right = isinstance(error, NoPermissionError) and "'evalsha'" in text
    named = isinstance(error, (NoScriptError, FunctionMissingError))
    return named or "Function not found" in text or no_right


def forget(digest: str) -> None:
    """Ask Redis again, the next time, whether it has the function of a script."""
    _present.pop(digest, None)


def require(client: Any, scripts: Iterable[str]) -> None:
    """Make sure that scripts can be called: each is a function of Redis, or may be loaded.

    Raises:
        FleetError: One can not.
    """
    for script in scripts:
        digest = sha(script)
        if not is_present(digest, client):
            try:
                client.script_load(script)
            except NoPermissionError as error:
                forget(digest)
                raise FleetError(str(missing(digest, error))) from None


def missing(digest: str, error: Exception) -> FunctionMissingError:
    """Return the error for a script that is not there, and that may not be loaded."""
    return FunctionMissingError(
        f"Redis does not have the function {PREFIX}{digest}, and clients may load no script. On the fleet "
        f"playbooks/redis.yml loads it. Redis said: {error}"
    )


def run(client: Any, script: str, keys: Sequence[Any], args: Iterable[Any]) -> Any:
    """Run a script of the runtime, and return what it returns.

    Raises:
        FunctionMissingError: Redis does not have it, however often the client asks a Redis that is away.
    """
    return _call(client.register_script(script), keys, args)


def adopt() -> None:
    """Let each script of redis-py, whosever it is, be called as a function where Redis has it."""

    @wraps(_original)
    def call(script: Any, keys: Any = None, args: Any = None, client: Any = None) -> Any:
        return _call(script, keys or [], args or [], client)

    core.Script.__call__ = call


def _call(script: Any, keys: Sequence[Any], args: Iterable[Any], client: Any = None) -> Any:
    """Call a script as a function; where Redis has none, as redis-py does.

    A pipeline only notes what it is to send. Another client asks again while the function is missing, as
    often as it would ask a Redis that is away.
    """
    target = script.registered_client if client is None else client
    if isinstance(target, Pipeline):
        return _call_once(script, keys, list(args), target, script.registered_client)
    attempt = partial(_call_once, script, keys, list(args), target, target)
    retry = target.get_retry()
    times = retry.get_retries() if retry else 0
    for _ in range(times) if times >= 0 else count():
        try:
            return attempt()
        except FunctionMissingError:
            time.sleep(PAUSE)
    return attempt()


def _call_once(script: Any, keys: Sequence[Any], args: list[Any], target: Any, asked: Any) -> Any:
    """Call a script once.

    Args:
        script: A Script of redis-py.
        keys: Its keys.
        args: Its arguments.
        target: A client, or a pipeline.
        asked: A client, to ask whether Redis has the function.
    """
    if is_present(script.sha, asked):
        try:
            return target.fcall(PREFIX + script.sha, len(keys), *keys, *args)
        except ResponseError as error:
            if not is_missing(error):
                raise
            forget(script.sha)
    try:
        return _original(script, keys, args, target)
    except NoPermissionError as error:
        # Perhaps it has been loaded since this process asked, and the right to load it taken away.
        forget(script.sha)
        if not is_present(script.sha, asked):
            forget(script.sha)
            raise missing(script.sha, error) from None
        return target.fcall(PREFIX + script.sha, len(keys), *keys, *args)
