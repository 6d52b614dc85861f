"""The scripts and the state play the same histories and give the same answers.

`KEYTURN_HISTORIES` sets how many histories are played, for a longer run than the usual one.
"""

import copy
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from keyturn.core import closed_buckets, dealing, flows, revisions, snapshots, state, tokens
from keyturn.core.exchange import HEARTBEAT, DemandClass, Flow, FlowDemand, Spent, Throttled, Unsent
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, Revision, RevisionLimit, Snapshot
from keyturn.core.model import SECOND, Micros
from keyturn.core.state import SharedState
from keyturn.stores.scripts import (
    EXCHANGE,
    SNAPSHOT,
    decode_exchange,
    decode_snapshot,
    encode_exchange,
    encode_snapshot,
)

from tests.depth import deep
from tests.stores.fleets import FleetHistory, Pins
from tests.stores.servers import KINDS, Server, server

HISTORIES = int(os.environ.get("KEYTURN_HISTORIES", deep("60", brief="5")))
STEPS = 200

KEY = "t:{p}"

CONSTANTS = {
    "MAX_EVENTS": dealing.MAX_EVENTS,
    "COLLECT": state.COLLECT,
    "DEALT": state.DEALT,
    "DRIFT": state.DRIFT,
    "IDLERS": flows.IDLERS,
    "LAG": flows.LAG,
    "LAPSED": state.LAPSED,
    "MOVED": flows.MOVED,
    "MAX_RATE": state.MAX_RATE,
    "HEARTBEAT": HEARTBEAT,
    "RATE_MEMORY": state.RATE_MEMORY,
    "RECOVERY_GRACE": state.RECOVERY_GRACE,
    "REOPENED": closed_buckets.REOPENED,
    "REPLENISHED": tokens.REPLENISHED,
    "REVISIONS": revisions.REVISIONS,
    "ROLLOVER": flows.ROLLOVER,
    "MAX_CANDIDATES": dealing.MAX_CANDIDATES,
    "UNIT": flows.UNIT,
    "UNLIMITED": tokens.UNLIMITED,
    "USES": tokens.USES,
    "WAKE_MARGIN": state.WAKE_MARGIN,
}

CONSTANTS_OF_SNAPSHOTS = {
    "SAMPLE_DISTANCE": snapshots.SAMPLE_DISTANCE,
    "FLOWS": snapshots.FLOWS,
    "NEXT_RETURNS": snapshots.NEXT_RETURNS,
    "SAMPLES": snapshots.SAMPLES,
    "SCANNED": snapshots.SCANNED,
}

EXACT = """
local function exact(value)
  if type(value) == 'table' then
    for name, part in pairs(value) do value[name] = exact(part) end
  end
  return type(value) == 'number' and '=' .. string.format('%.0f', value) or value
end
local all = redis.call('HGETALL', KEYS[1])
for index = 2, #all, 2 do all[index] = exact(cmsgpack.unpack(all[index])) end
return cjson.encode(all)
"""
"""Gives a hash of records with numbers as text, since cjson writes 14 digits only."""

Answer = tuple[ExchangeResponse, Snapshot | None]

Stored = dict[str, Any]
"""A store's contents, for comparison."""


class InMemory:
    """The state, driven by a history."""

    def __init__(self) -> None:
        self.state = SharedState()
        self._saved: SharedState | None = None

    def exchange(self, now: Micros, run: str, request: ExchangeRequest, pins: Pins | None) -> Answer:
        response = self.state.exchange(now, run, request)
        return response, None if pins is None or response.asks else self.snapshot(now, request.revision, pins)

    def snapshot(self, now: Micros, revision: str, pins: Pins) -> Snapshot | None:
        if revision not in self.state.revisions.views:
            return None
        return snapshots.snapshot(self.state, now, revision, pins)

    def flush(self) -> None:
        self.state = SharedState()

    def save(self) -> None:
        self._saved = copy.deepcopy(self.state)

    def rewind(self) -> None:
        if self._saved:
            self.state = copy.deepcopy(self._saved)

    def stored(self) -> Stored:
        own, queue = self.state.tokens, self.state.queue
        found: Stored = {
            "taken": dict(own.total),
            "clients": {client: (tag, queue._weights[client]) for client, tag in queue._tags.items()},
            "totals": {f"{name}|{client}": number for (name, client), number in queue.totals.items()},
            "ready": {name for _, name in queue.ready},
            "buckets": {bucket: number for bucket, number in own.taken.items() if number},
            "known": set(own.shut.known),
            "probing": dict(own.shut.probes),
            "closed": {bucket: until for until, bucket in own.shut.closed},
            "resting": {quota: until for until, quota in own.shut.resting},
            "seen": {replica: instant for instant, replica in self.state._seen},
        }
        for limit, cooling in own.returns.items():
            found[f"returns:{limit}"] = {member: instant for instant, member in cooling}
        for (revision, limits), (_, ranking) in own.rankings.items():
            found[f"rank:{revision}|{','.join(map(str, limits))}"] = {quota: score for score, quota in ranking}
        for replica, leases in own._leases_of.items():
            found[f"leases:{replica}"] = set(leases)
        return {name: content for name, content in found.items() if content}

    def check(self) -> None:
        """Check that taken tokens are in use or cooling, and that classes that can be served are ready."""
        own = self.state.tokens
        taken: Counter[closed_buckets.Bucket] = Counter()
        for record in own.leases.values():
            taken.update((limit, record.quota) for limit, _ in record.windows)
        for limit, cooling in own.returns.items():
            taken.update((limit, member.partition("@")[2]) for _, member in cooling)
        assert dict(taken) == own.taken
        assert sum(own.total.values()) == sum(taken.values())


