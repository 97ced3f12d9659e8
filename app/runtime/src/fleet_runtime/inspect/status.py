# SPDX-License-Identifier: MIT
"""The status of the fleet: nodes, queues, dead letters, the schedule and Redis, and the problems in it."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from kombu.utils.json import loads

from fleet_runtime.broker import keys
from fleet_runtime.broker.errors import explained
from fleet_runtime.compat.kombu_channel import list_of
from fleet_runtime.inspect import drains, schedule
from fleet_runtime.inspect.drains import Drained
from fleet_runtime.inspect.schedule import Schedule
from fleet_runtime.messages.sent_at import sent_at
from fleet_runtime.recovery import history

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery import Celery

# Seconds to wait for a connection, and for each reply.
TIMEOUT_S = 3
# Seconds for a node to pass its self-test.
SELF_TEST_TIMEOUT_S = 30
# Seconds that a node may be away: a release restarts it, or it imports a large app.
ABSENCE_S = 300
# Seconds after a start of Redis in which nodes renew the leases that have ended.
LEASE_RENEWAL_S = 60
# Seconds in which crashes, reconnects and dead letters are counted.
WINDOW_S = 600
# Crashes in that time that are a problem. Stops by an operator do not count.
MANY_CRASHES = 3
# Reconnects in that time that are a problem.
MANY_RECONNECTS = 5
# Seconds without reading control commands. A node that has lost its connection reads again within 60.
SILENCE_S = 120
# Seconds that a message may wait beside a node that holds none.
WAITING_S = 60
# Seconds after which a message without a publish time is read again, to see whether it still waits.
SECOND_READ_S = 5
# Seconds after which an entry of the schedule should have been sent.
LATE_S = 60
# Dead letters in the window that are a problem, and that are counted at most.
MANY_DEAD, DEAD_COUNT_LIMIT = 100, 1000
# Share of maxmemory that is a problem: a Redis that is full refuses new messages.
NEARLY_FULL = 0.9


@dataclass(frozen=True)
class Node:
    """A Celery node. The fields are those of the JSON of `fleet status`.

    Attributes:
        name: Full name of the node.
        lease: Seconds until its lease ends, and other nodes requeue its messages; 0 or less if it has ended.
        reserved: Messages that it holds, including those that run.
        pool: Kind of its pool.
        concurrency: Tasks that it can run at a time.
        queues: Queues that it consumes.
        refused: Queues that it should consume and that Redis refuses, with the reasons.
        running: Tasks that run, as of its last heartbeat; None if it does not report it.
        uptime: Seconds since it started.
        release: Id of its release.
        level: `full` or `standard`; None if its release does not know levels.
        lapses: How often its lease has ended while it was alive.
        proved: Whether it has passed its self-test; true if it does not report it.
        unproved: Why it has not.
        overdue: Tasks that exceed their time limit, and take a slot that nothing frees.
        reconnects: How often it lost its connection to Redis in the last ten minutes.
        silence: Seconds in which it has not read control commands, as of its last heartbeat.
        held: Messages that it holds, by queue, as of its last heartbeat.
        dropped: How many invalid items of each kind it has dropped since it started.
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
    level: str | None = None
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
        """Whether the node could fetch a message: it is alive, not just started, and holds none."""
        waits = self.is_alive and self.proved and (self.uptime or 0) > WAITING_S
        return waits and not self.reserved and not self.running

    @property
    def is_alive(self) -> bool:
        """Whether the lease of the node has not ended."""
        return self.lease > 0


# Fields of a node that it reports as they are.
REPORTED = {each.name for each in fields(Node)} - {"name", "lease", "reserved", "uptime", "proved", "queues"}


@dataclass(frozen=True)
class QueueState:
    """A queue.

    Attributes:
        name: Name of the queue.
        depth: Messages that wait, of all priorities.
        oldest: Seconds that the next message has waited; None without a message, or without a publish time.
        consumers: Live nodes that consume it.
        unacked: Messages of it that nodes hold.
        untaken: Seconds for which the next message stayed the next although a node has room. Only checked for
            a message without a publish time, which a plain Celery has sent.
    """

    name: str
    depth: int
    oldest: float | None
    consumers: int
    unacked: int = 0
    untaken: float = 0.0

    @property
    def waits(self) -> float:
        """Seconds that the next message has waited, if that is too long; else 0."""
        return self.untaken or (self.oldest if self.oldest and self.oldest > WAITING_S else 0.0)


