#!lua name=fleet_f0407aa10ec3b9eaad8517e1f469eceeac255b7c
-- fleet_runtime/broker/scripts/dead_letter.lua. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
-- Moves a message to the dead letters, and removes the oldest dead letters beyond the limits.
--
-- The dead letter is written first: a Redis at its memory limit refuses that, and then nothing was changed.
--
-- KEYS[1]  dead: sorted set of id -> time of death
-- KEYS[2]  letters: hash of id -> JSON of the dead letter
-- KEYS[3]  crashes: counter of deliveries that crashed their worker (only for an unacknowledged message)
-- KEYS[4]  unacked: hash of delivery tag -> record (as KEYS[3])
-- KEYS[5]  unacked_index: sorted set of delivery tag -> time of the fetch (as KEYS[3])
-- ARGV[1]  id
-- ARGV[2]  the dead letter, a JSON object
-- ARGV[3]  how many dead letters to keep
-- ARGV[4]  seconds to keep them
-- ARGV[5]  delivery tag (this and the next only with KEYS[3])
-- ARGV[6]  the record to keep in the dead letter; "" for the one in unacked
-- ARGV[7]  "1" if the message must be unacknowledged still
-- ARGV[8]  deliveries beside those that crashed
-- Returns 1 if the dead letter was written, 0 if the message is unacknowledged no more.
local dead, letters, crashes, unacked, index = unpack(KEYS)
local id, letter, limit, age, tag, record, required, deliveries = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local fields = string.format(',"died":%.3f', now)

if unacked then
  local stored = redis.call('HGET', unacked, tag)
  if not stored and required == '1' then
    return 0
  end
  if record == '' then
    record = stored
  end
  local received = redis.call('ZSCORE', index, tag)
  if received then
    fields = fields .. string.format(',"received":%.3f', received)
  end
  local crashed = redis.call('GET', crashes) or 0
  fields = fields .. string.format(',"deliveries":%d', deliveries + crashed)
  fields = fields .. ',"record":' .. record
end

redis.call('HSET', letters, id, string.sub(letter, 1, -2) .. fields .. '}')
redis.call('ZADD', dead, now, id)
if unacked then
  redis.call('HDEL', unacked, tag)
  redis.call('ZREM', index, tag)
  redis.call('DEL', crashes)
end

local function drop(ids)
  for _, old in ipairs(ids) do
    redis.call('ZREM', dead, old)
    redis.call('HDEL', letters, old)
  end
end
drop(redis.call('ZRANGE', dead, '-inf', now - age, 'BYSCORE', 'LIMIT', 0, 100))
local surplus = redis.call('ZCARD', dead) - limit
if surplus > 0 then
  drop(redis.call('ZRANGE', dead, 0, math.min(surplus, 100) - 1))
end
redis.call('EXPIRE', dead, age)
redis.call('EXPIRE', letters, age)
return 1
end
redis.register_function{function_name='fleet_f0407aa10ec3b9eaad8517e1f469eceeac255b7c', callback=body}
redis.register_function{
  function_name='fleet_f0407aa10ec3b9eaad8517e1f469eceeac255b7c_present', callback=function() return 1 end, flags={'no-writes'}
}
