# SPDX-License-Identifier: MIT
"""Rarer features of Celery's user guide, with the access rules of the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import chord, group
from celery.result import GroupResult
from celery.schedules import schedule
from celery.utils.nodenames import worker_direct
from kombu import Exchange, Queue
from kombu.common import Broadcast
from redbeat import RedBeatSchedulerEntry

from fleet_testing.broker import Broker, acl
from fleet_testing.commands import APPS, FLAGS, PATIENCE, Fleet, together, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def allowing(tmp_path: Path) -> Iterator[Broker]:
    """Yield a Redis of an inventory that allows an app more."""
    broker = Broker(tmp_path, acl("control"))
    yield broker
    denied = broker.denied()
    broker.stop()
    assert denied == []


@pytest.fixture
def _node(broker: Broker) -> Iterator[None]:
    """Run a node of the app."""
    fleet = Fleet(broker, "guide:app", PYTHONPATH=APPS)
    with fleet.worker("one", "--queues=default", "--pool=threads", *FLAGS):
        yield


@pytest.mark.usefixtures("_node")
def test_chords(web: Any) -> None:
    """Those whose order does not matter (`result_chord_ordered`), and those that grow (`add_to_chord`)."""

    def task(name: str, *args: Any) -> Any:
        return web.signature(f"guide.{name}", args=args, queue="default")

    web.conf.result_backend_transport_options = {"result_chord_ordered": False}
    unordered = chord([task("add", 1, 1), task("add", 2, 2)])(task("total"))
    assert unordered.get(timeout=PATIENCE) == 6
    grown = chord([task("grow"), task("add", 1, 1)])(task("total"))
    assert grown.get(timeout=PATIENCE) == 13


@pytest.mark.usefixtures("_node")
def test_groups_that_are_kept(web: Any) -> None:
    """An application and a task keep the result of a group (`GroupResult.save`), to read it by its id."""
    add = web.signature("guide.add", args=(1, 1), queue="default")
    sent = group([add, add.clone()]).apply_async()
    sent.save()
    kept = GroupResult.restore(sent.id, app=web)
    assert kept.get(timeout=PATIENCE) == [2, 2]
    kept.delete()
    assert GroupResult.restore(sent.id, app=web) is None
    task = web.send_task("guide.keep_group", queue="default")
    assert len(task.get(timeout=PATIENCE)) == 2


def test_what_an_inventory_may_allow(allowing: Broker, connect: Callable[[Broker], Any]) -> None:
    """Remote control from an application, with answers, and a queue that expires."""
    app = connect(allowing)
    app.conf.task_queues = [Queue("email", Exchange("email"), "email", expires=3600)]
    fleet = Fleet(allowing, "guide:app", PYTHONPATH=APPS)
    with fleet.worker("one", "--queues=default", "--pool=threads", *FLAGS):
        assert app.control.ping(timeout=5) == [{"one@test": {"ok": "pong"}}]
        app.control.revoke("0123")
        app.send_task("guide.add", args=(1, 1), queue="email")
    assert 0 < allowing.client("admin").pttl("email") <= 3600000


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Yield a Redis of an inventory that allows an app all that it can, and hold it to that at the end."""
    broker = Broker(tmp_path_factory.mktemp("wide"), acl("wide"))
    yield broker
    denied = broker.denied()
    broker.stop()
    assert denied == []


def subscriptions(admin: Any) -> int:
    """Return how many there are: a node has one for remote control, and one for what is sent to all.

    Nobody keeps that for a node that does not listen yet.
    """
    return sum(int(client["psub"]) for client in admin.client_list())


@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.long), "threads"])
def test_broadcast(wide: Broker, connect: Callable[[Broker], Any], pool: str) -> None:
    """Each node runs the task, and consumes its other queues; a node that comes back is there again."""
    fleet = Fleet(wide, "guide:app", PYTHONPATH=APPS, GUIDE_BROADCAST="news")
    app = connect(wide)
    app.conf.task_queues = [Queue("default"), Broadcast("news")]
    app.conf.task_default_queue = "default"  # and so its routing key is, which the channel is named by
    admin = wide.client("admin")
    admin.delete("qo_heard")

    def heard(*nodes: str) -> Callable[[], bool]:
        return lambda: admin.smembers("qo_heard") == {f"{node}@test" for node in nodes}

    flags = ("--queues=default,news", f"--pool={pool}", *FLAGS)
    with together({name: fleet.worker(name, *flags) for name in ("one", "two")}):
        wait_until(lambda: subscriptions(admin) == 4)
        proved = fleet.run("ops", "fleet", "ready", "one@test", "default", "news", f"--timeout={PATIENCE}")
        assert "one@test consumes default, news, has run a task" in proved.stdout, proved.stderr
        probed = fleet.run("ops", "fleet", "probe", "--queue=news", f"--timeout={PATIENCE}")
        assert probed.returncode == 0, probed.stdout + probed.stderr
        assert "the queue news" not in fleet.run("ops", "fleet", "status").stdout
        app.send_task("guide.hear", queue="news", declare=[app.amqp.queues["news"].exchange])
        wait_until(heard("one", "two"))
        assert app.send_task("guide.add", args=(1, 2), queue="default").get(timeout=PATIENCE) == 3
    admin.delete("qo_heard")
    with fleet.worker("one", *flags):
        wait_until(lambda: subscriptions(admin) == 2)
        app.send_task("guide.hear", queue="news", declare=[app.amqp.queues["news"].exchange])
        wait_until(heard("one"))


