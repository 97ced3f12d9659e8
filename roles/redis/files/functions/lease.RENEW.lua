#!lua name=fleet_56ea7e4f87bfccc709328e33195099f4f9ebb10e
-- fleet_runtime.recovery.lease.RENEW. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local leases, nodes = unpack(KEYS)
local node, lease, facts, limit = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local ends = redis.call('ZSCORE', leases, node)
redis.call('ZADD', leases, now + lease, node)
redis.call('HSET', nodes, node, facts)
return {
  ends and string.format('%.6f', ends - now) or '',
  string.format('%.6f', now),
  redis.call('ZRANGE', leases, 0, limit - 1, 'WITHSCORES'),
  redis.call('ZCARD', leases),
}
end
redis.register_function{function_name='fleet_56ea7e4f87bfccc709328e33195099f4f9ebb10e', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_56ea7e4f87bfccc709328e33195099f4f9ebb10e_present', callback=function() return 1 end, flags={'no-writes'}
}
