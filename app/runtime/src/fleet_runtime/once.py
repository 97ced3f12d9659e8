# SPDX-License-Identifier: MIT
"""Runs a block of code once for each key, although messages may be delivered more than once.

Celery delivers a message at least once: a task that ran when its node died, or was cut off, runs again. A
block that must not run again, such as one that charges a card, gets a key, which all deliveries share:

    from fleet_runtime import once

    @app.task
    @once("charge:{order_id}", ttl=7 * 86400)
    def charge(order_id: int) -> str: ...

    with once(f"mail:{order_id}", ttl=86400) as run:
        if run.first:
            run.result = send(order_id)
    return run.result

The first run takes the key for a lease, which a thread renews while the block runs. Other runs wait. When the
block has ended, its result replaces the lease for `ttl` seconds, and the other runs get the result. If the
block fails, the key is free again: an exception is not a result, and a retry runs the block. A block that
uses its own key waits for itself.

The effects of the block and the key are not in one transaction. So this has limits:

- A holder that dies between the effect and the end of the block, or before Redis has the result, leaves a
  lease that ends, and then the block runs again. So end a block soon after its effect, and pass the same key
  to a service that supports idempotency keys, such as a payment service.
- A holder that is cut off from Redis for longer than its lease, or blocks its threads (a C extension that
  keeps Python's lock, a greenlet that blocks), loses the lease, and another run executes the block at the
  same time. `run.is_lost` is true then, and the log has a warning.
- When the host of Redis loses power, Redis loses what it has not written to disk: a second, by default.
- After `ttl` seconds the block runs again. `ttl` must exceed the time within which a message may be delivered
  again: retries, ETA, time in the dead letters.
"""

from __future__ import annotations

import inspect
import json
import logging
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from fleet_runtime.broker import functions, keys, scripts
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from celery import Celery

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# Default of the lease: seconds after which a key is free again whose holder died.
LEASE_S = 30.0
# Seconds between two checks whether another holder is done: the first pause, and the longest.
FIRST_POLL_S, LAST_POLL_S = 0.05, 1.0
# Seconds for which a command is retried while the broker is away.
BROKER_TIMEOUT_S = 60.0

# Prefixes of the value of a key, before the name of the holder or the result as JSON.
HELD, DONE = "held:", "done:"

logger = logging.getLogger(__name__)


class BusyError(FleetError):
    """Another run holds the key, and has not ended within the time to wait."""


@dataclass
class Run:
    """A run of a block.

    Attributes:
        first: Whether to run the block. Otherwise `result` is that of the first run.
        result: The result of the block. kombu's JSON must be able to encode it, or other runs get None.
        is_lost: Whether the lease was lost while the block ran, so that another run may execute it, too.
    """

    first: bool
    result: Any = None
    is_lost: bool = field(default=False, compare=False)


