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
  local stored = redis.call('HMGET', base .. ':state', 'now', 'shift')
  local told = redis.call('TIME')
  now = math.max(told[1] * 1000000 + told[2] + tonumber(stored[2] or 0), tonumber(stored[1] or 0))
end

-- Read what is stored of these quotas, or of their buckets of a limit; `false` where there is nothing.
local function records(of, prefix)
  local names = {}
  for place, quota in ipairs(quotas) do
    names[place] = prefix .. quota
  end
  local stored = #names > 0 and redis.call('HMGET', base .. of, unpack(names)) or {}
  for place, packed in ipairs(stored) do
    stored[place] = packed and cmsgpack.unpack(packed)
  end
  return stored
end

-- Add a delay and a quota, unless the instant is 0.
local function note(delays, instant, quota)
  if tonumber(instant) ~= 0 then
    delays[#delays + 1], delays[#delays + 2] = tonumber(instant) - now, quota
  end
end

local function buckets(limit, resting)
  local taken, closed = {}, {}
  for place, bucket in ipairs(records(':buckets', limit .. ' ')) do
    taken[place] = bucket and bucket.taken or 0
    note(closed, bucket and bucket.closed or 0, quotas[place])
    note(closed, resting[place] and resting[place].resting or 0, quotas[place])
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

local answer, resting = {}, records(':uses', '')
for index = 1, number do
  local limit = ARGV[index + 3]
  local taken, closed = buckets(limit, resting)
  answer[index] = { taken, cooling(limit), closed }
end
return answer
