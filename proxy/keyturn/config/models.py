"""The settings of config.yaml, section by section, in the order of the documentation.

A docstring under a setting is its description in the JSON Schema. What one value alone decides is checked here, what
takes two of them or a look at a file in `keyturn.config.checks`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from keyturn.config.fields import (
    Duration,
    FilePath,
    HeaderName,
    Listeners,
    ListenerText,
    Name,
    Number,
    PasswordText,
    Permissions,
    QueryName,
    RuleText,
    SecretText,
    Settings,
    Sha256,
    StoreUrlText,
    Timeout,
    TrustedProxy,
    UpstreamUrl,
    Window,
    is_header_value,
    is_proxy_own,
    written,
)
from keyturn.config.units import format_duration
from keyturn.config.urls import parse_collector_url, parse_keys_url
from keyturn.core.model import SECOND, Micros


def _one_to(longest: Micros) -> AfterValidator:
    def check(value: Micros) -> Micros:
        if value > longest:
            raise ValueError(f"write a duration up to {format_duration(longest)}")
        return value

    return AfterValidator(check)


def _some(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("write at least one, or leave this out for all")
    return values


def _settable(name: str) -> str:
    if is_proxy_own(name):
        raise ValueError("the proxy sets this header itself, or it ends at each hop: take it out")
    return name


def _sendable(value: str) -> str:
    if not is_header_value(value):
        raise ValueError("a header's value is printable ASCII without line ends or blanks around it")
    return value


HeaderToSet = Annotated[HeaderName, AfterValidator(_settable)]
HeaderValue = Annotated[str, AfterValidator(_sendable)]
Requests = Annotated[int, Field(ge=1, le=100_000), Number]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
KeysUrl = Annotated[str, AfterValidator(parse_keys_url)]
CollectorUrl = Annotated[str, AfterValidator(parse_collector_url)]
Leeway = Annotated[Duration, _one_to(300 * SECOND)]


class TlsSettings(Settings):
    """TLS on the data listeners."""

    cert: FilePath
    """The server's certificate and its chain, a PEM file."""
    key: FilePath
    """The certificate's private key, a PEM file."""
    client_ca: FilePath | None = None
    """Certificates of callers must be signed by this authority, a PEM file (mutual TLS)."""
    client_certificate: Literal["required", "optional"] = "required"
    """With `client_ca`: whether callers that are known otherwise may connect without a certificate."""


class InboundSettings(Settings):
    """What callers' connections may take on the data listeners, and how long they are waited for."""

    max_connections: Annotated[int, Field(ge=1, le=1_000_000), Number] = 10_000
    """Connections at once; one more is answered 503 and closed."""
    max_connections_per_address: Annotated[int, Field(ge=1, le=1_000_000), Number] = 5_000
    """Of these from one network address (of IPv6: one network of 64 bits); Unix sockets are not counted."""
    max_buffered: Annotated[int, Field(ge=1 << 20, le=1 << 40), Number] = 67_108_864
    """Bytes of memory that requests hold on their way in, on all connections together; beyond it they are not read."""
    max_head: Annotated[int, Field(ge=8_192, le=1 << 20), Number] = 65_536
    """Bytes of a request's line and fields; a larger one is answered 431."""
    max_fields: Annotated[int, Field(ge=16, le=10_000), Number] = 128
    """Fields of a request; more are answered 431."""
    max_target: Annotated[int, Field(ge=1_024, le=1 << 20), Number] = 32_768
    """Bytes of a request's target; a longer one is answered 414. Less than `max_head`."""
    head_timeout: Timeout = written("10s")
    """From the first byte of a head to its last (408), and for the handshake of TLS."""
    body_timeout: Timeout = written("30s")
    """For all the waiting for a body's bytes (408), and a second more for each KiB of it."""
    upload_timeout: Timeout = written("120s")
    """From a request's turn on, for the rest of a body that is too large to be read before (408)."""
    spool_memory: Annotated[int, Field(ge=0, le=1 << 24), Number] = 262_144
    """Bytes of one body that are kept in memory until its request ends; a larger one goes to a temporary file."""
    max_spooled: Annotated[int, Field(ge=16_384, le=1 << 40), Number] = 16_777_216
    """Bytes of one body that are read before its request waits; the rest of a larger one streams under its lease."""
    spool_size: Annotated[int, Field(ge=0, le=1 << 50), Number] = 1_073_741_824
    """Bytes of all bodies in temporary files, a quarter of them for one client at most; 0: no files."""
    write_timeout: Timeout = written("60s")
    """Without a caller's taking anything of its answer; then the connection is cut."""
    idle_timeout: Timeout = written("75s")
    """Without a request; then the connection is closed."""
    socket_mode: Permissions = written("0660")
    """The permissions of Unix sockets: who may connect."""
    trusted_proxies: tuple[TrustedProxy, ...] = ()
    """Addresses and networks of proxies in front that are believed what they tell of callers' addresses; or `unix`."""


