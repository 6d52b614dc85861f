"""The script beside the ledger: the same histories, the same answers, the same state (both follow one text).

`KEYTURN_HISTORIES` sets how many histories are played, for a longer run than the usual one.
"""

import copy
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from proxy.core import buckets, exchange, forecast, ledger, line, outlook, rehearsal
from proxy.core.ledger import Ledger
from proxy.core.letters import Call, Reply
from proxy.core.model import Micros
from proxy.stores.codec import SCRIPT, decode, encode
from tests.core.worlds import check_conservation
from tests.stores.histories import History
from tests.stores.servers import KINDS, Server, server

HISTORIES = int(os.environ.get("KEYTURN_HISTORIES", "5"))
STEPS = 200
SHARED = -97
"""A history in which a lease counts under different limits on different quotas, by terms with shared keys."""

KEY = "t:{p}"

SORTED = {"cooling", "in_use", "parked", "probing", "clients", "limits", "words", "terms_used", "expiry"}
"""What both hold as a set that is sorted by score."""

SIZES, RANKED = 2**17, 2**36
"""How a ranking's score is made of the tokens at hand and the last use."""

CONSTANTS = {
    "ALIKE": outlook.ALIKE,
    "CLOSE": outlook.CLOSE,
    "CROWDED": outlook.CROWDED,
    "DEAL": ledger.DEAL,
    "EVENTS": forecast.EVENTS,
    "FEWEST": outlook.FEWEST,
    "FINEST": outlook.FINEST,
    "GRACE": exchange.GRACE,
    "HOLD": ledger.HOLD,
    "HORIZON": forecast.HORIZON,
    "KEEP": ledger.KEEP,
    "LAG": line.LAG,
    "MATURE": buckets.MATURE,
    "PULSE": exchange.PULSE,
    "NAMES": outlook.NAMES,
    "RIVALS": outlook.RIVALS,
    "ROLLOVER": line.ROLLOVER,
    "ROWS": rehearsal.ROWS,
    "SAMPLES": outlook.SAMPLES,
    "STEP": outlook.STEP,
    "TRIP_START": buckets.TRIP_START,
    "UNIT": line.UNIT,
    "UNLIMITED": buckets.UNLIMITED,
    "WAKE_MARGIN": ledger.WAKE_MARGIN,
}

NARROW = {"ALIKE": 2, "CROWDED": 6, "EVENTS": 64, "HORIZON": 4, "NAMES": 12, "RIVALS": 3}
"""Numbers with which few clients are many."""

State = dict[str, dict[str, Any]]
"""What a store holds, by kind and limit, for comparison."""


