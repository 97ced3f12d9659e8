#!lua name=fleet_dd00f9a655c286264f9bdb1871f7210e64084293
-- fleet_runtime/broker/scripts/count_crash.lua. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
-- Counts how many deliveries of a message crashed their worker, and may replace its record.
--
-- KEYS[1]  crashes: the counter
-- KEYS[2]  unacked: hash of delivery tag -> record
-- ARGV[1]  delivery tag
-- ARGV[2]  "1" to count one more, "0" to only read the counter
-- ARGV[3]  seconds to keep the counter
-- ARGV[4]  the new record, if the message is still unacknowledged; "" to keep the present one
-- Returns the count.
local crashes, unacked = unpack(KEYS)
local tag, crashed, ttl, record = unpack(ARGV)
local count = tonumber(redis.call('GET', crashes) or 0)
if crashed == '1' then
  count = redis.call('INCR', crashes)
  redis.call('EXPIRE', crashes, ttl)
end
if record ~= '' and redis.call('HEXISTS', unacked, tag) == 1 then
  redis.call('HSET', unacked, tag, record)
end
return count
end
redis.register_function{function_name='fleet_dd00f9a655c286264f9bdb1871f7210e64084293', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_dd00f9a655c286264f9bdb1871f7210e64084293_present', callback=function() return 1 end, flags={'no-writes'}
}
