# SPDX-License-Identifier: MIT
"""Marks that several modules of tests share."""

from __future__ import annotations

import pytest

# What operators do while the fleet works: each takes minutes, so only `make test-all` runs it.
OPERATIONS = (
    pytest.mark.operations,
    pytest.mark.long,
    pytest.mark.group("redis"),
    pytest.mark.group("workers"),
)
