-- A read-only view of a pool's state (core/snapshots.py): a function of a revision's view and the state's time.

local NEXT_RETURNS = 64
local FLOWS = 128
local SCANNED = 1000
local SAMPLES = 64
local SAMPLE_DISTANCE = 50 * MILLISECOND

-- Up to `most` samples of the ranks from `low` to `high`, each a rank and its instant: see `_sample` in core/snapshots.py.
local function sample(of, low, early, high, most)
  local late = tonumber(call('ZRANGE', of, high, high, 'WITHSCORES')[2])
  local ranks, spans, place, last = { high, late }, { low, early, high, late, false }, 1, 5
  while place < last and #ranks < 2 * most do
    local straight
    low, early, high, late, straight = unpack(spans, place, place + 4)
    place = place + 5
    if high - low > 1 and late - early > SAMPLE_DISTANCE then
      local middle = low + max(1, floor((high - low) * 61 / 100))
      local instant = tonumber(call('ZRANGE', of, middle, middle, 'WITHSCORES')[2])
      ranks[#ranks + 1], ranks[#ranks + 2] = middle, instant
      local on_line = math.abs(instant - early - (late - early) / (high - low) * (middle - low)) <= SAMPLE_DISTANCE
      if not (straight and on_line) then
        spans[last + 1], spans[last + 2], spans[last + 3], spans[last + 4], spans[last + 5] = low, early, middle, instant, on_line
        last = last + 10
        spans[last - 4], spans[last - 3], spans[last - 2], spans[last - 1], spans[last] = middle, instant, high, late, on_line
      end
    end
  end
  return ranks
end

local function limit_returns(view, limit, now)
  local most = floor(SAMPLES / min(4, #view.limits))
  local of, soon, ranks, shut, closed = key('returns', limit.id), {}, {}, 0, {}
  local number, rows = call('ZCARD', of), closed_buckets().under(view, limit)
  local entries = call('ZRANGE', of, 0, NEXT_RETURNS - 1, 'WITHSCORES')
  for _, row in ipairs(rows) do
    closed[row[3]], shut = row[1], shut + row[2]
    for _ = 1, min(NEXT_RETURNS, row[2]) do soon[#soon + 1] = max(0, row[1] - now) end
  end
  for place = 1, #entries, 2 do
    local till = #rows > 0 and closed[tokens.quota_in(entries[place])] or 0
    soon[#soon + 1] = max(0, entries[place + 1] - now, till - now)
  end
  if #rows > 0 then table.sort(soon) end
  if number > NEXT_RETURNS then ranks = sample(of, NEXT_RETURNS - 1, tonumber(entries[2 * NEXT_RETURNS]), number - 1, most) end
  for place = 1, #ranks, 2 do
    ranks[place], ranks[place + 1] = ranks[place] + shut, max(0, ranks[place + 1] - now)
  end
  local in_use = max(0, tokens.total(limit.id) - number)
  return { tokens.budget(view, limit, now)[2], number + shut, in_use, { unpack(soon, 1, min(NEXT_RETURNS, #soon)) }, ranks }
end

-- The next `SCANNED` returns of a limit, and until when its quotas are closed, by quota.
local upcoming_of = {}
local function by_quota(view, index)
  local found = upcoming_of[index]
  if not found then
    found = { returns = {}, shut = {} }
    upcoming_of[index] = found
    local limit = view.limits[index + 1]
    local entries = tokens.upcoming(limit.id, SCANNED)
    for place = 1, #entries, 2 do
      local quota = tokens.quota_in(entries[place])
      found.returns[quota] = found.returns[quota] or {}
      table.insert(found.returns[quota], entries[place + 1])
    end
    for _, row in ipairs(closed_buckets().under(view, limit)) do found.shut[row[3]] = row[1] end
  end
  return found
end

-- The returns of one quota, of those that are among the next `SCANNED` of its limit.
local function quota_returns(view, index, quota, now)
  local limit, upcoming = view.limits[index + 1], by_quota(view, index)
  local found, till, taken = upcoming.returns[quota] or {}, upcoming.shut[quota], tokens.taken(limit.id, quota)
  local in_use, free, soon = max(0, taken - #found), max(0, limit.requests - taken), {}
  till = till and till - now
  for place = 1, min(NEXT_RETURNS, #found + (till and free or 0)) do
    soon[place] = max(0, till or 0, (found[till and place - free or place] or now) - now)
  end
  return { index, quota, till and 0 or free, #found + (till and free or 0), in_use, soon }
end

-- The limits of a class by their indices in a revision; `nil` when it does not matter to that revision.
local function limits_in(view, class)
  local limits = {}
  for _, index in ipairs(class.limits) do
    for place, id in ipairs(view.ids) do limits[#limits + 1] = id == class.view.ids[index + 1] and place - 1 or nil end
  end
  return (#limits > 0 or class.view.name == view.name) and limits or nil
end

-- The clients of each class that waits, by name; where many flows wait of classes that insist on no quota, and the first only.
local function clients_by_class(few)
  local found = {}
  for _, name in ipairs(few and state.pinned > 0 and call('SMEMBERS', flows.PINNED) or {}) do
    found[name] = call('ZRANGE', flows.class(name).order.key, 0, FLOWS - 1)
  end
  for name in pairs(state.general) do found[name] = call('ZRANGE', flows.class(name).order.key, 0, FLOWS - 1) end
  return found
end

-- The classes that matter to a revision, the smallest first, then by name: {class, limits, clients}.
local function classes_in(view, clients)
  local names, found = {}, {}
  for name in pairs(clients) do names[#names + 1] = name end
  table.sort(names, function(one, other)
    if #clients[one] ~= #clients[other] then return #clients[one] < #clients[other] end
    return one < other
  end)
  for _, name in ipairs(names) do
    local class = flows.class(name)
    local limits = limits_in(view, class)
    if limits then found[#found + 1] = { class, limits, clients[name] } end
  end
  return found
end

-- The classes {limits, pinned, flows} (client, tag, cost, waiting, queues, one after the other), and what is not told: requests, flows.
local function waiting_flows(view)
  local number = state.flows
  local found, clients, names, rows = classes_in(view, clients_by_class(number <= FLOWS)), {}, {}, {}
  local told, requests, left, flow = {}, state.requests, FLOWS, {}
  for place, one in ipairs(found) do
    local most = number <= FLOWS and FLOWS or floor(left / (#found - place + 1))
    rows[place], left = min(most, #one[3]), left - min(most, #one[3])
    for index = 1, rows[place] do
      clients[#clients + 1], names[#names + 1] = 'client ' .. one[3][index], 'flow ' .. one[1].name .. '|' .. one[3][index]
    end
  end
  fetch(records, clients)
  fetch(records, names)
  local first = 0
  for place, one in ipairs(found) do
    local listed = {}
    for index = 1, rows[place] do
      local last = 5 * index
      flow.own, flow.total = records.values[clients[first + index]], records.values[names[first + index]]
      listed[last - 4], listed[last - 3] = one[3][index], flows.start(one[1], flow) - state.virtual_time
      listed[last - 2], listed[last - 1], listed[last] = flows.cost(flow.own), flow.total.waiting, flow.total.queues
      requests = requests - flow.total.waiting
    end
    told[place], first = { one[2], one[1].pinned or '', listed }, first + rows[place]
  end
  return told, requests, number - first
end

return function(view, now, pins)
  local limits, pinned = {}, {}
  for index, limit in ipairs(view.limits) do limits[index] = limit_returns(view, limit, now) end
  for index, pin in ipairs(pins) do pinned[index] = quota_returns(view, pin[1], pin[2], now) end
  local told, others, number = waiting_flows(view)
  return { state.dealt, limits, pinned, told, others, number, state.service }
end
