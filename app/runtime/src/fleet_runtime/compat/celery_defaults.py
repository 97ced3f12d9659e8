# SPDX-License-Identifier: MIT
"""Celery's table of defaults, in which each setting has its present name and an old one."""

from __future__ import annotations

from typing import Any

from celery.app.defaults import _OLD_DEFAULTS, _TO_OLD_KEY, DEFAULTS


def set_default(name: str, value: Any) -> None:
    """Change the default of a setting, under both of its names; do nothing if Celery has no such setting."""
    if name in DEFAULTS:
        DEFAULTS[name] = value
        _OLD_DEFAULTS[_TO_OLD_KEY[name]] = value


def spellings(name: str) -> list[str]:
    """Return the names under which Celery takes a setting: the present one, then the old one."""
    return [name, _TO_OLD_KEY.get(name, name)]
