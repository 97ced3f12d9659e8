"""The module_util debian_packages: which packages a host lacks, as dpkg has it."""

from __future__ import annotations

import shutil

import pytest
from module_utils import debian_packages

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-query"), reason="this is no Debian")


@pytest.mark.parametrize(
    ("packages", "missing"),
    [
        ([], []),
        (["dpkg"], []),
        (["dpkg", "no-such-package"], ["no-such-package"]),
        (["no-such-package"], ["no-such-package"]),
    ],
)
def test_what_dpkg_does_not_have_is_missing(packages: list[str], missing: list[str]) -> None:
    """Also if it does not know a package at all."""
    assert debian_packages.missing(packages) == missing
