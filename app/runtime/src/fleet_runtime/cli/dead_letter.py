# SPDX-License-Identifier: MIT
"""The sub-commands `celery -A fleet_runtime.app dead-letter ...`.

Celery imports this module for every command that it runs, so imports that take time are inside functions.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from fleet_runtime.cli.fleet import aligned, sentences
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fleet_runtime.dead_letters.model import DeadLetter, Filter
    from fleet_runtime.dead_letters.store import DeadLetterStore

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
HIDDEN = frozenset({"text", "record"})  # fields that `list --json` leaves out


class Since(click.ParamType):  # type: ignore[type-arg]  # it takes none when it runs
    """A point in time: an age such as `2h`, or a time in ISO 8601."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the time in seconds since 1970."""
        if isinstance(value, float):
            return value
        if age := re.fullmatch(r"(\d+)([smhdw])", value):
            return (datetime.now(UTC) - timedelta(**{UNITS[age[2]]: int(age[1])})).timestamp()
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither an age such as 30m or 7d nor a time such as 2026-01-31T12:00.")
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select dead letters to a command."""

    @click.option("--id", "ids", multiple=True, metavar="ID", help="Id of the task.")
    @click.option("--task", "tasks", multiple=True, metavar="NAME", help="Or a pattern, such as 'shop.*'.")
    @click.option("--queue", "queues", multiple=True, metavar="NAME")
    @click.option("--reason", "reasons", multiple=True, metavar="REASON", help="A reason as `list` shows it.")
    @click.option(
        "--since", type=Since(), help="An age such as 30m or 7d, or a time in UTC: 2026-01-31T12:00."
    )
    @wraps(command)
    def with_filters(*args: Any, **options: Any) -> Any:
        from fleet_runtime.dead_letters.model import Filter, Reason

        names = ("ids", "tasks", "queues", "reasons", "since")
        wanted = Filter(**{name: options.pop(name) for name in names})
        if unknown := set(wanted.reasons) - set(Reason):
            raise click.ClickException(
                f"Unknown reason: {', '.join(unknown)}. The reasons are {', '.join(Reason)}."
            )
        return command(*args, wanted=wanted, **options)

    return with_filters


def changes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that changes dead letters, which requires a selection or --all."""

    @click.option("--all", "everything", is_flag=True, help="Select all dead letters.")
    @click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
    @click.option("--json", "as_json", is_flag=True, help="Print {count, ids, dry_run}.")
    @wraps(command)
    def with_options(*args: Any, wanted: Filter, everything: bool, **options: Any) -> Any:
        if bool(wanted) == everything:
            raise click.ClickException("Select some: --id, --task, --queue, --reason, --since, or --all.")
        return command(*args, wanted=wanted, **options)

    return filters(with_options)


@click.group("dead-letter")
def dead_letter() -> None:
    """List, show, requeue and purge tasks that failed for good."""


