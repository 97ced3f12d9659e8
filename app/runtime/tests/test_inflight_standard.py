# SPDX-License-Identifier: MIT
"""In-flight messages at the level standard, where kombu's transport and QoS are its own."""

from __future__ import annotations

import json
import signal
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import bootsteps
from celery.concurrency.base import BasePool
from celery.worker import state
from fleet_runtime.broker import keys
from fleet_runtime.recovery.inflight_standard import StandardInFlight, Unsettled
from kombu.transport import virtual

from fleet_testing.broker import Broker
from fleet_testing.commands import FLAGS, PATIENCE, Daemon, Fleet, noted, shop, together, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A queue for each type of pool.
POOLS = {"default": "prefork", "email": "gevent", "heavy": "solo", "io": "threads"}
LEASE = 10  # seconds; long enough for a machine that does other things, too
STANDARD = {"FLEET_LEVEL": "standard", "FLEET_LEASE": str(LEASE)}


# --- with a real Redis ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Yield a Redis that may be killed."""
    broker = Broker(tmp_path_factory.mktemp("killed"))
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def nodes(server: Broker) -> Iterator[dict[str, Daemon]]:
    """Yield a node for each queue, each with another type of pool."""
    started = {queue: node(shop(server), queue, pool) for queue, pool in POOLS.items()}
    with together(started) as nodes:
        for one in nodes.values():
            one.wait_for("takes tasks now")
        yield nodes


def node(fleet: Fleet, queue: str, pool: str) -> Daemon:
    """Start a node of a queue."""
    return fleet.worker(pool, f"--queues={queue}", f"--pool={pool}", *FLAGS, **STANDARD)


def hold(sender: Any, folder: Path, queue: str, *gates: Path) -> None:
    """Send tasks that wait, each for its gate."""
    for gate in gates:
        gate.touch()
        arguments = (str(folder / "notes"), f"{queue}-{gate.name}", str(gate))
        sender.send_task("shop.note", arguments, queue=queue, ignore_result=True)


@pytest.mark.parametrize(
    "loss", ["killed", "cut", *(pytest.param(loss, marks=pytest.mark.long) for loss in ("away", "refused"))]
)
def test_nothing_is_lost_or_run_twice_after_a_loss(
    server: Broker,
    nodes: dict[str, Daemon],
    connect: Callable[[Broker], Any],
    tmp_path: Path,
    loss: str,
) -> None:
    """Tasks that run meanwhile are acknowledged afterwards, if they end before Redis is back or after that.

    All places of each node are taken, so that no message is between its queue and its record, which is where
    kombu's transport may lose it. Others wait in the queues.
    """
    sender, early, late, done = connect(server), *(tmp_path / name for name in ("early", "late", "done"))
    for queue in POOLS:
        hold(sender, tmp_path, queue, early, *(() if queue == "heavy" else (late,)))
    running = 2 * len(POOLS) - 1
    wait_until(lambda: len(noted(tmp_path, "starts")) == running)
    for queue in POOLS:
        hold(sender, tmp_path, queue, done)
    done.unlink()
    lose(server, loss, early)
    wait_until(lambda: len(noted(tmp_path, "ends")) >= len(POOLS))
    time.sleep(3)  # so that the nodes are connected again; if not, the rest ends a little too early
    for one in nodes.values():
        assert one.process.poll() is None, "\n".join(["a node has ended:", *one.lines("")])
    late.unlink(missing_ok=True)
    admin = server.client("admin")
    total = running + len(POOLS)
    wait_until(lambda: len(set(noted(tmp_path, "ends"))) == total)
    wait_until(lambda: not any(admin.exists(keys.unacked(f"{pool}@test")) for pool in POOLS.values()))
    assert not any(admin.llen(queue) for queue in POOLS)
    assert sorted(noted(tmp_path, "starts")) == sorted(set(noted(tmp_path, "starts"))), "a task has run twice"
    for queue, one in nodes.items():
        assert sender.send_task("shop.add", (40, 2), queue=queue).get(timeout=PATIENCE) == 42
        assert not one.lines("Unrecoverable error")
    assert loss == "refused" or not server.denied()


