-- What replicas hold that are back after a loss, and what those held that are gone (core/tokens.py).
local recovery = {}
local UNANSWERED = '!'

function recovery.lapse(replica, counted)
  for lease in pairs(read_all(tokens.leases(replica))) do
    local record = tokens.close(replica, lease)
    if record then
      tokens.cool(lease, record, counted, true)
      closed_buckets().end_probe(lease, record, true)
    end
  end
end

-- By limit and member, when tokens of these leases return: few commands, for a replica may report thousands.
local function instants_of(held)
  local members, instants = {}, {}
  for _, row in ipairs(held) do
    for limit in pairs(row[4]) do
      local of_limit, member = members[limit] or {}, row[1] .. '@' .. row[2]
      members[limit], of_limit[#of_limit + 1], of_limit[#of_limit + 2] = of_limit, UNANSWERED .. member, member
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
function recovery.restore(now, replica, held)
  local leases, named, instants = read_all(tokens.leases(replica)), {}, instants_of(held)
  for _, row in ipairs(held) do
    local lease, quota, client, windows, granted, counted = unpack(row)
    named[lease] = true
    if counted and leases[lease] then tokens.give_back(replica, lease) end
    for limit, window in pairs((counted or not leases[lease]) and windows or {}) do
      local member = lease .. '@' .. quota
      member = instants[limit][UNANSWERED .. member] and UNANSWERED .. member or member
      local before = instants[limit][member]
      if counted then
        tokens.add_return(limit, max(now - counted + window, before or 0), member)
        tokens.count(limit, quota, before and 0 or 1)
      elseif before then
        call('ZREM', key('returns', limit), member)
        tokens.count(limit, quota, -1)
      end
    end
    if not counted and not leases[lease] then
      tokens.open(replica, lease, { granted = now - granted, quota = quota, probes = {}, windows = windows, client = client })
    end
    tokens.changed(quota)
  end
  for lease in pairs(leases) do
    if not named[lease] then tokens.give_back(replica, lease) end
  end
end

return recovery
