# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that kombu has in Redis, and the leases of nodes, for modules that run on its host, without the app.

tests/unit/test_fleet_keys.py compares the names with kombu's. Those of the fleet are in runtime_keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils.runtime_keys import LEASES

if TYPE_CHECKING:
    from typing import Any

# The ends of a queue's lists, one for each priority that Celery has on Redis.
PRIORITIES = ("", *(f"\x06\x16{priority}" for priority in range(1, 10)))

# The prefix of the set of the bindings of each exchange.
BINDING = "_kombu.binding."

# The exchange of remote control, the sets of who is bound to it, and what is between the routing key, the
# pattern and the queue of such a binding.
PIDBOX = "celery.pidbox"
BINDINGS = (f"{BINDING}{PIDBOX}", f"_kombu.binding_permanent.{PIDBOX}")
SEPARATOR = "\x06\x16"


def leases(client: Any) -> dict[str, float]:
    """Return when the lease of each node of the fleet ends, in seconds of Redis's clock."""
    return dict(client.zrange(LEASES, 0, -1, withscores=True))


def living(client: Any) -> list[str]:
    """Return the nodes whose lease goes on."""
    seconds, _unused = client.time()
    return [node for node, ends in leases(client).items() if ends > seconds]
