import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientSession
from keyturn.core.events import Retried
from keyturn.core.health import KeySnapshot
from keyturn.core.levels import BucketLevel, ClientLevel, Levels
from keyturn.core.model import Secret
from keyturn.tasks import STEP_ENTRIES
from keyturn.telemetry import Metrics
from keyturn.web.admin import Admin
from keyturn.web.listener import Listener
from keyturn.web.status import page
from keyturn.web.status.page import GUARD, PAGE_PATHS
from keyturn.web.status.page import document as document_of
from keyturn.web.status.replica_status import BucketStatus, KeyStatus, PoolStatus, QuotaStatus, ReplicaStatus
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.observability.samples import busy, document

parse_openmetrics: Callable[[str], Iterator[Metric]] = text_string_to_metric_families

TYPE = "application/openmetrics-text"
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.9, text/plain;version=0.0.4;q=0.5, */*;q=0.1"


class Standing:
    """How things stand, made up."""

    def __init__(self) -> None:
        self._keys: list[KeySnapshot] = []

    def crowd(self, number: int) -> None:
        """Have so many keys."""
        self._keys = [KeySnapshot(f"k{index}", f"k{index}", "ready", 0) for index in range(number)]

    async def levels(self) -> Levels:
        return Levels(
            [BucketLevel("default", key.quota, "60/60s", 60, 60) for key in self._keys],
            (ClientLevel("default", "ci", 3),),
            (),
            keys=[("default", key) for key in self._keys],
        )

    async def snapshot(self) -> ReplicaStatus:
        if not self._keys:
            return busy()
        shown = [KeyStatus(key.name, key.quota, key.state, 0) for key in self._keys]
        buckets = [BucketStatus("60/60s", 60, 60, 60, 0)]
        quotas = [QuotaStatus(key.quota, buckets) for key in self._keys]
        return replace(busy(), pools=[PoolStatus("default", shown, quotas, ())])


class Switches:
    """Keys that are switched."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, str]] = []

    def _switch(self, what: str, pool: str, key: str) -> bool:
        self.done.append((what, pool, key))
        return key == "team-a"

    def pause(self, pool: str, key: str) -> bool:
        return self._switch("pause", pool, key)

    def resume(self, pool: str, key: str) -> bool:
        return self._switch("resume", pool, key)

    def log(self, level: str) -> bool:
        return level == "debug"


class Served:
    """The admin listener on a real socket, and what it is asked about."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reasons: tuple[str, ...] = ()
        self.switches = Switches()
        self.token: Secret | None = Secret("right")
        self.standing = Standing()
        admin = Admin(self.metrics, lambda: self.reasons, self.standing, self.switches, lambda: self.token)
        self.listener = Listener(admin, ["127.0.0.1:0"])

    async def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        """Status, fields and body of an answer."""
        url = self.listener.addresses[0]
        async with ClientSession(url) as http, http.request(method, path, headers=headers) as answer:
            return answer.status, dict(answer.headers), await answer.text()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """One for each test."""
    served = Served()
    await served.listener.start()
    yield served
    await served.listener.stop(0)


async def test_healthz_says_that_the_process_lives(served: Served) -> None:
    """Whether it can serve is another question."""
    served.reasons = ("draining",)
    status, fields, body = await served.ask("/healthz")
    assert (status, json.loads(body)) == (200, {"status": "alive"})
    assert fields["Content-Type"] == "application/json"
    assert fields["Cache-Control"] == "no-store"


async def test_readyz_says_whether_requests_can_be_served(served: Served) -> None:
    """Asked anew each time; every reason is named."""
    assert (await served.ask("/readyz"))[0] == 200
    served.reasons = ("draining", "pool default: no usable key")
    status, _, body = await served.ask("/readyz")
    assert status == 503
    assert json.loads(body) == {"status": "unready", "reasons": list(served.reasons)}
    served.reasons = ()
    status, _, body = await served.ask("/readyz")
    assert (status, json.loads(body)) == (200, {"status": "ready"})


async def test_metrics_are_shown_in_the_form_that_is_accepted(served: Served) -> None:
    """Prometheus asks for OpenMetrics, a person with a browser or curl gets text."""
    served.metrics.observe(Retried("default", "late"))
    for accept, media_type, parse in (
        ("*/*", "text/plain; version=0.0.4", parse_text),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0", parse_openmetrics),
    ):
        status, fields, body = await served.ask("/metrics", Accept=accept)
        assert status == 200
        assert fields["Content-Type"].startswith(media_type)
        assert {"keyturn_retries", "keyturn_waiting"} <= {family.name for family in parse(body)}


