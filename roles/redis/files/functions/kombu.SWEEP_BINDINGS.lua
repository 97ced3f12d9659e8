#!lua name=fleet_9a2b966a0a2d2d0e36ec32bc30fc89342b94a4bf
-- kombu, SWEEP_BINDINGS (BSD-3-Clause). Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local now = redis.call('TIME')
local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local overdue = redis.call(
    'ZRANGEBYSCORE', KEYS[1], '-inf', ms, 'LIMIT', 0, tonumber(ARGV[3]))
for _, exchange in ipairs(overdue) do
    if redis.call('EXISTS', ARGV[2] .. exchange) == 0 then
        redis.call('DEL', ARGV[1] .. exchange)
    end
    redis.call('ZREM', KEYS[1], exchange)
end
return #overdue
end
redis.register_function{function_name='fleet_9a2b966a0a2d2d0e36ec32bc30fc89342b94a4bf', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_9a2b966a0a2d2d0e36ec32bc30fc89342b94a4bf_present', callback=function() return 1 end, flags={'no-writes'}
}
