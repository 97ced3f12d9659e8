#!lua name=fleet_59d7aab41242d82196947ba8926cab712416da4f
-- celery, CHORD_CLEANUP_LUA (BSD-3-Clause). Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local ckey = KEYS[1]
local jkey = KEYS[2]
local tkey = KEYS[3]
local skey = KEYS[4]
local dkey = KEYS[5]
local token = ARGV[1]
local done_expires = tonumber(ARGV[2])

if redis.call('GET', ckey) == token then
    redis.call('DEL', jkey, tkey, skey, dkey)
    if done_expires and done_expires > 0 then
        redis.call('SET', ckey, 'done', 'EX', done_expires)
    end
    return 1
end
return 0
end
redis.register_function{function_name='fleet_59d7aab41242d82196947ba8926cab712416da4f', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_59d7aab41242d82196947ba8926cab712416da4f_present', callback=function() return 1 end, flags={'no-writes'}
}
