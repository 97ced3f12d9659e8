# SPDX-License-Identifier: MIT
"""Constants of the transport. `_S` is seconds; without a unit it is a number of messages."""

from __future__ import annotations

#: How long an idle channel relies on notifications before it checks its queues by itself. Until then a
#: lost other end of the connection is not noticed.
POLL_INTERVAL_S = 10
#: Pause between two attempts on a Redis that refuses writes (memory limit, disk), and between two log lines.
OOM_RETRY_S = 1
OOM_LOG_INTERVAL_S = 60
#: How long a channel that is closed waits for the replies that are under way.
CLOSE_TIMEOUT_S = 5
#: How long to wait, in the same turn of the loop, for the message that a notification told of.
NOTIFY_GRACE_S = 0.002
#: Interval of the visibility-timeout sweep. The timeout is days, so every ten minutes is plenty; without
#: this, a worker that has no event loop would sweep on every poll.
RESTORE_INTERVAL_S = 600
#: Most messages that one command fetches.
FETCH_BATCH = 100
#: Most messages that one command acknowledges.
ACK_BATCH = 1000
#: How long an acknowledgement waits for others, so that one command carries many.
ACK_LINGER_S = 0.01
#: Back-off after a notification that led to no message, because another node was faster: random, up to
#: `BASE * 2 ** misses`, where misses count up to MAX_DOUBLINGS, and at most `BASE * min(nodes, MAX_NODES)`.
#: Redis notifies all nodes that wait of each message: hundreds would keep it busy with nothing else, while
#: a few need not make a message wait that finds the others busy.
BACKOFF_BASE_S = 0.001
BACKOFF_MAX_DOUBLINGS = 10
BACKOFF_MAX_NODES = 250
#: A node prefetches, beyond its prefetch count, as many messages as it settles in this time,
PREFETCH_WINDOW_S = 0.01
#: at most this many for each message of its prefetch count,
PREFETCH_PER_SLOT = 4
#: and puts them back into their queue after this time.
PREFETCH_TTL_S = 0.05
#: Shortest time over which the rate of a node is measured.
RATE_SPAN_S = 0.005
#: After this many messages in a row of one queue that wait for their ETA, one fetched message in NEWEST_EVERY
#: is the newest of its list: a node that starts with tens of thousands of them would not reach what is due.
ETA_RUN = 100
NEWEST_EVERY = 4
#: Interval at which a queue that Redis refuses is tried again.
REFUSED_RETRY_S = 30.0
#: How long one turn of the loop handles broadcast messages (control commands, events) before it goes on.
FANOUT_TURN_S = 0.1
