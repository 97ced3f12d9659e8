# SPDX-License-Identifier: MIT
"""The module pki_host: what it finds lacking on a host."""

from __future__ import annotations

import grp
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.modules import pki_host

from tests.unit.test_pki import write_certificate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="root's files are looked at")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of a host that problems nothing."""
    tls = tmp_path / "tls"
    tls.mkdir()
    write_certificate(tls, 90, "host1")
    (tls / "ca.crt").write_text("the authority\n")
    for name, mode in ((".", 0o755), ("ca.crt", 0o644), ("host.crt", 0o644), ("host.key", 0o640)):
        (tls / name).chmod(mode)
    return tls


def problems(directory: Path, **given: Any) -> list[str]:
    """Return what the module finds, without the directory's name."""
    params = {
        "directory": str(directory),
        "group": grp.getgrgid(0).gr_name,
        "packages": [],
        "key": str(directory / "host.key"),
        "certificate": str(directory / "host.crt"),
        "contents": {
            str(directory / "ca.crt"): "the authority\n",
            str(directory / "host.crt"): (directory / "host.crt").read_text(),
        },
    }
    return [found.replace(str(directory), "tls") for found in pki_host.problems(params | given)]


def test_a_whole_host_lacks_nothing(directory: Path) -> None:
    assert problems(directory) == []


def test_what_is_changed_is_found(directory: Path) -> None:
    (directory / "ca.crt").write_text("another authority\n")
    (directory / "host.key").chmod(0o644)
    directory.chmod(0o700)
    assert problems(directory) == ["tls", "tls/host.key", "tls/ca.crt"]


def test_another_key_is_found(directory: Path) -> None:
    """No service could present the certificate with it."""
    (directory / "host.crt").rename(directory / "kept")
    write_certificate(directory, 90, "host1")
    shutil.move(directory / "kept", directory / "host.crt")
    (directory / "host.key").chmod(0o640)
    assert problems(directory) == ["a certificate for the key tls/host.key"]


def test_what_is_not_there_is_found(directory: Path) -> None:
    params: dict[str, Any] = {"packages": ["no-such-package"], "group": "no-such-group"}
    empty = directory / "empty"
    found = [
        one.replace(str(directory), "tls")
        for one in pki_host.problems(
            {
                "directory": str(empty),
                "key": str(empty / "host.key"),
                "certificate": str(empty / "host.crt"),
                "contents": {str(empty / "host.crt"): ""},
                **params,
            }
        )
    ]
    assert found == [
        "the package no-such-package",
        "the group no-such-group",
        "tls/empty",
        "tls/empty/host.key",
        "tls/empty/host.crt",
        "a certificate for the key tls/empty/host.key",
    ]
