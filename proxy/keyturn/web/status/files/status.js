// Draws status.json once a second. Elements are kept and changed, never made anew without need, so that focus, selection
// and a screen reader's place stay where they are.
import { $, list, make, mark, set } from "./elements.js";
import { NEXT, TONES, again, clock, number, percent, plural, since, soon, span, usable, usedUp } from "./words.js";

const VERSION = 2;
const REFRESH = 1000; // ms between a response and the next request
const TIMEOUT = 5000; // ms for one response
const STALE = 5000; // ms after which the page is marked as out of date
const MAX_DOTS = 120; // the largest limit that is drawn token by token
const MAX_DOTS_OF_PAGE = 4000; // beyond it, bars
const MANY_QUOTAS = 12; // of a pool; beyond it, each is drawn small
const MANY_ROWS = 24; // of a table; beyond it, the most important ones and a button for the rest

const state = { paused: false, timer: 0, asking: null, shown: null, last: 0, trouble: "", before: null, toldStale: false };

// ---- the head and the overview --------------------------------------------------------------------------------

const verdict = (data) => {
  if (data.process.draining) return ["Draining", "warn"];
  if (data.process.unready.length) return [`Not ready: ${data.process.unready.join("; ")}`, "bad"];
  if (data.pools.some((pool) => pool.outage)) return ["Ready, upstream failing", "bad"];
  if (data.pools.some((pool) => pool.failed.minute)) return ["Ready, some requests fail", "warn"];
  if (!data.store.up) return ["Ready, store lost", "warn"];
  return ["Ready", "good"];
};
const sum = (data, value) => data.pools.reduce((total, pool) => total + value(pool), 0);

const keyTile = (keys) => {
  const good = keys.filter(usable).length;
  const spent = keys.filter(usedUp).length;
  const note = !keys.length ? "no pool has a key" : [good < keys.length ? "see the keys below" : "", spent ? `month used up: ${number(spent)}` : ""].filter(Boolean).join("; ");
  return ["Usable keys", keys.length ? `${number(good)} of ${number(keys.length)}` : "none", note || "all of them", good ? (note ? "warn" : "") : "bad"];
};
const tiles = (data) => {
  const throttled = { total: sum(data, (p) => p.throttled.total), minute: sum(data, (p) => p.throttled.minute) };
  const refusals = Object.values(data.refused);
  const refused = refusals.reduce((total, count) => total + count.minute, 0);
  const ever = refusals.reduce((total, count) => total + count.total, 0);
  const failed = { total: sum(data, (p) => p.failed.total), minute: sum(data, (p) => p.failed.minute) };
  const clients = data.pools.flatMap((pool) => pool.clients);
  const waiting = clients.reduce((total, client) => total + client.waiting, 0);
  const longest = Math.max(0, ...clients.map((client) => client.longest_wait));
  const store = data.store;
  const reload = data.reload;
  return [
    ["Upstream 429s", number(throttled.minute), `last minute; ${number(throttled.total)} since start`, throttled.minute ? "bad" : ""],
    ["Waiting", number(waiting), waiting ? `longest ${span(longest)}` : "no request waits", ""],
    ["In flight", number(sum(data, (pool) => pool.in_flight)), "until the response is complete", ""],
    ["Failed", number(failed.minute), `last minute; ${number(failed.total)} since start`, failed.minute ? "bad" : ""],
    ["Refused", number(refused), `last minute; ${number(ever)} since start`, refused ? "warn" : ""],
    keyTile(data.pools.flatMap((pool) => pool.keys)),
    ["Store", store.up ? "up" : "lost", `${store.kind}, for ${since(store.since, data.at)}${store.kind === "memory" ? "" : `; ${plural(store.replicas, "replica")} seen`}`, store.up ? "" : "bad"],
    ["Last reload", reload ? (reload.ok ? "applied" : "rejected") : "none", reload ? `${since(reload.at, data.at)} ago` : "unchanged since start", reload && !reload.ok ? "bad" : ""],
  ];
};

