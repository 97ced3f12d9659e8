-- luacheck for the scripts of the runtime: Redis embeds Lua 5.1 and adds these globals.
std = "lua51"
read_globals = {"redis", "cjson", "KEYS", "ARGV"}
max_line_length = 110