class UpstreamSettings(Settings):
    """The API that requests go to, and how long its answers may take."""

    url: UpstreamUrl = "https://api.getpostman.com"
    """Scheme, host and port. Certificates are always verified; http:// only to a loopback address, for tests."""
    ca: FilePath | None = None
    """Authorities to trust beside the system's, a PEM file."""
    key_header: HeaderToSet = "X-Api-Key"
    """The header that carries the API key; a caller's own is taken off."""
    key_query: QueryName = "apikey"
    """A caller's credential in the query; taken off."""
    connect_timeout: Timeout = written("5s")
    """For the connection to the upstream, its name's lookup and TLS included."""
    response_timeout: Timeout = written("310s")
    """From the request written to the head of the answer."""
    max_connections: Annotated[int, Field(ge=1, le=65_536), Number] = 256
    """Connections to the upstream at once; when all are in use requests wait for one."""
    max_connection_age: Timeout = written("5m")
    """A connection of this age is not used for another request, so that a name that leads elsewhere is followed."""
    settle_bound: Timeout = written("10s")
    """A request that ends without an answer counts as received at its end, or this long after it was written."""
    max_body: Annotated[int, Field(ge=0, le=1 << 40), Number] = 104_857_600
    """Bytes that the body of a request may have; a larger one is answered 413."""
    forwarded: bool = False
    """Whether the upstream learns the caller's address (Forwarded, X-Forwarded-For, -Host and -Proto)."""


class LimitSettings(Settings):
    """So many requests in so long a window, counted for each quota."""

    requests: Requests
    """Requests that the upstream permits in one window: 1 to 100000."""
    window: Window
    """The upstream's window: 1ms to 31d."""
    match: tuple[RuleText, ...] = ()
    """The requests that it counts, such as `GET /workspaces/*`; none: all."""


class KeySettings(Settings):
    """One upstream API key. Its secret stands in `secret` or in a file, `secret_file`."""

    name: Name
    """Public: it stands in answers, metrics and pages."""
    secret: SecretText | None = None
    """The API key itself, best as `${NAME}`."""
    secret_file: FilePath | None = None
    """A file that holds the API key and nothing else."""
    quota: Name | None = None
    """What the upstream counts it against; keys of one Postman user name the same one. The key's own by default."""


class PoolSettings(Settings):
    """Keys that can stand in for each other, and the limits that hold on each quota."""

    limits: tuple[LimitSettings, ...] = written([{"requests": 60, "window": "60s"}])
    """What the upstream permits; a request counts against every limit that it matches."""
    guard: Duration = written("100ms")
    """Added to each window."""
    keys: tuple[KeySettings, ...] = ()
    """The API keys. The pool `default` takes them from POSTMAN_API_KEYS when it has neither `keys` nor `keys_dir`."""
    keys_dir: FilePath | None = None
    """A folder with one file for each key, named as the key."""
    headers: Mapping[HeaderToSet, HeaderValue] = Field(default_factory=dict)
    """Set on each request to the upstream, in place of what the caller sent."""


