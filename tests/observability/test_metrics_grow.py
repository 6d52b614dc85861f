"""Every row of the table of metrics, with its numbers: one process is led through what each counts, then scraped."""

import math
import platform
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from keyturn import __version__
from prometheus_client.parser import text_string_to_metric_families

from tests.observability.documents import metrics
from tests.process import Keyturn, calling, request, serving, until, write
from tests.vectors.origin import OK, WAIT, Answering, Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRODUCED = {"_bucket", "_sum", "_count"}

LIMITS = {"tight": (1, "60s"), "brisk": (1, "300ms")}
POOLS = ("main", "busy", "plan", "odd", "foreign", "dead", "left", "held", "generous", *LIMITS)
"""Each has a client of its name and one key, `key-…`, so that none counts what another does."""


def answer(status: str, *fields: str, body: bytes = b"{}") -> Answering:
    """The upstream's answers, by path."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields])
    return Answering((head.encode() + b"\r\n\r\n" + body,))


ANSWERS = {
    b"/month": answer("200 OK", "X-RateLimit-Remaining-Month: 41"),
    b"/busy": answer("503 Service Unavailable"),
    b"/broken": Answering((), "reset"),
    b"/plan": answer("429 Too Many Requests", body=b'{"error":{"name":"serviceLimitExhausted","message":"Used up."}}'),
    b"/odd": answer("200 OK", "X-RateLimit-Remaining: some"),
    b"/foreign": answer("200 OK", "X-RateLimit-Limit: 100", "X-RateLimit-Remaining: 90", "X-RateLimit-Reset: 60"),
    b"/dead": answer("401 Unauthorized", body=b'{"error":{"name":"AuthenticationError","message":"Invalid API Key."}}'),
    b"/me": answer("401 Unauthorized", body=b'{"error":{"name":"AuthenticationError","message":"Invalid API Key."}}'),
    b"/generous": answer("200 OK", "X-RateLimit-Limit: 300", "X-RateLimit-Remaining: 290", "X-RateLimit-Reset: 60"),
    b"/never": Answering(then="never"),
}


def settings(url: str, **more: Any) -> dict[str, Any]:
    """A configuration with a pool for each thing that is counted."""
    bounds = {pool: dict(zip(("requests", "window"), LIMITS.get(pool, (100, "60s")), strict=True)) for pool in POOLS}
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": {"url": url},
        "retry": {"attempts": 3, "budget": 1},
        "queue": {"max_wait": "300s", "join": True},
        "pools": {
            pool: {
                "guard": "0ms",
                "limits": [bounds[pool]],
                "keys": [{"name": f"key-{pool}", "secret": f"key-of-{pool}"}],
            }
            for pool in POOLS
        },
        "clients": [{"name": pool, "token": f"token-of-{pool}", "pool": pool} for pool in POOLS],
        **more,
    }


def of(pool: str | None, target: str, **more: Any) -> bytes:
    """A request of a pool's client."""
    return request(target, token=pool and f"token-of-{pool}", **more)


@dataclass(frozen=True)
class Scraped:
    """Types and samples, as a scraper has them; both by full names."""

    types: Mapping[str, str]
    samples: Mapping[str, Mapping[frozenset[tuple[str, str]], float]]

    @classmethod
    def read(cls, text: str) -> "Scraped":
        """A scrape in the text format, without what every program in Python tells."""
        types: dict[str, str] = {}
        samples: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
        for family in text_string_to_metric_families(text):
            if not family.name.startswith("keyturn_"):
                continue
            types[f"{family.name}_total" if family.type == "counter" else family.name] = family.type
            for name, labels, value, *_ in family.samples:
                samples.setdefault(name, {})[frozenset(labels.items())] = value
        return cls(types, samples)

    def value(self, name: str, **labels: str) -> float:
        """The number of exactly these labels."""
        return self.samples[f"keyturn_{name}"][frozenset(labels.items())]

    def labels(self, name: str) -> set[frozenset[str]]:
        """The names of the labels of a metric's series, each way that there is."""
        series = [name, *(name + part for part in PRODUCED)] if self.types[name] == "histogram" else [name]
        sets = [labels for one in series for labels in self.samples.get(one, {})]
        return {frozenset(key for key, _ in labels) - {"le"} for labels in sets}


