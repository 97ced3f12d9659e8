#!lua name=fleet_a4e8783852e6b949f9ef3a97212805108459a890
-- redis-py, LUA_EXTEND_SCRIPT (MIT). Written by tools/redis_functions.py.
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

        local newttl = ARGV[2]
        if ARGV[3] == "0" then
            newttl = ARGV[2] + expiration
        end
        redis.call('pexpire', KEYS[1], newttl)
        return 1
    
end
redis.register_function{function_name='fleet_a4e8783852e6b949f9ef3a97212805108459a890', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_a4e8783852e6b949f9ef3a97212805108459a890_present', callback=function() return 1 end, flags={'no-writes'}
}