def lose(server: Broker, how: str, early: Path) -> None:
    """Let nodes lose their connections; what waits for the gate ends while they have none."""
    admin = server.client("admin")
    if how == "cut":
        admin.execute_command("CLIENT", "KILL", "USER", "worker")
        early.unlink()
        return
    if how == "refused":  # which kombu's transport takes for no loss of the connection
        admin.execute_command("CONFIG", "SET", "min-replicas-to-write", "1")
        early.unlink()
        time.sleep(3)
        admin.execute_command("CONFIG", "SET", "min-replicas-to-write", "0")
        return
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    time.sleep(0.5)
    early.unlink()
    time.sleep(1 if how == "killed" else LEASE + 1)
    server.start()


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.long)])
def test_the_messages_of_a_killed_node_are_requeued(
    broker: Broker, connect: Callable[[Broker], Any], tmp_path: Path, pool: str
) -> None:
    """By the node itself when it starts again; they are of its own keys, as at the level full."""
    sender, gates = connect(broker), [tmp_path / name for name in ("one", "two")]
    fleet = shop(broker)
    with node(fleet, "io", pool) as killed:
        killed.wait_for("takes tasks now")
        hold(sender, tmp_path, "io", *gates)
        wait_until(lambda: len(noted(tmp_path, "starts")) == 2)
        killed.process.kill()
        killed.process.wait()
    assert broker.client("admin").hlen(keys.unacked(f"{pool}@test")) == 2
    for gate in gates:
        gate.unlink()
    with node(fleet, "io", pool) as again:
        wait_until(lambda: len(set(noted(tmp_path, "ends"))) == 2)
        assert again.lines("Requeued what this node held before it started: 2 messages.")


def test_the_messages_of_a_dead_node_are_requeued_by_another(
    broker: Broker, connect: Callable[[Broker], Any], tmp_path: Path
) -> None:
    """When its lease ends."""
    sender, gate = connect(broker), tmp_path / "one"
    fleet = Fleet(broker, "shop:app", **{**shop(broker).environment, **STANDARD, "FLEET_LEASE": "3"})
    words = ("--queues=io", *FLAGS)
    with fleet.worker("dead", *words) as dead:
        dead.wait_for("takes tasks now")
        hold(sender, tmp_path, "io", gate)
        wait_until(lambda: len(noted(tmp_path, "starts")) == 1)
        with fleet.worker("alive", *words) as alive:
            dead.process.kill()
            gate.unlink()
            alive.wait_for("dead@test is gone: its lease has ended. Messages")
            wait_until(lambda: len(noted(tmp_path, "ends")) >= 1)


def test_prefetched_messages_are_requeued_as_a_node_stops(
    broker: Broker, connect: Callable[[Broker], Any]
) -> None:
    """By kombu itself, when the channel is closed for good."""
    sender, admin = connect(broker), broker.client("admin")
    with node(shop(broker), "email", "threads") as stopped:
        stopped.wait_for("takes tasks now")
        sent = sender.send_task("shop.add", (1, 2), queue="email", countdown=600)
        wait_until(lambda: admin.hlen(keys.unacked("threads@test")) == 1)
    assert stopped.process.returncode == 0
    (message,) = map(json.loads, admin.lrange("email", 0, -1))
    assert (message["headers"]["id"], message["headers"]["redelivered"]) == (sent.id, True)
    assert not admin.exists(keys.unacked("threads@test"))
    admin.delete("email")


# --- alone ---


class Message:
    """A message as kombu has it, for which it can be said that Redis is away."""

    def __init__(self, tag: str, channel: Any) -> None:
        """Begin unacknowledged."""
        self.delivery_tag, self.channel = tag, channel
        self.delivery_info = {"exchange": "", "routing_key": "shop"}
        self.settled: list[str] = []

    @property
    def acknowledged(self) -> bool:
        """Whether it is acknowledged or rejected."""
        return bool(self.settled)

    def ack(self) -> None:
        """Acknowledge it."""
        self._settle("ack")

    def reject(self, requeue: bool = False) -> None:
        """Reject it."""
        self._settle("requeue" if requeue else "reject")

    def _settle(self, how: str) -> None:
        if self.channel.is_closed:
            raise AttributeError("'NoneType' object has no attribute 'client'")  # as of kombu
        self.settled.append(how)


@pytest.fixture
def channel() -> Any:
    """Return a channel with kombu's account of messages."""
    return new_channel()


def new_channel() -> Any:
    """Return another one."""
    made = SimpleNamespace(is_closed=False, do_restore=True)
    made.qos = virtual.QoS(made)
    return made


@pytest.fixture
def in_flight() -> Iterator[StandardInFlight]:
    """Return what a node holds, whose pool takes nothing back, and which runs callbacks at once."""
    consumer = SimpleNamespace(
        blueprint=SimpleNamespace(state=bootsteps.RUN),
        pool=SimpleNamespace(flush=SimpleNamespace(__func__=BasePool.flush)),
        app=SimpleNamespace(amqp=SimpleNamespace(queues={"default": SimpleNamespace(routing_key="shop")})),
        call_soon_ack=lambda do, *args: do(*args),
    )
    yield StandardInFlight(consumer)
    state.active_requests.clear()
    state.reserved_requests.clear()


