"""Target: every reader of untrusted text is linear: four times the text takes about four times the steps."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import NamedTuple, cast

from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.test_utils import make_mocked_request
from hypothesis import strategies as st
from keyturn.access.jwts import _read as read_jwt
from keyturn.core.complaints import complaint
from keyturn.core.credentials import remove_credentials
from keyturn.core.errors import Unauthenticated
from keyturn.core.events import RequestLog
from keyturn.core.headers import (
    from_another_site,
    from_upstream,
    passed,
    prefer_wait,
    priority_urgency,
    sane_request_id,
    to_upstream,
)
from keyturn.core.policy import Rule, normalise
from keyturn.core.references import OwnReferences
from keyturn.core.signals import read
from keyturn.telemetry.access_log import shown_path
from keyturn.telemetry.exposition import choose_form
from keyturn.telemetry.traces import Traces
from keyturn.web.connection import CallerConnection, IncomingRequest
from keyturn.web.error_responses import error_response
from keyturn.web.incoming import check_framing, origin_form
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fuzz.fields import PLACES
from fuzz.steps import steps_of

SIZES = 128, 512
"""Bytes of the two texts that are compared."""
GROWTH, CONSTANT = 6, 1000
"""How much longer the larger may take: linear is 4 times, quadratic 16 times."""

logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # as where spans are sent
_TRACES = Traces(SimpleSpanProcessor(InMemorySpanExporter()), sample=1, replica="r", upstream="https://a")
_RULES = [Rule.parse(text) for text in ("GET /**/a/*b*/**", "* /*a*b/*", "GET /**/*c")]
_REFERENCES = OwnReferences("https://a")
_SIGNALS = (
    b"RateLimit", b"RateLimit-Policy", b"X-RateLimit-Limit", b"X-RateLimit-Remaining", b"X-RateLimit-Reset",
    b"Retry-After", b"X-RateLimit-Remaining-Month", b"Cache-Status", b"Age", b"X-Cache", b"Date",
)  # fmt: skip


class Text(NamedTuple):
    """A text of any length: `head`, then `pump` again and again, then `tail`."""

    head: bytes
    pump: bytes
    tail: bytes = b""

    def of(self, length: int) -> bytes:
        """Return about so many bytes of the text."""
        return self.head + self.pump * (length // len(self.pump)) + self.tail


class _Nowhere(asyncio.Transport):
    """A connection without any information."""


_NOWHERE = SimpleNamespace(transport=None, scheme="http")


def _target(text: bytes) -> None:
    given = text.decode("latin-1")
    message = make_mocked_request("GET", given, {"Host": given})._message  # noqa: SLF001  # made as the server makes it
    request = IncomingRequest(cast("CallerConnection", _NOWHERE), message, EMPTY_PAYLOAD)
    origin_form(request, frozenset({b"a"}))
    check_framing(request)


def _trace(text: bytes) -> None:
    given = text.decode("latin-1")
    _TRACES.begin(make_mocked_request("GET", "/", {"traceparent": given, "tracestate": given}, transport=_Nowhere()))


def _path(text: bytes) -> None:
    path = normalise(b"/" + text)
    for rule in _RULES if path is not None else ():
        rule.matches("GET", path or "")


def _limits(text: bytes) -> None:
    """Read what every line says of a limit and of a policy."""
    lines = text.split(b"\n")
    read(429, tuple((name, line) for line in lines for name in (b"X-RateLimit-Limit", b"RateLimit-Policy")), 0)
    read(429, tuple((name, line) for line in lines for name in (b"RateLimit", b"RateLimit-Policy")), 0)


def _signal(name: bytes) -> Callable[[bytes], object]:
    return lambda text: read(429, ((name, text),), 0)


READERS: Mapping[str, Callable[[bytes], object]] = {
    "Accept": lambda text: error_response(Unauthenticated("x"), RequestLog(id="1", method="GET"), ((b"Accept", text),)),
    "Connection": lambda text: to_upstream(((b"Connection", text), (b"X", b""), (b"Date", b""))),
    "Origin": lambda text: from_another_site(((b"Origin", text),)),
    "Prefer": lambda text: prefer_wait(((b"Prefer", text),)),
    "Priority": lambda text: priority_urgency(((b"Priority", text),)),
    "Via": lambda text: passed(((b"Via", text),), b"keyturn"),
    "X-Request-Id": sane_request_id,
    "Accept of a scrape": lambda text: choose_form(text.decode("latin-1")),
    "trace": _trace,
    "credentials": lambda text: remove_credentials(
        ((b"Authorization", b"Bearer " + text), (b"Authorization", text)), b"/?" + text, PLACES, lambda _: None
    ),
    "JSON Web Token": lambda text: read_jwt(b"ey" + text),
    "target": _target,
    "path": _path,
    "path in a log": lambda text: shown_path(text.decode("latin-1")),
    "answer's names": lambda text: from_upstream(((text, b""),)),
    "answer's Connection": lambda text: from_upstream(((b"Connection", text), (b"X", b""))),
    "answer's references": lambda text: _REFERENCES.relative(
        ((b"Link", text), (b"Location", text), (b"Refresh", text))
    ),
    "answer's limits": _limits,
    "answer's body": lambda text: (complaint(text).about_key(401), read(429, (), 0, text), read(503, (), 0, text)),
    **{name.decode(): _signal(name) for name in _SIGNALS},
}

_WORDS = st.sampled_from(
    [
        b'"', b"\\", b'\\"', b'"a"', b",", b";", b"=", b" ", b"\t", b"a", b"1", b".", b"/", b"%", b"%2F", b"-", b"(",
        b")", b":", b"?", b"&", b"*", b"[", b"{", b"\n", b"\xff", b"a=", b"q=0", b"w=1", b"api key ", b"retry at ",
        b'"a";q=1;w=1', b"1;w=1",
    ]
)  # fmt: skip
_PARTS = st.lists(_WORDS, max_size=3).map(b"".join)
_PUMPS = st.lists(_WORDS, min_size=1, max_size=3).map(b"".join)
TEXTS = st.tuples(st.sampled_from(sorted(READERS)), st.builds(Text, _PARTS, _PUMPS, _PARTS))


def check(example: tuple[str, Text]) -> None:
    """Check that the steps grow no faster than the text."""
    name, text = example
    small, large = (steps_of(READERS[name], text.of(size)) for size in SIZES)
    assert large <= GROWTH * small + CONSTANT, f"{name}: {small} steps for {SIZES[0]} bytes, {large} for {SIZES[1]}"
