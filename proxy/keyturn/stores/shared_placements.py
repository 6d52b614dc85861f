"""The revisions that are in use, by which keys that change their pool are found (`core.placements`).

In Redis: `prefix:{~placements}`, a hash with a field for each revision (its rank, when it appeared, when it was last
named), and beside it a hash for each with the pool of each key. Both go when nobody has named a revision for an hour.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from keyturn.core.errors import StoreLost
from keyturn.core.model import Micros
from keyturn.core.placements import REVISION_LIFETIME, SILENT, Placement, PlacementRevision, name_of
from keyturn.stores.links import Link, Script

_BATCH = 1000
"""Keys that are told of in one call."""

_NAMED = Script.of("""
local base, name, keys, silent, kept = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('HLEN', base .. ':' .. name) ~= keys then return {} end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local rank, since, heard = string.match(redis.call('HGET', base, name) or '', '^(%d+) (%d+) (%d+)$')
rank = rank or redis.call('HINCRBY', base, 'ranks', 1)
if not heard or now - heard > silent then since = now end
redis.call('HSET', base, name, string.format('%d %d %d', rank, since, now))
local told, entries = {}, redis.call('HGETALL', base)
for index = 1, #entries, 2 do
  local rank, since, heard = string.match(entries[index + 1], '^(%d+) (%d+) (%d+)$')
  if rank and now - heard > kept then
    redis.call('HDEL', base, entries[index])
  elseif rank then
    told[#told + 1] = { entries[index], rank, string.format('%d', now - since), string.format('%d', now - heard) }
  end
end
redis.call('PEXPIRE', base, math.floor(kept / 1000))
redis.call('PEXPIRE', base .. ':' .. name, math.floor(kept / 1000))
return told
""")
_TOLD = Script.of("""
local base = KEYS[1] .. ':' .. ARGV[1]
redis.call('HSET', base, unpack(ARGV, 3))
redis.call('PEXPIRE', base, ARGV[2])
""")
_READ = Script.of("return redis.call('HGETALL', KEYS[1] .. ':' .. ARGV[1])")


class Placements(Protocol):
    """The store of the revisions."""

    async def name(self, placement: Placement) -> tuple[PlacementRevision, Sequence[PlacementRevision]]:
        """Say that this replica goes by a revision; returns it as it is known, and the others.

        Raises:
            StoreLost: no answer.
        """


class SharedPlacements:
    """Those of all replicas that share a store under one prefix."""

    def __init__(self, link: Link, prefix: str) -> None:
        self._link = link
        self._base = f"{prefix}:{{~placements}}"
        self._own: tuple[str, Placement] = ("", {})
        self._read: dict[str, Placement] = {}
        """The placements of others, which do not change under their names."""

    async def name(self, placement: Placement) -> tuple[PlacementRevision, Sequence[PlacementRevision]]:
        """See `Placements`."""
        if self._own[1] is not placement:
            self._own = (name_of(placement), placement)
        name, told = self._own[0], await self._named(placement)
        if name not in told:
            await self._tell(name, placement)
            told = await self._named(placement)
        if name not in told:
            raise StoreLost("The shared store did not keep what it was told of the keys.")
        self._read = {other: known for other in told if other != name and (known := await self._placement(other))}
        others = [PlacementRevision(known, *told[other]) for other, known in self._read.items()]
        return PlacementRevision(placement, *told[name]), others

    async def _named(self, placement: Placement) -> Mapping[str, tuple[int, Micros, Micros]]:
        name, keys = self._own[0], len(placement)
        found: Mapping[str, tuple[int, Micros, Micros]] = await self._link.run(
            _NAMED, self._base, name, keys, SILENT, REVISION_LIFETIME, read=_revisions
        )
        return found

    async def _tell(self, name: str, placement: Placement) -> None:
        pairs = list(placement.items())
        for begin in range(0, len(pairs), _BATCH):
            some = chain.from_iterable(pairs[begin : begin + _BATCH])
            await self._link.run(_TOLD, self._base, name, REVISION_LIFETIME // 1000, *some)

    async def _placement(self, name: str) -> Placement:
        """Another revision's placement; empty while it is not there as a whole."""
        if name in self._read:
            return self._read[name]
        found: Placement = await self._link.run(_READ, self._base, name, read=_placement)
        return found if name_of(found) == name else {}


def _revisions(answer: Any) -> Mapping[str, tuple[int, Micros, Micros]]:
    return {name.decode(): (int(rank), int(since), int(heard)) for name, rank, since, heard in answer}


def _placement(answer: Sequence[bytes]) -> Placement:
    flat: Iterator[bytes] = iter(answer)
    return {key.decode(): pool.decode() for key, pool in zip(flat, flat, strict=True)}
