# SPDX-License-Identifier: MIT
"""Calls scripts as functions of Redis, which the administrator of the fleet has loaded.

A client that may load scripts can stop Redis by one, so on the fleet only the administrator may. Each script
of the runtime, kombu, Celery, RedBeat and redis-py is a function there. Its name has the SHA-1 of the script,
so nodes of two releases find each its own. Unlike loaded scripts, functions are in the append-only file and
on replicas. A function gives its caller no rights: Redis checks each command in it.

Where Redis has no such function, the client loads the script, if the access rules allow that (plain Redis).
If they do not, Redis counts as away: it was started or promoted just now, and its host is about to load the
functions. A client that waits for a Redis that is away waits for the functions, too, and for as long.
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
#: Suffix of a second function beside each, which does nothing: a call of it tells whether both are there.
PRESENT = "_present"

#: Pause between two calls of a function that is missing.
RETRY_INTERVAL_S = 1.0

#: How redis-py calls a script.
_original: Callable[..., Any] = core.Script.__call__

#: SHA-1 of a script -> whether Redis has its function, for those that were asked for so far.
_present: dict[str, bool] = {}


class FunctionMissingError(NoConnectionError):
    """Redis does not have a function yet. Callers treat it like a Redis that is away."""


def sha(script: str) -> str:
    """Return the SHA-1 of a script, by which Redis names it."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def command(digest: str, client: Any) -> tuple[str, str]:
    """Return the command that calls a script, and the name that the command takes.

    Args:
        digest: The SHA-1 of the script.
        client: A client of redis-py. It is used once a process and script, to look for the function.
    """
    return ("FCALL", PREFIX + digest) if is_present(digest, client) else ("EVALSHA", digest)


def is_present(digest: str, client: Any) -> bool:
    """Return whether Redis has the function of a script. A process asks once for each script."""
    if digest not in _present:
        try:
            client.fcall(PREFIX + digest + PRESENT, 0)
        except ResponseError:  # no function, no right to call one, or a Redis before 7
            _present[digest] = False
        else:
            _present[digest] = True
    return _present[digest]


def is_missing(error: Exception) -> bool:
    """Return whether an error says that a function or a script is gone, or that scripts are forbidden."""
    text = str(error)
    no_right = isinstance(error, NoPermissionError) and "'evalsha'" in text
    named = isinstance(error, (NoScriptError, FunctionMissingError))
    return named or "Function not found" in text or no_right


def forget(digest: str) -> None:
    """Forget whether Redis has the function of a script: it is asked again the next time."""
    _present.pop(digest, None)


def require(client: Any, scripts: Iterable[str]) -> None:
    """Make sure that scripts can be called: each is a function of Redis, or can be loaded.

    Raises:
        FleetError: One of them can not.
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
    """Return the error for a script that is not there and that this client may not load."""
    return FunctionMissingError(
        f"Redis does not have the function {PREFIX}{digest}, and clients may load no script. On the fleet "
        f"playbooks/redis.yml loads it. Redis said: {error}"
    )


def run(client: Any, script: str, keys: Sequence[Any], args: Iterable[Any]) -> Any:
    """Run a script of the runtime, and return its result.

    Raises:
        FunctionMissingError: Redis does not have it, after as many retries as the client makes.
    """
    return _call(client.register_script(script), keys, args)


def adopt() -> None:
    """Patch redis-py, so that every script of any library is called as a function where Redis has it."""

    @wraps(_original)
    def call(script: Any, keys: Any = None, args: Any = None, client: Any = None) -> Any:
        return _call(script, keys or [], args or [], client)

    core.Script.__call__ = call


def _call(script: Any, keys: Sequence[Any], args: Iterable[Any], client: Any = None) -> Any:
    """Call a script as a function; where Redis has none, as redis-py does.

    A pipeline only queues the command. Any other client tries again while the function is missing, as often
    as its own settings make it try a Redis that is away.
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
            time.sleep(RETRY_INTERVAL_S)
    return attempt()


def _call_once(script: Any, keys: Sequence[Any], args: list[Any], target: Any, asked: Any) -> Any:
    """Call a script once.

    Args:
        script: A Script of redis-py.
        keys: Its keys.
        args: Its arguments.
        target: A client, or a pipeline.
        asked: A client that can look for the function, which a pipeline cannot.
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
        # The function may have been loaded, and the right to load scripts revoked, since this process asked.
        forget(script.sha)
        if not is_present(script.sha, asked):
            forget(script.sha)
            raise missing(script.sha, error) from None
        return target.fcall(PREFIX + script.sha, len(keys), *keys, *args)
