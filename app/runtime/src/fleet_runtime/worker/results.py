# SPDX-License-Identifier: MIT
"""Result backends that store a result in one round trip, and miss no result that they wait for.

Celery reads the stored result first, and then stores: it never overwrites a success with the outcome of a
second run of the task (celery 5.7, backends/base.py, _store_result). Here a script does both.

A process that waits for a result subscribes to its channel, and then reads the stored result on another
connection. Celery does not wait for the reply to SUBSCRIBE (celery 5.7, backends/redis.py, _consume_from).
Redis may handle the other connection first, and store the result between both: then the process misses it.
That happened to 2 of 400 groups that a task waited for, over TLS, where Redis handles one record of a
connection at a time.
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
from fleet_runtime.compat import older_results

if TYPE_CHECKING:
    from collections.abc import Callable

# Whether a part of a chord ends, in this thread or greenlet.
_ends_part: ContextVar[bool] = ContextVar("ends_part", default=False)

# Commands with which Celery ends a part of a chord.
RETRIED = frozenset({"get", "mget", "delete"})
# Seconds to wait for the reply to SUBSCRIBE before the result is read anyway.
SUBSCRIBE_TIMEOUT_S = 5.0


class ResultConsumer(older_results.ResultConsumer):
    """Celery's consumer of results, which reads a stored result after its subscription is confirmed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create a consumer with Celery's arguments."""
        # Keys whose SUBSCRIBE is not confirmed, and those of them whose result was read already.
        self._unconfirmed: set[bytes] = set()
        self._read_early: set[bytes] = set()
        super().__init__(*args, **kwargs)

    def start(self, initial_task_id: Any, **kwargs: Any) -> None:
        """Subscribe to the first result."""
        with self._locked():
            super().start(initial_task_id, **kwargs)
            self._listen_for_confirmations()

    def on_after_fork(self) -> None:
        """Forget the connection, which belongs to the parent process."""
        self._unconfirmed, self._read_early = set(), set()
        super().on_after_fork()

    def on_wait_for_pending(self, result: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Read the stored results, once Redis has confirmed all subscriptions."""
        seconds = SUBSCRIBE_TIMEOUT_S if timeout is None else min(SUBSCRIBE_TIMEOUT_S, timeout)
        until = time.monotonic() + seconds
        while self._unconfirmed and (left := until - time.monotonic()) > 0:
            self.drain_events(timeout=left)
        with self._locked():
            self._read_early |= self._unconfirmed
        super().on_wait_for_pending(result, timeout=timeout, **kwargs)

    def drain_events_until(self, p: Any, timeout: float | None = None, on_interval: Any = None) -> Any:
        """Wait for a result.

        Celery raises the error of a failed parent at each interval, and so when the result arrives, but not
        if the result was there before. With the wait for the subscription, that is common.
        """
        if p.ready and on_interval:
            on_interval()
        return super().drain_events_until(p, timeout=timeout, on_interval=on_interval)

    def _consume_from(self, task_id: Any) -> None:
        """Subscribe to a result, and remember that the subscription is not confirmed."""
        key = self._get_key_for_task(task_id)
        if key not in self.subscribed_to:
            self._unconfirmed.add(key)
        super()._consume_from(task_id)

    def _reconnect_pubsub(self) -> None:
        """Reconnect. Celery reads all results first, and then subscribes."""
        with self._locked():
            super()._reconnect_pubsub()
            self._unconfirmed, self._read_early = set(self.subscribed_to), set(self.subscribed_to)
            self._listen_for_confirmations()

    def _listen_for_confirmations(self) -> None:
        """Handle the replies to SUBSCRIBE, which redis-py drops."""
        self._pubsub.handle_message = partial(self._handle, self._pubsub.handle_message)

    def _handle(self, handle: Any, response: Any, ignore_subscribe_messages: bool = False) -> Any:
        """Handle a message on the connection of subscriptions."""
        if response and bytes_to_str(response[0]) == "subscribe":
            self._on_confirmed(str_to_bytes(response[1]))
        return handle(response, ignore_subscribe_messages)

    def _on_confirmed(self, key: bytes) -> None:
        """Read a result that may have been stored after it was read, and before the subscription.

        redis-py also reconnects by itself, and subscribes again: then the key is not in `_unconfirmed`.
        """
        is_read_later = key in self._unconfirmed and key not in self._read_early
        self._unconfirmed.discard(key)
        self._read_early.discard(key)
        if is_read_later or key not in self.subscribed_to:
            return
        if stored := self.backend.client.get(key):
            self.on_state_change(self._decode_result(stored), None)


class RedisBackend(older_results.RedisBackend):
    """Celery's backend, with a consumer that misses no result."""

    ResultConsumer = ResultConsumer


class SentinelBackend(RedisBackend, stock.SentinelBackend):
    """The same for the master that Sentinel names."""


