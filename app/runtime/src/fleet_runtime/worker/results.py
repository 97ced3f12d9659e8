# SPDX-License-Identifier: MIT
"""Result backends that store a result in one round trip, and miss none that they wait for.

Celery's asks for what is stored, and then stores: it leaves a success as it is, whatever a second run of the
task says (celery 5.7, backends/base.py, _store_result). Here a script does both.

Who waits for a result subscribes to its channel, and then reads what is stored, by another connection. Celery
does not wait for the answer to SUBSCRIBE (celery 5.7, backends/redis.py, _consume_from). Redis may read the
other connection first, and store the result between both: then it is neither read nor told of. That was 2 of
400 groups that were waited for in a task, over TLS, where Redis takes one record of a connection at a time.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self

from celery import states
from celery.backends import redis as stock
from kombu.utils.encoding import bytes_to_str, str_to_bytes

from fleet_runtime.broker import functions, scripts

if TYPE_CHECKING:
    from collections.abc import Callable

# Whether a part of a chord ends here, in this thread or greenlet.
_ends_part: ContextVar[bool] = ContextVar("ends_part", default=False)

# Seconds to wait for the answer to a SUBSCRIBE before the result is read all the same.
SUBSCRIBED_WITHIN = 5.0


class ResultConsumer(stock.ResultConsumer):  # type: ignore[misc]  # celery ships no types
    """Celery's consumer of results, which reads what is stored after its subscription is confirmed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin."""
        # Keys whose SUBSCRIBE was sent and not answered; and those among them whose result was read already.
        self._unconfirmed: set[bytes] = set()
        self._read_early: set[bytes] = set()
        super().__init__(*args, **kwargs)

    def start(self, initial_task_id: Any, **kwargs: Any) -> None:
        """Subscribe to the first result."""
        with self._locked():
            super().start(initial_task_id, **kwargs)
            self._listen_for_confirmations()

    def on_after_fork(self) -> None:
        """Forget the connection, which is the parent's."""
        self._unconfirmed, self._read_early = set(), set()
        super().on_after_fork()

    def on_wait_for_pending(self, result: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Read what is stored, once Redis has confirmed all subscriptions."""
        until = time.monotonic() + min(SUBSCRIBED_WITHIN, SUBSCRIBED_WITHIN if timeout is None else timeout)
        while self._unconfirmed and (left := until - time.monotonic()) > 0:
            self.drain_events(timeout=left)
        with self._locked():
            self._read_early |= self._unconfirmed
        super().on_wait_for_pending(result, timeout=timeout, **kwargs)

    def drain_events_until(self, p: Any, timeout: float | None = None, on_interval: Any = None) -> Any:
        """Wait for a result.

        Celery raises what a parent has failed with at each interval, and so as the result comes, but not if
        the result was there before. With the wait for the subscription, that is no rare case.
        """
        if p.ready and on_interval:
            on_interval()
        return super().drain_events_until(p, timeout=timeout, on_interval=on_interval)

    def _consume_from(self, task_id: Any) -> None:
        """Subscribe to a result, and remember that this is not confirmed."""
        key = self._get_key_for_task(task_id)
        if key not in self.subscribed_to:
            self._unconfirmed.add(key)
        super()._consume_from(task_id)

    def _reconnect_pubsub(self) -> None:
        """Connect anew. Celery reads all results first, and subscribes then."""
        with self._locked():
            super()._reconnect_pubsub()
            self._unconfirmed, self._read_early = set(self.subscribed_to), set(self.subscribed_to)
            self._listen_for_confirmations()

    def _listen_for_confirmations(self) -> None:
        """Listen to the answers to SUBSCRIBE, which redis-py drops."""
        self._pubsub.handle_message = partial(self._handle, self._pubsub.handle_message)

    def _handle(self, handle: Any, response: Any, ignore_subscribe_messages: bool = False) -> Any:
        """Handle what Redis says on the connection of subscriptions."""
        if response and bytes_to_str(response[0]) == "subscribe":
            self._on_confirmed(str_to_bytes(response[1]))
        return handle(response, ignore_subscribe_messages)

    def _on_confirmed(self, key: bytes) -> None:
        """Read a result that may have been stored before the subscription, and after it was read.

        redis-py connects anew by itself, too, and subscribes again: then nobody has asked for the answer.
        """
        is_read_later = key in self._unconfirmed and key not in self._read_early
        self._unconfirmed.discard(key)
        self._read_early.discard(key)
        if is_read_later or key not in self.subscribed_to:
            return
        if stored := self.backend.client.get(key):
            self.on_state_change(self._decode_result(stored), None)


class RedisBackend(stock.RedisBackend):  # type: ignore[misc]  # celery ships no types
    """Celery's backend, which misses no result that it waits for."""

    ResultConsumer = ResultConsumer


class SentinelBackend(RedisBackend, stock.SentinelBackend):  # type: ignore[misc]  # celery ships no types
    """The same, for the master that Sentinel names."""


class PatientClient:
    """A client of Redis for the end of a chord: what it asks, it asks again until Redis answers."""

    def __init__(self, client: Any, ensure: Callable[..., Any]) -> None:
        """Remember a client, and what calls a function, with arguments, until Redis answers."""
        self._client, self._ensure = client, ensure

    def __getattr__(self, name: str) -> Any:
        """Return what the client itself has."""
        return getattr(self._client, name)

    def get(self, key: Any) -> Any:
        """Return the value of a key."""
        return self._ensure(self._client.get, (key,))

    def mget(self, keys: Any) -> Any:
        """Return the values of keys."""
        return self._ensure(self._client.mget, (keys,))

    def delete(self, *keys: Any) -> Any:
        """Remove keys."""
        return self._ensure(self._client.delete, keys)

    def pipeline(self) -> PatientPipeline:
        """Return what collects commands, as a pipeline does."""
        return PatientPipeline(self._client, self._ensure)


class PatientPipeline:
    """Commands that are sent together, each time anew, until Redis answers."""

    def __init__(self, client: Any, ensure: Callable[..., Any]) -> None:
        """Collect none yet."""
        self._client, self._ensure = client, ensure
        self._commands: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __enter__(self) -> Self:
        """Begin; there is no connection yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End; each attempt has given its connection back."""

    def __getattr__(self, name: str) -> Callable[..., PatientPipeline]:
        """Return a function that adds a command."""

        def add(*args: Any, **options: Any) -> PatientPipeline:
            self._commands.append((name, args, options))
            return self

        return add

    def execute(self) -> Any:
        """Send the commands, and return the answers."""
        return self._ensure(self._attempt, ())

    def _attempt(self) -> Any:
        """Send them once: a pipeline of redis-py has forgotten its commands after an error."""
        with self._client.pipeline() as pipe:
            for name, args, options in self._commands:
                getattr(pipe, name)(*args, **options)
            return pipe.execute()


class StoringRedisBackend(RedisBackend):
    """The same, with one round trip less for each result, and more patience with chords: a node's.

    A result is stored by a function of Redis, again and again until Redis answers. Celery asks only once for
    what ends a part of a chord (celery 5.7, backends/redis.py, on_chord_part_return). A part that had
    succeeded then counted as failed; or, if only the answer was lost, nobody called the chord's body. It also
    reads the parts only once, and a chord whose parts had all succeeded failed.
    """

    @property
    def client(self) -> Any:
        """A client of Redis, which is patient where a part of a chord ends, and nobody else asks again."""
        return PatientClient(self._client, self.ensure) if _ends_part.get() else self._client

    @cached_property
    def _client(self) -> Any:
        """The client of this process."""
        return self._create_client(**self.connparams)

    def ensure(self, fun: Any, args: Any, **policy: Any) -> Any:
        """Call a function until Redis answers; what it asks by itself, it asks once each time."""
        token = _ends_part.set(False)
        try:
            return super().ensure(fun, args, **policy)
        finally:
            _ends_part.reset(token)

    def on_chord_part_return(self, *args: Any, **options: Any) -> Any:
        """Count a part of a chord, and call the body if it was the last."""
        token = _ends_part.set(True)
        try:
            return super().on_chord_part_return(*args, **options)
        finally:
            _ends_part.reset(token)

    @cached_property
    def _chord_part_return_script(self) -> Callable[..., Any]:
        """The script that counts a part of a chord, and says whether the caller is to call the body."""
        run = self._patient(super()._chord_part_return_script)

        def count_part(keys: list[str], args: list[Any], client: Any) -> tuple[Any, ...]:
            ready, added, size, claimed = run(keys, args, client)
            # Who asked again has the claim from the first time: by its token, which is last, as is its key.
            if not claimed and size and ready == int(size) + int(added or 0):
                claimed = client.get(keys[-1]) == str_to_bytes(args[-1])
            return ready, added, size, claimed

        return count_part

    @cached_property
    def _chord_claim_extend_script(self) -> Callable[..., Any]:
        """The script that gives more time to who calls the body."""
        return self._patient(super()._chord_claim_extend_script)

    @cached_property
    def _chord_cleanup_script(self) -> Callable[..., Any]:
        """The script that forgets a chord."""
        return self._patient(super()._chord_cleanup_script)

    def _patient(self, script: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs a script again and again until Redis answers, as results are stored."""

        def run(keys: list[str], args: list[Any], client: Any) -> Any:
            return self.ensure(script, (keys, args, client))

        return run

    def on_task_call(self, producer: Any, task_id: Any) -> dict[str, Any]:
        """Subscribe to no result of a task that another task sends, as a retry does, until it is waited for.

        Celery subscribes at once in pools of threads and greenlets. Nobody reads what comes then, and the
        subscription ends when the garbage collector finds its AsyncResult, in whatever thread that is.
        """
        return {}

    def _store_result(
        self,
        task_id: Any,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **more: Any,
    ) -> Any:
        """Store a result, unless there is a success."""
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        value = self.encode({**meta, "task_id": bytes_to_str(task_id)})
        readable = self.serializer == "json" and isinstance(value, str)  # by the script: not compressed
        if not readable or len(value) > self._MAX_STR_VALUE_SIZE:
            return super()._store_result(task_id, result, state, traceback, request, **more)
        expires = self.failure_expires if state == states.FAILURE else None
        seconds = self.expires if expires is None else expires
        self.ensure(self._store, (self.get_key_for_task(task_id), value, int(seconds or 0)))
        return result

    def _store(self, key: Any, value: str, seconds: int) -> None:
        """Run the script."""
        functions.run(self.client, scripts.STORE_RESULT, [key], [value, seconds])


class StoringSentinelBackend(StoringRedisBackend, SentinelBackend):
    """The same, for the master that Sentinel names."""
