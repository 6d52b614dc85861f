import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.observability.collector import OPENMETRICS, collecting
from tests.process import KEYS, House, ask, house, request, until, write

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def is_exemplar(home: House, trace: str) -> bool:
    """Whether a trace stands in the metrics."""
    scraped = await ask(home.keyturn.admin, request("/metrics", OPENMETRICS, token=None))
    return f'trace_id="{trace}"' in scraped.body.decode()


async def test_a_real_request_is_found_in_its_caller_s_trace(tmp_path: Path) -> None:
    """From the caller's span to what the upstream sees, in the log and as an exemplar; the rest is sent at the end."""
    async with (
        collecting() as (collector, endpoint),
        house(tmp_path, traces={"endpoint": endpoint}, log={"format": "json"}) as home,
    ):
        context = f"traceparent: 00-{TRACE}-{PARENT}-01"
        echoed = await home.ask(request("/echo/1", context, "tracestate: a=1", "baggage: b=2", "X-Request-Id: one"))
        await until(lambda: is_exemplar(home, TRACE), "its trace is an exemplar")  # until a later one takes its place
        await home.ask(request("/me", "X-Request-Id: two"))
        sent = {name.lower(): value for name, value in json.loads(echoed.body)["headers"]}
        await until(lambda: TRACE in home.keyturn.process.stderr, "the request's line")
        home.keyturn.process.signal(signal.SIGTERM)
        assert await home.keyturn.process.ended() == 0
        spans = collector.of("one")
    assert set(spans) == {"request", "wait", "try"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert spans["request"].parent_span_id.hex() == PARENT
    assert sent["traceparent"] == f"00-{TRACE}-{spans['try'].span_id.hex()}-01"
    assert (sent["tracestate"], sent["baggage"]) == ("a=1", "b=2")
    begin, end = spans["request"].start_time_unix_nano, spans["request"].end_time_unix_nano
    assert begin <= spans["wait"].start_time_unix_nano <= spans["try"].start_time_unix_nano
    assert spans["try"].end_time_unix_nano <= end
    assert collector.of("two")["request"].parent_span_id == b""


async def test_a_collector_that_is_away_holds_nothing_up(tmp_path: Path) -> None:
    """Requests are answered, and the process ends; it complains once, and says who is away and why."""
    endpoint = "http://127.0.0.1:9/v1/traces"
    async with house(tmp_path, traces={"endpoint": endpoint}, log={"format": "json"}) as home:
        for _ in range(3):
            assert (await home.ask(request("/me"))).status == 200
        home.keyturn.process.signal(signal.SIGTERM)
        assert await home.keyturn.process.ended() == 0
        entries = [json.loads(line) for line in home.keyturn.process.lines if not line.startswith("ready ")]
    complaints = [entry["event"] for entry in entries if entry["level"] != "info"]
    assert complaints == [f"traces are lost: the collector at {endpoint} does not accept them: connection refused"]


async def test_without_traces_the_caller_s_context_passes(tmp_path: Path) -> None:
    """As it came."""
    async with house(tmp_path) as home:
        context = f"00-{TRACE}-{PARENT}-01"
        fields = (f"traceparent: {context}", "tracestate: a=1", "baggage: user=7;p=1")
        answer = await home.ask(request("/echo/1", *fields))
        sent = {name.lower(): value for name, value in json.loads(answer.body)["headers"]}
        assert (sent["traceparent"], sent["tracestate"], sent["baggage"]) == (context, "a=1", "user=7;p=1")


SCRIPT = """
import asyncio, sys
from pathlib import Path

if {absent}:
    sys.modules["opentelemetry"] = None
import keyturn.cli
from keyturn import config
from keyturn.app import App
from keyturn.core.errors import ConfigError


async def run() -> None:
    app = App(config.load(Path("config.yaml"), {{}}))
    await app.stop()


try:
    asyncio.run(run())
except ConfigError as error:
    print(error)
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))])
"""
"""redis-py looks at metrics of OpenTelemetry when it is installed; that is not ours."""


@pytest.mark.parametrize(
    ("absent", "endpoint", "told"),
    [
        (False, None, ""),
        (True, None, ""),
        (True, "http://127.0.0.1:9", "traces.endpoint: OpenTelemetry is not installed"),
    ],
    ids=["off", "off and not installed", "on and not installed"],
)
async def test_nothing_is_imported_for_traces_that_are_off(
    tmp_path: Path, absent: bool, endpoint: str | None, told: str
) -> None:
    """So the extra need not be installed; where it is needed, the problem says so."""
    pools = {"default": {"keys": [{"name": "a", "secret": KEYS[0]}]}}
    write(tmp_path, {"pools": pools, "traces": {"endpoint": endpoint} if endpoint else {}})
    script = SCRIPT.format(absent=absent)
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    *problems, imported = ended.stdout.splitlines()
    assert imported == "[]"
    assert "".join(problems).startswith(told)
    assert bool(problems) == bool(told)
