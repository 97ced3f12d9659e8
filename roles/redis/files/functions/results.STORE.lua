#!lua name=fleet_d35d0090b8dbc80793b59db94409726c36a69d53
-- fleet_runtime.worker.results.STORE. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local stored = redis.call('GET', KEYS[1])
if stored then
  local good, result = pcall(cjson.decode, stored)
  if good and type(result) == 'table' and result.status == 'SUCCESS' then
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
redis.register_function{function_name='fleet_d35d0090b8dbc80793b59db94409726c36a69d53', callback=body}
redis.register_function{
  function_name='fleet_d35d0090b8dbc80793b59db94409726c36a69d53_present', callback=function() return 1 end, flags={'no-writes'}
}
