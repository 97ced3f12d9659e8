#!lua name=fleet_8fcacfbe57c4b81309b314f916ca5ca5565c3c45
-- fleet_runtime/broker/scripts/requeue_one.lua. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
-- Puts one unacknowledged message back into its lists, if its record is still the one that was read.
--
-- KEYS[1]  unacked: hash of delivery tag -> record
-- KEYS[2]  unacked_index: sorted set of delivery tag -> time of the fetch
-- KEYS[3]...  the lists to push to
-- ARGV[1]  delivery tag
-- ARGV[2]  the record that was read
-- ARGV[3]  the message
-- ARGV[4]  RPUSH: it is the next to be fetched; LPUSH: it is the last
-- Returns 1 if the message went back, 0 if the record is another one or gone.
local tag, record, message, push = unpack(ARGV)
if redis.call('HGET', KEYS[1], tag) ~= record then
  return 0
end
for position = 3, #KEYS do
  redis.call(push, KEYS[position], message)
end
redis.call('HDEL', KEYS[1], tag)
redis.call('ZREM', KEYS[2], tag)
return 1
end
redis.register_function{function_name='fleet_8fcacfbe57c4b81309b314f916ca5ca5565c3c45', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_8fcacfbe57c4b81309b314f916ca5ca5565c3c45_present', callback=function() return 1 end, flags={'no-writes'}
}