@pytest.mark.parametrize("accept", [f'{TYPE}; version="1.0.0"', f"{TYPE}; version=abc", "abc", ";;=", "a/b;q=x"])
async def test_no_accept_is_an_error(served: Served, accept: str) -> None:
    """A malformed or unknown one gets the text format."""
    assert (await served.ask("/metrics", Accept=accept))[0] == 200
    _, fields, _ = await served.ask("/metrics", Accept=f"{TYPE};q=0")
    assert fields["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_the_process_tells_of_itself(served: Served) -> None:
    """Beside our own metrics, in one document that ends once."""
    _, _, body = await served.ask("/metrics", Accept=OPENMETRICS)
    assert {"keyturn_build_info", "python_info"} <= {family.name for family in parse_openmetrics(body)}
    assert body.count("# EOF\n") == 1


class Paced:
    """Counts the pieces that are made between two turns of the event loop."""

    def __init__(self) -> None:
        self.made = self.most = self._since = 0
        self._turn()

    def _turn(self) -> None:
        self._since = 0
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def of(self, made: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
        """The same pieces, counted."""

        def pieces(*args: Any) -> Iterator[str]:
            for piece in made(*args):
                self.made += 1
                self._since += 1
                self.most = max(self.most, self._since)
                yield piece

        return pieces

    def stop(self) -> None:
        """Count no longer."""
        self._handle.cancel()


@pytest.mark.parametrize("path", ["/metrics", "/status.json"])
async def test_thousands_of_keys_leave_the_loop_its_turns(
    served: Served, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the answer is, only some of its pieces are made between two of them, and each is short."""
    served.standing.crowd(2_000)
    paced = Paced()
    monkeypatch.setattr(served.metrics, "exposition", paced.of(served.metrics.exposition))
    monkeypatch.setattr(page, "document", paced.of(document_of))
    status, _, body = await served.ask(path)
    paced.stop()
    assert status == 200
    assert paced.made > 4_000
    assert paced.most <= STEP_ENTRIES
    assert len(body) / paced.made < 1_000


async def test_head_is_answered_like_get_without_the_body(served: Served) -> None:
    """Some load balancers check with HEAD."""
    for path in ("/healthz", "/readyz", "/metrics", "/status.json", "/"):
        status, fields, body = await served.ask(path, "HEAD")
        assert (status, body) == (200, "")
        assert int(fields["Content-Length"]) > 0


@pytest.mark.parametrize(
    "path", ["/collections", "/metrics/", "/healthz/x", "/keys", "/keys/default/team-a", "/keys/default/team-a/stop"]
)
async def test_other_paths_are_not_here(served: Served, path: str) -> None:
    """The answer tells which are."""
    status, _, body = await served.ask(path)
    assert status == 404
    assert "/healthz, /readyz and /metrics" in json.loads(body)["error"]["message"]


async def test_the_status_is_a_document_and_a_page(served: Served) -> None:
    """The page's own files are all that there is, and each is guarded."""
    status, fields, body = await served.ask("/status.json")
    assert (status, json.loads(body)) == (200, document(busy()))
    assert fields["Cache-Control"] == "no-store"
    for path in PAGE_PATHS:
        status, fields, body = await served.ask(path)
        assert status == 200
        assert body
        assert {name: fields[name] for name in GUARD} == dict(GUARD)


BEARER = {"Authorization": "Bearer right"}


@pytest.mark.parametrize("what", ["pause", "resume"])
async def test_the_bearer_of_the_token_pauses_and_resumes_keys(served: Served, what: str) -> None:
    """And hears whether there is such a key."""
    status, _, body = await served.ask(f"/keys/default/team-a/{what}", "POST", **BEARER)
    assert (status, json.loads(body)) == (200, {"pool": "default", "key": "team-a", "done": what})
    status, _, body = await served.ask(f"/keys/default/nobody/{what}", "POST", **BEARER)
    assert (status, json.loads(body)["error"]["name"]) == (404, "notFound")
    assert (json.loads(body)["title"], json.loads(body)["status"]) == ("Not Found", 404), "as on the data listeners"
    assert served.switches.done == [(what, "default", "team-a"), (what, "default", "nobody")]


async def test_the_bearer_of_the_token_sets_the_level_of_the_log(served: Served) -> None:
    """To one that there is."""
    status, _, body = await served.ask("/log/debug", "POST", **BEARER)
    assert (status, json.loads(body)) == (200, {"level": "debug"})
    status, _, body = await served.ask("/log/loud", "POST", **BEARER)
    assert (status, "debug, info, warning and error" in json.loads(body)["error"]["message"]) == (404, True)
    assert (await served.ask("/log/debug", "POST"))[0] == 401


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Basic right", "Bearer", "right"])
async def test_nobody_else_changes_anything(served: Served, given: str | None) -> None:
    """Without the token the answer does not even tell whether there is such a key."""
    headers = {} if given is None else {"Authorization": given}
    status, fields, body = await served.ask("/keys/default/team-a/pause", "POST", **headers)
    assert (status, json.loads(body)["error"]["name"]) == (401, "AuthenticationError")
    assert fields["WWW-Authenticate"] == "Bearer"
    assert served.switches.done == []


async def test_without_a_token_in_the_configuration_nothing_changes(served: Served) -> None:
    """Whatever the caller sends."""
    served.token = None
    for headers in ({}, BEARER, {"Authorization": "Bearer "}):
        status, _, body = await served.ask("/keys/default/team-a/pause", "POST", **headers)
        assert status == 403
        assert "admin_token" in json.loads(body)["error"]["message"]
    assert served.switches.done == []


async def test_looking_changes_nothing(served: Served) -> None:
    """A browser that follows a link does not pause a key."""
    status, fields, _ = await served.ask("/keys/default/team-a/pause", **BEARER)
    assert (status, fields["Allow"]) == (405, "POST")
    assert served.switches.done == []


async def test_other_methods_are_not_allowed(served: Served) -> None:
    """The answer tells which are."""
    status, fields, body = await served.ask("/readyz", "POST")
    assert (status, fields["Allow"]) == (405, "GET, HEAD")
    assert json.loads(body)["error"]["name"] == "methodNotAllowed"


async def test_a_query_changes_nothing(served: Served) -> None:
    """Probes may carry one."""
    assert (await served.ask("/readyz?verbose=1"))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9090", "127.0.0.1.evil.example", "localhost.evil.example"]
)
async def test_over_the_loopback_browsers_know_it_by_no_other_name(served: Served, host: str) -> None:
    """A web page could have its own name resolve to this machine, and read what is here."""
    for path in ("/", "/status.json", "/metrics", "/keys/default/team-a/pause"):
        status, _, text = await served.ask(path, Host=host, **{"Accept-Language": "*"})
        assert status == 421
        assert "team-a" not in text
    assert served.switches.done == []


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:9090", "[::1]:9090", "a.localhost:1", "keyturn:9090", "10.0.0.1"]
)
async def test_over_the_loopback_it_has_these_names(served: Served, host: str) -> None:
    """Addresses, and names that nobody can own."""
    assert (await served.ask("/healthz", Host=host, **{"Accept-Language": "en"}))[0] == 200
