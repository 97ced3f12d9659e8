# SPDX-License-Identifier: MIT
"""The transport against a model: whatever nodes do, and whatever becomes of them, a message is in one place.

Nodes take, acknowledge, reject and requeue messages of two queues and four priorities, lose their connection,
and are killed, in any order that Hypothesis thinks of; Redis, its access rules and TLS are real.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.broker import keys
from fleet_runtime.recovery.requeue import UnackedRestorer
from fleet_runtime.transport import tuning
from fleet_runtime.transport.prefetch import Prefetcher
from fleet_runtime.transport.transports import Transport
from fleet_runtime.worker.bootsteps import own_keys
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from hypothesis.stateful import run_state_machine_as_test as run
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub

if TYPE_CHECKING:
    from fleet_testing.broker import Broker

pytestmark = pytest.mark.server
QUEUES = ("default", "email")
PRIORITIES = (0, 3, 6, 9)
LISTS = [f"{queue}\x06\x16{step}" if step else queue for queue in QUEUES for step in PRIORITIES]
ORDERS = ("round_robin", "sorted", "priority")
# Seconds in which a node does what it would do by itself.
TURNS = 0.02
LONG = 3600.0


class Node:
    """A node, as far as the transport is concerned."""

    def __init__(
        self, broker: Broker, name: str, room: int, order: str, *, loops: bool, transport: Any
    ) -> None:
        """Connect; a node with a loop prefetches messages."""
        self.name = name
        self.room = room
        self._loops = loops
        self._options = {**own_keys(name), "queue_order_strategy": order}
        self._url, self._transport = broker.url("worker"), transport
        self.begin()

    def open(self) -> Any:
        """Return a new connection."""
        return Connection(self._url, transport=self._transport, transport_options=self._options)

    def begin(self) -> None:
        """Consume on a new connection, when what the last one held has gone back to its queues."""
        self.got: list[Any] = []
        self.connection = self.open()
        self.channel = self.connection.default_channel
        for queue in QUEUES:
            Queue(queue, Exchange(queue), queue)(self.channel).declare()
        UnackedRestorer(self.channel, self.name, 100, if_dead=False).run()
        self.channel.basic_qos(0, self.room, False)
        Consumer(
            self.channel, [Queue(q) for q in QUEUES], on_message=self.got.append, auto_declare=False
        ).consume()
        self._hub = Hub() if self._loops else None
        if self._hub:
            self.connection.register_with_event_loop(self._hub)

    def turn(self) -> None:
        """Let it do what it does by itself."""
        until = time.monotonic() + TURNS
        while time.monotonic() < until:
            if self._hub:
                self._hub.call_later(TURNS / 2, int)
                self._hub.run_once()
                continue
            try:
                self.connection.drain_events(timeout=TURNS / 2)
            except TimeoutError:
                continue

    def die(self) -> None:
        """End without another word, as by SIGKILL: the kernel closes its connections."""
        self.channel.qos._on_collect.cancel()  # which would put back what it holds, as the test ends
        fetcher = [self.channel.fetcher.connection] if self.channel.fetcher else []
        for connection in [*self.channel.pool._available_connections, *fetcher]:
            if connection is not None and connection._sock is not None:
                connection._sock.shutdown(socket.SHUT_RDWR)

    def begin_anew(self) -> None:
        """Do what is done for a node that finds its connection lost: settle by a new one what was not."""
        late = self.channel.unconfirmed_acks()
        with self.open() as connection:
            for tag in late:
                connection.default_channel.qos.ack(tag)
        self.die()
        self.begin()


class Nodes(RuleBasedStateMachine):
    """What nodes may do.

    Attributes:
        sent: The numbers of all messages.
        done: Of those that were acknowledged, or rejected for good.
        unsure: Of those that were acknowledged by a node which died before it may have said so.
    """

    messages = Bundle("messages")
    broker: Broker
    transport: Any = Transport

    def __init__(self) -> None:
        """Begin with empty queues."""
        super().__init__()
        self.admin = self.broker.client("admin")
        self.admin.flushdb()
        self.sent: list[int] = []
        self.done: set[int] = set()
        self.unsure: set[int] = set()
        self.nodes: list[Node] = []
        self.sender = Connection(self.broker.url("web"))
        self.producer = Producer(self.sender)
        for queue in QUEUES:
            Queue(queue, Exchange(queue), queue)(self.sender.default_channel).declare()

    def teardown(self) -> None:
        """End; nothing may be lost in the end."""
        for node in self.nodes:
            node.connection.release()
        self.sender.release()
        remaining = set(self.sent) - self.done
        places = self.places()
        assert remaining <= set(places) <= remaining | self.unsure
        assert all(place in LISTS for found in places.values() for place in found), "something is held still"

    @rule(queue=st.sampled_from(QUEUES), priority=st.sampled_from(PRIORITIES), count=st.integers(1, 12))
    def send(self, queue: str, priority: int, count: int) -> None:
        """Send messages, with kombu's own transport."""
        for _ in range(count):
            number = len(self.sent)
            self.sent.append(number)
            self.producer.publish({"n": number}, exchange=queue, routing_key=queue, priority=priority)

    @rule(room=st.integers(0, 4), order=st.sampled_from(ORDERS), loops=st.booleans())
    def join(self, room: int, order: str, loops: bool) -> None:
        """Start another node, up to three."""
        if len(self.nodes) < 3:
            name = f"node-{len(self.nodes)}"
            node = Node(self.broker, name, room, order, loops=loops, transport=self.transport)
            self.nodes.append(node)

    @rule(target=messages, which=st.integers(0, 2))
    def take(self, which: int) -> Any:
        """Let a node take what it wants."""
        if which >= len(self.nodes):
            return multiple()
        node = self.nodes[which]
        node.turn()
        taken, node.got[:] = list(node.got), []
        return multiple(*((node, node.channel, message) for message in taken))

    @rule(taken=consumes(messages), how=st.sampled_from(["ack", "reject", "requeue"]), again=st.booleans())
    def settle(self, taken: tuple[Node, Any, Any], how: str, again: bool) -> None:
        """Settle a message, unless its channel is gone; and let the node say so, or not yet."""
        node, channel, message = taken
        if node.channel is not channel:
            return
        getattr(message, how)()
        if how != "requeue":
            self.done.add(message.payload["n"])
        if again:
            node.turn()

    @rule(which=st.integers(0, 2))
    def grow_old(self, which: int) -> None:
        """Let the prefetched messages of a node become stale, so that others get them."""
        if which < len(self.nodes):
            node = self.nodes[which]
            node.channel.prefetcher.buffer.keep_longer(-LONG)
            node.turn()

    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        """Kill a node, and start it again."""
        if which >= len(self.nodes):
            return
        node = self.nodes[which]
        unsaid = set(node.channel.unconfirmed_acks())
        numbers = {number for number, tag in self.held(node.name) if tag in unsaid}
        self.unsure |= numbers
        node.die()
        node.begin()

    @rule()
    def cut(self) -> None:
        """Let all nodes lose their connections."""
        for client in self.admin.client_list():
            if client["user"] == "worker":
                self.admin.client_kill_filter(_id=client["id"])
        for node in self.nodes:
            node.begin_anew()

    @invariant()
    def nothing_is_lost_and_nothing_is_twice(self) -> None:
        """Each message that is not done is in one list, or recorded once."""
        places = self.places()
        missing = set(self.sent) - self.done - set(places)
        assert not missing, f"lost: {missing}"
        twice = {number: found for number, found in places.items() if len(found) > 1}
        assert not twice, f"in several places: {twice}"

    def places(self) -> dict[int, list[str]]:
        """Return for each message in which lists it is, and by which nodes it is held."""
        found: dict[int, list[str]] = {}
        with self.admin.pipeline(transaction=True) as pipe:
            for key in LISTS:
                pipe.lrange(key, 0, -1)
            for node in self.nodes:
                pipe.hgetall(keys.unacked(node.name)).zrange(keys.unacked_index(node.name), 0, -1)
            answers = pipe.execute()
        for key, items in zip(LISTS, answers, strict=False):
            for item in items:
                found.setdefault(number_of(json.loads(item)), []).append(key)
        held = answers[len(LISTS) :]
        for node, records, index in zip(self.nodes, held[::2], held[1::2], strict=True):
            assert set(records) == set(index), "what is recorded and its index differ"
            for record in records.values():
                found.setdefault(number_of(json.loads(record)[0]), []).append(node.name)
        return found

    def held(self, name: str) -> list[tuple[int, str]]:
        """Return what a node holds: numbers, and tags."""
        records = self.admin.hgetall(keys.unacked(name))
        return [(number_of(json.loads(record)[0]), tag) for tag, record in records.items()]


def number_of(message: Any) -> int:
    """Return the number in a message."""
    return int(json.loads(base64.b64decode(message["body"]))["n"])


def as_much_as_it_may(prefetcher: Any, _: float) -> int:
    """Return how many messages a fast node prefetches."""
    channel = prefetcher._channel
    return channel.qos.prefetch_count * tuning.PREFETCH_PER_SLOT if channel.connection.cycle.loop else 0


@pytest.mark.parametrize("examples", [40, pytest.param(500, marks=pytest.mark.long)])
@pytest.mark.parametrize("delayed", [0, tuning.ETA_RUN], ids=["both-ends", "oldest"])
def test_a_message_is_always_in_one_place(
    broker: Broker, examples: int, delayed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any steps of the nodes. Nodes with a loop prefetch, also where they are slow here."""
    monkeypatch.setattr(tuning, "ETA_RUN", delayed)
    monkeypatch.setattr(Prefetcher, "target", as_much_as_it_may)
    monkeypatch.setattr(tuning, "PREFETCH_TTL_S", LONG)
    machine = type("Machine", (Nodes,), {"broker": broker})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    many = settings(
        max_examples=examples, deadline=None, stateful_step_count=30, suppress_health_check=checks
    )
    run(machine, settings=many)
