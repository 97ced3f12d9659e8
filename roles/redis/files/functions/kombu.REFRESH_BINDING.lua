#!lua name=fleet_ef7a9e205fbaf46bf959e1522ff796622fc676c7
-- kombu, REFRESH_BINDING (BSD-3-Clause). Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
redis.call('SADD', KEYS[1], ARGV[1])
local now = redis.call('TIME')
local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
redis.call('ZADD', KEYS[2], 'GT', ms + tonumber(ARGV[3]), ARGV[2])
end
redis.register_function{function_name='fleet_ef7a9e205fbaf46bf959e1522ff796622fc676c7', callback=body}
redis.register_function{
  function_name='fleet_ef7a9e205fbaf46bf959e1522ff796622fc676c7_present', callback=function() return 1 end, flags={'no-writes'}
}
