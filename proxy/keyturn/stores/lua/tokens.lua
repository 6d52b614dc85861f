-- The tokens of every limit on every quota of a pool.
--
-- `quota <quota>`     record: number and instant of its last use, whether its last request had no answer, until when it rests, and
--                     its `buckets` by limit: tokens taken, the doubt since which it is known; where it is so, the lease that
--                     probes it and when that is over, until when it is closed
-- `returns:<limit>`   sorted set: `<lease>@<quota>` by the instant of the token's return
-- `leases:<replica>`  hash: its leases that are not settled; the replica's record has their number
-- `rank:<ranking>`    sorted set: the quotas that can serve limits, best first; the state's `rankings` are `<revision>|<limits>`
tokens.touched, tokens.foreign = {}, {}
local UNLIMITED = 1000000
local USES = 2 ^ 32
local REPLENISHED = 1000
local STRANGER, UNANSWERED = '~', '!'
local FEW = 8 -- returns that are read at first; more are rarely needed
local leases_of, cache, altered, rankings, cooled, upcoming = {}, {}, {}, nil, {}, {}

function tokens.leases(replica)
  leases_of[replica] = leases_of[replica] or hash('leases:' .. replica)
  return leases_of[replica]
end

function tokens.quota(name)
  local quota = cache[name]
  if not quota then
    quota = read(records, 'quota ' .. name) or { uses = 0, used = 0, buckets = {} }
    cache[name] = quota
  end
  return quota
end

function tokens.bucket(limit, quota)
  local buckets = tokens.quota(quota).buckets
  local bucket = buckets[limit]
  if not bucket then
    bucket = { taken = 0, known = 0 }
    buckets[limit] = bucket
  end
  return bucket
end

function tokens.taken(limit, quota) return tokens.bucket(limit, quota).taken end

function tokens.total(limit) return state.taken[limit] or 0 end

function tokens.quota_in(member) return match(member, '@(.*)$') end

-- Read what is stored of quotas.
local function fetch_quotas(names)
  local fields = {}
  for index, quota in ipairs(names) do fields[index] = 'quota ' .. quota end
  fetch(records, fields)
end

-- Availability

-- How many requests under these limits a quota could serve: now, or at an instant to come, with what will have `returned`.
function tokens.available(view, limits, quota, at, returned)
  local least = UNLIMITED
  at = at or 0
  if (tokens.quota(quota).resting or 0) > at then return 0 end
  for _, index in ipairs(limits) do
    local limit = view.limits[index + 1]
    local bucket = tokens.bucket(limit.id, quota)
    if (bucket.probed or 0) > at or (bucket.closed or 0) > at then return 0 end
    least = min(least, limit.requests - bucket.taken + (returned and returned[limit.id .. ' ' .. quota] or 0))
  end
  return max(0, least)
end

