#!lua name=fleet_df50605c8c0438f07a39e4c2b7591a44f952c5be
-- fleet_runtime.dead_letters.store.COUNT. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local losses, unacked = unpack(KEYS)
local tag, more, memory, record = unpack(ARGV)
local count = tonumber(redis.call('GET', losses) or 0)
if more == '1' then
  count = redis.call('INCR', losses)
  redis.call('EXPIRE', losses, memory)
end
if record ~= '' and redis.call('HEXISTS', unacked, tag) == 1 then
  redis.call('HSET', unacked, tag, record)
end
return count
end
redis.register_function{function_name='fleet_df50605c8c0438f07a39e4c2b7591a44f952c5be', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_df50605c8c0438f07a39e4c2b7591a44f952c5be_present', callback=function() return 1 end, flags={'no-writes'}
}
