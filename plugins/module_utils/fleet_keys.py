# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that the nodes have in Redis, for modules that run on its host, where the app is not installed.

They are the runtime's (fleet_runtime.broker.keys) and kombu's; tests/unit/test_fleet_keys.py compares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

# Of the fleet: when each node's lease ends, what nodes say of themselves, which hosts are drained, and what
# failed for good.
LEASES, NODES, DRAINED, DEAD = "fleet:leases", "fleet:nodes", "fleet:drained", "fleet:dead"
# Which nodes the inventory wants, its field with the queues that none is to consume, and when nodes started.
WANTED, IDLE_QUEUES, HISTORY = "fleet:wanted", "idle queues", "fleet:history"
BEAT = "beat"  # the field of WANTED with the scheduler of the Beat that is wanted

# Of each node, with a colon and its name behind: what it holds, and the task by which it proves itself.
UNACKED, UNACKED_INDEX, UNACKED_MUTEX, PROOFS = "unacked", "unacked_index", "unacked_mutex", "fleet:proof"

# The ends of a queue's lists, one for each priority that Celery has on Redis.
PRIORITIES = ("", *(f"\x06\x16{priority}" for priority in range(1, 10)))

# What the set of the bindings of each exchange begins with.
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
    seconds, _ = client.time()
    return [node for node, ends in leases(client).items() if ends > seconds]