const MEANWHILE = { share: "each replica uses its share of the limits", wait: "requests wait for it", refuse: "requests are refused" };
// Conditions that need attention, in sentences.
const notices = (data) => {
  const { store, reload } = data;
  return [
    store.up ? "" : `The store does not respond: ${store.cause || "cause unknown"}.${MEANWHILE[store.on_loss] ? ` Until it does, ${MEANWHILE[store.on_loss]}.` : ""}`,
    reload && !reload.ok ? `The new configuration was rejected; the previous one stays in effect: ${reload.reason}` : "",
  ].filter(Boolean);
};

const drawHead = (data) => {
  const [word, tone] = verdict(data);
  mark(set($("verdict"), word), "data-tone", tone);
  const process = data.process;
  set($("identity"), `${process.replica}, version ${process.version}, Python ${process.python}, up ${since(process.started, data.at)}`);
  document.title = word === "Ready" ? "Keyturn status" : `${word} – Keyturn status`;
  list($("overview"), tiles(data), (tile) => tile[0],
    () => make("div", "", make("dt"), make("dd"), make("dd")),
    (element, [name, value, note, toneOf]) => {
      const [dt, dd, small] = element.children;
      set(dt, name); set(dd, value); set(small, note); mark(element, "data-tone", toneOf);
    });
  list($("notices"), notices(data), (_, index) => index, () => make("li", "problem"), set);
};

// ---- tokens ---------------------------------------------------------------------------------------------------

// The part of a limit that is not used while the store is lost.
const heldBack = (limit) => Math.max(0, limit.size - limit.available - limit.in_use - limit.cooling_down);

const description = (limit) => {
  const parts = [`${limit.available} available`, `${limit.in_use} in use`, `${limit.cooling_down} cooling down`];
  if (heldBack(limit)) parts.push(`${heldBack(limit)} held back`);
  const next = limit.returns[0];
  const last = limit.returns[limit.returns.length - 1];
  if (next) parts.push(`${plural(next.tokens, "token")} back within ${soon(next.within)}${last !== next ? `, the last within ${soon(last.within)}` : ""}`);
  return parts.join(", ");
};

// The tokens of a limit in the order in which they become available: [state, how near its return is].
const cells = (limit) => {
  const result = [];
  const add = (count, name, near) => { for (let i = 0; i < count; i += 1) result.push([name, near]); };
  add(limit.available, "available", "");
  for (const entry of limit.returns) add(entry.tokens, "cool", Math.max(0, 3 - Math.floor((4 * entry.within) / (limit.window || 1))));
  add(limit.in_use, "use", "");
  add(limit.size - result.length, "held", "");
  return result.slice(0, Math.max(limit.size, 1));
};

const drawDots = (row, limit) => list(row, cells(limit), (_, index) => index,
  () => make("span", "token"),
  (dot, [name, near]) => { mark(dot, "data-state", name); mark(dot, "data-near", near); });

const drawBar = (row, limit) => list(row,
  [["available", limit.available], ["use", limit.in_use], ["cool", Math.max(0, limit.size - limit.available - limit.in_use)]],
  (part) => part[0], ([name]) => mark(make("i"), "data-state", name),
  (part, [, count]) => part.style.setProperty("--part", count));

const drawLimit = (element, limit, dots) => {
  const [line, row, note] = element.children;
  const [name, count] = line.children;
  set(name, limit.name);
  set(count.children[0], number(limit.available));
  set(count.children[1], ` of ${number(limit.size)}`);
  set(count.children[2], ` available, ${number(limit.in_use)} in use, ${number(limit.cooling_down)} cooling down${heldBack(limit) ? `, ${number(heldBack(limit))} held back` : ""}`);
  const asDots = dots && limit.size <= MAX_DOTS;
  if (row.className !== (asDots ? "tokens" : "bar")) { row.className = asDots ? "tokens" : "bar"; row.replaceChildren(); row.kept = null; }
  mark(row, "aria-label", description(limit));
  (asDots ? drawDots : drawBar)(row, limit);
  const next = limit.returns[0];
  const last = limit.returns[limit.returns.length - 1];
  set(note, !next ? (limit.in_use ? "none cooling down" : "all available")
    : `next ${number(next.tokens)} back within ${soon(next.within)}${last !== next ? `, the last within ${soon(last.within)}` : ""}`);
};

