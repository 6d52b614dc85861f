"""What happened, as values: lower floors emit them, telemetry turns them into metrics, logs and traces."""

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
    """One request's story, filled in on its way and read once at its end. Durations in microseconds.

    `outcome`: `forwarded` an upstream's answer reached the caller whole, `refused` the proxy answered itself,
    `failed` the upstream broke its answer off or never gave one, `gone` the caller left first.
    """

    id: str = ""
    method: str = ""
    path: str = ""
    """Without its query."""
    address: str = ""
    """Its caller's, as far as trusted proxies tell it, else where its connection comes from; `unix` for a socket."""
    agent: str = ""
    """The `User-Agent` of its caller."""
    client: str = ""
    pool: str = ""
    key: str = ""
    code: int = 0
    outcome: Outcome = "gone"
    reason: str = ""
    """Why it was refused or failed: a label of `refused_total`."""
    problem: str = ""
    """What failed, in the words that its caller reads."""
    queued: Micros = 0
    """Spent waiting for leases."""
    upstream: Micros = 0
    """From the first byte sent to the head of the answer, over all tries."""
    reading: Micros = 0
    """Spent reading the request's body before its turn; what streams later is not in it."""
    streamed: Micros = 0
    """From the head of the answer to its end."""
    total: Micros = 0
    attempts: int = 0
    """How often it was to be sent with a key, whether a connection was found or not."""
    tries: int = 0
    """How often it was sent."""
    received: int = 0
    """Bytes of the request's body."""
    sent: int = 0
    """Bytes of the answer's body."""
    retried: tuple[str, ...] = ()
    """Why it went out once more, each time: labels of `retries_total`."""
    trace: Trace = UNTRACED

    @property
    def trace_id(self) -> str:
        """The id of the trace that it is recorded in, if it is."""
        return self.trace.trace_id


@value_object
class UpstreamAnswered:
    """An answer's head arrived (or a try failed: code 0)."""

    pool: str
    key: str
    code: int


@value_object
class LocalTroubleMet:
    """A try failed by a trouble of this machine, which is told in one sentence."""

    cause: LocalCause
    message: str
    is_new: bool = True
    """Whether this cause has not been met of late; the others are counted only."""


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
    """Whether this cause has not been met of late; the others are counted only."""


@value_object
class ThrottledTogether:
    """So many quotas were refused at once: nothing is sent but trials (`wait`: until the next). 0: that is over."""

    pool: str
    quotas: int
    wait: Micros


WhyRetried = Literal["throttled", "unreachable", "broken", "timed_out", "outage", "dead_key", "late"]


@value_object
class Retried:
    """A request goes out once more."""

    pool: str
    reason: WhyRetried


@value_object
class Joined:
    """A request got the answer of another one that was asked for the same, and cost no token."""

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
    """An answer told that somebody else spent tokens of a quota (law 9)."""

    pool: str
    quota: str
    tokens: int


@value_object
class LimitLowered:
    """The upstream's answers tell a limit to be lower than it is configured; it is taken so from now on (law 9)."""

    pool: str
    limit: str
    configured: int
    told: int


@value_object
class LimitHigher:
    """The upstream's answers tell a limit to be higher than it is configured, which changes nothing (law 9)."""

    pool: str
    limit: HigherLimit


@value_object
class MonthTold:
    """What the upstream last said that the month's plan of a key still holds."""

    pool: str
    key: str
    left: int


@value_object
class SignalsIgnored:
    """An answer's fields that were malformed or absurd, by their names."""

    pool: str
    fields: tuple[str, ...]


@value_object
class KeyChanged:
    """A key was found dead, or alive again."""

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
class BreakerMoved:
    """The upstream is left alone because of failures in a row (`wait`: until the next trial), or used again."""

    pool: str
    scope: Scope
    opened: bool
    wait: Micros = 0
    cause: str = ""
    is_new: bool = True
    """Whether the same has not happened of late; the others are counted only."""


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
    """The store's state was new, restarted, failed over or behind: every quota is opened by a probe (law 8)."""

    pool: str


WhyFailed = Literal["missing", "token", "jwt", "certificate"]
WhenAnswered = Literal["at_once", "late", "cut"]


@value_object
class StoreMute:
    """The store answers, but nobody can be woken by it (with the cause, one sentence): turns come late."""

    pool: str
    cause: str


@value_object
class AttemptFailed:
    """Somebody was not let in, and when that was answered: `cut` is at once, with the end of the connection."""

    address: str
    """Where it came from: an IPv4 address, an IPv6 network of 64 bits, `unix` for a socket, empty when it has gone."""
    why: WhyFailed
    """What was wrong: no credential at all, an unknown token, a JSON Web Token or a certificate that is nobody's."""
    answered: WhenAnswered


WhyEnded = Literal[
    "too_many", "too_many_per_address", "head_timeout", "write_timeout", "slow_reader", "fell_behind", "malformed",
    "proxy_protocol",
]  # fmt: skip


@value_object
class ConnectionEnded:
    """A caller's connection was refused, or ended before its time."""

    why: WhyEnded
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
    | LocalTroubleMet
    | UpstreamThrottled
    | ThrottledTogether
    | Retried
    | Joined
    | Exchanged
    | ForeignSpent
    | LimitLowered
    | LimitHigher
    | MonthTold
    | SignalsIgnored
    | KeyChanged
    | KeySwitched
    | BreakerMoved
    | StoreChanged
    | EpochBegan
    | StoreMute
    | AttemptFailed
    | ConnectionEnded
    | IssuerAsked
    | Reloaded
    | SpoolFailed
)


class Observer(Protocol):
    """Whoever wants to know. Called synchronously on the way: it must be quick and must not raise."""

    def observe(self, event: Event) -> None:
        """Take note of an event."""
