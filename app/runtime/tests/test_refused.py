# SPDX-License-Identifier: MIT
"""A queue that Redis refuses costs a node that queue, and nothing else."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.transport import tuning
from fleet_runtime.transport.transports import Transport
from fleet_runtime.worker.bootsteps import own_keys
from kombu import Connection, Consumer, Exchange, Queue
from kombu.common import Broadcast

from fleet_testing.commands import APPS, FLAGS, Daemon, Fleet, shop, together, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fleet_testing.broker import Broker

UNKNOWN = "overflow"  # a queue that the access rules do not name
KINDS = ["prefork", "gevent"]  # with a loop, and without


@pytest.fixture(autouse=True)
def expected_refusals(redis_server: Broker) -> Iterator[None]:
    """Let Redis refuse what it does here."""
    yield
    redis_server.client("admin").acl_log_reset()


@pytest.fixture(scope="module")
def nodes(redis_server: Broker) -> Iterator[dict[str, Daemon]]:
    """Yield a node for each kind of loop, which should consume two queues, one of them of no use."""
    client = redis_server.client("admin")
    client.set("email", "no list")
    try:
        started = {
            pool: shop(redis_server).worker(
                f"refused-{pool}", f"--queues={queue},email,{UNKNOWN}", f"--pool={pool}", *FLAGS
            )
            for pool, queue in zip(KINDS, ("default", "io"), strict=True)
        }
        with together(started) as nodes:
            yield nodes
    finally:
        client.delete("email")


@pytest.fixture
def sender(redis_server: Broker, connect: Callable[[Broker], Any]) -> Any:
    """Return an app that sends tasks."""
    return connect(redis_server)


@pytest.mark.parametrize(("pool", "queue"), [("prefork", "default"), ("gevent", "io")])
def test_a_node_consumes_the_queues_that_are_not_refused(
    redis_server: Broker, sender: Any, nodes: dict[str, Daemon], pool: str, queue: str
) -> None:
    """It names the others, and why, where an operator looks: in its log, its proof and the status."""
    node, name = nodes[pool], f"refused-{pool}@test"
    assert sender.send_task("shop.add", (1, 2), queue=queue).get(timeout=20) == 3
    for refused, word in ((UNKNOWN, "permission"), ("email", "WRONGTYPE")):
        (line,) = node.lines(f"Redis refuses the queue {refused}, which this node should consume")
        assert word in line
    assert not node.lines("Connection to broker lost")
    fleet = shop(redis_server)
    proved = fleet.run("ops", "fleet", "ready", name, "--timeout=1")
    assert proved.returncode != 0
    assert f"{name} cannot consume what Redis refuses: email (LLEN: WRONGTYPE" in proved.stderr
    assert f"; {UNKNOWN} (" in proved.stderr
    status = fleet.run("ops", "fleet", "status")
    assert f"{name} cannot consume the queue {UNKNOWN}" in status.stdout + status.stderr


@pytest.mark.parametrize(("pool", "queue"), [("prefork", "default"), ("gevent", "io")])
def test_a_queue_that_is_added_is_refused_with_a_sentence(
    redis_server: Broker, sender: Any, nodes: dict[str, Daemon], pool: str, queue: str
) -> None:
    """The command replies with the sentence, and the node goes on."""
    node, name = nodes[pool], f"refused-{pool}@test"
    words = ["control", "--timeout=10", f"--destination={name}", "add_consumer", "typo"]
    answer = shop(redis_server).run("ops", *words)
    assert "Redis refuses the queue typo" in answer.stdout + answer.stderr
    assert "LLEN" in answer.stdout + answer.stderr
    assert sender.send_task("shop.add", (1, 2), queue=queue).get(timeout=20) == 3
    assert not node.lines("Connection to broker lost")


def test_a_broadcast_queue_is_refused_by_its_name(redis_server: Broker, sender: Any) -> None:
    """Where the access rules have no such channel, the node consumes its other queues."""
    fleet = Fleet(redis_server, "loud:app", PYTHONPATH=APPS)
    with fleet.worker("loud", "--pool=solo", *FLAGS) as node:
        assert sender.send_task("loud.add", (1, 2), queue="heavy").get(timeout=20) == 3
        (line,) = node.lines("(a queue of the exchange announcements, whose messages go to every node)")
        assert "permissions to access" in line
        assert not node.lines("Connection to broker lost")
        proved = fleet.run("ops", "fleet", "ready", "loud@test", "heavy", "announcements", "--timeout=1")
        assert "loud@test cannot consume what Redis refuses: announcements (" in proved.stderr


def test_a_broadcast_queue_is_heard_when_redis_allows_it(
    redis_server: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node subscribes then, without a restart."""
    monkeypatch.setattr(tuning, "REFUSED_RETRY_S", 0.3)
    admin = redis_server.client("admin")
    rules = admin.execute_command("ACL", "LIST")
    (worker,) = [rule.split()[2:] for rule in rules if rule.startswith("user worker ")]
    got: list[Any] = []
    queue = Broadcast("announcements", unique=True)
    with consuming(redis_server, "heavy") as (connection, _):
        channel = connection.default_channel
        with Consumer(channel, [queue], on_message=got.append, no_ack=True):
            drain(connection, lambda: list(channel.refused) == [queue.name])
            drain(connection, lambda: "PSUBSCRIBE" in channel.refused[queue.name])  # it was asked for again
            assert "a queue of the exchange announcements" in channel.refused[queue.name]
            admin.execute_command("ACL", "SETUSER", "worker", "allkeys", "allchannels", "+psubscribe")
            try:
                drain(connection, lambda: channel.refused == {})
                with Connection(redis_server.url("admin")) as sender:
                    publisher = sender.Producer(exchange=queue.exchange)

                    def heard() -> bool:
                        publisher.publish(1, declare=[queue.exchange])
                        return bool(got)

                    drain(connection, heard)
            finally:
                admin.execute_command("ACL", "SETUSER", "worker", "reset", *worker)


