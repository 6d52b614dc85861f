-- Which requests wait, and whose turn it is. A flow is `<class>|<client>`, a demand class `<revision>|<limits>|<pinned>`.
--
-- `clients`            hash: a client's start tag, weight, number of flows, and how many of its requests were served while it waits
-- `idle`               sorted set: clients that do not wait, by start tag
-- `flows:<client>`     set: the classes in which it waits
-- `general`            set: classes that wait and insist on no quota; `pinned:<quota>`: those that insist on this one
-- `wait:<class>`       sorted set: its clients, by their place in the fair order or less
-- `ready`              sorted set: classes that wait and may be served, by the place of their first client or less
-- `classes`            hash: a class's virtual time, and by how much it was moved on since it lagged too far
-- `totals`             hash: how many requests of a flow wait, in how many queues, how many of its client's were served at its last turn, and how much its
--                      class had been moved on when its client was served last
-- `waiting:<replica>`  hash: how many requests of a flow wait in a replica
-- `queues:<flow>`      sorted set: its replicas, the one served longest ago first
local flows = { READY = base .. ':ready', GENERAL = base .. ':general' }
local UNIT = 1000000
local ROLLOVER = 2 ^ 50
local LAG = 64
local IDLERS = 100
local IDLE, READY, GENERAL = base .. ':idle', flows.READY, flows.GENERAL
local clients, totals, times, counts_of, classes = records('clients'), records('totals'), records('classes'), {}, {}
flows.clients, flows.totals = clients, totals

local function counts(replica)
  counts_of[replica] = counts_of[replica] or records('waiting:' .. replica)
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
    class.own = read(times, name) or { lift = 0, time = 0 }
    class.key, class.among = key('wait', name), class.pinned and key('pinned', pinned) or GENERAL
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
    flow = { name = name, client = client, own = read(clients, client), total = read(totals, name) }
    class.flows[client] = flow
  end
  return flow
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
  create('ZADD', class.key, place, client)
  class.head = nil
  if flows.left == nil then flows.left = call('EXISTS', READY) == 1 end -- from an exchange before
  if flows.left then call('ZADD', READY, 'XX', 'LT', moved(class, flow, place), class.name) end
end

local function join(replica, class, flow)
  local own = flow.own
  state.sequence, flow.queue, flow.total.queues = state.sequence + 1, nil, (flow.total.queues or 0) + 1
  call('ZADD', key('queues', flow.name), state.sequence, replica)
  if own.flows == 0 then
    call('ZREM', IDLE, flow.client)
    own.tag, own.served = max(state.virtual_time, own.tag), 0
  end
  if call('SADD', key('flows', flow.client), class.name) == 0 then return end
  own.flows, flow.total.turn, flow.total.base = own.flows + 1, own.served, class.own.lift
  if create('SADD', class.among, class.name) == 1 then
    class.own = { lift = 0, time = state.virtual_time }
    write(times, class.name, class.own)
    state.classes, state.pinned = state.classes + 1, state.pinned + (class.pinned and 1 or 0)
  end
  put(class, flow.client)
end

-- The last requests of a flow in a replica are gone.
local function leave(replica, class, flow, left)
  local client, own, total = flow.client, flow.own, flow.total
  write(counts(replica), flow.name, false)
  call('ZREM', key('queues', flow.name), replica)
  total.waiting, state.requests, flow.queue = total.waiting - left, state.requests - left, nil
  total.queues = max(1, (total.queues or 0) - 1)
  write(totals, flow.name, total.waiting > 0 and total)
  if total.waiting > 0 then return end
  class.flows[client], class.head = nil, nil
  call('ZREM', class.key, client)
  call('SREM', key('flows', client), class.name)
  if call('EXISTS', class.key) == 0 then
    state.classes, state.pinned = state.classes - 1, state.pinned - (class.pinned and 1 or 0)
    call('SREM', class.among, class.name)
    call('ZREM', READY, class.name)
    state.lifted = state.lifted - (class.own.lift > 0 and 1 or 0)
    class.own = { lift = 0, time = 0 }
    write(times, class.name, false)
  end
  own.flows = own.flows - 1
  write(clients, client, own)
  if own.flows == 0 then create('ZADD', IDLE, own.tag, client) end
end

-- Note how many requests of a flow wait in a replica.
function flows.put(replica, class, client, weight, waiting)
  local flow = flow_of(class, client)
  local before = read(counts(replica), flow.name) or 0
  if waiting > 0 then
    flow.own = flow.own or { tag = 0, flows = 0, served = 0 }
    flow.total = flow.total or { waiting = 0, queues = 0, turn = 0, base = 0 }
  end
  if flow.own then
    flow.own.weight = weight
    write(clients, client, flow.own)
  end
  if waiting > 0 then
    flow.total.waiting, state.requests = flow.total.waiting + waiting - before, state.requests + waiting - before
    write(totals, flow.name, flow.total)
    write(counts(replica), flow.name, waiting)
    expiring[key('queues', flow.name)], expiring[key('flows', client)] = true, true
    if before == 0 then join(replica, class, flow) end
  elseif before > 0 then
    leave(replica, class, flow, before)
  else
    class.flows[client] = flow.total and flow
  end
