#!lua name=fleet_c3f8721cbb97f72bc19e972846bd7aaf91901658
-- redis-py, LUA_RELEASE_SCRIPT (MIT). Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        redis.call('del', KEYS[1])
        return 1
    
end
redis.register_function{function_name='fleet_c3f8721cbb97f72bc19e972846bd7aaf91901658', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_c3f8721cbb97f72bc19e972846bd7aaf91901658_present', callback=function() return 1 end, flags={'no-writes'}
}
