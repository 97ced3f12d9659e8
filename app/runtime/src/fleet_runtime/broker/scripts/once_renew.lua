#!lua flags=allow-oom
-- Renews the lease on a key of `once`, unless another holder has the key.
--
-- KEYS[1]  the key
-- ARGV[1]  the value of this holder
-- ARGV[2]  milliseconds of the lease
-- Returns 1 if the lease was renewed, 0 if the key has another value or none.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
