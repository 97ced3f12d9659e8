# SPDX-License-Identifier: MIT
"""What the tests of roles and plugins share: the collection is found as Ansible finds it."""

from __future__ import annotations

from pathlib import Path

from ansible.plugins.loader import init_plugin_loader

# From here on ansible_collections.fleet.celery is this clone, wherever the tests are started.
init_plugin_loader([str(Path(__file__).parent / ".ansible" / "collections")])