async def lead(keyturn: Keyturn, origin: Origin) -> None:
    """Through what ends at once."""
    codes = {"main": 200, "busy": 503, "plan": 429, "odd": 200, "foreign": 200, "dead": 503}
    targets = {"main": "/month"}
    for pool, code in codes.items():
        assert (await keyturn.ask(of(pool, targets.get(pool, f"/{pool}")))).status == code, pool
    assert (await keyturn.ask(of("main", "/month", method="PUT", body=b"12345"))).status == 200
    assert (await keyturn.ask(of("busy", "/broken", method="POST"))).status == 502
    assert (await keyturn.ask(of("main", "/x", method="TRACE"))).status == 405
    assert (await keyturn.ask(b"\x16\x03\x01\r\n\r\n")).status == 400
    for _ in range(3):
        assert (await keyturn.ask(of("generous", "/generous"))).status == 200
    await leave(keyturn, origin)
    await join(keyturn, origin)


async def leave(keyturn: Keyturn, origin: Origin) -> None:
    """Go before the answer comes."""
    async with calling(keyturn.data) as caller:
        caller.send(of("left", "/never"))
        await until(lambda: origin.arrived(b"/never"), "it is at the upstream")
        caller.cut()
    await until(origin.arrived(b"/never")[0].left.is_set, "the upstream is left, too")


async def join(keyturn: Keyturn, origin: Origin) -> None:
    """Three that want the same wait for their turn while a first one has it."""
    origin.answers[b"/first"] = first = Answering((WAIT, OK))
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(keyturn.data)) for _ in range(4)]
        callers[0].send(of("brisk", "/first"))
        await until(lambda: origin.arrived(b"/first"), "it has its turn")
        for caller in callers[1:]:
            caller.send(of("brisk", "/same"))
        await keyturn.waiting(1)
        assert (await keyturn.ask(of(None, "/after-them"))).status == 401
        first.seen.set()
        assert [(await caller.reply()).status for caller in callers] == [200] * 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scraped(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scraped]:
    """The metrics at the end, while one request is in flight and one waits."""
    origin = Origin(dict(ANSWERS))
    async with origin.open(), AsyncExitStack() as stack:
        path = write(tmp_path_factory.mktemp("metrics"), settings(origin.url))
        keyturn = await stack.enter_async_context(serving(path))
        await lead(keyturn, origin)
        assert (await keyturn.ask(of("tight", "/x"))).status == 200
        for data in (of("held", "/never"), of("tight", "/waits")):
            (await stack.enter_async_context(calling(keyturn.data))).send(data)
        await until(lambda: len(origin.arrived(b"/never")) == 2, "it is at the upstream")
        await keyturn.waiting(1)
        path.write_text("listen: nonsense")

        async def settled() -> bool:
            numbers = [await keyturn.metric(f"keyturn_{name}") for name in ("reload_refused_total", "connections")]
            told = [await keyturn.metric("keyturn_exchange_grants_sum", pool=pool) for pool in ("main", "busy")]
            return numbers == [1, 2] and told[0] >= 2 and told[1] >= 4  # what has no exchange is told late

        await until(settled, "the reload is refused, who was answered has gone, and all leases are told of")
        yield Scraped.read((await keyturn.page("/metrics")).body.decode())


@dataclass(frozen=True)
class Between:
    """Equal to any number from `least` to `most`."""

    least: float
    most: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and self.least <= other <= self.most

    __hash__ = None  # type: ignore[assignment]


SOME = Between(1e-9, 120)
WHO = {pool: {"pool": pool, "client": pool} for pool in POOLS}
NOBODY = {"pool": "none", "client": "none"}