class Request:
    """A request, which is acknowledged as Celery does it."""

    _apply_result = None

    def __init__(self, message: Message, ack: Callable[..., Any], reject: Callable[..., Any]) -> None:
        """Begin unacknowledged."""
        self.message, self.acknowledged = message, False
        self._on_ack, self._on_reject = ack, reject

    def acknowledge(self) -> None:
        """Acknowledge it."""
        self._on_ack(None, ())
        self.acknowledged = True

    def reject(self, requeue: bool) -> None:
        """Reject it."""
        self._on_reject(None, (), requeue)
        self.acknowledged = True


def run(in_flight: StandardInFlight, message: Message) -> Request:
    """Let a node run a message."""
    made: Request = in_flight.settling(
        lambda message, body, ack, reject, callbacks: Request(message, ack, reject)
    )(message, None, None, None, ())
    state.active_requests.add(made)
    message.channel.qos.append(message, message.delivery_tag)
    return made


def test_what_runs_moves_to_the_next_channel(in_flight: StandardInFlight, channel: Any) -> None:
    """It counts as prefetched there, is acknowledged there, and is not requeued as the old one is closed."""
    in_flight.adopt(channel)
    message = Message("tag", channel)
    request = run(in_flight, message)
    after = new_channel()
    channel.is_closed = True
    channel.qos.restore_unacked_once()  # which would use what the channel does not have
    assert in_flight.adopt(after) == {"tag"}
    assert message.channel is after
    after.qos.prefetch_count = 1
    assert not after.qos.can_consume()
    assert in_flight.by_queue() == {"default": 1}
    request.acknowledge()
    assert message.settled == ["ack"]
    assert not in_flight.unsettled
    assert in_flight.by_queue() == {}


@pytest.mark.parametrize("how", ["ack", "requeue", "reject"])
def test_what_ends_without_a_connection_is_settled_on_the_next(
    in_flight: StandardInFlight, channel: Any, how: str
) -> None:
    """Once, and it is not requeued before; a channel that fails again leaves it to the next."""
    in_flight.adopt(channel)
    message = Message("tag", channel)
    request = run(in_flight, message)
    channel.is_closed = True
    request.acknowledge() if how == "ack" else request.reject(how == "requeue")
    assert request.acknowledged
    assert in_flight.unsettled == {
        "tag": Unsettled(message, {"ack": None, "requeue": True, "reject": False}[how])
    }
    state.active_requests.clear()
    broken, after = new_channel(), new_channel()
    broken.is_closed = True
    assert in_flight.adopt(broken) == {"tag"}
    assert in_flight.unsettled
    assert in_flight.adopt(after) == {"tag"}
    assert message.settled == [how]
    in_flight.settle()
    assert message.settled == [how]
    assert in_flight.adopt(new_channel()) == set()


def test_an_acknowledgement_that_waits_for_the_loop_is_no_message_to_requeue(
    in_flight: StandardInFlight, channel: Any
) -> None:
    """Celery takes the request for acknowledged, and the loop has not sent it as the connection is lost."""
    waiting: list[Callable[[], Any]] = []
    in_flight._consumer.call_soon_ack = lambda do, *args: waiting.append(lambda: do(*args))
    in_flight.adopt(channel)
    message = Message("tag", channel)
    run(in_flight, message).acknowledge()
    assert not message.settled
    after = new_channel()
    assert in_flight.adopt(after) == {"tag"}
    assert message.settled == ["ack"]
    waiting.pop()()
    assert message.settled == ["ack"], "once"


@pytest.mark.parametrize(
    ("crashed", "blueprint", "restores"),
    [(False, bootsteps.RUN, False), (False, bootsteps.CLOSE, True), (True, bootsteps.CLOSE, False)],
)
def test_kombu_requeues_only_as_the_node_stops(
    in_flight: StandardInFlight, channel: Any, *, crashed: bool, blueprint: int, restores: bool
) -> None:
    """Not as the node goes on; nor as an error ends it, which would not be counted."""
    in_flight.on_stop()  # before there is a connection
    in_flight.adopt(channel)
    assert not channel.qos.restore_at_shutdown
    in_flight.crashed, in_flight._consumer.blueprint.state = crashed, blueprint
    in_flight.on_stop()
    assert channel.qos.restore_at_shutdown is restores
