-- Removes a dead letter, if it is still the one that was read, and may put its message into a queue.
--
-- KEYS[1]  dead: sorted set of id -> time of death
-- KEYS[2]  letters: hash of id -> JSON of the dead letter
-- KEYS[3]  crashes: counter of deliveries that crashed their worker (only to requeue the message)
-- KEYS[4]  the queue's list (only to requeue the message)
-- ARGV[1]  id
-- ARGV[2]  the dead letter that was read
-- ARGV[3]  the message (only to requeue it)
-- Returns 1 if the dead letter was removed, 0 if it is another one or gone.
local dead, letters, crashes, queue = unpack(KEYS)
local id, letter, message = unpack(ARGV)
if redis.call('HGET', letters, id) ~= letter then
  return 0
end
if queue then
  redis.call('LPUSH', queue, message)
  redis.call('DEL', crashes)
end
redis.call('HDEL', letters, id)
redis.call('ZREM', dead, id)
return 1
