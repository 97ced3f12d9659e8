# SPDX-License-Identifier: MIT
"""Nodes of every type of pool go on by themselves when they have lost Redis, and so does what they run."""

from __future__ import annotations

import json
import signal
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, bootsteps
from fleet_runtime.broker import keys
from fleet_runtime.errors import FleetError
from fleet_runtime.recovery import inflight
from fleet_runtime.worker import bootsteps as recovery
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel, QoS
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import RedisError, ResponseError

from fleet_testing.broker import HOST, Broker, make_certificates
from fleet_testing.commands import FLAGS, PATIENCE, Daemon, noted, shop, together, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A queue for each type of pool.
POOLS = {"default": "prefork", "email": "gevent", "heavy": "solo", "io": "threads"}
LOSSES = [
    "killed",
    *(pytest.param(loss, marks=pytest.mark.long) for loss in ("away", "cut", "rotated", "demoted")),
]
LEASE = 10  # long enough for a machine that does other things, too


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Yield a Redis that may be killed."""
    broker = Broker(tmp_path_factory.mktemp("killed"))
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def nodes(server: Broker) -> Iterator[dict[str, Daemon]]:
    """Yield a node for each queue, each with another type of pool."""
    started = {
        queue: shop(server).worker(
            pool, f"--queues={queue}", f"--pool={pool}", *FLAGS, FLEET_LEASE=str(LEASE)
        )
        for queue, pool in POOLS.items()
    }
    with together(started) as nodes:
        yield nodes


@pytest.fixture
def sender(server: Broker, connect: Callable[[Broker], Any]) -> Any:
    """Return an app with which to send tasks."""
    return connect(server)


@pytest.mark.parametrize(
    "loss",
    [
        "killed",
        *(pytest.param(loss, marks=pytest.mark.long) for loss in ("away", "cut", "rotated", "demoted")),
    ],
)
def test_nothing_is_stuck_or_run_twice_after_a_loss(
    server: Broker, nodes: dict[str, Daemon], sender: Celery, tmp_path: Path, loss: str
) -> None:
    """Redis is killed; or away for longer than a lease; or it closes the connections, and goes on.

    Or it gets other certificates, from another authority, and refuses the password for a while; or it is made
    a replica, which refuses to write, and then a master again.

    What runs meanwhile is acknowledged afterwards, whether it ends before Redis is back or after that.
    """
    file, early, late = str(tmp_path / "notes"), tmp_path / "early", tmp_path / "late"
    early.touch()
    late.touch()
    running = [(queue, gate) for queue in POOLS for gate in ((early,) if queue == "heavy" else (early, late))]
    for queue, gate in running:
        arguments = (file, f"{queue}-{gate.name}", str(gate))
        sender.send_task("shop.note", arguments, queue=queue, ignore_result=True)
    wait_until(lambda: len(noted(tmp_path, "starts")) == len(running))
    accepted: list[str] = []
    stop = threading.Event()
    load = threading.Thread(target=send, args=(sender, file, accepted, stop), daemon=True)
    load.start()
    time.sleep(0.5)
    lose(server, loss, early)
    time.sleep(0.5)
    stop.set()
    load.join()
    time.sleep(4)  # so that the nodes are connected again; if not, it ends a little too early
    for node in nodes.values():
        assert node.process.poll() is None, "\n".join(["a node has ended:", *node.lines("")])
    late.unlink()
    admin = server.client("admin")
    wait_until(lambda: not any(admin.exists(keys.unacked(f"{pool}@test")) for pool in POOLS.values()))
    wait_until(lambda: not any(admin.llen(queue) for queue in POOLS))
    wait_until(lambda: not any(admin.exists(keys.unacked(f"{pool}@test")) for pool in POOLS.values()))
    begun = [name for name in noted(tmp_path, "starts") if "-" in name]
    assert len(begun) == len(running), "what ran as Redis was lost has run again"
    wait_until(lambda: not set(accepted) - set(noted(tmp_path, "ends")))
    names = [f"{pool}@test" for pool in POOLS.values()]
    ping = ["inspect", "ping", "--json", f"--timeout={PATIENCE}", f"--destination={','.join(names)}"]
    result = shop(server).run("ops", *ping)
    assert set(json.loads(result.stdout)) == set(names), result.stderr
    for queue, node in nodes.items():
        assert sender.send_task("shop.add", (40, 2), queue=queue).get(timeout=PATIENCE) == 42
        assert not node.lines("Unrecoverable error")
    assert not server.denied()


def lose(server: Broker, how: str, early: Path) -> None:
    """Let nodes lose their connections; what waits for the gate ends while they have none."""
    admin = server.client("admin")
    if how == "cut":
        admin.execute_command("CLIENT", "KILL", "USER", "worker")
        early.unlink()
        return
    if how == "rotated":
        admin.ping()  # on a connection that stays
        make_certificates(server.folder)
        files = {"tls-ca-cert-file": "ca.crt", "tls-cert-file": "host.crt", "tls-key-file": "host.key"}
        words = [word for name, file in files.items() for word in (name, str(server.folder / file))]
        admin.config_set(*words)
        admin.execute_command("ACL", "SETUSER", "worker", "resetpass", ">another one")
        admin.execute_command("CLIENT", "KILL", "USER", "worker")
        early.unlink()
        time.sleep(3)
        admin.execute_command("ACL", "SETUSER", "worker", f">{server.passwords['worker']}")
        admin.acl_log_reset()
        return
    if how == "demoted":
        admin.replicaof(HOST, 1)
        early.unlink()
        time.sleep(3)
        admin.replicaof("NO", "ONE")
        return
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    time.sleep(0.5)
    early.unlink()
    time.sleep(1 if how == "killed" else LEASE + 1)
    server.start()


def send(app: Celery, file: str, accepted: list[str], stop: threading.Event) -> None:
    """Send short tasks to all queues, and remember those that Redis has accepted."""
    number = 0
    while not stop.is_set():
        for queue in POOLS:
            number += 1
            try:
                app.send_task("shop.note", (file, str(number)), queue=queue, retry=False, ignore_result=True)
            except (OperationalError, RedisError):
                time.sleep(0.1)
                continue
            accepted.append(str(number))
        time.sleep(0.02)


def test_a_closed_channel_has_lost_its_connection(server: Broker, configure_app: Callable[..., Any]) -> None:
    """Unmended, kombu raises an AttributeError, which ends the node."""
    inflight.patch_closed_channels()
    app = Celery("node", set_as_current=False)
    configure_app(app, "worker", server.url("worker"))
    app.conf.broker_transport_options.update(recovery.own_keys("one@test"))
    connection = app.connection_for_read()
    channel = connection.default_channel
    connection.collect()
    with pytest.raises(NoConnectionError, match="its connection was lost"):
        channel.qos.ack("tag")


@pytest.mark.parametrize("failure", [NoConnectionError("gone"), ResponseError("OOM command not allowed")])
def test_what_was_taken_and_not_recorded_is_recorded_on_the_next_connection(
    server: Broker, configure_app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """It is in no queue any more; and a Redis that is full ends no node."""
    app = Celery("node", set_as_current=False)
    configure_app(app, "worker", server.url("worker"))
    app.conf.broker_transport_options.update(recovery.own_keys("full@test"))
    pool = SimpleNamespace(flush=None)
    consumer: Any = SimpleNamespace(blueprint=SimpleNamespace(state=bootsteps.RUN), hub=None, pool=pool)
    held = inflight.InFlight(consumer)
    delivery = {"exchange": "", "routing_key": "default"}
    raw = {"body": "", "headers": {}, "properties": {"delivery_tag": "tag", "delivery_info": delivery}}

    def refuse(*_: Any) -> None:
        """Fail as Redis does."""
        raise failure

    with app.connection_for_read() as connection:
        first, second = connection.channel(), connection.channel()
        held.adopt(first)
        with monkeypatch.context() as patch, pytest.raises(NoConnectionError):
            patch.setattr(QoS, "append", refuse)
            first.qos.append(first.Message(raw, channel=first), "tag")
        assert held.adopt(second) == set(), "nobody runs it"
    admin = server.client("admin")
    assert json.loads(admin.hget(keys.unacked("full@test"), "tag")) == [raw, "", "default"]
    assert admin.zscore(keys.unacked_index("full@test"), "tag")
    assert not held.unrecorded
    admin.delete(keys.unacked("full@test"), keys.unacked_index("full@test"))


def test_a_replaced_function_of_kombu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a release of a distribution may have."""

    def _connparams(self: Any, asynchronous: bool = False, more: bool = True) -> None:
        """Connect."""

    monkeypatch.setattr(Channel, "_connparams", _connparams)
    with pytest.raises(FleetError, match=r"has replaced kombu\.transport\.redis:Channel\._connparams"):
        inflight.patch_closed_channels()
    assert Channel._connparams is _connparams
