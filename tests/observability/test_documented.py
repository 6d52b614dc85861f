"""docs/observability.md names every field of a request's line and every span with its attributes, and no others."""

import json
import re
from io import StringIO
from typing import Any

from keyturn.telemetry import AccessLog

from tests.observability.documents import OBSERVABILITY
from tests.telemetry.samples import Arrived, request_log
from tests.telemetry.test_traces import Collector, attributes

FULL: dict[str, Any] = {
    "retried": ("throttled",), "reason": "broken", "outcome": "failed", "problem": "Lost.", "code": 502,
    "tries": 2, "attempts": 3, "reading": 1, "received": 4, "sent": 9,
}  # fmt: skip
"""A story in which every field has something to say."""


def rows(section: str) -> list[list[str]]:
    """The cells of all rows of tables under a heading."""
    text = re.split(rf"^#+ {section}$", OBSERVABILITY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    text = re.split(r"^#+ ", text, flags=re.MULTILINE)[0]
    return [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]


def names(cell: str) -> set[str]:
    """The code spans of a page; `.name` continues the first part of the one before."""
    found: list[str] = re.findall(r"`([^`]+)`", cell)
    return {found[0].rpartition(".")[0] + name if name.startswith(".") else name for name in found}


def test_every_field_of_a_request_s_line_is_documented() -> None:
    """And every documented field is written."""
    out = StringIO()
    trace = Collector().traces.begin(Arrived())
    AccessLog("json", stream=out).write(request_log(trace=trace, **FULL))
    documented = set().union(*(names(cells[0]) for cells in rows("A line for each request")))
    assert set(json.loads(out.getvalue())) == documented


def test_every_span_and_attribute_is_documented() -> None:
    """The spans of a request, its wait and its attempts."""
    collector = Collector()
    collector.go(0, 502, **FULL)
    spans = collector.spans
    odd = Collector()
    trace = odd.traces.begin(Arrived("BREW", ((b"Host", b"proxy.example"),)))
    trace.try_began("k0", "/me", ())
    trace.end(request_log())
    told = {span: attributes(spans[span]) | attributes(odd.spans[span]) for span in ("request", "attempt")}
    kinds = {kind: names(name) for name, kind, _ in (row for row in rows("Traces") if row[1] in SPAN_KINDS)}
    assert kinds == {"server": {"GET"}, "internal": {"wait"}, "client": {"GET"}}
    documented: dict[str, set[str]] = {"request": set(), "attempt": set()}
    for cells in rows("Traces"):
        if cells[1] not in SPAN_KINDS:
            for span in cells[1].split(", "):
                documented[span] |= names(cells[0])
    assert {span: set(found) for span, found in told.items()} == documented


SPAN_KINDS = ("server", "internal", "client")


def test_no_credential_is_in_a_span() -> None:
    """Not even one that a caller gives out as its request's id (law 11)."""
    collector = Collector()
    collector.go(200, id="PMAK-1234", path="/me/PMAK-5678")
    assert "PMAK-" not in str(attributes(collector.spans["request"]))
