-- What is out of the limits of one pool, for people and scrapers; nothing is written. See exchange.lua for what is stored.
--
-- KEYS[1]  the name that every key of the pool begins with
-- ARGV     where to begin in each list (from 0) and how many entries to tell, then the ids of limits
-- Returns  for each limit: the quotas in use, then pairs of delay and quota for what cools, and the same for what is
--          parked. A reader asks on from a later beginning until a list is shorter than it asked for.

local base = KEYS[1]
local from, most = tonumber(ARGV[1]), tonumber(ARGV[2])

local now
do
  local stored = redis.call('HMGET', base .. ':state', 'now', 'shift')
  local told = redis.call('TIME')
  now = math.max(told[1] * 1000000 + told[2] + tonumber(stored[2] or 0), tonumber(stored[1] or 0))
end

local function quota_of(member)
  return string.sub(member, (string.find(member, '@', 1, true) or 0) + 1)
end

local function delays(of)
  local entries = redis.call('ZRANGEBYSCORE', of, '(' .. string.format('%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', from, most)
  for index = 1, #entries, 2 do
    entries[index], entries[index + 1] = tonumber(entries[index + 1]) - now, quota_of(entries[index])
  end
  return entries
end

local answer = {}
for index = 3, #ARGV do
  local in_use = redis.call('ZRANGE', base .. ':in_use:' .. ARGV[index], from, from + most - 1)
  for place, member in ipairs(in_use) do
    in_use[place] = quota_of(member)
  end
  answer[index - 2] = {
    in_use,
    delays(base .. ':cooling:' .. ARGV[index]),
    delays(base .. ':parked:' .. ARGV[index]),
  }
end
return answer
