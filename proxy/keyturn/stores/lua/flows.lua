-- Which requests wait, and whose turn it is. A flow is `<class>|<client>`, a demand class `<revision>|<limits>|<pinned>`.
--
-- `client <client>`    record: its start tag, weight, number of flows, and how many of its requests were served while it waits
-- `class <class>`      record: its virtual time, and by how much it was moved on since it lagged too far
-- `flow <flow>`        record: how many requests wait, in how many queues, the replica if in one only, how many of its client's were
--                      served at its last turn, how much its class had been moved on when its client was served last, and
--                      when its expiry was put off
-- `idle`               sorted set: clients that do not wait, by start tag; the state's `idle` is no higher than the first
-- `flows:<client>`     sorted set: the classes in which it waits, those put in order longest ago first
-- `pinned`             set: classes that wait and insist on a quota, `pinned:<quota>`: those that insist on this one; those that
--                      insist on none are the state's `general`
-- `wait:<class>`       sorted set: its clients, by their place in the fair order or less
-- `ready`              sorted set: classes that wait and may be served, by the place of their first client or less; some may be
--                      there if the state says `left`
-- `waiting:<replica>`  hash: how many requests of a flow wait in a replica; the replica's record has the number of flows
-- `queues:<flow>`      sorted set: its replicas, the one served longest ago first
flows.READY, flows.PINNED = base .. ':ready', base .. ':pinned'
local UNIT = 1000000
local ROLLOVER = 2 ^ 50
local LAG = 64
local IDLERS = 100
local MOVED = 8
local EXPECTED = 8
local IDLE, READY, PINNED = base .. ':idle', flows.READY, flows.PINNED
local counts_of, classes = {}, {}

local function counts(replica)
  counts_of[replica] = counts_of[replica] or hash('waiting:' .. replica)
  return counts_of[replica]
end

