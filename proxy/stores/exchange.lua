-- The shared state of one pool on Redis: one call settles, remembers who waits, deals, and foretells.
--
-- This is the text of core/ledger.py, core/buckets.py, core/line.py, core/forecast.py and core/outlook.py in Lua; the laws, and why each
-- step is as it is, are told there. A differential test drives both with the same histories and demands equal answers.
-- Instants and durations are integers in microseconds, exact in Lua's doubles up to 2^53.
--
-- KEYS[1]  the name that every key of the pool begins with, its hash tag among it: `keyturn:{default}`
-- KEYS[2]  a key that never is, see stores/links.py
-- ARGV[1]  the letter (core/letters.py) as JSON, see stores/codec.py; only tests give it a `now` and a `run`
-- Returns  the reply as nested arrays, see stores/codec.py
--
-- What is stored where is listed in docs/shared-store.md. Names have no `|`, `,`, `@` and no space in them, so these
-- join them; what is looked up by its beginning stands in a sorted set in the order of its bytes.

local base = KEYS[1]
local call = cjson.decode(ARGV[1])

local SECOND = 1000000
local GRACE = SECOND / 2
local PULSE = 2 * SECOND
local MILLISECOND = 1000
local WAKE_MARGIN = 20 * MILLISECOND
local HOLD = PULSE + GRACE
local DEAL = 256
local KEEP = 60 * SECOND
local MATURE = 2000
local UNLIMITED = 1000000
local TRIP_START = SECOND / 4
local UNIT = 1000000
local LAG = 64
local ROLLOVER = 2 ^ 50
local HORIZON = 64
local EVENTS = 16 * HORIZON
local SAMPLES = 256
local FEWEST = 16
local FINEST = 64
local CLOSE = 200 * MILLISECOND
local ROWS = DEAL + HORIZON -- of one client that are looked at in one call: no more tokens are dealt
local RIVALS = 64
local CROWDED = 256
local ALIKE = 32
local NAMES = 4 * RIVALS
local STEP = 1000
local CHUNK = 64 -- entries of a sorted set read at a time
local RANKED = 2 ^ 36 -- a ranking's score is (tokens missing) * RANKED + (when it was used last)
local SIZES = 2 ^ 17 -- more than any limit has tokens
local RESERVE = 10
local EXPIRE = 86400 -- seconds after which what nobody asked about any more is gone
local RENEW = 5 * SECOND -- how often that is put off

local floor, min, max = math.floor, math.min, math.max

local CREATES = { HSET = true, HINCRBY = true, SADD = true, ZADD = true }
local written = {} -- keys that may be new

local function redis_call(command, of, ...)
  if CREATES[command] then
    written[of] = true
  end
  return redis.call(command, of, ...)
end

local function text(number)
  return string.format('%.0f', number)
end

local function key(name, of)
  if of then
    return base .. ':' .. name .. ':' .. of
  end
  return base .. ':' .. name
end