end

-- Forget what a replica demanded, but for the flows that are fields of `but`.
function flows.forget(replica, but)
  for name, waiting in pairs(read_all(counts(replica))) do
    if waiting and not but[name] then
      local class, client = match(name, '^([^|]*|[^|]*|[^|]*)|(.*)$')
      class = flows.class(class)
      leave(replica, class, flow_of(class, client), waiting)
    end
  end
end

function flows.forget_idle()
  local client, tag = first_of(IDLE)
  if client and tag <= state.virtual_time then
    for _, idler in ipairs(call('ZRANGEBYSCORE', IDLE, '-inf', state.virtual_time, 'LIMIT', 0, IDLERS)) do
      write(clients, idler, false)
      call('ZREM', IDLE, idler)
    end
  end
  if state.classes == 0 and state.virtual_time > ROLLOVER then
    call('DEL', IDLE, clients.key)
    state.virtual_time, clients.values, clients.changed = 0, {}, {}
  end
end

-- Whose turn it is

-- The first flow of a class that waits, its place in the fair order, and whether it is the only one.
function flows.head(class)
  while true do
    local head = class.head
    if not head then
      local first = call('ZRANGE', class.key, 0, 1, 'WITHSCORES')
      head = { flow_of(class, first[1]), tonumber(first[2]), first[3] == nil }
      class.head = head
    end
    local place = place_of(head[1])
    if place == head[2] then return head[1], moved(class, head[1], place), head[3] end
    call('ZADD', class.key, place, head[1].client)
    if head[3] then head[2] = place else class.head = nil end
  end
end

-- The replica of a flow that is served next, and whether it is the only one.
function flows.replica(flow)
  flow.queue = flow.queue or call('ZRANGE', key('queues', flow.name), 0, 1)
  return flow.queue[1], flow.queue[2] == nil
end

-- One request of a flow gets a lease; returns the replica in which it waits.
function flows.serve(class, flow)
  local own, total, its, cost = flow.own, flow.total, class.own, flows.cost(flow.own)
  local behind = state.virtual_time - LAG * cost - its.time
  if behind > 0 then
    state.lifted = state.lifted + (its.lift == 0 and 1 or 0)
    its.lift, its.time, state.lifts = its.lift + behind, its.time + behind, state.lifts + 1
  end
  local begins = max(flows.start(class, flow), its.time - LAG * cost)
  its.time, state.virtual_time = max(its.time, begins), max(state.virtual_time, begins)
  own.tag, own.served, total.turn = begins + cost, own.served + 1, own.served + 1
  write(times, class.name, its)
  write(clients, flow.client, own)
  for _, name in ipairs(state.lifted > 0 and own.lifts ~= state.lifts and call('SMEMBERS', key('flows', flow.client)) or {}) do
    local other = flows.class(name)
    local one = flow_of(other, flow.client)
    if other.own.lift > 0 and one.total.base ~= other.own.lift then
      one.total.base = other.own.lift
      write(totals, one.name, one.total)
      put(other, flow.client)
    end
  end
  own.lifts = state.lifts -- none since then
  local replica, alone = flows.replica(flow)
  local left = read(counts(replica), flow.name) - 1
  if left == 0 then
    leave(replica, class, flow, 1)
    return replica
  end
  total.waiting, state.requests = total.waiting - 1, state.requests - 1
  write(totals, flow.name, total)
  write(counts(replica), flow.name, left)
  if not alone then
    state.sequence, flow.queue = state.sequence + 1, nil
    call('ZADD', key('queues', flow.name), state.sequence, replica)
  end
  return replica
end

-- A lease came back unsent: its client is charged nothing.
function flows.refund(client)
  local own = read(clients, client)
  if not own then return end
  own.tag = own.tag - flows.cost(own)
  write(clients, client, own)
  if own.flows == 0 then
    create('ZADD', IDLE, own.tag, client)
    return
  end
  for _, name in ipairs(call('SMEMBERS', key('flows', client))) do put(flows.class(name), client) end
end

function flows.waits(replica)
  flush(counts(replica))
  return call('EXISTS', counts(replica).key) == 1
end

function flows.save()
  for _, waiting in pairs(counts_of) do flush(waiting) end
  flush(clients)
  flush(times)
  flush(totals)
end

return flows
