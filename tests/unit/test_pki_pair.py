# SPDX-License-Identifier: MIT
"""The module pki_pair: a key and its certificate change together, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.certificates import belong_together, certificate_of
from ansible_collections.fleet.celery.plugins.modules import pki_pair

from tests.unit.test_pki import write_certificate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a pair, and the key of the next one, whose certificate is in new.crt."""
    write_certificate(tmp_path, 90, "host1")
    (tmp_path / "host.crt").rename(tmp_path / "new.crt")
    (tmp_path / "host.key").rename(tmp_path / "host.key.next")
    (tmp_path / "host.key.next").chmod(0o640)
    write_certificate(tmp_path, 80, "host1")
    return tmp_path


def put(directory: Path, content: str) -> None:
    """Run the module."""
    key, certificate = str(directory / "host.key"), str(directory / "host.crt")
    pki_pair.put(key=key, next_key=f"{key}.next", certificate=certificate, content=content)


def test_the_pair_is_replaced(directory: Path) -> None:
    new = (directory / "new.crt").read_text()
    put(directory, new)
    assert (directory / "host.crt").read_text() == new
    assert belong_together(str(directory / "host.crt"), str(directory / "host.key"))
    assert (directory / "host.crt").stat().st_mode & 0o777 == 0o644
    assert (directory / "host.key").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in directory.iterdir()) == ["host.crt", "host.key", "new.crt"]


def test_a_certificate_of_another_key_is_refused(directory: Path) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(pki_pair.PairError, match="does not belong to"):
        put(directory, (directory / "host.crt").read_text())
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_the_first_certificate_of_a_file_is_the_hosts(directory: Path) -> None:
    own, other = ((directory / name).read_text() for name in ("host.crt", "new.crt"))
    chain = directory / "chain.crt"
    chain.write_text(f"a comment\n{own}{other}")
    assert certificate_of(str(chain)) == certificate_of(str(directory / "host.crt"))
    chain.write_text("none")
    with pytest.raises(ValueError, match="has no certificate"):
        certificate_of(str(chain))
