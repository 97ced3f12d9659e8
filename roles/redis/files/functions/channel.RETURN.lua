#!lua name=fleet_4e5909816337077e2124853bd7e3af65a1eb0d8c
-- fleet_runtime.transport.channel.RETURN. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local tag, record, message, push = unpack(ARGV)
if redis.call('HGET', KEYS[1], tag) ~= record then
  return 0
end
for at = 3, #KEYS do
  redis.call(push, KEYS[at], message)
end
redis.call('HDEL', KEYS[1], tag)
redis.call('ZREM', KEYS[2], tag)
return 1
end
redis.register_function{function_name='fleet_4e5909816337077e2124853bd7e3af65a1eb0d8c', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_4e5909816337077e2124853bd7e3af65a1eb0d8c_present', callback=function() return 1 end, flags={'no-writes'}
}