class Once:
    """Run a block once for a key. The module's docstring has examples and limits."""

    def __init__(
        self,
        key: str | Callable[..., str],
        ttl: float,
        *,
        lease: float = LEASE_S,
        wait: float | None = None,
        app: Celery | None = None,
    ) -> None:
        """Prepare, without a command to Redis.

        Args:
            key: The key. For a decorator it is a template of the function's arguments, such as
                "charge:{order_id}", or a function of the same arguments.
            ttl: Seconds that the result is kept.
            lease: Seconds after which the key is free again if its holder dies.
            wait: Seconds to wait for another holder at most; None waits as long as that is alive.
            app: The app whose broker keeps the key. By default the current app.

        Raises:
            ValueError: A time is not positive.
        """
        if ttl <= 0 or lease <= 0:
            raise ValueError(f"once: ttl ({ttl:g}) and lease ({lease:g}) must be more than 0")
        self.key, self.ttl, self.lease, self.wait, self.app = key, ttl, lease, wait, app
        self._entered: list[Any] = []

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function."""
        signature = inspect.signature(function)

        @wraps(function)
        def run_once(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._held(self._key(signature, args, kwargs)) as run:
                if run.first:
                    run.result = function(*args, **kwargs)
                return cast("R", run.result)

        return run_once

    def __enter__(self) -> Run:
        """Take the key, or wait for its holder.

        Raises:
            BusyError: The holder has not ended within the time to wait.
            TypeError: The key is a function.
        """
        if not isinstance(self.key, str):
            raise TypeError("once: as a context manager it needs the key itself, not a function")
        context = self._held(self.key)
        run = context.__enter__()
        self._entered.append(context)
        return run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Store the result, or free the key after an exception."""
        self._entered.pop().__exit__(kind, error, traceback)

    def _key(self, signature: inspect.Signature, args: Any, kwargs: Any) -> str:
        """Return the key of a call."""
        if not isinstance(self.key, str):
            return self.key(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.key.format(**bound.arguments)

    @contextmanager
    def _held(self, key: str) -> Iterator[Run]:
        """Hold a key while its block runs, unless it has run."""
        store = _Store(self.app or _current_app(), keys.once(key))
        run = self._take(store, key)
        if not run.first:
            yield run
            return
        try:
            with _renewing(store, self.lease, run, key):
                yield run
        except BaseException:
            store.free()
            raise
        store.keep(_encode(run.result, key), self.ttl, key)

    def _take(self, store: _Store, key: str) -> Run:
        """Take a key, or return the result of the run that had it."""
        started, pause = time.monotonic(), FIRST_POLL_S
        while True:
            value = store.take(self.lease)
            if value is None:
                return Run(first=True)
            if value.startswith(DONE):
                return Run(first=False, result=_decode(value.removeprefix(DONE)))
            if self.wait is not None and time.monotonic() - started >= self.wait:
                raise BusyError(f"{key} is held by another run, for more than {self.wait:g} s.")
            time.sleep(pause)
            pause = min(2 * pause, LAST_POLL_S)


once = Once  # reads as a function


class _Store:
    """A key in Redis, for one run."""

    def __init__(self, app: Celery, key: str) -> None:
        """Create the value by which this run is known as the holder of the key."""
        self.app, self.key = app, key
        self.mine = f"{HELD}{uuid.uuid4()}"

    def take(self, lease: float) -> str | None:
        """Take the key if it is free; return its value if it is not, else None."""

        def take(client: Any) -> str | None:
            while not client.set(self.key, self.mine, nx=True, px=_milliseconds(lease)):
                value = client.get(self.key)
                if value is not None:
                    text = value.decode() if isinstance(value, bytes) else str(value)
                    return None if text == self.mine else text  # taken by an attempt whose reply was lost
            return None

        return self._retry(take)

    def renew(self, lease: float) -> bool:
        """Renew the lease; return whether this run still had it."""
        return self._try(
            lambda client: bool(self._run(client, scripts.ONCE_RENEW, self.mine, _milliseconds(lease)))
        )

    def keep(self, result: str, ttl: float, key: str) -> None:
        """Replace the lease by a result.

        An error is only logged: if it were raised, the block would run again, which has already ended.
        """
        arguments = (self.mine, DONE + result, _milliseconds(ttl))
        try:
            if not self._retry(lambda client: self._run(client, scripts.ONCE_FINISH, *arguments)):
                logger.error("%s ran, and another run has taken its key in the meantime.", key)
        except Exception:
            logger.exception(
                "%s ran, and its result cannot be stored: if delivered again, it runs again.", key
            )

    def free(self) -> None:
        """Free the key. If Redis is away, it is free when the lease ends."""
        try:
            self._try(lambda client: self._run(client, scripts.ONCE_FINISH, self.mine, "", "0"))
        except Exception as error:
            logger.warning("%s is free only when its lease ends: %s", self.key, error)

    def _run(self, client: Any, script: str, *arguments: Any) -> Any:
        """Run a script on the key."""
        return functions.run(client, script, [self.key], arguments)

    def _try(self, do: Callable[[Any], T]) -> T:
        """Call a function with a client of a connection of the app."""
        with self.app.pool.acquire(block=True) as connection:
            # without this, `default_channel` waits for a broker for ever
            connection.ensure_connection(max_retries=1, interval_start=0)
            return do(connection.default_channel.client)

    def _retry(self, do: Callable[[Any], T]) -> T:
        """Call a function with a client, and retry for BROKER_TIMEOUT_S while the broker is away."""
        from kombu.exceptions import OperationalError
        from redis.exceptions import ConnectionError as LostError
        from redis.exceptions import TimeoutError as SilentError

        deadline = time.monotonic() + BROKER_TIMEOUT_S
        while True:
            try:
                return self._try(do)
            except (LostError, SilentError, OperationalError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(LAST_POLL_S)


@contextmanager
def _renewing(store: _Store, lease: float, run: Run, key: str) -> Iterator[None]:
    """Renew a lease while the block runs, in a thread (a greenlet under gevent)."""
    is_over = threading.Event()

    def renew() -> None:
        """Renew the lease three times in its length, until the block has ended or the key is lost."""
        while not is_over.wait(lease / 3):
            try:
                is_held = store.renew(lease)
            except Exception as error:
                logger.warning("The lease of %s cannot be renewed: %s", key, error)
                continue
            if not is_held:
                break
        if not is_over.is_set():
            run.is_lost = True
            logger.warning("The lease of %s has ended while it runs: it may run elsewhere, too.", key)

    threading.Thread(target=renew, name="once", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()  # the thread may be waiting for Redis; its renewal then finds another value


def _current_app() -> Celery:
    """Return the current app; Celery is imported by then, or there is none."""
    from celery.app import app_or_default

    return cast("Celery", app_or_default())


def _encode(result: Any, key: str) -> str:
    """Return a result as JSON, as Celery encodes it; null if that is not possible."""
    from kombu.utils.json import dumps

    try:
        return str(dumps(result))
    except (TypeError, ValueError) as error:
        logger.error("%s ran, and its result is not JSON, so other runs get None: %s", key, error)
        return json.dumps(None)


def _decode(text: str) -> Any:
    """Return a result from JSON."""
    from kombu.utils.json import loads

    return loads(text)


def _milliseconds(seconds: float) -> int:
    """Return seconds as milliseconds, at least one."""
    return max(1, round(seconds * 1000))
