"""The settings of config.yaml, section by section, in the order of the documentation.

The docstring under a setting is its description in the JSON Schema. Single values are checked here, combinations of
settings and the files that they name in `keyturn.config.checks`.
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
    """The server's certificate chain, a PEM file."""
    key: FilePath
    """The certificate's private key, a PEM file."""
    client_ca: FilePath | None = None
    """Mutual TLS: the authority that must have signed callers' certificates, a PEM file."""
    client_certificate: Literal["required", "optional"] = "required"
    """With `client_ca`: `optional` also admits callers without a certificate, which then need another credential."""


class InboundSettings(Settings):
    """Limits and timeouts of callers' connections to the data listeners."""

    max_connections: Annotated[int, Field(ge=1, le=1_000_000), Number] = 10_000
    """Concurrent connections; further ones get 503 and are closed."""
    max_connections_per_address: Annotated[int, Field(ge=1, le=1_000_000), Number] = 5_000
    """Concurrent connections from one IPv4 address or IPv6 /64 network; Unix sockets are not counted."""
    max_buffered: Annotated[int, Field(ge=1 << 20, le=1 << 40), Number] = 67_108_864
    """Bytes of incoming requests in memory, over all connections; reading pauses beyond it."""
    max_head: Annotated[int, Field(ge=8_192, le=1 << 20), Number] = 65_536
    """Bytes of the request line and header fields; larger ones get 431."""
    max_fields: Annotated[int, Field(ge=16, le=10_000), Number] = 128
    """Header fields of a request; more get 431."""
    max_target: Annotated[int, Field(ge=1_024, le=1 << 20), Number] = 32_768
    """Bytes of the request target, less than `max_head`; longer ones get 414."""
    head_timeout: Timeout = written("10s")
    """Time from the first to the last byte of the header (408), and for the TLS handshake."""
    body_timeout: Timeout = written("30s")
    """Total time to wait for body bytes (408), plus one second per KiB received."""
    upload_timeout: Timeout = written("120s")
    """Time, from the grant of a token, for the rest of a body that was too large to read in advance (408)."""
    spool_memory: Annotated[int, Field(ge=0, le=1 << 24), Number] = 262_144
    """Bytes of one body kept in memory until the request ends; larger bodies go to a temporary file."""
    max_spooled: Annotated[int, Field(ge=16_384, le=1 << 40), Number] = 16_777_216
    """Bytes of one body read before the request is queued; the rest of a larger body streams under its lease."""
    spool_size: Annotated[int, Field(ge=0, le=1 << 50), Number] = 1_073_741_824
    """Bytes of all bodies in temporary files, at most a quarter for one client; 0: no files."""
    write_timeout: Timeout = written("60s")
    """Close the connection when the caller has read none of its response for this long."""
    idle_timeout: Timeout = written("75s")
    """Close a connection that has been without a request for this long."""
    socket_mode: Permissions = written("0660")
    """Permissions of the Unix sockets in `listen`; connecting needs write permission."""
    trusted_proxies: tuple[TrustedProxy, ...] = ()
    """Addresses and networks of proxies whose reports of callers' addresses are trusted; `unix`: Unix sockets."""


class UpstreamSettings(Settings):
    """The API that requests are sent to: its address, connections and timeouts."""

    url: UpstreamUrl = "https://api.getpostman.com"
    """Scheme, host and port. Certificates are always verified; http:// only to a loopback address, for tests."""
    ca: FilePath | None = None
    """Authorities to trust in addition to the system's, a PEM file."""
    key_header: HeaderToSet = "X-Api-Key"
    """The header that carries the API key; a caller's own is removed."""
    key_query: QueryName = "apikey"
    """The query parameter in which callers may send their token; it is removed."""
    connect_timeout: Timeout = written("5s")
    """Time to connect to the upstream, including name resolution and TLS."""
    response_timeout: Timeout = written("310s")
    """Time from the end of the request to the header of the response."""
    max_connections: Annotated[int, Field(ge=1, le=65_536), Number] = 256
    """Concurrent connections to the upstream; requests wait while all are in use."""
    max_connection_age: Timeout = written("5m")
    """Connections older than this are not reused, so that DNS changes take effect."""
    settle_bound: Timeout = written("10s")
    """A request without a response is assumed to have been received at its end or this long after it was sent."""
    max_body: Annotated[int, Field(ge=0, le=1 << 40), Number] = 104_857_600
    """Bytes of a request body; larger ones get 413."""
    forwarded: bool = False
    """Send the caller's address to the upstream (Forwarded, X-Forwarded-For, -Host and -Proto)."""


