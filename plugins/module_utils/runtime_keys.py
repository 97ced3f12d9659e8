# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Written by `make functions` from the runtime. Do not edit it.
"""Names of the runtime's keys in Redis. The ACL of Redis names them, too.

The first three are kombu's. Here each node has its own, where kombu has one for all. Some values have older
words than their constants: with another value, the data under the old one would be lost.
"""

from __future__ import annotations

#: Unacknowledged messages of a node: hash of delivery tag -> JSON [message, exchange, routing key]; sorted
#: set of delivery tag -> time of the fetch; lock of the visibility-timeout sweep.
UNACKED = "unacked"
UNACKED_INDEX = "unacked_index"
UNACKED_MUTEX = "unacked_mutex"

#: Sorted set of node -> end of its lease, in seconds of the clock of Redis.
LEASES = "fleet:leases"
#: Hash of node -> JSON of the facts that it reports.
NODES = "fleet:nodes"
#: Hash of node -> JSON of its last start and stop, and of its crashes.
HISTORY = "fleet:history"
#: Hash of node in the inventory -> JSON {queues, since}. Under IDLE_QUEUES there is a list of the queues that
#: no node is to consume, because their pool has `nodes: 0`. The playbooks write it (module fleet_wanted).
WANTED, IDLE_QUEUES = "fleet:wanted", "idle queues"
#: JSON {scheduler, since} of the Beat in the inventory, if there is one. The playbooks write it, too.
WANTED_BEAT = "fleet:beat:wanted"
#: Expires unless a Beat renews it whose schedule is in a file. RedBeat has its own lock.
BEAT_LEASE = "fleet:beat:lease"
#: Sorted set of id -> time of death; hash of id -> JSON of the dead letter.
DEAD = "fleet:dead"
DEAD_LETTERS = "fleet:dead:letters"

#: Sorted sets of revoked task ids, and of revoked stamps as JSON [header, stamp] -> time of the revocation,
#: in seconds of the clock of Redis.
REVOKED = "fleet:revoked"
REVOKED_STAMPS = "fleet:revoked:stamps"

#: RedBeat's keys: their prefix, and the lock of the Beat that is active.
REDBEAT_PREFIX, REDBEAT_LOCK = "redbeat:", "redbeat::lock"

#: Hash of host -> JSON of when and why it was drained.
DRAINED = "fleet:drained"

#: Prefixes: queues of self-tests; counters of deliveries that crashed their worker; keys of `once`.
SELF_TEST_PREFIX = "fleet:proof:"
CRASHES_PREFIX = "fleet:losses:"
ONCE_PREFIX = "fleet:once:"


def unacked(node: str) -> str:
    """Return the hash of the unacknowledged messages of a node."""
    return f"{UNACKED}:{node}"


def unacked_index(node: str) -> str:
    """Return the sorted set of the times at which a node fetched its unacknowledged messages."""
    return f"{UNACKED_INDEX}:{node}"


def unacked_mutex(node: str) -> str:
    """Return the lock of the visibility-timeout sweep of a node."""
    return f"{UNACKED_MUTEX}:{node}"


def self_test_queue(node: str) -> str:
    """Return the queue of a node's self-test. The node consumes nothing else until it is ready."""
    return f"{SELF_TEST_PREFIX}{node}"


def crashes(delivery_tag: str) -> str:
    """Return the counter of the deliveries of a message that crashed their worker."""
    return f"{CRASHES_PREFIX}{delivery_tag}"


def once(key: str) -> str:
    """Return the key in Redis of a key of `once`."""
    return f"{ONCE_PREFIX}{key}"


# broker/scripts/forget_node.lua
FORGET_NODE = """\
-- Removes all keys of a node that has no unacknowledged message.
--
-- KEYS[1]  leases: sorted set of node -> end of its lease
-- KEYS[2]  nodes: hash of node -> JSON of its facts
-- KEYS[3]  unacked, of that node
-- KEYS[4]...KEYS[6]  unacked_index, unacked_mutex and the queue of its self-test
-- ARGV[1]  node
-- ARGV[2]  "1" if the node must be dead
-- Returns 1 if the node was removed, 0 if it has messages, or lives and must be dead.
local leases, nodes, unacked, index, mutex, self_test = unpack(KEYS)
if ARGV[2] == '1' then
  local time = redis.call('TIME')
  local ends = redis.call('ZSCORE', leases, ARGV[1])
  if ends and tonumber(ends) > time[1] + time[2] / 1000000 then
    return 0
  end
end
if redis.call('HLEN', unacked) > 0 then
  return 0
end
redis.call('DEL', index, mutex, self_test)
redis.call('HDEL', nodes, ARGV[1])
redis.call('ZREM', leases, ARGV[1])
return 1
"""
