#!lua name=fleet_470a7e055ce95780b2369b04a75126a8324b84e0
-- fleet_runtime.dead_letters.store.BURY. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local dead, letters, losses, unacked, index = unpack(KEYS)
local id, letter, limit, age, tag, record, needed, deliveries = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local more = string.format(',"died":%.3f', now)
if unacked then
  local held = redis.call('HGET', unacked, tag)
  if not held and needed == '1' then
    return 0
  end
  if record == '' then
    record = held
  end
  local received = redis.call('ZSCORE', index, tag)
  if received then
    more = more .. string.format(',"received":%.3f', received)
  end
  local lost = redis.call('GET', losses) or 0
  more = more .. string.format(',"deliveries":%d', deliveries + lost)
  more = more .. ',"record":' .. record
end
redis.call('HSET', letters, id, string.sub(letter, 1, -2) .. more .. '}')
redis.call('ZADD', dead, now, id)
if unacked then
  redis.call('HDEL', unacked, tag)
  redis.call('ZREM', index, tag)
  redis.call('DEL', losses)
end
local function drop(ids)
  for _, one in ipairs(ids) do
    redis.call('ZREM', dead, one)
    redis.call('HDEL', letters, one)
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
redis.register_function{function_name='fleet_470a7e055ce95780b2369b04a75126a8324b84e0', callback=body}
redis.register_function{
  function_name='fleet_470a7e055ce95780b2369b04a75126a8324b84e0_present', callback=function() return 1 end, flags={'no-writes'}
}
