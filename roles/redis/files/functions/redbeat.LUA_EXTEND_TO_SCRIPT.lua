#!lua name=fleet_411b7c153e0ab3ba59d6d1e36cc7858ebd76f2c5
-- redbeat, LUA_EXTEND_TO_SCRIPT (Apache-2.0). Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
    local token = redis.call('get', KEYS[1])
    if not token or token ~= ARGV[1] then
        return 0
    end
    local expiration = redis.call('pttl', KEYS[1])
    if not expiration then
        expiration = 0
    end
    if expiration < 0 then
        return 0
    end
    redis.call('pexpire', KEYS[1], ARGV[2])
    return 1
end
redis.register_function{function_name='fleet_411b7c153e0ab3ba59d6d1e36cc7858ebd76f2c5', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_411b7c153e0ab3ba59d6d1e36cc7858ebd76f2c5_present', callback=function() return 1 end, flags={'no-writes'}
}
