"""Letters as `exchange.lua` reads and writes them: JSON one way, nested arrays of the Redis protocol the other way.

JSON rather than flat arguments, since it is read in C on the other side and by people in `MONITOR`. The answer is no
JSON, for Redis would write its instants with 14 digits.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from proxy.core.exchange import Budget, Demand, Grant, Lane, Settlement, Spent, Throttled, Turns, Unsent
from proxy.core.letters import Call, Held, News, Reply, Terms

SCRIPT = files("proxy.stores").joinpath("exchange.lua").read_text(encoding="utf-8")
"""The text of the operation."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


def encode(call: Call, *, now: int | None = None, run: str | None = None) -> str:
    """A call as the script's argument. Only tests tell the time (`now`) and the name of the server's life (`run`)."""
    letter: dict[str, Any] = {
        "replica": call.replica,
        "serial": call.serial,
        "heard": call.heard,
        "era": call.era,
        "tick": call.tick,
        "replicas": call.replicas,
        "terms": call.terms,
        "jumped": call.jumped,
        "settlements": [_settlement(settlement) for settlement in call.settlements],
        "demands": [_demand(demand) for demand in call.demands],
    }
    if call.held is not None:
        letter["held"] = [_held(row) for row in call.held]
    if call.spelled is not None:
        letter["spelled"] = _spelled(call.spelled)
    if now is not None:
        letter["now"] = now
    if run is not None:
        letter["run"] = run
    return _encode(letter)


def _settlement(settlement: Settlement) -> list[Any]:
    match settlement:
        case Spent(lease, age, seen):
            row: list[Any] = ["s", lease, age]
            if seen:
                row.append([[one.limit, one.remaining, one.reset] for one in seen])
            return row
        case Unsent(lease):
            return ["u", lease]
        case Throttled(lease, age, park, limits):
            return ["t", lease, age, park, limits]


def _demand(demand: Demand) -> list[Any]:
    lane = demand.lane
    row = [lane.client, demand.weight, demand.waiting, lane.kind.limits]
    if lane.kind.pinned is not None:
        row.append(lane.kind.pinned)
    return row


def _held(row: Held) -> list[Any]:
    windows = [part for window in row.windows for part in window]
    return [row.lease, row.quota, row.client, windows, row.granted, row.counted is not None, row.counted or 0]


def _spelled(terms: Terms) -> dict[str, Any]:
    limits = [{"id": limit.id, "requests": limit.requests, "window": limit.window} for limit in terms.limits]
    spelled = {"name": terms.name, "quotas": terms.quotas, "limits": limits, "bound": terms.bound}
    return {**spelled, "keys": terms.keys} if terms.keys else spelled


def decode(answer: Sequence[Any], call: Call) -> Reply:
    """The script's answer to a call.

    Raises:
        Exception: it is no such answer.
    """
    era, tick, instant, asks = answer[:4]
    if asks:
        return Reply(era.decode(), int(tick), int(instant), tuple([what.decode() for what in asks]))
    granted, told, budgets, again, woken, replicas, foreign, rank, news = answer[4:]
    lanes = [demand.lane for demand in call.demands]
    return Reply(
        era.decode(),
        int(tick),
        int(instant),
        (),
        tuple([_grant(row, lanes) for row in granted]),
        {lanes[number]: _turns(soon, later) for number, soon, later in told},
        tuple([Budget(size, hand, returns) for size, hand, returns in budgets]),
        again if again >= 0 else None,
        tuple([name.decode() for name in woken]),
        replicas,
        tuple([(quota.decode(), tokens) for quota, tokens in foreign]),
        rank,
        decode_news(news) if news else None,
    )


def decode_news(text: bytes) -> News:
    """What is published to all replicas: `tick replicas limit hand limit hand …`.

    Raises:
        Exception: it is no such text.
    """
    tick, replicas, *hands = text.decode().split(" ")
    pairs = iter(hands)
    return News(int(tick), int(replicas), tuple([(limit, int(hand)) for limit, hand in zip(pairs, pairs, strict=True)]))


def _grant(row: Sequence[Any], lanes: Sequence[Lane]) -> Grant:
    lease, number, quota, probe = row
    return Grant(lease.decode(), lanes[number], quota.decode(), probe == 1)


def _turns(soon: Sequence[int], later: Sequence[int]) -> Turns:
    pairs = iter(later)
    return Turns(tuple(soon), tuple(zip(pairs, pairs, strict=True)))
