# SPDX-License-Identifier: MIT
"""The fleet at a glance: what Redis knows of its nodes, queues, schedule and itself, and what is wrong."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from kombu.utils.json import loads
from redis.exceptions import RedisError

from fleet_runtime.broker import keys
from fleet_runtime.compat.kombu_channel import list_of
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect import drains as drained
from fleet_runtime.inspect import schedule
from fleet_runtime.inspect.drains import Drained
from fleet_runtime.inspect.schedule import Schedule
from fleet_runtime.messages.sent_at import sent_at
from fleet_runtime.recovery import history

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery import Celery

PATIENCE = 3  # seconds for a connection, and for an answer
STARTING = 30  # seconds that a node may take until it has proved that it works
ABSENT = 300  # seconds that a node may be away, as it is restarted by a release or imports a large app
RETURN = 60  # seconds after a start of Redis in which nodes renew the leases that ended meanwhile
LATELY = 600  # seconds in which falls, reconnects and dead letters are counted
FLAPPING = 3  # falls in that time; stops by an operator are none
OFTEN = 5  # reconnects in that time
SILENT = 120  # seconds; a node that has lost its connection listens again within 60
WAITING = 60  # seconds that a message may wait beside a node that holds none
AGAIN = 5  # seconds after which a message is looked at again that does not say since when it waits
LATE = 60  # seconds after which an entry of the schedule should have been sent
MANY_DEAD, MOST_DEAD = 100, 1000  # dead letters in that time: from when on it is told, and counted
# What Redis itself says of it goes before.
BUSY = (
    " No task runs before that ends: a script or a function does not end. As its user admin: SCRIPT KILL, or "
    "FUNCTION KILL; if it has written, only a restart of Redis ends it."
)
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
        overdue: Tasks that run for longer than their time limit, and so keep a slot that nobody frees.
        reconnects: How often it lost its connection to Redis in the last ten minutes.
        silence: Seconds in which it has not listened for control commands, as of its last sign of life.
        held: Messages that it holds, by queue, as of its last sign of life.
        refused: Queues that it should consume, and that Redis refuses, each with the reason.
        dropped: How many items of each kind it has dropped since it started, because they were none.
    """

    name: str
    lease: float
    reserved: int
    pool: str | None = None
    concurrency: int | None = None
    queues: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    running: int | None = None
    uptime: float | None = None
    release: str | None = None
    lapses: int = 0
    proved: bool = True
    unproved: str = ""
    overdue: int = 0
    reconnects: int = 0
    silence: float = 0.0
    held: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """Whether it could take a message: it lives, has done so for a while, and holds none."""
        waits = self.lives and self.proved and (self.uptime or 0) > WAITING
        return waits and not self.reserved and not self.running

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
        unacked: Messages of it that nodes hold.
        untaken: Seconds for which the next message was seen to stay the next, though a node has room. Asked
            only if it does not say since when it waits, as one does not that was sent by a plain Celery.
    """

    name: str
    depth: int
    oldest: float | None
    consumers: int
    unacked: int = 0
    untaken: float = 0.0

    @property
    def waits(self) -> float:
        """Seconds that the next message has waited for certain, if that is too long; else 0."""
        return self.untaken or (self.oldest if self.oldest and self.oldest > WAITING else 0.0)


@dataclass(frozen=True)
class Server:
    """Redis.

    Attributes:
        memory: Bytes that it uses, and may use at most; 0 is no bound.
        persistent: Whether its append-only file took the last write.
        uptime: Seconds since it was started.
    """

    version: str
    role: str
    memory: int
    memory_limit: int
    persistent: bool
    loading: bool
    replicas: int
    link_up: bool
    uptime: float | None = None


@dataclass(frozen=True)
class Status:
    """All of it.

    Attributes:
        dead_lately: Dead letters of the last ten minutes, 1000 at most.
        wanted: Each node that the inventory wants -> seconds since anything was known of it, its being wanted
            included. Empty where no site.yml has told Redis.
        idle_queues: Queues that no node is to consume.
        beat: The scheduler of the Beat that the inventory wants: `redbeat`, or `persistent`, of which Redis
            knows nothing; empty where it wants none, or where no site.yml has told Redis.
        beat_wanted: Seconds since it was told so.
        falls: How often each node was started anew in the last ten minutes, ten at most, after it had died or
            within a minute.
    """

    server: Server
    nodes: list[Node]
    queues: list[QueueState]
    dead_letters: int
    schedule: Schedule
    drained: list[Drained] = field(default_factory=list)
    dead_lately: int = 0
    wanted: dict[str, float] = field(default_factory=dict)
    idle_queues: list[str] = field(default_factory=list)
    beat: str = ""
    beat_wanted: float = 0.0
    falls: dict[str, int] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return a sentence for each thing that is wrong: what, where, and what to do."""
        return [
            *self._of_server(),
            *self._of_nodes(),
            *self._of_queues(),
            *self._of_schedule(),
            *self._of_dead(),
        ]

    @property
    def is_back(self) -> bool:
        """Whether Redis has been there for long enough that all who live have said so."""
        return self.server.uptime is None or self.server.uptime > RETURN

    def _of_server(self) -> Iterator[str]:
        """Find what is wrong with Redis."""
        server = self.server
        if server.loading:
            yield "Redis is loading its data. Wait for it: it can take minutes."
        if not server.persistent:
            yield "Redis's append-only file refuses writes (a full disk?). Make room on the broker's host."
        if server.memory_limit and server.memory > NEARLY_FULL * server.memory_limit:
            share = server.memory / server.memory_limit
            yield (
                f"Redis uses {share:.0%} of its memory; when that is full, it refuses what is sent. "
                "See which queue grows, or raise redis_maxmemory."
            )
        if not server.link_up:
            yield "This Redis is a replica, and its primary is away. Start the primary."

    def _of_nodes(self) -> Iterator[str]:
        """Find nodes that are gone, that never came, or that do not do their work."""
        if self.is_back and not any(node.lives for node in self.nodes):
            yield "No node lives. On a host of workers: systemctl status 'celery-worker@*'."
        for node in self.nodes:
            if not node.lives and self.is_back:
                yield (
                    f"{node.name} has given no sign of life, and holds {node.reserved} messages. "
                    f"{_look(node.name)}"
                )
            elif not node.proved and (node.uptime or 0) > STARTING:
                yield (
                    f"{node.name} has not run the task by which it proves that it works, and takes no other. "
                    + node.unproved
                ).rstrip()
            for queue, reason in node.refused.items():
                yield (
                    f"{node.name} cannot consume the queue {queue}, which Redis refuses: {reason}. "
                    "To have it, name it in the queues of a pool, and a Broadcast queue in redis_broadcasts "
                    "as well, and run site.yml."
                )
            if node.overdue:
                of = f" of {node.concurrency}" if node.concurrency else ""
                yield (
                    f"{node.name} has {node.overdue}{of} slots taken by tasks that run beyond their time "
                    f"limit, and does not get them back. fleet-celery inspect active -d {node.name} names "
                    f"them; to free them: systemctl restart {_unit(node.name)}."
                )
            if node.reconnects >= OFTEN:
                yield (
                    f"{node.name} has lost its connection to Redis {node.reconnects} times in the last "
                    f"{LATELY // 60:g} minutes. {_look(node.name)}"
                )
            if node.lives and node.silence >= SILENT:
                yield (
                    f"{node.name} has not listened for control commands for {node.silence:.0f} s: inspect "
                    f"and control do not reach it. {_look(node.name)} To mend it: systemctl restart "
                    f"{_unit(node.name)}."
                )
        yield from self._of_missing()

    def _of_missing(self) -> Iterator[str]:
        """Find nodes that the inventory wants and that are not there, and those that start over and over."""
        there = {node.name for node in self.nodes}
        for name, falls in sorted(self.falls.items()):
            if falls >= FLAPPING and (name in self.wanted or name in there):
                yield (
                    f"{name} ended and was started anew {falls} times in the last {LATELY // 60:g} minutes. "
                    f"{_look(name)}"
                )
        drained = {host.host for host in self.drained}
        for name, seconds in sorted(self.wanted.items()):
            if name in there or _host(name) in drained or seconds < ABSENT or not self.is_back:
                continue
            yield (
                f"{name} is not there, and the inventory wants it; nothing was heard of it for "
                f"{seconds / 60:.0f} minutes. {_look(name)}"
            )

    def _of_queues(self) -> Iterator[str]:
        """Find queues that nobody consumes, or whose consumers take nothing."""
        if not self.is_back:
            return
        for queue in self.queues:
            if not queue.consumers and (queue.depth or queue.name not in self.idle_queues):
                yield (
                    f"Nobody consumes the queue {queue.name}, where {queue.depth} messages wait. "
                    "Start its nodes, or give it to a pool (celery_worker_pools)."
                )
            if queue.depth and queue.waits:
                for node in self.nodes:
                    if queue.name in node.queues and node.is_idle:
                        yield (
                            f"{node.name} takes nothing from the queue {queue.name}, where {queue.depth} "
                            f"messages wait, the next for {queue.waits:.0f} s or more, though it has room. "
                            f"{_look(node.name)}"
                        )

    def _of_schedule(self) -> Iterator[str]:
        """Find a schedule that nobody follows, and a Beat that is wanted and not there."""
        if self.beat == "persistent":
            return  # whatever another scheduler has left in Redis
        if not self.schedule.entry and self.schedule.seconds is None:
            if self.beat and self.is_back and self.beat_wanted >= ABSENT:
                yield (
                    "The inventory wants a Beat, and none holds the lock of the schedule, which is empty. "
                    "On a host of Beat: systemctl status celery-beat."
                )
        elif self.schedule.seconds is None:
            yield (
                "There is a schedule, and no Beat holds its lock. "
                "On a host of Beat: systemctl status celery-beat."
            )
        elif self.schedule.late > LATE:
            yield (
                f"Beat is late: {self.schedule.entry} was due {self.schedule.late:.0f} s ago, and is not "
                "sent. On a host of Beat: journalctl -u celery-beat."
            )

    def _of_dead(self) -> Iterator[str]:
        """Find dead letters that grow."""
        if self.dead_lately >= MANY_DEAD:
            number = f"{self.dead_lately} or more" if self.dead_lately >= MOST_DEAD else str(self.dead_lately)
            yield (
                f"{number} tasks failed for good in the last {LATELY // 60:g} minutes. "
                "fleet-celery dead-letter list --since 10m says which."
            )


