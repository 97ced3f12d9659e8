#!lua flags=allow-oom
-- Renews the lease of a node, and reads the leases that end first.
--
-- KEYS[1]  leases: sorted set of node -> end of its lease
-- KEYS[2]  nodes: hash of node -> JSON of its facts
-- ARGV[1]  node
-- ARGV[2]  seconds of the lease
-- ARGV[3]  JSON of the node's facts
-- ARGV[4]  how many leases to return
-- Returns: seconds that were left of the lease ("" if there was none), the time, the leases that end first
-- (node, end, ...), and how many leases there are.
local leases, nodes = unpack(KEYS)
local node, lease, facts, limit = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local ends = redis.call('ZSCORE', leases, node)
redis.call('ZADD', leases, now + lease, node)
redis.call('HSET', nodes, node, facts)
return {
  ends and string.format('%.6f', ends - now) or '',
  string.format('%.6f', now),
  redis.call('ZRANGE', leases, 0, limit - 1, 'WITHSCORES'),
  redis.call('ZCARD', leases),
}
