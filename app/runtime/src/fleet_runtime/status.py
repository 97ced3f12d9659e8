"""The fleet at a glance: what Redis knows of its nodes, queues, schedule and itself, and what is wrong."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from fleet_runtime import drained, keys, schedule
from fleet_runtime.drained import Drained
from fleet_runtime.errors import FleetError
from fleet_runtime.schedule import Schedule
from fleet_runtime.stamp import sent_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery import Celery

PATIENCE = 3  # seconds for a connection, and for an answer
STARTING = 30  # seconds that a node may take until it has proved that it works
NEARLY_FULL = 0.9  # of maxmemory; a Redis that is full refuses what is sent


@dataclass(frozen=True)
class Node:
    """A Celery node.

    Attributes:
        lease: Seconds until others take over what it holds; 0 or less if they may by now.
        reserved: Messages that it holds; those that run are among them.
        running: How many run, as of its last sign of life; None if it does not say.
        uptime: Seconds since it started.
        lapses: How often its lease ended while it lived.
        proved: Whether it has run a task, and so takes others; not asked of one that does not say.
        unproved: Why it has not.
    """

    name: str
    lease: float
    reserved: int
    pool: str | None = None
    concurrency: int | None = None
    queues: list[str] = field(default_factory=list)
    running: int | None = None
    uptime: float | None = None
    release: str | None = None
    lapses: int = 0
    proved: bool = True
    unproved: str = ""

    @property
    def lives(self) -> bool:
        """Whether it gave a sign of life in time."""
        return self.lease > 0


@dataclass(frozen=True)
class QueueState:
    """A queue.

    Attributes:
        depth: Messages that wait, of every priority.
        oldest: Seconds that the one which is next has waited; None if there is none, or if it does not say.
        consumers: Nodes that live and consume it.
    """

    name: str
    depth: int
    oldest: float | None
    consumers: int


@dataclass(frozen=True)
class Server:
    """Redis.

    Attributes:
        memory: Bytes that it uses, and may use at most; 0 is no bound.
        persistent: Whether its append-only file took the last write.
    """

    version: str
    role: str
    memory: int
    memory_limit: int
    persistent: bool
    loading: bool
    replicas: int
    link_up: bool


@dataclass(frozen=True)
class Status:
    """All of it."""

    server: Server
    nodes: list[Node]
    queues: list[QueueState]
    dead_letters: int
    schedule: Schedule
    drained: list[Drained] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Return a sentence for each thing that is wrong."""
        return [*self._of_server(), *self._of_nodes(), *self._of_queues(), *self._of_schedule()]

    def _of_server(self) -> Iterator[str]:
        """Find what is wrong with Redis."""
        server = self.server
        if server.loading:
            yield "Redis is loading its data."
        if not server.persistent:
            yield "Redis's append-only file refuses writes (a full disk?)."
        if server.memory_limit and server.memory > NEARLY_FULL * server.memory_limit:
            share = server.memory / server.memory_limit
            yield f"Redis uses {share:.0%} of its memory; when that is full, it refuses what is sent."
        if not server.link_up:
            yield "This Redis is a replica, and its primary is away."

    def _of_nodes(self) -> Iterator[str]:
        """Find nodes that are gone."""
        if not any(node.lives for node in self.nodes):
            yield "No node lives."
        for node in self.nodes:
            if not node.lives:
                yield f"{node.name} has given no sign of life, and holds {node.reserved} messages."
            elif not node.proved and (node.uptime or 0) > STARTING:
                yield (
                    f"{node.name} has not run the task by which it proves that it works, and takes no other. "
                    + node.unproved
                ).rstrip()

    def _of_queues(self) -> Iterator[str]:
        """Find queues that nobody consumes."""
        for queue in self.queues:
            if not queue.consumers:
                yield f"Nobody consumes the queue {queue.name}, where {queue.depth} messages wait."

    def _of_schedule(self) -> Iterator[str]:
        """Find a schedule that nobody follows."""
        if self.schedule.entry and self.schedule.seconds is None:
            yield "There is a schedule, and no Beat holds its lock."


