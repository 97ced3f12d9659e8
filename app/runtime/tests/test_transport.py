# SPDX-License-Identifier: MIT
"""The transport: a message is in its queue, or recorded as held, at every instant."""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import bootsteps
from fleet_runtime.compat import older_kombu
from fleet_runtime.recovery import inflight
from fleet_runtime.transport import qos, tuning
from fleet_runtime.transport.channel import Channel
from fleet_runtime.transport.connection import is_readable
from fleet_runtime.transport.transports import Transport
from fleet_runtime.worker.bootsteps import own_keys
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub
from kombu.utils.eventio import ERR
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import ResponseError

from fleet_testing import kills
from fleet_testing.commands import PATIENCE, wait_until
from fleet_testing.consuming import drain, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fleet_testing.broker import Broker

pytestmark = pytest.mark.server
OPTIONS = own_keys("one")
PRIORITIES = (0, 3, 6, 9)
KILLS = 40


@pytest.fixture
def url(broker: Broker) -> str:
    """The broker's URL for a node."""
    return broker.url("worker")


@pytest.fixture
def producer(url: str, broker: Broker) -> Iterator[Producer]:
    """Yield a producer of kombu's own transport, with empty queues."""
    admin = broker.client("admin")
    admin.delete(*OPTIONS.values(), *(key for queue in ("default", "email") for key in lists(queue)))
    with Connection(url) as connection:
        channel = connection.channel()
        for name in ("default", "email"):
            Queue(name, Exchange(name), name)(channel).declare()
        yield Producer(channel)


def lists(queue: str) -> list[str]:
    """Return the lists of a queue."""
    return [queue, *(f"{queue}\x06\x16{priority}" for priority in PRIORITIES[1:])]


