#!lua name=fleet_7eb720dd52be869d4e621d0b3acac8804a526d65
-- fleet_runtime.once.END. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local value = redis.call('GET', KEYS[1])
if value and value ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
end
redis.register_function{function_name='fleet_7eb720dd52be869d4e621d0b3acac8804a526d65', callback=body}
redis.register_function{
  function_name='fleet_7eb720dd52be869d4e621d0b3acac8804a526d65_present', callback=function() return 1 end, flags={'no-writes'}
}
