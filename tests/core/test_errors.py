import re
from collections.abc import Iterator

import pytest
from keyturn.core import errors
from keyturn.core.errors import (
    Broken,
    ConfigError,
    KeyturnError,
    Problem,
    Refusal,
    ShuttingDown,
    StoreLost,
    TimedOut,
    TooMany,
    Unreachable,
)

INTERFACE = {
    "BadRequest": (400, "badRequest"),
    "Unauthenticated": (401, "AuthenticationError"),
    "Forbidden": (403, "forbiddenError"),
    "MethodNotAllowed": (405, "methodNotAllowed"),
    "TooSlow": (408, "requestTimeout"),
    "TooLarge": (413, "requestTooLarge"),
    "TargetTooLong": (414, "targetTooLong"),
    "Misdirected": (421, "misdirectedRequest"),
    "TooMany": (429, "rateLimitError"),
    "HeadTooLarge": (431, "headTooLarge"),
    "TooManyConnections": (503, "tooManyConnections"),
    "NoKey": (503, "noKeyAvailable"),
    "Outage": (503, "upstreamUnavailable"),
    "StoreLost": (503, "storeUnavailable"),
    "ShuttingDown": (503, "shuttingDown"),
    "UpstreamError": (502, "upstreamUnreachable"),
    "LoopDetected": (508, "loopDetected"),
    "Unreachable": (502, "upstreamUnreachable"),
    "LocalError": (503, "localError"),
    "Broken": (502, "upstreamUnreachable"),
    "TimedOut": (504, "upstreamTimeout"),
}

REGISTERED = {
    "dns_timeout",
    "dns_error",
    "destination_not_found",
    "destination_unavailable",
    "destination_ip_prohibited",
    "destination_ip_unroutable",
    "connection_refused",
    "connection_terminated",
    "connection_timeout",
    "connection_read_timeout",
    "connection_write_timeout",
    "connection_limit_reached",
    "tls_protocol_error",
    "tls_certificate_error",
    "tls_alert_received",
    "http_request_error",
    "http_request_denied",
    "http_response_incomplete",
    "http_response_header_section_size",
    "http_response_header_size",
    "http_response_body_size",
    "http_response_trailer_section_size",
    "http_response_trailer_size",
    "http_response_transfer_coding",
    "http_response_content_coding",
    "http_response_timeout",
    "http_upgrade_failed",
    "http_protocol_error",
    "proxy_internal_response",
    "proxy_internal_error",
    "proxy_configuration_error",
    "proxy_loop_detected",
}
"""The error types of RFC 9209, section 2.3."""


def tree(root: type[Refusal]) -> Iterator[type[Refusal]]:
    """Return every kind of refusal below another."""
    for kind in root.__subclasses__():
        yield kind
        yield from tree(kind)


KINDS = list(tree(Refusal))


def made(kind: type[Refusal]) -> Refusal:
    """Return an error of that kind."""
    if kind is TooMany:
        return TooMany("text", reason="deadline", retry_after=3)
    return ShuttingDown() if kind is ShuttingDown else kind("text")


def test_every_refusal_answers_as_the_interface_says() -> None:
    """The status and name of every refusal are exactly those of the interface."""
    assert {kind.__name__: (kind.status, kind.name) for kind in KINDS} == INTERFACE


@pytest.mark.parametrize("kind", KINDS)
def test_every_refusal_carries_what_the_edge_needs(kind: type[Refusal]) -> None:
    """Each refusal has a reason for labels, a registered proxy error type and a message."""
    refusal = made(kind)
    assert re.fullmatch(r"[a-z_]+", refusal.reason)
    assert refusal.reason != Refusal.reason
    assert refusal.proxy_error in REGISTERED
    assert str(refusal) == refusal.message
    assert isinstance(refusal, KeyturnError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """The tree in the module's docstring lists every error with its status and name."""
    drawn = errors.__doc__ or ""
    for kind in KINDS:
        assert re.search(rf"── {kind.__name__}\b", drawn)
        if kind.__name__ != "UpstreamError":
            assert re.search(rf"── {kind.__name__} +{kind.status} {kind.name}\b", drawn)


def test_errors_say_whether_bytes_may_have_been_sent() -> None:
    """Only errors without a connection were surely not sent, and may be retried (law 10)."""
    assert Broken("").written
    assert TimedOut("").written
    assert not Unreachable("").written
    assert Unreachable("").transient
    assert not Unreachable("", transient=False).transient


def test_too_many_has_a_cause_and_a_time() -> None:
    """`TooMany` has a cause and a time for each of its three causes."""
    refusal = TooMany("text", reason="queue_full", retry_after=7)
    assert (refusal.reason, refusal.retry_after) == ("queue_full", 7)


def test_a_lost_store_has_a_cause_for_the_operator() -> None:
    """The cause of a lost store is for operators and not part of the message for callers."""
    lost = StoreLost("Try again.", cause="redis://h: its memory is full", retry_after=2)
    assert (lost.message, str(lost), lost.retry_after) == ("Try again.", "Try again.", 2)
    assert lost.cause == "redis://h: its memory is full"
    assert StoreLost("gone").cause == "gone"


def test_a_configuration_error_lists_every_problem() -> None:
    """A configuration error lists every problem with its path, one a line."""
    problems = (Problem("clients[2].weight", "write a whole number"), Problem("", "the file is empty"))
    error = ConfigError(problems)
    assert str(error) == "clients[2].weight: write a whole number\nthe file is empty"
    assert error.problems == problems
