"""Events as values: lower layers emit them, telemetry turns them into metrics, log lines and traces."""

from dataclasses import dataclass
from typing import Literal, Protocol

from keyturn.core.breaker import Scope
from keyturn.core.errors import LocalCause
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import Micros
from keyturn.core.tracing import UNTRACED, Trace
from keyturn.core.values import value_object

Outcome = Literal["forwarded", "refused", "failed", "gone"]


@dataclass(slots=True)
class RequestLog:
    """Record of one request: filled in on its way, read once at its end. Durations in microseconds.

    `outcome`: `forwarded` an upstream's answer reached the caller whole, `refused` the proxy answered itself,
    `failed` the upstream broke its answer off or never gave one, `gone` the caller left first.
    """

    id: str = ""
    method: str = ""
    path: str = ""
    """Without its query."""
    address: str = ""
    """The caller's, by trusted proxies if there are any, else the connection's; `unix` for a socket."""
    agent: str = ""
    """The `User-Agent` of its caller."""
    client: str = ""
    pool: str = ""
    key: str = ""
    code: int = 0
    outcome: Outcome = "gone"
    reason: str = ""
    """The reason of a refusal or failure: a label of `refused_total`."""
    problem: str = ""
    """The failure in the words that its caller reads."""
    queued: Micros = 0
    """Spent waiting for leases."""
    upstream: Micros = 0
    """From the first byte sent to the head of the answer, over all tries."""
    reading: Micros = 0
    """Spent reading the request's body before it waits; without what streams later."""
    streamed: Micros = 0
    """From the head of the answer to its end."""
    total: Micros = 0
    attempts: int = 0
    """Attempts to send it with a key, whether a connection was found or not."""
    tries: int = 0
    """Times that it was sent."""
    received: int = 0
    """Bytes of the request's body."""
    sent: int = 0
    """Bytes of the answer's body."""
    retried: tuple[str, ...] = ()
    """The reason of each retry: labels of `retries_total`."""
    trace: Trace = UNTRACED

    @property
    def trace_id(self) -> str:
        """The id of the trace that it is recorded in, if it is."""
        return self.trace.trace_id


@value_object
class UpstreamAnswered:
    """The head of an answer arrived; code 0: a try failed."""

    pool: str
    key: str
    code: int


@value_object
class LocalErrorMet:
    """A try failed by an error of this machine; `message` is one sentence."""

    cause: LocalCause
    message: str
    is_new: bool = True
    """Whether this cause has not been met of late; other occurrences are only counted."""


ThrottleKind = Literal["window", "endpoint", "plan"]


@value_object
class UpstreamThrottled:
    """The upstream answered 429.

    `window`: a limit that is configured, or any of them; `endpoint`: a narrower one, which is not; `plan`: a quota that
    no waiting cures.
    """

    pool: str
    key: str
    quota: str
    kind: ThrottleKind
    wait: Micros
    limit: str = ""
    """The names of the limits that it closed, if any is known."""
    is_new: bool = True
    """Whether this cause has not been met of late; other occurrences are only counted."""


@value_object
class PoolThrottled:
    """Several quotas were refused at once: only probes are sent, the next after `wait`. 0 quotas: that is over."""

    pool: str
    quotas: int
    wait: Micros


RetryReason = Literal["throttled", "unreachable", "broken", "timed_out", "outage", "dead_key", "late"]


@value_object
class Retried:
    """A request is retried."""

    pool: str
    reason: RetryReason


@value_object
class Joined:
    """A request got the answer of an identical one, and cost no token."""

    pool: str
    client: str


@value_object
class Exchanged:
    """One round trip to the store."""

    pool: str
    seconds: float
    grants: int


@value_object
class ForeignSpent:
    """An answer told that tokens of a quota were spent by others (law 9)."""

    pool: str
    quota: str
    tokens: int


@value_object
class LimitLowered:
    """The upstream's answers tell a lower limit than configured; it is obeyed from now on (law 9)."""

    pool: str
    limit: str
    configured: int
    told: int


