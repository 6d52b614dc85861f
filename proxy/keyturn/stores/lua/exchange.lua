-- The one operation on a pool's state (core/state.py): settle, replenish, note who waits, deal, look ahead.
--
-- ARGV[1]  an ExchangeRequest (core/messages.py), with `pins` if a snapshot is wanted, too; only tests give it `now` and `run`
-- Returns  an ExchangeResponse as nested arrays, and the snapshot
--
-- `replica <replica>`   record: its last serial, when it is to call, whether its demands are unknown, its revision, the leases that its
--                       last request was answered with, how many are reserved for it, and the numbers of its leases and flows
-- `seen`                sorted set: replicas by the instant of their last request; the state's `lapses` is no later than the first is gone
-- `ahead`               sorted set: by how much each replica that holds leases or waits saw the clock run ahead
-- `uncollected`         sorted set: replicas with reservations, by the instant at which these end
-- `reserved:<replica>`  list: lease, client, limits, pinned, quota, probe
--
-- The first write is one that a server denies when its memory is full (ZADD, HSET): nothing was removed then.
local WAKE_MARGIN = 5 * MILLISECOND
local COLLECT = SECOND / 2
local HEARTBEAT = 2 * SECOND
local RECOVERY_GRACE = HEARTBEAT + SECOND / 2
local DEALT = 256
local DRIFT = 10 * MILLISECOND
local MILLION = 1000000
local RATE_MEMORY = 20 * SECOND
local MAX_RATE = 100000
local LAPSED = 16
local SEEN, CLOCKS, UNCOLLECTED = base .. ':seen', base .. ':ahead', base .. ':uncollected'
local caller, woken, reserved = request.replica, {}, {}

local function member_of(replica) return read(records, 'replica ' .. replica) end

local function save_member(replica, member) write(records, 'replica ' .. replica, member) end

local function replicas() return call('ZRANGE', SEEN, 0, -1) end

-- Trust

-- What few exchanges need: when a replica is new or reports, an epoch begins, or a revision is learnt.
local rare = lazily(function()
  -- Try every command of this script on a key that is gone afterwards: one that is refused midway would leave half an
  -- exchange behind, and a lease that it dealt would be dealt once more.
  local function may_do_all()
    local none = KEYS[2]
    for _, command in ipairs({
      { 'TIME' }, { 'EXISTS', none }, { 'DEL', none }, { 'EXPIRE', none, 1 },
      { 'HGET', none, 'f' }, { 'HMGET', none, 'f' }, { 'HGETALL', none }, { 'HKEYS', none }, { 'HLEN', none },
      { 'HDEL', none, 'f' }, { 'SISMEMBER', none, 'm' }, { 'SMEMBERS', none }, { 'SREM', none, 'm' },
      { 'LRANGE', none, 0, 0 }, { 'ZCARD', none }, { 'ZMSCORE', none, 'm' }, { 'ZRANGE', none, 0, 0 },
      { 'ZRANGEBYSCORE', none, 0, 0 }, { 'ZREM', none, 'm' }, { 'ZREMRANGEBYRANK', none, 0, 0 },
    }) do
      call(unpack(command))
    end
    for _, command in ipairs({
      { 'ZADD', none, 0, 'm' }, { 'HSET', none, 'f', 1 }, { 'SADD', none, 'm' }, { 'RPUSH', none, 'm' },
    }) do
      call(unpack(command))
      call('DEL', none)
    end
  end

  local function begin(now, run)
    state.lost, state.grace = state.epoch ~= '' and 1 or 0, now + RECOVERY_GRACE
    state.run, state.epoch = run, text(now) .. '-' .. sub(run, 1, 8)
    state.version, state.leases = max(state.version, now), max(state.leases, now)
    state.shared, state.doubts, state.uncollected = state.replicas, state.doubts + 1, 0
    write(records, 'state', state)
    flush(records)
    call('DEL', UNCOLLECTED)
    for _, replica in ipairs(replicas()) do
      local member = member_of(replica)
      if member.reserved > 0 then call('DEL', key('reserved', replica)) end
      member.reserved, member.forgotten = 0, true
      save_member(replica, member)
    end
  end

  -- A new revision has keys of `rival` under another quota: that rests for what was granted on the rival already.
  local function rest_by_past(now, quota, rival)
    local used, longest = tokens.quota(rival).used, 0
    for _, view in ipairs(used > 0 and revisions.rare().all() or {}) do
      longest = max(longest, revisions.contains(view, rival) and view.longest or 0)
    end
    if used + longest > now then closed_buckets().rest(quota, used + longest) end
  end

  local function learn(now)
    local view = revisions.rare().learn(request.spelled, now)
    for _, quota in ipairs(call('HKEYS', key('rivals', view.name))) do
      for rival in pairs(revisions.rivals(view, quota)) do rest_by_past(now, quota, rival) end
    end
    return view
  end

  return { may_do_all = may_do_all, begin = begin, learn = learn }
end)

