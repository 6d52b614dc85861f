"""A look at the shared buckets, for people and scrapers: it is not part of the exchange, and changes nothing."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from proxy.core.letters import Terms
from proxy.core.looks import BucketLook, Taken, looks
from proxy.core.model import Micros
from proxy.stores.links import Link, Script

LOOK = Script.of(files("proxy.stores").joinpath("look.lua").read_text(encoding="utf-8"))

MOST = 5_000
"""Entries of a list that are asked for in one call: a server does nothing else meanwhile."""


async def look_at(link: Link, key: str, terms: Terms) -> tuple[BucketLook, ...]:
    """Every bucket of these terms; while tokens move, what several calls tell may be some milliseconds apart.

    Raises:
        StoreLost: no answer.
    """
    ids = [limit.id for limit in terms.limits]
    rows = [Taken() for _ in ids]

    def read(answer: Sequence[Any]) -> list[Taken]:
        return [_taken(part) for part, _ in zip(answer, ids, strict=True)]

    begin, more = 0, bool(ids)
    while more:
        told = await link.run(LOOK, key, begin, MOST, *ids, read=read)
        rows = [_joined(row, part) for row, part in zip(rows, told, strict=True)]
        more = any(len(part.in_use) == MOST or len(part.cooling) == MOST for part in told)
        begin += MOST
    return looks(terms, rows)


def _taken(part: Sequence[Any]) -> Taken:
    in_use, cooling, parked = part
    return Taken(tuple([quota.decode() for quota in in_use]), _delays(cooling), _delays(parked))


def _delays(pairs: Sequence[Any]) -> tuple[tuple[Micros, str], ...]:
    flat = iter(pairs)
    return tuple([(delay, quota.decode()) for delay, quota in zip(flat, flat, strict=True)])


def _joined(one: Taken, other: Taken) -> Taken:
    return Taken(one.in_use + other.in_use, one.cooling + other.cooling, one.parked + other.parked)
