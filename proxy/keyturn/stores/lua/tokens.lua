-- The tokens of every limit on every quota of a pool.
--
-- `buckets`            hash: by `<limit> <quota>` tokens taken, the doubt since which it is known, the lease that probes it and
--                      when that is over, until when it is closed
-- `uses`               hash: number and instant of a quota's last use, whether its last request had no answer, until when it rests
-- `taken`              hash: tokens taken by limit, over all quotas
-- `returns:<limit>`    sorted set: `<lease>@<quota>` by the instant of the token's return
-- `closed`, `probing`  sorted sets: buckets by the instant at which they open; `resting`: quotas
-- `leases:<replica>`   hash: its leases that are not settled
-- `rankings`           set: `<revision>|<limits>`; `rank:<ranking>`: the quotas that can serve these limits, best first
local tokens = { touched = {}, foreign = {} }
local UNLIMITED = 1000000
local USES = 2 ^ 32
local REPLENISHED = 1000
local REOPENED = 100
local STRANGER, UNANSWERED = '~', '!'
local FEW = 8 -- returns that are read at first; more are rarely needed
local CLOSED, RESTING, PROBING, RANKINGS = base .. ':closed', base .. ':resting', base .. ':probing', base .. ':rankings'
local buckets, quotas, totals = records('buckets'), records('uses'), records('taken')
local leases_of, rankings, upcoming, shut = {}, nil, {}, nil

function tokens.leases(replica)
  leases_of[replica] = leases_of[replica] or records('leases:' .. replica)
  return leases_of[replica]
end

local function bucket_of(limit, quota)
  local name = limit .. ' ' .. quota
  local bucket = read(buckets, name)
  if not bucket then
    bucket = { taken = 0, known = 0, probing = false, probed = 0, closed = 0 }
    buckets.values[name] = bucket
  end
  return bucket, name
end

function tokens.quota(name)
  quotas.values[name] = read(quotas, name) or { uses = 0, used = 0, unanswered = false, resting = 0 }
  return quotas.values[name]
end

function tokens.taken(limit, quota) return bucket_of(limit, quota).taken end

function tokens.total(limit) return read(totals, limit) or 0 end

function tokens.quota_in(member) return match(member, '@(.*)$') end

-- Availability

-- How many requests under these limits a quota could serve: now, or at an instant to come, with what will have `returned`.
function tokens.available(view, limits, quota, at, returned)
  local least = UNLIMITED
  at = at or 0
  if tokens.quota(quota).resting > at then return 0 end
  for _, index in ipairs(limits) do
    local limit = view.limits[index + 1]
    local bucket, name = bucket_of(limit.id, quota)
    if bucket.probed > at or bucket.closed > at then return 0 end
    least = min(least, limit.requests - bucket.taken + (returned and returned[name] or 0))
  end
  return max(0, least)
end