local function set_back(ahead) state.shift, state.now = state.shift - ahead, state.now - ahead end

local function slow_down(time)
  local passed = max(0, min(time - state.time, RATE_MEMORY))
  state.shift = state.shift - floor(passed * state.rate / MILLION)
  state.rate, state.time = floor(state.rate * (RATE_MEMORY - passed) / RATE_MEMORY), time
end

local function clock(member)
  local told = request.now and { 0, request.now } or call('TIME')
  local time = told[1] * SECOND + told[2]
  if request.stepped > 0 and request.epoch == state.epoch then set_back(request.stepped) end
  slow_down(time)
  if request.epoch == '' or request.epoch == state.epoch then
    local ahead = request.ahead + state.corrected
    if not member or member.ahead ~= ahead then create('ZADD', CLOCKS, ahead, caller) end
    if member and member.ahead ~= ahead then
      member.ahead = ahead
      save_member(caller, member)
    end
    local least = request.ahead
    if least > DRIFT then -- others may have seen less
      local _, others = first_of(CLOCKS)
      least = others - state.corrected
    end
    if least > DRIFT then
      state.rate = min(MAX_RATE, state.rate + floor(least * MILLION / max(SECOND, time - state.rated)))
      state.corrected, state.rated = state.corrected + least, time
      set_back(least)
    end
  end
  local now = time + state.shift
  state.now, state.shift = max(now, state.now), state.shift + max(0, state.now - now)
  return state.now
end

local function suspect(now, run)
  local member, same = member_of(caller), request.epoch == state.epoch
  local behind = request.version > state.version or (member and request.heard > member.serial)
  if state.epoch == '' or run ~= state.run or (same and (behind or request.stepped > 0)) then rare().begin(now, run) end
  if request.epoch ~= '' and request.epoch ~= state.epoch then
    state.shared = max(state.shared, request.replicas)
    if state.lost == 0 then state.lost, state.grace = 1, now + RECOVERY_GRACE end
  end
end

local function awaits_reports(now) return state.lost == 1 and now < state.grace end

