# SPDX-License-Identifier: MIT
"""Celery's defaults of settings, in which each has its present name and an old one, and of sending."""

from __future__ import annotations

from typing import Any, cast

from celery.app.defaults import _OLD_DEFAULTS, _TO_OLD_KEY, DEFAULTS


def set_default(name: str, value: Any) -> None:
    """Change the default of a setting, under both of its names; do nothing if Celery has no such setting."""
    if name in DEFAULTS:
        DEFAULTS[name] = value
        _OLD_DEFAULTS[_TO_OLD_KEY[name]] = value


def spellings(name: str) -> list[str]:
    """Return the names under which Celery takes a setting: the present one, then the old one."""
    return [name, _TO_OLD_KEY.get(name, name)]


def sending_options(task: Any) -> dict[str, Any]:
    """Return the options with which a task is sent if its caller gives none: queue, priority and others."""
    return cast("dict[str, Any]", task._get_exec_options())