def asked(pool: str, code: int, outcome: str, method: str = "GET") -> dict[str, str]:
    """The labels of requests."""
    who = WHO.get(pool, NOBODY)
    return {**who, "method": method, "code": str(code), "outcome": outcome}


ROWS: list[tuple[str, dict[str, str], float | Between]] = [
    ("requests_total", asked("main", 200, "forwarded"), 1),
    ("requests_total", asked("main", 200, "forwarded", "PUT"), 1),
    ("requests_total", asked("busy", 502, "failed", "POST"), 1),
    ("requests_total", asked("left", 0, "gone"), 1),
    ("requests_total", asked("nobody", 401, "refused"), 1),
    ("requests_total", asked("brisk", 200, "forwarded"), 4),
    ("request_seconds_count", WHO["main"], 2),
    ("request_seconds_sum", WHO["main"], SOME),
    ("request_seconds_sum", WHO["brisk"], Between(3 * 0.3, 120)),
    ("queue_wait_seconds_count", WHO["main"], 2),
    ("queue_wait_seconds_sum", WHO["brisk"], Between(0.3, 120)),
    ("upstream_seconds_count", {"pool": "busy"}, 2),
    ("upstream_seconds_sum", {"pool": "busy"}, SOME),
    ("overhead_seconds_count", {"pool": "main"}, 2),
    ("overhead_seconds_sum", {"pool": "main"}, SOME),
    ("waiting", WHO["tight"], 1),
    ("waiting", WHO["main"], 0),
    ("in_flight", {"pool": "held"}, 1),
    ("in_flight", {"pool": "main"}, 0),
    ("estimated_wait_seconds", WHO["tight"], Between(1, 240)),
    ("tokens_available", {"pool": "held", "quota": "key-held", "limit": "100/60s"}, 99),
    ("tokens_available", {"pool": "tight", "quota": "key-tight", "limit": "1/60s"}, 0),
    ("tokens_limit", {"pool": "held", "quota": "key-held", "limit": "100/60s"}, 100),
    ("tokens_limit", {"pool": "tight", "quota": "key-tight", "limit": "1/60s"}, 1),
    ("key_state", {"pool": "main", "key": "key-main", "state": "ready"}, 1),
    ("key_state", {"pool": "dead", "key": "key-dead", "state": "ready"}, 0),
    ("key_state", {"pool": "dead", "key": "key-dead", "state": "quarantined"}, 1),
    ("upstream_responses_total", {"pool": "main", "key": "key-main", "code": "200"}, 2),
    ("upstream_responses_total", {"pool": "busy", "key": "key-busy", "code": "503"}, 3),
    ("upstream_responses_total", {"pool": "busy", "key": "key-busy", "code": "0"}, 1),
    ("upstream_throttled_total", {"pool": "plan", "key": "key-plan", "kind": "plan"}, 1),
    ("upstream_throttled_total", {"pool": "main", "key": "key-main", "kind": "window"}, 0),
    ("upstream_fields_ignored_total", {"pool": "odd", "field": "x-ratelimit-remaining"}, 1),
    ("foreign_tokens_total", {"pool": "foreign", "quota": "key-foreign"}, 9),
    ("foreign_tokens_total", {"pool": "main", "quota": "key-main"}, 0),
    ("refused_total", {**WHO["dead"], "reason": "no_key"}, 1),
    ("refused_total", {**NOBODY, "reason": "unauthenticated"}, 1),
    ("authentication_failures_total", {"reason": "missing", "answered": "at_once"}, 1),
    ("breakers_open", {"pool": "main", "scope": "pool"}, 0),
    ("connections", {}, 2),
    ("body_bytes", {"where": "memory"}, 0),
    ("body_bytes", {"where": "file"}, 0),
    ("spool_failures_total", {}, 0),
    ("buffered_bytes", {}, Between(0, 2**16)),
    ("connections_ended_total", {"reason": "malformed"}, 1),
    ("connections_ended_total", {"reason": "too_many"}, 0),
    ("retries_total", {"pool": "busy", "reason": "outage"}, 2),
    ("retries_total", {"pool": "main", "reason": "outage"}, 0),
    ("joined_total", WHO["brisk"], 2),
    ("exchange_seconds_count", {"pool": "main"}, Between(2, 1e6)),
    ("exchange_seconds_sum", {"pool": "main"}, SOME),
    ("exchange_grants_sum", {"pool": "main"}, 2),
    ("exchange_grants_sum", {"pool": "busy"}, 4),
    ("local_errors_total", {"cause": "descriptors"}, 0),
    ("upstream_connections", {}, 1),
    ("upstream_connections_limit", {}, 256),
    ("upstream_limit", {"pool": "generous", "limit": "100/60s"}, 300),
    ("store_up", {}, 1),
    ("degraded_seconds_total", {}, 0),
    ("log_lines_dropped_total", {}, 0),
    ("month_remaining", {"pool": "main", "key": "key-main"}, 41),
    ("reload_success", {}, 0),
    ("reload_refused_total", {}, 1),
    ("build_info", {"version": __version__, "python": platform.python_version()}, 1),
]


