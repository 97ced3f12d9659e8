#!lua name=fleet_f721bc92fea350fc0f949748d240d0406935d42c
-- fleet_runtime/broker/scripts/requeue_unacked.lua. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
-- Puts unacknowledged messages of a node back into their queues.
--
-- A message is pushed first: whatever Redis refuses there, the message is still unacknowledged.
--
-- KEYS[1]  leases: sorted set of node -> end of its lease
-- KEYS[2]  unacked: hash of delivery tag -> record, of that node
-- KEYS[3]  unacked_index: sorted set of delivery tag -> time of the fetch, of that node
-- KEYS[4]...  the queues' lists
-- ARGV[1]  node
-- ARGV[2]  "1" if the node must be dead
-- ARGV[3]...  for each message: delivery tag, message, how many queues it goes to, and for each of these the
--             index of its list in KEYS
-- Returns how many messages went back; -1 if the node lives and must be dead.
local leases, unacked, index = unpack(KEYS)
if ARGV[2] == '1' then
  local time = redis.call('TIME')
  local ends = redis.call('ZSCORE', leases, ARGV[1])
  if ends and tonumber(ends) > time[1] + time[2] / 1000000 then
    return -1
  end
end
local moved, position = 0, 3
while position <= #ARGV do
  local tag, message, count = ARGV[position], ARGV[position + 1], tonumber(ARGV[position + 2])
  if redis.call('HEXISTS', unacked, tag) == 1 then
    for place = position + 3, position + 2 + count do
      redis.call('RPUSH', KEYS[tonumber(ARGV[place])], message)
    end
    redis.call('HDEL', unacked, tag)
    redis.call('ZREM', index, tag)
    moved = moved + 1
  end
  position = position + 3 + count
end
return moved
end
redis.register_function{function_name='fleet_f721bc92fea350fc0f949748d240d0406935d42c', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_f721bc92fea350fc0f949748d240d0406935d42c_present', callback=function() return 1 end, flags={'no-writes'}
}
