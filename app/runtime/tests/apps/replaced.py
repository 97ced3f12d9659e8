# SPDX-License-Identifier: MIT
"""Prints which names of Celery, kombu, billiard and redis-py are replaced in a process of the fleet, as JSON.

Usage: python replaced.py [pool], in the environment of the process. With a kind of pool it creates a worker.
"""

import json
import sys
from typing import Any

from celery.worker import control
from celery.worker.control import Panel
from fleet_runtime.compat.surface import SURFACE, Kind, resolve

NAMES = [name for name in SURFACE if name.kind is Kind.REPLACE and name.owner != "celery.concurrency.gevent"]
COMMANDS = ("add_consumer", "cancel_consumer", "revoke", "terminate", "revoke_by_stamped_headers")


def found() -> dict[str, Any]:
    """Return what each name is now."""
    names = {str(name): getattr(resolve(name.owner), name.attribute, None) for name in NAMES}
    return {**names, **{f"command {name}": Panel.data[name] for name in COMMANDS}}


def main() -> None:
    """Compare before and after the app is loaded, and the worker created."""
    before = found()
    from fleet_runtime.app import app

    transport = app.connection_for_read().transport
    if pool := "".join(sys.argv[1:]):
        app.Worker(hostname="replaced@test", pool=pool, concurrency=1, loglevel="ERROR")
    after = found()
    assert control.revoke is before["command revoke"]
    print(json.dumps({
        "replaced": sorted(name for name, value in after.items() if value is not before[name]),
        "classes": [f"{one.__module__}.{one.__qualname__}" for one in (
            type(transport), transport.Channel, transport.Channel.QoS, type(app.backend)
        )],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
