#!lua flags=allow-oom
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
