"""The status document (`docs/status.md`) as tables for a terminal: what `keyturn status` prints."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxy.core.errors import KeyturnError

VERSION = 1
"""Of the document that is understood here."""

WIDTH = 30
"""Characters of a bar of tokens."""

STYLES = {"ready": "green", "parked": "yellow", "quarantined": "bold red", "paused": "blue"}

Document = Mapping[str, Any]


class UnknownVersion(KeyturnError):
    """The document is of another version than this command understands."""


def render(document: Document) -> RenderableType:
    """The document as something that rich can print; nothing in it is read as markup.

    Raises:
        UnknownVersion: use the `keyturn` of the proxy's own version.
    """
    if document.get("version") != VERSION:
        raise UnknownVersion(
            f"This command reads version {VERSION} of status.json, and the proxy writes {document.get('version')!r}: "
            "use the keyturn command of the proxy's version."
        )
    return Group(*_parts(document))


def _parts(document: Document) -> Iterator[RenderableType]:
    yield _process(document)
    yield _store(document)
    if document["reload"]:
        yield _reload(document)
    for pool in document["pools"]:
        yield Text()
        yield _pool(pool, document["at"])
        yield _quotas(pool)
        yield _keys(pool, document["at"])
        yield _clients(pool)
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
        text.append(f" for {age}, {_plural(store['replicas'], 'replica')} seen", "dim")
    else:
        text.append(f"lost for {age}: {store['cause'] or 'cause unknown'}", "bold red")
        text.append(f", on loss: {store['on_loss']}" if store["on_loss"] else "")
    return text


def _reload(document: Document) -> Text:
    reload = document["reload"]
    age = _age(reload["at"], document["at"])
    if reload["ok"]:
        return Text(f"Reloaded {age} ago", "dim")
    return Text(f"Reload refused {age} ago: {reload['reason']}", "bold red")


def _pool(pool: Document, at: str) -> Text:
    text = Text(f"Pool {pool['name']}", "bold")
    text.append(f"  {pool['in_flight']} under way", "not bold")
    for name, words, style in (("throttled", "upstream 429s", "bold red"), ("refused", "refused", "yellow")):
        count = pool[name]
        text.append(f"  {words} ", "not bold")
        text.append(str(count["minute"]), style if count["minute"] else "not bold")
        text.append(f" in the last minute, {count['total']} in all", "not bold dim")
    if outage := pool.get("outage"):
        text.append(f"\n  the upstream is out of order for {_age(outage['since'], at)}: {outage['cause']}", "bold red")
        text.append(f", tried again in {_age(at, outage['until'])}", "not bold")
    return text


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def _quotas(pool: Document) -> Table:
    numbers = ("at hand", "in use", "cooling")
    table = _table("quota", "limit", "tokens", *numbers, "returns", numbers=numbers)
    for quota in pool["quotas"]:
        for index, limit in enumerate(quota["limits"]):
            table.add_row(
                Text("" if index else quota["name"], "bold"),
                Text(limit["name"]),
                bar(limit),
                *(str(limit[name]) for name in ("at_hand", "in_use", "cooling")),
                Text(_returns(limit["returns"]), "dim"),
            )
    return table


def bar(limit: Document) -> Text:
    """A limit's tokens as a bar: `#` at hand, `*` in use, `.` cooling; told apart without colours too."""
    width = min(WIDTH, limit["size"])
    hand = _cells(limit["at_hand"], limit["size"], width)
    use = min(width - hand, _cells(limit["in_use"], limit["size"], width))
    return Text.assemble(("#" * hand, "green"), ("*" * use, "yellow"), ("." * (width - hand - use), "dim"))


def _cells(tokens: int, size: int, width: int) -> int:
    """What is there shows, however little; and only all of it fills the bar."""
    if not tokens or not size:
        return 0
    return width if tokens >= size else min(max(1, tokens * width // size), max(1, width - 1))


def _returns(returns: Sequence[Document]) -> str:
    if not returns:
        return ""
    first, last = returns[0], returns[-1]
    text = f"{first['tokens']} within {_span(max(1, first['within']))}"
    return text if first is last else f"{text}, all within {_span(max(1, last['within']))}"


def _keys(pool: Document, at: str) -> Table:
    table = _table("key", "state", "for", "reason", "left this month", numbers=("for", "left this month"))
    for key in pool["keys"]:
        reason = Text(key["reason"])
        if key["until"]:
            reason.append(f"{' ' if key['reason'] else ''}(returns in {_age(at, key['until'])})", "dim")
        table.add_row(
            Text(key["name"], "bold"),
            Text(key["state"], STYLES.get(key["state"], "")),
            _age(key["since"], at),
            reason,
            "" if key["month_remaining"] is None else f"{key['month_remaining']:,}",
        )
    return table


def _clients(pool: Document) -> RenderableType:
    numbers = ("weight", "waiting", "longest", "next turn", "share", "due")
    table = _table("client", *numbers, numbers=numbers)
    active = [client for client in pool["clients"] if client["due"] is not None]
    for client in sorted(active, key=lambda client: (-client["waiting"], -client["granted"], client["name"])):
        table.add_row(Text(client["name"], "bold"), str(client["weight"]), *_queue(client), *_shares(client))
        if len(client["lanes"]) > 1:
            for lane in client["lanes"]:
                table.add_row(Text(f"  {_lane(lane)}", "dim"), "", *_queue(lane))
    idle = len(pool["clients"]) - len(active)
    note = f"{_plural(idle, 'client')} idle" if idle else ""
    if not active:
        return Text(note or "No client has called yet", "dim")
    return Group(table, Text(note, "dim")) if note else table


def _queue(lane: Document) -> tuple[str, str, str]:
    if not lane["waiting"]:
        return "0", "", ""
    turn = "unknown" if lane["turn"] is None else f"in {_span(lane['turn'])}"
    return str(lane["waiting"]), _span(lane["oldest"]), turn


def _shares(client: Document) -> tuple[str, str]:
    return f"{client['share'] or 0:.0%}", f"{client['due']:.0%}"


def _lane(lane: Document) -> str:
    limits = " + ".join(lane["limits"]) or "no limit"
    return f"{limits}, key {lane['pinned']}" if lane["pinned"] else limits


def _refused(refused: Document) -> Table:
    numbers = ("last minute", "in all")
    table = _table("refused", *numbers, numbers=numbers)
    for reason, count in sorted(refused.items(), key=lambda entry: (-entry[1]["minute"], -entry[1]["total"], entry[0])):
        if count["total"]:
            table.add_row(Text(reason), str(count["minute"]), str(count["total"]))
    return table


def _age(since: str, at: str) -> str:
    return _span((datetime.fromisoformat(at) - datetime.fromisoformat(since)).total_seconds())


def _span(seconds: float) -> str:
    for unit, size, least in (("d", 86400, 2), ("h", 3600, 2), ("min", 60, 2)):
        if seconds >= least * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.1f} s" if seconds < 1 else f"{seconds:.0f} s"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