class LimitSettings(Settings):
    """A limit of the upstream: requests per window, counted for each quota."""

    requests: Requests
    """Requests permitted in one window: 1 to 100000."""
    window: Window
    """The upstream's window: 1ms to 31d."""
    match: tuple[RuleText, ...] = ()
    """Rules for the requests that count, such as `GET /workspaces/*`; empty: all requests."""


class KeySettings(Settings):
    """One upstream API key, with its secret in `secret` or in the file `secret_file`."""

    name: Name
    """The key's name, shown in responses, metrics and pages."""
    secret: SecretText | None = None
    """The API key; prefer `${NAME}`."""
    secret_file: FilePath | None = None
    """A file that contains only the API key."""
    quota: Name | None = None
    """The budget that the upstream counts the key against; keys of one Postman user share it. Default: its own."""


class PoolSettings(Settings):
    """Interchangeable keys, and the limits of each quota."""

    limits: tuple[LimitSettings, ...] = written([{"requests": 60, "window": "60s"}])
    """The upstream's limits; a request counts against every limit that it matches."""
    guard: Duration = written("100ms")
    """Safety margin added to each window."""
    keys: tuple[KeySettings, ...] = ()
    """The API keys. Without `keys` and `keys_dir` the pool `default` reads them from POSTMAN_API_KEYS."""
    keys_dir: FilePath | None = None
    """A folder with one file per key, named after the key."""
    headers: Mapping[HeaderToSet, HeaderValue] = Field(default_factory=dict)
    """Headers set on each request to the upstream; they replace those of the caller."""


class StoreSettings(Settings):
    """Where tokens are kept: in this process, or in a Redis that replicas share."""

    url: StoreUrlText = written("memory://")
    """memory://, redis://, rediss://, unix://, redis+sentinel://h:p,h:p/service or redis+cluster://h:p,h:p."""
    username: Annotated[str, Field(min_length=1)] | None = None
    """The store's user, instead of one in the URL; not percent-decoded."""
    password: PasswordText | None = None
    """The store's password, instead of one in the URL; not percent-decoded. Prefer `${NAME}`."""
    password_file: FilePath | None = None
    """A file that contains only the store's password."""
    sentinel_username: Annotated[str, Field(min_length=1)] | None = None
    """The sentinels' user; not percent-decoded."""
    sentinel_password: PasswordText | None = None
    """The sentinels' password; not percent-decoded."""
    sentinel_password_file: FilePath | None = None
    """A file that contains only the sentinels' password."""
    prefix: Name = "keyturn"
    """Prefix of every key in Redis."""
    timeout: Timeout = written("500ms")
    """Timeout of one exchange with the store."""
    on_loss: Literal["share", "wait", "refuse"] = "share"
    """While the store is lost: use this replica's `share`, let requests `wait`, or `refuse` them with 503."""


class QueueSettings(Settings):
    """How long and how many requests may wait for a token."""

    max_wait: Duration = written("30s")
    """The longest wait of a request without `Prefer: wait=N`."""
    max_wait_ceiling: Duration = written("300s")
    """The longest wait that a request may ask for."""
    max_waiting: Annotated[int, Field(ge=0, le=10_000_000), Number] = 10_000
    """Waiting requests in this replica."""
    join: bool = False
    """Let identical waiting GETs share one request to the upstream, and its response."""


class RetrySettings(Settings):
    """Retries after failures that are not the caller's fault."""

    attempts: Annotated[int, Field(ge=1, le=10), Number] = 3
    """Attempts per request, including the first; 429s and dead keys do not count."""
    budget: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Number] = 0.2
    """Retries per request of a client, over the last 10 s."""


class RateSettings(Settings):
    """The rate at which requests of a client are accepted."""

    requests: Requests
    """Requests per window: 1 to 100000."""
    window: Window
    """The window: 1ms to 31d."""


class CertificateSettings(Settings):
    """A client certificate that `tls.client_ca` verifies."""

    san: Annotated[str, Field(min_length=1)]
    """A subject alternative name of the certificate: a DNS name, a URI or an address."""


class JwtSettings(Settings):
    """JSON Web Tokens of an OpenID Connect issuer, such as a Kubernetes cluster."""

    issuer: Annotated[str, Field(min_length=1)]
    """The token's `iss`."""
    audience: Annotated[str, Field(min_length=1)]
    """One of the token's `aud`."""
    subject: Annotated[str, Field(min_length=1)]
    """The token's `sub`; `*` stands for one or more characters other than a colon."""
    jwks_url: KeysUrl | None = None
    """URL of the issuer's public keys; by default from its discovery document."""
    jwks_file: FilePath | None = None
    """A file with the issuer's public keys, instead of a URL."""
    ca: FilePath | None = None
    """Authorities to trust instead of the system's when the keys are fetched, a PEM file."""
    bearer_file: FilePath | None = None
    """A file with the bearer token for fetching the keys, such as the pod's service account token."""
    algorithms: Annotated[tuple[Algorithm, ...], AfterValidator(_some)] | None = None
    """Accepted signature algorithms; by default all of RS, PS, ES and EdDSA."""
    leeway: Leeway | None = None
    """Tolerated difference between the issuer's clock and this one, up to 5m; default 30s."""


