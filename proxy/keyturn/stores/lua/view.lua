-- The snapshot alone, by which nothing is changed.
--
-- ARGV[1]  {revision, pins: {{limit, quota}, ...}}; only tests give it a `now`
-- Returns  a Snapshot (core/messages.py) as nested arrays; nothing if the revision is not known

load_state({ 'revision ' .. request.revision })
local view = revisions.view(request.revision)
if not view then
  return {}
end
local told = request.now and { 0, request.now } or call('TIME')
return snapshot()(view, max(state.now, told[1] * SECOND + told[2] + state.shift), request.pins)
