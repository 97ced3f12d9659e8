# SPDX-License-Identifier: MIT
"""The names inside Celery, kombu, billiard and redis-py that the runtime uses are declared and verified.

A red test here after an update of one of the packages is a question to answer before the new version may be
supported: docs/compatibility.md says how.
"""

from __future__ import annotations

import ast
from collections import Counter
from functools import wraps
from importlib.metadata import version
from typing import Any

import billiard
import celery
import hiredis
import kombu
import pytest
import redis
from celery.worker.pidbox import Pidbox
from fleet_runtime.compat import surface
from fleet_runtime.compat.surface import SURFACE, Feature, Kind, Name, find, may_replace, resolve
from fleet_runtime.compat.versions import RELEASES, is_supported, supported
from fleet_runtime.errors import FleetError
from fleet_runtime.transport import broadcast, channel

from fleet_testing import foreign
from fleet_testing.foreign import File, Use

# Where private names of the packages may be. Others ask these, or compat.
ROOMS = {"compat", "transport", "prefork", "worker", "recovery"}
BY_ATTRIBUTE: dict[str, list[Name]] = {}
for one in SURFACE:
    BY_ATTRIBUTE.setdefault(one.attribute, []).append(one)


def lines(uses: list[Use]) -> str:
    """Return uses as a message, one a line."""
    return "\n".join(["", *map(str, uses)])


# --- the list beside the installed packages ---


@pytest.mark.parametrize("package", RELEASES)
def test_the_installed_versions_are_those_that_were_verified(package: str) -> None:
    """The tests below say nothing of other versions."""
    assert is_supported(package, version(package))


@pytest.mark.parametrize("name", SURFACE, ids=str)
def test_a_name_is_as_verified(name: Name) -> None:
    """It is there; it has the same parameters, and what is replaced or copied has the same source."""
    assert name.package in RELEASES, "the versions of its package are not in versions.RELEASES"
    if not name.is_expected:
        if name.bounds.startswith("+"):
            assert not foreign.exists(name), f"{name} is there: its bounds are wrong"
        return
    assert foreign.exists(name), f"{name} is gone"
    if name.parameters is not None and not name.seen_in:
        function = foreign.original_of(name)
        assert surface.parameters_of(function) in name.parameters.split(" | "), f"{name} has other parameters"
    if name.hashes:
        found = foreign.hash_of(foreign.original_of(name))
        assert found in name.hashes, f"the source of {name} is another one, with the hash {found}"


def test_what_is_replaced_or_copied_has_a_hash() -> None:
    """Only a function of Python has a source: three texts, a class and `time.sleep` have none."""
    without = {str(name) for name in SURFACE if name.kind in {Kind.COPIED, Kind.REPLACE} and not name.hashes}
    assert without == {
        "celery.app.trace.LOG_RECEIVED",
        "celery.app.trace.LOG_SUCCESS",
        "celery.concurrency.prefork:TaskPool.Pool",
        "kombu.utils.functional.sleep",
    }


@pytest.mark.parametrize("line", ["call prefork: push(self", "call prefork: push = 12", "use prefork: push"])
def test_a_line_of_another_format_is_refused(line: str) -> None:
    """A name that is left out would not be compared."""
    with pytest.raises(ValueError, match=r"push|use"):
        list(surface.parse(f"celery.utils.threads:_LocalStack\n  {line}"))


def test_a_name_is_declared_once() -> None:
    """The second entry would never be looked at."""
    assert [name for name, count in Counter(map(str, SURFACE)).items() if count > 1] == []


# --- the list beside the runtime's source ---


def test_each_private_name_that_is_used_is_declared() -> None:
    """Each in the room that uses it."""
    undeclared = [
        use
        for use in foreign.private_uses()
        if not any(use.room in name.rooms.split() for name in BY_ATTRIBUTE.get(use.attribute, ()))
    ]
    assert not undeclared, lines(undeclared)


