-- A read-only view of a pool's state (core/snapshots.py): a function of a revision's view and the state's time.

local NEXT = 64
local FLOWS = 128
local SCANNED = 1000
local LISTED = 128
local AT_ONCE = 512 -- returns that are read with one command rather than one by one

local function read_many(of, fields)
  for first = 1, #fields, CHUNK do
    local last = min(first + CHUNK - 1, #fields)
    for index, stored in ipairs(call('HMGET', of.key, unpack(fields, first, last))) do
      local field = fields[first + index - 1]
      if of.values[field] == nil then of.values[field] = cmsgpack.unpack(stored) end
    end
  end
end

local function limit_returns(view, limit, now)
  local of, soon, ranks, shut, closed = key('returns', limit.id), {}, {}, 0, {}
  local number, rows = call('ZCARD', of), tokens.shut_under(view, limit)
  local entries = call('ZRANGE', of, 0, (number <= AT_ONCE and number or NEXT) - 1, 'WITHSCORES')
  for _, row in ipairs(rows) do
    closed[row[3]], shut = row[1], shut + row[2]
    for _ = 1, min(NEXT, row[2]) do soon[#soon + 1] = max(0, row[1] - now) end
  end
  for place = 1, 2 * min(NEXT, number), 2 do
    local till = #rows > 0 and closed[tokens.quota_in(entries[place])] or 0
    soon[#soon + 1] = max(0, entries[place + 1] - now, till - now)
  end
  if #rows > 0 then table.sort(soon) end
  local samples = min(NEXT, number - NEXT)
  for place = 1, samples do
    local rank = NEXT - 1 + floor((number - NEXT) * place / samples)
    local instant = entries[2 * rank + 2] or call('ZRANGE', of, rank, rank, 'WITHSCORES')[2]
    ranks[2 * place - 1], ranks[2 * place] = rank + shut, max(0, instant - now)
  end
  local in_use = max(0, tokens.total(limit.id) - number)
  return { tokens.budget(view, limit, now)[2], number + shut, in_use, { unpack(soon, 1, min(NEXT, #soon)) }, ranks }
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
    for _, row in ipairs(tokens.shut_under(view, limit)) do found.shut[row[3]] = row[1] end
  end
  return found
end

-- The returns of one quota, of those that are among the next `SCANNED` of its limit.
local function quota_returns(view, index, quota, now)
  local limit, upcoming = view.limits[index + 1], by_quota(view, index)
  local found, till, taken = upcoming.returns[quota] or {}, upcoming.shut[quota], tokens.taken(limit.id, quota)
  local in_use, free, soon = max(0, taken - #found), max(0, limit.requests - taken), {}
  till = till and till - now
  for place = 1, min(NEXT, #found + (till and free or 0)) do
    soon[place] = max(0, till or 0, (found[till and place - free or place] or now) - now)
  end
  return { index, quota, till and 0 or free, #found + (till and free or 0), in_use, soon }
end

-- The clients of each class that waits, by the names of classes.
local function clients_by_class()
  local found, list_all = {}, state.pinned > 0 and call('HLEN', flows.totals.key) <= LISTED
  for _, name in ipairs(call('SMEMBERS', flows.GENERAL)) do
    found[name] = call('ZRANGE', flows.class(name).key, 0, FLOWS - 1)
  end
  for _, flow in ipairs(list_all and call('HKEYS', flows.totals.key) or {}) do
    local name, client = match(flow, '^([^|]*|[^|]*|[^|]+)|(.*)$')
    if name then
      found[name] = found[name] or {}
      table.insert(found[name], client)
    end
  end
  return found
end

-- The limits of a class by their indices in a revision; `nil` when it does not matter to that revision.
local function limits_in(view, class)
  local limits = {}
  for _, index in ipairs(class.limits) do
    for place, id in ipairs(view.ids) do limits[#limits + 1] = id == class.view.ids[index + 1] and place - 1 or nil end
  end
  return (#limits > 0 or class.view.name == view.name) and limits or nil
end

-- The classes {limits, pinned} whose flows are told, and these: class, client, tag, cost, waiting, one after the other.
local function waiting_flows(view)
  local found, names, told, at, tags, rows, listed = clients_by_class(), {}, {}, {}, {}, {}, 0
  for name in pairs(found) do names[#names + 1] = name end
  table.sort(names)
  -- The flows by tag, then by client, then by class; the sort knows no stable order, so it is handed plain values.
  for _, name in ipairs(names) do
    local class, of_flows = flows.class(name), {}
    local limits = limits_in(view, class)
    if limits then
      told[#told + 1] = { limits, class.pinned or '' }
      for place, client in ipairs(found[name]) do of_flows[place] = name .. '|' .. client end
      read_many(flows.clients, found[name])
      read_many(flows.totals, of_flows)
      for place, client in ipairs(found[name]) do
        local own, total = flows.clients.values[client], flows.totals.values[of_flows[place]]
        local tag = flows.start(class, { own = own, total = total }) - state.virtual_time
        if not at[tag] then at[tag], tags[#tags + 1] = { of = {} }, tag end
        local of = at[tag].of
        if not of[client] then of[client], at[tag][#at[tag] + 1] = {}, client end
        of[client][#of[client] + 1] = { #told - 1, flows.cost(own), total.waiting }
      end
    end
  end
  table.sort(tags)
  for _, tag in ipairs(tags) do
    if #at[tag] > 1 then table.sort(at[tag]) end
    for _, client in ipairs(at[tag]) do
      for _, flow in ipairs(at[tag].of[client]) do
        local last = #rows
        if last == 5 * FLOWS then break end
        rows[last + 1], rows[last + 2], rows[last + 3], rows[last + 4], rows[last + 5] = flow[1], client, tag, flow[2], flow[3]
        listed = listed + flow[3]
      end
    end
  end
  return told, rows, state.requests - listed, call('HLEN', flows.totals.key) - #rows / 5
end

return function(view, now, pins)
  local limits, pinned = {}, {}
  for index, limit in ipairs(view.limits) do limits[index] = limit_returns(view, limit, now) end
  for index, pin in ipairs(pins) do pinned[index] = quota_returns(view, pin[1], pin[2], now) end
  local told, rows, others, number = waiting_flows(view)
  return { state.dealt, limits, pinned, told, rows, others, number, state.service }
end
