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
  return #stored / 2, #gone
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

-- Sorted sets of which the first members are known, in order, while scores change; these are written together. Known are
-- `members` and their `scores` from index `at` to `last`; `whole`: these are all.

local function ordered(of) return { key = of, changed = {}, most = 2 } end

local function write_scores(set)
  local entries = {}
  for member, score in pairs(set.changed) do entries[#entries + 1], entries[#entries + 2] = score, member end
  for first = 1, #entries, CHUNK do
    call('ZADD', set.key, 'XX', unpack(entries, first, min(first + CHUNK - 1, #entries)))
  end
  set.changed = {}
end

-- The first member and its score.
local function first_in(set)
  if not set.members or (set.at > set.last and not set.whole) then
    if next(set.changed) then write_scores(set) end
    local entries = call('ZRANGE', set.key, 0, set.most - 1, 'WITHSCORES')
    local members, scores = {}, {}
    for index = 1, #entries, 2 do
      members[(index + 1) / 2], scores[(index + 1) / 2] = entries[index], tonumber(entries[index + 1])
    end
    set.members, set.scores, set.at, set.last, set.whole = members, scores, 1, #members, #members < set.most
    set.most = min(4 * set.most, 128)
  end
  return set.members[set.at], set.scores[set.at]
end

-- Take a member out of those that are known; says whether it was there.
local function take_out(set, member)
  local members, scores = set.members, set.scores
  for index = set.at or 1, members and set.last or 0 do
    if members[index] == member then
      for place = index, set.at + 1, -1 do members[place], scores[place] = members[place - 1], scores[place - 1] end
      set.at = set.at + 1
      return true
    end
  end
  return false
end

-- A member, if it is one, has another score; says whether it was among those that are known.
local function rescore(set, member, score)
  set.changed[member] = score
  local known, members, scores, place = take_out(set, member), set.members, set.scores, set.last
  if not members then return false end
  local covered = set.whole
    or (set.at <= place and (score < scores[place] or (score == scores[place] and member < members[place])))
  if known and covered then
    while place >= set.at and (scores[place] > score or (scores[place] == score and members[place] > member)) do
      members[place + 1], scores[place + 1], place = members[place], scores[place], place - 1
    end
    members[place + 1], scores[place + 1], set.last = member, score, set.last + 1
  elseif covered and not set.whole then
    set.members = nil
  end
  return known
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
