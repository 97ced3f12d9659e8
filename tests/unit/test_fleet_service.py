# SPDX-License-Identifier: MIT
"""The module fleet_service: several units at once, and the journal of one that fails."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import SystemdError
from ansible_collections.fleet.celery.plugins.modules.fleet_service import (
    ServiceError,
    Services,
    is_abandoned,
)

if TYPE_CHECKING:
    from typing import Any

READY = ["fleet-celery", "inspect", "ping"]


class Host:
    """A stand-in for a host: unit -> [ActiveState, UnitFileState], and what was run on it."""

    def __init__(self, **units: tuple[str, str]) -> None:
        """Take the state of each unit."""
        self.units = {name: list(state) for name, state in units.items()}
        self.ran: list[str] = []
        self.broken: set[str] = set()
        self.invocations = 0
        self.crashes_while_asked = 0
        self.pings_until_ready = 0
        self.proved: list[str] = []
        self.sick: set[str] = set()
        self.sub: dict[str, str] = {}
        self.reload = "no"

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Do what the command says, and note it unless it only asks."""
        if argv == READY:
            self.crashes_while_asked -= 1
            self.invocations += self.crashes_while_asked >= 0
            self.pings_until_ready -= 1
            return (0, "pong", "") if self.pings_until_ready < 0 else (69, "", "no answer")
        if argv[0] == "prove":
            self.proved.append(argv[1])
            return (1, "", f"{argv[1]} is not well") if argv[1] in self.sick else (0, "", "")
        if argv[0] == "journalctl":
            return 0, f"ImportError in {argv[-1].removeprefix('--unit=')}\n", ""
        verb, *units = [word for word in argv[1:] if not word.startswith("-")]
        if verb == "show" and "--value" in argv:
            return 0, "0\n", ""
        if verb == "show":
            return 0, "\n".join(self.describe(unit) for unit in units), ""
        self.ran.append(f"{verb} {' '.join(units)}")
        for unit in units:
            self.act(verb, unit)
        failed = [unit for unit in units if unit in self.broken and verb in {"start", "restart"}]
        return (1, "", f"Job for {failed[0]} failed.") if failed else (0, "", "")

    def describe(self, unit: str) -> str:
        """Return what systemctl show prints."""
        active, file = self.units.get(unit, ["inactive", ""])
        sub = self.sub.get(unit, "auto-restart" if active == "activating" else "")
        return (
            f"LoadState=loaded\nActiveState={active}\nSubState={sub}\nUnitFileState={file}\n"
            f"NeedDaemonReload={self.reload}\nInvocationID={self.invocations}\n"
        )

    def act(self, verb: str, unit: str) -> None:
        """Change the state of a unit."""
        state = self.units.setdefault(unit, ["inactive", "disabled"])
        if verb in {"enable", "disable"}:
            state[1] = f"{verb}d"
        elif verb == "reset-failed":
            state[0] = "inactive"
        elif unit in self.broken:
            state[0] = "failed"
        else:
            state[0] = "inactive" if verb == "stop" else "active"


def apply(host: Host, state: str, *units: str, check: bool = False, **params: Any) -> list[str]:
    """Run the module."""
    ready: dict[str, Any] = {"ready_by_unit": {}, "ready": [], "ready_retries": 2, "ready_delay": 0}
    defaults = {**ready, "keep_going": False, "enable_only": [], "journal_lines": 5}
    return Services({"units": list(units), "state": state, **defaults, **params}, host, check=check).apply()


def test_units_are_enabled_and_started_together() -> None:
    """One call for all; those that are up are left alone, and a second run has nothing to do."""
    host = Host(a=("active", "enabled"), b=("inactive", "disabled"), c=("inactive", "disabled"))
    assert apply(host, "started", "a", "b", "c") == ["b", "c"]
    assert host.ran == ["enable b c", "start b c"]
    assert apply(host, "started", "a", "b", "c") == []


@pytest.mark.parametrize(
    ("state", "verb"), [("failed", "start"), ("deactivating", "start"), ("activating", "restart")]
)
def test_a_unit_that_is_not_well_is_started(state: str, verb: str) -> None:
    """So that the outcome is known, also of one that is between two starts of a crash loop."""
    host = Host(a=(state, "enabled"), b=("active", "enabled"))
    assert apply(host, "started", "a", "b") == ["a"]
    assert host.ran == [f"{verb} a"]


@pytest.mark.parametrize("sub", ["start-pre", "start", "start-post"])
def test_a_start_that_is_under_way_is_waited_for(sub: str) -> None:
    """One that imports a large app takes minutes, and would begin anew with each run."""
    host = Host(a=("activating", "enabled"), b=("inactive", "enabled"))
    host.sub["a"] = sub
    assert apply(host, "started", "a", "b", ready_by_unit=PROOFS) == ["b"]
    assert host.ran == ["start b", "start a", "start a"]
    assert host.proved == ["b", "a"]
    host.units["a"][0] = "activating"
    assert apply(host, "started", "a", check=True) == []