@value_object
class LimitHigher:
    """The upstream's answers tell a higher limit than configured; it is only reported (law 9)."""

    pool: str
    limit: HigherLimit


@value_object
class MonthRemaining:
    """The requests left in the month's plan of a key, as the upstream told last."""

    pool: str
    key: str
    left: int


@value_object
class SignalsIgnored:
    """The names of an answer's fields that were malformed or absurd."""

    pool: str
    fields: tuple[str, ...]


@value_object
class KeyChanged:
    """A health check quarantined a key, or accepted it again."""

    pool: str
    key: str
    state: Literal["ready", "quarantined"]
    reason: str = ""


@value_object
class KeySwitched:
    """An operator paused a key, or resumed it."""

    pool: str
    key: str
    paused: bool


@value_object
class BreakerChanged:
    """A breaker opened after failures in a row (`wait`: until the next probe), or closed."""

    pool: str
    scope: Scope
    opened: bool
    wait: Micros = 0
    cause: str = ""
    is_new: bool = True
    """Whether the same has not happened of late; other occurrences are only counted."""


@value_object
class StoreChanged:
    """The store was lost (with the cause, one sentence), or answers again; `seconds` it was lost."""

    pool: str
    up: bool
    cause: str = ""
    on_loss: Literal["share", "wait", "refuse"] = "wait"
    seconds: float = 0.0


@value_object
class EpochBegan:
    """The store's state was new, restarted, failed over or went back: a probe opens every quota (law 8)."""

    pool: str


FailedCredential = Literal["missing", "token", "jwt", "certificate"]
FailureResponse = Literal["at_once", "late", "cut"]


@value_object
class StoreCannotWake:
    """The store answers, but its messages do not arrive (`cause`: one sentence): grants come late."""

    pool: str
    cause: str


@value_object
class CallerRejected:
    """A caller was not authenticated; `cut`: answered at once, with the end of the connection."""

    address: str
    """The caller's IPv4 address or IPv6 network of 64 bits, `unix` for a socket, empty when it has gone."""
    why: FailedCredential
    """No credential, an unknown token, or a JSON Web Token or certificate that belongs to no client."""
    answered: FailureResponse


ConnectionEndReason = Literal[
    "too_many", "too_many_per_address", "head_timeout", "write_timeout", "slow_reader", "fell_behind", "malformed",
    "proxy_protocol",
]  # fmt: skip


@value_object
class ConnectionEnded:
    """A caller's connection was refused, or ended before its time."""

    why: ConnectionEndReason
    """Too many, in all or from one address; a head took too long; of an answer nothing was taken for too long, or too
    little, or so little that others that shared it had to wait; it was no HTTP; the PROXY protocol was expected and did
    not come, or not from a trusted proxy."""


@value_object
class IssuerAsked:
    """An issuer's public keys were read, or could not be (`problem`; those that are there stay in use)."""

    issuer: str
    keys: int
    problem: str = ""


@value_object
class Reloaded:
    """The configuration was read again: taken as a whole, or refused as a whole, and then the old one goes on.

    `reasons`: every problem of a refused one, with its path.
    """

    ok: bool
    reasons: tuple[str, ...] = ()


@value_object
class SpoolFailed:
    """A request body could not be written to a temporary file; `is_new`: this cause has not been met of late."""

    cause: str
    is_new: bool


Event = (
    RequestLog
    | UpstreamAnswered
    | LocalErrorMet
    | UpstreamThrottled
    | PoolThrottled
    | Retried
    | Joined
    | Exchanged
    | ForeignSpent
    | LimitLowered
    | LimitHigher
    | MonthRemaining
    | SignalsIgnored
    | KeyChanged
    | KeySwitched
    | BreakerChanged
    | StoreChanged
    | EpochBegan
    | StoreCannotWake
    | CallerRejected
    | ConnectionEnded
    | IssuerAsked
    | Reloaded
    | SpoolFailed
)


class Observer(Protocol):
    """Receives events. Called synchronously on a request's way: it must be quick and must not raise."""

    def observe(self, event: Event) -> None:
        """Receive an event."""