function flows.class(name)
  local class = classes[name]
  if not class then
    local revision, joined, pinned = match(name, '^([^|]*)|([^|]*)|(.*)$')
    class = { name = name, joined = joined, limits = {}, windows = {}, view = revisions.view(revision), flows = {} }
    class.pinned = pinned ~= '' and pinned or nil
    for index in gmatch(joined, '%d+') do
      local limit = class.view.limits[index + 1]
      class.limits[#class.limits + 1], class.windows[limit.id] = tonumber(index), limit.window
    end
    class.own = read(records, 'class ' .. name) or { lift = 0, time = 0, clients = 0 }
    class.order = ordered(key('wait', name))
    classes[name] = class
  end
  return class
end

function flows.cost(client) return floor(UNIT / client.weight) end

-- A flow that waits, with its client's record and its own.
local function flow_of(class, client)
  local flow = class.flows[client]
  if not flow then
    local name = class.name .. '|' .. client
    fetch(records, { 'client ' .. client, 'flow ' .. name })
    flow = { name = name, client = client, own = read(records, 'client ' .. client), total = read(records, 'flow ' .. name) }
    class.flows[client] = flow
  end
  return flow
end

-- Read what is stored for the clients that come first in a class.
local function expect(class)
  local order, fields = class.order, {}
  for index = order.at, min(order.last, order.at + EXPECTED - 1) do
    local client = order.members[index]
    fields[#fields + 1], fields[#fields + 2] = 'client ' .. client, 'flow ' .. class.name .. '|' .. client
  end
  fetch(records, fields)
end

-- Its place in its class: its client's start tag, less a little for what others of it had since.
local function place_of(flow)
  local own, total = flow.own, flow.total
  return own.tag - total.base - min(own.served - total.turn, floor(flows.cost(own) / 100))
end

-- A place in its class in virtual time: moved on with the class, if its client lags, too.
local function moved(class, flow, place) return min(place + class.own.lift, max(flow.own.tag, state.virtual_time)) end

function flows.start(class, flow) return moved(class, flow, flow.own.tag - flow.total.base) end

-- Demands

local function put(class, client)
  local flow = flow_of(class, client)
  local place = place_of(flow)
  if not rescore(class.order, client, place) then
    class.order.changed[client], class.order.members = nil, not class.order.whole and class.order.members or nil
    create('ZADD', class.order.key, place, client)
  end
  if state.left == 1 then call('ZADD', READY, 'XX', 'LT', moved(class, flow, place), class.name) end
end

-- Call `change` with some flows of a client, those put in order longest ago, and put them in order: all, if they are few.
local function put_some(client, change)
  for _, name in ipairs(call('ZRANGE', key('flows', client), 0, MOVED - 1)) do
    local class = flows.class(name)
    state.sequence = state.sequence + 1
    call('ZADD', key('flows', client), state.sequence, name)
    if change(class, flow_of(class, client)) then put(class, client) end
  end
end

-- How many requests of a flow wait in a replica; of one that waits there only, as many as wait.
local function waiting_in(replica, flow)
  if not flow.total then return 0 end
  return flow.total.replica == replica and flow.total.waiting or read(counts(replica), flow.name) or 0
end

-- Rare work: flows that come and go, clients that idle, leases that come back unsent.
flows.rare = lazily(function()
  local function add_idle(client, own)
    state.idle = min(state.idle, own.tag)
    create('ZADD', IDLE, own.tag, client)
  end

  local function join(replica, class, flow)
    local own, total, client, member = flow.own, flow.total, flow.client, read(records, 'replica ' .. replica)
    if total.replica then write(counts(total.replica), flow.name, total.waiting) end
    state.sequence, member.flows, flow.queue = state.sequence + 1, member.flows + 1, nil
    total.queues, total.replica = total.queues + 1, total.queues == 0 and replica or nil
    call('ZADD', key('queues', flow.name), state.sequence, replica)
    if own.flows == 0 then
      call('ZREM', IDLE, client)
      own.tag, own.served = max(state.virtual_time, own.tag), 0
    end
    if total.queues > 1 then return end
    create('ZADD', key('flows', client), state.sequence, class.name)
    if class.own.clients == 0 then
      class.own = { lift = 0, time = state.virtual_time, clients = 0 }
      state.classes, state.pinned = state.classes + 1, state.pinned + (class.pinned and 1 or 0)
      if class.pinned then
        create('SADD', PINNED, class.name)
        create('SADD', key('pinned', class.pinned), class.name)
      else
        state.general[class.name] = 1
      end
    end
    class.own.clients, own.flows, state.flows = class.own.clients + 1, own.flows + 1, state.flows + 1
    write(records, 'class ' .. class.name, class.own)
    total.turn, total.base = own.served, class.own.lift
    put(class, client)
  end

  local function end_class(class)
    state.classes, state.pinned = state.classes - 1, state.pinned - (class.pinned and 1 or 0)
    if class.pinned then
      call('SREM', PINNED, class.name)
      call('SREM', key('pinned', class.pinned), class.name)
    else
      state.general[class.name] = nil
    end
    if state.left == 1 then call('ZREM', READY, class.name) end
    state.lifted = state.lifted - (class.own.lift > 0 and 1 or 0)
    class.own = { lift = 0, time = 0, clients = 0 }
    write(records, 'class ' .. class.name, false)
  end

  -- The last requests of a flow in a replica are gone.
  local function leave(replica, class, flow, left)
    local client, own, total, member = flow.client, flow.own, flow.total, read(records, 'replica ' .. replica)
    write(counts(replica), flow.name, false)
    call('ZREM', key('queues', flow.name), replica)
    member.flows, flow.queue = member.flows - 1, nil
    write(records, 'replica ' .. replica, member)
    total.waiting, total.queues, state.requests = total.waiting - left, total.queues - 1, state.requests - left
    total.replica = total.queues == 1 and first_of(key('queues', flow.name)) or nil
    write(records, 'flow ' .. flow.name, total.queues > 0 and total)
    if total.queues > 0 then return end
    class.flows[client], class.order.changed[client] = nil, nil
    take_out(class.order, client)
    call('ZREM', class.order.key, client)
    call('ZREM', key('flows', client), class.name)
    class.own.clients, own.flows, state.flows = class.own.clients - 1, own.flows - 1, state.flows - 1
    if class.own.clients == 0 then end_class(class) else write(records, 'class ' .. class.name, class.own) end
    write(records, 'client ' .. client, own)
    if own.flows == 0 then add_idle(client, own) end
  end

  -- Put off the expiry of what is stored for a flow.
  local function renew(replica, class, flow)
    flow.total.renewed = state.now
    expiring[key('queues', flow.name)], expiring[key('flows', flow.client)], expiring[class.order.key] = true, true, true
    expiring[key('waiting', replica)] = true
    if class.pinned then expiring[PINNED], expiring[key('pinned', class.pinned)] = true, true end
  end

  -- Forget what a replica demanded, but for the flows that are fields of `but`.
  local function forget(replica, but)
    local member = read(records, 'replica ' .. replica)
    for name, known in pairs(member.flows > 0 and read_all(counts(replica)) or {}) do
      if known and not but[name] then
        local class, client = match(name, '^([^|]*|[^|]*|[^|]*)|(.*)$')
        class = flows.class(class)
        local flow = flow_of(class, client)
        leave(replica, class, flow, waiting_in(replica, flow))
      end
    end
  end

  local function forget_idle()
    if state.idle <= state.virtual_time then
      local idlers = call('ZRANGEBYSCORE', IDLE, '-inf', state.virtual_time, 'LIMIT', 0, IDLERS)
      for _, idler in ipairs(idlers) do write(records, 'client ' .. idler, false) end
      if #idlers > 0 then call('ZREM', IDLE, unpack(idlers)) end
      local _, tag = first_of(IDLE)
      state.idle = tag or NEVER
    end
    if state.classes == 0 and state.virtual_time > ROLLOVER then
      for _, idler in ipairs(call('ZRANGE', IDLE, 0, -1)) do write(records, 'client ' .. idler, false) end
      call('DEL', IDLE)
      state.virtual_time, state.idle = 0, NEVER
    end
  end

  -- A lease came back unsent: its client is charged nothing.
  local function refund(client)
    local own = read(records, 'client ' .. client)
    if not own then return end
    own.tag = own.tag - flows.cost(own)
    write(records, 'client ' .. client, own)
    if own.flows == 0 then add_idle(client, own) else put_some(client, function() return true end) end
  end

  return { join = join, leave = leave, renew = renew, forget = forget, forget_idle = forget_idle, refund = refund }
end)

-- Name the classes and flows of demands; returns the records that hold them, after others.
function flows.named(demands, fields)
  for _, demand in ipairs(demands) do
    demand.class = request.revision .. '|' .. demand[4] .. '|' .. (demand[5] or '')
    demand.flow = demand.class .. '|' .. demand[1]
    fields[#fields + 1], fields[#fields + 2] = 'client ' .. demand[1], 'flow ' .. demand.flow
    fields[#fields + 1] = 'class ' .. demand.class
  end
  return fields
end

-- Note how many requests of a flow wait in a replica.
function flows.put(replica, class, client, weight, waiting)
  local flow = flow_of(class, client)
  local before, total = waiting_in(replica, flow), flow.total
  if waiting > 0 then
    flow.own = flow.own or { tag = 0, flows = 0, served = 0 }
    total = total or { waiting = 0, queues = 0, turn = 0, base = 0, renewed = 0 }
    flow.total = total
  end
  if flow.own then
    flow.own.weight = weight
    write(records, 'client ' .. client, flow.own)
  end
  if waiting > 0 then
    if before == 0 then flows.rare().join(replica, class, flow) end
    total.waiting, state.requests = total.waiting + waiting - before, state.requests + waiting - before
    write(records, 'flow ' .. flow.name, total)
    if before == 0 or not total.replica then write(counts(replica), flow.name, waiting) end
    if math.abs(state.now - total.renewed) > RENEW then flows.rare().renew(replica, class, flow) end
  elseif before > 0 then
    flows.rare().leave(replica, class, flow, before)
  else
    class.flows[client] = total and flow
  end
end

-- Whose turn it is

-- The first flow of a class that waits, and its place in the fair order.
function flows.head(class)
  local order = class.order
  while true do
    local client, score = first_in(order)
    if records.values['client ' .. client] == nil then expect(class) end
    local flow = flow_of(class, client)
    local place = place_of(flow)
    if place == score then return flow, moved(class, flow, place) end
    rescore(order, client, place)
  end
end

-- The replica of a flow that is served next.
function flows.replica(flow)
  if flow.total.replica then return flow.total.replica end
  flow.queue = flow.queue or first_of(key('queues', flow.name))
  return flow.queue
end

-- What a class was moved on is in a flow's start tag; says whether it was not.
local function rebase(class, flow)
  local same = flow.total.base == class.own.lift
  flow.total.base = class.own.lift
  if not same then write(records, 'flow ' .. flow.name, flow.total) end
  return not same
end

-- One request of a flow gets a lease; returns the replica in which it waits.
function flows.serve(class, flow)
  local own, total, its, cost = flow.own, flow.total, class.own, flows.cost(flow.own)
  local behind = state.virtual_time - LAG * cost - its.time
  if behind > 0 and its.clients > 1 then
    state.lifted, its.lift = state.lifted + (its.lift == 0 and 1 or 0), its.lift + behind
  end
  local begins = flows.start(class, flow)
  if behind > 0 then
    if its.clients == 1 then begins = min(begins + behind, max(own.tag, state.virtual_time)) end
    its.time = its.time + behind
  end
  begins = max(begins, its.time - LAG * cost)
  its.time, state.virtual_time = max(its.time, begins), max(state.virtual_time, begins)
  own.tag, own.served, total.turn = begins + cost, own.served + 1, own.served + 1
  write(records, 'class ' .. class.name, its)
  write(records, 'client ' .. flow.client, own)
  if rebase(class, flow) then put(class, flow.client) end
  if state.lifted > 0 and own.flows > 1 then put_some(flow.client, rebase) end
  local replica = flows.replica(flow)
  local left = waiting_in(replica, flow) - 1
  if left == 0 then
    flows.rare().leave(replica, class, flow, 1)
    return replica
  end
  total.waiting, state.requests = total.waiting - 1, state.requests - 1
  write(records, 'flow ' .. flow.name, total)
  if not total.replica then
    state.sequence, flow.queue = state.sequence + 1, nil
    write(counts(replica), flow.name, left)
    call('ZADD', key('queues', flow.name), state.sequence, replica)
  end
  return replica
end

function flows.waits(replica)
  local member = read(records, 'replica ' .. replica)
  return member and member.flows > 0
end

function flows.save()
  for _, waiting in pairs(counts_of) do flush(waiting) end
  for _, class in pairs(classes) do
    if next(class.order.changed) then write_scores(class.order) end
  end
end
