#!lua name=fleet_26227688a933c41e180fb4277128843dab86bc21
-- fleet_runtime.dead_letters.store.TAKE. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local dead, letters, losses, queue = unpack(KEYS)
local id, letter, message = unpack(ARGV)
if redis.call('HGET', letters, id) ~= letter then
  return 0
end
if queue then
  redis.call('LPUSH', queue, message)
  redis.call('DEL', losses)
end
redis.call('HDEL', letters, id)
redis.call('ZREM', dead, id)
return 1
end
redis.register_function{function_name='fleet_26227688a933c41e180fb4277128843dab86bc21', callback=body}
redis.register_function{
  function_name='fleet_26227688a933c41e180fb4277128843dab86bc21_present', callback=function() return 1 end, flags={'no-writes'}
}