const buildLimit = () => make("div", "bucket",
  make("div", "bucket-line", make("span"), make("span", "count", make("strong"), make("span"), make("span", "detail"))),
  mark(make("div", "tokens"), "role", "img"), make("p", "quiet detail"));

const drawQuotas = (element, pool, dots) => list(element, pool.quotas, (quota) => quota.name,
  () => make("li", "quota", make("div", "quota-head", make("span", "name"), make("span", "states")), make("div"), make("p", "quiet note")),
  (card, quota) => {
    const [head, limits, note] = card.children;
    const keys = pool.keys.filter((key) => key.quota === quota.name);
    mark(set(head.children[0], quota.name), "title", quota.name);
    mark(card, "data-off", keys.some(usable) ? null : "yes");
    list(head.children[1], keys, (key) => key.name, () => make("span", "badge"),
      (badge, key) => mark(set(badge, keys.length > 1 || key.name !== quota.name ? `${key.name}: ${key.state}` : key.state), "data-tone", TONES[key.state] || "none"));
    set(note, quota.limits.length ? "" : "None of its keys is in use.");
    list(limits, quota.limits, (limit) => limit.name, buildLimit, (row, limit) => drawLimit(row, limit, dots));
  });

// ---- tables ---------------------------------------------------------------------------------------------------

// Roles are explicit: on narrow screens CSS displays the parts as blocks, and browsers then drop their table roles.
const buildTable = (title, columns) => {
  const id = `t${(buildTable.count = (buildTable.count || 0) + 1)}`;
  const head = mark(make("tr"), "role", "row");
  for (const [name, className] of columns) head.append(mark(mark(set(make("th", className), name), "scope", "col"), "role", "columnheader"));
  const body = mark(make("tbody"), "role", "rowgroup");
  const table = mark(make("table", "", mark(make("thead", "", head), "role", "rowgroup"), body), "role", "table");
  mark(table, "aria-labelledby", id);
  const box = mark(mark(mark(make("div", "scroll", table), "tabindex", "0"), "role", "region"), "aria-labelledby", id);
  const more = mark(make("button"), "type", "button");
  const foot = make("p", "quiet note", make("span"), more);
  const part = make("div", "", mark(set(make("h3"), title), "id", id), box, foot);
  more.addEventListener("click", () => { part.whole = !part.whole; if (state.shown) drawPools(state.shown); });
  return Object.assign(part, { body, box, more, note: foot.firstChild });
};
// The rows to show, in their order: all of them, or those that `rank` selects until the reader asks for the rest.
const chosen = (part, all, rank, kind) => {
  const many = all.length > MANY_ROWS;
  part.more.hidden = !many;
  set(part.more, part.whole ? "Show fewer" : `Show all ${number(all.length)} ${kind}`);
  if (!many || part.whole) return all;
  return rank(all);
};
const buildRow = (columns) => {
  const row = mark(make("tr"), "role", "row");
  columns.forEach(([name, className], index) => row.append(index
    ? mark(mark(make("td", className), "data-label", name), "role", "cell")
    : mark(mark(make("th", "name"), "scope", "row"), "role", "rowheader")));
  return row;
};
const cell = (element, text) => mark(set(element, text), "data-blank", text ? null : "yes");

