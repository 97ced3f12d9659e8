# SPDX-License-Identifier: MIT
"""Filters of the role celery_app: which release a rollback goes to, and whether the runtime can be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import (
    ReleaseError,
    parse_runtime,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    # The result of the module celery_release_info for a host.
    Info = Mapping[str, Any]


def choice(hosts: Mapping[str, Info], wanted: str) -> dict[str, str]:
    """Return the release that all hosts can switch to.

    Args:
        hosts: Each host, and what the module celery_release_info tells of it.
        wanted: The release's id, or the beginning of one; nothing for the one before, or for the one that
            a run which was interrupted leaves to go to.

    Returns:
        Its `id`, and a `problem`, which is a text for the operator if there is no such release.
    """
    problem, chosen = "", ""
    if wanted:
        known = {release for info in hosts.values() for release in info["releases"]}
        named = {release for release in known if release.startswith(wanted)}
        if len(named) > 1:
            problem = f"{wanted} is the beginning of {' and of '.join(sorted(named))}."
        chosen = min(named, default=wanted)
    else:
        goals = unfinished(hosts) or {info["previous"] for info in hosts.values()}
        chosen = min(goals)
        if len(goals) > 1:
            problem = (
                "The hosts had different releases before this one. Name one of these: -e fleet_release_id=ID"
            )
        elif not chosen:
            problem = "No host had a release before this one."
        elif untried := {info["releases"][0] for info in hosts.values() if info["releases"]} - {
            release for info in hosts.values() for release in (info["current"], info["previous"])
        }:
            problem = (
                f"The newest release, {', '.join(sorted(untried))}, is not what hosts run, nor what they ran "
                "before. If its release failed, nothing is left to be taken back; if this is one rollback "
                "after another, it is not known how far back. Name one of these: -e fleet_release_id=ID"
            )
    lacking = [host for host, info in hosts.items() if chosen not in info["releases"]]
    if not problem and lacking:
        problem = (
            f"Release {chosen} is not on {', '.join(lacking)}. A rollback builds nothing: to have it again, "
            "set celery_app_source or celery_app_git_ref to it, and run playbooks/release.yml."
        )
    return {"id": chosen, "problem": "\n".join([problem, *map(spelled, hosts.items())]) if problem else ""}


def unfinished(hosts: Mapping[str, Info]) -> set[str]:
    """Return where a run that was interrupted leaves a rollback to go: one goal, if it is known.

    A rollback goes on to where it went, unless no host got there: then it has failed, or changed nothing.
    After a release, some hosts run the new one, and all the others what it was to replace, which the first
    ones ran before: that is where it goes.
    """
    current = {info["current"] for info in hosts.values()}
    begun = {info["rollback"] for info in hosts.values()} & current - {""}
    if begun or len(current) == 1:
        return begun
    return set.intersection(*({info["current"], info["previous"]} for info in hosts.values())) - {""}


def spelled(item: tuple[str, Info]) -> str:
    """Return a line about the releases of a host."""
    host, info = item
    return (
        f"{host} runs {info['current'] or 'none'}, ran {info['previous'] or 'none'} before, "
        f"and has {', '.join(info['releases']) or 'none'}."
    )


def runtime_problem(path: str) -> str:
    """Return why the runtime cannot be taken from a path on the controller; nothing if it can."""
    try:
        parse_runtime(Path(path).expanduser())
    except (ReleaseError, OSError) as error:
        return str(error)
    return ""


class FilterModule:
    """Filters `celery_app_*`."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"celery_app_choice": choice, "celery_app_runtime_problem": runtime_problem}
