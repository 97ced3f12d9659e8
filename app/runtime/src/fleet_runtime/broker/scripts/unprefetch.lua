#!lua flags=allow-oom
-- Puts prefetched messages, which were not delivered, back to the head of their lists, in their order.
--
-- A message whose record has another text stays: it was requeued meanwhile and fetched again.
--
-- KEYS[1]  unacked: hash of delivery tag -> record
-- KEYS[2]  unacked_index: sorted set of delivery tag -> time of the fetch
-- KEYS[3]...  the list of each message
-- ARGV[1], ARGV[2]...  delivery tag and message, for each
-- Returns nothing.
for position = #KEYS - 2, 1, -1 do
  local tag, item = ARGV[2 * position - 1], ARGV[2 * position]
  local record = redis.call('HGET', KEYS[1], tag)
  if record and string.find(record, item, 1, true) then
    redis.call('RPUSH', KEYS[2 + position], item)
    redis.call('HDEL', KEYS[1], tag)
    redis.call('ZREM', KEYS[2], tag)
  end
end