@pytest.mark.parametrize(
    ("state", "read"), [("started", True), ("restarted", True), ("disabled", False), ("stopped", False)]
)
def test_a_unit_file_that_systemd_has_not_read_is_read_before_a_start(state: str, *, read: bool) -> None:
    """A run that was interrupted left it behind. A stop is that of the unit as it was started."""
    host = Host(a=("active", "enabled"))
    host.reload = "yes"
    apply(host, state, "a", check=True)
    assert host.ran == []
    apply(host, state, "a")
    assert ("daemon-reload " in host.ran) is read
    assert "daemon-reload " not in host.ran[1:]


def test_a_start_that_was_under_way_and_fails_is_tried_again() -> None:
    """It began before what this run has changed."""
    host = Host(a=("activating", "enabled"))
    host.sub["a"] = "start"
    host.broken.add("a")
    with pytest.raises(ServiceError, match="Job for a failed"):
        apply(host, "started", "a")
    assert host.ran == ["start a", "restart a"]


def test_a_look_waits_for_starts_and_for_nothing_else() -> None:
    """For as long as the unit lets a start take, whatever comes of it."""
    host = Host(a=("activating", "enabled"), b=("inactive", "enabled"), c=("activating", "enabled"))
    host.sub["a"] = "start-pre"
    assert apply(host, "settled", "a", "b", "c") == []
    assert host.ran == ["start a"]
    host = Host(a=("activating", "enabled"))
    host.sub["a"] = "start"
    host.broken.add("a")
    assert apply(host, "settled", "a") == []
    host = Host(a=("activating", "enabled"))
    host.sub["a"] = "start"
    assert apply(host, "settled", "a", check=True) == []
    assert host.ran == []


@pytest.mark.parametrize("state", ["activating", "failed"])
def test_a_unit_that_is_restarted_next_is_only_enabled(state: str) -> None:
    """As one whose start is under way with files that are gone."""
    host = Host(a=(state, "disabled"), b=("inactive", "enabled"))
    host.sub["a"] = "start"
    assert apply(host, "started", "a", "b", enable_only=["a"]) == ["a", "b"]
    assert host.ran == ["enable a", "start b"]


