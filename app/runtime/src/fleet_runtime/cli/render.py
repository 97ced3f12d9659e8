# SPDX-License-Identifier: MIT
"""The tables of `fleet status`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fleet_runtime.inspect.status import Node, QueueState, Server, Status

NOTHING = "-"
MIB = 1024**2


def show(status: Status, problems: list[str]) -> None:
    """Print the status of the fleet, and its problems."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width of its own
    console.print(_nodes(status.nodes))
    console.print(_queues(status.queues))
    lately = f", {status.dead_lately} of them in the last 10 minutes" if status.dead_lately else ""
    console.print(Text(f"Dead letters  {status.dead_letters}{lately}"))
    console.print(Text(f"Beat          {_beat(status)}"))
    console.print(Text(f"Redis         {_server(status.server)}"))
    for host in status.drained:
        line = f"Drained       {host.host}, for {_duration(host.since)}: {host.why}"
        console.print(Text(line, style="yellow"))
    for node in status.nodes:
        if node.dropped:
            counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(node.dropped.items()))
            console.print(Text(f"Dropped       {node.name}: {counts}, which were invalid", style="yellow"))
    if not status.wanted:
        line = "Redis does not know its nodes, so that missing nodes are not shown: run site.yml."
        console.print(Text(f"Inventory     {line}", style="yellow"))
    for problem in problems:
        console.print(Text(f"! {problem}", style="bold red"))
    if not problems:
        console.print(Text("All is well.", style="green"))


def _nodes(nodes: list[Node]) -> Table:
    """Return the table of nodes."""
    table = _table(
        "NODE", "POOL", "QUEUES", "RELEASE", "LEVEL", right=("LEASE", "RUNNING", "RESERVED", "UPTIME")
    )
    for node in nodes:
        pool = f"{node.pool} x{node.concurrency}" if node.pool else NOTHING
        table.add_row(
            Text(node.name),
            Text(pool),
            Text(", ".join(node.queues) or NOTHING),
            Text(node.release or NOTHING),
            Text(node.level or NOTHING, style="yellow" if node.level == "standard" else ""),
            Text(
                f"{node.lease:.0f} s" if node.is_alive else "ended", style="" if node.is_alive else "bold red"
            ),
            NOTHING if node.running is None else str(node.running),
            str(node.reserved),
            _duration(node.uptime),
        )
    return table


def _queues(queues: list[QueueState]) -> Table:
    """Return the table of queues."""
    table = _table("QUEUE", right=("DEPTH", "OLDEST", "UNACKED", "CONSUMERS"))
    for queue in queues:
        consumers = Text(str(queue.consumers), style="" if queue.consumers else "bold red")
        table.add_row(
            Text(queue.name), str(queue.depth), _duration(queue.oldest), str(queue.unacked), consumers
        )
    return table


def _beat(status: Status) -> str:
    """Return a line about the schedule."""
    if status.beat == "persistent":
        lease = status.beat_lease
        holder = "No Beat renews its lease." if lease is None else (
            f"A Beat renews its lease, which ends in {lease:.0f} s if it dies now."
        )  # fmt: skip
        return f"{holder} Its schedule is in a file (celery_beat_scheduler: persistent)."
    return str(status.schedule)


def _table(*names: str, right: tuple[str, ...] = ()) -> Table:
    """Return a table without lines.

    Args:
        names: Columns of text.
        right: Columns of numbers, which follow.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _server(server: Server) -> str:
    """Return a line about Redis."""
    limit = f" of {server.memory_limit / MIB:.0f}" if server.memory_limit else ""
    file = "append-only file written" if server.persistent else "append-only file REFUSES WRITES"
    return (
        f"{server.version}, {server.role}, {server.memory / MIB:.0f}{limit} MiB, {file}, "
        f"{server.replicas} replicas"
    )


def _duration(seconds: float | None) -> str:
    """Return seconds as text: 45 s, 12:30 min, 3:05 h, 2 d 4 h; a dash for None.

    >>> [_duration(seconds) for seconds in (None, 4.6, 750, 11_100, 187_200)]
    ['-', '5 s', '12:30 min', '3:05 h', '2 d 4 h']
    """
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    if not minutes:
        return f"{rest} s"
    if not hours:
        return f"{minutes}:{rest:02} min"
    if hours < 24:
        return f"{hours}:{minutes_rest:02} h"
    days = timedelta(hours=hours)
    return f"{days.days} d {hours % 24} h"
