# SPDX-License-Identifier: MIT
"""Runs a body once for each key, whatever is delivered twice.

Celery delivers a message at least once: what ran when its node died, or was cut off, runs again. A body that
must not, such as one that charges a card, gets a key of its own, which all deliveries share:

    from fleet_runtime import once

    @app.task
    @once("charge:{order_id}", ttl=7 * 86400)
    def charge(order_id: int) -> str: ...

    with once(f"mail:{order_id}", ttl=86400) as run:
        if run.first:
            run.result = send(order_id)
    return run.result

The first to come takes the key for a lease, which a thread renews while the body runs. Who comes meanwhile
waits. When the body is done, its result takes the lease's place, for `ttl` seconds, and is what all others
get. If it fails, the key is free again: an exception is no result, and a retry is to run. A body that asks
for its own key waits for itself.

What this cannot promise, for the body's effects and the key are not in one transaction:

- A holder that dies between the effect and the end of the body, or before Redis has the result, leaves a
  lease that ends, and then the body runs again. So let a body end soon after what it must not do twice, and
  give the same key to whoever knows idempotency keys itself, such as a payment service.
- A holder that is cut off from Redis for longer than its lease, or does not let its thread run (a C extension
  that keeps Python's lock, a greenlet that blocks), loses it, and another one runs the body meanwhile.
  `run.is_lost` tells, and the log does.
- Redis forgets what it had not yet written to disk when its host loses power: a second, with its default.
- After `ttl` seconds the body runs again. `ttl` must exceed the time in which a message may come again:
  retries, ETA, time in the dead letters.
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

# Seconds after which a key is free again whose holder died.
LEASE = 30.0
# Seconds between two looks whether another holder is done: at first, and at most.
FIRST_LOOK, LAST_LOOK = 0.05, 1.0
# Seconds to wait for a broker that is away.
PATIENCE = 60.0

# A value is one of these with a holder's name, or with a result as JSON, behind it.
HELD, DONE = "held:", "done:"

logger = logging.getLogger(__name__)


class BusyError(FleetError):
    """Another one runs the body, and has not come to an end within the time given."""


@dataclass
class Run:
    """What somebody who came is to do.

    Attributes:
        first: Whether to run the body. Else `result` is that of who did.
        result: Of the body. Must be what kombu's JSON can write, or the others get None.
        is_lost: Whether the lease was lost while the body ran, so that another one may run it, too.
    """

    first: bool
    result: Any = None
    is_lost: bool = field(default=False, compare=False)


class once:  # noqa: N801 - reads as a function
    """Run a body once for a key; see the module for how, and for what it cannot promise."""

    def __init__(
        self,
        key: str | Callable[..., str],
        ttl: float,
        *,
        lease: float = LEASE,
        wait: float | None = None,
        app: Celery | None = None,
    ) -> None:
        """Prepare; nothing is asked of Redis yet.

        Args:
            key: The key. For a decorator it is a template of the function's arguments, such as
                "charge:{order_id}", or a function of the same arguments.
            ttl: Seconds that the result is kept.
            lease: Seconds after which the key is free again if its holder dies.
            wait: Seconds to wait for another holder at most; None is as long as it lives.
            app: Whose broker keeps the key. By default the current app.

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
        """Take the key, or wait for who has it."""
        if not isinstance(self.key, str):
            raise TypeError("once: as a context manager it needs the key itself, not a function")
        context = self._held(self.key)
        run = context.__enter__()
        self._entered.append(context)
        return run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keep the result, or free the key."""
        self._entered.pop().__exit__(kind, error, traceback)

    def _key(self, signature: inspect.Signature, args: Any, kwargs: Any) -> str:
        """Return the key for a call."""
        if not isinstance(self.key, str):
            return self.key(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.key.format(**bound.arguments)

    @contextmanager
    def _held(self, key: str) -> Iterator[Run]:
        """Hold a key while its body runs, unless it ran."""
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
        store.keep(_written(run.result, key), self.ttl, key)

    def _take(self, store: _Store, key: str) -> Run:
        """Take a key, or return what who had it made of it."""
        started, pause = time.monotonic(), FIRST_LOOK
        while True:
            value = store.take(self.lease)
            if value is None:
                return Run(first=True)
            if value.startswith(DONE):
                return Run(first=False, result=_read(value.removeprefix(DONE)))
            if self.wait is not None and time.monotonic() - started >= self.wait:
                raise BusyError(f"{key} is held by another run, for more than {self.wait:g} s.")
            time.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)


class _Store:
    """One key in Redis, for one who would hold it."""

    def __init__(self, app: Celery, key: str) -> None:
        """Take the key, and make a value by which it is known who holds it."""
        self.app, self.key = app, key
        self.mine = f"{HELD}{uuid.uuid4()}"

    def take(self, lease: float) -> str | None:
        """Take the key if it is free; return its value if it is not."""

        def take(client: Any) -> str | None:
            while not client.set(self.key, self.mine, nx=True, px=_milliseconds(lease)):
                value = client.get(self.key)
                if value is not None:
                    text = value.decode() if isinstance(value, bytes) else str(value)
                    return None if text == self.mine else text  # an earlier try, whose answer was lost
            return None

        return self._insist(take)

    def renew(self, lease: float) -> bool:
        """Prolong the lease; return whether there still was one."""
        return self._try(
            lambda client: bool(self._run(client, scripts.ONCE_RENEW, self.mine, _milliseconds(lease)))
        )

    def keep(self, result: str, ttl: float, key: str) -> None:
        """Put a result in the lease's place.

        The body is done: that Redis is away is no reason to let it fail, and so run again.
        """
        arguments = (self.mine, DONE + result, _milliseconds(ttl))
        try:
            if not self._insist(lambda client: self._run(client, scripts.ONCE_FINISH, *arguments)):
                logger.error("%s ran, and another run has taken its key meanwhile.", key)
        except Exception:
            logger.exception("%s ran, and its result cannot be kept: if it comes again, it runs again.", key)

    def free(self) -> None:
        """Give the key back. If Redis is away, it is free when the lease ends."""
        try:
            self._try(lambda client: self._run(client, scripts.ONCE_FINISH, self.mine, "", "0"))
        except Exception as error:
            logger.warning("%s is free only when its lease ends: %s", self.key, error)

    def _run(self, client: Any, script: str, *arguments: Any) -> Any:
        """Run a script."""
        return functions.run(client, script, [self.key], arguments)

    def _try(self, do: Callable[[Any], T]) -> T:
        """Do something with a connection of the app's."""
        with self.app.pool.acquire(block=True) as connection:
            # else `default_channel` waits for a broker for ever
            connection.ensure_connection(max_retries=1, interval_start=0)
            return do(connection.default_channel.client)

    def _insist(self, do: Callable[[Any], T]) -> T:
        """Do something, again and again while the broker is away."""
        from kombu.exceptions import OperationalError
        from redis.exceptions import ConnectionError as LostError
        from redis.exceptions import TimeoutError as SilentError

        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._try(do)
            except (LostError, SilentError, OperationalError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(LAST_LOOK)


@contextmanager
def _renewing(store: _Store, lease: float, run: Run, key: str) -> Iterator[None]:
    """Renew a lease, in a thread (a greenlet, where gevent is)."""
    is_over = threading.Event()

    def renew() -> None:
        """Renew it three times in its length, until the body is over or another one has the key."""
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
            logger.warning("The lease of %s ended while it ran: it may run elsewhere, too.", key)

    threading.Thread(target=renew, name="once", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()  # it may wait for Redis; whatever it does then, it finds another value


def _current_app() -> Celery:
    """Return the current app; Celery is imported by then, or there is none."""
    from celery.app import app_or_default

    return cast("Celery", app_or_default())


def _written(result: Any, key: str) -> str:
    """Return a result as JSON, as Celery writes it."""
    from kombu.utils.json import dumps

    try:
        return str(dumps(result))
    except (TypeError, ValueError) as error:
        logger.error("%s ran, and its result is not kept, so others get None: %s", key, error)
        return json.dumps(None)


def _read(text: str) -> Any:
    """Return a result from JSON."""
    from kombu.utils.json import loads

    return loads(text)


def _milliseconds(seconds: float) -> int:
    """Return a time as Redis takes it."""
    return max(1, round(seconds * 1000))
