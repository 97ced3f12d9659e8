#!lua flags=allow-oom
-- Acknowledges messages, then fetches others and records them as unacknowledged.
--
-- A fetch takes the oldest message of the first list that has one. Its last `newest` messages come from the
-- other end of the list. A message is recorded before it leaves its list: if Redis refuses the write, it is
-- still in the list. The record names the queue and no exchange, because the exchange may have routed the
-- message to other queues, too. If its delivery tag is recorded already (a copy from another queue), or if it
-- cannot be parsed, the message gets a tag of its own.
--
-- KEYS[1]  unacked: hash of delivery tag -> JSON [message, exchange, routing key]
-- KEYS[2]  unacked_index: sorted set of delivery tag -> time of the fetch
-- KEYS[3]...  the lists, by priority, and within a priority by queue
-- ARGV[1]  how many messages to fetch; 0 for none
-- ARGV[2]  how many of these as the newest of their list
-- ARGV[3]  "1" if the queues take turns, "0" if the first queue always goes first
-- ARGV[4]  how many queues
-- ARGV[5]...  name of each queue; "" for a queue whose messages are not recorded (no_ack)
-- ARGV[5 + queues]...  delivery tags to acknowledge
-- Returns a flat array, three entries a message: place of its list among the lists (from 0), tag, message.
local count, newest, in_turn, queues = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])

if #ARGV > 4 + queues then
  redis.call('HDEL', KEYS[1], unpack(ARGV, 5 + queues))
  redis.call('ZREM', KEYS[2], unpack(ARGV, 5 + queues))
end

local order, empty = {}, {}
for position = 1, queues do
  order[position] = position
end

-- Returns the next message from one end of the lists (-1: oldest, 0: newest), and where it is.
local function find(list_end)
  for first = 2, #KEYS - 1, queues do
    for position, queue in ipairs(order) do
      local key = KEYS[first + queue]
      local item = not empty[key] and redis.call('LINDEX', key, list_end)
      if item then
        return position, queue, key, item, first + queue - 3
      end
      empty[key] = true
    end
  end
end

-- Returns the delivery tag of a message, and its record. Lua parses less JSON than Python does:
-- transport/decode.py looks again at what has the prefix.
local function parse(item, name)
  local parsed, message = pcall(cjson.decode, item)
  local properties = parsed and type(message) == 'table' and message.properties
  local info = type(properties) == 'table' and properties.delivery_info
  if type(info) == 'table' and type(properties.delivery_tag) == 'string'
      and type(info.exchange) == 'string' and type(info.routing_key) == 'string' then
    return properties.delivery_tag, '[' .. item .. ', "", ' .. cjson.encode(name) .. ']'
  end
  return 'malformed:' .. redis.sha1hex(item), item
end

local fetched = {}
local time = count > 0 and redis.call('TIME')
while #fetched < 3 * count do
  local oldest = #fetched < 3 * (count - newest)
  local position, queue, key, item, place = find(oldest and -1 or 0)
  if not item then
    break
  end
  local name = ARGV[4 + queue]
  local tag, record = parse(item, name)
  if name ~= '' then
    while redis.call('HEXISTS', KEYS[1], tag) == 1 do
      tag = tag .. '+'
    end
    redis.call('HSET', KEYS[1], tag, record)
    redis.call('ZADD', KEYS[2], time[1] + time[2] / 1000000, tag)
  end
  redis.call(oldest and 'RPOP' or 'LPOP', key)
  fetched[#fetched + 1] = place
  fetched[#fetched + 1] = tag
  fetched[#fetched + 1] = item
  if in_turn then
    table.insert(order, table.remove(order, position))
  end
end
return fetched
