# SPDX-License-Identifier: MIT
"""Plugins load without the libraries that they need, as `ansible-doc` loads them, and say what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COLLECTIONS = Path(__file__).parents[2] / ".ansible" / "collections"
# Python imports no module for which sys.modules has None.
BEGIN = """
import sys
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader([sys.argv[2]])
sys.modules[sys.argv[1]] = None
"""
FILTER = """
from ansible_collections.fleet.celery.plugins.action import pki_certificate
from ansible_collections.fleet.celery.plugins.filter import pki
for name in ("pki_constraints", "pki_opens"):
    try:
        pki.FilterModule().filters()[name](*["text"] * (1 + (name == "pki_opens")))
    except pki.pki_certificate.PkiError as error:
        print(error)
"""
MODULE = """
from ansible.module_utils.testing import patch_module_args
from ansible_collections.fleet.celery.plugins.modules import app_release
given = dict.fromkeys(("source", "runtime_source", "cache_dir", "python"), "/nowhere")
with patch_module_args({"state": "identified", **given}):
    app_release.main()
"""


@pytest.mark.parametrize(
    ("library", "code", "times"), [("cryptography", FILTER, 2), ("packaging", MODULE, 1)]
)
def test_a_missing_library_is_named(library: str, code: str, times: int) -> None:
    command = [sys.executable, "-c", BEGIN + code, library, str(COLLECTIONS)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    said = f"Failed to import the required Python library ({library})"
    assert done.stdout.count(said) == times, done.stdout + done.stderr