class CallerSettings(Settings):
    """A caller's name, pool, share and permissions."""

    name: Name
    """Public: it stands in metrics and logs."""
    pool: Name = "default"
    """The pool for its requests."""
    weight: Annotated[int, Field(ge=1, le=1000), Number] = 1
    """Share of the pool while others wait too: weight 2 gets twice as much as weight 1."""
    urgency: Annotated[int, Field(ge=0, le=7), Number] = 3
    """Order among its own requests, 0 first; a request's `Priority: u=` may only raise the number."""
    max_waiting: Annotated[int, Field(ge=0, le=10_000_000), Number] | None = None
    """Its waiting requests in this replica; `queue.max_waiting` by default."""
    max_in_flight: Annotated[int, Field(ge=1, le=65_536), Number] | None = None
    """Its requests in flight from this replica; half of `upstream.max_connections` by default."""
    rate: RateSettings | None = None
    """The rate at which its requests are accepted; beyond it they get 429 at once."""
    allow: tuple[RuleText, ...] | None = None
    """Rules for permitted requests, such as `GET /**`; everything by default."""
    pin: bool = False
    """Allow it to choose the key with the header `Keyturn-Key`."""


class AnonymousSettings(CallerSettings):
    """Callers without a known credential, where none is required."""

    name: Name = "local"
    """Public: it stands in metrics and logs."""


class ClientSettings(CallerSettings):
    """A client: its name, credentials, share and permissions."""

    token: SecretText | None = None
    """Its token; prefer `${NAME}`."""
    token_sha256: Sha256 | None = None
    """The SHA-256 of its token, as `keyturn token` prints it."""
    certificate: CertificateSettings | None = None
    """Its TLS certificate."""
    jwt: JwtSettings | None = None
    """Its JSON Web Tokens."""


class LogSettings(Settings):
    """Level, format and sampling of the log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is logged."""
    format: Literal["text", "json"] | None = None
    """The format of log lines; by default text on a terminal, else json."""
    sample: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Number] = 1.0
    """Fraction of successful requests to log, 0 to 1; all others are always logged."""


class TracesSettings(Settings):
    """OpenTelemetry traces; needs the extra `keyturn[otel]`."""

    endpoint: CollectorUrl | None = None
    """The collector, OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; no traces without it."""
    sample: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Number] = 1.0
    """Fraction of requests to record, 0 to 1, unless the caller's `traceparent` decides."""


class Document(Settings):
    """config.yaml."""

    listen: Listeners = written("127.0.0.1:8080")
    """Addresses for callers: `host:port` or `unix:/path`, one or a list; port 0 lets the system choose."""
    admin: ListenerText = written("127.0.0.1:9090")
    """Address for health, metrics and the status page; never that of a data listener."""
    admin_token: SecretText | None = None
    """Bearer token for pausing keys and setting the log level on the admin listener; disabled by default."""
    tls: TlsSettings | None = None
    """TLS on the data listeners; plain HTTP by default."""
    strict_certificates: bool = False
    """Reject valid certificates, of servers and callers, that do not follow RFC 5280 strictly."""
    inbound: InboundSettings = written({})
    """Limits and timeouts of callers' connections."""
    upstream: UpstreamSettings = written({})
    """The API that requests are sent to."""
    pools: Mapping[Name, PoolSettings] = written({"default": {}})
    """Pools of keys, by name."""
    store: StoreSettings = written({})
    """Where tokens are kept."""
    queue: QueueSettings = written({})
    """How long and how many requests may wait."""
    retry: RetrySettings = written({})
    """Retries of failed requests."""
    authentication: Literal["required", "off"] | None = None
    """Default: `required` when clients are configured or a listener is not loopback, else `off`."""
    allow_anonymous_network: bool = False
    """Permit `authentication: off` on a listener that is not loopback: anybody who reaches it can use the keys."""
    anonymous: AnonymousSettings = written({})
    """The client that callers without a credential are treated as, with `authentication: off`."""
    clients: tuple[ClientSettings, ...] = ()
    """The known callers."""
    lame_duck: Duration = written("0s")
    """How long to serve after SIGTERM before `drain` begins; each connection is closed after one more response."""
    drain: Duration = written("25s")
    """How long requests may take to complete after SIGTERM."""
    log: LogSettings = written({})
    """The log."""
    traces: TracesSettings = written({})
    """OpenTelemetry traces."""
