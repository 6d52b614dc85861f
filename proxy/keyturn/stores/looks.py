"""A look at the shared buckets, for people and scrapers: it is not part of the exchange, and changes nothing."""

from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from keyturn.core.looks import BucketLook, LimitTaken, looks
from keyturn.core.messages import Revision
from keyturn.core.model import Micros
from keyturn.stores.links import Link, Script

LOOK = Script.of(files("keyturn.stores").joinpath("lua", "look.lua").read_text(encoding="utf-8"))

MOST = 5_000
"""Entries of a list that are asked for in one call: a server does nothing else meanwhile."""


async def look_at(link: Link, key: str, revision: Revision) -> tuple[BucketLook, ...]:
    """Every bucket of a revision; while tokens move, what several calls tell may be some milliseconds apart.

    Raises:
        StoreLost: no answer.
    """
    rows = [LimitTaken() for _ in revision.limits]
    begin, more = 0, bool(rows)
    while more:
        quotas = revision.quotas[begin : begin + MOST]
        ids = [limit.id for limit in revision.limits]
        told = await link.run(LOOK, key, begin, MOST, len(ids), *ids, *quotas, read=partial(_rows, quotas))
        rows = [_joined(row, part) for row, part in zip(rows, told, strict=True)]
        more = any(len(part.cooling) == MOST or len(part.taken) == MOST for part in told)
        begin += MOST
    return looks(revision, rows)


def _rows(quotas: Sequence[str], answer: Sequence[Any]) -> list[LimitTaken]:
    return [
        LimitTaken(tuple(zip(quotas, taken, strict=True)), _delays(cooling), _delays(closed))
        for taken, cooling, closed in answer
    ]


def _delays(pairs: Sequence[Any]) -> tuple[tuple[Micros, str], ...]:
    flat = iter(pairs)
    return tuple([(delay, quota.decode()) for delay, quota in zip(flat, flat, strict=True)])


def _joined(one: LimitTaken, other: LimitTaken) -> LimitTaken:
    return LimitTaken(one.taken + other.taken, one.cooling + other.cooling, one.closed + other.closed)
