"""The script beside the ledger: the same histories, the same answers (both follow one text)."""

from collections.abc import Iterator

import pytest
import redis

from proxy.core.ledger import Ledger
from proxy.core.letters import Call, Reply
from proxy.core.model import Micros
from proxy.stores.codec import SCRIPT, decode, encode
from tests.stores.histories import History
from tests.stores.servers import KINDS, Server, server


class InMemory:
    """The ledger in the hands of a history."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def exchange(self, now: Micros, run: str, call: Call) -> Reply:
        return self.ledger.exchange(now, run, call)

    def flush(self) -> None:
        self.ledger = Ledger()


class OnServer:
    """The script in the hands of a history."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._run = client.register_script(SCRIPT)

    def exchange(self, now: Micros, run: str, call: Call) -> Reply:
        return decode(self._run(keys=["t:{p}"], args=[encode(call, now=now, run=run)]), call)

    def flush(self) -> None:
        self._client.flushall()


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server."""
    with server(request.param) as one:
        yield one


@pytest.mark.parametrize("seed", range(12))
def test_script_and_ledger_answer_alike(running: Server, seed: int) -> None:
    """In any history of a fleet, with crashes, lost letters, lost state and stepping clocks, the answers are equal."""
    with redis.Redis(port=running.port) as client:
        client.flushall()
        history = History(seed, [InMemory(), OnServer(client)])
        for _ in range(400):
            history.step()
    assert history.grants > 20
