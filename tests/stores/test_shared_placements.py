import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from keyturn.core.errors import StoreLost
from keyturn.core.model import SECOND
from keyturn.core.placements import SILENT
from keyturn.stores.links import Link
from keyturn.stores.memory import LocalPlacements
from keyturn.stores.shared_placements import Placements, SharedPlacements

from tests.stores.servers import KINDS, Server, server

HERE, THERE = {"#1": "a", "#2": "a"}, {"#1": "b", "#2": "a"}


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Run a server."""
    with server(request.param) as one:
        yield one


@pytest.fixture
async def link(running: Server) -> AsyncIterator[Link]:
    """Return a link to it, emptied."""
    running.ask("FLUSHALL")
    link = Link(running.url, shown="redis://here", timeout=30 * SECOND)
    yield link
    await link.close()


async def tell_each_other(one: Placements, other: Placements) -> None:
    """Check that revisions are ranked by appearance and learn each other's placement."""
    own, others = await one.name(HERE)
    assert (own.placement, own.rank, own.since, others) == (HERE, 1, 0, [])
    own, (first,) = await other.name(THERE)
    assert (own.placement, own.rank, first.placement, first.rank) == (THERE, 2, HERE, 1)
    own, (second,) = await one.name(HERE)
    assert (own.rank, second.placement, second.rank) == (1, THERE, 2)
    assert 0 <= second.heard <= second.since < SILENT
    assert own.since > second.since, "it appeared before the other"
    assert (await other.name(HERE))[0].rank == 1, "the same placement is the same revision, whoever names it"


async def test_revisions_in_memory_know_each_other() -> None:
    """Revisions in one process's memory learn of each other."""
    ticks = iter(range(0, 100, 10))
    registry = LocalPlacements(lambda: next(ticks))
    await tell_each_other(registry, registry)


async def test_revisions_in_the_store_know_each_other(link: Link) -> None:
    """Revisions of two replicas on one server learn of each other."""
    await tell_each_other(SharedPlacements(link, "p"), SharedPlacements(link, "p"))


async def test_what_the_store_forgets_is_told_anew(link: Link, running: Server) -> None:
    """A placement that the store forgot, as a whole or in part, is sent again."""
    one, other = SharedPlacements(link, "p"), SharedPlacements(link, "p")
    await one.name(HERE)
    running.ask("FLUSHALL")
    assert (await one.name(HERE))[0].rank == 1
    (name,) = [key for key in running.ask("KEYS", "*") if key.startswith("p:{~placements}:")]
    running.ask("DEL", name)
    await other.name(THERE)
    (revision,) = (await one.name(HERE))[1]
    assert revision.placement == THERE
    assert [revision.placement for revision in (await other.name(THERE))[1]] == [HERE]


async def test_a_revision_of_many_keys_is_told_in_parts(link: Link) -> None:
    """A large placement is sent in parts, since a command has a bounded number of values."""
    many = {f"#{number}": "a" for number in range(9_500)}
    await SharedPlacements(link, "p").name(many)
    _, (told,) = await SharedPlacements(link, "p").name({})
    assert told.placement == many


async def test_a_placement_that_is_not_there_as_a_whole_is_not_believed(link: Link, running: Server) -> None:
    """An incomplete placement is ignored and asked for again."""
    one, other = SharedPlacements(link, "p"), SharedPlacements(link, "p")
    await one.name(HERE)
    (name,) = [key for key in running.ask("KEYS", "*") if key.startswith("p:{~placements}:")]
    running.ask("HDEL", name, "#1")
    assert (await other.name(THERE))[1] == []
    await one.name(HERE)
    assert [revision.placement for revision in (await other.name(THERE))[1]] == [HERE]


async def test_a_store_that_does_not_answer_is_lost() -> None:
    """A store that does not answer is lost within its timeout."""
    link = Link("redis://127.0.0.1:1", shown="redis://here", timeout=SECOND // 10)
    with pytest.raises(StoreLost):
        async with asyncio.timeout(30):
            await SharedPlacements(link, "p").name(HERE)
    await link.close()