def _host(node: str) -> str:
    """Return the host's part of a node's name."""
    return node.partition("@")[2]


def _unit(node: str) -> str:
    """Return a node's unit."""
    return f"celery-worker@{node.partition('@')[0]}"


def _look(node: str) -> str:
    """Return where to look what a node does."""
    return f"On {_host(node)}: journalctl -u {_unit(node)}."


def look(app: Celery, queues: Iterable[str] = ()) -> Status:
    """Return how things stand; some seconds later, if only that tells whether messages are taken.

    Args:
        app: The app.
        queues: Queues to ask about, besides those that nodes consume.

    Raises:
        FleetError: The broker is away, or refuses.
    """
    found, first = _ask(app, queues)
    unsaid = [queue.name for queue in found.queues if queue.depth and queue.oldest is None]
    if not any(queue in node.queues and node.is_idle for queue in unsaid for node in found.nodes):
        return found
    time.sleep(AGAIN)
    found, now = _ask(app, queues)
    untaken = [name for name in unsaid if first[name] == now.get(name)]
    return replace(
        found,
        queues=[
            replace(queue, untaken=float(AGAIN)) if queue.name in untaken else queue for queue in found.queues
        ],
    )


def _ask(app: Celery, queues: Iterable[str]) -> tuple[Status, dict[str, list[Any]]]:
    """Return how things stand, by two rounds of questions, and the next messages of each queue.

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
        first.zrange(keys.DEAD, time.time() - LATELY, "+inf", byscore=True, offset=0, num=MOST_DEAD)
        first.hgetall(keys.DRAINED)
        first.hgetall(keys.WANTED)
        first.hgetall(keys.HISTORY)
        schedule.ask(first)
        info, clock, leases, told, dead, lately, hosts, asked, past, *of_beat = first.execute()

        names = {_text(node): end - clock[0] - clock[1] / 1e6 for node, end in leases}
        facts = {_text(node): json.loads(text) for node, text in told.items()}
        consumed = {queue for of_node in facts.values() for queue in of_node.get("queues", ())}
        wanted = sorted(consumed | set(queues))
        lists = [
            (queue, list_of(channel, queue, step)) for queue in wanted for step in channel.priority_steps
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
    next_of: dict[str, list[Any]] = {queue: [] for queue in wanted}
    for (queue, _), depth, oldest in zip(lists, of_lists[::2], of_lists[1::2], strict=True):
        waiting[queue].append((depth, _age(oldest)))
        next_of[queue].append(oldest)
    known = history.read(past)
    beat = json.loads(asked.get(keys.BEAT.encode(), '{"scheduler": "", "since": 0}'))
    status = Status(
        server=_server(info),
        nodes=sorted(nodes, key=lambda node: node.name),
        queues=[_queue(queue, parts, nodes) for queue, parts in waiting.items()],
        dead_letters=dead,
        schedule=schedule.answer(*of_beat),
        drained=drained.read(hosts),
        dead_lately=len(lately),
        wanted=_wanted(asked, known),
        idle_queues=json.loads(asked.get(keys.IDLE_QUEUES.encode(), "[]")),
        beat=beat["scheduler"],
        beat_wanted=max(0.0, round(time.time() - beat["since"], 1)) if beat["scheduler"] else 0.0,
        falls={
            node: sum(at > time.time() - LATELY for at in of_node.falls) for node, of_node in known.items()
        },
    )
    return status, next_of


def _wanted(told: dict[bytes, bytes], known: dict[str, history.History]) -> dict[str, float]:
    """Return for each node that the inventory wants how long nothing was known of it."""
    now, found = time.time(), {}
    for name, text in told.items():
        node = name.decode()
        if node not in (keys.IDLE_QUEUES, keys.BEAT):
            seen = known.get(node, history.History()).seen
            found[node] = max(0.0, round(now - max(seen, json.loads(text)["since"]), 1))
    return found


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
        remedy = BUSY if str(error).startswith("BUSY ") else ""
        raise FleetError(f"Redis cannot be asked: {error}{remedy}") from error


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
        overdue=facts.get("overdue", 0),
        reconnects=facts.get("reconnects", 0),
        silence=facts.get("silence", 0.0),
        held=facts.get("held", {}),
        dropped=facts.get("dropped", {}),
        queues=sorted(facts.get("queues", ())),
        refused=facts.get("refused", {}),
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
        unacked=sum(node.held.get(name, 0) for node in nodes),
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
        uptime=info.get("uptime_in_seconds"),
    )


def _age(item: bytes | None) -> float | None:
    """Return for how many seconds an item of a queue has waited, if it says so.

    Whoever may send can put anything there: what is no message says nothing, as to a node that takes it.
    """
    try:
        sent = sent_at(loads(item)) if item else None
    except Exception:
        return None
    return None if sent is None or not isfinite(sent) else max(0.0, round(time.time() - sent, 1))


def _text(value: bytes | str) -> str:
    """Return a name as text."""
    return value.decode() if isinstance(value, bytes) else value
