# SPDX-License-Identifier: MIT
"""The sub-commands `celery -A fleet_runtime.app fleet ...`.

Celery imports this module for every command that it runs, so it imports nothing that takes time.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fleet_runtime import extras
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fleet_runtime.inspect.probe import Answer


@contextmanager
def sentences() -> Iterator[None]:
    """Let a FleetError end the command with its sentence, instead of a traceback."""
    try:
        yield
    except FleetError as error:
        raise click.ClickException(str(error)) from None


def _mapping(text: str) -> dict[str, Any]:
    """Return what a text in JSON says by names.

    Raises:
        ValueError: It is none, or something else.
    """
    said = json.loads(text)
    if not isinstance(said, dict):
        raise ValueError("it must be a mapping in JSON")
    return said


@click.group()
def fleet() -> None:
    """Ask the fleet, and check the app."""


@fleet.command()
@click.option("--queue", "names", multiple=True, metavar="NAME", help="Default: all that the app uses.")
@click.option("--timeout", default=10.0, show_default=True, help="Seconds to wait for all answers together.")
@click.option("--json", "as_json", is_flag=True, help="Print {queue: {node, release, seconds}}.")
@click.pass_context
def probe(ctx: click.Context, names: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Send a task into each queue, and say which node ran it.

    Fails if a queue has no answer in time.
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
    # By a variable, too, because the check of an older release, before a rollback, does not know the option.
    envvar="CHECK_BEAT_SCHEDULER",
    metavar="SCHEDULER",
    default="",
    help="What the fleet's Beat runs: redbeat or persistent. Default: there is no Beat.",
)
@click.option(
    "--redis",
    "allowed",
    envvar="CHECK_REDIS",  # as above
    metavar="JSON",
    type=_mapping,
    help="What the inventory allows the app in Redis, by variables such as redis_broadcasts. Default: that "
    "is not known.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print {faults, overridden, costs}, lists of sentences."
)
@click.pass_context
def check(ctx: click.Context, text: str, beat: str, allowed: dict[str, Any] | None, as_json: bool) -> None:
    """Import the app with all its tasks, and look for what would go wrong, has no effect, or costs much.

    Fails, with a line for each thing that would go wrong. Asks no broker.
    """
    from fleet_runtime.inspect.app_check import costs, findings, import_tasks, overridden

    app = ctx.obj.app
    with sentences():
        import_tasks(app)
        found = findings(app, [name for name in text.split(",") if name], beat, allowed)
    told, dear = overridden(app, beat, allowed), costs(app)
    if as_json:
        click.echo(json.dumps({"faults": found, "overridden": told, "costs": dear}))
        ctx.exit(1 if found else 0)
    if found:
        click.echo("\n".join(found), err=True)
        ctx.exit(1)
    # The module celery_release knows a warning by the words with which its line begins.
    for sentence in told:
        click.echo(f"This does not hold: {sentence}")
    for sentence in dear:
        click.echo(f"This costs much: {sentence}")
    click.echo("The app is fit to run.")


@fleet.command()
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show nodes, queues, dead letters, the schedule and Redis, and what is wrong.

    Fails if anything is. Answers within seconds, also when Redis is away.
    """
    from fleet_runtime.inspect import status as looking
    from fleet_runtime.inspect.queues import configured

    app = ctx.obj.app
    with sentences():
        if not as_json:
            extras.require("rich", "`fleet status` without --json")
        found = looking.look(app, configured(app))
    problems = found.problems()
    if as_json:
        click.echo(json.dumps({**asdict(found), "problems": problems}))
    else:
        from fleet_runtime.cli.render import show

        show(found, problems)
    if problems:
        ctx.exit(1)


@fleet.command()
@click.argument("node")
@click.argument("queues", nargs=-1)
@click.option("--timeout", default=10.0, show_default=True, help="Seconds to wait.")
@click.pass_context
def prove(ctx: click.Context, node: str, queues: tuple[str, ...], timeout: float) -> None:
    """Let a node prove that it answers, consumes these QUEUES and no other (or any), and runs tasks.

    Fails, with what is wrong, if it does not within the time.
    """
    from fleet_runtime.inspect import readiness

    with sentences():
        click.echo(readiness.require(ctx.obj.app, node, queues, timeout))


@fleet.command()
@click.argument("nodes", nargs=-1, required=True)
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for all answers together.")
@click.pass_context
def consumed(ctx: click.Context, nodes: tuple[str, ...], timeout: float) -> None:
    """Print what NODES consume, as JSON: {node: [queue, ...]}.

    One that does not answer is not in it; but a solo node that runs a task cannot, and tells Redis.
    """
    from fleet_runtime.inspect import readiness

    with sentences():
        click.echo(json.dumps(readiness.consumed(ctx.obj.app, nodes, timeout)))


@fleet.command()
@click.argument("host", default="")
@click.option("--why", default="", help="In a few words, for `fleet status`.")
@click.option("--no", is_flag=True, help="It is not drained any more.")
@click.option("--list", "as_list", is_flag=True, help="Print the hosts that are, as JSON.")
@click.pass_context
def drained(ctx: click.Context, host: str, why: str, no: bool, as_list: bool) -> None:
    """Note that a HOST is drained, for `fleet status`. Stops nothing: playbooks/drain.yml does."""
    from fleet_runtime.inspect import drains as marks

    if as_list == bool(host):
        raise click.UsageError("Name a host, or say --list.")
    if as_list:
        with sentences(), marks.client(ctx.obj.app) as redis:
            click.echo(json.dumps([one.host for one in marks.known(redis)]))
        return
    with sentences(), marks.client(ctx.obj.app) as redis:
        news = marks.unmark(redis, host) if no else marks.mark(redis, host, why)
    word = "not drained" if no else "drained"
    click.echo(f"{host} is {word}." if news else f"{host} is {word} already.")


@fleet.command()
@click.option("--json", "as_json", is_flag=True, help="Print {seconds, entry, due}.")
@click.pass_context
def beat(ctx: click.Context, as_json: bool) -> None:
    """Say whether a Beat holds RedBeat's lock, and what is due next.

    Fails if none does: then nothing is scheduled, neither by a standby.
    """
    from fleet_runtime.inspect import schedule

    with sentences():
        found = schedule.look(ctx.obj.app)
    click.echo(json.dumps(asdict(found)) if as_json else str(found))
    if found.seconds is None:
        ctx.exit(1)


def _table(answers: Mapping[str, Answer], timeout: float) -> list[str]:
    """Return the lines of a table for people."""
    rows = [("QUEUE", "SECONDS", "NODE")]
    for queue, answer in answers.items():
        seconds = "-" if answer.seconds is None else f"{answer.seconds:.3f}"
        rows.append((queue, seconds, answer.node or f"no answer within {timeout:g} s"))
    width = max(len(queue) for queue, _, _ in rows)
    return [f"{queue:<{width}}  {seconds:>7}  {node}" for queue, seconds, node in rows]
