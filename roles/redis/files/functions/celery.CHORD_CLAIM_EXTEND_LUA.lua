#!lua name=fleet_dc87180d6bcb7f73c7275eb0fe7a70baf0a8b7c7
-- celery, CHORD_CLAIM_EXTEND_LUA (BSD-3-Clause). Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local ckey, skey = KEYS[1], KEYS[2]
local token = ARGV[1]
local expires = tonumber(ARGV[2])
if redis.call('GET', ckey) == token then
    return redis.call('EXPIRE', ckey, expires)
end
if not redis.call('GET', ckey) and redis.call('EXISTS', skey) == 1 then
    return redis.call('SET', ckey, token, 'EX', expires, 'NX') and 1 or 0
end
return 0
end
redis.register_function{function_name='fleet_dc87180d6bcb7f73c7275eb0fe7a70baf0a8b7c7', callback=body}
redis.register_function{
  function_name='fleet_dc87180d6bcb7f73c7275eb0fe7a70baf0a8b7c7_present', callback=function() return 1 end, flags={'no-writes'}
}
