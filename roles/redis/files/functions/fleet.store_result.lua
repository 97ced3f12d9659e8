#!lua name=fleet_ec3298ed12b225115b6d539caeb92afede860907
-- fleet_runtime/broker/scripts/store_result.lua. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
-- Stores the result of a task, unless a success is stored, and publishes it to the clients that wait for it.
--
-- Unlike the scripts that move messages, this is refused by a Redis at its memory limit: a result takes room.
--
-- KEYS[1]  key of the result, and its channel
-- ARGV[1]  the result, a JSON object
-- ARGV[2]  seconds to keep it; 0 for ever
-- Returns 1 if the result was stored, 0 if a success is.
local stored = redis.call('GET', KEYS[1])
if stored then
  local parsed, result = pcall(cjson.decode, stored)
  if parsed and type(result) == 'table' and result.status == 'SUCCESS' then
    return 0
  end
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
end
redis.register_function{function_name='fleet_ec3298ed12b225115b6d539caeb92afede860907', callback=body}
redis.register_function{
  function_name='fleet_ec3298ed12b225115b6d539caeb92afede860907_present', callback=function() return 1 end, flags={'no-writes'}
}