@pytest.mark.parametrize(("name", "labels", "value"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_number_is_what_happened(
    scraped: Scraped, name: str, labels: dict[str, str], value: float | Between
) -> None:
    """By the exact name, and all labels."""
    assert scraped.value(name, **labels) == value


async def test_every_row_is_told_as_it_is_documented(scraped: Scraped) -> None:
    """Its type, and these labels on each of its series; each has a number above."""
    documented = metrics()
    assert scraped.types == {name: metric.type for name, metric in documented.items()}
    assert {name: scraped.labels(name) for name in documented} == {
        name: {metric.labels} for name, metric in documented.items()
    }
    looked_at = {f"keyturn_{name}" for name, _, _ in ROWS}
    assert {name for name, metric in documented.items() if not metric.series & looked_at} == set()


async def test_the_parts_of_a_request_s_time_are_not_more_than_it(scraped: Scraped) -> None:
    """Waiting, the upstream and the proxy's own, as long as all of a pool's requests went out."""
    parts = ("queue_wait_seconds", "upstream_seconds", "overhead_seconds")
    for pool in ("foreign", "odd"):
        spent = [
            scraped.value(f"{part}_sum", pool=pool, **({"client": pool} if "queue" in part else {})) for part in parts
        ]
        assert min(spent) >= 0
        assert sum(spent) <= scraped.value("request_seconds_sum", **WHO[pool]) + 1e-6


async def test_buckets_add_up(scraped: Scraped) -> None:
    """They grow with their bounds, the last one, without a bound, holds all."""
    histograms = [name for name, kind in scraped.types.items() if kind == "histogram"]
    assert len(histograms) == 6
    for name in histograms:
        for labels, count in scraped.samples[f"{name}_count"].items():
            buckets = {
                float(dict(found)["le"]): number
                for found, number in scraped.samples[f"{name}_bucket"].items()
                if labels < found
            }
            numbers = [buckets[bound] for bound in sorted(buckets)]
            assert numbers == sorted(numbers)
            assert buckets[math.inf] == count > 0


async def test_seconds_without_a_store_are_counted(tmp_path: Path) -> None:
    """They grow for as long as it does not answer, and requests go on."""
    origin = Origin()
    store = {"url": "redis://127.0.0.1:1", "timeout": "50ms"}
    async with origin.open(), serving(write(tmp_path, settings(origin.url, store=store))) as keyturn:
        assert (await keyturn.ask(of("main", "/x"))).status == 200
        for least in (0.0, 0.2):

            async def grown(least: float = least) -> bool:
                return await keyturn.metric("keyturn_degraded_seconds_total") > least

            await until(grown, f"more than {least} s are counted")
        assert await keyturn.metric("keyturn_store_up") == 0