def test_a_start_is_waited_for_however_few_tries_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a node that has died: systemd bounds how long a start takes; how often is bounded here."""
    host = Host(a=("activating", "enabled"))
    host.sub["a"] = "start"
    assert apply(host, "ready", "a", ready_by_unit=PROOFS, ready_retries=0) == []
    host = Host(a=("activating", "enabled"))
    host.sub["a"] = "start"
    monkeypatch.setattr(host, "act", lambda verb, unit: None)  # it starts without end
    with pytest.raises(ServiceError, match="a is activating"):
        apply(host, "ready", "a", ready_by_unit=PROOFS, ready_retries=9)
    assert host.ran == ["start a"] * 2


def test_units_are_disabled_and_stopped_together() -> None:
    """They drain side by side. Nothing is left that systemd would list for ever."""
    host = Host(a=("active", "enabled"), b=("active", "enabled"), c=("failed", "disabled"))
    host.broken.add("b")  # it has to be killed
    assert apply(host, "disabled", "a", "b", "c") == ["a", "b", "c"]
    assert host.ran == ["disable a b", "stop a b", "reset-failed b c"]
    assert apply(host, "disabled", "a", "b", "c") == []


def test_units_are_restarted_one_by_one() -> None:
    """Each waits until the one before it answers."""
    host = Host(a=("active", "enabled"), b=("active", "enabled"))
    host.pings_until_ready = 2
    assert apply(host, "restarted", "a", "b", ready=READY) == ["a", "b"]
    assert host.ran == ["restart a", "restart b"]


def test_a_unit_that_never_answers_fails_and_the_next_is_not_touched() -> None:
    """The message has the command, its answer and the journal."""
    host = Host(a=("active", "enabled"), b=("active", "enabled"))
    host.pings_until_ready = 99
    with pytest.raises(ServiceError) as error:
        apply(host, "restarted", "a", "b", ready=READY)
    assert host.ran == ["restart a"]
    assert "fleet-celery inspect ping ended with exit code 69: no answer" in str(error.value)
    assert "ImportError in a" in str(error.value)


def test_a_failed_start_shows_the_journal_of_the_guilty_unit() -> None:
    """And of no other."""
    host = Host()
    host.broken.add("b")
    with pytest.raises(ServiceError) as error:
        apply(host, "started", "a", "b")
    assert "Job for b failed." in str(error.value)
    assert "journal of b, which is failed" in str(error.value)
    assert "ImportError in a" not in str(error.value)


def test_watching_waits_and_changes_nothing() -> None:
    """A command that fails, and a unit that restarts while it runs, are given time."""
    host = Host(a=("active", "disabled"))
    host.pings_until_ready, host.crashes_while_asked = 1, 2
    assert apply(host, "ready", "a", ready=READY) == []
    assert host.ran == []


def test_a_unit_in_a_crash_loop_is_not_up() -> None:
    """Though it is active whenever one looks, and another unit makes the command succeed."""
    host = Host(a=("active", "enabled"))
    host.crashes_while_asked = 99
    with pytest.raises(ServiceError, match="a was started again meanwhile"):
        apply(host, "ready", "a", ready=READY)


@pytest.mark.parametrize("state", ["inactive", "failed", "activating"])
def test_a_unit_that_is_down_is_not_up(state: str) -> None:
    """Whatever the command says."""
    with pytest.raises(ServiceError, match=f"a is {state}"):
        apply(Host(a=(state, "enabled")), "ready", "a", ready=READY)


@pytest.mark.parametrize("state", ["started", "disabled", "restarted"])
def test_check_mode_predicts_and_touches_nothing(state: str) -> None:
    """Also for a unit that the host does not have yet."""
    host = Host(a=("active", "disabled"))
    units = {"started": ["a", "new"], "disabled": ["a"], "restarted": ["a", "new"]}[state]
    assert apply(host, state, "a", "new", check=True) == units
    assert host.ran == []


def test_systemctl_that_fails_is_an_error() -> None:
    """Its own message is shown."""
    with pytest.raises(SystemdError, match="unknown"):
        Services({"units": ["a"]}, lambda argv: (1, "", "unknown operation\n"), check=False)


PROOFS = {unit: ["prove", unit] for unit in "abc"}


def test_each_unit_proves_that_it_works_before_the_next_one_is_restarted() -> None:
    host = Host(a=("active", "enabled"), b=("active", "enabled"), c=("active", "enabled"))
    assert apply(host, "restarted", "a", "b", ready_by_unit=PROOFS) == ["a", "b"]
    assert host.proved == ["a", "b"]
    host.sick.add("a")
    with pytest.raises(ServiceError, match="a is not well"):
        apply(host, "restarted", "a", "b", ready_by_unit=PROOFS)
    assert host.ran[-1] == "restart a", "the next one was not touched"


def test_units_that_are_started_prove_it_too() -> None:
    host = Host(a=("active", "enabled"), b=("inactive", "enabled"), c=("inactive", "enabled"))
    apply(host, "started", "a", "b", "c", ready_by_unit=PROOFS)
    assert host.proved == ["b", "c"]


def test_how_long_a_restart_took_is_told() -> None:
    host = Host(a=("active", "enabled"))
    services = Services(
        {"units": ["a"], "state": "restarted", "ready": [], "ready_by_unit": PROOFS, "ready_retries": 0}
        | {"ready_delay": 0, "journal_lines": 5, "keep_going": False, "enable_only": []},
        host,
        check=False,
    )
    services.apply()
    assert services.seconds["a"].keys() == {"stop", "start", "ready"}


def test_units_are_taken_down_and_stay_enabled() -> None:
    host = Host(a=("active", "enabled"), b=("inactive", "enabled"))
    assert apply(host, "stopped", "a", "b") == ["a"]
    assert host.ran == ["stop a"]
    assert apply(host, "stopped", "a", "b") == []


def test_all_units_are_restarted_though_one_fails() -> None:
    host = Host(a=("active", "enabled"), b=("active", "enabled"))
    host.sick.add("a")
    with pytest.raises(ServiceError, match="a is not well"):
        apply(host, "restarted", "a", "b", ready_by_unit=PROOFS, keep_going=True)
    assert host.ran == ["restart a", "restart b"]


def test_who_is_read_by_nobody_is_abandoned() -> None:
    """A pipe whose reader is gone, as after Ctrl-C on the controller; no file, and none that is read."""
    reader, writer = os.pipe()
    assert not is_abandoned(writer)
    os.close(reader)
    assert is_abandoned(writer)
    os.close(writer)
    with tempfile.TemporaryFile() as file:
        assert not is_abandoned(file.fileno())


def test_a_module_whose_run_was_interrupted_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And restarts no more units: the next run does."""
    host = Host(**{"a.service": ("active", "enabled"), "b.service": ("active", "enabled")})
    host.pings_until_ready = 1000
    monkeypatch.setattr(
        "ansible_collections.fleet.celery.plugins.modules.fleet_service.is_abandoned", lambda: True
    )
    with pytest.raises(ServiceError, match="the run that waited for this has ended"):
        apply(host, "restarted", *host.units, ready=READY, ready_retries=1000)
    assert host.ran == ["restart a.service"]
