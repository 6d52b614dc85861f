-- The taken tokens of the limits of one pool, for people and scrapers; nothing is written. See tokens.lua for what is stored.
--
-- KEYS[1]  the name that every key of the pool begins with
-- ARGV     where to begin in each list of returns (from 0), and how many entries to tell; the number of limits and their ids;
--          then quotas, as many as are told at a time
-- Returns  for each limit: the tokens taken of these quotas in their order, pairs of delay and quota for what cools, and the
--          same for these quotas where they are closed or rest. A reader asks on until a list is shorter than it asked for.

local base = KEYS[1]
local from, most, number = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local quotas = { unpack(ARGV, number + 4) }

local now
do
  local stored = redis.call('HGET', base .. ':records', 'state')
  local state = stored and cmsgpack.unpack(stored) or { now = 0, shift = 0 }
  local told = redis.call('TIME')
  now = math.max(told[1] * 1000000 + told[2] + state.shift, state.now)
end

local buckets = {} -- what is stored of each quota, `false` where there is nothing
if #quotas > 0 then
  local names = {}
  for place, quota in ipairs(quotas) do names[place] = 'quota ' .. quota end
  for place, packed in ipairs(redis.call('HMGET', base .. ':records', unpack(names))) do
    buckets[place] = packed and cmsgpack.unpack(packed)
  end
end

-- Add a delay and a quota, if there is an instant.
local function note(delays, instant, quota)
  if instant then
    delays[#delays + 1], delays[#delays + 2] = tonumber(instant) - now, quota
  end
end

local function taken_of(limit)
  local taken, closed = {}, {}
  for place, quota in ipairs(buckets) do
    local bucket = quota and quota.buckets[limit]
    taken[place] = bucket and bucket.taken or 0
    note(closed, bucket and bucket.closed, quotas[place])
    note(closed, quota and quota.resting, quotas[place])
  end
  return taken, closed
end

local function cooling(limit)
  local entries, delays = redis.call('ZRANGE', base .. ':returns:' .. limit, from, from + most - 1, 'WITHSCORES'), {}
  for index = 1, #entries, 2 do
    local member = entries[index]
    note(delays, entries[index + 1], string.sub(member, string.find(member, '@', 1, true) + 1))
  end
  return delays
end

local answer = {}
for index = 1, number do
  local limit = ARGV[index + 3]
  local taken, closed = taken_of(limit)
  answer[index] = { taken, cooling(limit), closed }
end
return answer