class StoreSettings(Settings):
    """Where the tokens of the limits live: in this process, or in a Redis that replicas share."""

    url: StoreUrlText = written("memory://")
    """memory://, redis://, rediss://, unix://, redis+sentinel://h:p,h:p/service or redis+cluster://h:p,h:p."""
    username: Annotated[str, Field(min_length=1)] | None = None
    """The store's user, taken literally, in place of one in the URL."""
    password: PasswordText | None = None
    """The store's password, taken literally, best as `${NAME}`; in place of one in the URL."""
    password_file: FilePath | None = None
    """A file that holds the store's password and nothing else."""
    sentinel_username: Annotated[str, Field(min_length=1)] | None = None
    """The sentinels' user, taken literally."""
    sentinel_password: PasswordText | None = None
    """The sentinels' password, taken literally."""
    sentinel_password_file: FilePath | None = None
    """A file that holds the sentinels' password and nothing else."""
    prefix: Name = "keyturn"
    """Every key in Redis begins with it."""
    timeout: Timeout = written("500ms")
    """For one exchange with the store."""
    on_loss: Literal["share", "wait", "refuse"] = "share"
    """While the store does not answer: go on with this replica's share, let requests wait, or answer 503."""


class QueueSettings(Settings):
    """How long and how many requests may wait for their turn."""

    max_wait: Duration = written("30s")
    """For a request that does not say itself (`Prefer: wait=N`)."""
    max_wait_ceiling: Duration = written("300s")
    """The longest wait that a request may ask for."""
    max_waiting: Annotated[int, Field(ge=0, le=10_000_000), Number] = 10_000
    """Requests that wait in this replica."""
    join: bool = False
    """Whether identical GETs that wait for their turn share one request to the upstream, and its answer."""


class RetrySettings(Settings):
    """Sending a request again after a failure that is not the caller's fault."""

    attempts: Annotated[int, Field(ge=1, le=10), Number] = 3
    """Tries of one request, the first counted; answers 429 and dead keys do not count."""
    budget: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Number] = 0.2
    """Retries per request over the last 10 s."""


class RateSettings(Settings):
    """Requests that are accepted from a client."""

    requests: Requests
    """Requests in one window: 1 to 100000."""
    window: Window
    """The window: 1ms to 31d."""


class CertificateSettings(Settings):
    """A client certificate, verified by `tls.client_ca`."""

    san: Annotated[str, Field(min_length=1)]
    """A subject alternative name of the certificate: a DNS name, a URI or an address."""


class JwtSettings(Settings):
    """A JSON Web Token of an OpenID Connect issuer, such as a Kubernetes cluster."""

    issuer: Annotated[str, Field(min_length=1)]
    """The token's `iss`."""
    audience: Annotated[str, Field(min_length=1)]
    """One of the token's `aud`."""
    subject: Annotated[str, Field(min_length=1)]
    """The token's `sub`; `*` stands for one or more characters other than a colon."""
    jwks_url: KeysUrl | None = None
    """Where the issuer's public keys are; by default its discovery document says."""
    jwks_file: FilePath | None = None
    """A file with the issuer's public keys, in place of a URL."""
    ca: FilePath | None = None
    """Authorities to trust in place of the system's when the keys are fetched, a PEM file."""
    bearer_file: FilePath | None = None
    """A file with a token to show when the keys are fetched, such as the pod's own service account token."""
    algorithms: Annotated[tuple[Algorithm, ...], AfterValidator(_some)] | None = None
    """The signatures that are accepted; by default all of RS, PS, ES and EdDSA."""
    leeway: Leeway | None = None
    """By how much the issuer's clock may differ from ours, up to 5m; 30s by default."""


