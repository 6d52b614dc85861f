-- Closed buckets: by the upstream, while a probe is in flight, or since a key was used under another quota.
--
-- `closed`, `probing`  sorted sets: `<limit> <quota>` by the instant at which the bucket opens
-- `resting`            sorted set: quotas by the instant at which they open
--
-- The state's `opens` is no later than the earliest of these instants. The record of each quota lists its closed buckets, too.
local closed = {}
local REOPENED = 100
local CLOSED, RESTING, PROBING = base .. ':closed', base .. ':resting', base .. ':probing'
local shut = nil

-- The first buckets that are closed, quotas that rest, and buckets that are probed, each with the instant at which it opens.
function closed.list()
  if not shut then
    shut = { {}, {}, {} }
    if state.opens < NEVER then
      state.opens = NEVER
      for index, of in ipairs({ CLOSED, RESTING, PROBING }) do
        shut[index] = call('ZRANGE', of, 0, REOPENED - 1, 'WITHSCORES')
        state.opens = min(state.opens, tonumber(shut[index][2]) or NEVER)
      end
    end
  end
  return unpack(shut)
end

local function shut_until(of, instant, name)
  create('ZADD', of, instant, name)
  state.opens, shut = min(state.opens, instant), nil
end

-- Of quotas that are closed under a limit, or rest: {until, tokens that are not taken, quota}.
function closed.under(view, limit)
  if state.opens == NEVER then return {} end
  local found, rows, buckets, resting = {}, {}, closed.list()
  local function note(quota, till)
    if quota and revisions.contains(view, quota) then found[quota] = max(found[quota] or 0, tonumber(till)) end
  end
  for index = 1, #buckets, 2 do
    local id, quota = match(buckets[index], '^(%S+) (.*)$')
    note(id == limit.id and quota, buckets[index + 1])
  end
  for index = 1, #resting, 2 do note(resting[index], resting[index + 1]) end
  for quota, till in pairs(found) do
    rows[#rows + 1] = { till, max(0, limit.requests - tokens.bucket(limit.id, quota).taken), quota }
  end
  return rows
end

function closed.rest(name, till)
  local quota = tokens.quota(name)
  if till > (quota.resting or 0) then
    quota.resting = till
    shut_until(RESTING, till, name)
    tokens.changed(name)
  end
end

-- A bucket is probed no longer.
local function end_probing(limit, quota, known)
  local bucket = tokens.bucket(limit, quota)
  bucket.probing, bucket.probed, shut = nil, nil, nil
  bucket.known = known and state.doubts or bucket.known
  call('ZREM', PROBING, limit .. ' ' .. quota)
end

function closed.probe(limit, quota, lease, till)
  local bucket = tokens.bucket(limit, quota)
  bucket.probing, bucket.probed = lease, till
  shut_until(PROBING, till, limit .. ' ' .. quota)
end

function closed.end_probe(lease, record, known)
  for _, limit in ipairs(record.probes) do
    if tokens.bucket(limit, record.quota).probing == lease then end_probing(limit, record.quota, known) end
  end
end

function closed.close(limit, quota, till)
  local bucket = tokens.bucket(limit, quota)
  if bucket.probing then end_probing(limit, quota, false) end -- the refusal is newer than what its answer will say
  bucket.known, bucket.closed = 0, max(till, bucket.closed or 0)
  shut_until(CLOSED, bucket.closed, limit .. ' ' .. quota)
end

local function open_due(of, entries, now, open_one)
  for index = 1, #entries, 2 do
    if tonumber(entries[index + 1]) <= now then
      local limit, quota = match(entries[index], '^(%S*) ?(.*)$')
      call('ZREM', of, entries[index])
      shut = nil
      open_one(limit, quota)
      tokens.changed(quota ~= '' and quota or limit)
    end
  end
end

function closed.reopen(now)
  local buckets, resting, probing = closed.list()
  open_due(CLOSED, buckets, now, function(limit, quota) tokens.bucket(limit, quota).closed = nil end)
  open_due(RESTING, resting, now, function(name) tokens.quota(name).resting = nil end)
  open_due(PROBING, probing, now, function(limit, quota) end_probing(limit, quota, true) end)
end

return closed