def test_a_queue_is_consumed_again_when_redis_allows_it(
    redis_server: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it was refused while it was consumed; what it held and acknowledged goes on meanwhile."""
    monkeypatch.setattr(tuning, "REFUSED_RETRY_S", 0.3)
    client = redis_server.client("admin")
    for name in ("heavy", "email"):
        client.delete(name, f"{name}\x06\x163")
    with consuming(redis_server, "heavy", "email") as (connection, got):
        channel = connection.default_channel
        publish(redis_server, "heavy", 1)
        drain(connection, lambda: len(got) == 1)
        client.set("email", "no list")
        publish(redis_server, "heavy", 2)
        drain(connection, lambda: len(got) == 2)
        got[0].ack()
        drain(connection, lambda: list(channel.refused) == ["email"])
        assert channel.active_queues == ["heavy"]
        client.delete("email")
        publish(redis_server, "email", 3)
        drain(connection, lambda: len(got) == 3)
        assert channel.refused == {}
        for message in got[1:]:
            message.ack()
    assert [message.payload for message in got] == [1, 2, 3]
    assert not client.exists(*own_keys("one").values())


@contextmanager
def consuming(broker: Broker, *names: str) -> Iterator[tuple[Any, list[Any]]]:
    """Yield a connection that consumes queues as a node does, and the list of what has come."""
    got: list[Any] = []
    with Connection(
        broker.url("worker"), transport=Transport, transport_options=own_keys("one")
    ) as connection:
        connection.default_channel.skips_refused = True
        queues = [Queue(name, Exchange(name), name) for name in names]
        with Consumer(connection, queues, on_message=got.append):
            yield connection, got


def publish(broker: Broker, queue: str, body: int) -> None:
    """Put a message into a queue."""
    with Connection(broker.url("web")) as connection:
        connection.Producer().publish(body, exchange=queue, routing_key=queue)


def drain(connection: Any, happened: Callable[[], bool]) -> None:
    """Handle events until a function says so."""

    def look() -> bool:
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.2)
        return happened()

    wait_until(look)