@dead_letter.command("list")
@filters
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="List at most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, without the messages.")
@click.pass_context
def list_(ctx: click.Context, wanted: Filter, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first."""
    from itertools import islice

    from fleet_runtime.dead_letters.store import open_store

    with sentences(), open_store(ctx.obj.app) as letters:
        total = len(letters)
        found = list(islice(letters.find(wanted), limit))
    if as_json:
        click.echo(json.dumps([_plain(letter, HIDDEN) for letter in found]))
        return
    if found:
        click.echo("\n".join(_table(found)))
    click.echo(f"{len(found)} of {total} dead letters.")


@dead_letter.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, with the messages.")
@click.pass_context
def show(ctx: click.Context, ids: tuple[str, ...], as_json: bool) -> None:
    """Show dead letters with message, error and traceback.

    Exits with 1 if an ID is not there.
    """
    from fleet_runtime.dead_letters.model import Filter
    from fleet_runtime.dead_letters.store import open_store

    with sentences(), open_store(ctx.obj.app) as letters:
        found = list(letters.find(Filter(ids=ids)))
    if as_json:
        click.echo(json.dumps([_plain(letter, frozenset({"text"})) for letter in found]))
    else:
        click.echo("\n\n".join("\n".join(_page(letter)) for letter in found))
    if missing := set(ids) - {letter.id for letter in found}:
        raise click.ClickException(f"There is no dead letter {', '.join(sorted(missing))}.")


@dead_letter.command()
@changes
@click.pass_context
def requeue(ctx: click.Context, wanted: Filter, dry_run: bool, as_json: bool) -> None:
    """Put messages back into their queues, under the same ids.

    They run as if for the first time: retries and crash counts are reset, and an expiry that has passed is
    removed. Exits with 1 if a dead letter has no message.
    """
    from fleet_runtime.dead_letters.store import open_store

    faults = []
    with sentences(), open_store(ctx.obj.app) as letters:
        done = []
        for letter in _oldest_first(letters, wanted):
            try:
                letter.revived(datetime.now(UTC))
            except FleetError as error:
                faults.append(str(error))
                continue
            if dry_run or letters.requeue(letter):
                done.append(letter)
    _report("requeued" if not dry_run else "would be requeued", done, dry_run, as_json)
    if faults:
        raise click.ClickException("\n".join(faults))


@dead_letter.command()
@changes
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_context
def purge(ctx: click.Context, wanted: Filter, dry_run: bool, as_json: bool, yes: bool) -> None:
    """Delete dead letters, for good."""
    from fleet_runtime.dead_letters.store import open_store

    with sentences(), open_store(ctx.obj.app) as letters:
        found = list(_oldest_first(letters, wanted))
        if found and not (dry_run or yes):
            click.confirm(f"Delete {len(found)} dead letters, for good?", abort=True, err=True)
        done = [letter for letter in found if dry_run or letters.purge(letter)]
    _report("deleted" if not dry_run else "would be deleted", done, dry_run, as_json)


def _oldest_first(letters: DeadLetterStore, wanted: Filter) -> Iterator[DeadLetter]:
    """Yield the selected dead letters, the oldest first."""
    return reversed(list(letters.find(wanted)))


def _report(what: str, letters: list[DeadLetter], dry_run: bool, as_json: bool) -> None:
    """Print what was done."""
    if as_json:
        ids = [letter.id for letter in letters]
        click.echo(json.dumps({"count": len(ids), "ids": ids, "dry_run": dry_run}))
        return
    for letter in letters:
        click.echo(f"{letter.id} {letter.task or '-'}")
    click.echo(f"{len(letters)} dead letters {what}.")


def _plain(letter: DeadLetter, hidden: frozenset[str]) -> dict[str, Any]:
    """Return the fields of a dead letter for JSON."""
    return {name: value for name, value in vars(letter).items() if name not in hidden}


def _table(letters: list[DeadLetter]) -> list[str]:
    """Return the lines of a table."""
    rows = [("DIED (UTC)", "REASON", "QUEUE", "TASK", "ID", "ERROR")]
    for letter in letters:
        error = letter.error.splitlines()[0][:80] if letter.error else ""
        task, queue = letter.task or "-", letter.queue or "-"
        rows.append((_time(letter.died), letter.reason, queue, task, letter.id, error))
    return aligned(rows)


def _page(letter: DeadLetter) -> Iterator[str]:
    """Yield the lines that show a whole dead letter."""
    for name in ("id", "task", "queue", "reason", "node", "deliveries", "retries"):
        value = getattr(letter, name)
        yield f"{name + ':':<12}{'-' if value is None else value}"
    for name in ("received", "started", "died"):
        yield f"{name + ':':<12}{_time(getattr(letter, name))}"
    yield f"{'error:':<12}{letter.error or '-'}"
    if letter.traceback:
        yield letter.traceback.rstrip()
    message = letter.message
    if message is None:
        yield f"item:       {letter.raw if letter.raw is not None else letter.raw_base64}"
        return
    yield f"headers:    {json.dumps(message.get('headers'))}"
    yield f"properties: {json.dumps(message.get('properties'))}"
    yield f"body:       {_body(message)}"


def _body(message: dict[str, Any]) -> str:
    """Return the body of a message: decoded if it is text in base64, else unchanged."""
    body = str(message.get("body"))
    if message.get("properties", {}).get("body_encoding") != "base64":
        return body
    try:
        return base64.b64decode(body).decode()
    except ValueError:
        return body


def _time(seconds: float | None) -> str:
    """Return a time in UTC as text; a dash for None."""
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
