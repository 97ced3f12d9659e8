# SPDX-License-Identifier: MIT
"""Writes what a run changed to the file that LAB_RECAP names, for programs that have to know it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: lab_recap
type: aggregate
short_description: Write what a run changed as JSON
description: The file that the environment variable LAB_RECAP names gets a [host, task] for each change.
"""


class CallbackModule(CallbackBase):
    """Collect the changed tasks of a run."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "lab_recap"
    CALLBACK_NEEDS_ENABLED = False

    def __init__(self) -> None:
        """Start with nothing changed."""
        super().__init__()
        self.changed: list[tuple[str, str]] = []

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note a changed task."""
        if result.is_changed():
            self.changed.append((result.host.get_name(), result.task.get_name().strip()))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write the list at the end of the run."""
        if path := os.environ.get("LAB_RECAP"):
            Path(path).write_text(json.dumps(self.changed))
