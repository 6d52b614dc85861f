"""The rules for accepting certificates: one set for all TLS, the same on every supported Python.

Python 3.13's own contexts verify strictly (RFC 5280) and accept incomplete chains, earlier ones do neither.
Certificates of Kubernetes' and of many companies' own authorities have no key identifiers, or basic constraints that
are not critical: they are accepted unless `strict_certificates` is set. A certificate that is named as an authority is
trusted itself, also an intermediate one without its root. TLS is 1.2 or later.
"""

import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography import x509

LOWEST_VERSION = ssl.TLSVersion.TLSv1_2

_NO_AUTHORITY_KEY, _NO_SUBJECT_KEY, _NOT_CRITICAL = 85, 86, 89
_FAULTS = {
    _NO_AUTHORITY_KEY: "has no Authority Key Identifier",
    _NO_SUBJECT_KEY: "has no Subject Key Identifier",
    _NOT_CRITICAL: "has Basic Constraints that are not marked critical",
}
_STRICT_ONLY = range(80, 94)
"""OpenSSL's codes of what it refuses only when it is strict (x509_vfy.h, X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA on)."""
_STRICT_ADVICE = "have it issued anew as RFC 5280 asks, or set `strict_certificates: false`"
_MAX_NAME = 120
_MAX_CHAIN = 10


def verify_flags(*, strict: bool) -> tuple[list[ssl.VerifyFlags], list[ssl.VerifyFlags]]:
    """Return the flags to set and the flags to clear, whatever a Python's defaults are."""
    partial, exact = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN, ssl.VerifyFlags.VERIFY_X509_STRICT
    return ([partial, exact], []) if strict else ([partial], [exact])


def apply_rules(context: ssl.SSLContext, *, strict: bool) -> None:
    """Make a context verify by the rules."""
    for flag in verify_flags(strict=strict)[0]:
        context.verify_flags |= flag
    for flag in verify_flags(strict=strict)[1]:
        context.verify_flags &= ~flag
    context.minimum_version = LOWEST_VERSION


def client_context(*, strict: bool, ca: str | Path | None = None, system: bool = True) -> ssl.SSLContext:
    """Make the context of an outbound connection; host names are checked, and errors name the certificate.

    `ca` is a PEM file of authorities to trust, beside the system's or, without `system`, in place of them.

    Raises:
        OSError: `ca` holds no certificate, or cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    apply_rules(context, strict=strict)
    context.sslobject_class, context.sslsocket_class = _NamingObject, _NamingSocket
    if system:
        context.load_default_certs()
    if ca is not None:
        context.load_verify_locations(cafile=ca)
    return context


def refusal(error: Exception, advice: str) -> str:
    """Tell why a certificate is refused, which one it is as far as that is known, and what to do.

    `advice` is for every reason but the strictness that a setting asks for.
    """
    chain: tuple[x509.Certificate, ...] = getattr(error, "chain", ())
    code, said = getattr(error, "verify_code", 0), getattr(error, "verify_message", "").rstrip(".")
    if code in _STRICT_ONLY:
        faulty = next((one for one in chain if _has_fault(one, code)), None)
        whose = f"`{_name(faulty.subject)}`" if faulty else "a certificate of its chain"
        fault = _FAULTS.get(code) or f"is not as RFC 5280 asks ({said})"
        return f"{whose} {fault}, and `strict_certificates` is true: {_STRICT_ADVICE}"
    named = f" (it is of `{_name(chain[0].subject)}`, signed by `{_name(chain[0].issuer)}`)" if chain else ""
    return f"{said or 'it cannot be verified'}{named}: {advice}"


class _NamingObject(ssl.SSLObject):
    """TLS over asyncio; the error about a certificate has the certificates, from the peer's own upwards."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            _attach(error, self)
            raise


class _NamingSocket(ssl.SSLSocket):
    """TLS over a socket that blocks, likewise."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except ssl.SSLCertVerificationError as error:
            _attach(error, self)
            raise


def _attach(error: ssl.SSLCertVerificationError, connection: Any) -> None:
    """Keep the chain with the error; Python has a public way to it from 3.13 on, and after the handshake only."""
    with suppress(AttributeError, ValueError, ssl.SSLError):  # without it the error names no certificate
        sent = [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in connection._sslobj.get_unverified_chain()]  # noqa: SLF001
        known = connection.context.get_ca_certs(binary_form=True) if error.verify_code in _STRICT_ONLY else []
        error.chain = tuple(_upwards(sent, known))  # type: ignore[attr-defined]


def _upwards(sent: list[bytes], known: list[bytes]) -> "Iterator[x509.Certificate]":
    """The peer's certificate, which is the first, that of its issuer, and so on; only these are parsed."""
    from cryptography import x509  # noqa: PLC0415  # only a certificate that is refused is parsed

    encoded = sent[0] if sent else None
    for _ in range(_MAX_CHAIN):
        if encoded is None:
            return
        current = x509.load_der_x509_certificate(encoded)
        yield current
        if current.issuer == current.subject:
            return
        named = current.issuer.public_bytes()
        fitting = (one for one in (*sent, *known) if named in one)
        encoded = next((one for one in fitting if x509.load_der_x509_certificate(one).subject == current.issuer), None)


def _has_fault(certificate: "x509.Certificate", code: int) -> bool:
    """Whether OpenSSL refuses this certificate of a chain with that code."""
    from cryptography import x509  # noqa: PLC0415  # as above

    with suppress(ValueError):
        extensions = {one.oid: one for one in certificate.extensions}
        constraints = extensions.get(x509.BasicConstraints.oid)
        is_authority = bool(constraints and constraints.value.ca)
        if code == _NO_AUTHORITY_KEY:
            return x509.AuthorityKeyIdentifier.oid not in extensions and certificate.issuer != certificate.subject
        if code == _NO_SUBJECT_KEY:
            return x509.SubjectKeyIdentifier.oid not in extensions and is_authority
        return code == _NOT_CRITICAL and is_authority and not (constraints and constraints.critical)
    return False


def _name(name: "x509.Name") -> str:
    """Show a distinguished name, which a stranger may have written, in a line."""
    text = "".join(letter if letter.isprintable() and letter != "`" else "?" for letter in name.rfc4514_string())
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}…"
