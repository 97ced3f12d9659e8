# SPDX-License-Identifier: MIT
"""The module redis_upgrade, state versions: which version a host has, and which it should get."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.debian_packages import (
    Package,
    VersionError,
    decide,
    news,
    parse_madison,
)
from ansible_collections.fleet.celery.plugins.modules import redis_upgrade

pytestmark = pytest.mark.skipif(not shutil.which("dpkg"), reason="this is no Debian")

OLD, NEW = "5:7.0.15-1~deb12u7", "5:7.0.15-1~deb12u10"
NAMES = ("redis-server", "redis-tools")


def packages(
    installed: str = OLD, candidate: str = NEW, *, available: tuple[str, ...] = (NEW, OLD), whole: bool = True
) -> list[Package]:
    """Return the two packages, both as a test wants them."""
    return [Package(name, installed, whole, candidate, list(available)) for name in NAMES]


def test_a_newer_candidate_is_due() -> None:
    found = decide(packages(), "")
    assert (found["due"], found["installed"], found["wanted"], found["older"]) == (True, OLD, NEW, "no")
    assert found["targets"] == [f"redis-server={NEW}", f"redis-tools={NEW}"]
    assert found["returns"] == [f"redis-server={OLD}", f"redis-tools={OLD}"]


def told(packages: list[Package], version: str = "") -> str:
    """Return what an operator is told."""
    return news(decide(packages, version), "redis-server", version, "playbooks/x.yml")


def test_a_security_update_is_named() -> None:
    """One that is held back is told of: nothing else would install it."""
    assert not decide(packages(), "")["security"]
    assert "has version 5:7.0.15-1~deb12u10. playbooks/x.yml installs it." in told(packages())
    urgent = [replace(one, security=(NEW,)) for one in packages()]
    assert decide(urgent, "")["security"]
    assert "has the security update 5:7" in told(urgent)
    assert not decide([replace(one, security=(NEW,)) for one in packages(NEW)], "")["security"]
    assert told(packages(NEW)) == ""


def test_a_newer_version_is_told_of_though_another_is_asked_for() -> None:
    """A version that the inventory names would else hide each security update for ever."""
    urgent = [replace(one, security=(NEW,)) for one in packages()]
    said = told(urgent, OLD)
    assert f"the archive has the security update {NEW}." in said
    assert f"{OLD} is asked for, so playbooks/x.yml does not install it" in said
    assert told(urgent, NEW).endswith("playbooks/x.yml installs it.")
    assert told(packages(NEW), NEW) == ""


def test_what_is_not_as_it_is_asked_for_is_told_of() -> None:
    assert f"redis-server {NEW} is not as it should be, {OLD}." in told(packages(NEW), OLD)
    assert "playbooks/x.yml mends it." in told(packages(NEW, whole=False))


@pytest.mark.parametrize("version", ["", OLD, NEW])
def test_the_module_warns(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """And gives the same result as without."""
    warnings: list[str] = []
    results: list[dict[str, object]] = []

    class Module:
        """A stand-in for Ansible's."""

        def __init__(self, **_: object) -> None:
            self.params = {
                "state": "versions",
                "packages": [*NAMES],
                "version": version,
                "warn": "playbooks/x.yml",
            }
            self.warn = warnings.append

        def exit_json(self, **result: object) -> None:
            results.append(result)
            raise SystemExit

    monkeypatch.setattr(redis_upgrade, "AnsibleModule", Module)
    monkeypatch.setattr(redis_upgrade, "look", lambda _: packages())
    with pytest.raises(SystemExit):
        redis_upgrade.main()
    assert results == [decide(packages(), version)]
    assert len(warnings) == 1
    assert NEW in warnings[0]


def test_the_archive_of_security_updates_is_known() -> None:
    """By its name, of what apt-cache prints on Debian and on Ubuntu."""
    text = """\
redis-server | 5:2 | http://security.debian.org/debian-security bookworm-security/main amd64 Packages
redis-server | 5:1 | http://deb.debian.org/debian bookworm/main amd64 Packages
redis-tools | 5:2 | http://security.ubuntu.com/ubuntu noble-security/universe amd64 Packages
redis-tools | 5:3 | http://archive.ubuntu.com/ubuntu noble-updates/universe amd64 Packages
"""
    assert parse_madison(text, "-security/") == {"redis-server": ["5:2"], "redis-tools": ["5:2"]}
    assert parse_madison(text) == {"redis-server": ["5:2", "5:1"], "redis-tools": ["5:2", "5:3"]}


def test_the_newest_is_not_due() -> None:
    assert not decide(packages(NEW), "")["due"]


def test_what_dpkg_was_interrupted_in_is_due() -> None:
    found = decide(packages(NEW, whole=False), "")
    assert (found["due"], found["unfinished"]) == (True, True)


def test_one_that_stayed_behind_is_due() -> None:
    mixed = [packages(NEW)[0], packages(OLD)[1]]
    assert decide(mixed, "")["due"]


def test_a_version_may_be_named() -> None:
    found = decide(packages(), OLD)
    assert (found["due"], found["newer"], found["newest"]) == (False, True, NEW)
    assert decide(packages(NEW), OLD)["older"] == "revision"
    assert decide(packages("5:8.0.2-3", available=(OLD,)), OLD)["older"] == "upstream"


def test_a_version_that_nobody_has_is_refused() -> None:
    with pytest.raises(VersionError, match=f"no redis-server 5:9.*It has: {NEW}"):
        decide(packages(), "5:9")


def test_a_host_without_the_package_is_refused() -> None:
    with pytest.raises(VersionError, match=r"Run site\.yml first"):
        decide(packages(""), "")


def test_what_the_archive_has_no_more_cannot_be_had_again() -> None:
    assert decide(packages(available=(NEW,)), "")["returns"] == []