const KEYS = [["Key", ""], ["State", ""], ["For", "number"], ["Reason", ""], ["Next", "number"], ["Month left", "number"]];
const noteworthy = (keys) => keys.filter((key) => key.state !== "ready" || usedUp(key));
const drawKeys = (part, pool, at) => {
  const shown = chosen(part, pool.keys, noteworthy, "keys");
  const rest = pool.keys.length - shown.length;
  set(part.note, !pool.keys.length ? "This pool has no key." : rest ? `${plural(rest, "key is", `${shown.length ? "more " : ""}keys are`)} ready.` : "");
  part.box.hidden = !shown.length;
  drawKeyRows(part.body, shown, at);
};
const drawKeyRows = (body, keys, at) => list(body, keys, (key) => key.name,
  () => { const row = buildRow(KEYS); row.className = "has-badge"; row.children[1].append(make("span", "badge")); return row; },
  (row, key) => {
    const [name, stateOf, age, reason, until, month] = row.children;
    set(name, key.name);
    mark(set(stateOf.firstChild, key.state), "data-tone", TONES[key.state] || "none");
    cell(age, since(key.since, at));
    cell(reason, key.reason);
    cell(until, key.until ? `${NEXT[key.state] || ""}${again(at, key.until)}` : "");
    mark(cell(month, usedUp(key) ? "used up" : key.month_remaining === null ? "" : number(key.month_remaining)), "data-tone", usedUp(key) ? "bad" : null);
  });

const CLIENTS = [["Client", ""], ["Weight", "number"], ["Waiting", "number"], ["Longest", "number"], ["Estimated", "number"], ["Share of the last minute", "wide"]];
const estimate = (value, waiting) => (value === null ? (waiting ? "unknown" : "") : value < 0.05 ? "now" : `in ${span(value)}`);
const queueName = (queue) => `${queue.limits.join(" + ") || "no limit"}${queue.pinned ? `, key ${queue.pinned}` : ""}`;
const busiest = (clients) => {
  const best = new Set([...clients].sort((a, b) => b.waiting - a.waiting || b.granted - a.granted).slice(0, MANY_ROWS));
  return clients.filter((client) => best.has(client));
};
// In the order of the configuration, so that rows stay where they are.
const rows = (clients) => clients
  .flatMap((client) => [{ client }, ...(client.queues.length > 1 ? client.queues.map((queue) => ({ client, queue })) : [])]);

const drawShare = (element, client) => {
  const [gauge, text] = element.firstChild.children;
  const got = client.share || 0;
  gauge.style.setProperty("--got", percent(got).replace("\u00a0", ""));
  gauge.style.setProperty("--fair", percent(client.fair_share).replace("\u00a0", ""));
  gauge.lastChild.style.visibility = client.waiting ? "" : "hidden";
  set(text, client.waiting ? `${percent(got)}, fair share ${percent(client.fair_share)}` : percent(got));
};
const drawClients = (part, pool) => {
  const active = pool.clients.filter((client) => client.fair_share !== null);
  const shown = chosen(part, active, busiest, "active clients");
  part.box.hidden = !shown.length;
  list(part.body, rows(shown), ({ client, queue }) => `${client.name}\n${queue ? queueName(queue) : ""}`,
    ({ queue }) => {
      const row = buildRow(CLIENTS);
      if (!queue) row.lastChild.append(make("div", "share", mark(make("div", "gauge", make("i"), make("b")), "aria-hidden", "true"), make("span")));
      else row.className = "queue";
      return row;
    },
    (row, { client, queue }) => {
      const [name, weight, waiting, longest, estimated, share] = row.children;
      const from = queue || client;
      set(name, queue ? `↳ ${queueName(queue)}` : client.name);
      cell(weight, queue ? "" : number(client.weight));
      cell(waiting, number(from.waiting));
      cell(longest, from.waiting ? span(from.longest_wait) : "");
      cell(estimated, estimate(from.estimated_wait, from.waiting));
      if (queue) mark(share, "data-blank", "yes"); else drawShare(share, client);
    });
  const idle = pool.clients.filter((client) => client.fair_share === null).map((client) => client.name);
  const rest = active.length - shown.length;
  const notes = [
    rest ? `The busiest clients; ${plural(rest, "more is", "more are")} active.` : "",
    !active.length ? "No client was active in the last minute." : "",
    !idle.length ? "" : idle.length > 8 ? `${plural(idle.length, "client is", "clients are")} idle.` : `Idle: ${idle.join(", ")}.`,
  ];
  set(part.note, notes.filter(Boolean).join(" "));
};

