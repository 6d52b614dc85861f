import asyncio
from dataclasses import dataclass, field

from keyturn.core.events import Event
from keyturn.core.http import Answer, Request
from keyturn.telemetry import Telemetry

from tests.telemetry.samples import families, value
from tests.web.callers import Access, Gateway, World, an_answer, get

CONNECTIONS, EACH = 20, 500

METHODS = (b"GET", b"PROPFIND", b"PURGE", b"MKCOL", b"REPORT", b"SUBSCRIBE", b"LINK", b"MERGE")
"""The parser of HTTP lets no invented ones through."""


@dataclass
class Counted(World):
    """A data listener whose requests are counted by the real telemetry."""

    telemetry: Telemetry = field(default_factory=Telemetry)

    def observe(self, event: Event) -> None:
        """Count it."""
        self.telemetry.observe(event)

    @property
    def series(self) -> set[tuple[str, ...]]:
        """Their names and labels."""
        return {
            (sample.name, *map(str, sorted(sample.labels.items())))
            for family in families(self.telemetry.metrics)
            for sample in family.samples
        }

    async def crowd(self, connection: int, number: int) -> None:
        """Requests of which no two have a path, a query or an unknown credential in common; every other is known."""
        requests = []
        for index in range(connection * EACH, connection * EACH + number):
            token = b"X-Api-Key: token" if index % 2 else b"X-Api-Key: nobody-%d" % index
            method = METHODS[index // 2 % len(METHODS)]
            last = index == connection * EACH + number - 1
            requests.append(get(b"/c/%d?q=%d" % (index, index), token, method=method, close=last))
        answers = await self.ask(b"".join(requests))
        assert answers.count(b"HTTP/1.1 ") == number


async def answer(_: Request) -> Answer:
    """The same to everybody."""
    return an_answer(b"ok")


async def test_ten_thousand_paths_methods_and_callers_add_no_series() -> None:
    """Values invented by callers are folded, and none is kept."""
    world = Counted(access=Access(required=True), gateway=Gateway(answer))
    async with world.running():
        await world.crowd(0, 2 * len(METHODS))
        before = world.series
        await asyncio.gather(*(world.crowd(number, EACH) for number in range(1, CONNECTIONS)))
        await world.crowd(0, EACH)
        assert world.series - before == set()
        metrics = world.telemetry.metrics
        labels = {"pool": "team", "client": "ci", "method": "other", "code": "200", "outcome": "forwarded"}
        assert value(metrics, "requests_total", **labels) == (CONNECTIONS * EACH / 2 + len(METHODS)) * 7 / 8
        labels = {"pool": "none", "client": "none", "reason": "unauthenticated"}
        assert value(metrics, "refused_total", **labels) == CONNECTIONS * EACH / 2 + len(METHODS)
