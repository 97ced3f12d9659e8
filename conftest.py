# SPDX-License-Identifier: MIT
"""What all tests share: the collection is found as Ansible finds it, and some tests run only on request."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.plugins.loader import init_plugin_loader

# From here on ansible_collections.fleet.celery is this clone, wherever the tests are started.
init_plugin_loader([str(Path(__file__).parent / ".ansible" / "collections")])

ON_REQUEST = {  # marker -> what its option does
    "long": "run what takes minutes, or happens seldom, too",
    "second_change": "run the plays that leave the fleet otherwise than the inventory has it, too",
}


def option(marker: str) -> str:
    """Return the option that asks for the tests with a marker."""
    return f"--{marker.replace('_', '-')}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let who runs the tests ask for more."""
    for marker, what in ON_REQUEST.items():
        parser.addoption(option(marker), action="store_true", help=what)


def pytest_configure(config: pytest.Config) -> None:
    """Announce the markers."""
    for marker in ON_REQUEST:
        config.addinivalue_line("markers", f"{marker}: only with {option(marker)}")
    config.addinivalue_line("markers", "server: run with other servers, too (make servers)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what nobody asked for."""
    unasked = [marker for marker in ON_REQUEST if not config.getoption(marker)]
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in unasked)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
