"""The tree of errors. Each carries the status and name to answer with, so that the edge needs no `isinstance`.

KeyturnError
├── ConfigError              bad configuration: every problem with its path
├── StartError               the process cannot start (a port in use, an unreadable file)
└── Refusal                  an answer of the proxy's own: status, name, message, Retry-After
    ├── BadRequest           400 badRequest
    ├── Unauthenticated      401 AuthenticationError
    ├── Forbidden            403 forbiddenError
    ├── MethodNotAllowed     405 methodNotAllowed: CONNECT and TRACE end here
    ├── TooSlow              408 requestTimeout: the head or the body did not come in time
    ├── TooLarge             413 requestTooLarge
    ├── TargetTooLong        414 targetTooLong
    ├── Misdirected          421 misdirectedRequest
    ├── TooMany              429 rateLimitError: the deadline, the queue or the client's own rate
    ├── HeadTooLarge         431 headTooLarge
    ├── TooManyConnections   503 tooManyConnections
    ├── LoopDetected         508 loopDetected: the request has passed here before
    ├── NoKey                503 noKeyAvailable
    ├── Outage               503 upstreamUnavailable: a breaker is open
    ├── StoreLost            503 storeUnavailable
    ├── ShuttingDown         503 shuttingDown
    └── UpstreamError        the upstream failed
        ├── Unreachable      502 upstreamUnreachable: no connection, nothing was sent
        │   └── LocalError   503 localError: an error of this machine
        ├── Broken           502 upstreamUnreachable: broke off after bytes may have gone out
        └── TimedOut         504 upstreamTimeout: written, and no head in time
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

LocalCause = Literal["descriptors", "ports", "memory", "forbidden", "network", "resolver", "threads"]
"""The resource that this machine lacks: a label of `local_errors_total`."""


class KeyturnError(Exception):
    """The root of the tree."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem of the configuration: its path (`clients[2].weight`) and what to write instead."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(KeyturnError):
    """The configuration cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class StartError(KeyturnError):
    """The process cannot start; the message says what to do."""


class Refusal(KeyturnError):
    """An answer that the proxy makes itself.

    `retry_after` is in whole seconds, `reason` a label of `refused_total`, `proxy_error` an error type that RFC 9209
    (section 2.3) registers, `close` says that the connection ends with the answer.
    """

    status: ClassVar[int] = 500
    name: ClassVar[str] = "internalError"
    reason: ClassVar[str] = "internal"
    proxy_error: ClassVar[str] = "proxy_internal_error"
    close: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class BadRequest(Refusal):
    """The request is malformed; the connection ends, since its framing cannot be trusted.

    `foreign` names the protocol that was spoken in place of HTTP, if it is known.
    """

    status = 400
    name = "badRequest"
    reason = "bad_request"
    proxy_error = "http_request_error"
    close = True

    def __init__(self, message: str, *, foreign: str = "") -> None:
        super().__init__(message)
        self.foreign = foreign


class Unauthenticated(Refusal):
    """The credential is missing or unknown."""

    status = 401
    name = "AuthenticationError"
    reason = "unauthenticated"
    proxy_error = "http_request_denied"


class Forbidden(Refusal):
    """The client's rules do not permit the request."""

    status = 403
    name = "forbiddenError"
    reason = "forbidden"
    proxy_error = "http_request_denied"


class MethodNotAllowed(Refusal):
    """The method (CONNECT, TRACE) is about the connection to this proxy, not about a resource behind it."""

    status = 405
    name = "methodNotAllowed"
    reason = "method_not_allowed"
    proxy_error = "http_request_denied"
    close = True


class TooSlow(Refusal):
    """The caller took too long to send the head or the body of its request."""

    status = 408
    name = "requestTimeout"
    reason = "too_slow"
    proxy_error = "http_request_error"
    close = True


class TooLarge(Refusal):
    """The request's body is larger than `upstream.max_body`."""

    status = 413
    name = "requestTooLarge"
    reason = "too_large"
    proxy_error = "http_request_error"
    close = True


class TargetTooLong(Refusal):
    """The request's target is longer than `inbound.max_target` (RFC 9112, section 3)."""

    status = 414
    name = "targetTooLong"
    reason = "bad_request"
    proxy_error = "http_request_error"
    close = True


class HeadTooLarge(Refusal):
    """The request's head is larger than `inbound.max_head`, or has too many fields (RFC 6585, section 5)."""

    status = 431
    name = "headTooLarge"
    reason = "bad_request"
    proxy_error = "http_request_error"
    close = True


