"""The practice API's own certificate authority, made anew for each."""

import ssl

import trustme

_NAMES = ("127.0.0.1", "localhost", "::1", "api.getpostman.com", "api.postman.com")


class Certificates:
    """An authority, and a certificate of its for this machine and for the real API's names."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self._leaf = authority.issue_cert(*_NAMES)
        self.ca_pem: bytes = authority.cert_pem.bytes()

    def server_context(self) -> ssl.SSLContext:
        """What a server needs to speak HTTPS."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        self._leaf.configure_cert(context)
        return context
