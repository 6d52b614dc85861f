import ssl

import pytest
from keyturn.practice.tls import Certificates


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Let two contexts shake hands in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(to_client, to_server, server_hostname=name)
    answerer = server.wrap_bio(to_server, to_client, server_side=True)
    done = 0
    while done < 2:
        done = 0
        for side in (caller, answerer):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "::1", "api.getpostman.com", "api.postman.com"])
def test_the_certificate_is_for(name: str) -> None:
    """A client that trusts the authority accepts the certificate under each of its names."""
    certificates = Certificates()
    client = ssl.create_default_context(cadata=certificates.ca_pem.decode())
    handshake(certificates.server_context(), client, name)


def test_it_is_for_no_other_name() -> None:
    """Another name is not accepted."""
    certificates = Certificates()
    client = ssl.create_default_context(cadata=certificates.ca_pem.decode())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(certificates.server_context(), client, "example.com")


def test_each_has_its_own_authority() -> None:
    """Each practice API has an authority of its own."""
    client = ssl.create_default_context(cadata=Certificates().ca_pem.decode())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(Certificates().server_context(), client, "localhost")