class InMemory:
    """The ledger in the hands of a history."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._saved: Ledger | None = None

    def exchange(self, now: Micros, run: str, call: Call) -> Reply:
        return self.ledger.exchange(now, run, call)

    def flush(self) -> None:
        self.ledger = Ledger()

    def save(self) -> None:
        self._saved = copy.deepcopy(self.ledger)

    def rewind(self) -> None:
        if self._saved:
            self.ledger = copy.deepcopy(self._saved)

    def state(self) -> State:
        found: State = {}
        for name, calendar in self.ledger.buckets.calendars.items():
            found[f"taken:{name}"] = dict(calendar.taken)
            found[f"warm:{name}"] = dict.fromkeys(calendar.warm, 0)
            for part in ("cooling", "in_use", "parked", "probing"):
                found[f"{part}:{name}"] = {member: score for score, member in getattr(calendar, part)}
        for terms, view in self.ledger.buckets.views.items():
            for limits, ranking in view.rankings.items():
                found[f"ranking:{terms}|{','.join(limits)}"] = {
                    quota: min(-tokens, SIZES - 1) for (tokens, _), quota in ranking
                }
        queue = self.ledger.line
        for need, group in queue.groups.items():
            found[f"clients:{need.name}"] = {client: tag for tag, client in group.clients}
        found["shares"] = {client: f"{share.tag} {share.weight}" for client, share in queue._shares.items()}
        found["provided"] = dict.fromkeys(queue._provided, 0)
        found["limits"] = dict.fromkeys(self.ledger.buckets.calendars, 0)
        found["words"] = {replica: word for word, replica in self.ledger._words}
        found["terms_used"] = {terms: used for used, terms in self.ledger._terms}
        found["expiry"] = {replica: instant for instant, replica in queue._expiry}
        return {name: content for name, content in found.items() if content}


class OnServer:
    """The script in the hands of a history."""

    def __init__(self, client: "redis.Redis", script: str = SCRIPT) -> None:
        self._client: Any = client  # whose types are those of any protocol
        self._run: Any = client.register_script(script)
        self._saved: dict[bytes, bytes] | None = None

    def exchange(self, now: Micros, run: str, call: Call) -> Reply:
        return decode(self._run(keys=[KEY, f"{KEY}:none"], args=[encode(call, now=now, run=run)]), call)

    def flush(self) -> None:
        self._client.flushall()

    def save(self) -> None:
        self._saved = {name: self._client.dump(name) for name in self._client.scan_iter()}

    def rewind(self) -> None:
        if self._saved is not None:
            self._client.flushall()
            for name, content in self._saved.items():
                self._client.restore(name, 86_400_000, content)

    def state(self) -> State:
        found: State = {}
        for key in self._client.scan_iter():
            name = key.decode().removeprefix(f"{KEY}:")
            match name.partition(":")[0]:
                case "taken":
                    found[name] = {quota.decode(): int(tokens) for quota, tokens in self._client.hgetall(key).items()}
                case "ranking":
                    entries = self._client.zrange(key, 0, -1, withscores=True)
                    found[name] = {quota.decode(): SIZES - int(score // RANKED) for quota, score in entries}
                case "state":
                    provided = (self._client.hget(key, "provided") or b"").decode().split()
                    found.update({"provided": dict.fromkeys(provided, 0)} if provided else {})
                case "shares":
                    found[name] = {client.decode(): tag.decode() for client, tag in self._client.hgetall(key).items()}
                case "warm":
                    found[name] = {quota.decode(): 0 for quota in self._client.smembers(key)}
                case part if part in SORTED:
                    entries = self._client.zrange(key, 0, -1, withscores=True)
                    found[name] = {member.decode(): int(score) for member, score in entries}
        return found

    def lasting(self) -> list[bytes]:
        """Keys that will be there for ever, or not for as long as the longest window."""
        return [key for key in self._client.scan_iter() if self._client.ttl(key) < 80_000]


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server."""
    with server(request.param) as one:
        yield one


def test_numbers_are_alike(running: Server) -> None:
    """What stands in both texts as a number is the same number."""
    head = SCRIPT.partition("local floor")[0].replace("cjson.decode(ARGV[1])", "nil")
    told = running.ask("EVAL", f"{head} return {{{', '.join(CONSTANTS)}}}", 1, "k")
    assert dict(zip(CONSTANTS, told, strict=True)) == CONSTANTS


@pytest.mark.parametrize("seed", [*range(HISTORIES), SHARED])
def test_script_and_ledger_are_alike(running: Server, seed: int) -> None:
    """In any history of a fleet, with crashes, lost letters, lost state and stepping clocks, the answers are equal.

    So is what is stored in the end; all of it will be gone one day if nobody asks any more.
    """
    with redis.Redis(port=running.port) as client:
        client.flushall()
        memory, script = InMemory(), OnServer(client)
        history = History(seed, [memory, script])
        for _ in range(STEPS):
            history.step()
        assert history.grants > 20
        assert script.state() == memory.state()
        check_conservation(memory.ledger)
        assert script.lasting() == []


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_script_and_ledger_are_alike_where_many_wait(
    running: Server, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turns beyond the horizon are equal also when not every client and row is looked at one by one."""
    script = SCRIPT
    for name, number in NARROW.items():
        monkeypatch.setattr(forecast if hasattr(forecast, name) else outlook, name, number)
        assert f"local {name} = " in script
        script = re.sub(f"local {name} = .*", f"local {name} = {number}", script, count=1)
    with redis.Redis(port=running.port) as client:
        client.flushall()
        history = History(seed, [InMemory(), OnServer(client, script)])
        for _ in range(STEPS):
            history.step()
        assert history.grants > 20
