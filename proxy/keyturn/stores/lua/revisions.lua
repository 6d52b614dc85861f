-- The configuration revisions that replicas of a pool use at this time.
--
-- `revisions`      hash: a revision's limits, bound and number of quotas
-- `used`           sorted set: revisions by the instant of their last use
-- `quotas:<name>`  set: the quotas of a revision
-- `owners:<name>`  hash: the quotas of keys that are not simply a quota of their own
-- `rivals:<name>`  hash: by quota, for how long quotas of other revisions rest that share a key with it
local revisions = {}
local REVISIONS = 16
local USED, spelled_of, views, learnt = base .. ':used', records('revisions'), {}, false

function revisions.view(name)
  if views[name] == nil then
    local view = read(spelled_of, name)
    if view then
      view = { name = name, members = {}, ids = {}, longest = 0, limits = view.limits, bound = view.bound, size = view.size }
      for index, limit in ipairs(view.limits) do
        view.ids[index], view.longest = limit.id, max(view.longest, limit.window)
      end
      view.longest = view.longest + view.bound
    end
    views[name] = view
  end
  return views[name]
end

function revisions.contains(view, quota)
  if view.members[quota] == nil then view.members[quota] = call('SISMEMBER', key('quotas', view.name), quota) == 1 end
  return view.members[quota]
end

function revisions.all()
  local found = {}
  for index, name in ipairs(call('HKEYS', spelled_of.key)) do found[index] = revisions.view(name) end
  return found
end

local function find_rivals()
  local all, owners, keys = revisions.all(), {}, {}
  for _, view in ipairs(all) do
    local stored = call('HGETALL', key('owners', view.name))
    owners[view.name] = {}
    for index = 1, #stored, 2 do owners[view.name][stored[index]], keys[stored[index]] = stored[index + 1], true end
  end
  local function owner(view, of_key)
    local quota = owners[view.name][of_key] or of_key
    return revisions.contains(view, quota) and quota or nil
  end
  state.rivals = 0
  for _, view in ipairs(all) do
    local rivals = records('rivals:' .. view.name)
    call('DEL', rivals.key)
    for of_key in pairs(keys) do
      local quota = owner(view, of_key)
      for _, other in ipairs(quota and all or {}) do
        local rival = owner(other, of_key)
        if rival and rival ~= quota then
          local rests = rivals.values[quota] or {}
          rests[rival], state.rivals = view.longest, 1
          write(rivals, quota, rests)
        end
      end
    end
    flush(rivals)
  end
end

-- By rival of a quota, for how long it rests after a grant.
function revisions.rivals(view, quota)
  return state.rivals == 1 and read(records('rivals:' .. view.name), quota) or {}
end

function revisions.learn(spelled)
  local name = spelled.name
  expiring[key('quotas', name)] = true
  chunked('SADD', key('quotas', name), spelled.quotas)
  for _, row in ipairs(spelled.keys or {}) do
    for _, of_key in ipairs(row[2]) do create('HSET', key('owners', name), of_key, row[1]) end
  end
  write(spelled_of, name, { limits = spelled.limits, bound = spelled.bound, size = #spelled.quotas })
  flush(spelled_of)
  views[name], learnt = nil, true
  local view = revisions.view(name)
  state.bound = max(state.bound, view.bound)
  state.life, state.renewed = max(state.life, 86400 + 2 * floor(view.longest / SECOND)), 0
  find_rivals()
  return view
end

-- A replica uses a revision; returns the names of those that are forgotten now.
function revisions.use(name, now)
  local gone = {}
  create('ZADD', USED, now, name)
  while true do
    local oldest, instant = first_of(USED)
    local many = learnt and call('HLEN', spelled_of.key) > REVISIONS
    if instant + revisions.view(oldest).longest >= now and not many then break end
    gone[#gone + 1] = oldest
    call('ZREM', USED, oldest)
    call('HDEL', spelled_of.key, oldest)
    call('DEL', key('quotas', oldest), key('owners', oldest), key('rivals', oldest))
  end
  if #gone > 0 then find_rivals() end
  return gone
end

return revisions