local function add_ranking(name)
  local revision, limits = match(name, '^([^|]*)|(.*)$')
  local ranking = ordered(key('rank', name))
  ranking.view, ranking.limits, ranking.stale = revisions.view(revision), {}, {}
  for index in gmatch(limits, '%d+') do ranking.limits[#ranking.limits + 1] = tonumber(index) end
  rankings[name] = ranking
  return ranking
end

function tokens.rankings()
  if not rankings then
    rankings = {}
    for name in pairs(state.rankings) do add_ranking(name) end
  end
  return rankings
end

local function score_of(ranking, quota)
  return tokens.quota(quota).uses - USES * tokens.available(ranking.view, ranking.limits, quota)
end

local function rank(ranking)
  for quota in pairs(ranking.stale) do rescore(ranking, quota, score_of(ranking, quota)) end
  ranking.stale = {}
end

local function begin_ranking(class, name)
  local ranking, entries, quotas = add_ranking(name), {}, call('SMEMBERS', key('quotas', class.view.name))
  state.rankings[name] = 1
  fetch_quotas(quotas)
  for _, quota in ipairs(quotas) do entries[#entries + 1], entries[#entries + 2] = score_of(ranking, quota), quota end
  chunked('ZADD', ranking.key, entries)
  return ranking
end

-- The quota to serve a demand class (flows.lua) from.
function tokens.best(class)
  if class.pinned then return tokens.available(class.view, class.limits, class.pinned) > 0 and class.pinned or nil end
  local ranking = class.ranking
  if not ranking then
    local name = class.view.name .. '|' .. class.joined
    ranking = tokens.rankings()[name] or begin_ranking(class, name)
    class.ranking = ranking
  end
  if next(ranking.stale) then rank(ranking) end
  local quota, score = first_in(ranking)
  return quota and score < 0 and quota or nil
end

function tokens.changed(quota)
  tokens.touched[quota], altered[quota] = true, true
  for _, ranking in pairs(rankings or tokens.rankings()) do ranking.stale[quota] = true end
end

-- What returns, and what is closed

-- The next returns of a limit, each a member and its instant: the first few, or `number`.
function tokens.upcoming(limit, number)
  local entries = upcoming[limit]
  if not entries or (number and number > entries.most and #entries == 2 * entries.most) then
    entries = call('ZRANGE', key('returns', limit), 0, (number or FEW) - 1, 'WITHSCORES')
    entries.most, upcoming[limit] = number or FEW, entries
  end
  return entries
end

-- The limits of which tokens are taken, in order.
function tokens.limits()
  local limits = {}
  for limit in pairs(state.taken) do limits[#limits + 1] = limit end
  table.sort(limits)
  return limits
end

-- {tokens in all, available, the delay until the next} of a limit
function tokens.budget(view, limit, now)
  local size, taken = limit.requests * view.size, tokens.total(limit.id)
  local hand, delay = max(0, size - taken), 0
  if taken ~= 0 then
    local first = tokens.upcoming(limit.id)[2]
    delay = first and max(0, first - now) or limit.window + state.service
  end
  local lost = 0
  if state.opens < NEVER then
    local rows, opens = closed_buckets().under(view, limit), math.huge
    for _, row in ipairs(rows) do opens, lost = min(opens, max(0, row[1] - now)), lost + row[2] end
    if #rows >= view.size and #rows > 0 then
      delay = hand > 0 and opens or max(delay, opens)
    elseif hand > 0 and hand <= lost then
      delay = taken ~= 0 and min(delay, opens) or opens
    end
  end
  return { size, max(0, hand - lost), delay }
end

-- Taking and settling

function tokens.count(limit, quota, number)
  local bucket, total = tokens.bucket(limit, quota), tokens.total(limit) + number
  bucket.taken, state.taken[limit] = bucket.taken + number, total ~= 0 and total or nil
end

-- Count a replica's leases.
local function hold(replica, number)
  local member = read(records, 'replica ' .. replica)
  member.leases = member.leases + number
  write(records, 'replica ' .. replica, member)
end

function tokens.open(replica, lease, record)
  write(tokens.leases(replica), lease, record)
  hold(replica, 1)
  for limit in pairs(record.windows) do tokens.count(limit, record.quota, 1) end
  tokens.changed(record.quota)
end

function tokens.close(replica, lease)
  local record = read(tokens.leases(replica), lease)
  if record then
    write(tokens.leases(replica), lease, false)
    hold(replica, -1)
    tokens.changed(record.quota)
  end
  return record
end

-- A token of a limit returns at an instant.
function tokens.add_return(limit, instant, member)
  local entries = cooled[limit] or {}
  cooled[limit], entries[#entries + 1], entries[#entries + 2] = entries, instant, member
end

function tokens.cool(lease, record, counted, answered)
  local member = (answered and '' or UNANSWERED) .. lease .. '@' .. record.quota
  tokens.quota(record.quota).unanswered = not answered or nil
  for limit, window in pairs(record.windows) do
    tokens.add_return(limit, counted + window, member)
  end
end

local function save_cooled()
  for limit, entries in pairs(cooled) do
    local of = key('returns', limit)
    local marked = expiring[of]
    chunked('ZADD', of, entries)
    if #tokens.upcoming(limit) > #entries then expiring[of] = marked end -- the key was there before
  end
  cooled = {}
end

-- End a lease of which nothing was sent; returns its record, or `false` when it was settled before.
function tokens.give_back(replica, lease)
  local record = tokens.close(replica, lease)
  if record then
    if #record.probes > 0 then closed_buckets().end_probe(lease, record, false) end
    for limit in pairs(record.windows) do tokens.count(limit, record.quota, -1) end
  end
  return record
end

function tokens.take(lease, class, quota, now, replica, client)
  local probes, used = {}, tokens.quota(quota)
  for limit in pairs(class.windows) do
    local bucket = tokens.bucket(limit, quota)
    if bucket.known ~= state.doubts then
      probes[#probes + 1] = limit
      closed_buckets().probe(limit, quota, lease, now + class.view.bound)
    end
  end
  state.uses = (state.uses + 1) % USES
  used.uses, used.used = state.uses, now
  tokens.open(replica, lease, { granted = now, quota = quota, probes = probes, windows = class.windows, client = client })
  for other, rest in pairs(revisions.rivals(class.view, quota)) do closed_buckets().rest(other, now + rest) end
  return #probes > 0
end

-- Take out what an answer showed to be spent beyond what is known to be taken.
local function learn(now, quota, limit, remaining, reset)
  local more = limit.requests - remaining - tokens.bucket(limit.id, quota).taken
  for _ = 1, more do
    state.strangers = state.strangers + 1
    create('ZADD', key('returns', limit.id), now + reset, STRANGER .. text(state.strangers) .. '@' .. quota)
  end
  if more > 0 then
    tokens.count(limit.id, quota, more)
    tokens.foreign[quota] = (tokens.foreign[quota] or 0) + more
  end
end

-- `settlement`: {'u'nsent, lease}, {'s'pent or 'n'ever answered, lease, age, {{limit, remaining, reset}, ...}} or
-- {'t'hrottled, lease, age, how long, limits}; returns the lease's record, or `false` when it was settled before
local function settle(now, replica, settlement, view)
  local what, lease, age, more, limits = unpack(settlement)
  if what == 'u' then return tokens.give_back(replica, lease) end
  local record = tokens.close(replica, lease)
  if not record then return record end
  tokens.cool(lease, record, now - age, what ~= 'n')
  if #record.probes > 0 then closed_buckets().end_probe(lease, record, true) end
  local service = max(0, min(now - age - record.granted, 60 * SECOND))
  state.service = state.service + floor((service - state.service) / 8)
  if what == 't' then
    for _, index in ipairs(limits) do closed_buckets().close(view.ids[index + 1], record.quota, now + more) end
  else
    for _, seen in ipairs(more or {}) do learn(now, record.quota, view.limits[seen[1] + 1], seen[2], seen[3]) end
  end
  return record
end

-- End leases; returns the clients of those that were not used.
function tokens.settle(now, replica, settlements, view)
  local leases, names, quotas, unsent = tokens.leases(replica), {}, {}, {}
  for index, settlement in ipairs(settlements) do names[index] = settlement[2] end
  fetch(leases, names)
  for _, lease in ipairs(names) do quotas[#quotas + 1] = leases.values[lease] and leases.values[lease].quota or nil end
  fetch_quotas(quotas)
  for _, settlement in ipairs(settlements) do
    local record = settle(now, replica, settlement, view)
    if record and settlement[1] == 'u' then unsent[#unsent + 1] = record.client end
  end
  return unsent
end

-- What happens without a settlement

-- The members of a limit's returns that are due, one more than return at once at the most.
local function due_of(limit, now)
  local entries, due = tokens.upcoming(limit), {}
  if #entries == 2 * FEW and tonumber(entries[2 * FEW]) <= now then
    upcoming[limit] = nil
    return call('ZRANGEBYSCORE', key('returns', limit), '-inf', now, 'LIMIT', 0, REPLENISHED + 1)
  end
  for index = 1, #entries, 2 do due[#due + 1] = tonumber(entries[index + 1]) <= now and entries[index] or nil end
  if #due > 0 then
    upcoming[limit] = { unpack(entries, 2 * #due + 1) }
    upcoming[limit].most = entries.most - #due
  end
  return due
end

-- Bring back what has cooled, and open what is closed no longer; says whether some is left to bring back.
function tokens.replenish(now)
  local left = false
  save_cooled()
  for _, limit in ipairs(tokens.limits()) do
    local due, quotas = due_of(limit, now), {}
    left, due[REPLENISHED + 1] = left or #due > REPLENISHED, nil
    if #due > 0 then call('ZREMRANGEBYRANK', key('returns', limit), 0, #due - 1) end
    for index, member in ipairs(due) do quotas[index] = tokens.quota_in(member) end
    local soon = tokens.upcoming(limit)[1] -- dealing.lua looks ahead to it
    if soon and state.classes > 0 then quotas[#due + 1] = tokens.quota_in(soon) end
    fetch_quotas(quotas)
    quotas[#due + 1] = nil
    for index, quota in ipairs(quotas) do
      if sub(due[index], 1, 1) == UNANSWERED and tokens.quota(quota).unanswered then tokens.bucket(limit, quota).known = 0 end
      tokens.count(limit, quota, -1)
      tokens.changed(quota)
    end
  end
  if state.opens <= now then closed_buckets().reopen(now) end
  return left
end

function tokens.forget_revision(name)
  for ranked, ranking in pairs(tokens.rankings()) do
    if ranking.view.name == name then
      call('DEL', ranking.key)
      state.rankings[ranked], rankings[ranked] = nil, nil
    end
  end
end

function tokens.save()
  for _, ranking in pairs(rankings or {}) do
    rank(ranking)
    if next(ranking.changed) then write_scores(ranking) end
  end
  for name in pairs(altered) do write(records, 'quota ' .. name, tokens.quota(name)) end
  for replica, leases in pairs(leases_of) do
    local added, ended = flush(leases)
    if added > 0 then -- those that were there before keep the key
      expiring[leases.key] = read(records, 'replica ' .. replica).leases - added + ended <= 0 or nil
    end
  end
end
