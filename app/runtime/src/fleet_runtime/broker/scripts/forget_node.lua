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
