-- Which request gets the next token, and which replica the one after: the fair queue over the buckets.
local dealing = {}
local STEPS = 2000
local AHEAD = 64
local MANY = 4 -- tokens for which those who wait are read together
local READY = flows.READY

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

local function end_turn(class)
  local rows = turns[clients[class]]
  clients[class] = nil
  if rows then table.remove(rows, 1) end
  return rows
end

-- A class has another place; returns which classes are first where that is known still.
local function put_ready(class, first)
  local _, place = flows.head(class)
  local other = first and tonumber(first[4])
  if first and first[1] == class.name and (not other or place < other) then
    first[2] = place -- in the set it may be too low
    return first
  end
  call('ZADD', READY, place, class.name)
end

-- Call `grant` with each request that is to be served (class, flow, quota), `most` at the most; says whether some is left.
function dealing.deal(most, grant)
  local dealt, first = 0, nil
  for _ = 1, state.left == 1 and STEPS or 0 do
    first = first or call('ZRANGE', READY, 0, 1, 'WITHSCORES')
    if dealt == most or not first[1] then break end
    local class, score, rows = flows.class(first[1]), tonumber(first[2]), nil
    local quota = tokens.best(class)
    if not quota then
      rows, first = end_turn(class), not first[3] and {} or nil
      call('ZREM', READY, class.name)
      if rows and rows[1] then first = put_ready(rows[1].class) end
    else
      local flow, place = flows.head(class)
      if place == score then
        local classes = state.classes
        dealt = dealt + 1
        grant(class, flow, quota)
        if state.classes ~= classes or state.lifted > 0 then first = nil end
        rows = end_turn(class)
        if rows and class.flows[flow.client] then begin_turn(class, flow) end
      elseif class.own.clients == 1 then
        rows = begin_turn(class, flow)
      else
        first = put_ready(class, first)
      end
      if rows and rows[1] and rows[1].class == class and not rows[2] then
        first = put_ready(class, first)
      elseif rows and rows[1] then
        call('ZREM', READY, class.name, rows[2] and rows[2].class.name or class.name)
        first = put_ready(rows[1].class)
      end
    end
  end
  for _, waiting in pairs(turns) do
    for index = 2, #waiting do put_ready(waiting[index].class) end
  end
  if state.left == 1 then state.left = first and not first[1] and 0 or call('EXISTS', READY) end
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

-- Look which classes can be served: those that insist on no quota, and on one of which something changed.
function dealing.find_ready()
  local number = 0
  for _ in pairs(tokens.touched) do number = number + 1 end
  for _, name in ipairs(candidates(tokens.touched)) do
    local class = flows.class(name)
    if tokens.best(class) then
      if number >= MANY and class.own.clients > 1 then flows.expect(class, number) end
      local _, place = flows.head(class)
      create('ZADD', READY, 'NX', place, name)
      state.left = 1
    end
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
  if series.returns and last > #series.entries then series.entries = tokens.upcoming(series.returns, AHEAD) end
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
  for _, entries in ipairs(state.opens < NEVER and { tokens.rare().list_shut() } or {}) do
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
    local first
    for _, series in ipairs(all) do
      if series.at and (not first or earlier(series, first)) then first = series end
    end
    if not first then return end
    local bucket, kind = first.limit .. ' ' .. first.quota, first.limit .. (first.opens and ' opens' or '')
    if not first.opens then returned[bucket] = (returned[bucket] or 0) + 1 end
    local replica = served_by(first.at, first.limit, first.quota, returned)
    if replica then return first.at, replica end
    seen[kind] = (seen[kind] or 0) + 1
    if seen[kind] == AHEAD then
      if flows.waits(caller) then return first.at, caller end
      return
    end
    step(first)
  end
end

return dealing
