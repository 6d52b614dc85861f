-- How the state of a pool is stored: names of keys, numbers, and hashes of which each field is read and written once.
--
-- The scripts are made of the files of this folder (stores/scripts.py joins them). Each says in Lua what the module of
-- its name in core says; the laws, and why each step is as it is, are told there. Instants and durations are integers
-- in microseconds, exact in doubles up to 2^53. Names contain no `|`, `,`, `;`, `@` and no space, so these join them.
--
-- KEYS[1]  the name that every key of the pool begins with, its hash tag among it: `keyturn:3:{default}`
-- KEYS[2]  a key that never is, see stores/links.py
-- ARGV[1]  the message as JSON, see stores/scripts.py
--
-- `records`  hash: what is read by name (MessagePack): the `state`, and each `replica`, `revision`, `bucket`, `quota`,
--            `client`, `class` and `flow` that is known
--
-- A call costs about as much as ten lines of Lua, so what is needed together is read together (`fetch`), and the state
-- holds what tells that a call would find nothing: numbers of entries, and lower bounds of instants (`NEVER`: none).
local base, request = KEYS[1], cjson.decode(ARGV[1])
local call, match, gmatch, sub = redis.call, string.match, string.gmatch, string.sub
local floor, min, max = math.floor, math.min, math.max
local SECOND, MILLISECOND = 1000000, 1000
local NEVER = 2 ^ 53
local RENEW = 3600 * SECOND -- how often the expiry of what lasts is put off
local CHUNK = 1000 -- values handed to one command: Lua cannot unpack many thousands

-- `..` and tostring write 14 digits only; numbers handed to `call` or packed are exact.
local function text(number) return string.format('%.0f', number) end

local function key(kind, name) return base .. ':' .. kind .. ':' .. name end

local expiring = {} -- keys that may have been created: their expiry is put off at the end

-- Call a command that returns how much it added to a key.
local function create(command, of, ...)
  local added = call(command, of, ...)
  if added ~= 0 then expiring[of] = true end
  return added
end

local function chunked(command, of, arguments)
  for first = 1, #arguments, CHUNK do
    create(command, of, unpack(arguments, first, min(first + CHUNK - 1, #arguments)))
  end
end

local function first_of(of)
  local entry = call('ZRANGE', of, 0, 0, 'WITHSCORES')
  return entry[1], tonumber(entry[2])
end

-- Functions that few exchanges need are made when the first of them is called: to make one costs as much as a short call.
local function lazily(make)
  local made
  return function()
    made = made or make()
    return made
  end
end

-- Hashes whose fields are Lua values, `false` where there is none. A value changed in place is written, too.

local function hash(name) return { key = base .. ':' .. name, values = {}, changed = {} } end

local function read(of, field)
  local value = of.values[field]
  if value == nil then
    local stored = call('HGET', of.key, field)
    value = stored and cmsgpack.unpack(stored)
    of.values[field] = value
  end
  return value
end

-- Read fields that will be needed.
local function fetch(of, fields)
  local values, unknown = of.values, {}
  for _, field in ipairs(fields) do
    if values[field] == nil then values[field], unknown[#unknown + 1] = false, field end
  end
  for first = 1, #unknown, CHUNK do
    local stored = call('HMGET', of.key, unpack(unknown, first, min(first + CHUNK - 1, #unknown)))
    for index, value in ipairs(stored) do
      if value then values[unknown[first + index - 1]] = cmsgpack.unpack(value) end
    end
  end
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

local records, state = hash('records'), nil

-- Read the state, and other records that will be needed. `life`: seconds until keys expire; `renewed`: when the expiry
-- of all was put off; `taken`: tokens by limit; `used`: revisions; `rankings`, `general`: names, see the sections.
local function load_state(fields)
  fields[#fields + 1] = 'state'
  fetch(records, fields)
  state = records.values.state or {
    epoch = '', run = '', version = 0, now = 0, shift = 0, time = 0, corrected = 0, rate = 0, rated = 0,
    lost = 0, grace = 0, shared = 0, replicas = 0, uncollected = 0, lapses = NEVER, bound = 0, rivals = 0,
    leases = 0, dealt = 0, doubts = 0, strangers = 0, uses = 0, service = SECOND / 4, opens = NEVER,
    virtual_time = 0, sequence = 0, requests = 0, flows = 0, classes = 0, pinned = 0, lifted = 0, idle = NEVER,
    left = 0, life = 86400, renewed = 0, taken = {}, used = {}, rankings = {}, general = {},
  }
  records.values.state = state
end