class Misdirected(Refusal):
    """The target names an authority that this proxy does not serve (RFC 9110, section 15.5.20)."""

    status = 421
    name = "misdirectedRequest"
    reason = "misdirected"
    proxy_error = "destination_not_found"


class TooMany(Refusal):
    """No lease can be granted before the deadline, a queue is full, or the client is over its own rate."""

    status = 429
    name = "rateLimitError"
    proxy_error = "http_request_denied"

    def __init__(self, message: str, *, reason: str, retry_after: int) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason  # type: ignore[misc]  # one class, several causes


class LoopDetected(Refusal):
    """The request goes in a circle: `upstream.url` leads back to this proxy (RFC 9209, section 2.3.24)."""

    status = 508
    name = "loopDetected"
    reason = "loop"
    proxy_error = "proxy_loop_detected"


class TooManyConnections(Refusal):
    """As many connections are open as `inbound` permits, in total or from one address."""

    status = 503
    name = "tooManyConnections"
    reason = "too_many_connections"
    proxy_error = "http_request_denied"
    close = True


class NoKey(Refusal):
    """No key of the pool can serve."""

    status = 503
    name = "noKeyAvailable"
    reason = "no_key"
    proxy_error = "destination_unavailable"


class Outage(Refusal):
    """A breaker is open: the upstream is failing, and nothing is sent to it but probes."""

    status = 503
    name = "upstreamUnavailable"
    reason = "outage"
    proxy_error = "destination_unavailable"


class StoreLost(Refusal):
    """The store does not answer; callers are told if `store.on_loss` is `refuse`.

    `cause` is one line for the operator: what went wrong and what to do, without secrets. Callers never see it.
    `broke`: the store closed the connection, so a new one may help.
    """

    status = 503
    name = "storeUnavailable"
    reason = "store_lost"
    proxy_error = "proxy_internal_error"

    def __init__(self, message: str, *, cause: str = "", retry_after: int | None = None, broke: bool = False) -> None:
        super().__init__(message, retry_after=retry_after)
        self.cause = cause or message
        self.broke = broke


class ShuttingDown(Refusal):
    """The process is draining."""

    status = 503
    name = "shuttingDown"
    reason = "draining"
    proxy_error = "destination_unavailable"
    close = True

    def __init__(self) -> None:
        super().__init__("This proxy is shutting down. Send the request again, it will reach another.", retry_after=1)


class UpstreamError(Refusal):
    """The upstream failed. `written` says whether bytes of the request may have reached it (law 10).

    `proxy_error` tells what failed, where that is known. `cause` names what this machine lacks, if that is the reason.
    """

    status = 502
    name = "upstreamUnreachable"
    reason = "upstream"
    written: ClassVar[bool] = True

    def __init__(self, message: str, *, proxy_error: str = "", cause: LocalCause | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        if proxy_error:
            self.proxy_error = proxy_error  # type: ignore[misc]  # one class, several types of RFC 9209

    @property
    def local(self) -> bool:
        """Whether the error is this machine's, and says nothing about the upstream."""
        return self.cause is not None


class Unreachable(UpstreamError):
    """No connection, or a refused certificate: nothing was sent. `transient` says that a retry makes sense."""

    proxy_error = "destination_unavailable"
    written = False

    def __init__(
        self, message: str, *, transient: bool = True, proxy_error: str = "", cause: LocalCause | None = None
    ) -> None:
        super().__init__(message, proxy_error=proxy_error, cause=cause)
        self.transient = transient


class LocalError(Unreachable):
    """This machine could not make a connection; the upstream may be well."""

    status = 503
    name = "localError"
    reason = "local"
    proxy_error = "proxy_internal_error"


class Broken(UpstreamError):
    """The connection broke after bytes may have gone out, or the answer was not HTTP.

    `stale` says that the connection was kept from an earlier request and broke at once: most likely the upstream had
    closed it for being idle while the request was on its way.
    """

    proxy_error = "connection_terminated"

    def __init__(
        self, message: str, *, proxy_error: str = "", stale: bool = False, cause: LocalCause | None = None
    ) -> None:
        super().__init__(message, proxy_error=proxy_error, cause=cause)
        self.stale = stale


class TimedOut(UpstreamError):
    """No head of an answer arrived within `upstream.response_timeout`."""

    status = 504
    name = "upstreamTimeout"
    proxy_error = "connection_read_timeout"
