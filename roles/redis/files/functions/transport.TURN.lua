#!lua name=fleet_802979b77c9895e4670ca621927355585a322c41
-- fleet_runtime.transport.TURN. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local room, in_turn, queues = tonumber(ARGV[1]), ARGV[2] == '1', tonumber(ARGV[3])
if #ARGV > 3 + queues then
  redis.call('HDEL', KEYS[1], unpack(ARGV, 4 + queues))
  redis.call('ZREM', KEYS[2], unpack(ARGV, 4 + queues))
end
local taken, order, empty = {}, {}, {}
for at = 1, queues do
  order[at] = at
end
local function find()
  for first = 2, #KEYS - 1, queues do
    for at, queue in ipairs(order) do
      local key = KEYS[first + queue]
      local item = not empty[key] and redis.call('LINDEX', key, -1)
      if item then
        return at, queue, key, item, first + queue - 3
      end
      empty[key] = true
    end
  end
end
local time = room > 0 and redis.call('TIME')
while #taken < 3 * room do
  local at, queue, key, item, place = find()
  if not item then
    break
  end
  local tag, record
  local name = ARGV[3 + queue]
  local good, message = pcall(cjson.decode, item)
  local properties = good and type(message) == 'table' and message.properties
  local info = type(properties) == 'table' and properties.delivery_info
  if type(info) == 'table' and type(properties.delivery_tag) == 'string'
      and type(info.exchange) == 'string' and type(info.routing_key) == 'string' then
    tag = properties.delivery_tag
    record = '[' .. item .. ', "", ' .. cjson.encode(name) .. ']'
  else
    tag, record = 'malformed:' .. redis.sha1hex(item), item
  end
  if name ~= '' then
    while redis.call('HEXISTS', KEYS[1], tag) == 1 do
      tag = tag .. '+'
    end
    redis.call('HSET', KEYS[1], tag, record)
    redis.call('ZADD', KEYS[2], time[1] + time[2] / 1000000, tag)
  end
  redis.call('RPOP', key)
  taken[#taken + 1] = place
  taken[#taken + 1] = tag
  taken[#taken + 1] = item
  if in_turn then
    table.insert(order, table.remove(order, at))
  end
end
return taken
end
redis.register_function{function_name='fleet_802979b77c9895e4670ca621927355585a322c41', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_802979b77c9895e4670ca621927355585a322c41_present', callback=function() return 1 end, flags={'no-writes'}
}
