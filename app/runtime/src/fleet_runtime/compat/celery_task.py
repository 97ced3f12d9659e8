# SPDX-License-Identifier: MIT
"""Questions to a task of Celery's that Celery has no public name for."""

from __future__ import annotations

from typing import Any, cast


def sending_options(task: Any) -> dict[str, Any]:
    """Return the options with which a task is sent if its caller gives none: queue, priority and others."""
    return cast("dict[str, Any]", task._get_exec_options())
