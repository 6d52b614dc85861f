-- The configuration revisions that replicas of a pool use at this time; the state has the instant of the last use of each.
--
-- `revision <name>` record: its limits, bound and number of quotas
-- `quotas:<name>`   set: the quotas of a revision
-- `owners:<name>`   hash: the quotas of keys that are not simply a quota of their own
-- `rivals:<name>`   hash: by quota, for how long quotas of other revisions rest that share a key with it
local REVISIONS = 16
local views = {}

function revisions.view(name)
  local view = views[name]
  if view == nil then
    local told = read(records, 'revision ' .. name)
    view = told and { name = name, members = {}, ids = {}, longest = 0, limits = told.limits, size = told.size, bound = told.bound }
    for index, limit in ipairs(view and view.limits or {}) do
      view.ids[index], view.longest = limit.id, max(view.longest, limit.window + view.bound)
    end
    if view then view.longest = max(view.longest, view.bound) end
    views[name] = view
  end
  return view
end

function revisions.contains(view, quota)
  if view.members[quota] == nil then view.members[quota] = call('SISMEMBER', key('quotas', view.name), quota) == 1 end
  return view.members[quota]
end

-- By rival of a quota, for how long it rests after a grant.
function revisions.rivals(view, quota)
  return state.rivals == 1 and read(hash('rivals:' .. view.name), quota) or {}
end

-- Rare work: revisions that are new or no longer used.
revisions.rare = lazily(function()
  local function all()
    local found = {}
    for name in pairs(state.used) do found[#found + 1] = revisions.view(name) end
    return found
  end

  local function find_rivals()
    local views_of_all, owners, keys = all(), {}, {}
    for _, view in ipairs(views_of_all) do
      local stored = call('HGETALL', key('owners', view.name))
      owners[view.name] = {}
      for index = 1, #stored, 2 do owners[view.name][stored[index]], keys[stored[index]] = stored[index + 1], true end
    end
    local function owner(view, of_key)
      local quota = owners[view.name][of_key] or of_key
      return revisions.contains(view, quota) and quota or nil
    end
    state.rivals = 0
    for _, view in ipairs(views_of_all) do
      local rivals = hash('rivals:' .. view.name)
      call('DEL', rivals.key)
      for of_key in pairs(keys) do
        local quota = owner(view, of_key)
        for _, other in ipairs(quota and views_of_all or {}) do
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

  local function learn(spelled, now)
    local name = spelled.name
    chunked('SADD', key('quotas', name), spelled.quotas)
    for _, row in ipairs(spelled.keys or {}) do
      for _, of_key in ipairs(row[2]) do create('HSET', key('owners', name), of_key, row[1]) end
    end
    write(records, 'revision ' .. name, { limits = spelled.limits, bound = spelled.bound, size = #spelled.quotas })
    views[name], state.used[name] = nil, now
    local view = revisions.view(name)
    state.bound = max(state.bound, view.bound)
    state.life, state.renewed = max(state.life, 86400 + 2 * floor(view.longest / SECOND)), 0
    find_rivals()
    return view
  end

  -- Forget those that were used too long ago; returns their names.
  local function forget(now)
    local gone, used = {}, state.used
    while true do
      local number, oldest = 0, nil
      for name, instant in pairs(used) do
        number = number + 1
        if not oldest or instant < used[oldest] or (instant == used[oldest] and name < oldest) then oldest = name end
      end
      if number <= REVISIONS and used[oldest] + revisions.view(oldest).longest >= now then break end
      gone[#gone + 1], used[oldest] = oldest, nil
      write(records, 'revision ' .. oldest, false)
      call('DEL', key('quotas', oldest), key('owners', oldest), key('rivals', oldest))
    end
    if #gone > 0 then find_rivals() end
    return gone
  end

  return { all = all, learn = learn, forget = forget }
end)

-- A replica uses a revision; returns the names of those that are forgotten now.
function revisions.use(name, now)
  state.used[name] = now
  return next(state.used, next(state.used)) and revisions.rare().forget(now) or {}
end
