#!lua name=fleet_5d41231ec87050cbbc6817f34035bb533ec0c11b
-- fleet_runtime.recovery.requeue.GIVE_BACK. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local function alive(leases, node)
  local time = redis.call('TIME')
  local ends = redis.call('ZSCORE', leases, node)
  return ends and tonumber(ends) > time[1] + time[2] / 1000000
end

local leases, unacked, index = unpack(KEYS)
if ARGV[2] == '1' and alive(leases, ARGV[1]) then
  return -1
end
local moved, at = 0, 3
while at <= #ARGV do
  local tag, message, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if redis.call('HEXISTS', unacked, tag) == 1 then
    for place = at + 3, at + 2 + count do
      redis.call('RPUSH', KEYS[tonumber(ARGV[place])], message)
    end
    redis.call('HDEL', unacked, tag)
    redis.call('ZREM', index, tag)
    moved = moved + 1
  end
  at = at + 3 + count
end
return moved
end
redis.register_function{function_name='fleet_5d41231ec87050cbbc6817f34035bb533ec0c11b', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_5d41231ec87050cbbc6817f34035bb533ec0c11b_present', callback=function() return 1 end, flags={'no-writes'}
}
