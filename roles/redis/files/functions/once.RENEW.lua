#!lua name=fleet_29b696c398235078d1d50dad0f4c56202915fca7
-- fleet_runtime.once.RENEW. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
end
redis.register_function{function_name='fleet_29b696c398235078d1d50dad0f4c56202915fca7', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_29b696c398235078d1d50dad0f4c56202915fca7_present', callback=function() return 1 end, flags={'no-writes'}
}
