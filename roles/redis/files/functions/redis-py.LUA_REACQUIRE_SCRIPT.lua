#!lua name=fleet_1cac51482acf5858da00f6d685d68f886cd6b6b2
-- redis-py, LUA_REACQUIRE_SCRIPT (MIT). Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        redis.call('pexpire', KEYS[1], ARGV[2])
        return 1
    
end
redis.register_function{function_name='fleet_1cac51482acf5858da00f6d685d68f886cd6b6b2', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_1cac51482acf5858da00f6d685d68f886cd6b6b2_present', callback=function() return 1 end, flags={'no-writes'}
}