def test_each_override_is_declared() -> None:
    """With a class from which the runtime's own inherits it."""
    undeclared = [
        use
        for use, cls in foreign.overrides()
        if not any(
            use.room in name.rooms.split()
            and _is_base(resolve(name.owner), cls)
            and name.kind is not Kind.READ
            for name in BY_ATTRIBUTE.get(use.attribute, ())
        )
    ]
    assert not undeclared, lines(undeclared)


def _is_base(owner: Any, cls: type[Any]) -> bool:
    """Return whether an owner is a class from which another one inherits."""
    return isinstance(owner, type) and issubclass(cls, owner)


def test_each_assignment_to_a_package_is_declared() -> None:
    """As what replaces a name, or writes to it."""
    changed = {(name.attribute, room) for name in SURFACE for room in name.rooms.split()
               if name.kind in {Kind.REPLACE, Kind.WRITE}}  # fmt: skip
    undeclared = [use for use in foreign.assignments() if (use.attribute, use.room) not in changed]
    assert not undeclared, lines(undeclared)


def test_each_declared_name_is_used() -> None:
    """In each room that it is declared for; of a body that is copied, a comment has its name."""
    private = {(use.attribute, use.room) for use in foreign.private_uses()}
    private |= {(use.attribute, use.room) for use, _ in foreign.overrides()}
    unused = []
    for name in filter(lambda name: name.is_expected, SURFACE):
        is_private = name.attribute.startswith("_") and not foreign.DUNDER.fullmatch(name.attribute)
        for room in name.rooms.split():
            # The room may have a private name of its own that is the same: then its words decide.
            by_word = not is_private or name.attribute in foreign.own_names()[room]
            used = foreign.mentioned(room) if by_word else {name for name, where in private if where == room}
            if name.attribute not in used:
                unused.append(f"{name} in {room}")
    assert not unused


def test_private_names_are_in_few_rooms() -> None:
    """A later version of a package is then a matter of these rooms."""
    elsewhere = [
        use for use in foreign.private_uses() if use.room not in ROOMS and use.attribute != "__call__"
    ]
    assert not elsewhere, lines(elsewhere)
    # redis-py's Script is called by its method of Python's data model, which is replaced.
    assert find("redis.commands.core:Script", "__call__").rooms == "broker"


# --- the search itself: what it finds, and what it leaves out ---

SAMPLE = """
import logging
from celery._state import get_current_task
from celery.app.defaults import _OLD_DEFAULTS
from kombu.utils import functional
from fleet_runtime import once

def use(channel, own):
    channel._closing
    own._mine
    once._current_app
    logging._handlerList
    getattr(channel, "_pool", None)
    functional.sleep = None
    channel.__class__ = None
    own.__name__

class Channel:
    def mine(self):
        return self._queue_cycle, self._mine, super()._size("x")
"""


def test_the_search_finds_each_way_to_use_a_private_name() -> None:
    """And neither the runtime's own names nor Python's."""
    file = File("transport/channel.py", ast.parse(SAMPLE), channel)
    found = [use.attribute for use in file.private_uses(frozenset({"_mine"}))]
    assert sorted(found) == [
        "_OLD_DEFAULTS", "__class__", "_closing", "_pool", "_queue_cycle", "_size", "get_current_task",
    ]  # fmt: skip
    assert [use.attribute for use in file.assignments()] == ["sleep"]


def test_the_search_reads_the_whole_runtime() -> None:
    """An empty search would pass all tests above."""
    assert {use.room for use in foreign.private_uses()} >= ROOMS
    assert len(foreign.private_uses()) > 150
    assert len(foreign.overrides()) > 80


# --- what start-up checks and patches ask ---


