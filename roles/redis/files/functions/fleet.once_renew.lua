#!lua name=fleet_3e0542cdb4dec324999d843228a2047e62d6e0f8
-- fleet_runtime/broker/scripts/once_renew.lua. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
-- Renews the lease on a key of `once`, unless another holder has the key.
--
-- KEYS[1]  the key
-- ARGV[1]  the value of this holder
-- ARGV[2]  milliseconds of the lease
-- Returns 1 if the lease was renewed, 0 if the key has another value or none.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
end
redis.register_function{function_name='fleet_3e0542cdb4dec324999d843228a2047e62d6e0f8', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_3e0542cdb4dec324999d843228a2047e62d6e0f8_present', callback=function() return 1 end, flags={'no-writes'}
}