class RetryingClient:
    """A client of Redis that retries the commands of a chord's end until Redis answers."""

    def __init__(self, client: Any, ensure: Callable[..., Any]) -> None:
        """Wrap a client.

        Args:
            client: A client of redis-py.
            ensure: Calls a function with arguments until Redis answers.
        """
        self._client, self._ensure = client, ensure

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the wrapped client. The commands in RETRIED are retried."""
        attribute = getattr(self._client, name)
        return (lambda *args: self._ensure(attribute, args)) if name in RETRIED else attribute

    def pipeline(self) -> RetryingPipeline:
        """Return a pipeline that is retried as a whole."""
        return RetryingPipeline(self._client, self._ensure)


class RetryingPipeline:
    """A pipeline that is sent again, with all its commands, until Redis answers."""

    def __init__(self, client: Any, ensure: Callable[..., Any]) -> None:
        """Start without commands."""
        self._client, self._ensure = client, ensure
        self._commands: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __enter__(self) -> Self:
        """Return the pipeline; it needs no connection yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: each attempt has released its connection."""

    def __getattr__(self, name: str) -> Callable[..., RetryingPipeline]:
        """Return a function that adds a command."""

        def add(*args: Any, **options: Any) -> RetryingPipeline:
            self._commands.append((name, args, options))
            return self

        return add

    def execute(self) -> Any:
        """Send the commands, and return the replies."""
        return self._ensure(self._attempt, ())

    def _attempt(self) -> Any:
        """Send the commands once, in a new pipeline: after an error, redis-py's has lost its commands."""
        with self._client.pipeline() as pipe:
            for name, args, options in self._commands:
                getattr(pipe, name)(*args, **options)
            return pipe.execute()


class StoringRedisBackend(RedisBackend):
    """The backend of a node: one round trip less for each result, and retries at the end of chords.

    A script stores a result, and is retried until Redis answers. Celery does not retry the commands that end
    a part of a chord (celery 5.7, backends/redis.py, on_chord_part_return). If one failed, a part that had
    succeeded counted as failed; if only the reply was lost, no process called the body of the chord. Celery
    also reads the parts only once: after an error, a chord whose parts had all succeeded failed.
    """

    @property
    def client(self) -> Any:
        """The client of Redis; one that retries, while a part of a chord ends outside of `ensure`."""
        return RetryingClient(self._client, self.ensure) if _ends_part.get() else self._client

    @cached_property
    def _client(self) -> Any:
        """The client without retries."""
        return self._create_client(**self.connparams)

    def ensure(self, fun: Any, args: Any, **policy: Any) -> Any:
        """Call a function until Redis answers. Its own commands are not retried within a call."""
        token = _ends_part.set(False)
        try:
            return super().ensure(fun, args, **policy)
        finally:
            _ends_part.reset(token)

    def on_chord_part_return(self, *args: Any, **options: Any) -> Any:
        """Count a part of a chord, and call the body after the last one."""
        token = _ends_part.set(True)
        try:
            return super().on_chord_part_return(*args, **options)
        finally:
            _ends_part.reset(token)

    @cached_property
    def _chord_part_return_script(self) -> Callable[..., Any]:
        """The script that counts a part of a chord, and returns whether the caller is to call the body."""
        run = self._retried(super()._chord_part_return_script)

        def count_part(keys: list[str], args: list[Any], client: Any) -> tuple[Any, ...]:
            ready, added, size, claimed = run(keys, args, client)
            # After a retry, the claim may be from the first attempt: it has the token, the last argument.
            if not claimed and size and ready == int(size) + int(added or 0):
                claimed = client.get(keys[-1]) == str_to_bytes(args[-1])
            return ready, added, size, claimed

        return count_part

    @cached_property
    def _chord_claim_extend_script(self) -> Callable[..., Any]:
        """The script that extends the claim of the process that calls the body."""
        return self._retried(super()._chord_claim_extend_script)

    @cached_property
    def _chord_cleanup_script(self) -> Callable[..., Any]:
        """The script that deletes a chord."""
        return self._retried(super()._chord_cleanup_script)

    def _retried(self, script: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs a script until Redis answers."""

        def run(keys: list[str], args: list[Any], client: Any) -> Any:
            return self.ensure(script, (keys, args, client))

        return run

    def on_task_call(self, producer: Any, task_id: Any) -> dict[str, Any]:
        """Do not subscribe to the result of a task that a task sends, until it is waited for.

        In pools of threads and greenlets, Celery subscribes at once. The messages are not read, and the
        subscription ends when the garbage collector finds its AsyncResult, in any thread.
        """
        return {}

    def _store_result(
        self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **more: Any
    ) -> Any:
        """Store a result, unless a success is stored."""
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        value = self.encode({**meta, "task_id": bytes_to_str(task_id)})
        readable = self.serializer == "json" and isinstance(value, str)  # for the script: not compressed
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
    """The same for the master that Sentinel names."""