@pytest.fixture
def on_message(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that patches replace, as it is in Celery."""
    original = foreign.original_of(find("celery.worker.pidbox:Pidbox", "on_message"))
    monkeypatch.setattr(Pidbox, "on_message", original)
    return original


def ask() -> Any:
    """Ask whether it may be replaced."""
    return may_replace("celery.worker.pidbox:Pidbox", "on_message")


def test_what_is_as_verified_may_be_replaced(on_message: Any) -> None:
    """The patch gets the original."""
    assert ask() is on_message


def wrapped(function: Any) -> Any:
    """Return a function as instrumentation wraps it, such as OpenTelemetry's."""

    @wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return wrapper


def test_what_is_replaced_stays(monkeypatch: pytest.MonkeyPatch, on_message: Any) -> None:
    """A second patch on top would do everything twice, also with a wrapper of another package between."""
    broadcast.patch_control(may_replace)
    assert Pidbox.on_message is not on_message
    assert ask() is None
    monkeypatch.setattr(Pidbox, "on_message", wrapped(Pidbox.on_message))
    assert ask() is None


def test_what_another_package_has_wrapped_is_patched(
    monkeypatch: pytest.MonkeyPatch, on_message: Any
) -> None:
    """The level is not lowered by it, nor is a node refused."""
    wrapper = wrapped(on_message)
    monkeypatch.setattr(Pidbox, "on_message", wrapper)
    assert ask() is wrapper
    assert not [*surface.problems()]


def test_what_another_package_has_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, by the patch and by `fleet check`."""
    monkeypatch.setattr(Pidbox, "on_message", lambda pidbox, body: None)
    with pytest.raises(FleetError) as refused:
        ask()
    said = str(refused.value)
    assert said.startswith(
        f"Another package (the module {__name__}) has replaced celery.worker.pidbox:Pidbox.on_message, and "
        f"the level full relies on that of {supported('celery')}: "
    )
    assert "celery_app_level: standard" in said
    assert [*surface.problems()] == [said]


def test_the_installed_packages_have_the_level_full() -> None:
    """After all patches of this test session, too."""
    assert not [*surface.problems()]


@pytest.mark.parametrize("package", [celery, kombu, billiard, redis], ids=lambda package: package.__name__)
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, package: Any) -> None:
    """In one sentence: what there is, what is supported, and what to do."""
    name = package.__name__
    monkeypatch.setattr(package, "__version__", "9.9.0")
    assert [*surface.problems()] == [
        f"This is {name} 9.9.0, and the level full supports {supported(name)} only: pin one of these in the "
        "app's lock, or accept Celery's own transport, pool and result backend with celery_app_level: "
        "standard (FLEET_LEVEL=standard)."
    ]


def test_a_hiredis_without_notifications_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node would take each notification for the reply to a command."""
    monkeypatch.setattr(hiredis, "__version__", "3.1.1")
    (sentence,) = surface.problems()
    assert sentence.startswith("This is hiredis 3.1.1, and the level full supports hiredis 3.2 and later")


def test_other_versions_are_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of the check names all of them."""
    monkeypatch.setattr(celery, "__version__", "5.4.0")
    monkeypatch.setattr(kombu, "__version__", "5.8.0rc1")
    (sentence,) = surface.problems()
    assert sentence.startswith(
        "This is celery 5.4.0 and kombu 5.8.0rc1, and the level full supports celery 5.5.0 to 5.7.0 and "
    )


def test_only_what_is_declared_as_replaced_may_be() -> None:
    """A patch that is not declared is a mistake."""
    with pytest.raises(LookupError, match="not in the surface"):
        may_replace("celery.worker.pidbox:Pidbox", "shutdown")
    with pytest.raises(LookupError, match="must not be replaced"):
        may_replace("kombu.transport.redis:Channel", "_lookup")


@pytest.mark.parametrize("feature", Feature)
def test_a_feature_relies_on_functions_with_parameters(feature: Feature) -> None:
    """They are what a start-up check can compare."""
    names = [name for name in SURFACE if name.feature is feature]
    assert names
    assert all(name.parameters for name in names)
    surface.require(feature)
