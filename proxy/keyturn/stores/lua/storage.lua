-- How the state of a pool is stored: names of keys, numbers, and hashes of which each field is read and written once.
--
-- The scripts are made of the files of this folder (stores/scripts.py joins them). Each says in Lua what the module of
-- its name in core says; the laws, and why each step is as it is, are told there. Instants and durations are integers
-- in microseconds, exact in doubles up to 2^53. Names contain no `|`, `,`, `;`, `@` and no space, so these join them.
--
-- KEYS[1]  the name that every key of the pool begins with, its hash tag among it: `keyturn:2:{default}`
-- KEYS[2]  a key that never is, see stores/links.py
-- ARGV[1]  the message as JSON, see stores/scripts.py
local base, request = KEYS[1], cjson.decode(ARGV[1])
local call, match, gmatch, sub = redis.call, string.match, string.gmatch, string.sub
local floor, min, max = math.floor, math.min, math.max
local SECOND, MILLISECOND = 1000000, 1000
local CHUNK = 1000 -- values handed to one command: Lua cannot unpack many thousands

-- `..` and tostring write 14 digits only; numbers handed to `call` or packed are exact.
local function text(number) return string.format('%.0f', number) end

local function key(kind, name) return base .. ':' .. kind .. ':' .. name end

local expiring = {} -- keys that may have been created: their expiry is put off at the end

local function create(command, of, ...)
  expiring[of] = true
  return call(command, of, ...)
end

local function chunked(command, of, arguments)
  for first = 1, #arguments, CHUNK do
    call(command, of, unpack(arguments, first, min(first + CHUNK - 1, #arguments)))
  end
end

local function first_of(of)
  local entry = call('ZRANGE', of, 0, 0, 'WITHSCORES')
  return entry[1], tonumber(entry[2])
end

-- Records: fields of a hash as Lua values (MessagePack), `false` where there is none. One changed in place is written, too.

local function records(name) return { key = base .. ':' .. name, values = {}, changed = {} } end

local function read(of, field)
  local value = of.values[field]
  if value == nil then
    local stored = call('HGET', of.key, field)
    value = stored and cmsgpack.unpack(stored)
    of.values[field] = value
  end
  return value
end

local function write(of, field, value) of.values[field], of.changed[field] = value, true end

local function flush(of)
  local stored, gone = {}, {}
  for field in pairs(of.changed) do
    if of.values[field] then
      stored[#stored + 1], stored[#stored + 2] = field, cmsgpack.pack(of.values[field])
    else
      gone[#gone + 1] = field
    end
  end
  if #stored > 0 then expiring[of.key] = true end
  chunked('HSET', of.key, stored)
  chunked('HDEL', of.key, gone)
  of.changed = {}
end

-- Read a whole hash; returns its values by field.
local function read_all(of)
  local stored = of.complete and {} or call('HGETALL', of.key)
  of.complete = true
  for index = 1, #stored, 2 do
    if of.values[stored[index]] == nil then of.values[stored[index]] = cmsgpack.unpack(stored[index + 1]) end
  end
  return of.values
end

-- The state's own numbers and names. `life`: seconds until keys expire; `renewed`: when the expiry of all was put off.
local state, stored_state, STATE = {}, {}, base .. ':state'
local NAMES = {
  'epoch', 'run', 'version', 'leases', 'dealt', 'shift', 'now', 'corrected', 'time', 'rate', 'rated', 'lost', 'grace',
  'shared', 'virtual_time', 'sequence', 'requests', 'classes', 'pinned', 'lifted', 'lifts', 'uses', 'strangers', 'service', 'doubts',
  'bound', 'rivals', 'life', 'renewed',
}
for index, stored in ipairs(call('HMGET', STATE, unpack(NAMES))) do
  local value = index > 2 and (tonumber(stored) or 0) or stored or ''
  state[NAMES[index]], stored_state[index] = value, value
end
if state.epoch == '' then state.service, state.life = SECOND / 4, 86400 end

local function save_state()
  local changed = {}
  for index, name in ipairs(NAMES) do
    if state[name] ~= stored_state[index] then
      changed[#changed + 1], changed[#changed + 2] = name, state[name]
      stored_state[index] = state[name]
    end
  end
  if #changed > 0 then create('HSET', STATE, unpack(changed)) end
end
