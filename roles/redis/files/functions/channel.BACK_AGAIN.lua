#!lua name=fleet_735dfc38318bed0c600c347863c51ba7ca301710
-- fleet_runtime.transport.channel.BACK_AGAIN. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
for at = #KEYS - 2, 1, -1 do
  local tag, item = ARGV[2 * at - 1], ARGV[2 * at]
  local record = redis.call('HGET', KEYS[1], tag)
  if record and string.find(record, item, 1, true) then
    redis.call('RPUSH', KEYS[2 + at], item)
    redis.call('HDEL', KEYS[1], tag)
    redis.call('ZREM', KEYS[2], tag)
  end
end
end
redis.register_function{function_name='fleet_735dfc38318bed0c600c347863c51ba7ca301710', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_735dfc38318bed0c600c347863c51ba7ca301710_present', callback=function() return 1 end, flags={'no-writes'}
}