def text(value: Any) -> Any:
    """Return what Redis has as text."""
    if isinstance(value, dict):
        return {text(name): text(one) for name, one in value.items()}
    if isinstance(value, list):
        return [text(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def numbers(got: list[Any]) -> list[int]:
    """Return the numbers in messages."""
    return [message.payload["number"] for message in got]


def send(producer: Producer, count: int, queue: str = "default", priority: int = 0) -> None:
    """Send messages."""
    for number in range(count):
        producer.publish(
            {"number": number + 100 * priority}, exchange=queue, routing_key=queue, priority=priority
        )


def consume(connection: Connection, *queues: str, room: int = 0) -> tuple[Any, list[Any]]:
    """Return a channel that consumes, and the messages that came by it, none of which is settled."""
    channel, got = connection.channel(), list[Any]()
    channel.basic_qos(0, room, False)
    Consumer(channel, [Queue(q, Exchange(q), q) for q in queues], on_message=got.append).consume()
    return channel, got


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection by the fleet's transport."""
    with Connection(url, transport=Transport, transport_options=OPTIONS) as connection:
        yield connection


def test_what_is_taken_is_recorded(broker: Broker, producer: Producer, connection: Connection) -> None:
    """As kombu would, so that recovery and kombu's own commands can read it; and forgotten when settled."""
    admin = broker.client("admin")
    send(producer, 3)
    _, got = consume(connection, "default")
    receive(connection, got, 3)
    assert numbers(got) == [0, 1, 2]
    held = {tag: json.loads(record) for tag, record in text(admin.hgetall("unacked:one")).items()}
    assert held == {one.delivery_tag: [one._raw, "", "default"] for one in got}
    assert set(text(admin.zrange("unacked_index:one", 0, -1))) == set(held)
    got[0].ack()
    got[2].reject()
    drain(connection)
    got[1].requeue()
    assert admin.hlen("unacked:one") == admin.zcard("unacked_index:one") == 0
    assert admin.llen("default") == 1


def test_a_message_that_is_in_two_queues_is_taken_twice(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """By one node, which settles each by itself."""
    admin = broker.client("admin")
    send(producer, 1)
    admin.copy("default", "email")
    _, got = consume(connection, "default", "email")
    receive(connection, got, 2)
    records = [json.loads(record)[1:] for record in admin.hvals("unacked:one")]
    assert sorted(records) == [["", "default"], ["", "email"]]
    got[0].ack()
    drain(connection)
    assert admin.hkeys("unacked:one") == admin.zrange("unacked_index:one", 0, -1) == [got[1].delivery_tag]
    got[1].requeue()
    assert admin.llen("default") + admin.llen("email") == 1
    assert not admin.exists("unacked:one")


@pytest.mark.usefixtures("producer")
def test_a_redis_that_does_not_answer_is_left(
    broker: Broker, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have handed out a message, which the node requeues as it reconnects."""
    cycle = connection.transport.cycle
    channel, _ = consume(connection, "default")
    drain(connection)
    cycle.maybe_check_brpop_health()
    with stopped(broker):
        channel.fetcher.send(*channel._track())
        while is_readable(channel.fetcher.connection._sock):  # Redis sent it before it stood still
            with suppress(Empty):
                cycle.on_readable(channel.fetcher.fileno)
        cycle.maybe_check_brpop_health()
        monkeypatch.setattr(channel, "health_check_interval", 0.1)
        time.sleep(0.2)
        with pytest.raises(NoConnectionError):
            cycle.maybe_check_brpop_health()
    assert not channel.fetcher.is_open


@pytest.mark.usefixtures("producer")
def test_an_error_on_the_connection_is_a_lost_connection(broker: Broker, connection: Connection) -> None:
    """Also where a poller reports nothing else."""
    channel, _ = consume(connection, "default")
    drain(connection)
    fileno = channel.fetcher.fileno
    for client in broker.client("admin").client_list():
        if client["user"] == "worker":
            broker.client("admin").client_kill_filter(_id=client["id"])
    with pytest.raises(NoConnectionError):
        while select.select([fileno], [], [], PATIENCE)[0]:  # Redis closes it after it has answered
            with suppress(Empty):  # a reply from before
                connection.transport.cycle.handle_event(fileno, ERR)
    assert not channel.fetcher.is_open


@pytest.mark.usefixtures("producer")
def test_who_closes_does_not_wait_for_ever(
    broker: Broker, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that stands still may have a message under way, and does not say so."""
    monkeypatch.setattr(tuning, "CLOSE_TIMEOUT_S", 0.5)
    channel, _ = consume(connection, "default")
    drain(connection, 1)
    with stopped(broker):
        channel.fetcher.send(*channel._track())
        started = time.monotonic()
        channel.close()
    assert time.monotonic() - started < tuning.POLL_INTERVAL_S / 2


@contextmanager
def stopped(broker: Broker) -> Iterator[None]:
    """Let Redis stand still."""
    broker.process.send_signal(signal.SIGSTOP)
    os.waitpid(broker.process.pid, os.WUNTRACED)  # until it stands still: a busy machine takes a moment
    try:
        yield
    finally:
        broker.process.send_signal(signal.SIGCONT)


def test_what_is_not_to_be_settled_is_not_recorded(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """No acknowledgement would remove its record."""
    send(producer, 1)
    got: list[Any] = []
    Consumer(connection.channel(), [Queue("default")], on_message=got.append, no_ack=True).consume()
    receive(connection, got, 1)
    assert numbers(got) == [0]
    assert not broker.client("admin").exists("unacked:one", "unacked_index:one")


def test_no_more_is_taken_than_there_is_room_for(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """The rest is left to others."""
    send(producer, 5)
    _, got = consume(connection, "default", room=2)
    receive(connection, got, 2)
    assert numbers(got) == [0, 1]
    assert broker.client("admin").llen("default") == 3
    got[1].ack()
    receive(connection, got, 3)
    assert numbers(got) == [0, 1, 2]


def test_who_had_no_room_is_told_when_there_is(producer: Producer, connection: Connection) -> None:
    """At once, though it waits, and by whatever thread."""
    send(producer, 2)
    _, got = consume(connection, "default", room=1)
    receive(connection, got, 1)
    threading.Timer(0.5, got[0].ack).start()
    start = time.monotonic()
    while len(got) < 2:
        connection.drain_events(timeout=PATIENCE)
    assert time.monotonic() - start < tuning.POLL_INTERVAL_S / 4


def test_what_is_urgent_comes_first(producer: Producer, connection: Connection) -> None:
    """Of all queues, and from each queue in turn, as with kombu."""
    for priority in reversed(PRIORITIES):
        send(producer, 1, "default", priority)
        send(producer, 1, "email", priority)
    _, got = consume(connection, "default", "email", room=1)
    for count in range(1, 9):
        receive(connection, got, count)
        got[-1].ack()
    assert numbers(got) == [0, 0, 300, 300, 600, 600, 900, 900]
    queues = [message.delivery_info["routing_key"] for message in got]
    assert all({queues[at], queues[at + 1]} == {"default", "email"} for at in range(0, 8, 2))


@pytest.mark.parametrize("strategy", ["round_robin", "sorted", "priority"])
def test_a_batch_has_the_order_of_kombu(url: str, producer: Producer, strategy: str) -> None:
    """Which takes one after another. Before 5.7, kombu has its queues in no order."""
    options = {**OPTIONS, "queue_order_strategy": strategy}
    orders: list[Any] = []
    for own in (Transport, type("Ordered", (older_kombu.Transport,), {"Channel": older_kombu.Channel})):
        for priority in PRIORITIES:
            send(producer, 3, "email", priority)
            send(producer, 2, "default", priority)
        with Connection(url, transport=own, transport_options=options) as connection:
            _, got = consume(connection, "email", "default")
            receive(connection, got, 20)
            orders.append([(one.delivery_info["routing_key"], one.payload["number"]) for one in got])
            for message in got:
                message.ack()
    assert orders[0] == orders[1]


def test_what_is_done_together_is_told_together(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """And what takes its place is taken by the same command."""
    admin = broker.client("admin")
    send(producer, 60)
    _, got = consume(connection, "default", room=20)
    receive(connection, got, 20)
    before = requests(broker)
    for message in got[:20]:
        message.ack()
    receive(connection, got, 40)
    assert requests(broker) - before <= 2
    assert admin.hlen("unacked:one") == 20


def requests(broker: Broker) -> int:
    """Return how many scripts Redis was asked to run."""
    return int(broker.client("admin").info("commandstats")["cmdstat_fcall"]["calls"])


def test_what_is_done_is_told_though_the_next_task_goes_on(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """In a solo pool tasks run one after another as they are delivered: a node that dies repeats few."""
    send(producer, 5)
    channel, got = consume(connection, "default", room=5)
    receive(connection, got, 5)
    for message in got:
        message.ack()
        time.sleep(2 * tuning.ACK_LINGER_S)
    assert broker.client("admin").hlen("unacked:one") <= 2
    assert len(channel.unconfirmed_acks()) == 5, "nothing was read"


@pytest.mark.parametrize("room", [16, 2])
def test_few_that_are_done_wait_for_others(
    broker: Broker, producer: Producer, connection: Connection, room: int
) -> None:
    """Half of what a node reserves is enough; and none waits for long."""
    admin = broker.client("admin")
    send(producer, 40)
    _, got = consume(connection, "default", room=room)
    receive(connection, got, room)
    before = requests(broker)
    got[0].ack()
    connection.transport.cycle.on_poll_start()
    assert requests(broker) - before == int(room == 2)
    receive(connection, got, room + 1)
    assert admin.hlen("unacked:one") == room


@pytest.mark.parametrize(("nodes", "most"), [(2, 2), (20, 20), (1000, 250)])
def test_who_looks_in_vain_looks_later(
    producer: Producer, connection: Connection, monkeypatch: pytest.MonkeyPatch, nodes: int, most: int
) -> None:
    """Twice as late each time, up to a bound, until it gets a message: Redis tells all of each."""
    monkeypatch.setattr(Channel, "nodes", nodes)
    monkeypatch.setattr("random.uniform", lambda least, most: most)
    channel, got = consume(connection, "default")
    waits: list[float] = []
    monkeypatch.setattr(channel, "_back_off", waits.append)

    def drain_until(happened: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not happened() and time.monotonic() < until:
            drain(connection, 0.05)

    def is_subscribed() -> bool:
        return channel._tracking.is_active and not channel._tracking.may_have_messages

    def has_waited(times: int) -> bool:
        return len(waits) == times

    for number in range(12):
        drain_until(lambda: is_subscribed() and channel.fetcher.is_idle)
        channel._tracking.on_invalidate()
        drain_until(partial(has_waited, number + 1))
    assert waits == pytest.approx([0.001 * min(most, 2 * 2**number) for number in range(12)])
    assert channel._backoff.misses == tuning.BACKOFF_MAX_DOUBLINGS, (
        "in the end it would be no number that a float can be"
    )
    send(producer, 1)
    receive(connection, got, 1)
    assert channel._backoff.misses == 0


def test_who_took_all_that_was_there_is_told_of_the_next(producer: Producer, connection: Connection) -> None:
    """Redis ends the tracking of a list for the node that fetches from it."""
    _, got = consume(connection, "default", room=2)
    drain(connection)
    send(producer, 5)
    for count in range(1, 6):
        receive(connection, got, count)
        got[count - 1].ack()
    drain(connection)
    send(producer, 1)
    start = time.monotonic()
    while len(got) < 6:
        connection.drain_events(timeout=PATIENCE)
    assert time.monotonic() - start < tuning.POLL_INTERVAL_S / 4


def test_who_consumes_no_more_gets_what_is_under_way(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """It goes back, because no consumer is left; the channel can still be used."""
    admin = broker.client("admin")
    channel = connection.channel()
    consumer = Consumer(channel, [Queue("default")], on_message=lambda message: None)
    consumer.consume()
    drain(connection)
    send(producer, 2)
    channel._tracking.may_have_messages = True
    connection.transport.cycle.on_poll_start()  # asks for them
    wait_until(lambda: admin.hlen("unacked:one") == 2)
    consumer.cancel()
    got: list[Any] = []
    Consumer(channel, [Queue("default")], on_message=got.append).consume()
    receive(connection, got, 2)
    assert sorted(numbers(got)) == [0, 1]
    assert admin.hlen("unacked:one") == 2


def test_what_was_under_way_as_the_connection_was_lost_is_given_back(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """By any part that notices the loss: the node reconnects, and not only this connection."""
    send(producer, 2)
    channel, got = consume(connection, "default", room=1)
    receive(connection, got, 1)
    with stopped(broker):
        channel._fetch_and_ack(channel.fetcher, 1)
        channel.fetcher.disconnect()  # as a failing send does
    with pytest.raises(NoConnectionError, match="messages were under way"):
        drain(connection)
    drain(connection)


def test_a_redis_that_is_asked_again_and_again_is_found_to_be_silent(
    broker: Broker, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is the oldest question without an answer."""
    monkeypatch.setattr(tuning, "POLL_INTERVAL_S", 0.1)
    channel, _ = consume(connection, "default")
    drain(connection)
    asked = channel.asked_at
    with stopped(broker):
        for _ in range(10):
            drain(connection, 0.1)
        assert channel.fetcher.is_overdue(0.5)
        assert channel.asked_at < asked + 1, "the watchdog would not see it"


def test_who_always_has_room_is_seen_to_ask(
    producer: Producer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog counts a node as deaf that has room and does not."""
    channel, got = consume(connection, "default")
    drain(connection)
    asked = channel.asked_at
    monkeypatch.setattr(channel, "_track", list)  # it comes to this only when nothing is left
    send(producer, 300)
    receive(connection, got, 300)
    assert channel.asked_at > asked


def test_few_that_are_done_do_not_wait_for_an_event(producer: Producer, connection: Connection) -> None:
    """Without a loop there is no timer."""
    send(producer, 9)
    _, got = consume(connection, "default", room=8)
    receive(connection, got, 8)
    threading.Timer(0.3, got[0].ack).start()
    start = time.monotonic()
    while len(got) < 9:
        connection.drain_events(timeout=PATIENCE)
    assert time.monotonic() - start < 1


def test_few_that_are_done_do_not_wait_for_a_loop(producer: Producer, connection: Connection) -> None:
    """It has decided how long to wait before it asks what is to be sent."""
    send(producer, 9)
    _, got = consume(connection, "default", room=8)
    hub = Hub()
    connection.register_with_event_loop(hub)
    hub.call_later(0.5, lambda: got[0].ack())
    start = time.monotonic()
    while len(got) < 9:
        assert time.monotonic() < start + PATIENCE
        hub.run_once()
        if len(got) == 8 and time.monotonic() < start + 0.4:
            time.sleep(0.01)
    assert time.monotonic() - start < 0.9, "the next tick of kombu's own timers"
    hub.close()


class Looping:
    """A node with a loop and two slots, which prefetches more, however slow it is."""

    def __init__(self, connection: Connection, broker: Broker) -> None:
        """Connect to the tests' Redis, with room for two messages."""
        self.connection = connection
        self.channel, self.got = connection.channel(), list[Any]()
        self.channel.basic_qos(0, 2, False)
        queues = [Queue(name, Exchange(name), name) for name in ("default", "email")]
        self.consumer = Consumer(self.channel, queues, on_message=self.got.append)
        self.consumer.consume()
        self._admin = broker.client("admin")
        self.hub = Hub()
        connection.register_with_event_loop(self.hub)

    def turn(self, seconds: float = 0.03) -> None:
        """Let the loop turn."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.hub.call_later(0.01, int)
            self.hub.run_once()

    def begin(self) -> None:
        """Run a few, after which it knows how fast it is."""
        while self.held() <= 2:
            self.done()
            self.turn(0.01)

    def done(self) -> None:
        """Acknowledge all that was delivered."""
        for message in self.got:
            if not message.acknowledged:
                message.ack()

    def held(self) -> int:
        """Return how many messages the node holds."""
        return int(self._admin.hlen(OPTIONS["unacked_key"]))

    def left(self) -> list[int]:
        """Return the numbers of what waits, the next one first."""
        items = [item for key in lists("default") for item in reversed(self._admin.lrange(key, 0, -1))]
        return [json.loads(base64.b64decode(json.loads(item)["body"]))["number"] for item in items]


@pytest.fixture
def looping(
    connection: Connection, producer: Producer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> Looping:
    """One that has begun, with plenty in its queues."""
    monkeypatch.setattr(tuning, "PREFETCH_WINDOW_S", 10)
    send(producer, 60)
    send(producer, 40, priority=3)
    node = Looping(connection, broker)
    node.begin()
    return node


def test_what_is_taken_in_advance_is_delivered_without_asking(
    looping: Looping, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as there is room; in the order of the queue. On a slow machine, nothing goes back meanwhile."""
    monkeypatch.setattr(tuning, "PREFETCH_TTL_S", PATIENCE)
    before, count = requests(broker), len(looping.got)
    while len(looping.got) < count + 40:
        looping.done()
        looping.turn(0.002)
    assert requests(broker) - before < 20
    assert numbers(looping.got) == sorted(numbers(looping.got))
    assert looping.held() <= 2 + 2 * tuning.PREFETCH_PER_SLOT


def test_what_was_taken_in_advance_goes_back_if_it_has_to_wait(looping: Looping) -> None:
    """To where it was: another node can take it, and the order is as it was."""
    got = numbers(looping.got)
    looping.turn(3 * tuning.PREFETCH_TTL_S)
    assert looping.held() == 2
    assert numbers(looping.got) == got
    rest = looping.left()
    everything = [*range(60), *range(300, 340)]
    assert sorted([*got, *rest]) == everything
    assert rest == sorted(rest)
    looping.done()
    looping.turn()
    assert numbers(looping.got)[len(got) :] == rest[:2]


def test_what_was_taken_in_advance_goes_back_as_the_node_stops(looping: Looping) -> None:
    """At once, when its last queue is cancelled, or one of them."""
    looping.channel.basic_cancel(looping.channel._tag_to_queue.copy().popitem()[0])
    assert looping.held() == 2
    assert sorted([*numbers(looping.got), *looping.left()]) == [*range(60), *range(300, 340)]


def test_what_was_taken_in_advance_goes_back_as_a_channel_closes(looping: Looping) -> None:
    """With what was delivered, and not settled."""
    settled = [message.payload["number"] for message in looping.got if message.acknowledged]
    looping.channel.close()
    assert looping.held() == 0
    assert sorted([*settled, *looping.left()]) == [*range(60), *range(300, 340)]


def test_a_redis_that_is_lost_as_the_last_queue_is_cancelled_is_not_passed_over(
    looping: Looping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages under way are requeued only if the node reconnects; prefetched messages go back."""

    def lose() -> None:
        raise looping.connection.connection_errors[0]("lost")

    monkeypatch.setattr(looping.channel, "_wait_for_replies", lose)
    tags = list(looping.channel._tag_to_queue)
    looping.channel.basic_cancel(tags[0])
    with pytest.raises(looping.connection.connection_errors, match="lost"):
        looping.channel.basic_cancel(tags[1])
    assert looping.held() == 2


def test_what_came_is_delivered_though_what_was_taken_with_it_cannot_go_back(
    looping: Looping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue was cancelled, and the connection is lost."""

    def lose() -> None:
        raise looping.connection.connection_errors[0]("lost")

    looping.channel.prefetcher.buffer.clear()
    while not looping.channel.fetcher.has_pending_fetch:
        looping.done()
        looping.channel.on_poll_start(lambda _: None)
    count = len(looping.got)
    monkeypatch.setattr(looping.channel.prefetcher, "put_back", lose)
    monkeypatch.setattr(looping.channel, "queues", [])
    with pytest.raises(looping.connection.connection_errors, match="lost"):
        looping.channel.fetcher.read(1)
    assert len(looping.got) > count


def test_a_redis_that_writes_nothing_gets_back_later_what_was_taken(
    looping: Looping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node goes on, and tries again."""
    held = looping.held()

    def refuse(*_: Any) -> None:
        raise ResponseError("MISCONF no disk")

    with monkeypatch.context() as refusing:
        refusing.setattr("fleet_runtime.broker.functions.run", refuse)
        looping.turn(2 * tuning.PREFETCH_TTL_S)
        assert looping.held() == held
    looping.turn(3 * tuning.PREFETCH_TTL_S)
    assert looping.held() == 2


def test_what_others_have_by_now_does_not_go_back(looping: Looping, broker: Broker) -> None:
    """The node was cut off: recovery has given it back with a mark, and it is held again."""
    admin, unacked = broker.client("admin"), OPTIONS["unacked_key"]
    tags = [message.tag for message in looping.channel.prefetcher.buffer.messages]
    assert len(tags) > 1
    admin.hset(unacked, tags[0], "[{}, 1, 2]")
    left = len(looping.left())
    looping.turn(3 * tuning.PREFETCH_TTL_S)
    assert looping.held() == 3
    assert admin.hexists(unacked, tags[0])
    assert len(looping.left()) == left + len(tags) - 1


def test_what_came_while_a_node_stood_still_goes_back(looping: Looping) -> None:
    """Others may have got it, if that was for long: its age counts from when it was asked for."""
    while not looping.channel.fetcher.has_pending_fetch:
        looping.done()
        looping.channel.on_poll_start(lambda _: None)
    time.sleep(2 * tuning.PREFETCH_TTL_S)
    looping.channel.prefetcher.buffer.clear()  # which is old in any case
    wait_until(lambda: looping.channel.fetcher.read(1) or looping.channel.prefetcher.buffer)
    assert looping.channel.prefetcher.buffer
    looping.channel.on_poll_start(lambda _: None)
    assert not looping.channel.prefetcher.buffer


def test_what_is_done_as_it_is_delivered_holds_nothing_up(
    connection: Connection, producer: Producer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as tasks that have expired: the loop acknowledges them, and waits by then for an event."""
    monkeypatch.setattr(tuning, "PREFETCH_WINDOW_S", 10)
    monkeypatch.setattr(tuning, "PREFETCH_TTL_S", PATIENCE)
    monkeypatch.setattr(tuning, "ACK_LINGER_S", PATIENCE)
    send(producer, 90)
    node = Looping(connection, broker)
    hub, done = node.hub, list[Any]()

    def expire(message: Any) -> None:
        done.append(message)
        hub.call_soon(message.ack)

    node.consumer.on_message = expire
    start = time.monotonic()
    while len(done) < 90:
        hub.run_once()
    assert time.monotonic() - start < 1


class OwnOrder:
    """An order of queues, as an app may bring it: not one of kombu's."""

    def __init__(self, names: list[str]) -> None:
        """Begin with some queues."""
        self.names = names

    def consume(self, count: int) -> list[str]:
        """Return the first queues."""
        return self.names[:count]

    def rotate(self, last: str) -> None:
        """Put the one that was used behind the others."""
        self.names.sort(key=last.__eq__)


def test_a_channel_makes_its_client_once(connection: Connection) -> None:
    """It is of the channel's pool, and there is another when the pool is another."""
    channel = connection.channel()
    with channel.conn_or_acquire() as one, channel.conn_or_acquire() as same:
        assert one is same
    channel._disconnect_pools()
    with channel.conn_or_acquire() as other:
        assert other is not one
        assert other.ping()


@pytest.mark.parametrize("strict", ["condition", "own order", "one at a time", "no loop", "slow", "far"])
def test_who_cannot_give_back_takes_nothing_in_advance(
    connection: Connection, producer: Producer, broker: Broker, monkeypatch: pytest.MonkeyPatch, strict: str
) -> None:
    """A node that asks before each message, runs few, or is far from Redis does not prefetch, either."""
    monkeypatch.setattr(tuning, "PREFETCH_WINDOW_S", 0.0001 if strict == "slow" else 10)
    send(producer, 60)
    node = Looping(connection, broker)
    if strict == "condition":
        qos = node.channel.qos
        monkeypatch.setattr(qos, "can_consume", lambda: len(qos._delivered) - len(qos._dirty) < 2)
    elif strict == "own order":
        monkeypatch.setattr(node.channel, "_queue_cycle", OwnOrder(["default", "email"]))
    elif strict == "one at a time":
        node.channel.fetch_limit = 1
    elif strict == "no loop":
        monkeypatch.setattr(connection.transport.cycle, "loop", None)
    elif strict == "far":
        monkeypatch.setattr(tuning, "PREFETCH_TTL_S", 1e-6)
    kept, keep = list[Any](), node.channel.prefetcher.keep

    def count(ahead: Any, asked_at: float) -> None:
        kept.append(ahead)
        keep(ahead, asked_at)

    monkeypatch.setattr(node.channel.prefetcher, "keep", count)
    for turn in range(10):
        node.turn(0.01)
        assert node.held() <= 2 or (strict == "far" and not turn)
        node.done()
    assert len(node.got) >= 10
    assert len(kept) <= (strict == "far"), "once, to find out"


def test_what_is_to_run_once_at_most_is_acknowledged_at_once(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """It does not wait for others."""
    send(producer, 8)
    channel, got = consume(connection, "default", room=8)
    receive(connection, got, 8)
    before = requests(broker)
    got[0].ack()
    channel.flush_soon()
    connection.transport.cycle.on_poll_start()
    assert requests(broker) - before == 1


def test_who_waits_for_its_pool_acknowledges_by_itself(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """What other threads are done with, while what polls has a message in its hands, and no loop."""
    send(producer, 8)
    channel, got = consume(connection, "default", room=8)
    receive(connection, got, 8)
    connection.transport.cycle.polls = False
    for message in got[:2]:
        thread = threading.Thread(target=message.ack)
        thread.start()
        thread.join()
    assert broker.client("admin").hlen("unacked:one") == 6
    assert not channel.unconfirmed_acks()


@pytest.mark.parametrize("again", [1, 2])
def test_what_only_python_can_read_is_a_message(
    broker: Broker, producer: Producer, connection: Connection, again: int
) -> None:
    """As kombu would say: one with half a character in a header. It is recorded as one, and so often."""
    admin = broker.client("admin")
    send(producer, 1)
    message = json.loads(admin.rpop("default"))
    message["headers"]["path"] = "caf\udce9"
    for _ in range(again):
        admin.lpush("default", json.dumps(message))
    _, got = consume(connection, "default")
    receive(connection, got, again)
    records = [json.loads(record) for record in admin.hvals("unacked:one")]
    assert [record[1:] for record in records] == [["", "default"]] * again
    assert admin.zcard("unacked_index:one") == again
    got[0].ack()
    drain(connection)
    assert admin.hlen("unacked:one") == again - 1
    if again > 1:
        got[1].requeue()
        assert json.loads(admin.lindex("default", 0))["headers"]["path"] == "caf\udce9"


def test_what_was_settled_for_another_channel_makes_no_room(
    producer: Producer, connection: Connection
) -> None:
    """As a node does that has lost its connection, for what ended meanwhile."""
    send(producer, 5)
    channel, got = consume(connection, "default", room=2)
    for tag in ("other-1", "other-2"):
        channel.qos.ack(tag)
    receive(connection, got, 2)
    assert len(got) == 2


def test_what_may_not_have_been_heard_is_told_again(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """An acknowledgement of which no answer came, and one that was not sent."""
    send(producer, 2)
    channel, got = consume(connection, "default")
    receive(connection, got, 2)
    with stopped(broker):
        for message in got:
            message.ack()
            connection.transport.cycle.on_poll_start()
        channel.fetcher.disconnect()
        assert channel.unconfirmed_acks() == [message.delivery_tag for message in got]
    drain(connection)
    assert not broker.client("admin").exists("unacked:one")


def test_what_was_done_as_the_connection_was_lost_is_told_by_the_next(
    broker: Broker, producer: Producer, url: str
) -> None:
    """It is not handed out again."""
    worker: Any = SimpleNamespace(
        blueprint=SimpleNamespace(state=bootsteps.RUN), hub=None, pool=SimpleNamespace(flush=None)
    )
    held = inflight.InFlight(worker)
    send(producer, 3)
    with Connection(url, transport=Transport, transport_options=OPTIONS) as first:
        channel, got = consume(first, "default")
        held.adopt(channel)
        receive(first, got, 3)
        got[0].ack()
        channel.fetcher.disconnect()
        got[1].ack()
        with Connection(url, transport=Transport, transport_options=OPTIONS) as second:
            held.adopt(second.default_channel)
            assert text(broker.client("admin").hkeys("unacked:one")) == [got[2].delivery_tag]


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("queue", ["default", "email"])
def test_who_waits_is_told(producer: Producer, connection: Connection, queue: str, priority: int) -> None:
    """Of a message in whatever list, at once."""
    _, got = consume(connection, "default", "email")
    drain(connection)
    send(producer, 1, queue, priority)
    start = time.monotonic()
    while not got:
        connection.drain_events(timeout=PATIENCE)
    assert time.monotonic() - start < tuning.POLL_INTERVAL_S / 4, "it was not told, but asked anew"


def test_what_redis_tells_of_is_taken_in_the_same_turn_of_the_loop(
    producer: Producer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn later it would come later than with kombu, to which Redis sends the message itself."""
    monkeypatch.setattr(tuning, "NOTIFY_GRACE_S", PATIENCE)
    channel, got = consume(connection, "default", room=4)
    drain(connection)
    send(producer, 1)
    assert channel.fetcher.connection.can_read(PATIENCE)
    connection.transport.cycle.on_readable(channel.fetcher.fileno)
    assert numbers(got) == [0]


@pytest.mark.usefixtures("producer")
def test_who_waits_asks_little(broker: Broker, connection: Connection) -> None:
    """Less than once a second, as one with kombu's transport does."""
    consume(connection, "default")
    drain(connection, 1)
    before = calls(broker)
    drain(connection, 5)
    assert calls(broker) - before < 5


def calls(broker: Broker) -> int:
    """Return how often Redis was asked for messages."""
    stats = broker.client("admin").info("commandstats")
    of_nodes = [stats.get(f"cmdstat_{name}", {}) for name in ("fcall", "exists", "brpop")]
    return sum(one.get("calls", 0) + one.get("rejected_calls", 0) for one in of_nodes)


def test_what_goes_back_is_what_is_recorded(
    broker: Broker, producer: Producer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the record changes at that moment: behind the others, once, and marked."""
    admin = broker.client("admin")
    send(producer, 2, priority=3)
    channel, got = consume(connection, "default", room=1)
    receive(connection, got, 1)
    read = qos.redelivered

    def changed(channel: Any, record: bytes, **options: Any) -> Any:
        """Change the record after it was read, the first time."""
        monkeypatch.setattr(qos, "redelivered", read)
        raw, *place = json.loads(record)
        raw["headers"]["more"] = True
        admin.hset("unacked:one", got[0].delivery_tag, json.dumps([raw, *place]))
        return read(channel, record, **options)

    monkeypatch.setattr(qos, "redelivered", changed)
    got[0].requeue()
    assert not admin.exists("unacked:one", "unacked_index:one")
    last, first = map(json.loads, admin.lrange("default\x06\x163", 0, -1))
    assert (last["properties"]["delivery_tag"], last["headers"]["more"]) == (got[0].delivery_tag, True)
    assert last["headers"]["redelivered"]
    assert "redelivered" not in first["headers"]
    assert channel.qos.can_consume()


def test_what_is_held_for_longer_than_the_visibility_timeout_is_handed_out_if_it_was_forgotten(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """A task that waits for an ETA beyond it is known to its node, and runs once."""
    redis = broker.client("admin")
    send(producer, 2)
    channel, got = consume(connection, "default", room=2)
    receive(connection, got, 2)
    known, forgotten = (message.delivery_tag for message in got)
    del channel.qos._delivered[forgotten]
    long_ago = time.time() - channel.qos.visibility_timeout - 1
    redis.zadd(channel.unacked_index_key, {known: long_ago, forgotten: long_ago})
    channel.basic_qos(0, 2, False)
    for _ in range(2):
        connection.channel().qos.restore_visible()  # that of another one: all have the node's keys
    assert redis.hkeys(channel.unacked_key) == [known]
    assert redis.zscore(channel.unacked_index_key, known) > long_ago + 1
    assert redis.llen("default") == 1
    got[0].ack()
    redis.delete("default")


@pytest.mark.parametrize(
    "record",
    ["no JSON", "[1, 2]", '[{"headers": {}, "properties": {"delivery_info": {}}}, "nowhere", "key"]'],
)
def test_what_can_go_nowhere_stays(
    broker: Broker, producer: Producer, connection: Connection, record: str
) -> None:
    """Among what the node holds, where recovery finds it; kombu would drop it."""
    admin = broker.client("admin")
    send(producer, 1)
    _, got = consume(connection, "default")
    receive(connection, got, 1)
    admin.hset("unacked:one", got[0].delivery_tag, record)
    got[0].requeue()
    assert admin.hvals("unacked:one") == [record]
    assert not admin.exists("default")


def test_what_cannot_be_recorded_stays_in_its_queue(
    broker: Broker, producer: Producer, connection: Connection
) -> None:
    """The node sees a lost connection, makes a new one, and goes on when it can be recorded."""
    admin = broker.client("admin")
    _, got = consume(connection, "default")
    drain(connection)
    admin.set("unacked:one", "no hash")
    send(producer, 1)
    with pytest.raises(connection.connection_errors, match="Redis refuses a command: WRONGTYPE"):
        connection.drain_events(timeout=PATIENCE)
    assert (got, admin.llen("default")) == ([], 1)
    admin.delete("unacked:one")
    receive(connection, got, 1)
    assert numbers(got) == [0]


def test_a_full_redis_is_emptied(broker: Broker, producer: Producer, connection: Connection) -> None:
    """It notifies the nodes that wait, and lets them fetch its messages."""
    admin = broker.client("admin")
    _, got = consume(connection, "default")
    drain(connection)
    send(producer, 3, "email")
    admin.config_set("maxmemory", 1)
    try:
        admin.rename("email", "default")
        receive(connection, got, 3)
        assert numbers(got) == [0, 1, 2]
        assert admin.hlen("unacked:one") == 3
        for message in got:
            message.ack()
        drain(connection)
        assert not admin.exists("unacked:one", "default")
    finally:
        admin.config_set("maxmemory", 0)


def test_a_redis_that_cannot_write_is_asked_again(
    broker: Broker, producer: Producer, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Now and then, and what is done is acknowledged when it can."""
    admin = broker.client("admin")
    _, got = consume(connection, "default", room=1)
    send(producer, 2)
    receive(connection, got, 1)
    with unwritable(broker):
        got[0].ack()
        before = calls(broker)
        drain(connection, 3)
        assert 1 <= calls(broker) - before < 20
        assert (len(got), admin.hlen("unacked:one"), admin.llen("default")) == (1, 1, 1)
    receive(connection, got, 2)
    assert text(admin.hkeys("unacked:one")) == [got[1].delivery_tag]
    assert len([line for line in caplog.messages if "Redis is full" in line]) == 1


@contextmanager
def unwritable(broker: Broker) -> Iterator[None]:
    """Let Redis fail to save, after which it takes no writes."""
    admin = broker.client("admin")
    admin.config_set("save", "3600 100000000")
    (broker.folder / "dump.rdb").unlink(missing_ok=True)
    (broker.folder / "dump.rdb").mkdir()
    try:
        admin.bgsave()
        while admin.info("persistence")["rdb_last_bgsave_status"] == "ok":
            time.sleep(0.05)
        yield
    finally:
        (broker.folder / "dump.rdb").rmdir()
        admin.bgsave()
        while admin.info("persistence")["rdb_last_bgsave_status"] != "ok":
            time.sleep(0.05)
        admin.config_set("save", "")


@pytest.mark.parametrize("kind", [kind for kind in kills.CONSUMERS if "runtime" in kind])
def test_who_is_killed_loses_nothing(broker: Broker, kind: str, tmp_path: Path) -> None:
    """At whatever instant: each message is done, in its queue, or recorded as held, and never in both."""
    count = kills.run(broker, kind, KILLS, seed=3, notes=tmp_path / "notes")
    assert count.held, "nothing was taken"
    assert (count.lost, count.doubled) == (0, 0)
