-- Which request gets the next token, and which replica the one after: the fair queue over the buckets.
local MAX_CANDIDATES = 2000
local MAX_EVENTS = 64
local READY = flows.READY

-- The first two entries of the ready set, where they are known: a class, its place, another, its place. Where only one
-- class is ready, `alone`, it is not written.
local first, alone

-- A class is ready at its present place.
local function put_ready(class)
  local _, place = flows.head(class)
  local other = first and tonumber(first[4])
  if first and first[1] == class.name and (not other or place < other) then
    first[2] = place -- in the set it may be too low
  else
    call('ZADD', READY, place, class.name)
    first = nil
  end
end

-- Of each client's classes in which it waits alone, the one whose turn it is is ready, the others are not (`_ClientTurns`).
local turns, clients = {}, {}

local function begin_turn(class, flow)
  local rows, turn = turns[flow.client] or {}, flow.total.turn
  turns[flow.client] = rows
  if not clients[class] then
    local place = #rows + 1
    while place > 1 and (rows[place - 1].turn > turn
      or (rows[place - 1].turn == turn and rows[place - 1].class.name > class.name)) do place = place - 1 end
    table.insert(rows, place, { turn = turn, class = class })
    clients[class] = flow.client
  end
  return rows
end

-- A class was served, or cannot be any more; returns the turns of its client, if it had its turn.
local function end_turn(class)
  local rows = turns[clients[class]]
  clients[class] = nil
  if rows then table.remove(rows, 1) end -- the only one that was ready
  return rows
end

-- Of these turns the first is ready, after a class took or lost its place among them.
local function show_turn(rows, class)
  local one, other = rows[1], rows[2]
  if one and (other or one.class ~= class) then
    call('ZREM', READY, class.name, other and other.class.name or class.name)
    first = nil
  end
  if one then put_ready(one.class) end
end

local function end_turns()
  for _, waiting in pairs(turns) do
    for index = 2, #waiting do put_ready(waiting[index].class) end
  end
end

-- The first class that is ready has a token of this quota, or none: grant it, or put the class right; returns what was granted.
local function serve_first(class, quota, grant)
  if not quota then
    if not alone then call('ZREM', READY, class.name) end
    first = not first[3] and {} or nil
    local rows = end_turn(class)
    if rows then show_turn(rows, class) end
    return 0
  end
  local flow, place = flows.head(class)
  if place == tonumber(first[2]) then
    local number = state.classes
    grant(class, flow, quota)
    if alone then
      first = class.own.clients > 0 and first or {}
    elseif state.classes ~= number or state.lifted > 0 then
      first = nil
    end
    local rows = end_turn(class)
    if rows and class.flows[flow.client] then rows = begin_turn(class, flow) end
    if rows then show_turn(rows, class) end
    return 1
  elseif class.own.clients == 1 then
    show_turn(begin_turn(class, flow), class)
  else
    put_ready(class)
  end
  return 0
end

-- Call `grant` with each request that is to be served (class, flow, quota), `most` at the most; says whether some is left.
function dealing.deal(most, grant)
  local dealt = 0
  for _ = 1, state.left == 1 and MAX_CANDIDATES or 0 do
    first = first or call('ZRANGE', READY, 0, 1, 'WITHSCORES')
    if dealt == most or not first[1] then break end
    local class = flows.class(first[1])
    dealt = dealt + serve_first(class, tokens.best(class), grant)
  end
  end_turns()
  if alone and first[1] then create('ZADD', READY, first[2], first[1]) end
  if state.left == 1 then state.left = (alone or first) and not first[1] and 0 or call('EXISTS', READY) end
  return state.left == 1
end

-- The classes that wait and insist on no quota, or on one of those given.
local function candidates(of_quotas)
  local names = {}
  for name in pairs(state.general) do names[#names + 1] = name end
  for quota in pairs(state.pinned > 0 and of_quotas or {}) do
    for _, name in ipairs(call('SMEMBERS', key('pinned', quota))) do names[#names + 1] = name end
  end
  return names
end

-- Look which classes can be served: those that insist on no quota, and on one of which something changed. `deals`: `deal`
-- follows.
function dealing.find_ready(deals)
  local ready = {}
  for _, name in ipairs(candidates(tokens.touched)) do
    local class = flows.class(name)
    if tokens.best(class) then ready[#ready + 1] = class end
  end
  alone = deals and state.left == 0 and #ready == 1
  for _, class in ipairs(ready) do
    local _, place = flows.head(class)
    if alone then first = { class.name, place } else create('ZADD', READY, 'NX', place, class.name) end
    state.left = 1
  end
end

-- The replica that a token of this limit (none: of all) on this quota would be for then, if anybody could use it.
local function served_by(at, limit, quota, returned)
  local found, class, place
  for _, name in ipairs(candidates({ [quota] = true })) do
    local other = flows.class(name)
    if (limit == '' or other.windows[limit]) and (other.pinned or revisions.contains(other.view, quota))
      and tokens.available(other.view, other.limits, quota, at, returned) > 0 then
      local flow, its = flows.head(other)
      if not found or its < place or (its == place and (flow.client < found.client
        or (flow.client == found.client and name < class))) then
        found, class, place = flow, name, its
      end
    end
  end
  return found and flows.replica(found)
end

-- Move on in a series of events: members (`<lease>@<quota>`, `<limit> <quota>` or a quota) and instants in their order.
local function step(series)
  local last = series.last + 2
  if series.returns and last > #series.entries then series.entries = tokens.upcoming(series.returns, MAX_EVENTS) end
  local member, instant = series.entries[last - 1], tonumber(series.entries[last])
  series.last, series.at = last, instant
  if instant and series.returns then
    series.limit, series.quota = series.returns, tokens.quota_in(member)
  elseif instant then
    series.limit, series.quota = match(member, '^(%S+) (.*)$')
    series.limit, series.quota = series.limit or '', series.quota or member
  end
end

-- What will be: of each limit the returns, then buckets and quotas that open.
local function events()
  local all = {}
  for _, limit in ipairs(tokens.limits()) do
    all[#all + 1] = { returns = limit, opens = false, last = 0, entries = tokens.upcoming(limit) }
  end
  for _, entries in ipairs(state.opens < NEVER and { closed_buckets().list() } or {}) do
    all[#all + 1] = { opens = true, last = 0, entries = entries }
  end
  for _, series in ipairs(all) do step(series) end
  return all
end

local function earlier(one, other)
  if one.at ~= other.at then return one.at < other.at end
  if one.limit ~= other.limit then return one.limit < other.limit end
  if one.quota ~= other.quota then return one.quota < other.quota end
  return not one.opens and other.opens
end

-- When the next token comes that a waiting class may have, and the replica of which it will be; see core/dealing.py.
function dealing.look_ahead(caller)
  local all, returned, seen = events(), {}, {}
  while true do
    local soonest
    for _, series in ipairs(all) do
      if series.at and (not soonest or earlier(series, soonest)) then soonest = series end
    end
    if not soonest then return end
    local bucket, kind = soonest.limit .. ' ' .. soonest.quota, soonest.limit .. (soonest.opens and ' opens' or '')
    if not soonest.opens then returned[bucket] = (returned[bucket] or 0) + 1 end
    local replica = served_by(soonest.at, soonest.limit, soonest.quota, returned)
    if replica then return soonest.at, replica end
    seen[kind] = (seen[kind] or 0) + 1
    if seen[kind] == MAX_EVENTS then
      if flows.waits(caller) then return soonest.at, caller end
      return
    end
    step(soonest)
  end
end
