# SPDX-License-Identifier: MIT
"""The sub-commands `celery -A fleet_runtime.app fleet ...`.

Celery imports this module for every command that it runs, so imports that take time are inside functions.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fleet_runtime import extras
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fleet_runtime.inspect.probe import Answer
    from fleet_runtime.settings import FleetSettings


@contextmanager
def sentences() -> Iterator[None]:
    """End the command with the sentence of a FleetError in place of a traceback."""
    try:
        yield
    except FleetError as error:
        raise click.ClickException(str(error)) from None


def _mapping(text: str) -> dict[str, Any]:
    """Return a mapping from its JSON.

    Raises:
        ValueError: The text is not JSON, or not a mapping.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it must be a mapping in JSON")
    return value


@click.group()
def fleet() -> None:
    """Show the state of the fleet, and check the app."""


@fleet.command()
@click.option("--queue", "names", multiple=True, metavar="NAME", help="Default: all queues of the app.")
@click.option("--timeout", default=10.0, show_default=True, help="Seconds to wait for all answers together.")
@click.option("--json", "as_json", is_flag=True, help="Print {queue: {node, release, seconds}}.")
@click.pass_context
def probe(ctx: click.Context, names: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Send a task into each queue, and show which node ran it.

    Exits with 1 if a queue has no answer in time.
    """
    from fleet_runtime.inspect import probe as probing
    from fleet_runtime.inspect.app_check import import_tasks
    from fleet_runtime.inspect.queues import routed

    app = ctx.obj.app
    with sentences():
        if not names:
            import_tasks(app)
        answers = probing.ask(app, names or routed(app), timeout)
    if as_json:
        click.echo(json.dumps({queue: asdict(answer) for queue, answer in answers.items()}))
    else:
        click.echo("\n".join(_table(answers, timeout)))
    if not all(answer.node for answer in answers.values()):
        ctx.exit(1)


@fleet.command()
@click.option("--queues", "text", metavar="A,B,C", default="", help="The queues that nodes consume.")
@click.option(
    "--beat",
    # Also a variable: the check of an older release, before a rollback, does not know the option.
    envvar="CHECK_BEAT_SCHEDULER",
    metavar="SCHEDULER",
    default="",
    help="The scheduler of the fleet's Beat: redbeat or persistent. Default: no Beat.",
)
@click.option(
    "--pools",
    envvar="CHECK_POOLS",  # as above
    metavar="A,B",
    default="",
    help="The kinds of the nodes' pools, such as gevent. Default: they are not known.",
)
@click.option(
    "--redis",
    "allowed",
    envvar="CHECK_REDIS",  # as above
    metavar="JSON",
    type=_mapping,
    help="Variables of the inventory that allow the app more in Redis, such as redis_broadcasts. Default: "
    "they are not known.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print {level, faults, renamed, overridden, costs, app}: the level, lists of sentences, and the "
    "description of the app for FLEET_APP_FILE.",
)
@click.pass_context
def check(
    ctx: click.Context, text: str, beat: str, pools: str, allowed: dict[str, Any] | None, as_json: bool
) -> None:
    """Check the app with all its tasks: what would fail, has no effect, or costs much. Needs no broker.

    Exits with 1 if something would fail, with a line for each fault.
    """
    from fleet_runtime.compat import surface
    from fleet_runtime.inspect.app_check import costs, findings, import_tasks, overridden
    from fleet_runtime.inspect.description import describe
    from fleet_runtime.settings import renamed_variables

    app = ctx.obj.app
    settings: FleetSettings = app.fleet_settings
    with sentences():
        if settings.app_file:
            raise FleetError("`fleet check` checks the app itself: set FLEET_APP in place of FLEET_APP_FILE.")
        import_tasks(app)
        faults = [
            *(surface.problems(fast_pool=settings.fast_pool) if settings.is_full else ()),
            *findings(app, [name for name in text.split(",") if name], beat, allowed, pools.split(",")),
        ]
    warnings = {
        "renamed": ("This is renamed: ", renamed_variables()),
        "overridden": ("This does not hold: ", overridden(app, beat, allowed)),
        "costs": ("This costs much: ", costs(app)),
    }
    if as_json:
        lists = {name: found for name, (_, found) in warnings.items()}
        about = {} if faults else {"app": describe(app)}
        click.echo(json.dumps({"level": settings.level, "faults": faults, **lists, **about}))
        ctx.exit(1 if faults else 0)
    if faults:
        click.echo("\n".join(faults), err=True)
        ctx.exit(1)
    for prefix, found in warnings.values():
        for sentence in found:
            click.echo(prefix + sentence)
    click.echo(f"The app is fit to run at the level {settings.level}.")


@fleet.command()
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show nodes, queues, dead letters, the schedule and Redis, and all problems.

    Exits with 1 if there is a problem. Ends within seconds, also when Redis is away.
    """
    from fleet_runtime.inspect import status as fleet_status
    from fleet_runtime.inspect.queues import configured

    app = ctx.obj.app
    with sentences():
        if not as_json:
            extras.require("rich", "`fleet status` without --json")
        current = fleet_status.read(app, configured(app))
    problems = current.problems()
    if as_json:
        click.echo(json.dumps({**asdict(current), "problems": problems}))
    else:
        from fleet_runtime.cli.render import show

        show(current, problems)
    if problems:
        ctx.exit(1)


@fleet.command()
@click.argument("node")
@click.argument("queues", nargs=-1)
@click.option("--timeout", default=10.0, show_default=True, help="Seconds to wait.")
@click.pass_context
def ready(ctx: click.Context, node: str, queues: tuple[str, ...], timeout: float) -> None:
    """Wait until NODE answers, consumes these QUEUES and no other (by default any), and runs tasks.

    Exits with 1 and the problem if it does not within the time.
    """
    from fleet_runtime.inspect import readiness

    if ctx.info_name == OLD_READY and sys.stderr.isatty():
        click.echo(f"`fleet {OLD_READY}` is now `fleet ready`; the old name will be removed.", err=True)
    with sentences():
        click.echo(readiness.require(ctx.obj.app, node, queues, timeout))


# Programs use the old name: those of the roles, also with the release before, after a rollback.
OLD_READY = "prove"
fleet.add_command(copy(ready), OLD_READY)
fleet.commands[OLD_READY].hidden = True


@fleet.command()
@click.argument("nodes", nargs=-1, required=True)
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for all answers together.")
@click.pass_context
def consumed(ctx: click.Context, nodes: tuple[str, ...], timeout: float) -> None:
    """Print the queues that NODES consume, as JSON: {node: [queue, ...]}.

    A node that does not answer is missing, except a solo node that runs a task.
    """
    from fleet_runtime.inspect import readiness

    with sentences():
        click.echo(json.dumps(readiness.consumed(ctx.obj.app, nodes, timeout)))


@fleet.command()
@click.argument("host", default="")
@click.option("--why", default="", help="The reason in a few words, for `fleet status`.")
@click.option("--no", is_flag=True, help="Record that the host is no longer drained.")
@click.option("--list", "as_list", is_flag=True, help="Print the drained hosts, as JSON.")
@click.pass_context
def drained(ctx: click.Context, host: str, why: str, no: bool, as_list: bool) -> None:
    """Record that HOST is drained, for `fleet status`. Stops nothing: playbooks/drain.yml does."""
    from fleet_runtime.broker import keys
    from fleet_runtime.inspect import drains as marks

    if as_list == bool(host):
        raise click.UsageError("Name a host, or use --list.")
    with sentences(), marks.client(ctx.obj.app) as redis:
        if as_list:
            click.echo(json.dumps([drain.host for drain in marks.parse(redis.hgetall(keys.DRAINED))]))
            return
        is_new = marks.unmark(redis, host) if no else marks.mark(redis, host, why)
    state = "not drained" if no else "drained"
    click.echo(f"{host} is {state}." if is_new else f"{host} is {state} already.")


@fleet.command()
@click.option("--json", "as_json", is_flag=True, help="Print {seconds, entry, due}.")
@click.pass_context
def beat(ctx: click.Context, as_json: bool) -> None:
    """Show whether a Beat holds RedBeat's lock, and which entry is due next.

    Exits with 1 if none holds it: then no Beat sends tasks, not even a standby.
    """
    from fleet_runtime.inspect import schedule

    with sentences():
        current = schedule.read(ctx.obj.app)
    click.echo(json.dumps(asdict(current)) if as_json else str(current))
    if current.seconds is None:
        ctx.exit(1)


def _table(answers: Mapping[str, Answer], timeout: float) -> list[str]:
    """Return the lines of a table."""
    rows = [("QUEUE", "SECONDS", "NODE")]
    for queue, answer in answers.items():
        seconds = f"{'-':>7}" if answer.seconds is None else f"{answer.seconds:7.3f}"
        rows.append((queue, seconds, answer.node or f"no answer within {timeout:g} s"))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table from its rows, the first of which has the names of its columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