class OnServer:
    """The scripts, driven by a history."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client: Any = client  # whose types are those of any protocol
        self._exchange: Any = client.register_script(EXCHANGE.text)
        self._snapshot: Any = client.register_script(SNAPSHOT.text)
        self._saved: dict[bytes, bytes] | None = None

    def exchange(self, now: Micros, run: str, request: ExchangeRequest, pins: Pins | None) -> Answer:
        message = encode_exchange(request, pins, now=now, run=run)
        return decode_exchange(self._exchange(keys=[KEY, f"{KEY}:none"], args=[message]))

    def snapshot(self, now: Micros, revision: str, pins: Pins) -> Snapshot | None:
        message = encode_snapshot(revision, pins, now=now)
        return decode_snapshot(self._snapshot(keys=[KEY, f"{KEY}:none"], args=[message]))

    def flush(self) -> None:
        self._client.flushall()

    def save(self) -> None:
        self._saved = {name: self._client.dump(name) for name in self._client.scan_iter()}

    def rewind(self) -> None:
        if self._saved is not None:
            self._client.flushall()
            for name, content in self._saved.items():
                self._client.restore(name, 86_400_000, content)

    def stored(self) -> Stored:
        found: Stored = {}
        for key in self._client.scan_iter():
            name = key.decode().removeprefix(f"{KEY}:")
            match name.partition(":")[0]:
                case "records":
                    found |= _stored_records(dict(self._hash(key)))
                case "returns" | "rank" | "resting" | "seen":
                    found[name] = dict(self._sorted(key))
                case "closed":
                    found[name] = {_bucket(member): score for member, score in self._sorted(key)}
                case "ready":
                    found[name] = {member for member, _ in self._sorted(key)}
                case "leases":
                    found[name] = {lease for lease, _ in self._hash(key)}
        return {name: content for name, content in found.items() if content}

    def _hash(self, key: bytes) -> list[tuple[str, Any]]:
        text = self._client.eval(EXACT, 1, key)
        flat = iter(json.loads(text))
        return [(field, _exact(value)) for field, value in zip(flat, flat, strict=True)]

    def _sorted(self, key: bytes) -> list[tuple[str, int]]:
        entries = self._client.zrange(key, 0, -1, withscores=True)
        return [(member.decode(), int(score)) for member, score in entries]

    def lasting(self) -> list[bytes]:
        """Return keys that never expire, or earlier than the longest window."""
        return [key for key in self._client.scan_iter() if self._client.ttl(key) < 80_000]


def _exact(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _exact(part) for name, part in value.items()}
    return int(value[1:]) if isinstance(value, str) and value.startswith("=") else value


def _stored_records(records: dict[str, Any]) -> Stored:
    """The contents of the records, for comparison."""
    state = records.pop("state")
    kinds: dict[str, dict[str, Any]] = {"quota": {}, "client": {}, "flow": {}}
    for field, record in records.items():
        kind, _, name = field.partition(" ")
        kinds.setdefault(kind, {})[name] = record
    buckets = {
        (limit, name): bucket for name, quota in kinds["quota"].items() for limit, bucket in _pairs(quota["buckets"])
    }
    return {
        "taken": dict(_pairs(state["taken"])),
        "clients": {client: (own["tag"], own["weight"]) for client, own in kinds["client"].items()},
        "totals": {flow: total["waiting"] for flow, total in kinds["flow"].items()},
        "buckets": {name: bucket["taken"] for name, bucket in buckets.items() if bucket["taken"]},
        "known": {name for name, bucket in buckets.items() if bucket["known"] == state["doubts"]},
        "probing": {name: bucket["probing"] for name, bucket in buckets.items() if "probing" in bucket},
    }


def _pairs(content: Any) -> Iterable[tuple[str, Any]]:
    """The entries of a table: an empty one looks like a list."""
    return content.items() if content else ()


def _bucket(name: str) -> tuple[str, str]:
    limit, _, quota = name.partition(" ")
    return limit, quota


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Run a server."""
    with server(request.param) as one:
        yield one