def look(app: Celery, queues: Iterable[str] = ()) -> Status:
    """Return how things stand, by two rounds of questions.

    Args:
        app: The app.
        queues: Queues to ask about, besides those that nodes consume.

    Raises:
        FleetError: The broker is away, or refuses.
    """
    with _channel(app) as channel, channel.conn_or_acquire() as client:
        first = client.pipeline(transaction=False)
        first.info("everything")
        first.time()
        first.zrange(keys.LEASES, 0, -1, withscores=True)
        first.hgetall(keys.NODES)
        first.zcard(keys.DEAD)
        first.hgetall(keys.DRAINED)
        schedule.ask(first)
        info, clock, leases, told, dead, hosts, *of_beat = first.execute()

        names = {_text(node): end - clock[0] - clock[1] / 1e6 for node, end in leases}
        facts = {_text(node): json.loads(text) for node, text in told.items()}
        consumed = {queue for of_node in facts.values() for queue in of_node.get("queues", ())}
        wanted = sorted(consumed | set(queues))
        lists = [
            (queue, channel._q_for_pri(queue, step)) for queue in wanted for step in channel.priority_steps
        ]

        second = client.pipeline(transaction=False)
        for node in names:
            second.hlen(keys.unacked(node))
        for _, key in lists:
            second.llen(key)
            second.lindex(key, -1)  # consumers take from the right
        answers = second.execute()

    held, of_lists = answers[: len(names)], answers[len(names) :]
    nodes = [
        _node(name, lease, reserved, facts.get(name, {}))
        for (name, lease), reserved in zip(names.items(), held, strict=True)
    ]
    waiting: dict[str, list[tuple[int, float | None]]] = {queue: [] for queue in wanted}
    for (queue, _), depth, oldest in zip(lists, of_lists[::2], of_lists[1::2], strict=True):
        waiting[queue].append((depth, _age(oldest)))
    return Status(
        server=_server(info),
        nodes=sorted(nodes, key=lambda node: node.name),
        queues=[_queue(queue, parts, nodes) for queue, parts in waiting.items()],
        dead_letters=dead,
        schedule=schedule.answer(*of_beat),
        drained=drained.read(hosts),
    )


@contextmanager
def _channel(app: Celery) -> Iterator[Any]:
    """Yield a channel that waits for a few seconds only, where others wait for a broker that is away."""
    try:
        with app.connection_for_read() as connection:
            limits = {
                "socket_timeout": PATIENCE,
                "socket_connect_timeout": PATIENCE,
                "retry_on_timeout": False,
            }
            connection.transport_options = {**connection.transport_options, **limits}
            connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
            yield connection.default_channel
    except (OperationalError, RedisError, OSError) as error:
        raise FleetError(f"Redis cannot be asked: {error}") from error


def _node(name: str, lease: float, reserved: int, facts: dict[str, Any]) -> Node:
    """Return a node from what it says of itself."""
    started = facts.get("started")
    return Node(
        name=name,
        lease=round(lease, 1),
        reserved=reserved,
        uptime=None if started is None else round(time.time() - started, 1),
        lapses=facts.get("lapses", 0),
        proved=facts.get("proved", True) is not None,
        unproved=facts.get("unproved", ""),
        queues=sorted(facts.get("queues", ())),
        **{each: facts.get(each) for each in ("pool", "concurrency", "running", "release")},
    )


def _queue(name: str, parts: list[tuple[int, float | None]], nodes: list[Node]) -> QueueState:
    """Return a queue from its lists, one for each priority."""
    ages = [age for _, age in parts if age is not None]
    return QueueState(
        name=name,
        depth=sum(depth for depth, _ in parts),
        oldest=max(ages, default=None),
        consumers=sum(node.lives and name in node.queues for node in nodes),
    )


def _server(info: dict[str, Any]) -> Server:
    """Return what INFO tells."""
    return Server(
        version=str(info["redis_version"]),
        role=info["role"],
        memory=info["used_memory"],
        memory_limit=info["maxmemory"],
        persistent=bool(info["aof_enabled"]) and info["aof_last_write_status"] == "ok",
        loading=bool(info["loading"]),
        replicas=info.get("connected_slaves", 0),
        link_up=info["role"] == "master" or info.get("master_link_status") == "up",
    )


def _age(item: bytes | None) -> float | None:
    """Return for how many seconds an item of a queue has waited, if it says so."""
    try:
        sent = sent_at(json.loads(item)) if item else None
    except ValueError:  # no message at all
        return None
    return None if sent is None else max(0.0, round(time.time() - sent, 1))


def _text(value: bytes | str) -> str:
    """Return a name as text."""
    return value.decode() if isinstance(value, bytes) else value
