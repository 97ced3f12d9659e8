# SPDX-License-Identifier: MIT
"""The tables of docs/your-app.md say what becomes of each setting of Celery's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleet_runtime.bootstrap.overrides import ENFORCED, POOL_FIRST, POOL_LAST, UNUSED

from tests.unit import settings_table

if TYPE_CHECKING:
    import pytest


def test_the_page_has_what_becomes_of_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no setting is dropped unsaid, of which the page could not be made. `make docs` writes it."""
    for name, value in settings_table.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)  # to be forgotten after the test
    for name in ("CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.setenv(name, "")
    text = settings_table.PAGE.read_text(encoding="utf-8")
    assert settings_table.page(text) == text


def test_what_a_nodes_command_line_says_is_known() -> None:
    """Each setting that it decides, always or for a pool that says it, is told of."""
    always, sometimes = settings_table.on_command_line()
    assert always <= {*ENFORCED, *UNUSED, *POOL_LAST}
    assert {
        name: option for name, option in sometimes.items() if name not in {*ENFORCED, *UNUSED}
    } == POOL_FIRST