// The tokens of all its quotas together, by limit.
const available = (pool) => {
  const limits = new Map();
  for (const limit of pool.quotas.flatMap((quota) => quota.limits)) {
    const [free, size] = limits.get(limit.name) || [0, 0];
    limits.set(limit.name, [free + limit.available, size + limit.size]);
  }
  return [...limits].map(([name, [free, size]]) => `${number(free)} of ${number(size)} tokens available${limits.size > 1 ? ` (${name})` : ""}; `).join("");
};

const buildPool = () => {
  const element = make("section", "pool", make("div", "pool-head", make("h2"), make("p", "quiet")), make("p", "problem"), make("p", "quiet note"));
  const quotas = mark(make("ul", "quotas"), "role", "list");
  const clients = buildTable("Clients and queues", CLIENTS);
  const keys = buildTable("Keys", KEYS);
  keys.classList.add("keys");
  const tokens = make("div", "", set(make("h3"), "Tokens of each quota"), quotas);
  element.append(make("div", "pool-body", tokens, clients, keys));
  Object.assign(element, { quotas, clients, keys });
  return element;
};

const drawPools = (data) => {
  const dots = sum(data, (pool) => pool.quotas.reduce((t, q) => t + q.limits.reduce((n, l) => n + (l.size <= MAX_DOTS ? l.size : 0), 0), 0)) <= MAX_DOTS_OF_PAGE;
  list($("pools"), data.pools, (pool) => pool.name, buildPool, (element, pool) => {
    const [title, note] = element.firstChild.children;
    const id = mark(set(title, `Pool ${pool.name}`), "id", title.id || `p${(buildPool.count = (buildPool.count || 0) + 1)}`).id;
    mark(element, "aria-labelledby", id);
    set(note, `${available(pool)}${number(pool.in_flight)} in flight; in the last minute refused ${number(pool.refused.minute)}, failed ${number(pool.failed.minute)}, upstream 429s ${number(pool.throttled.minute)}`);
    const outage = element.children[1];
    const recent = pool.failure && pool.failed.minute;
    outage.hidden = !pool.outage && !pool.failing.length && !recent;
    const out = pool.outage ? `The upstream has been failing for ${since(pool.outage.since, data.at)}: ${pool.outage.cause}. The next probe is sent ${again(data.at, pool.outage.until, "with the next request")}.` : "";
    const failing = pool.failing.map((one) => `${one.client} ${one.route || "(all routes)"}`).join(", ");
    const last = recent && !pool.outage ? `The last request failed ${since(pool.failure.at, data.at)} ago: ${pool.failure.cause}` : "";
    set(outage, [out, failing ? `The upstream fails for ${failing}; other requests are sent as usual.` : "", last].filter(Boolean).join(" "));
    const higher = element.children[2];
    higher.hidden = !pool.upstream_limits.length;
    set(higher, pool.upstream_limits.map((limit) => `The upstream permits ${number(limit.reported)} requests where ${limit.limit} is configured: raise ${limit.setting} to use them.`).join(" "));
    const small = pool.quotas.length > MANY_QUOTAS;
    element.quotas.className = small ? "quotas small" : "quotas";
    element.quotas.parentElement.hidden = !pool.quotas.length;
    drawQuotas(element.quotas, pool, dots && !small);
    drawClients(element.clients, pool);
    drawKeys(element.keys, pool, data.at);
  });
};

const drawRefusals = (data) => {
  const reasons = Object.entries(data.refused).filter(([, count]) => count.total)
    .sort(([a, x], [b, y]) => y.minute - x.minute || y.total - x.total || (a < b ? -1 : 1));
  $("refusals").hidden = !reasons.length;
  const columns = [["Reason", ""], ["Last minute", "number"], ["Since start", "number"]];
  list($("refusal-rows"), reasons, ([reason]) => reason, () => buildRow(columns), (row, [reason, count]) => {
    set(row.children[0], reason.replaceAll("_", " "));
    set(row.children[1], number(count.minute));
    set(row.children[2], number(count.total));
  });
};