local function add_ranking(name)
  local revision, limits = match(name, '^([^|]*)|(.*)$')
  local ranking = { key = key('rank', name), view = revisions.view(revision), limits = {}, changed = {} }
  for index in gmatch(limits, '%d+') do ranking.limits[#ranking.limits + 1] = tonumber(index) end
  rankings[name] = ranking
  return ranking
end

function tokens.rankings()
  if not rankings then
    rankings = {}
    for _, name in ipairs(call('SMEMBERS', RANKINGS)) do add_ranking(name) end
  end
  return rankings
end

-- Give quotas their scores, or only those that have one (`XX`), and forget which was first.
local function rank(ranking, names, ...)
  local entries = { ... }
  for quota in pairs(names) do
    local available = tokens.available(ranking.view, ranking.limits, quota)
    entries[#entries + 1], entries[#entries + 2] = tokens.quota(quota).uses - USES * available, quota
    if #entries > CHUNK then
      call('ZADD', ranking.key, unpack(entries))
      entries = { ... }
    end
  end
  if #entries > 1 then call('ZADD', ranking.key, unpack(entries)) end
  ranking.changed, ranking.first = {}, nil
end

-- The quota to serve a demand class (flows.lua) from.
function tokens.best(class)
  if class.pinned then return tokens.available(class.view, class.limits, class.pinned) > 0 and class.pinned or nil end
  local ranking = class.ranking or tokens.rankings()[class.view.name .. '|' .. class.joined]
  if not ranking then
    local names = {}
    ranking = add_ranking(class.view.name .. '|' .. class.joined)
    create('SADD', RANKINGS, class.view.name .. '|' .. class.joined)
    for _, quota in ipairs(call('SMEMBERS', key('quotas', class.view.name))) do names[quota] = true end
    expiring[ranking.key] = true
    rank(ranking, names)
  end
  class.ranking = ranking
  if next(ranking.changed) then rank(ranking, ranking.changed, 'XX') end
  if ranking.first == nil then
    local quota, score = first_of(ranking.key)
    ranking.first = quota and score < 0 and quota
  end
  return ranking.first or nil
end

local function changed(quota)
  tokens.touched[quota] = true
  for _, ranking in pairs(tokens.rankings()) do ranking.changed[quota] = true end
end

function tokens.forget_revision(name)
  for ranked, ranking in pairs(tokens.rankings()) do
    if ranking.view.name == name then
      call('DEL', ranking.key)
      call('SREM', RANKINGS, ranked)
      rankings[ranked] = nil
    end
  end
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
  for limit, taken in pairs(read_all(totals)) do
    if taken and taken > 0 then limits[#limits + 1] = limit end
  end
  table.sort(limits)
  return limits
end

-- The first buckets that are closed, quotas that rest, and buckets that are probed, each with the instant at which it opens.
function tokens.closed()
  if not shut then
    shut = {}
    for index, of in ipairs({ CLOSED, RESTING, PROBING }) do shut[index] = call('ZRANGE', of, 0, REOPENED - 1, 'WITHSCORES') end
  end
  return unpack(shut)
end

-- Of quotas that are closed under a limit, or rest: {until, tokens that are not taken, quota}.
function tokens.shut_under(view, limit)
  local found, rows, closed, resting = {}, {}, tokens.closed()
  local function note(quota, till)
    if quota and revisions.contains(view, quota) then found[quota] = max(found[quota] or 0, tonumber(till)) end
  end
  for index = 1, #closed, 2 do
    local id, quota = match(closed[index], '^(%S+) (.*)$')
    note(id == limit.id and quota, closed[index + 1])
  end
  for index = 1, #resting, 2 do note(resting[index], resting[index + 1]) end
  for quota, till in pairs(found) do
    rows[#rows + 1] = { till, max(0, limit.requests - bucket_of(limit.id, quota).taken), quota }
  end
  return rows
end

-- {tokens in all, available, the delay until the next} of a limit
function tokens.budget(view, limit, now)
  local size, taken, first = limit.requests * view.size, tokens.total(limit.id), tokens.upcoming(limit.id)[2]
  local hand, delay = max(0, size - taken), taken ~= 0 and limit.window + state.service or 0
  if first then delay = max(0, first - now) end
  local rows, opens, lost = tokens.shut_under(view, limit), math.huge, 0
  for _, row in ipairs(rows) do opens, lost = min(opens, max(0, row[1] - now)), lost + row[2] end
  if #rows >= view.size and #rows > 0 then
    delay = hand > 0 and opens or max(delay, opens)
  elseif hand > 0 and hand <= lost then
    delay = taken ~= 0 and min(delay, opens) or opens
  end
  return { size, max(0, hand - lost), delay }
end

-- Taking and settling

local function count(limit, quota, number)
  local bucket, name = bucket_of(limit, quota)
  bucket.taken = bucket.taken + number
  write(buckets, name, bucket)
  local total = tokens.total(limit) + number
  write(totals, limit, total ~= 0 and total)
end

local function open(replica, lease, record)
  write(tokens.leases(replica), lease, record)
  for limit in pairs(record.windows) do count(limit, record.quota, 1) end
  changed(record.quota)
end

function tokens.rest(name, till)
  local quota = tokens.quota(name)
  if till > quota.resting then
    quota.resting, shut = till, nil
    write(quotas, name, quota)
    create('ZADD', RESTING, till, name)
    changed(name)
  end
end

function tokens.take(lease, class, quota, now, replica, client)
  local probes, used = {}, tokens.quota(quota)
  for limit in pairs(class.windows) do
    local bucket = bucket_of(limit, quota)
    if bucket.known ~= state.doubts then
      probes[#probes + 1], shut = limit, nil
      bucket.probing, bucket.probed = lease, now + class.view.bound -- written as it is counted
      create('ZADD', PROBING, bucket.probed, limit .. ' ' .. quota)
    end
  end
  state.uses = (state.uses + 1) % USES
  used.uses, used.used = state.uses, now
  write(quotas, quota, used)
  open(replica, lease, { granted = now, quota = quota, probes = probes, windows = class.windows, client = client })
  for other, rest in pairs(revisions.rivals(class.view, quota)) do tokens.rest(other, now + rest) end
  return #probes > 0
end

local function close_lease(replica, lease)
  local record = read(tokens.leases(replica), lease)
  if record then
    write(tokens.leases(replica), lease, false)
    changed(record.quota)
  end
  return record
end

local function cool(lease, record, counted, answered)
  local quota, member = tokens.quota(record.quota), (answered and '' or UNANSWERED) .. lease .. '@' .. record.quota
  quota.unanswered = not answered
  write(quotas, record.quota, quota)
  for limit, window in pairs(record.windows) do create('ZADD', key('returns', limit), counted + window, member) end
end

-- A bucket is probed no longer; says its quota.
local function end_probing(name, known)
  local bucket = read(buckets, name)
  bucket.probing, bucket.probed, shut = false, 0, nil
  bucket.known = known and state.doubts or bucket.known
  write(buckets, name, bucket)
  call('ZREM', PROBING, name)
  return match(name, ' (.*)$')
end

local function end_probe(lease, record, known)
  for _, limit in ipairs(record.probes) do
    local bucket, name = bucket_of(limit, record.quota)
    if bucket.probing == lease then end_probing(name, known) end
  end
end

-- End a lease of which nothing was sent; returns its record, or `false` when it was settled before.
function tokens.give_back(replica, lease)
  local record = close_lease(replica, lease)
  if record then
    end_probe(lease, record, false)
    for limit in pairs(record.windows) do count(limit, record.quota, -1) end
  end
  return record
end

local function learn(now, quota, limit, remaining, reset)
  local more = limit.requests - remaining - bucket_of(limit.id, quota).taken
  for _ = 1, more do
    state.strangers = state.strangers + 1
    create('ZADD', key('returns', limit.id), now + reset, STRANGER .. text(state.strangers) .. '@' .. quota)
  end
  if more > 0 then
    count(limit.id, quota, more)
    tokens.foreign[quota] = (tokens.foreign[quota] or 0) + more
  end
end

-- `settlement`: {'u'nsent, lease}, {'s'pent or 'n'ever answered, lease, age, {{limit, remaining, reset}, ...}} or
-- {'t'hrottled, lease, age, how long, limits}; returns the lease's record, or `false` when it was settled before
function tokens.settle(now, replica, settlement, view)
  local what, lease, age, more, limits = unpack(settlement)
  if what == 'u' then return tokens.give_back(replica, lease) end
  local record = close_lease(replica, lease)
  if not record then return record end
  cool(lease, record, now - age, what ~= 'n')
  end_probe(lease, record, true)
  local service = max(0, min(now - age - record.granted, 60 * SECOND))
  state.service = state.service + floor((service - state.service) / 8)
  for _, index in ipairs(what == 't' and limits or {}) do
    local bucket, name = bucket_of(view.ids[index + 1], record.quota)
    write(buckets, name, bucket)
    if bucket.probing then end_probing(name, false) end -- the refusal is newer than what its answer will say
    bucket.known, bucket.closed, shut = 0, max(now + more, bucket.closed), nil
    create('ZADD', CLOSED, bucket.closed, name)
  end
  for _, seen in ipairs(what ~= 't' and more or {}) do
    learn(now, record.quota, view.limits[seen[1] + 1], seen[2], seen[3])
  end
  return record
end

-- What happens without a settlement

local function reopen(of, entries, now, open_one)
  for index = 1, #entries, 2 do
    if tonumber(entries[index + 1]) <= now then
      call('ZREM', of, entries[index])
      changed(open_one(entries[index]))
      shut = nil
    end
  end
end

-- Bring back what has cooled, and open what is closed no longer; says whether some is left to bring back.
function tokens.replenish(now)
  local left = false
  for _, limit in ipairs(tokens.limits()) do
    local due = call('ZRANGEBYSCORE', key('returns', limit), '-inf', now, 'LIMIT', 0, REPLENISHED + 1)
    left, due[REPLENISHED + 1] = left or #due > REPLENISHED, nil
    if #due > 0 then call('ZREMRANGEBYRANK', key('returns', limit), 0, #due - 1) end
    for _, member in ipairs(due) do
      local quota = tokens.quota_in(member)
      if sub(member, 1, 1) == UNANSWERED and tokens.quota(quota).unanswered then bucket_of(limit, quota).known = 0 end
      count(limit, quota, -1)
      changed(quota)
    end
  end
  upcoming = {}
  local closed, resting, probing = tokens.closed()
  reopen(CLOSED, closed, now, function(name)
    local bucket = read(buckets, name)
    bucket.closed = 0
    write(buckets, name, bucket)
    return match(name, ' (.*)$')
  end)
  reopen(RESTING, resting, now, function(name)
    local quota = tokens.quota(name)
    quota.resting = 0
    write(quotas, name, quota)
    return name
  end)
  reopen(PROBING, probing, now, function(name) return end_probing(name, true) end)
  return left
end

function tokens.lapse(replica, counted)
  for lease in pairs(read_all(tokens.leases(replica))) do
    local record = close_lease(replica, lease)
    if record then
      cool(lease, record, counted, true)
      end_probe(lease, record, true)
    end
  end
end

-- By limit and member, when tokens of these leases return: few commands, for a replica may report thousands.
local function instants_of(held)
  local members, instants = {}, {}
  for _, row in ipairs(held) do
    for limit in pairs(row[4]) do
      local of_limit, member = members[limit] or {}, row[1] .. '@' .. row[2]
      members[limit] = of_limit
      of_limit[#of_limit + 1], of_limit[#of_limit + 2] = UNANSWERED .. member, member
    end
  end
  for limit, of_limit in pairs(members) do
    instants[limit] = {}
    for first = 1, #of_limit, CHUNK do
      local found = call('ZMSCORE', key('returns', limit), unpack(of_limit, first, min(first + CHUNK - 1, #of_limit)))
      for place, instant in ipairs(found) do instants[limit][of_limit[first + place - 1]] = tonumber(instant or nil) end
    end
  end
  return instants
end

-- `held`: rows of {lease, quota, client, windows, age of the grant, age of the counting or nothing}
function tokens.restore(now, replica, held)
  local leases, named, instants, cooled = read_all(tokens.leases(replica)), {}, instants_of(held), {}
  for _, row in ipairs(held) do
    local lease, quota, client, windows, granted, counted = unpack(row)
    named[lease] = true
    if counted and leases[lease] then tokens.give_back(replica, lease) end
    for limit, window in pairs((counted or not leases[lease]) and windows or {}) do
      local member = lease .. '@' .. quota
      member = instants[limit][UNANSWERED .. member] and UNANSWERED .. member or member
      local before = instants[limit][member]
      if counted then
        local entries = cooled[limit] or {}
        cooled[limit] = entries
        entries[#entries + 1], entries[#entries + 2] = max(now - counted + window, before or 0), member
        count(limit, quota, before and 0 or 1)
      elseif before then
        call('ZREM', key('returns', limit), member)
        count(limit, quota, -1)
      end
    end
    if not counted and not leases[lease] then
      open(replica, lease, { granted = now - granted, quota = quota, probes = {}, windows = windows, client = client })
    end
    changed(quota)
  end
  for limit, entries in pairs(cooled) do
    expiring[key('returns', limit)] = true
    chunked('ZADD', key('returns', limit), entries)
  end
  for lease in pairs(leases) do
    if not named[lease] then tokens.give_back(replica, lease) end
  end
end

function tokens.holds(replica)
  flush(tokens.leases(replica))
  return call('EXISTS', tokens.leases(replica).key) == 1
end

function tokens.save()
  for _, ranking in pairs(rankings or {}) do rank(ranking, ranking.changed, 'XX') end
  for _, leases in pairs(leases_of) do flush(leases) end
  flush(buckets)
  flush(quotas)
  flush(totals)
end

return tokens
