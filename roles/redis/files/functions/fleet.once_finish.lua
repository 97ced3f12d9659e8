#!lua name=fleet_90d90a43993abe2ca39430ef300ab6aa94b14992
-- fleet_runtime/broker/scripts/once_finish.lua. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
-- Replaces the lease on a key of `once` by a result, or removes it, unless another holder has the key.
--
-- A lease that has ended is still this holder's unless another one has taken the key: no other run began.
--
-- KEYS[1]  the key
-- ARGV[1]  the value of this holder
-- ARGV[2]  the result; "" to remove the key
-- ARGV[3]  milliseconds to keep the result
-- Returns 1 if that was done, 0 if another holder has the key.
local value = redis.call('GET', KEYS[1])
if value and value ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
end
redis.register_function{function_name='fleet_90d90a43993abe2ca39430ef300ab6aa94b14992', callback=body}
redis.register_function{
  function_name='fleet_90d90a43993abe2ca39430ef300ab6aa94b14992_present', callback=function() return 1 end, flags={'no-writes'}
}
