"""The typed configuration: `load` reads it, `Config` holds it, `schema`, `effective` and `warnings` speak about it."""

from proxy.config.loading import load
from proxy.config.models import (
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
from proxy.config.report import effective, warnings
from proxy.config.resolved import Config
from proxy.config.schema import schema
from proxy.config.units import Listener, TcpListener, UnixListener, format_duration, parse_duration, parse_listener
from proxy.config.urls import StoreUrl

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
