# SPDX-License-Identifier: MIT
"""Items that are published to all nodes are read without waiting, also where only a part has come."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.compat.surface import may_replace
from fleet_runtime.transport import broadcast, tuning
from fleet_runtime.transport.transports import Transport
from fleet_runtime.worker.bootsteps import own_keys
from kombu import Connection, Consumer, Exchange, Queue
from kombu.utils import eventio

from fleet_testing import items
from fleet_testing.commands import PATIENCE, wait_until
from fleet_testing.consuming import drain, receive
from fleet_testing.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet_testing.broker import Broker

pytestmark = pytest.mark.server
CONTROL = "/0.celery.pidbox"
CHECK = 1  # seconds between two checks of a connection


@pytest.fixture
def relay(broker: Broker) -> Iterator[Relay]:
    """A way to the broker."""
    broadcast.patch_fanout(may_replace)
    with Relay(broker) as relay:
        yield relay


@pytest.fixture
def connection(relay: Relay) -> Iterator[Connection]:
    """A connection by the fleet's transport, without a loop, as a mailbox has that is read in a greenlet."""
    options = {**own_keys("one"), "health_check_interval": CHECK}
    with Connection(relay.url("worker"), transport=Transport, transport_options=options) as connection:
        yield connection


def listen(connection: Connection, broker: Broker) -> list[Any]:
    """Subscribe to control commands, and return the list to which each is added."""
    got = list[Any]()
    queue = Queue("one@test.celery.pidbox", Exchange("celery.pidbox", "fanout"), auto_delete=True)
    Consumer(connection.channel(), [queue], on_message=got.append, no_ack=True).consume()
    publish(broker, connection)
    receive(connection, got, 1)
    got.clear()
    return got


def publish(broker: Broker, connection: Connection, size: int = 1) -> None:
    """Send a control command, once a node listens."""
    client, command = broker.client("admin"), json.dumps(items.message({"size": "x" * size}))

    def published() -> Any:
        drain(connection, 0.1)
        return client.publish(CONTROL, command)

    wait_until(published)


def test_what_was_read_in_the_same_turn_is_not_waited_for(
    broker: Broker, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a flood, the callback for the rest and the event of the socket both look for the last message."""
    connection.transport.cycle.poller = eventio._select()  # as among greenlets
    got = listen(connection, broker)
    monkeypatch.setattr(tuning, "FANOUT_TURN_S", -1.0)  # each message leaves the next to another turn
    client, command = broker.client("admin"), json.dumps(items.message({}))
    reads = threading.Thread(target=receive, args=(connection, got, 20), daemon=True)
    for _ in range(20):
        client.publish(CONTROL, command)
    reads.start()
    reads.join(PATIENCE)
    assert not reads.is_alive(), "the reader waits for a message that is never sent"
    assert len(got) == 20


def test_half_a_message_is_not_waited_for(broker: Broker, connection: Connection, relay: Relay) -> None:
    """The connection is replaced when Redis does not answer on it."""
    got = listen(connection, broker)
    relay.most = 8192
    broker.client("admin").publish(CONTROL, json.dumps(items.message({"size": "x" * 50_000})))
    wait_until(lambda: relay.stalled)
    relay.most = None
    turns = threading.Thread(target=drain, args=(connection, CHECK / 2), daemon=True)
    turns.start()
    turns.join(PATIENCE)
    assert not turns.is_alive(), "who reads waits for the rest"
    until = time.monotonic() + PATIENCE
    while not got:
        assert time.monotonic() < until, "nothing is heard any more"
        publish(broker, connection)
        drain(connection)
