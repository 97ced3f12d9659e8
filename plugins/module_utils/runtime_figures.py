# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Written by `make functions` from the runtime. Do not edit it.
"""Figures of fleet_runtime.settings and fleet_runtime.inspect.app_check, for preflight."""

from __future__ import annotations

SOFT_TIME_LIMIT_SHARE = 0.95  # of the time limit
LEAST_TASKS_PER_CHILD = 1000  # fewer cost much
# What settings cost, with tasks that do nothing.
TRACK_STARTED_COST = (
    "a second write to Redis for each task, three requests instead of two (measured on 2 cores, Celery 5.7)"
)
CHILD_COST = (
    "at 100 that costs short tasks 46 % more CPU, and halves their rate (measured on 2 cores, Celery 5.7)"
)
