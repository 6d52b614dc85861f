"""Certificates as companies and clusters issue them: with and without what RFC 5280 asks of authorities."""

import datetime as dt
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_LOOPBACK = ip_address("127.0.0.1")

Sort = Literal["conforming", "no key identifiers", "no subject key identifier", "not critical"]
LENIENT: tuple[Sort, ...] = ("no key identifiers", "no subject key identifier", "not critical")
"""Those that are refused when certificates are verified strictly."""
FAULTS: dict[Sort, str] = {
    "no key identifiers": "`CN=leaf of no key identifiers` has no Authority Key Identifier",
    "no subject key identifier": "`CN=CA of no subject key identifier` has no Subject Key Identifier",
    "not critical": "`CN=CA of not critical` has Basic Constraints that are not marked critical",
}
"""Reasons that a refusal by strict verification names."""


class Authority:
    """A root, an authority below it that issues for 127.0.0.1 and localhost, and their files."""

    def __init__(self, folder: Path, sort: Sort = "conforming", *, intermediate: bool = False) -> None:
        self._folder, self._sort = folder, sort
        root_key = ec.generate_private_key(ec.SECP256R1())
        root = self._issue(f"CA of {sort}", root_key, None, authority=True)
        self._issuer, self._issuer_key, self._between = root, root_key, b""
        if intermediate:
            key = ec.generate_private_key(ec.SECP256R1())
            self._issuer, self._issuer_key = self._issue("intermediate", key, (root, root_key), authority=True), key
            self._between = self._issuer.public_bytes(Encoding.PEM)
        self.ca = self._write("ca.pem", root.public_bytes(Encoding.PEM))
        self.issuer = self._write("issuer.pem", self._issuer.public_bytes(Encoding.PEM))
        self.cert, self.key = self.issue("leaf")

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate with its chain, and its key, as PEM files."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(f"{name} of {self._sort}", key, (self._issuer, self._issuer_key), authority=False)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = certificate.public_bytes(Encoding.PEM) + self._between
        return self._write(f"{name}.pem", chain), self._write(f"{name}.key", private)

    def server_context(self) -> ssl.SSLContext:
        """Return the TLS context of a server with such a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / f"{self._sort.replace(' ', '-')}-{name}"
        path.write_bytes(data)
        return path

    def _issue(
        self, name: str, key: ec.EllipticCurvePrivateKey, by: tuple[x509.Certificate, Any] | None, *, authority: bool
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder(by[0].subject if by else subject, subject, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=10))
        )
        if authority:
            constraints = x509.BasicConstraints(ca=True, path_length=None)
            builder = builder.add_extension(constraints, critical=self._sort != "not critical")
            builder = builder.add_extension(_usage(), critical=True)
        else:
            names = [x509.DNSName("localhost"), x509.IPAddress(_LOOPBACK)]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if self._sort not in ("no key identifiers", "no subject key identifier"):
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        if by and self._sort != "no key identifiers":
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(by[1].public_key())
            builder = builder.add_extension(identifier, critical=False)
        return builder.sign(by[1] if by else key, hashes.SHA256())


def _usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