@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.long), "threads"])
def test_a_queue_for_each_node(wide: Broker, connect: Callable[[Broker], Any], pool: str) -> None:
    """`worker_direct`: a task goes to the node that is named, which acknowledges it."""
    fleet = Fleet(wide, "guide:app", PYTHONPATH=APPS, GUIDE_DIRECT="1")
    app = connect(wide)
    flags = ("--queues=default", f"--pool={pool}", *FLAGS)
    with together({name: fleet.worker(name, *flags) for name in ("one", "two")}):
        proved = fleet.run("ops", "fleet", "ready", "one@test", "default", f"--timeout={PATIENCE}")
        assert "one@test consumes default, has run a task" in proved.stdout, proved.stderr
        for name in ("one", "two"):
            sent = app.send_task("guide.where", queue=worker_direct(f"{name}@test"))
            assert sent.get(timeout=PATIENCE) == f"{name}@test"
        admin = wide.client("admin")
        wait_until(lambda: not admin.hlen("unacked:one@test") and not admin.hlen("unacked:two@test"))


def test_entries_of_redbeat(wide: Broker, connect: Callable[[Broker], Any]) -> None:
    """Made, changed, found and removed by an application and by a task; Beat runs them."""
    fleet = Fleet(wide, "guide:app", PYTHONPATH=APPS)
    app = connect(wide)
    admin = wide.client("admin")
    with fleet.beat("--max-interval=1"), fleet.worker("one", "--queues=default", "--pool=threads", *FLAGS):
        entry = RedBeatSchedulerEntry(
            "heard", "guide.hear", schedule(1), options={"queue": "default"}, app=app
        )
        entry.save()
        wait_until(lambda: admin.exists("qo_heard"))
        assert RedBeatSchedulerEntry.from_key(entry.key, app=app).task == "guide.hear"
        entry.reschedule()
        entry.delete()
        key = app.send_task("guide.schedule_entry", args=("own",), queue="default").get(timeout=PATIENCE)
        assert admin.hexists(key, "definition")
        admin.delete("qo_heard")
        wait_until(lambda: admin.exists("qo_heard"))
    assert not admin.exists(entry.key)


def test_keys_of_an_apps_own(wide: Broker, connect: Callable[[Broker], Any]) -> None:
    """Locks as celery-once and celery-singleton have them, and those of redis-py, by an app and by a task."""
    for user in ("web", "worker"):
        client = wide.client(user)
        assert client.set("qo_lock", "mine", nx=True, ex=60)
        assert not client.set("qo_lock", "another", nx=True, ex=60)
        assert client.get("qo_lock") == "mine"
        assert client.delete("qo_lock")
        with client.lock("qo_py", timeout=10) as lock:
            assert lock.owned()
            assert lock.extend(5)
            assert lock.reacquire()
        assert not client.exists("qo_py")
    fleet = Fleet(wide, "guide:app", PYTHONPATH=APPS)
    with fleet.worker("one", "--queues=default", "--pool=prefork", *FLAGS):
        assert connect(wide).send_task("guide.lock", queue="default").get(timeout=PATIENCE)


def test_remote_control_of_beat(wide: Broker) -> None:
    """A client that may control nodes asks it, and it answers."""
    fleet = Fleet(wide, "guide:app", PYTHONPATH=APPS, GUIDE_BEAT="1")
    with fleet.beat("--max-interval=1"):
        answers: list[Any] = []

        def answered() -> bool:
            said = fleet.run("ops", "inspect", "ping", "--timeout=3", "--json")
            answers.append(said.stdout + said.stderr)
            return "celerybeat@" in said.stdout

        wait_until(answered)