def request(serial: int = 1, **told: Any) -> ExchangeRequest:
    """Return a request of a replica that knows no epoch yet."""
    return ExchangeRequest("r", serial, serial - 1, "", 0, 1, REVISION.name, full=True, **told)


REVISION = Revision("one", ("k0", "k1"), (RevisionLimit("10000000", 5, 10 * SECOND),), 3 * SECOND)


def test_a_request_is_small_json() -> None:
    """Durations are integers, and default fields are left out."""
    ended = (Spent("1", 5), Spent("4", -5, answered=False), Unsent("2"), Throttled("3", 0, 7, (0,)))
    demands = (FlowDemand(Flow("a", DemandClass((0, 1))), 2, 3), FlowDemand(Flow("a", DemandClass((), "k0")), 2, 1))
    message = json.loads(encode_exchange(request(settlements=ended, demands=demands), None))
    assert message["settlements"] == [["s", "1", 5], ["n", "4", -5], ["u", "2"], ["t", "3", 0, 7, [0]]]
    assert message["demands"] == [["a", 2, 3, "0,1"], ["a", 2, 1, "", "k0"]]
    assert not {"held", "spelled", "pins", "now", "run"} & set(message)


def test_numbers_are_alike(running: Server) -> None:
    """Constants of both texts are equal."""
    for script, constants in ((EXCHANGE, CONSTANTS), (SNAPSHOT, CONSTANTS_OF_SNAPSHOTS)):
        lines = re.findall(r"^local ([A-Z_]+) = ([^-\n]+)", script.text, re.MULTILINE)
        told = {name: text for name, text in lines if name in constants}
        head = "local SECOND, MILLISECOND = 1000000, 1000 "
        with redis.Redis(port=running.port) as client:
            for name, text in told.items():
                known = f"local HEARTBEAT = {told.get('HEARTBEAT', '0')} "
                value: Any = client.eval(f"{head}{known}return string.format('%.0f', {text})", 0)
                assert int(value) == constants[name], name
        assert set(told) == set(constants)


def test_a_full_memory_leaves_no_trace(running: Server) -> None:
    """A full server denies the first write, so the request has no effect and is not taken for a repeated one."""
    with redis.Redis(port=running.port) as client:
        client.flushall()
        scripts = OnServer(client)
        scripts.exchange(1, "", request(spelled=REVISION), None)
        demands = (FlowDemand(Flow("a", DemandClass((0,))), 1, 1),)
        lease = scripts.exchange(2, "", request(2, demands=demands), None)[0].grants[0].lease
        before = scripts.stored()
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.exceptions.ResponseError):
                scripts.exchange(3, "", request(3, settlements=(Unsent(lease),)), None)
        finally:
            client.config_set("maxmemory", 0)
        assert scripts.stored() == before
        assert not scripts.exchange(4, "", request(3, settlements=(Unsent(lease),)), None)[0].asks


def test_another_replica_is_woken_by_a_message(running: Server) -> None:
    """The message holds the delay in microseconds, none for reserved tokens."""
    with redis.Redis(port=running.port) as client:
        client.flushall()
        scripts = OnServer(client)
        subscription: Any = client.pubsub()
        subscription.subscribe(f"{KEY}:wake:r")
        subscription.get_message(timeout=30)
        probes = FlowDemand(Flow("b", DemandClass((0,))), 1, 2)
        first = replace(request(spelled=REVISION, demands=(probes,)), replica="s")
        leases = [grant.lease for grant in scripts.exchange(1, "", first, None)[0].grants]
        demands = (FlowDemand(Flow("a", DemandClass((0,))), 1, 9),)
        assert not scripts.exchange(2, "", request(demands=demands), None)[0].grants
        settles = replace(first, serial=2, heard=1, demands=(), settlements=tuple(Spent(lease, 0) for lease in leases))
        told, _ = scripts.exchange(3, "", settles, None)
        assert told.wake == (("r", 0),)
        assert subscription.get_message(timeout=30)["data"] == b"0"
        assert len(scripts.exchange(4, "", request(2, demands=()), None)[0].grants) == 8


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_scripts_and_state_are_alike(running: Server, seed: int) -> None:
    """In any history of a fleet answers and stored states are equal.

    All keys expire one day if no replica calls any more.
    """
    with redis.Redis(port=running.port) as client:
        client.flushall()
        memory, scripts = InMemory(), OnServer(client)
        history = FleetHistory(seed, [memory, scripts], crowd=400 if seed % 5 == 4 else 5)
        for step in range(STEPS):
            history.step()
            memory.check()
            if step % 20 == 0 or step == STEPS - 1:
                assert scripts.stored() == memory.stored()
        assert history.granted > 20
        assert scripts.lasting() == []