local function asks_of(member)
  local asks = {}
  if member and request.serial <= member.serial then return { 'nothing' } end
  if not request.spelled and not revisions.view(request.revision) then asks[1] = 'revision' end
  if request.epoch ~= '' and request.epoch ~= state.epoch and not request.held then asks[#asks + 1] = 'held' end
  if not request.full and (not member or member.forgotten) then asks[#asks + 1] = 'demands' end
  return asks
end

local function return_lease(replica, lease)
  local record = tokens.give_back(replica, lease)
  if record then flows.rare().refund(record.client) end
end

-- Take out what is reserved for a replica.
local function take_reserved(replica, member)
  local grants = {}
  if member.reserved > 0 then
    for index, row in ipairs(call('LRANGE', key('reserved', replica), 0, -1)) do grants[index] = cmsgpack.unpack(row) end
    call('DEL', key('reserved', replica))
    call('ZREM', UNCOLLECTED, replica)
    member.reserved, state.uncollected = 0, state.uncollected - 1
    save_member(replica, member)
  end
  return grants
end

local function forget_demands(replica, member)
  for _, grant in ipairs(take_reserved(replica, member)) do return_lease(replica, grant[1]) end
  if member.flows > 0 then flows.rare().forget(replica, {}) end
  member.forgotten = true
  save_member(replica, member)
end

local function use(now)
  local view = revisions.view(request.revision)
  if not view then
    view = rare().learn(now)
  end
  for _, name in ipairs(revisions.use(request.revision, now)) do
    for _, replica in ipairs(replicas()) do
      local member = member_of(replica)
      if member.revision == name then forget_demands(replica, member) end
    end
    tokens.forget_revision(name)
  end
  return view
end

local function hear(now, member)
  for _, lease in ipairs(request.heard ~= member.serial and member.granted or {}) do return_lease(caller, lease) end
  -- Reservations are told by the limits of the other revision, or not at all.
  if (member.reserved > 0 and request.held) or (member.revision ~= '' and member.revision ~= request.revision) then
    forget_demands(caller, member)
  end
  member.serial, member.revision = request.serial, request.revision
  if request.held then recovery().restore(now, caller, request.held) end
end

local function expire(now)
  for _ = 1, state.lapses <= now and LAPSED or 0 do
    local gone, seen = first_of(SEEN)
    state.lapses = gone and seen + state.bound or NEVER
    if state.lapses > now then break end
    call('ZREM', SEEN, gone)
    forget_demands(gone, member_of(gone))
    recovery().lapse(gone, seen + state.bound)
    call('ZREM', CLOCKS, gone)
    state.replicas = state.replicas - 1
    save_member(gone, false)
  end
  for _ = 1, state.uncollected > 0 and LAPSED or 0 do
    local silent, ends = first_of(UNCOLLECTED)
    if not silent or ends > now then break end
    forget_demands(silent, member_of(silent))
  end
  if state.idle <= state.virtual_time or state.classes == 0 then flows.rare().forget_idle() end
end

-- Demands and dealing

-- A demand is {client, weight, waiting, limits, pinned or nothing}; `collected` are the grants that were reserved.
local function note_demands(member, collected)
  local less, named = {}, {}
  for _, demand in ipairs(request.demands) do named[demand.flow] = true end
  if request.full then
    flows.rare().forget(caller, named)
    member.forgotten = false
  end
  for _, grant in ipairs(collected) do
    local flow = request.revision .. '|' .. grant[3] .. '|' .. grant[4] .. '|' .. grant[2]
    less[flow] = (less[flow] or 0) + 1
  end
  for _, demand in ipairs(request.demands) do
    if demand[5] then tokens.touched[demand[5]] = true end
    local waiting = max(0, demand[3] - (less[demand.flow] or 0))
    flows.put(caller, flows.class(demand.class), demand[1], demand[2], waiting)
  end
end

local function reserve(now, replica, grant)
  local member = member_of(replica)
  if member.reserved == 0 then
    create('ZADD', UNCOLLECTED, now + COLLECT, replica)
    member.due, woken[replica], state.uncollected = now, 0, state.uncollected + 1
  end
  member.reserved = member.reserved + 1
  save_member(replica, member)
  reserved[replica] = reserved[replica] or {}
  table.insert(reserved[replica], cmsgpack.pack(grant))
end

-- Grant what is available in fair order: to the caller (added to `grants`), or reserved for other replicas; says whether
-- some may be left.
local function deal(now, grants)
  return dealing.deal(DEALT, function(class, flow, quota)
    local replica = flows.serve(class, flow)
    state.leases, state.dealt = state.leases + 1, state.dealt + 1
    local lease = text(state.leases)
    local probe = tokens.take(lease, class, quota, now, replica, flow.client)
    local grant = { lease, flow.client, class.joined, class.pinned or '', quota, probe and 1 or 0 }
    if replica == caller then
      grants[#grants + 1] = grant
    else
      reserve(now, replica, grant)
    end
  end)
end

-- When the caller is to call again; another replica whose turn is next is woken, if it was told a later time.
local function heartbeat_of(now)
  local usual = min(HEARTBEAT, floor(state.bound / 2))
  if state.uncollected == 0 or not flows.waits(caller) then return usual end
  local _, ends = first_of(UNCOLLECTED)
  return min(usual, max(MILLISECOND, ends - now))
end

local function again_of(now, member, left)
  local heartbeat = heartbeat_of(now)
  local waits = flows.waits(caller)
  local again = (waits or member.leases > 0) and heartbeat or nil
  if left then
    again = MILLISECOND
  elseif awaits_reports(now) then
    again = again and min(heartbeat, max(MILLISECOND, state.grace - now))
  elseif state.classes > 0 then
    local instant, replica = dealing.look_ahead(caller)
    local other = replica and member_of(replica)
    if replica and waits then
      again = min(heartbeat, max(MILLISECOND, instant - now) + (replica ~= caller and COLLECT or 0))
    end
    if replica ~= caller and other and other.due > instant + WAKE_MARGIN then
      other.due, woken[replica] = instant, max(0, instant - now)
      save_member(replica, other)
    end
  end
  if not again then
    call('ZREM', CLOCKS, caller)
    member.ahead = nil
  end
  member.due = again and now + again or 0
  return again or -1
end

-- Write what is not written yet, and put off the expiry of keys: of those that may be new, now and then of all that last.
local function save(now)
  flows.save()
  tokens.save()
  for replica, grants in pairs(reserved) do chunked('RPUSH', key('reserved', replica), grants) end
  if now >= state.renewed + RENEW or now < state.renewed then
    state.renewed = now
    for name in gmatch('records seen ahead closed resting probing idle', '%a+') do expiring[base .. ':' .. name] = true end
    for name in pairs(state.used) do
      for kind in gmatch('quotas owners rivals', '%a+') do expiring[key(kind, name)] = true end
    end
    for _, ranking in pairs(tokens.rankings()) do expiring[ranking.key] = true end
    for limit in pairs(state.taken) do expiring[key('returns', limit)] = true end
    for _, replica in ipairs(replicas()) do expiring[key('leases', replica)] = true end
  end
  write(records, 'state', state)
  flush(records)
  for name in pairs(expiring) do call('EXPIRE', name, state.life) end
end

local function rows_of(numbers)
  local rows = {}
  for name, number in pairs(numbers) do rows[#rows + 1] = { name, number } end
  return rows
end

if request.heard == 0 or request.held then rare().may_do_all() end
load_state(flows.named(request.demands, { 'replica ' .. caller, 'revision ' .. request.revision }))
local now = clock(member_of(caller))
suspect(now, request.run or match(call('INFO', 'server'), 'run_id:(%w+)') or '')
local member = member_of(caller)
local asks = asks_of(member)
if #asks > 0 then
  save(now)
  return { state.epoch, state.version, now, asks }
end
state.version = state.version + 1
member = member or { serial = 0, due = 0, forgotten = true, reserved = 0, leases = 0, flows = 0, revision = '', granted = {} }
save_member(caller, member)
state.replicas, state.lapses = state.replicas + create('ZADD', SEEN, now, caller), min(state.lapses, now + state.bound)
local view = use(now)
hear(now, member)
expire(now)
for _, client in ipairs(tokens.settle(now, caller, request.settlements, view)) do flows.rare().refund(client) end
local left = tokens.replenish(now)
local grants, budgets = take_reserved(caller, member), {}
note_demands(member, grants)
dealing.find_ready(not awaits_reports(now))
if not awaits_reports(now) then left = deal(now, grants) or left end
member.granted = {}
for index, grant in ipairs(grants) do member.granted[index] = grant[1] end
local again, awaits = again_of(now, member, left), awaits_reports(now)
for index, limit in ipairs(view.limits) do
  budgets[index] = tokens.budget(view, limit, now)
  budgets[index][2] = awaits and 0 or budgets[index][2]
end
save(now)
for replica, delay in pairs(woken) do redis.pcall('PUBLISH', key('wake', replica), text(delay)) end -- if it is allowed
local seen = request.pins and snapshot()(view, now, request.pins) or {}
return {
  state.epoch, state.version, now, asks, grants, budgets, again, rows_of(woken),
  max(state.replicas, awaits and state.shared or 0), state.dealt, rows_of(tokens.foreign), seen,
}