@dataclass(frozen=True)
class Server:
    """Redis.

    Attributes:
        memory: Bytes that it uses.
        memory_limit: Bytes that it may use; 0 is no limit.
        persistent: Whether the last write to its append-only file succeeded.
        uptime: Seconds since it started.
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
    """The status of the fleet. The fields are those of the JSON of `fleet status`.

    Attributes:
        dead_lately: Dead letters of the last ten minutes, 1000 at most.
        wanted: Each node of the inventory -> seconds since it last started or stopped, or since site.yml has
            recorded it. Empty if no site.yml has recorded nodes in Redis.
        idle_queues: Queues that no node is to consume.
        beat: The scheduler of the Beat of the inventory: `redbeat` or `persistent`. Empty without a Beat, or
            if no site.yml has recorded it.
        beat_wanted: Seconds since site.yml has recorded it.
        beat_lease: Seconds until the lease of a `persistent` Beat ends unless it is renewed; None without it.
        falls: How often each node started again in the last ten minutes after a crash, or within a minute;
            ten at most.
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
    beat_lease: float | None = None
    falls: dict[str, int] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return a sentence for each problem: what is wrong, where, and the remedy."""
        return [
            *self._server_problems(),
            *self._node_problems(),
            *self._queue_problems(),
            *self._schedule_problems(),
            *self._dead_letter_problems(),
        ]

    @property
    def leases_are_current(self) -> bool:
        """Whether Redis has run long enough for all live nodes to have renewed their leases."""
        return self.server.uptime is None or self.server.uptime > LEASE_RENEWAL_S

    def _server_problems(self) -> Iterator[str]:
        """Yield the problems of Redis."""
        server = self.server
        if server.loading:
            yield "Redis is loading its data. Wait for it: it can take minutes."
        if not server.persistent:
            yield "Redis's append-only file refuses writes (a full disk?). Make room on the broker's host."
        if server.memory_limit and server.memory > NEARLY_FULL * server.memory_limit:
            share = server.memory / server.memory_limit
            yield (
                f"Redis uses {share:.0%} of its memory; when that is full, it refuses new messages. "
                "See which queue grows, or raise redis_maxmemory."
            )
        if not server.link_up:
            yield "This Redis is a replica, and its primary is away. Start the primary."

    def _node_problems(self) -> Iterator[str]:
        """Yield the problems of nodes: those that are gone, that never started, or that do not work."""
        if self.leases_are_current and not any(node.is_alive for node in self.nodes):
            yield "No node is alive. On a host of workers: systemctl status 'celery-worker@*'."
        for node in self.nodes:
            if not node.is_alive and self.leases_are_current:
                yield (
                    f"{node.name} has not renewed its lease, and holds {node.reserved} messages. "
                    f"{_log_hint(node.name)}"
                )
            elif not node.proved and (node.uptime or 0) > SELF_TEST_TIMEOUT_S:
                yield (
                    f"{node.name} has not passed its self-test, and takes no other task. {node.unproved}"
                ).rstrip()
            for queue, reason in node.refused.items():
                yield (
                    f"{node.name} cannot consume the queue {queue}, which Redis refuses: {reason}. "
                    "Name it in the queues of a pool, and a Broadcast queue in redis_broadcasts as well, and "
                    "run site.yml."
                )
            if node.overdue:
                of = f" of {node.concurrency}" if node.concurrency else ""
                yield (
                    f"{node.name} has {node.overdue}{of} slots taken by tasks that run beyond their time "
                    f"limit, and does not get them back. fleet-celery inspect active -d {node.name} names "
                    f"them; to free them: systemctl restart {_unit(node.name)}."
                )
            if node.reconnects >= MANY_RECONNECTS:
                yield (
                    f"{node.name} has lost its connection to Redis {node.reconnects} times in the last "
                    f"{WINDOW_S // 60:g} minutes. {_log_hint(node.name)}"
                )
            if node.is_alive and node.silence >= SILENCE_S:
                yield (
                    f"{node.name} has not listened for control commands for {node.silence:.0f} s: inspect "
                    f"and control do not reach it. {_log_hint(node.name)} To fix it: systemctl restart "
                    f"{_unit(node.name)}."
                )
        yield from self._missing_nodes()

    def _missing_nodes(self) -> Iterator[str]:
        """Yield the nodes of the inventory that are missing, and the nodes that start again and again."""
        present = {node.name for node in self.nodes}
        for name, falls in sorted(self.falls.items()):
            if falls >= MANY_CRASHES and (name in self.wanted or name in present):
                yield (
                    f"{name} ended and was restarted {falls} times in the last {WINDOW_S // 60:g} minutes. "
                    f"{_log_hint(name)}"
                )
        drained = {host.host for host in self.drained}
        for name, seconds in sorted(self.wanted.items()):
            if name in present or _host(name) in drained:
                continue
            if seconds < ABSENCE_S or not self.leases_are_current:
                continue
            yield (
                f"{name} is missing, and the inventory has it; it neither started nor stopped for "
                f"{seconds / 60:.0f} minutes. {_log_hint(name)}"
            )

    def _queue_problems(self) -> Iterator[str]:
        """Yield the queues that no node consumes, or from which idle consumers fetch nothing."""
        if not self.leases_are_current:
            return
        for queue in self.queues:
            if not queue.consumers and (queue.depth or queue.name not in self.idle_queues):
                yield (
                    f"No node consumes the queue {queue.name}, where {queue.depth} messages wait. "
                    "Start its nodes, or give it to a pool (celery_worker_pools)."
                )
            if queue.depth and queue.waits:
                for node in self.nodes:
                    if queue.name in node.queues and node.is_idle:
                        yield (
                            f"{node.name} takes nothing from the queue {queue.name}, where {queue.depth} "
                            f"messages wait, the next for {queue.waits:.0f} s or more, though it has room. "
                            f"{_log_hint(node.name)}"
                        )

    def _schedule_problems(self) -> Iterator[str]:
        """Yield a schedule that no Beat sends, and a Beat of the inventory that is missing."""
        is_overdue = self.leases_are_current and self.beat_wanted >= ABSENCE_S
        if self.beat == "persistent":  # Redis may have keys of another scheduler
            if self.beat_lease is None and is_overdue:
                yield (
                    "The inventory wants a Beat, and none renews its lease. "
                    "On a host of Beat: systemctl status celery-beat."
                )
        elif not self.schedule.entry and self.schedule.seconds is None:
            if self.beat and is_overdue:
                yield (
                    "The inventory wants a Beat, and none holds the lock of the schedule, which is empty. "
                    "On a host of Beat: systemctl status celery-beat."
                )
        elif self.schedule.seconds is None:
            yield (
                "There is a schedule, and no Beat holds its lock. "
                "On a host of Beat: systemctl status celery-beat."
            )
        elif self.schedule.late > LATE_S:
            yield (
                f"Beat is late: {self.schedule.entry} was due {self.schedule.late:.0f} s ago, and is not "
                "sent. On a host of Beat: journalctl -u celery-beat."
            )

    def _dead_letter_problems(self) -> Iterator[str]:
        """Yield a sentence if there are many new dead letters."""
        if self.dead_lately >= MANY_DEAD:
            more = " or more" if self.dead_lately >= DEAD_COUNT_LIMIT else ""
            yield (
                f"{self.dead_lately}{more} tasks failed for good in the last {WINDOW_S // 60:g} minutes. "
                "fleet-celery dead-letter list --since 10m shows them."
            )


def _host(node: str) -> str:
    """Return the host in the name of a node."""
    return node.partition("@")[2]


def _unit(node: str) -> str:
    """Return the systemd unit of a node."""
    return f"celery-worker@{node.partition('@')[0]}"


def _log_hint(node: str) -> str:
    """Return the command that shows the log of a node."""
    return f"On {_host(node)}: journalctl -u {_unit(node)}."


def read(app: Celery, queues: Iterable[str] = ()) -> Status:
    """Return the status of the fleet.

    If messages without a publish time wait beside an idle node, this takes SECOND_READ_S: a second read shows
    whether they are fetched.

    Args:
        app: The app.
        queues: Queues to include in addition to those that nodes consume.

    Raises:
        FleetError: The broker is away, or refuses a command.
    """
    status, first = _read_once(app, queues)
    untimed = [queue.name for queue in status.queues if queue.depth and queue.oldest is None]
    if not any(queue in node.queues and node.is_idle for queue in untimed for node in status.nodes):
        return status
    time.sleep(SECOND_READ_S)
    status, now = _read_once(app, queues)
    untaken = [name for name in untimed if first[name] == now.get(name)]
    return replace(
        status,
        queues=[
            replace(queue, untaken=float(SECOND_READ_S)) if queue.name in untaken else queue
            for queue in status.queues
        ],
    )


def _read_once(app: Celery, queues: Iterable[str]) -> tuple[Status, dict[str, list[Any]]]:
    """Return the status, and the next message of each list of a queue, with two pipelines of commands.

    Args:
        app: The app.
        queues: Queues to include in addition to those that nodes consume.

    Raises:
        FleetError: The broker is away, or refuses a command.
    """
    with _channel(app) as channel, channel.conn_or_acquire() as client:
        first = client.pipeline(transaction=False)
        first.info("everything")
        first.time()
        first.zrange(keys.LEASES, 0, -1, withscores=True)
        first.hgetall(keys.NODES)
        first.zcard(keys.DEAD)
        since = time.time() - WINDOW_S
        first.zrange(keys.DEAD, since, "+inf", byscore=True, offset=0, num=DEAD_COUNT_LIMIT)
        first.hgetall(keys.DRAINED)
        first.hgetall(keys.WANTED)
        first.hgetall(keys.HISTORY)
        first.get(keys.WANTED_BEAT)
        first.pttl(keys.BEAT_LEASE)
        schedule.add_commands(first)
        info, clock, leases, published, dead, lately, hosts, inventory, past, *of_beat = first.execute()
        wanted_beat, beat_lease, *of_schedule = of_beat

        names = {_text(node): end - clock[0] - clock[1] / 1e6 for node, end in leases}
        facts = {_text(node): json.loads(text) for node, text in published.items()}
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
            second.lindex(key, -1)  # consumers fetch from the right
        replies = second.execute()

    held, of_lists = replies[: len(names)], replies[len(names) :]
    nodes = [
        _node(name, lease, reserved, facts.get(name, {}))
        for (name, lease), reserved in zip(names.items(), held, strict=True)
    ]
    waiting: dict[str, list[tuple[int, float | None]]] = {queue: [] for queue in wanted}
    next_of: dict[str, list[Any]] = {queue: [] for queue in wanted}
    for (queue, _), depth, oldest in zip(lists, of_lists[::2], of_lists[1::2], strict=True):
        waiting[queue].append((depth, _age(oldest)))
        next_of[queue].append(oldest)
    histories = history.parse(past)
    beat = json.loads(wanted_beat or '{"scheduler": "", "since": 0}')
    status = Status(
        server=_server(info),
        nodes=sorted(nodes, key=lambda node: node.name),
        queues=[_queue(queue, parts, nodes) for queue, parts in waiting.items()],
        dead_letters=dead,
        schedule=schedule.parse(*of_schedule),
        drained=drains.parse(hosts),
        dead_lately=len(lately),
        wanted=_wanted(inventory, histories),
        idle_queues=json.loads(inventory.get(keys.IDLE_QUEUES.encode(), "[]")),
        beat=beat["scheduler"],
        beat_wanted=max(0.0, round(time.time() - beat["since"], 1)) if beat["scheduler"] else 0.0,
        beat_lease=beat_lease / 1000 if beat_lease >= 0 else None,
        falls={
            node: sum(at > time.time() - WINDOW_S for at in of_node.falls)
            for node, of_node in histories.items()
        },
    )
    return status, next_of


def _wanted(inventory: dict[bytes, bytes], histories: dict[str, history.History]) -> dict[str, float]:
    """Return for each node of the inventory the seconds since it was last seen, or was recorded."""
    now, ages = time.time(), {}
    for name, text in inventory.items():
        node = name.decode()
        if node != keys.IDLE_QUEUES:
            seen = histories.get(node, history.History()).seen
            ages[node] = max(0.0, round(now - max(seen, json.loads(text)["since"]), 1))
    return ages


@contextmanager
def _channel(app: Celery) -> Iterator[Any]:
    """Yield a channel that waits for TIMEOUT_S at most. A node's would wait for a broker that is away.

    Raises:
        FleetError: The broker is away, or refuses a command.
    """
    limits = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S, "retry_on_timeout": False}
    with explained("Redis cannot be asked"), app.connection_for_read() as connection:
        connection.transport_options = {**connection.transport_options, **limits}
        connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
        yield connection.default_channel


def _node(name: str, lease: float, reserved: int, facts: dict[str, Any]) -> Node:
    """Return a node from the facts that it has published."""
    started = facts.get("started")
    return Node(
        name=name,
        lease=round(lease, 1),
        reserved=reserved,
        uptime=None if started is None else round(time.time() - started, 1),
        proved=facts.get("proved", True) is not None,
        queues=sorted(facts.get("queues", ())),
        **{name: facts[name] for name in REPORTED & facts.keys()},
    )


def _queue(name: str, parts: list[tuple[int, float | None]], nodes: list[Node]) -> QueueState:
    """Return a queue from its lists, one for each priority."""
    ages = [age for _, age in parts if age is not None]
    return QueueState(
        name=name,
        depth=sum(depth for depth, _ in parts),
        oldest=max(ages, default=None),
        consumers=sum(node.is_alive and name in node.queues for node in nodes),
        unacked=sum(node.held.get(name, 0) for node in nodes),
    )


def _server(info: dict[str, Any]) -> Server:
    """Return the state of Redis from its INFO."""
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
    """Return for how many seconds an item of a queue has waited; None without a valid publish time.

    A sender can put anything into a queue, so that an item may not be a message.
    """
    try:
        sent = sent_at(loads(item)) if item else None
    except Exception:
        return None
    return None if sent is None or not isfinite(sent) else max(0.0, round(time.time() - sent, 1))


def _text(value: bytes | str) -> str:
    """Return a name as text."""
    return value.decode() if isinstance(value, bytes) else value
