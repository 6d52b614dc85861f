import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from keyturn.practice import PracticeSettings
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.observability.documents import metrics
from tests.observability.promtool import promtool
from tests.process import KEYS, ask, house, limit, request, until

parse_openmetrics: Callable[[str], Iterator[Metric]] = text_string_to_metric_families


def told(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Each metric of a scrape, its type and its labels, read without anybody's parser; those of no series are empty."""
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in types}
    for name, inside in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        family = name if name in types else re.sub(r"_(bucket|sum|count)$", "", name)
        labels[family] |= set(re.findall(r'(\w+)="', inside)) - {"le"}
    return {name: (kind, frozenset(labels[name])) for name, kind in types.items()}


async def test_a_live_scrape_passes_prometheus_own_check(tmp_path: Path) -> None:
    """Names, types, units and help texts of everything that a process tells after all kinds of requests."""
    limits = (limit(20, "60s"), limit(1, "50ms", "* /echo/**"))
    practice = PracticeSettings(tls=True, keys=KEYS, limit=10_000, plan=1_000)
    async with house(tmp_path, practice, limits=limits) as home:
        for data in (
            request("/me"),
            request("/echo/1"),
            request("/me", token=None),
            request("/status/500"),
            request("/me", "Prefer: wait=0"),
        ):
            await home.ask(data)

        async def counted() -> bool:
            return await home.keyturn.metric("keyturn_requests_total") >= 5

        await until(counted, "every request is counted")
        text = (await home.keyturn.page("/metrics")).body.decode()
        fields = request("/metrics", "Accept: application/openmetrics-text; version=1.0.0", token=None)
        open_metrics = (await ask(home.keyturn.admin, fields)).body.decode()
    names = {family.name for family in parse_openmetrics(open_metrics)}
    assert {
        "keyturn_requests",
        "keyturn_estimated_wait_seconds",
        "keyturn_key_state",
        "keyturn_tokens_available",
    } <= names
    own = {name for name in names if not name.startswith(("process_", "python_"))}
    assert {f"{name}_total" if f"{name}_total" in metrics() else name for name in own} == set(metrics())
    assert {name: kind for name, kind in told(text).items() if not name.startswith(("process_", "python_"))} == {
        metric.name: (metric.type, metric.labels) for metric in metrics().values()
    }
    ended = await asyncio.to_thread(promtool, "check", "metrics", given=text)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
