import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer, TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.core.events import Retried
from proxy.telemetry import Metrics
from proxy.web.admin import Admin

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.9, text/plain;version=0.0.4;q=0.5, */*;q=0.1"


class Served:
    """The admin listener on a real socket, and what it is asked about."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reasons: tuple[str, ...] = ()
        self.server = RawTestServer(Admin(self.metrics, lambda: self.reasons))
        self.http: TestClient[web.BaseRequest, None] = TestClient(self.server)

    async def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        """Status, fields and body of an answer."""
        async with self.http.request(method, path, headers=headers) as answer:
            return answer.status, dict(answer.headers), await answer.text()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """One for each test."""
    served = Served()
    async with served.http:
        yield served


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
        assert "keyturn_retries" in {family.name for family in parse(body)}


async def test_head_is_answered_like_get_without_the_body(served: Served) -> None:
    """Some load balancers check with HEAD."""
    for path in ("/healthz", "/readyz", "/metrics"):
        status, fields, body = await served.ask(path, "HEAD")
        assert (status, body) == (200, "")
        assert int(fields["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/", "/collections", "/metrics/", "/healthz/x"])
async def test_other_paths_are_not_here(served: Served, path: str) -> None:
    """The answer tells which are."""
    status, _, body = await served.ask(path)
    assert status == 404
    assert "/healthz, /readyz, /metrics" in json.loads(body)["error"]["message"]


async def test_other_methods_are_not_allowed(served: Served) -> None:
    """The answer tells which are."""
    status, fields, body = await served.ask("/readyz", "POST")
    assert (status, fields["Allow"]) == (405, "GET, HEAD")
    assert json.loads(body)["error"]["name"] == "methodNotAllowed"


async def test_a_query_changes_nothing(served: Served) -> None:
    """Probes may carry one."""
    assert (await served.ask("/readyz?verbose=1"))[0] == 200
