"""The scripts of the shared store, and what replicas say to them: JSON one way, nested arrays of Redis the other way.

JSON rather than flat arguments, since it is read in C on the other side and by people in `MONITOR`. The answer is no
JSON, since Redis would write its instants with 14 digits.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

from keyturn.core.exchange import (
    DemandClass,
    Flow,
    FlowDemand,
    LeaseGrant,
    LimitTokens,
    Settlement,
    Spent,
    Throttled,
    Unsent,
)
from keyturn.core.messages import (
    ExchangeRequest,
    ExchangeResponse,
    HeldLease,
    LimitReturns,
    Revision,
    Snapshot,
    WaitingFlow,
)
from keyturn.core.model import Micros
from keyturn.core.snapshots import in_order
from keyturn.stores.links import Script

Pins = Iterable[tuple[int, str]]
"""The limits and quotas that a snapshot is asked for besides."""


def text_of(*sections: str, rare: Sequence[str], main: str) -> str:
    """The text of a script: what is stored how, sections that fill what others use, and what it does.

    A section is a function of its own, so that its names are its own and cost little where it is entered: it fills the
    table that others know by its name. The `rare` ones return theirs when first asked for.
    """
    names = "".join([f"local {name} = {{}}\n" for name in sections])
    lazy = [f"local {name} = lazily(function()\n{_read(name)}end)\n" for name in rare]
    parts = [f";(function()\n{_read(name)}end)()\n" for name in sections]
    return "\n".join([_read("storage"), names, *lazy, *parts, f"return (function()\n{_read(main)}end)()\n"])


def _read(name: str) -> str:
    return files("keyturn.stores").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


EXCHANGE = Script.of(
    text_of("revisions", "tokens", "flows", "dealing", rare=("closed_buckets", "recovery", "snapshot"), main="exchange")
)
"""The exchange, a snapshot after it included."""

SNAPSHOT = Script.of(text_of("revisions", "tokens", "flows", rare=("closed_buckets", "snapshot"), main="view"))
"""The snapshot alone, which changes nothing."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


def encode_exchange(
    request: ExchangeRequest, pins: Pins | None, *, now: Micros | None = None, run: str | None = None
) -> str:
    """A request as the script's argument; with `pins` a snapshot is asked for, too.

    Only tests tell the time (`now`) and the server's run id (`run`).
    """
    message: dict[str, Any] = {
        "replica": request.replica,
        "serial": request.serial,
        "heard": request.heard,
        "epoch": request.epoch,
        "version": request.version,
        "replicas": request.replicas,
        "revision": request.revision,
        "settlements": [_settlement(settlement) for settlement in request.settlements],
        "demands": [_demand(demand) for demand in request.demands],
        "full": request.full,
        "ahead": request.ahead,
        "stepped": request.stepped,
    }
    if pins is not None:
        message["pins"] = list(pins)
    if request.held is not None:
        message["held"] = [_held(row) for row in request.held]
    if request.spelled is not None:
        message["spelled"] = _revision(request.spelled)
    if now is not None:
        message["now"] = now
    if run is not None:
        message["run"] = run
    return _encode(message)


def _settlement(settlement: Settlement) -> list[Any]:
    match settlement:
        case Spent(lease, age, observed, answered):
            row: list[Any] = ["s" if answered else "n", lease, age]
            return [*row, list(map(list, observed))] if observed else row
        case Unsent(lease):
            return ["u", lease]
        case Throttled(lease, age, closed_for, limits):
            return ["t", lease, age, closed_for, limits]


def _demand(demand: FlowDemand) -> list[Any]:
    client, (limits, pinned) = demand.flow
    row = [client, demand.weight, demand.waiting, ",".join(map(str, limits))]
    return row if pinned is None else [*row, pinned]


def _held(row: HeldLease) -> list[Any]:
    held = [row.lease, row.quota, row.client, dict(row.windows), row.granted]
    return held if row.counted is None else [*held, row.counted]


def _revision(revision: Revision) -> dict[str, Any]:
    limits = [{"id": limit.id, "requests": limit.requests, "window": limit.window} for limit in revision.limits]
    spelled = {"name": revision.name, "quotas": revision.quotas, "limits": limits, "bound": revision.bound}
    return {**spelled, "keys": revision.keys} if revision.keys else spelled


def decode_exchange(answer: Sequence[Any]) -> tuple[ExchangeResponse, Snapshot | None]:
    """The script's answer to a request, and the snapshot if it was asked for.

    Raises:
        Exception: it is no such answer.
    """
    epoch, version, instant, asks, *rest = answer
    if asks:
        return ExchangeResponse(epoch.decode(), version, instant, tuple([what.decode() for what in asks])), None
    granted, budgets, again, woken, replicas, dealt, foreign, snapshot = rest
    response = ExchangeResponse(
        epoch.decode(),
        version,
        instant,
        grants=tuple([_grant(row) for row in granted]),
        available=tuple([LimitTokens(size, available, returns) for size, available, returns in budgets]),
        again=again if again >= 0 else None,
        wake=_named(woken),
        replicas=replicas,
        dealt=dealt,
        foreign=_named(foreign),
    )
    return response, decode_snapshot(snapshot)


def _grant(row: Sequence[Any]) -> LeaseGrant:
    lease, client, limits, pinned, quota, probe = row
    indices = tuple(map(int, limits.split(b","))) if limits else ()
    flow = Flow(client.decode(), DemandClass(indices, pinned.decode() or None))
    return LeaseGrant(lease.decode(), flow, quota.decode(), probe == 1)


def _named(rows: Iterable[tuple[bytes, int]]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted([(name.decode(), number) for name, number in rows]))


def encode_snapshot(revision: str, pins: Pins, *, now: Micros | None = None) -> str:
    """The wish for a snapshot: flows of the replica insist on `pins`, (limit, quota)."""
    message: dict[str, Any] = {"revision": revision, "pins": list(pins)}
    if now is not None:
        message["now"] = now
    return _encode(message)


def decode_snapshot(answer: Sequence[Any]) -> Snapshot | None:
    """The script's answer; `None` for none.

    Raises:
        Exception: it is no such answer.
    """
    if not answer:
        return None
    dealt, limits, pinned, classes, others, others_weight, service = answer
    return Snapshot(
        dealt,
        tuple([_returns(*row) for row in limits]),
        tuple([(index, quota.decode(), _returns(*row)) for index, quota, *row in pinned]),
        in_order(chain.from_iterable([_waiting(*row) for row in classes])),
        others,
        others_weight,
        service,
    )


def _waiting(limits: Sequence[int], pinned: bytes, flows: Sequence[Any]) -> Iterator[WaitingFlow]:
    rows, indices, quota = iter(flows), tuple(limits), pinned.decode() or None
    for client, *row in zip(*[rows] * 5, strict=True):
        yield WaitingFlow(client.decode(), indices, quota, *row)


def _returns(available: int, cooling: int, in_use: int, soon: list[int], ranks: Sequence[int] = ()) -> LimitReturns:
    pairs = iter(ranks)
    return LimitReturns(available, cooling, in_use, tuple(soon), tuple(sorted(zip(pairs, pairs, strict=True))))