// ---- changes, announced once ---------------------------------------------------------------------------------------

const facts = (data) => {
  const result = new Map([["process", verdict(data)[0]], ["store", data.store.up ? "The store responds" : `The store is lost: ${data.store.cause || "cause unknown"}`]]);
  if (data.reload) result.set("reload", `${data.reload.at}|${data.reload.ok ? "The configuration was reloaded" : `A reload was rejected: ${data.reload.reason}`}`);
  for (const pool of data.pools) result.set(`outage ${pool.name}`, pool.outage ? `The upstream of pool ${pool.name} is failing: ${pool.outage.cause}` : `The upstream of pool ${pool.name} responds`);
  for (const pool of data.pools) for (const key of pool.keys) result.set(`key ${pool.name} ${key.name}`, `Key ${key.name} is ${key.state}`);
  return result;
};
const announce = (data) => {
  const now = facts(data);
  const before = state.before;
  state.before = now;
  if (!before) return;
  const news = [...now].filter(([name, text]) => before.get(name) !== text).map(([, text]) => text.split("|").pop());
  if (news.length) set($("announcer"), news.length > 4 ? `${news.slice(0, 4).join(". ")}, and ${news.length - 4} more changes` : news.join(". "));
};

// ---- polling ---------------------------------------------------------------------------------------------------

const draw = (data) => {
  drawHead(data);
  drawPools(data);
  drawRefusals(data);
  announce(data);
};

const drawFreshness = () => {
  const age = Date.now() - state.last;
  const stale = Boolean(state.trouble) && (!state.shown || age > STALE || state.trouble.startsWith("This page"));
  document.documentElement.classList.toggle("stale", stale && Boolean(state.shown));
  const text = !stale ? "" : state.trouble + (state.shown && !state.trouble.startsWith("This page") ? `. The data shown is ${span(age / 1000)} old.` : "");
  set($("problem"), text);
  $("problem").hidden = !text;
  if (stale !== state.toldStale) set($("announcer"), stale ? state.trouble : "The status is up to date again");
  state.toldStale = stale;
  if (stale) {
    mark(set($("verdict"), "No response"), "data-tone", "bad");
    document.title = "No response – Keyturn status";
  }
  set($("fresh"), !state.shown ? "" : `${state.paused ? "paused at" : "as of"} ${clock(state.last)}`);
};

const ask = async () => {
  const stop = (state.asking = new AbortController());
  const timeout = setTimeout(() => stop.abort(), TIMEOUT);
  try {
    const answer = await fetch("status.json", { signal: stop.signal, cache: "no-store", credentials: "same-origin" });
    if (!answer.ok) throw new Error(`It responded ${answer.status}`);
    const data = await answer.json();
    if (data.version !== VERSION) throw new Error(`This page reads version ${VERSION} of status.json and the proxy writes version ${data.version}: reload the page`);
    draw(data);
    Object.assign(state, { shown: data, last: Date.now(), trouble: "" });
  } catch (error) {
    if (stop !== state.asking) return;
    const why = error.name === "AbortError" ? "it did not respond in time" : error instanceof TypeError ? "it cannot be reached" : error.message;
    state.trouble = why.startsWith("This page") ? why : `No status from this replica: ${why.charAt(0).toLowerCase()}${why.slice(1)}`;
  } finally {
    clearTimeout(timeout);
    if (stop === state.asking) { state.asking = null; drawFreshness(); plan(REFRESH); }
  }
};
const plan = (delay) => {
  clearTimeout(state.timer);
  if (!document.hidden && !state.paused) state.timer = setTimeout(ask, delay);
};
const rest = () => {
  clearTimeout(state.timer);
  const asking = state.asking;
  state.asking = null;
  if (asking) asking.abort();
};
const resume = () => { if (!state.asking) plan(0); };

document.addEventListener("visibilitychange", () => (document.hidden ? rest() : resume()));
$("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  set($("pause"), state.paused ? "Resume updates" : "Pause updates");
  drawFreshness();
  if (state.paused) rest(); else resume();
});
resume();
