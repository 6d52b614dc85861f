"""The status document (`docs/status.md`) as tables and bars for a terminal: the output of `keyturn status`."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from keyturn.core.errors import KeyturnError

MAX_BAR_WIDTH = 30
"""Characters of a bar if there is room."""

MIN_BAR_WIDTH = 8
"""Characters of a bar if there is not."""


class Bar:
    """A limit's tokens as a bar for rich: `#` available, `*` in use, `.` cooling down; readable without colours."""

    def __init__(self, limit: Mapping[str, Any]) -> None:
        self._limit = limit

    def drawn(self, room: int) -> Text:
        """Draw the bar in at most so many characters."""
        size = self._limit["size"]
        width = min(MAX_BAR_WIDTH, size, room)
        available = _cells(self._limit["available"], size, width)
        use = min(width - available, _cells(self._limit["in_use"], size, width))
        return Text.assemble(
            ("#" * available, "green"), ("*" * use, "yellow"), ("." * (width - available - use), "dim")
        )

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield self.drawn(options.max_width)

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        most = min(MAX_BAR_WIDTH, self._limit["size"])
        return Measurement(min(MIN_BAR_WIDTH, most), most).with_maximum(options.max_width)


def _cells(tokens: int, size: int, width: int) -> int:
    """At least one character for any token, and the whole width only for all of them."""
    if not tokens or not size:
        return 0
    return width if tokens >= size else min(max(1, tokens * width // size), max(1, width - 1))


VERSION = 2
"""The version of the document that this command reads."""

KEY_TRANSITIONS = {"quarantined": "checked ", "parked": "opens "}
"""The event that happens to a key at its `until`."""

MIN_COLUMN_WIDTHS = {"next": 8, "last": 7, "longest": 7, "estimated": 9}
"""Minimum widths of columns, so that they do not move while their times change."""

KEY_STYLES = {"ready": "green", "parked": "yellow", "quarantined": "bold red", "paused": "blue"}

POOL_COUNTS = (
    ("throttled", "upstream 429s", "bold red"),
    ("refused", "refused", "yellow"),
    ("failed", "failed", "bold red"),
)
"""Counts of a pool: the field, its caption, and its style when it is not 0."""

SHOWN_AS_NOW = 0.05
"""Waits below this many seconds are shown as `now`."""

Document = Mapping[str, Any]


class UnknownVersion(KeyturnError):
    """The document has a version that this command does not read."""


def render(document: Document, rows: int | None = None) -> RenderableType:
    """The document as something that rich can print; nothing in it is read as markup.

    `rows` limits the rows of each table: the most important ones are shown, the rest is counted.

    Raises:
        UnknownVersion: use the `keyturn` of the proxy's own version.
    """
    if document.get("version") != VERSION:
        raise UnknownVersion(
            f"This command reads version {VERSION} of status.json, and the proxy writes version "
            f"{document.get('version')!r}: use the keyturn command of the proxy's own version."
        )
    return Group(*_parts(document, rows))


def _parts(document: Document, rows: int | None) -> Iterator[RenderableType]:
    yield _process(document)
    yield _store(document)
    if document["reload"]:
        yield _reload(document)
    for pool in document["pools"]:
        yield Text()
        yield _pool(pool, document["at"])
        yield from _quotas(pool, rows)
        yield Text()
        yield from _clients(pool, rows)
        yield Text()
        yield from _keys(pool, document["at"], rows)
    if any(count["total"] for count in document["refused"].values()):
        yield Text()
        yield _refused(document["refused"])


def _process(document: Document) -> Text:
    process = document["process"]
    text = Text("Keyturn ", style="bold")
    text.append(process["replica"])
    if process["draining"]:
        text.append("  draining", "bold yellow")
    elif process["unready"]:
        text.append(f"  not ready: {'; '.join(process['unready'])}", "bold red")
    else:
        text.append("  ready", "green")
    text.append(f"  version {process['version']}, Python {process['python']}, ", "dim")
    text.append(f"up {_age(process['started'], document['at'])}", "dim")
    return text


def _store(document: Document) -> Text:
    store = document["store"]
    age = _age(store["since"], document["at"])
    text = Text(f"Store {store['kind']} ")
    if store["up"]:
        text.append("up", "green")
        seen = "" if store["kind"] == "memory" else f", {_plural(store['replicas'], 'replica')} seen"
        text.append(f" for {age}{seen}", "dim")
    else:
        text.append(f"lost for {age}: {store['cause'] or 'cause unknown'}", "bold red")
        text.append(f", on loss: {store['on_loss']}" if store["on_loss"] else "")
    return text


def _reload(document: Document) -> Text:
    reload = document["reload"]
    age = _age(reload["at"], document["at"])
    if reload["ok"]:
        return Text(f"Reloaded {age} ago", "dim")
    return Text(f"Reload rejected {age} ago: {reload['reason']}", "bold red")


def _pool(pool: Document, at: str) -> Text:
    text = Text(f"Pool {pool['name']}", "bold")
    text.append(f"  {_available(pool['quotas'])}, {pool['in_flight']:,} in flight\n", "not bold")
    text.append("  last minute:", "not bold dim")
    for name, words, style in POOL_COUNTS:
        count = pool.get(name) or {"minute": 0, "total": 0}
        text.append(f" {words} ", "not bold")
        text.append(f"{count['minute']:,}", style if count["minute"] else "not bold")
        text.append(f" ({count['total']:,} total)", "not bold dim")
    if outage := pool.get("outage"):
        text.append(f"\n  the upstream has been failing for {_age(outage['since'], at)}: {outage['cause']}", "bold red")
        text.append(f", next probe {_again(at, outage['until'], 'with the next request')}", "not bold")
    elif (failure := pool.get("failure")) and pool["failed"]["minute"]:
        text.append(f"\n  the last request failed {_age(failure['at'], at)} ago: {failure['cause']}", "yellow")
    for limit in pool.get("upstream_limits", ()):
        text.append(
            f"\n  the upstream permits {limit['reported']:,} requests where {limit['limit']} is configured: raise ",
            "yellow",
        )
        text.append(limit["setting"], "not bold")
    if failing := pool.get("failing"):
        names = ", ".join(f"{one['client']} {one['route'] or '(all routes)'}" for one in failing)
        text.append(f"\n  the upstream fails for {names}; other requests are sent as usual", "yellow")
    return text


def _available(quotas: Sequence[Document]) -> str:
    """The tokens of all quotas together, by limit."""
    sums: dict[str, list[int]] = {}
    for limit in (limit for quota in quotas for limit in quota["limits"]):
        found = sums.setdefault(limit["name"], [0, 0])
        found[0] += limit["available"]
        found[1] += limit["size"]
    parts = [f"{free:,} of {size:,}{f' ({name})' if len(sums) > 1 else ''}" for name, (free, size) in sums.items()]
    return f"{', '.join(parts) or 'no token'} available"


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold", min_width=MIN_COLUMN_WIDTHS.get(column))
    return table


def _quotas(pool: Document, rows: int | None) -> Iterator[RenderableType]:
    numbers = ("available", "in use", "cooling", "next", "last")
    table = _table("quota", "limit", "tokens", *numbers, numbers=numbers)
    told = [quota for quota in pool["quotas"] if quota["limits"]]
    for quota in told[:rows]:
        for index, limit in enumerate(quota["limits"]):
            table.add_row(
                Text("" if index else quota["name"], "bold"),
                Text(limit["name"]),
                Bar(limit),
                *(f"{limit[name]:,}" for name in ("available", "in_use", "cooling_down")),
                Text(_next(limit["returns"]), "dim"),
                Text(_last(limit["returns"]), "dim"),
            )
    yield from _shown(table, len(told) - len(told[:rows]), "quota")


def _next(returns: Sequence[Document]) -> str:
    return f"{returns[0]['tokens']} in {_span(max(1, returns[0]['within']))}" if returns else ""


def _last(returns: Sequence[Document]) -> str:
    return f"in {_span(max(1, returns[-1]['within']))}" if returns else ""


def _keys(pool: Document, at: str, rows: int | None) -> Iterator[RenderableType]:
    if not pool["keys"]:
        yield Text("This pool has no key", "dim")
        return
    keys = pool["keys"]
    if rows is not None and len(keys) > rows:
        keys = [key for key in keys if key["state"] != "ready" or key["month_remaining"] == 0]
    table = _table("key", "state", "for", "reason", "next", "month left", numbers=("for", "next", "month left"))
    for key in keys[:rows]:
        left = key["month_remaining"]
        table.add_row(
            Text(key["name"], "bold"),
            Text(key["state"], KEY_STYLES.get(key["state"], "")),
            _age(key["since"], at),
            Text(key["reason"]),
            f"{KEY_TRANSITIONS.get(key['state'], '')}{_again(at, key['until'])}" if key["until"] else "",
            "" if left is None else f"{left:,}" if left else Text("used up", "bold red"),
        )
    yield from _shown(table, len(pool["keys"]) - table.row_count, "key")


def _clients(pool: Document, rows: int | None) -> Iterator[RenderableType]:
    numbers = ("weight", "waiting", "longest", "estimated", "share", "fair share")
    table = _table("client", *numbers, numbers=numbers)
    active = [client for client in pool["clients"] if client["fair_share"] is not None]
    busiest = sorted(active, key=lambda client: (-client["waiting"], -client["granted"], client["name"]))[:rows]
    for client in busiest:
        table.add_row(Text(client["name"], "bold"), str(client["weight"]), *_waits(client), *_shares(client))
        if len(client["queues"]) > 1:
            for queue in client["queues"]:
                table.add_row(Text(f"  {_queue_name(queue)}", "dim"), "", *_waits(queue))
    yield from _shown(table, len(active) - len(busiest), "active client")
    idle = len(pool["clients"]) - len(active)
    if not active:
        yield Text("No client was active in the last minute", "dim")
    if idle:
        yield Text(f"{_plural(idle, 'client')} idle", "dim")


def _shown(table: Table, rest: int, noun: str) -> Iterator[RenderableType]:
    """The table unless it is empty, and how many rows were left out."""
    if table.row_count:
        yield table
    if rest:
        yield Text(f"and {_plural(rest, f'more {noun}')}" if table.row_count else _plural(rest, noun), "dim")


def _waits(waiting: Document) -> tuple[str, str, str]:
    """Cells for a client or one of its queues: waiting requests, longest wait, estimated wait."""
    if not waiting["waiting"]:
        return "0", "", ""
    wait = waiting["estimated_wait"]
    estimated = "unknown" if wait is None else "now" if wait < SHOWN_AS_NOW else f"in {_span(wait)}"
    return f"{waiting['waiting']:,}", _span(waiting["longest_wait"]), estimated


def _shares(client: Document) -> tuple[str, str]:
    return f"{client['share'] or 0:.0%}", f"{client['fair_share']:.0%}" if client["waiting"] else ""


def _queue_name(queue: Document) -> str:
    limits = " + ".join(queue["limits"]) or "no limit"
    return f"{limits}, key {queue['pinned']}" if queue["pinned"] else limits


def _refused(refused: Document) -> Table:
    numbers = ("last minute", "total")
    table = _table("refused", *numbers, numbers=numbers)
    for reason, count in sorted(refused.items(), key=lambda entry: (-entry[1]["minute"], -entry[1]["total"], entry[0])):
        if count["total"]:
            table.add_row(Text(reason), f"{count['minute']:,}", f"{count['total']:,}")
    return table


def _again(at: str, until: str, due: str = "now") -> str:
    seconds = (datetime.fromisoformat(until) - datetime.fromisoformat(at)).total_seconds()
    return due if seconds < 1 else f"in {_span(seconds)}"


def _age(since: str, at: str) -> str:
    return _span((datetime.fromisoformat(at) - datetime.fromisoformat(since)).total_seconds())


def _span(seconds: float) -> str:
    for unit, size, least in (("d", 86400, 2), ("h", 3600, 2), ("min", 60, 2)):
        if seconds >= least * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.1f} s" if seconds < 1 else f"{seconds:.0f} s"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
