# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Written by `make functions` from the runtime. Do not edit it.
"""Names of the keys that the runtime has in Redis. Redis's ACL has them, too.

The first three are kombu's own, one set for each node in place of one for all.
"""

from __future__ import annotations

# What nodes hold: hash of delivery tag -> JSON [message, exchange, routing key], and when each was taken.
UNACKED = "unacked"
UNACKED_INDEX = "unacked_index"
UNACKED_MUTEX = "unacked_mutex"

# Sorted set of node -> when its lease ends, in seconds of Redis's own clock.
LEASES = "fleet:leases"
# Hash of node -> JSON of what it says of itself.
NODES = "fleet:nodes"
# Hash of node -> JSON of when it was started and stopped last, and how often it fell.
HISTORY = "fleet:history"
# Hash of node that the inventory wants -> JSON {queues, since}; under IDLE_QUEUES a list of those that no
# node is to consume, for their pool has `nodes: 0`. The playbooks write it (module fleet_wanted).
WANTED, IDLE_QUEUES = "fleet:wanted", "idle queues"
# Field of the same hash -> JSON {scheduler, since}, of the Beat that the inventory wants, if it does.
BEAT = "beat"
# Sorted set of task id -> when it failed for good; hash of task id -> JSON of the letter.
DEAD = "fleet:dead"
DEAD_LETTERS = "fleet:dead:letters"

# Sorted sets of what was revoked -> when, in seconds of Redis's own clock: task ids; JSON [header, stamp].
REVOKED = "fleet:revoked"
REVOKED_STAMPS = "fleet:revoked:stamps"

# RedBeat's keys: their prefix, and the lock of the Beat that is active.
REDBEAT_PREFIX, REDBEAT_LOCK = "redbeat:", "redbeat::lock"

# Hash of host -> JSON of who has drained it.
DRAINED = "fleet:drained"

# Queues in which nodes find the task by which each proves that it works.
PROOFS_PREFIX = "fleet:proof:"
LOSSES_PREFIX = "fleet:losses:"
ONCE_PREFIX = "fleet:once:"


def unacked(node: str) -> str:
    """Return the hash of the messages that a node holds."""
    return f"{UNACKED}:{node}"


def unacked_index(node: str) -> str:
    """Return the sorted set of when a node took what it holds."""
    return f"{UNACKED_INDEX}:{node}"


def unacked_mutex(node: str) -> str:
    """Return the lock of kombu's own search for messages that are held too long."""
    return f"{UNACKED_MUTEX}:{node}"


def proofs(node: str) -> str:
    """Return the queue of a node's own, from which alone it consumes until it has proved that it works."""
    return f"{PROOFS_PREFIX}{node}"


def losses(delivery_tag: str) -> str:
    """Return the counter of how often who ran a message died."""
    return f"{LOSSES_PREFIX}{delivery_tag}"


def once(key: str) -> str:
    """Return the key of something that is to be done once."""
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
