"""The typed configuration: `load` reads it, `Config` holds it, `schema`, `effective` and `warnings` speak about it."""

from keyturn.config.loading import Config, load
from keyturn.config.models import (
    AnonymousSettings,
    CertificateSettings,
    ClientSettings,
    InboundSettings,
    JwtSettings,
    KeySettings,
    LimitSettings,
    LogSettings,
    PoolSettings,
    QueueSettings,
    RateSettings,
    RetrySettings,
    StoreSettings,
    TlsSettings,
    UpstreamSettings,
)
from keyturn.config.report import effective, schema, warnings
from keyturn.config.units import Listener, TcpListener, UnixListener, format_duration, parse_duration, parse_listener
from keyturn.config.urls import StoreUrl

__all__ = [
    "AnonymousSettings",
    "CertificateSettings",
    "ClientSettings",
    "Config",
    "InboundSettings",
    "JwtSettings",
    "KeySettings",
    "LimitSettings",
    "Listener",
    "LogSettings",
    "PoolSettings",
    "QueueSettings",
    "RateSettings",
    "RetrySettings",
    "StoreSettings",
    "StoreUrl",
    "TcpListener",
    "TlsSettings",
    "UnixListener",
    "UpstreamSettings",
    "effective",
    "format_duration",
    "load",
    "parse_duration",
    "parse_listener",
    "schema",
    "warnings",
]