class CallerSettings(Settings):
    """Who a caller is, and what it may do."""

    name: Name
    """Public: it stands in metrics and logs."""
    pool: Name = "default"
    """The pool that its requests use."""
    weight: Annotated[int, Field(ge=1, le=1000), Number] = 1
    """Its share of the pool while others wait too: a client of weight 2 gets twice as much as one of weight 1."""
    urgency: Annotated[int, Field(ge=0, le=7), Number] = 3
    """The urgency of its requests among each other, 0 first; a request's `Priority: u=` may only raise the number."""
    max_waiting: Annotated[int, Field(ge=0, le=10_000_000), Number] | None = None
    """Requests of it that wait in this replica; the queue's by default."""
    max_in_flight: Annotated[int, Field(ge=1, le=65_536), Number] | None = None
    """Requests of it at the upstream at once, of this replica; half of `upstream.max_connections` by default."""
    rate: RateSettings | None = None
    """Requests that are accepted from it; beyond that 429 at once."""
    allow: tuple[RuleText, ...] | None = None
    """The requests that it may make, such as `GET /**`; everything by default."""
    pin: bool = False
    """Whether it may name the key to use, with the header `Keyturn-Key`."""


class AnonymousSettings(CallerSettings):
    """A caller without a known token, where none is required."""

    name: Name = "local"
    """Public: it stands in metrics and logs."""


class ClientSettings(CallerSettings):
    """A caller: its name, what proves that it is the one, and what it may do."""

    token: SecretText | None = None
    """Its token, best as `${NAME}`."""
    token_sha256: Sha256 | None = None
    """The SHA-256 of its token, which `keyturn token` prints."""
    certificate: CertificateSettings | None = None
    """Its TLS certificate."""
    jwt: JwtSettings | None = None
    """Its JSON Web Token."""


class LogSettings(Settings):
    """The log: from which severity on, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe that is logged."""
    format: Literal["text", "json"] | None = None
    """Lines for people or for machines; text on a terminal, else json, by default."""
    sample: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Number] = 1.0
    """The part of the successful requests that gets a line, 0 to 1; all others get theirs always."""


class TracesSettings(Settings):
    """Traces by OpenTelemetry; needs the extra `keyturn[otel]`."""

    endpoint: CollectorUrl | None = None
    """Where spans are sent, OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; without it there are none."""
    sample: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Number] = 1.0
    """The part of the requests that is recorded, 0 to 1, where the caller's `traceparent` does not decide it."""


class Document(Settings):
    """config.yaml."""

    listen: Listeners = written("127.0.0.1:8080")
    """Where callers connect: `host:port` or `unix:/path`, one or a list; port 0 lets the system choose."""
    admin: ListenerText = written("127.0.0.1:9090")
    """Health, metrics and the status page; never on a data listener."""
    admin_token: SecretText | None = None
    """Lets its bearer pause and resume keys on the admin listener; nobody can without it."""
    tls: TlsSettings | None = None
    """TLS on the data listeners; plain HTTP by default."""
    strict_certificates: bool = False
    """Whether certificates, others' and callers', are refused that are not in all as RFC 5280 asks."""
    inbound: InboundSettings = written({})
    """What callers' connections may take, and how long they are waited for."""
    upstream: UpstreamSettings = written({})
    """The API that requests go to."""
    pools: Mapping[Name, PoolSettings] = written({"default": {}})
    """Pools of keys, by name."""
    store: StoreSettings = written({})
    """Where the tokens of the limits live."""
    queue: QueueSettings = written({})
    """How long and how many requests may wait."""
    retry: RetrySettings = written({})
    """Sending a request again."""
    authentication: Literal["required", "off"] | None = None
    """Required by default when clients are given or a listener is not loopback, else off."""
    allow_anonymous_network: bool = False
    """Consent to `authentication: off` on a listener that is not loopback: whoever reaches it then uses the keys."""
    anonymous: AnonymousSettings = written({})
    """Who callers are with `authentication: off`."""
    clients: tuple[ClientSettings, ...] = ()
    """The callers that are known."""
    lame_duck: Duration = written("0s")
    """How long callers are still served after SIGTERM, each connection for one answer more, before `drain` begins."""
    drain: Duration = written("25s")
    """How long requests may take to end after SIGTERM."""
    log: LogSettings = written({})
    """What is logged, and how."""
    traces: TracesSettings = written({})
    """What is recorded for traces, and where it goes."""