local function split(joined, separator)
  local parts = {}
  if joined == '' then
    return parts
  end
  local from = 1
  while true do
    local at = string.find(joined, separator, from, true)
    if not at then
      parts[#parts + 1] = string.sub(joined, from)
      return parts
    end
    parts[#parts + 1] = string.sub(joined, from, at - 1)
    from = at + 1
  end
end

local function contains(list, item)
  for index = 1, #list do
    if list[index] == item then
      return true
    end
  end
  return false
end

-- Entries whose text begins with `start`; its last character is a separator, and `after` the character behind it.
local function beginning(of, start, after, limit)
  local upper = '(' .. string.sub(start, 1, -2) .. after
  if limit then
    return redis_call('ZRANGEBYLEX', of, '[' .. start, upper, 'LIMIT', 0, limit)
  end
  return redis_call('ZRANGEBYLEX', of, '[' .. start, upper)
end

local function first_of(of)
  local entry = redis_call('ZRANGE', of, 0, 0, 'WITHSCORES')
  if entry[1] then
    return entry[1], tonumber(entry[2])
  end
end

-- Entries of a sorted set in order, read in chunks: what is written in between is not seen.
local function walk(of, offset)
  local chunk, at, next_from = {}, 1, offset or 0
  return function()
    if at > #chunk then
      chunk = redis_call('ZRANGE', of, next_from, next_from + CHUNK - 1, 'WITHSCORES')
      next_from = next_from + CHUNK
      at = 1
    end
    local member = chunk[at]
    if member then
      at = at + 2
      return member, tonumber(chunk[at - 1])
    end
  end
end

-- State ------------------------------------------------------------------------------------------------------------

local STATE = key('state')
local NUMBERS = {
  'tick', 'leases', 'shift', 'now', 'lost', 'hold', 'trip', 'bound', 'uses', 'strangers', 'virtual', 'stamp', 'kept',
  'life',
  'shared', 'level', 'sharing',
}
local state = {}
do
  local stored = redis_call('HMGET', STATE, 'era', 'run', 'provided', 'believed', unpack(NUMBERS))
  state.era = stored[1] or ''
  state.run = stored[2] or ''
  state.provided = stored[3] or ''
  state.believed = stored[4] or ''
  for index, name in ipairs(NUMBERS) do
    state[name] = tonumber(stored[index + 4] or 0)
  end
  if not stored[11] then
    state.trip = TRIP_START
  end
end

local function save()
  local fields = { 'era', state.era, 'run', state.run, 'provided', state.provided, 'believed', state.believed }
  for _, name in ipairs(NUMBERS) do
    fields[#fields + 1] = name
    fields[#fields + 1] = text(state[name])
  end
  redis_call('HSET', STATE, unpack(fields))
  for of in pairs(written) do
    redis_call('EXPIRE', of, max(state.life, EXPIRE))
  end
end

-- Terms ------------------------------------------------------------------------------------------------------------

local views = {}

-- Terms as they are looked up: {name, quotas (how many), only, limits (in order), by_id, shared, owners}.
local function as_view(name, view)
  view.name = name
  view.by_id, view.members, view.shared, view.owners = {}, {}, {}, {}
  for _, limit in ipairs(view.limits) do
    view.by_id[limit.id] = limit
  end
  for _, row in ipairs(view.keys or {}) do
    view.shared[row[1]] = row[2]
    for _, name_of_key in ipairs(row[2]) do
      view.owners[name_of_key] = row[1]
    end
  end
  return view
end

local function view_of(name)
  local view = views[name]
  if view == nil then
    local stored = redis_call('HGET', key('terms'), name)
    if not stored then
      return nil
    end
    view = as_view(name, cjson.decode(stored))
    views[name] = view
  end
  return view
end

local names_of_views

-- The names of all terms in use.
local function all_views()
  names_of_views = names_of_views or redis_call('HKEYS', key('terms'))
  return names_of_views
end

local function serves(view, quota)
  local known = view.members[quota]
  if known == nil then
    known = redis_call('SISMEMBER', key('quotas', view.name), quota) == 1
    view.members[quota] = known
  end
  return known
end

-- What terms have in common (core/views.py). A place is {limit, window, quota}.
local kin = {}

function kin.scope(limit)
  return string.match(limit, '^%d+%-?([^#]*)')
end

function kin.span(limit)
  return tonumber(string.match(limit, '^%d+'))
end

function kin.keys(view, quota)
  return view.shared[quota] or { quota }
end

function kin.owner(view, name)
  local quota = view.owners[name] or name
  if serves(view, quota) then
    return quota
  end
end

function kin.add(list, item)
  if item and not contains(list, item) then
    list[#list + 1] = item
  end
end

-- Where a lease counts that was taken from a quota with these keys; `windows` are {limit, window}.
function kin.places_by_terms(quota, keys, windows)
  local found, known, scopes = {}, {}, {}
  local function add(limit, window, at)
    if not known[limit .. '@' .. at] then
      known[limit .. '@' .. at] = true
      found[#found + 1] = { limit, window, at }
    end
  end
  for _, window in ipairs(windows) do
    add(window[1], window[2], quota)
    scopes[kin.scope(window[1])] = true
  end
  for _, name in ipairs(all_views()) do
    local view, heirs = view_of(name), {}
    if serves(view, quota) then
      heirs[1] = quota
    end
    for _, of_key in ipairs(keys) do
      kin.add(heirs, kin.owner(view, of_key))
    end
    for _, limit in ipairs(view.limits) do
      for _, heir in ipairs(scopes[kin.scope(limit.id)] and heirs or {}) do
        add(limit.id, limit.window, heir)
      end
    end
  end
  return found
end

-- Where a lease counts that was granted by these terms, or by some that its replica went by before.
function kin.places(view, quota, windows)
  local own = true
  for index, window in ipairs(windows) do
    own = own and view.by_id[window[1]] ~= nil
    window[3] = quota
  end
  if own and #all_views() == 1 then
    return windows
  end
  return kin.places_by_terms(quota, kin.keys(view, quota), windows)
end

-- Where keys have gone to by new terms, by the quota that they come from.
function kin.gone(view)
  local gone, any = {}, false
  local function note(other, name)
    local before, after = kin.owner(other, name), kin.owner(view, name)
    if before and after and before ~= after then
      gone[before] = gone[before] or {}
      kin.add(gone[before], after)
      any = true
    end
  end
  for _, name in ipairs(all_views()) do
    local other = view_of(name)
    for of_key in pairs(other.owners) do
      note(other, of_key)
    end
    for of_key in pairs(view.owners) do
      note(other, of_key)
    end
  end
  return gone, any
end

-- The quotas that count by new terms what a quota has spent; `itself` if it is asked for and still there.
function kin.heirs(view, gone, quota, itself)
  local heirs = {}
  if itself and serves(view, quota) then
    heirs[1] = quota
  end
  for _, heir in ipairs(gone[quota] or {}) do
    heirs[#heirs + 1] = heir
  end
  return heirs
end

local needs = {}

-- A need by its name: {name, terms, limits, pinned}.
local function need_of(name)
  local need = needs[name]
  if not need then
    local terms, limits, pinned = string.match(name, '^([^|]*)|([^|]*)|([^|]*)$')
    need = { name = name, terms = terms, limits = split(limits, ','), joined = limits }
    if pinned ~= '' then
      need.pinned = pinned
    end
    needs[name] = need
  end
  return need
end

-- Buckets ----------------------------------------------------------------------------------------------------------

local buckets = {}

-- One bucket as it stands: {taken, parked, probing}, kept in step with what is stored.
local function bucket_of(limit, quota)
  local of_limit = buckets[limit]
  if not of_limit then
    of_limit = {}
    buckets[limit] = of_limit
  end
  local bucket = of_limit[quota]
  if not bucket then
    bucket = {
      taken = tonumber(redis_call('HGET', key('taken', limit), quota) or 0),
      parked = tonumber(redis_call('ZSCORE', key('parked', limit), quota) or nil),
      probing = redis_call('ZSCORE', key('probing', limit), quota) and true or false,
    }
    of_limit[quota] = bucket
  end
  return bucket
end

-- Read the buckets of all these quotas at once.
local function load_buckets(limit, quotas)
  local loaded, known = {}, buckets[limit] or {}
  for _, quota in ipairs(quotas) do
    loaded[quota] = { taken = 0, probing = false }
  end
  local function each(entries, set)
    for index = 1, #entries, 2 do
      local bucket = loaded[entries[index]]
      if bucket then
        set(bucket, tonumber(entries[index + 1]))
      end
    end
  end
  each(redis_call('HGETALL', key('taken', limit)), function(bucket, taken) bucket.taken = taken end)
  each(redis_call('ZRANGE', key('parked', limit), 0, -1, 'WITHSCORES'), function(bucket, till) bucket.parked = till end)
  each(redis_call('ZRANGE', key('probing', limit), 0, -1, 'WITHSCORES'), function(bucket) bucket.probing = true end)
  for quota, bucket in pairs(known) do
    loaded[quota] = bucket
  end
  buckets[limit] = loaded
end

local function count_taken(limit, quota, tokens)
  local bucket = bucket_of(limit, quota)
  bucket.taken = bucket.taken + tokens
  if bucket.taken ~= 0 then
    redis_call('HSET', key('taken', limit), quota, bucket.taken)
  else
    redis_call('HDEL', key('taken', limit), quota)
  end
end

local function set_probing(limit, quota, granted)
  bucket_of(limit, quota).probing = granted and true or false
  if granted then
    redis_call('ZADD', key('probing', limit), granted, quota)
  else
    redis_call('ZREM', key('probing', limit), quota)
  end
end

local function set_warm(limit, quota)
  redis_call('SADD', key('warm', limit), quota)
end

local function set_cold(limit, quota)
  redis_call('SREM', key('warm', limit), quota)
end

local function closed(limit, quota)
  local bucket = bucket_of(limit, quota)
  return bucket.parked ~= nil or bucket.probing
end

local function open(view, quota, limit)
  if closed(limit, quota) then
    return 0
  end
  return view.by_id[limit].requests - bucket_of(limit, quota).taken
end

local function open_for(view, quota, limits)
  if #limits == 0 then
    return UNLIMITED
  end
  local least = UNLIMITED
  for _, limit in ipairs(limits) do
    least = min(least, open(view, quota, limit))
  end
  return max(0, least)
end

local rankings

-- The rankings that there are: {name, terms, limits}.
local function all_rankings()
  if not rankings then
    rankings = {}
    for _, name in ipairs(redis_call('SMEMBERS', key('rankings'))) do
      local terms, limits = string.match(name, '^([^|]*)|(.*)$')
      rankings[#rankings + 1] = { name = name, terms = terms, limits = split(limits, ',') }
    end
  end
  return rankings
end

local function rank_score(view, quota, limits, used)
  return (SIZES - min(open_for(view, quota, limits), SIZES - 1)) * RANKED + used
end

local function used_of(quota)
  return tonumber(redis_call('HGET', key('used'), quota) or 0) % RANKED
end

local function rank(quota, changed)
  local used
  for _, ranking in ipairs(all_rankings()) do
    local touched = #ranking.limits == 0
    for _, limit in ipairs(changed) do
      touched = touched or contains(ranking.limits, limit)
    end
    local view = touched and view_of(ranking.terms)
    if view and serves(view, quota) then
      used = used or used_of(quota)
      redis_call('ZADD', key('ranking', ranking.name), rank_score(view, quota, ranking.limits, used), quota)
    end
  end
end

-- Once for each set of limits in an era: the only time that all quotas are looked at.
local function make_ranking(view, need, name)
  local quotas = redis_call('SMEMBERS', key('quotas', view.name))
  for _, limit in ipairs(need.limits) do
    load_buckets(limit, quotas)
  end
  for from = 1, #quotas, 500 do
    local till, entries = min(from + 499, #quotas), {}
    local used = redis_call('HMGET', key('used'), unpack(quotas, from, till))
    for index = from, till do
      entries[#entries + 1] = rank_score(view, quotas[index], need.limits, tonumber(used[index - from + 1] or 0) % RANKED)
      entries[#entries + 1] = quotas[index]
    end
    redis_call('ZADD', key('ranking', name), unpack(entries))
  end
  redis_call('SADD', key('rankings'), name)
  local made = all_rankings()
  made[#made + 1] = { name = name, terms = view.name, limits = need.limits }
end

local function forget_rankings(terms)
  local kept = {}
  for _, ranking in ipairs(all_rankings()) do
    if terms == nil or ranking.terms == terms then
      redis_call('DEL', key('ranking', ranking.name))
      redis_call('SREM', key('rankings'), ranking.name)
    else
      kept[#kept + 1] = ranking
    end
  end
  rankings = kept
end

-- The quota to serve a need, or nil.
local function best(need)
  local view = view_of(need.terms)
  if need.pinned or view.only then
    local quota = need.pinned or view.only
    if open_for(view, quota, need.limits) > 0 then
      return quota
    end
    return nil
  end
  local name = need.terms .. '|' .. need.joined
  local known = false
  for _, ranking in ipairs(all_rankings()) do
    known = known or ranking.name == name
  end
  if not known then
    make_ranking(view, need, name)
  end
  local quota, score = first_of(key('ranking', name))
  if quota and floor(score / RANKED) < SIZES then
    return quota
  end
end

local function all_limits()
  return redis_call('ZRANGE', key('limits'), 0, -1)
end

local function named_elsewhere(limit)
  for _, name in ipairs(all_views()) do
    if view_of(name).by_id[limit] then
      return true
    end
  end
  return false
end

local function forget_limit(limit)
  if redis_call('EXISTS', key('taken', limit)) == 0 and not named_elsewhere(limit) then
    redis_call('ZREM', key('limits'), limit)
    redis_call('DEL', key('warm', limit), key('parked', limit), key('probing', limit))
    buckets[limit] = nil
  end
end

local function unlearn(terms)
  local gone = view_of(terms)
  forget_rankings(terms)
  redis_call('HDEL', key('terms'), terms)
  views[terms], names_of_views = nil, nil
  local others = { key('quotas', terms) }
  for _, name in ipairs(all_views()) do
    others[#others + 1] = key('quotas', name)
  end
  for _, quota in ipairs(redis_call('SDIFF', unpack(others))) do
    redis_call('HDEL', key('used'), quota)
    for _, limit in ipairs(gone.limits) do
      redis_call('SREM', key('warm', limit.id), quota)
    end
  end
  redis_call('DEL', key('quotas', terms))
  buckets = {}
  for _, limit in ipairs(gone.limits) do
    forget_limit(limit.id)
  end
end

local function chill()
  for _, limit in ipairs(all_limits()) do
    redis_call('DEL', key('warm', limit))
  end
  buckets = {}
  forget_rankings()
end

-- Leases: `quota|granted|replica|client|limit=window=quota,…|probe,…`; a place on the lease's own quota without it.

local function keep_out(lease, out)
  local places = {}
  for index, place in ipairs(out.places) do
    places[index] = place[1] .. '=' .. text(place[2])
    if place[3] ~= out.quota then
      places[index] = places[index] .. '=' .. place[3]
    end
  end
  local packed = {
    out.quota, text(out.granted), out.replica, out.client, table.concat(places, ','), table.concat(out.probes, ','),
  }
  redis_call('HSET', key('leases'), lease, table.concat(packed, '|'))
end

local function use(lease, out, place)
  redis_call('ZADD', key('in_use', place[1]), out.granted, lease .. '@' .. place[3])
  count_taken(place[1], place[3], 1)
end

local function rank_places(out)
  local limits, order = { [out.quota] = {} }, { out.quota }
  for _, place in ipairs(out.places) do
    if not limits[place[3]] then
      limits[place[3]] = {}
      order[#order + 1] = place[3]
    end
    local of_quota = limits[place[3]]
    of_quota[#of_quota + 1] = place[1]
  end
  for _, quota in ipairs(order) do
    rank(quota, limits[quota])
  end
end

local function put_out(lease, out)
  keep_out(lease, out)
  redis_call('ZADD', key('held'), 0, out.replica .. ' ' .. lease)
  for _, place in ipairs(out.places) do
    use(lease, out, place)
  end
  rank_places(out)
end

local function out_of(lease)
  local packed = redis_call('HGET', key('leases'), lease)
  if not packed then
    return nil
  end
  local quota, granted, replica, client, joined, probes =
    string.match(packed, '^([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$')
  local places = {}
  for index, place in ipairs(split(joined, ',')) do
    local limit, window, at = string.match(place, '^([^=]*)=(%d+)=?(.*)$')
    places[index] = { limit, tonumber(window), at ~= '' and at or quota }
  end
  return {
    quota = quota, granted = tonumber(granted), replica = replica, client = client, places = places,
    probes = split(probes, ','),
  }
end

local function forget(lease)
  local out = out_of(lease)
  if not out then
    return nil
  end
  redis_call('HDEL', key('leases'), lease)
  redis_call('ZREM', key('held'), out.replica .. ' ' .. lease)
  for _, place in ipairs(out.places) do
    redis_call('ZREM', key('in_use', place[1]), lease .. '@' .. place[3])
    count_taken(place[1], place[3], -1)
  end
  return out
end

-- Says whether it cools already, by a replica's word: what was in use besides is back.
local function cool_token(limit, member, quota, returns)
  local known = tonumber(redis_call('ZSCORE', key('cooling', limit), member) or nil)
  if not known then
    count_taken(limit, quota, 1)
  end
  if not known or returns > known then
    redis_call('ZADD', key('cooling', limit), returns, member)
  end
  return known ~= nil
end

local function cool(lease, out, counted)
  local back = {}
  for _, place in ipairs(out.places) do
    if cool_token(place[1], lease .. '@' .. place[3], place[3], counted + place[2]) then
      back[#back + 1] = place
    end
  end
  for _, place in ipairs(back) do -- only now, for a quota ranks by its tokens of all limits
    rank(place[3], { place[1] })
  end
end

local function open_probed(out, known)
  for _, limit in ipairs(out.probes) do
    set_probing(limit, out.quota, nil)
    if known then
      set_warm(limit, out.quota)
    end
  end
end

local function park(quota, limits, till)
  for _, limit in ipairs(limits) do
    local bucket = bucket_of(limit, quota)
    if till > (bucket.parked or 0) then
      bucket.parked = till
      redis_call('ZADD', key('parked', limit), till, quota)
      rank(quota, { limit })
    end
  end
end

-- Where the upstream refused a lease: by these limits of its own terms, and by others' terms under their like.
local function refused(out, closed_limits, view)
  local places, named, scopes = {}, {}, {}
  for _, limit in ipairs(closed_limits) do
    named[limit], scopes[kin.scope(limit)] = true, true
  end
  for _, place in ipairs(out.places) do
    if named[place[1]] or (not view.by_id[place[1]] and scopes[kin.scope(place[1])]) then
      places[#places + 1] = place
    end
  end
  return places
end

-- Terms that are new (core/buckets.py, `learn`)

local learn
do
  -- Count what one limit has out under another one of its scope, or on other quotas under itself.
  local function copy(source, limit, view, gone)
    local other = source ~= limit.id
    local later = other and limit.window - kin.span(source) or 0
    local touched, order = {}, {}
    local cooling = redis_call('ZRANGE', key('cooling', source), 0, -1, 'WITHSCORES')
    for index = 1, #cooling, 2 do
      local lease, quota = string.match(cooling[index], '^([^@]*)@(.*)$')
      local returns = tonumber(cooling[index + 1])
      for _, heir in ipairs(kin.heirs(view, gone, quota, other)) do
        local shift = string.sub(lease, 1, 1) == '~' and max(0, later) or later
        cool_token(limit.id, lease .. '@' .. heir, heir, returns + shift)
        if not touched[heir] then
          touched[heir] = true
          order[#order + 1] = heir
        end
      end
    end
    for _, heir in ipairs(order) do
      rank(heir, { limit.id })
    end
    local parked = redis_call('ZRANGE', key('parked', source), 0, -1, 'WITHSCORES')
    for index = 1, #parked, 2 do
      for _, heir in ipairs(kin.heirs(view, gone, parked[index], other)) do
        park(heir, { limit.id }, tonumber(parked[index + 1]))
      end
    end
    local known, cold = redis_call('SMEMBERS', key('warm', source)), {}
    for quota, heirs in pairs(gone) do
      if redis_call('SISMEMBER', key('warm', source), quota) == 0 then
        for _, heir in ipairs(heirs) do
          cold[heir] = true
        end
      end
    end
    for _, quota in ipairs(kin.span(source) >= kin.span(limit.id) and known or {}) do
      for _, heir in ipairs(kin.heirs(view, gone, quota, other)) do
        if not cold[heir] then
          set_warm(limit.id, heir)
        end
      end
    end
    for heir in pairs(other and {} or cold) do
      set_cold(limit.id, heir)
    end
  end

  -- A lease that is out counts by new terms, too.
  local function extend(lease, view, gone)
    local out, known = out_of(lease), {}
    for _, place in ipairs(out.places) do
      known[place[1] .. '@' .. place[3]] = true
    end
    for index = 1, #out.places do
      local place = out.places[index]
      for _, limit in ipairs(view.limits) do
        local like = kin.scope(limit.id) == kin.scope(place[1])
        for _, heir in ipairs(like and kin.heirs(view, gone, place[3], true) or {}) do
          if not known[limit.id .. '@' .. heir] then
            known[limit.id .. '@' .. heir] = true
            out.places[#out.places + 1] = { limit.id, limit.window, heir }
            use(lease, out, out.places[#out.places])
            rank(heir, { limit.id })
          end
        end
      end
    end
    keep_out(lease, out)
  end

  function learn(terms)
    local stored = { quotas = #terms.quotas, limits = terms.limits, keys = terms.keys }
    if #terms.quotas == 1 then
      stored.only = terms.quotas[1]
    end
    local packed = cjson.encode(stored)
    for from = 1, #terms.quotas, 1000 do
      redis_call('SADD', key('quotas', terms.name), unpack(terms.quotas, from, min(from + 999, #terms.quotas)))
    end
    state.bound = max(state.bound, terms.bound)
    state.kept = 0
    for _, limit in ipairs(terms.limits) do
      redis_call('ZADD', key('limits'), 0, limit.id)
    end
    local view = as_view(terms.name, stored)
    local gone, any = kin.gone(view)
    local new = false
    for _, limit in ipairs(terms.limits) do
      for _, source in ipairs(all_limits()) do
        if kin.scope(source) == kin.scope(limit.id) and (source ~= limit.id or any) then
          copy(source, limit, view, gone)
          new = true
        end
      end
    end
    for _, lease in ipairs(new and redis_call('HKEYS', key('leases')) or {}) do
      extend(lease, view, gone)
    end
    redis_call('HSET', key('terms'), terms.name, packed)
    views[terms.name], names_of_views = view, nil
  end
end

local foreign, foreign_order = {}, {}

local function learn_spent(now, quota, limit, remaining, reset, view)
  local more = view.by_id[limit].requests - remaining - bucket_of(limit, quota).taken
  for _ = 1, more do
    state.strangers = state.strangers + 1
    cool_token(limit, '~' .. text(state.strangers) .. '@' .. quota, quota, now + reset)
  end
  if more > 0 then
    if not foreign[quota] then
      foreign_order[#foreign_order + 1] = quota
    end
    foreign[quota] = (foreign[quota] or 0) + more
    rank(quota, { limit })
  end
end

-- End a lease; a settlement is {'u', lease}, {'s', lease, age, seen} or {'t', lease, age, park, limits}.
local function settle(now, settlement, view)
  local kind, lease = settlement[1], settlement[2]
  local out = forget(lease)
  if not out then
    return nil
  end
  if kind ~= 'u' then
    local counted = now - settlement[3]
    cool(lease, out, counted)
    state.trip = state.trip + floor((max(0, min(counted - out.granted, state.bound)) - state.trip) / 8)
  end
  local closed_at = {}
  if kind == 't' then
    local limits = {}
    for index, limit in ipairs(settlement[5]) do
      limits[index] = view.limits[limit + 1].id
    end
    closed_at = refused(out, limits, view)
  end
  for _, place in ipairs(closed_at) do
    park(place[3], { place[1] }, now + settlement[4])
  end
  open_probed(out, kind ~= 'u')
  for _, place in ipairs(closed_at) do
    set_cold(place[1], place[3])
  end
  if kind == 's' then
    for _, seen in ipairs(settlement[4] or {}) do
      learn_spent(now, out.quota, view.limits[seen[1] + 1].id, seen[2], seen[3], view)
    end
  end
  if kind ~= 's' or #out.probes > 0 then -- else as many are at hand as before
    rank_places(out)
  end
  return out
end

local function held_by(replica)
  local leases = {}
  for index, member in ipairs(beginning(key('held'), replica .. ' ', '!')) do
    leases[index] = string.sub(member, #replica + 2)
  end
  return leases
end

local function lapse(replica, word)
  for _, lease in ipairs(held_by(replica)) do
    local out = forget(lease)
    cool(lease, out, word + state.bound)
    open_probed(out, true)
    rank_places(out)
  end
end

-- Tokens that cool by a replica's word, as `cool_token` takes them one by one: thousands are told at once, so those of a
-- quota are written together.
local told = { limits = {} }

function told.cool(lease, limit, quota, returns)
  local of = told[limit]
  if not of then
    of = { entries = {}, quotas = {} }
    told[limit] = of
    told.limits[#told.limits + 1] = limit
  end
  local entries = of.entries[quota]
  if not entries then
    entries = {}
    of.entries[quota] = entries
    of.quotas[#of.quotas + 1] = quota
  end
  entries[#entries + 1] = returns
  entries[#entries + 1] = lease .. '@' .. quota
end

function told.write()
  for _, limit in ipairs(told.limits) do
    local of = told[limit]
    for _, quota in ipairs(of.quotas) do
      local entries, new = of.entries[quota], 0
      for from = 1, #entries, 1000 do -- what is there already stays, or returns later
        new = new + redis_call('ZADD', key('cooling', limit), 'GT', unpack(entries, from, min(from + 999, #entries)))
      end
      if new > 0 then
        count_taken(limit, quota, new)
      end
      rank(quota, { limit })
    end
  end
end

-- A row is {lease, quota, client, {limit, window, …}, granted, is_counted, counted}.
local function restore(now, replica, held, view)
  local named, limits, out = {}, {}, {}
  for _, lease in ipairs(#held > 0 and redis_call('HKEYS', key('leases')) or {}) do
    out[lease] = true
  end
  for _, row in ipairs(held) do
    local lease, windows = row[1], {}
    for index = 1, #row[4], 2 do
      local limit = row[4][index]
      windows[#windows + 1] = { limit, row[4][index + 1] }
      if not limits[limit] then
        limits[limit] = true
        redis_call('ZADD', key('limits'), 0, limit)
      end
    end
    named[lease] = true
    local places = kin.places(view, row[2], windows)
    if row[6] then
      if out[lease] then
        local known = forget(lease)
        open_probed(known, false)
        rank_places(known)
      end
      for _, place in ipairs(places) do
        told.cool(lease, place[1], place[3], now - row[7] + place[2])
      end
    elseif not out[lease] then
      put_out(lease, {
        quota = row[2], granted = now - row[5], replica = replica, client = row[3], probes = {}, places = places,
      })
    end
  end
  told.write()
  for _, lease in ipairs(held_by(replica)) do
    if not named[lease] then
      settle(now, { 'u', lease })
    end
  end
end

local function take(lease, need, quota, now, replica, client)
  state.uses = state.uses + 1
  redis_call('HSET', key('used'), quota, text(state.uses))
  local view, windows, probes = view_of(need.terms), {}, {}
  for index, limit in ipairs(need.limits) do
    windows[index] = { limit, view.by_id[limit].window }
    if redis_call('SISMEMBER', key('warm', limit), quota) == 0 then
      probes[#probes + 1] = limit
      set_probing(limit, quota, now)
    end
  end
  put_out(lease, {
    quota = quota, granted = now, replica = replica, client = client, probes = probes,
    places = kin.places(view, quota, windows),
  })
  return #probes > 0
end

local function lend(quota, limits, now)
  for _, limit in ipairs(limits) do
    count_taken(limit, quota, now and 1 or -1)
    if redis_call('SISMEMBER', key('warm', limit), quota) == 0 then
      set_probing(limit, quota, now)
    end
  end
  rank(quota, limits)
end

local function quota_of(member)
  return string.sub(member, string.find(member, '@', 1, true) + 1)
end

local function remove_all(of, members)
  for from = 1, #members, 1000 do
    redis_call('ZREM', of, unpack(members, from, min(from + 999, #members)))
  end
end

local function mature(now)
  local left = false
  for _, limit in ipairs(all_limits()) do
    local due = redis_call('ZRANGEBYSCORE', key('cooling', limit), '-inf', now, 'LIMIT', 0, MATURE)
    remove_all(key('cooling', limit), due)
    left = left or #due == MATURE
    local returned, order = {}, {}
    for _, member in ipairs(due) do
      local quota = quota_of(member)
      if not returned[quota] then
        returned[quota] = 0
        order[#order + 1] = quota
      end
      returned[quota] = returned[quota] + 1
    end
    for _, quota in ipairs(order) do
      count_taken(limit, quota, -returned[quota])
      rank(quota, { limit })
    end
    local opening = redis_call('ZRANGEBYSCORE', key('parked', limit), '-inf', now)
    remove_all(key('parked', limit), opening)
    for _, quota in ipairs(opening) do
      bucket_of(limit, quota).parked = nil
      rank(quota, { limit })
    end
    for _, quota in ipairs(redis_call('ZRANGEBYSCORE', key('probing', limit), '-inf', now - state.bound)) do
      set_probing(limit, quota, nil)
      set_warm(limit, quota)
      rank(quota, { limit })
    end
  end
  return left
end

-- Drop the limits that nobody's terms name, once nothing of them is taken; `view` is one of them.
local function tidy(view)
  for _, limit in ipairs(all_limits()) do
    if not view.by_id[limit] then
      forget_limit(limit)
    end
  end
end

local function size_of(view, limit)
  return view.by_id[limit].requests * view.quotas
end

local totals = {}

-- How many tokens of a limit cool and are in use, over all quotas, once nothing of it changes any more in this call.
local function total_of(limit)
  local total = totals[limit]
  if not total then
    local cooling, in_use = key('cooling', limit), key('in_use', limit)
    total = { redis_call('ZCARD', cooling), redis_call('ZCARD', in_use), cooling, in_use }
    totals[limit] = total
  end
  return total[1], total[2], total[3], total[4]
end

local calendar = { width = 1, scores = {} } -- `width`: how many scores are read at a time

function calendar.at_hand(view, limit)
  local cooling, in_use = total_of(limit)
  return max(0, size_of(view, limit) - cooling - in_use)
end

-- The score of that rank, once nothing of the set changes any more in this call.
function calendar.score_at(of, rank_)
  local known = calendar.scores[of]
  if not known then
    known = {}
    calendar.scores[of] = known
  end
  if not known[rank_] then
    local from = rank_ - rank_ % calendar.width
    local entries = redis_call('ZRANGE', of, from, from + calendar.width - 1, 'WITHSCORES')
    for index = 2, #entries, 2 do
      known[from + index / 2 - 1] = tonumber(entries[index])
    end
  end
  return known[rank_]
end

function calendar.nth_return(view, limit, position, now)
  local window = view.by_id[limit].window
  local cooling, in_use, key_cooling, key_in_use = total_of(limit)
  local hand = max(0, size_of(view, limit) - cooling - in_use)
  local all = max(1, hand + cooling + in_use)
  local rounds = floor(position / all)
  local place = position - rounds * all
  local instant = now
  if hand <= place and place < hand + cooling then
    instant = max(now, calendar.score_at(key_cooling, place - hand))
  elseif hand + cooling <= place and place < hand + cooling + in_use then
    instant = max(now, calendar.score_at(key_in_use, place - hand - cooling) + state.trip) + window
  end
  return instant + rounds * (window + state.trip)
end

-- How many of the tokens at hand can be had, which those of closed buckets cannot, and when the next can.
local function open_ones(view, limit, now, hand, returns)
  local parked = redis_call('ZRANGE', key('parked', limit.id), 0, -1, 'WITHSCORES')
  local first, closed_ones, shut = nil, 0, 0
  for index = 1, #parked, 2 do
    if serves(view, parked[index]) then
      first = first or tonumber(parked[index + 1]) - now
      closed_ones = closed_ones + 1
      shut = shut + max(0, limit.requests - bucket_of(limit.id, parked[index]).taken)
    end
  end
  if not first then
    return hand, returns
  end
  local left = max(0, hand - shut)
  if closed_ones == view.quotas then
    returns = hand > 0 and first or max(returns, first)
  elseif hand > 0 and left == 0 then
    local cooling, in_use = total_of(limit.id)
    returns = cooling + in_use > 0 and min(returns, first) or first
  end
  return left, returns
end

-- Line -------------------------------------------------------------------------------------------------------------

local shares = {}
-- `provided`: clients of which each request had a token, granted or left, when tokens were dealt last.
local line = { lifts = {}, provided = {} }
for _, client in ipairs(split(state.provided, ' ')) do
  line.provided[client] = true
end

local function read_share(stored)
  local tag, weight = string.match(stored, '^(%-?%d+) (%d+)$')
  return { tag = tonumber(tag), weight = tonumber(weight) }
end

-- A client's place in virtual time: {tag, weight}, or nil.
local function share_of(client)
  local share = shares[client]
  if share == nil then
    local stored = redis_call('HGET', key('shares'), client)
    if not stored then
      return nil
    end
    share = read_share(stored)
    shares[client] = share
  end
  return share
end

local function keep_share(client, share)
  shares[client] = share
  redis_call('HSET', key('shares'), client, text(share.tag) .. ' ' .. text(share.weight))
end

local function cost_of(share)
  return floor(UNIT / share.weight)
end

local function needs_of(client)
  local names = {}
  for index, member in ipairs(beginning(key('needs'), client .. ' ', '!')) do
    names[index] = string.sub(member, #client + 2)
  end
  return names
end

local function group_add(need, field, number)
  redis_call('HINCRBY', key('groups'), field .. ' ' .. need, number)
end

-- By how much all who wait with a need were moved on.
local function lift_of(need)
  if not line.lifts[need] then
    line.lifts[need] = tonumber(redis_call('HGET', key('groups'), 'lift ' .. need) or 0)
  end
  return line.lifts[need]
end

-- The tag of a client that is as far behind as it may be.
local function lag(share)
  return state.level - LAG * cost_of(share)
end

-- Leave a client with that tag no more than `LAG` requests behind, and everybody in its group as far from it as before.
local function lift(need, tag, share)
  local least = lag(share) - tag
  if least > lift_of(need) then
    line.lifts[need] = least
    redis_call('HSET', key('groups'), 'lift ' .. need, text(least))
  end
end

local function forgive(need)
  local client, tag = first_of(key('clients', need))
  if client then
    lift(need, tag, share_of(client))
  end
end

local function group_of(need)
  local found = redis_call('HMGET', key('groups'), 'waiting ' .. need, 'weight ' .. need)
  return tonumber(found[1] or 0), tonumber(found[2] or 0)
end

-- A client's tag in the order of a need, less the lift.
local function tag_in(need, client)
  return tonumber(redis_call('ZSCORE', key('clients', need), client) or 0)
end

local function row_prefix(need, client)
  return need .. ' ' .. client .. ' '
end

local function place_field(replica, client, need)
  return replica .. ' ' .. client .. ' ' .. need
end

-- How many of a replica's requests wait in a place, and the stamp of its row; 0 when none do.
local function waiting_of(field)
  local stored = redis_call('HGET', key('waiting'), field)
  if not stored then
    return 0
  end
  local waiting, stamp = string.match(stored, '^(%d+) (%d+)$')
  return tonumber(waiting), stamp
end

local function add_row(replica, client, need, field, waiting)
  state.stamp = state.stamp + 1
  local stamp = string.format('%016.0f', state.stamp)
  redis_call('ZADD', key('rows'), 0, row_prefix(need, client) .. stamp .. ' ' .. replica)
  redis_call('HSET', key('waiting'), field, text(waiting) .. ' ' .. stamp)
end

local function remove_row(replica, client, need, stamp)
  redis_call('ZREM', key('rows'), row_prefix(need, client) .. stamp .. ' ' .. replica)
end

-- More requests of a client come that had a token for each: these start now, those that it had before them.
function line.rejoin(client, share, names)
  line.provided[client] = nil
  local before = 0
  for _, name in ipairs(names) do
    local prefix = row_prefix(name, client)
    for _, member in ipairs(beginning(key('rows'), prefix, '!')) do
      before = before + (waiting_of(place_field(string.sub(member, #prefix + 18), client, name)))
    end
  end
  share.tag = max(share.tag, state.virtual - before * cost_of(share))
  for _, name in ipairs(names) do
    redis_call('ZADD', key('clients', name), max(tag_in(name, client), share.tag - lift_of(name)), client)
  end
end

local function set_place(replica, client, need, weight, waiting)
  local share = share_of(client) or { tag = 0, weight = 1 }
  local names = needs_of(client)
  local field = place_field(replica, client, need)
  local before, stamp = waiting_of(field)
  if line.provided[client] and #names > 0 and waiting > before then
    line.rejoin(client, share, names)
  end
  if #names == 0 then
    share.tag = max(share.tag, state.virtual)
    redis_call('ZREM', key('idle'), client)
  elseif not contains(names, need) then
    share.tag = max(share.tag, lag(share))
  end
  if share.weight ~= weight then
    for _, name in ipairs(names) do
      group_add(name, 'weight', weight - share.weight)
    end
    share.weight = weight
  end
  keep_share(client, share)
  if not contains(names, need) then
    redis_call('ZADD', key('needs'), 0, client .. ' ' .. need)
    redis_call('ZADD', key('lines'), 0, need)
    forgive(need)
    redis_call('ZADD', key('clients', need), share.tag - lift_of(need), client)
    group_add(need, 'weight', weight)
  end
  group_add(need, 'waiting', waiting - before)
  if stamp then
    redis_call('HSET', key('waiting'), field, text(waiting) .. ' ' .. stamp)
  else
    add_row(replica, client, need, field, waiting)
    redis_call('ZADD', key('places'), 0, field)
  end
end

local function leave(client, need)
  local share = share_of(client)
  redis_call('ZREM', key('needs'), client .. ' ' .. need)
  redis_call('ZREM', key('clients', need), client)
  group_add(need, 'weight', -share.weight)
  if redis_call('EXISTS', key('clients', need)) == 0 then
    redis_call('ZREM', key('lines'), need)
    redis_call('HDEL', key('groups'), 'waiting ' .. need, 'weight ' .. need, 'lift ' .. need)
    line.lifts[need] = nil
  end
  if #beginning(key('needs'), client .. ' ', '!', 1) == 0 then
    redis_call('ZADD', key('idle'), share.tag, client)
  end
end

local function drop_place(replica, client, need)
  local field = place_field(replica, client, need)
  local waiting, stamp = waiting_of(field)
  group_add(need, 'waiting', -waiting)
  remove_row(replica, client, need, stamp)
  redis_call('HDEL', key('waiting'), field)
  redis_call('ZREM', key('places'), field)
  if #beginning(key('rows'), row_prefix(need, client), '!', 1) == 0 then
    leave(client, need)
  end
end

local function places_of(replica)
  local places = {}
  for index, field in ipairs(beginning(key('places'), replica .. ' ', '!')) do
    local client, need = string.match(field, '^[^ ]* ([^ ]*) ([^ ]*)$')
    places[index] = { client = client, need = need, field = field }
  end
  return places
end

local function load_shares(demands)
  for from = 1, #demands, 500 do
    local clients = {}
    for index = from, min(from + 499, #demands) do
      clients[#clients + 1] = demands[index][1]
    end
    for index, stored in ipairs(redis_call('HMGET', key('shares'), unpack(clients))) do
      if stored and not shares[clients[index]] then
        shares[clients[index]] = read_share(stored)
      end
    end
  end
end

-- How many of each demand are known to wait already.
local function load_waiting(replica, demands)
  local known = {}
  for from = 1, #demands, 500 do
    local fields = {}
    for index = from, min(from + 499, #demands) do
      fields[#fields + 1] = place_field(replica, demands[index][1], demands[index].need)
    end
    for _, stored in ipairs(redis_call('HMGET', key('waiting'), unpack(fields))) do
      known[#known + 1] = stored and tonumber(string.match(stored, '^%d+')) or 0
    end
  end
  return known
end

-- Demands are {client, weight, waiting, limits, pinned}; each gets its need's name.
local function remember(replica, demands, view)
  local wanted = {}
  for _, demand in ipairs(demands) do
    local limits = {}
    for index, limit in ipairs(demand[4]) do
      limits[index] = view.limits[limit + 1].id
    end
    demand.need = view.name .. '|' .. table.concat(limits, ',') .. '|' .. (demand[5] or '')
    if demand[3] > 0 then
      wanted[place_field(replica, demand[1], demand.need)] = true
    end
  end
  for _, place in ipairs(places_of(replica)) do
    if not wanted[place.field] then
      drop_place(replica, place.client, place.need)
    end
  end
  load_shares(demands)
  local known = load_waiting(replica, demands)
  for index, demand in ipairs(demands) do
    local share = share_of(demand[1])
    local same = known[index] == demand[3] and share and share.weight == demand[2]
    if demand[3] > 0 and not same then
      set_place(replica, demand[1], demand.need, demand[2], demand[3])
    end
  end
end

local function forget_replica(replica)
  remember(replica, {})
  redis_call('ZREM', key('expiry'), replica)
  redis_call('HDEL', key('due'), replica)
end

local function expect(replica, due, expires)
  redis_call('HSET', key('due'), replica, text(due))
  redis_call('ZADD', key('expiry'), expires, replica)
end

local function expire(now)
  for _, replica in ipairs(redis_call('ZRANGEBYSCORE', key('expiry'), '-inf', '(' .. text(now))) do
    forget_replica(replica)
  end
  local idle = redis_call('ZRANGEBYSCORE', key('idle'), '-inf', state.virtual)
  remove_all(key('idle'), idle)
  for _, client in ipairs(idle) do
    redis_call('HDEL', key('shares'), client)
    shares[client] = nil
  end
  if state.virtual > ROLLOVER and redis_call('EXISTS', key('lines')) == 0 then
    state.virtual, state.level = 0, 0
    redis_call('DEL', key('shares'), key('idle'))
    shares = {}
  end
end

-- Put a client that was served with a need behind, wherever it waits; a tag never goes back there.
local function move(client, served, share)
  local names = needs_of(client)
  for _, need in ipairs(names) do
    if need ~= served then
      forgive(need)
    end
    redis_call('ZADD', key('clients', need), max(tag_in(need, client), share.tag - lift_of(need)), client)
  end
  if #names == 0 then
    redis_call('ZADD', key('idle'), share.tag, client)
  end
end

local function serve(replica, client, need)
  local share, tag = share_of(client), tag_in(need, client)
  lift(need, tag, share)
  local start = tag + lift_of(need)
  state.virtual = max(state.virtual, start)
  share.tag = start + cost_of(share)
  local field = place_field(replica, client, need)
  local waiting, stamp = waiting_of(field)
  if waiting > 1 then
    remove_row(replica, client, need, stamp)
    add_row(replica, client, need, field, waiting - 1)
    group_add(need, 'waiting', -1)
  else
    drop_place(replica, client, need)
  end
  keep_share(client, share)
  move(client, need, share)
end

local function refund(client)
  local share = share_of(client)
  if not share then
    return
  end
  share.tag = share.tag - cost_of(share)
  keep_share(client, share)
  local names = needs_of(client)
  for _, need in ipairs(names) do
    redis_call('ZADD', key('clients', need), tag_in(need, client) - cost_of(share), client)
  end
  if #names == 0 then
    redis_call('ZADD', key('idle'), share.tag, client)
  end
end

-- Heaps ------------------------------------------------------------------------------------------------------------

local function push(heap, entry, before)
  local at = #heap + 1
  heap[at] = entry
  while at > 1 do
    local parent = floor(at / 2)
    if not before(heap[at], heap[parent]) then
      return
    end
    heap[at], heap[parent] = heap[parent], heap[at]
    at = parent
  end
end

local function pop(heap, before)
  local top, last = heap[1], #heap
  heap[1] = heap[last]
  heap[last] = nil
  local at = 1
  while true do
    local least, left = at, 2 * at
    for child = left, left + 1 do
      if child < last and before(heap[child], heap[least]) then
        least = child
      end
    end
    if least == at then
      return top
    end
    heap[at], heap[least] = heap[least], heap[at]
    at = least
  end
end

-- Rehearsal: the same queueing played forward without changing the line -----------------------------------------------

local rehearsal = { groups = {}, needs = {}, waiting = 0 }

local function rows_of(need, client)
  local prefix, rows = row_prefix(need, client), {}
  rows.first = 1
  for index, member in ipairs(beginning(key('rows'), prefix, '!', ROWS)) do
    local stamp, replica = string.sub(member, #prefix + 1, #prefix + 16), string.sub(member, #prefix + 18)
    rows[index] = { replica, (waiting_of(place_field(replica, client, need))), tonumber(stamp) }
  end
  rows.cut = #rows == ROWS
  return rows
end

-- The stamp of a client's row whose turn it is among those of a need; lower the longer ago it came or was served.
local function stamp_of(need, client)
  local played = rehearsal.groups[need]
  local rows = played.rows[client]
  if rows then
    return rows[rows.first][3]
  end
  if not played.stamps[client] then
    local prefix = row_prefix(need, client)
    local member = beginning(key('rows'), prefix, '!', 1)[1]
    played.stamps[client] = tonumber(string.sub(member, #prefix + 1, #prefix + 16))
  end
  return played.stamps[client]
end

-- Entries are {tag, client, need}; among those of one need without it.
local function earlier(one, other)
  if one[1] ~= other[1] then
    return one[1] < other[1]
  end
  if one[2] ~= other[2] then
    return one[2] < other[2]
  end
  return one[3] ~= other[3] and stamp_of(one[3], one[2]) < stamp_of(other[3], one[2])
end

local function still_waits(played, client)
  local rows = played.rows[client]
  return not rows or rows.first <= #rows
end

local function head(played)
  local client, tag = played.walk()
  played.head = client and { tag, client } or nil
end

local function played_of(need)
  local played = rehearsal.groups[need]
  if not played then
    played = { walk = walk(key('clients', need)), lift = lift_of(need), tags = {}, moved = {}, rows = {}, stamps = {} }
    head(played)
    rehearsal.groups[need] = played
  end
  return played
end

-- {tag, client} of whose turn it is, less the lift, or nil. Tags only grow, so what is outdated is found when it is up.
local function first_played(played)
  local tags, moved = played.tags, played.moved
  while played.head and tags[played.head[2]] do
    local client = played.head[2]
    if still_waits(played, client) then
      push(moved, { tags[client], client }, earlier)
    end
    head(played)
  end
  while moved[1] do
    local client = moved[1][2]
    if moved[1][1] == tags[client] and still_waits(played, client) then
      break
    end
    pop(moved, earlier)
    if still_waits(played, client) then
      push(moved, { tags[client], client }, earlier)
    end
  end
  if played.head and not (moved[1] and earlier(moved[1], played.head)) then
    return played.head
  end
  return moved[1]
end

-- {tag, client, need} of whose turn it is among those of a need, or nil.
local function first_in(need)
  local played = played_of(need)
  local first = first_played(played)
  return first and { first[1] + played.lift, first[2], need }
end

local function lift_played(played, tag, share)
  played.lift = max(played.lift, lag(share) - tag)
end

local function needs_in_play(client)
  local names = rehearsal.needs[client]
  if not names then
    names = needs_of(client)
    rehearsal.needs[client] = names
  end
  return names
end

-- Play one request of that client served; returns the replica whose it is.
local function rehearse(need, client)
  local share, played = share_of(client), played_of(need)
  local tag = played.tags[client] or tag_in(need, client)
  lift_played(played, tag, share)
  local start = tag + played.lift
  local rows = played.rows[client]
  if not rows then
    rows = rows_of(need, client)
    played.rows[client] = rows
  end
  local row = rows[rows.first]
  rows.first = rows.first + 1
  rehearsal.stamp = rehearsal.stamp + 1
  if row[2] > 1 then
    rows[#rows + 1] = { row[1], row[2] - 1, rehearsal.stamp }
  end
  for _, each in ipairs(needs_in_play(client)) do
    local other = played_of(each)
    local first = each ~= need and first_played(other)
    if first then
      lift_played(other, first[1], share_of(first[2]))
    end
    other.tags[client] = max(other.tags[client] or tag_in(each, client), start + cost_of(share) - other.lift)
  end
  rehearsal.waiting = rehearsal.waiting - 1
  return row[1]
end

-- Note the clients of which every request was played served.
function line.note_provided()
  local names, seen = {}, {}
  for _, played in pairs(rehearsal.groups) do
    for client in pairs(played.rows) do
      local waits = seen[client]
      if not seen[client] then
        seen[client] = true
        for _, need in ipairs(needs_in_play(client)) do
          local other = rehearsal.groups[need]
          waits = waits or not other or still_waits(other, client)
        end
        if not waits then
          names[#names + 1] = client
        end
      end
    end
  end
  state.provided = table.concat(names, ' ')
end

-- Forecast ---------------------------------------------------------------------------------------------------------

local forecast = { turns = {}, first = {}, dealt = 0, taken = {} }
local play = { taken = {}, opened = {}, sources = {}, dealt = {}, windows = {}, needs = {} }

local function taken_in_play(quota, limit)
  return play.taken[limit][quota] or bucket_of(limit, quota).taken
end

local function add_in_play(quota, limit, tokens)
  play.taken[limit][quota] = taken_in_play(quota, limit) + tokens
end

function forecast.take(need)
  for _, limit in ipairs(need.limits) do
    forecast.taken[limit] = (forecast.taken[limit] or 0) + 1
  end
end

-- Events are two entries in a queue, the instant and the quota; `first` is the index of the next one.
local function append(queue, instant, quota)
  queue[#queue + 1] = instant
  queue[#queue + 1] = quota
end

local function comes_back(instant, quota, need)
  local view = view_of(need.terms)
  for _, limit in ipairs(need.limits) do
    append(play.dealt[limit], instant + state.trip + view.by_id[limit].window, quota)
  end
end

local function expected(granted, now)
  if granted + state.trip > now then
    return granted + state.trip
  end
  return now + state.trip
end

-- When tokens of a limit are expected at hand again, soonest first.
local function returns_of(limit, now, window)
  local cooling, in_use = walk(key('cooling', limit)), nil
  return function()
    if not in_use then
      local member, instant = cooling()
      if member then
        return max(instant, now), quota_of(member)
      end
      in_use = walk(key('in_use', limit))
    end
    local member, granted = in_use()
    if member then
      return max(granted + state.trip, now) + window, quota_of(member)
    end
  end
end

local function openings_of(limit, now)
  local parked = walk(key('parked', limit))
  return function()
    while true do
      local quota, instant = parked()
      if not quota then
        return nil
      end
      if not bucket_of(limit, quota).probing then
        return max(instant, now), quota
      end
    end
  end
end

local function probed_of(limit, now)
  local probing = walk(key('probing', limit))
  return function()
    local quota, granted = probing()
    if quota then
      return max(min(expected(granted, now), granted + state.bound), bucket_of(limit, quota).parked or 0), quota
    end
  end
end

local function add_source(limit, opens, more)
  local queue = { first = 1 }
  if more then
    local instant, quota = more()
    if not instant then
      return
    end
    append(queue, instant, quota)
  else
    play.dealt[limit] = queue
  end
  table.insert(play.sources, { limit = limit, opens = opens, queue = queue, more = more })
end

local function read_calendars(now)
  local limits = {}
  for limit in pairs(play.windows) do
    limits[#limits + 1] = limit
  end
  table.sort(limits)
  for _, limit in ipairs(limits) do
    play.taken[limit] = {}
    play.opened[limit] = {}
    add_source(limit, false, returns_of(limit, now, play.windows[limit]))
    add_source(limit, true, openings_of(limit, now))
    add_source(limit, true, probed_of(limit, now))
    add_source(limit, false, nil)
  end
end

-- Where the next event is; among equals, the first in the order of limits.
local function soonest()
  local found, least
  for _, source in ipairs(play.sources) do
    local queue = source.queue
    local instant = queue[queue.first]
    if instant and (not least or instant < least) then
      found, least = source, instant
    end
  end
  return found
end

local function pop_event(source)
  local queue = source.queue
  local instant, quota = queue[queue.first], queue[queue.first + 1]
  queue.first = queue.first + 2
  if source.more then
    local following, of = source.more()
    if following then
      append(queue, following, of)
    end
  end
  return instant, quota
end

local function could_serve(quota, need)
  local view = view_of(need.terms)
  if quota ~= need.pinned and not serves(view, quota) then
    return false
  end
  for _, limit in ipairs(need.limits) do
    if taken_in_play(quota, limit) >= view.by_id[limit].requests then
      return false
    end
    if not play.opened[limit][quota] and closed(limit, quota) then
      return false
    end
  end
  return true
end

-- Needs that may be served when a bucket changes: those that insist on no quota, then those that insist on this one.
local function choose_in_play(quota, limit)
  local chosen, first
  local function consider(among)
    for _, need in ipairs(among or {}) do
      if could_serve(quota, need) then
        local candidate = first_in(need.name)
        if candidate and (not first or earlier(candidate, first)) then
          chosen, first = need, candidate
        end
      end
    end
  end
  consider(play.needs[limit .. '@'])
  consider(play.needs[limit .. '@' .. quota])
  if chosen then
    return chosen, first[2]
  end
end

local function deal_in_play(instant, quota, need, client)
  local replica = rehearse(need.name, client)
  for _, limit in ipairs(need.limits) do
    add_in_play(quota, limit, 1)
  end
  comes_back(instant, quota, need)
  local field = place_field(replica, client, need.name)
  local turns = forecast.turns[field]
  if not turns then
    turns = {}
    forecast.turns[field] = turns
  end
  turns[#turns + 1] = instant
  forecast.first[replica] = forecast.first[replica] or instant
  forecast.dealt = forecast.dealt + 1
  forecast.take(need)
end

local function apply(instant, quota, limit, opens)
  if opens then
    play.opened[limit][quota] = true
  else
    add_in_play(quota, limit, -1)
  end
  while forecast.dealt < HORIZON do
    local need, client = choose_in_play(quota, limit)
    if not need then
      return
    end
    deal_in_play(instant, quota, need, client)
  end
end

local function foretell(now, names, lent)
  for _, name in ipairs(names) do
    local need = need_of(name)
    for _, limit in ipairs(need.limits) do
      play.windows[limit] = play.windows[limit] or view_of(need.terms).by_id[limit].window
      local insists = limit .. '@' .. (need.pinned or '')
      play.needs[insists] = play.needs[insists] or {}
      table.insert(play.needs[insists], need)
    end
  end
  read_calendars(now)
  for _, loan in ipairs(lent) do
    forecast.take(loan[2])
    comes_back(now, loan[1], loan[2])
  end
  for _ = 1, EVENTS do
    local source = soonest()
    if not source or forecast.dealt >= HORIZON or rehearsal.waiting == 0 then
      return
    end
    local instant, quota = pop_event(source)
    apply(instant, quota, source.limit, source.opens)
  end
end

-- Outlook ----------------------------------------------------------------------------------------------------------

local outlook = { rows = {}, crowds = {} }

-- Positions and their turns: both ends, and again and again the middle of what lies furthest apart.
function outlook.samples(turn, first, last, most)
  local found = { { first, turn(first) } }
  if last > first then
    found[2] = { last, turn(last) }
  end
  while #found < most do
    local furthest, after = CLOSE, nil
    for index = 1, #found - 1 do
      local low, high = found[index], found[index + 1]
      if high[2] - low[2] > furthest and high[1] - low[1] > 1 then
        furthest, after = high[2] - low[2], index
      end
    end
    if not after then
      break
    end
    local middle = floor((found[after][1] + found[after + 1][1]) / 2)
    table.insert(found, after + 1, { middle, turn(middle) })
  end
  return found
end

-- Keep these members of `rows` of a need, but for clients that were played.
function outlook.load(need, members)
  local known, played, fields, found = outlook.rows[need] or {}, rehearsal.groups[need], {}, {}
  outlook.rows[need] = known
  for _, member in ipairs(members) do
    local client, stamp, of = string.match(member, '^[^ ]* ([^ ]*) (%d+) (.*)$')
    if not (played and played.rows[client]) then
      local rows = known[client]
      if not rows then
        rows = { first = 1 }
        known[client] = rows
      end
      local row = { of, 0, tonumber(stamp) }
      rows[#rows + 1] = row
      found[#found + 1] = row
      fields[#fields + 1] = place_field(of, client, need)
    end
  end
  for index, stored in ipairs(#fields > 0 and redis_call('HMGET', key('waiting'), unpack(fields)) or {}) do
    found[index][2] = stored and tonumber(string.match(stored, '^%d+')) or 0
  end
end

-- What a client has left, {replica, left, stamp} from `first` on in the order of turns; nil if that is more than `most`.
function outlook.rows_of(need, client, most)
  local played, known = rehearsal.groups[need], outlook.rows[need]
  local rows = played and played.rows[client] or known and known[client]
  if not rows then
    local members = beginning(key('rows'), row_prefix(need, client), '!', most + 1)
    if #members > most then
      return nil
    end
    outlook.load(need, members)
    rows = outlook.rows[need][client]
  end
  if rows.cut or #rows - rows.first + 1 > most then
    return nil
  end
  return rows
end

-- Read the shares of these clients of a need, and where its rows are few, also what all have left, at once.
function outlook.load_few(need, entries)
  local played, known, new, unread = rehearsal.groups[need], outlook.rows[need] or {}, 0, {}
  for index = 1, #entries, 2 do
    local client = entries[index]
    if not known[client] and not (played and played.rows[client]) then
      new = new + 1
    end
    if not shares[client] then
      unread[#unread + 1] = { client }
    end
  end
  load_shares(unread)
  if new > 1 then
    local all = redis_call('ZLEXCOUNT', key('rows'), '[' .. need .. ' ', '(' .. need .. '!')
    if all <= CROWDED then
      outlook.rows[need] = nil
      outlook.load(need, beginning(key('rows'), need .. ' ', '!'))
    end
  end
end

-- Count what a client has left with one need; with several it starts where the first does.
function outlook.add_rival(rivals, need, client, score, rows)
  local rival = rivals[client]
  local played = rehearsal.groups[need]
  local tag = (played and played.tags[client] or score) + (played and played.lift or lift_of(need))
  if not rival then
    rival = { client = client, tag = tag, cost = cost_of(share_of(client)), left = 0 }
    rivals[client] = rival
    rivals[#rivals + 1] = rival
  end
  rival.tag = min(rival.tag, tag)
  for index = rows.first, #rows do
    rival.left = rival.left + rows[index][2]
  end
end

-- A start of a client's, in parts of virtual time that tell it from those of others: of equal ones the lower name is first.
function outlook.moment(crowd, start, client)
  local place = crowd.places[client]
  if not place then
    place = 0
    for _, name in ipairs(crowd.names) do
      place = place + (name < client and 2 or 0)
    end
    crowd.places[client] = place
  end
  return (start - crowd.base) * NAMES + place
end

-- The first to end first; `gone[index]` is what so many of them have left together. `order`: by cost, then by start.
function outlook.order(rivals, mass)
  local crowd = { mass = mass, ends = {}, gone = { [0] = 0 }, order = {}, windows = {}, names = {}, places = {} }
  local order = crowd.order
  for _, rival in ipairs(rivals) do
    if rival.left > 0 then
      rival.ends = rival.tag + (rival.left - 1) * rival.cost
      order[#order + 1] = rival
      crowd.names[#order] = rival.client
      crowd.base = min(crowd.base or rival.tag, rival.tag)
    end
  end
  crowd.base = crowd.base or 0
  table.sort(crowd.names)
  for index, name in ipairs(crowd.names) do
    crowd.places[name] = 2 * index - 1
  end
  table.sort(order, function(one, other) return one.ends < other.ends end)
  for index, rival in ipairs(order) do
    rival.index, rival.cost = index, rival.cost * NAMES
    rival.moment = outlook.moment(crowd, rival.tag, rival.client)
    crowd.ends[index] = rival.ends
    crowd.gone[index] = crowd.gone[index - 1] + rival.left
  end
  table.sort(order, function(one, other)
    return one.cost < other.cost or one.cost == other.cost and one.moment < other.moment
  end)
  return crowd
end

-- Windows of those who have not ended: clients of one cost that first start within one cost of each other. Where each
-- begins, its cost, the index of its first client in `ways`, and of each client, how far behind the origin it starts.
function outlook.gather(crowd, ended)
  local origins, costs, firsts, ways, last = {}, {}, {}, {}, 0
  for _, rival in ipairs(crowd.order) do
    if rival.index > ended then
      if costs[last] ~= rival.cost or rival.moment >= origins[last] + rival.cost then
        last = last + 1
        origins[last], costs[last], firsts[last] = rival.moment, rival.cost, #ways + 1
      end
      ways[#ways + 1] = rival.moment - origins[last]
    end
  end
  firsts[last + 1] = #ways + 1
  crowd.windows[ended] = { origins, costs, firsts, ways, last }
  return crowd.windows[ended]
end

-- Who waits under a limit, beyond what was dealt: the first clients of each need one by one, and the others together.
function outlook.look(limit, names)
  local rows_left, clients_left, rivals = CROWDED, RIVALS, {}
  local mass = { clients = 0, weight = 0, left = 0 }
  for _, name in ipairs(names) do
    if contains(need_of(name).limits, limit) then
      local waiting, weight = group_of(name)
      local clients, least = redis_call('ZCARD', key('clients', name)), 0
      local entries = redis_call('ZRANGE', key('clients', name), 0, max(1, clients_left) - 1, 'WITHSCORES')
      outlook.load_few(name, entries)
      for index = 1, #entries, 2 do
        local client, score = entries[index], tonumber(entries[index + 1])
        least = score + lift_of(name)
        local rows = clients_left > 0 and outlook.rows_of(name, client, rows_left)
        if not rows then
          break
        end
        rows_left = rows_left - (#rows - rows.first + 1)
        clients_left, clients = clients_left - 1, clients - 1
        weight = weight - share_of(client).weight
        outlook.add_rival(rivals, name, client, score, rows)
      end
      mass.left = mass.left + waiting
      if clients > 0 then
        mass.clients, mass.weight = mass.clients + clients, mass.weight + weight
        mass.least = min(mass.least or least, least)
      end
    end
  end
  mass.left = mass.left - (forecast.taken[limit] or 0)
  for _, rival in ipairs(rivals) do
    mass.left = mass.left - rival.left
  end
  return outlook.order(rivals, mass)
end

function outlook.crowd_of(limit, names)
  if not outlook.crowds[limit] then
    outlook.crowds[limit] = outlook.look(limit, names)
  end
  return outlook.crowds[limit]
end

-- Requests of all who wait under a limit that are served before that start of a client's.
function outlook.before(crowd, start, client)
  local ends, ended, high = crowd.ends, 0, #crowd.ends
  while ended < high do
    local middle = high - floor((high - ended) / 2)
    if ends[middle] < start then
      ended = middle
    else
      high = middle - 1
    end
  end
  local total, moment = crowd.gone[ended], outlook.moment(crowd, start, client)
  local origins, costs, firsts, ways, last = unpack(crowd.windows[ended] or outlook.gather(crowd, ended))
  for index = 1, last do
    local way = moment - origins[index]
    if way > 0 then
      local cost, first, after = costs[index], firsts[index], firsts[index + 1]
      local rest = way % cost
      total = total + (way - rest) / cost * (after - first)
      local low = first
      if after == first + 1 then -- most often, where weights differ
        low, after = rest > 0 and after or first, first
      end
      while low < after do
        local middle = floor((low + after) / 2)
        if ways[middle] < rest then
          low = middle + 1
        else
          after = middle
        end
      end
      total = total + low - first
    end
  end
  local mass = crowd.mass
  if not mass.least or start < mass.least then
    return total
  end
  local steps = floor((start - mass.least) / STEP) + 1
  return total + min(mass.left, mass.clients + floor(mass.weight * steps / (UNIT / STEP - 1)))
end

-- How many requests of its client are served before those of a lane, as a function of how many of its own precede one:
-- the lanes of one client take turns.
function outlook.lead(place)
  local others, unknown, own = {}, 0, nil
  for _, name in ipairs(needs_in_play(place.client)) do
    local rows = outlook.rows_of(name, place.client, ALIKE)
    if not rows then
      local prefix = row_prefix(name, place.client)
      unknown = unknown + redis_call('ZLEXCOUNT', key('rows'), '[' .. prefix, '(' .. string.sub(prefix, 1, -2) .. '!')
    else
      for index = rows.first, #rows do
        if rows[index][1] == call.replica and name == place.need then
          own = rows[index][3]
        else
          others[#others + 1] = { rows[index][2], rows[index][3] } -- what is left, and its stamp
        end
      end
    end
  end
  if not own then
    unknown = unknown - 1
  end
  for _, other in ipairs(others) do
    other[2] = (not own or other[2] < own) and 1 or 0 -- whether its turn is first
  end
  table.sort(others, function(one, other) return one[1] > other[1] end)
  local gone, left = {}, 0
  for index = #others, 1, -1 do
    left = left + others[index][1]
    gone[index] = left
  end
  return function(beyond)
    local count = beyond + (beyond + 1) * unknown
    for index = 1, #others do
      local other = others[index]
      if other[1] <= beyond then
        return count + gone[index]
      end
      count = count + beyond + other[2]
    end
    return count
  end
end

-- The turns of one place as delays: the first ones, and {position, delay} of some beyond, flat.
function outlook.turns_of(place, now, names, most)
  local need, soon, later = need_of(place.need), {}, {}
  for index, instant in ipairs(forecast.turns[place.field] or {}) do
    soon[index] = instant - now
  end
  local waiting = waiting_of(place.field)
  if forecast.dealt == 0 or waiting <= #soon or #need.limits == 0 then
    return soon, later
  end
  local view, played, client = view_of(need.terms), rehearsal.groups[place.need], place.client
  local tag = (played and played.tags[client] or tag_in(place.need, client)) + (played and played.lift or lift_of(place.need))
  local cost, lead, crowds = cost_of(share_of(client)), outlook.lead(place), {}
  for index, limit in ipairs(need.limits) do
    crowds[index] = outlook.crowd_of(limit, names)
  end
  local function turn(position)
    local start, latest = tag + lead(position - #soon) * cost, 0
    for index, limit in ipairs(need.limits) do
      local rank_ = (forecast.taken[limit] or 0) + outlook.before(crowds[index], start, client)
      latest = max(latest, calendar.nth_return(view, limit, rank_, now) - now)
    end
    return latest
  end
  local latest = soon[#soon] or 0
  for _, sample in ipairs(outlook.samples(turn, #soon, waiting - 1, most)) do
    latest = max(latest, sample[2])
    later[#later + 1] = sample[1]
    later[#later + 1] = latest
  end
  return soon, later
end

-- Ledger -----------------------------------------------------------------------------------------------------------

local replica = call.replica

-- Try everything that is done below on a key that is gone afterwards: a script that is refused a command midway leaves
-- half an exchange behind, and a lease that it dealt would be dealt once more.
local function may_do_all()
  local none = KEYS[2]
  for _, command in ipairs({
    { 'TIME' }, { 'EXISTS', none }, { 'DEL', none }, { 'EXPIRE', none, 1 },
    { 'HGET', none, 'f' }, { 'HMGET', none, 'f' }, { 'HGETALL', none }, { 'HKEYS', none },
    { 'HDEL', none, 'f' }, { 'SISMEMBER', none, 'm' }, { 'SMEMBERS', none }, { 'SDIFF', none }, { 'SREM', none, 'm' },
    { 'ZCARD', none }, { 'ZSCORE', none, 'm' }, { 'ZRANGE', none, 0, 0 }, { 'ZRANGEBYSCORE', none, 0, 0 },
    { 'ZRANGEBYLEX', none, '-', '+' }, { 'ZLEXCOUNT', none, '-', '+' }, { 'ZREM', none, 'm' },
  }) do
    redis.call(unpack(command))
  end
  for _, command in ipairs({
    { 'HSET', none, 'f', 1 }, { 'HINCRBY', none, 'f', 1 }, { 'SADD', none, 'm' }, { 'ZADD', none, 0, 'm' },
  }) do
    redis.call(unpack(command))
    redis.call('DEL', none)
  end
end

local function clock()
  local time
  if call.now then
    time = call.now
  else
    local told = redis.call('TIME')
    time = told[1] * SECOND + told[2]
  end
  if call.jumped > 0 and call.era == state.era then
    state.shift = state.shift - call.jumped
    state.now = state.now - call.jumped
  end
  local now = time + state.shift
  if now < state.now then
    state.shift = state.shift + state.now - now
    now = state.now
  end
  state.now = now
  return now
end

-- The life of this server process; a server that does not tell has one for ever.
local function run_id()
  if call.run then
    return call.run
  end
  local info = redis_call('INFO', 'server')
  return string.match(info, 'run_id:(%w+)') or ''
end

local function begin(now, run)
  state.lost, state.hold = state.era ~= '' and 1 or 0, now + HOLD
  state.run = run
  state.tick = max(state.tick, now)
  state.leases = max(state.leases, now)
  state.era = text(now) .. '-' .. string.sub(run, 1, 8)
  state.shared = redis_call('ZCARD', key('words'))
  chill()
end

local function suspect(now, run)
  local suspicious = call.era == state.era and (call.tick > state.tick or call.jumped > 0)
  if state.era == '' or run ~= state.run or suspicious then
    begin(now, run)
  end
  if call.era ~= '' and call.era ~= state.era then
    state.shared = max(state.shared, call.replicas)
    if state.lost == 0 then
      state.lost, state.hold = 1, now + HOLD
    end
  end
end

-- Whether others may yet have to tell what they hold; what is at hand is not known before.
local function waits_for_words(now)
  return state.lost == 1 and now < state.hold
end

-- Members are `serial|lease,…`.
local function member_of(name)
  local stored = redis_call('HGET', key('members'), name)
  if stored then
    local serial, granted = string.match(stored, '^(%d+)|(.*)$')
    return { serial = tonumber(serial), granted = split(granted, ',') }
  end
end

local function keep_member(granted)
  redis_call('HSET', key('members'), replica, text(call.serial) .. '|' .. table.concat(granted, ','))
end

local function asks_of(member)
  local asks = {}
  if member and call.serial <= member.serial then
    return { 'nothing' }
  end
  if not call.spelled and not view_of(call.terms) then
    asks[1] = 'terms'
  end
  if call.era ~= '' and call.era ~= state.era and not call.held then
    asks[#asks + 1] = 'held'
  end
  return asks
end

local function use_terms(now)
  if call.spelled and not view_of(call.terms) then
    learn(call.spelled)
  end
  redis_call('ZADD', key('terms_used'), now, call.terms)
  for _, name in ipairs(redis_call('ZRANGEBYSCORE', key('terms_used'), '-inf', '(' .. text(now - KEEP))) do
    redis_call('ZREM', key('terms_used'), name)
    unlearn(name)
  end
end

local function give_back(now, lease)
  local out = settle(now, { 'u', lease })
  if out then
    refund(out.client)
  end
end

local function hear(now, member)
  if member and call.heard ~= member.serial then
    for _, lease in ipairs(member.granted) do
      give_back(now, lease)
    end
  end
  redis_call('ZADD', key('words'), now, replica)
  redis_call('ZADD', key('names'), 0, replica)
  if call.held then
    restore(now, replica, call.held, view_of(call.terms))
  end
  while true do
    local gone, word = first_of(key('words'))
    if word + state.bound > now then
      return
    end
    redis_call('ZREM', key('words'), gone)
    lapse(gone, word)
    forget_replica(gone)
    redis_call('ZREM', key('names'), gone)
    redis_call('HDEL', key('members'), gone)
  end
end

-- Candidates are {tag, client, name of the need}: of each need the client whose turn it is, the first of all on top. Tags
-- only grow and tokens only get fewer, so one that is out of date is found when it comes up, and one that nothing can
-- serve is dropped for good. Until then it has changed nothing of the order: whose stamp is another has another tag, too.
local function candidates(names)
  local heap = {}
  for _, name in ipairs(names) do
    local first = best(need_of(name)) and first_in(name)
    if first then
      push(heap, first, earlier)
    end
  end
  return heap
end

local function choose(heap)
  while heap[1] do
    local tag, client, name = unpack(heap[1])
    local need = need_of(name)
    local quota = best(need)
    local first = quota and first_in(name)
    if first and first[1] == tag and first[2] == client then
      return need, client, quota
    end
    pop(heap, earlier)
    if first then
      push(heap, first, earlier)
      if heap[1][3] == name then
        return need, first[2], quota
      end
    end
  end
end

-- Returns grants {lease, client, need, quota, probe}, loans {quota, need, replica}, and until when it was broken off.
local function deal(now, names)
  local grants, lent = {}, {}
  if waits_for_words(now) then
    return grants, lent, state.hold
  end
  local heap = candidates(names)
  while true do
    local need, client, quota = choose(heap)
    if not need then
      return grants, lent, nil
    end
    if #grants + #lent == DEAL then
      return grants, lent, now
    end
    local owner = rehearse(need.name, client)
    if owner == replica then
      state.leases = state.leases + 1
      local lease = text(state.leases)
      local probe = take(lease, need, quota, now, replica, client)
      grants[#grants + 1] = { lease, client, need.name, quota, probe }
    else
      lend(quota, need.limits, now)
      lent[#lent + 1] = { quota, need, owner }
    end
  end
end

local function again_of(now, waits, stopped, left)
  local longest = min(PULSE, floor(state.bound / 2))
  if not waits then
    if #beginning(key('held'), replica .. ' ', '!', 1) > 0 then
      return longest
    end
    return nil
  end
  local first = stopped or forecast.first[replica] or now + longest
  local again = left and MILLISECOND or max(MILLISECOND, min(first - now, longest))
  expect(replica, now + again, now + again + GRACE)
  return again
end

local function wake_early()
  local names = {}
  for name in pairs(forecast.first) do
    names[#names + 1] = name
  end
  table.sort(names)
  local woken = {}
  for _, name in ipairs(names) do
    local first = forecast.first[name]
    local due = tonumber(redis_call('HGET', key('due'), name) or nil)
    if name ~= replica and due and first + WAKE_MARGIN < due then
      woken[#woken + 1] = name
      expect(name, first, first + GRACE)
      redis.pcall('PUBLISH', base .. ':wake:' .. name, '') -- who may not, calls late; see stores/links.py
    end
  end
  return woken
end

-- What all have to be told, as one text that is published, too (core/parts.py); '' when that is nothing.
-- `believed` is `limit=hand,…`.
function line.news(replicas, view, budgets)
  local grown = replicas > state.sharing
  state.sharing = replicas
  if replicas == 1 then
    state.believed = ''
    return ''
  end
  local shares, hands, believed, stale = replicas * max(1, view.quotas), {}, {}, grown
  for _, entry in ipairs(split(state.believed, ',')) do
    local limit, hand = string.match(entry, '^(.*)=(%d+)$')
    hands[limit] = tonumber(hand)
    believed[#believed + 1] = limit
  end
  for index, limit in ipairs(view.limits) do
    local part = floor((hands[limit.id] or 0) * (RESERVE - 1) / (RESERVE * shares))
    stale = stale or part * shares > budgets[index][2]
  end
  if stale then
    hands, believed = {}, {}
  end
  local told = { text(state.tick), text(replicas) }
  for index, limit in ipairs(view.limits) do
    local hand = budgets[index][2]
    told[#told + 1], told[#told + 2] = limit.id, text(hand)
    if not hands[limit.id] then
      believed[#believed + 1] = limit.id
    end
    hands[limit.id] = max(hand, hands[limit.id] or 0)
  end
  for index, limit in ipairs(believed) do
    believed[index] = limit .. '=' .. text(hands[limit])
  end
  state.believed = table.concat(believed, ',')
  if not stale then
    return ''
  end
  told = table.concat(told, ' ')
  redis.pcall('PUBLISH', base .. ':news', told)
  return told
end

-- Put off the day on which what nobody asks about any more is gone. What is written is put off by each call, the rest
-- every now and then; `life` is longer than any window.
local function renew(now)
  if now < state.kept + RENEW and now >= state.kept then
    return
  end
  state.kept = now
  local names = {
    'terms', 'terms_used', 'limits', 'rankings', 'used', 'leases', 'held', 'words', 'members', 'names', 'shares', 'needs', 'lines',
    'groups', 'rows', 'waiting', 'places', 'idle', 'expiry', 'due',
  }
  local longest = 0
  for _, name in ipairs(redis_call('HKEYS', key('terms'))) do
    names[#names + 1] = 'quotas:' .. name
    for _, limit in ipairs(view_of(name).limits) do
      longest = max(longest, limit.window)
    end
  end
  for _, ranking in ipairs(all_rankings()) do
    names[#names + 1] = 'ranking:' .. ranking.name
  end
  for _, need in ipairs(redis_call('ZRANGE', key('lines'), 0, -1)) do
    names[#names + 1] = 'clients:' .. need
  end
  for _, limit in ipairs(all_limits()) do
    for _, part in ipairs({ 'taken', 'cooling', 'in_use', 'parked', 'probing', 'warm' }) do
      names[#names + 1] = part .. ':' .. limit
    end
  end
  state.life = EXPIRE + 2 * floor(longest / SECOND)
  for _, name in ipairs(names) do
    written[key(name)] = true
  end
end

local function exchange()
  if call.heard == 0 or call.held then
    may_do_all()
  end
  local now = clock()
  suspect(now, run_id())
  local member = member_of(replica)
  local asks = asks_of(member)
  if #asks > 0 then
    save()
    return { state.era, state.tick, now, asks }
  end
  state.tick = state.tick + 1
  expire(now)
  use_terms(now)
  hear(now, member)
  local view = view_of(call.terms)
  for _, settlement in ipairs(call.settlements) do
    if settlement[1] == 'u' then
      give_back(now, settlement[2])
    else
      settle(now, settlement, view)
    end
  end
  local left = mature(now)
  tidy(view)
  remember(replica, call.demands, view)

  rehearsal.stamp = state.stamp
  local names = redis_call('ZRANGE', key('lines'), 0, -1)
  for _, name in ipairs(names) do
    rehearsal.waiting = rehearsal.waiting + (group_of(name))
  end
  local grants, lent, stopped = deal(now, names)
  line.note_provided()
  if not stopped and rehearsal.waiting > 0 then
    foretell(now, names, lent)
  end
  for _, loan in ipairs(lent) do
    lend(loan[1], loan[2].limits, nil)
    forecast.first[loan[3]] = now
  end
  local numbers = {}
  for index, demand in ipairs(call.demands) do
    numbers[place_field(replica, demand[1], demand.need)] = index - 1
  end
  local granted, leases = {}, {}
  for index, grant in ipairs(grants) do
    local lease, client, need = grant[1], grant[2], grant[3]
    serve(replica, client, need)
    leases[index] = lease
    granted[index] = { lease, numbers[place_field(replica, client, need)], grant[4], grant[5] and 1 or 0 }
  end
  keep_member(leases)
  if #lent == 0 then
    state.level = state.virtual
  end

  local told = {}
  local still = redis_call('ZRANGE', key('lines'), 0, -1)
  local places = places_of(replica)
  local most = max(FEWEST, min(FINEST, floor(SAMPLES / max(1, #places))))
  if most * #places > rehearsal.waiting / 2 then -- many of them are read
    calendar.width = 8
  end
  for index, place in ipairs(places) do
    local soon, later
    if stopped then
      soon, later = {}, { (waiting_of(place.field)) - 1, stopped - now }
    else
      soon, later = outlook.turns_of(place, now, still, most)
    end
    told[index] = { numbers[place.field], soon, later }
  end
  local budgets = {}
  for index, limit in ipairs(view.limits) do
    local hand = waits_for_words(now) and 0 or calendar.at_hand(view, limit.id)
    local returns = calendar.nth_return(view, limit.id, hand, now) - now
    hand, returns = open_ones(view, limit, now, hand, returns)
    budgets[index] = { size_of(view, limit.id), hand, returns }
  end
  local again = again_of(now, #told > 0, stopped, left)
  local woken = wake_early()
  local others = {}
  table.sort(foreign_order)
  for index, quota in ipairs(foreign_order) do
    others[index] = { quota, foreign[quota] }
  end
  local replicas = max(redis_call('ZCARD', key('words')), waits_for_words(now) and state.shared or 0)
  local rank = redis_call('ZLEXCOUNT', key('names'), '-', '(' .. replica)
  local heard = line.news(replicas, view, budgets)
  renew(now)
  save()
  return { state.era, state.tick, now, asks, granted, told, budgets, again or -1, woken, replicas, others, rank, heard }
end

return exchange()
