#!lua name=fleet_f2ffd4d1af1d23ce3f90fc6e6a55d5a3b2f57c64
-- fleet_runtime.recovery.requeue.FORGET. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local function alive(leases, node)
  local time = redis.call('TIME')
  local ends = redis.call('ZSCORE', leases, node)
  return ends and tonumber(ends) > time[1] + time[2] / 1000000
end

local leases, nodes, unacked, index, mutex, proofs = unpack(KEYS)
if ARGV[2] == '1' and alive(leases, ARGV[1]) or redis.call('HLEN', unacked) > 0 then
  return 0
end
redis.call('DEL', index, mutex, proofs)
redis.call('HDEL', nodes, ARGV[1])
redis.call('ZREM', leases, ARGV[1])
return 1
end
redis.register_function{function_name='fleet_f2ffd4d1af1d23ce3f90fc6e6a55d5a3b2f57c64', callback=body}
redis.register_function{
  function_name='fleet_f2ffd4d1af1d23ce3f90fc6e6a55d5a3b2f57c64_present', callback=function() return 1 end, flags={'no-writes'}
}
