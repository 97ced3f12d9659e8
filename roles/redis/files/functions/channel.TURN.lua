#!lua name=fleet_e1eb28c01238ef54b6bd49109b82a399cb71bb5d
-- fleet_runtime.transport.channel.TURN. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
local room, newest, in_turn, queues = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
if #ARGV > 4 + queues then
  redis.call('HDEL', KEYS[1], unpack(ARGV, 5 + queues))
  redis.call('ZREM', KEYS[2], unpack(ARGV, 5 + queues))
end
local taken, order, empty = {}, {}, {}
for at = 1, queues do
  order[at] = at
end
local function find(place)
  for first = 2, #KEYS - 1, queues do
    for at, queue in ipairs(order) do
      local key = KEYS[first + queue]
      local item = not empty[key] and redis.call('LINDEX', key, place)
      if item then
        return at, queue, key, item, first + queue - 3
      end
      empty[key] = true
    end
  end
end
local time = room > 0 and redis.call('TIME')
while #taken < 3 * room do
  local oldest = #taken < 3 * (room - newest)
  local at, queue, key, item, place = find(oldest and -1 or 0)
  if not item then
    break
  end
  local tag, record
  local name = ARGV[4 + queue]
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
  redis.call(oldest and 'RPOP' or 'LPOP', key)
  taken[#taken + 1] = place
  taken[#taken + 1] = tag
  taken[#taken + 1] = item
  if in_turn then
    table.insert(order, table.remove(order, at))
  end
end
return taken
end
redis.register_function{function_name='fleet_e1eb28c01238ef54b6bd49109b82a399cb71bb5d', callback=body, flags={'allow-oom'}}
redis.register_function{
  function_name='fleet_e1eb28c01238ef54b6bd49109b82a399cb71bb5d_present', callback=function() return 1 end, flags={'no-writes'}
}
