import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from keyturn.trust import apply_rules, client_context, refusal

from tests.authorities import FAULTS, LENIENT, Authority, Sort


async def connect(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> None:
    """Shake hands over asyncio."""
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        writer.close()


async def why(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> str:
    """Why a certificate is refused."""
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        await connect(server, client, name)
    return refusal(caught.value, "name its CA")


@pytest.mark.parametrize("sort", ["conforming", *LENIENT])
async def test_certificates_of_every_sort_are_accepted(tmp_path: Path, sort: Sort) -> None:
    """By default, on every Python; its own default context refuses some of them from 3.13 on."""
    authority = Authority(tmp_path, sort)
    await connect(authority.server_context(), client_context(strict=False, ca=authority.ca))


async def test_a_conforming_certificate_is_accepted_strictly(tmp_path: Path) -> None:
    """Strictness asks for no more than what RFC 5280 asks for."""
    authority = Authority(tmp_path, intermediate=True)
    await connect(authority.server_context(), client_context(strict=True, ca=authority.ca))


@pytest.mark.parametrize("sort", LENIENT)
async def test_a_strict_refusal_names_certificate_extension_and_setting(tmp_path: Path, sort: Sort) -> None:
    """Also when the faulty certificate is the trusted one, which the server does not send."""
    authority = Authority(tmp_path, sort)
    said = await why(authority.server_context(), client_context(strict=True, ca=authority.ca))
    assert said.startswith(f"{FAULTS[sort]}, and `strict_certificates` is true: ")
    assert said.endswith("or set `strict_certificates: false`")


@pytest.mark.parametrize("sort", LENIENT)
def test_blocking_sockets_tell_the_same(tmp_path: Path, sort: Sort) -> None:
    """As the trace exporter uses them."""
    authority = Authority(tmp_path, sort)
    server, client = socket.socketpair()

    def serve() -> None:
        with pytest.raises(ssl.SSLError):
            authority.server_context().wrap_socket(server, server_side=True)

    with ThreadPoolExecutor(1) as pool, client:
        served = pool.submit(serve)
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            client_context(strict=True, ca=authority.ca).wrap_socket(client, server_hostname="localhost")
        served.result()
    assert FAULTS[sort] in refusal(caught.value, "")


async def test_a_named_authority_is_trusted_without_its_root(tmp_path: Path) -> None:
    """An incomplete chain ends at whatever the file names, on every Python."""
    authority = Authority(tmp_path, intermediate=True)
    for strict in (False, True):
        await connect(authority.server_context(), client_context(strict=strict, ca=authority.issuer))


async def test_other_refusals_name_the_certificate_and_its_issuer(tmp_path: Path) -> None:
    """An unknown authority and another host's name; the advice is the caller's."""
    authority = Authority(tmp_path)
    unknown = await why(authority.server_context(), client_context(strict=False))
    assert unknown == (
        "unable to get local issuer certificate "
        "(it is of `CN=leaf of conforming`, signed by `CN=CA of conforming`): name its CA"
    )
    known = client_context(strict=False, ca=authority.ca)
    assert "not valid for 'other.example'" in await why(authority.server_context(), known, "other.example")


async def test_an_authority_in_place_of_the_system_s(tmp_path: Path) -> None:
    """With `system` those of the system are trusted too."""
    authority = Authority(tmp_path)
    alone = client_context(strict=False, ca=authority.ca, system=False)
    assert [one["subject"] for one in alone.get_ca_certs()] == [((("commonName", "CA of conforming"),),)]
    with pytest.raises(OSError):
        client_context(strict=False, ca=tmp_path / "none")


def test_the_rules_hold_whatever_the_defaults_are() -> None:
    """Both flags are decided, and no TLS before 1.2."""
    exact, partial = ssl.VerifyFlags.VERIFY_X509_STRICT, ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    for strict in (False, True):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_flags |= exact
        apply_rules(context, strict=strict)
        assert bool(context.verify_flags & exact) is strict
        assert context.verify_flags & partial
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_an_error_without_a_chain_is_told_too() -> None:
    """As of a library that makes its own contexts."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    assert refusal(error, "name its CA") == "it cannot be verified: name its CA"
    error.verify_code, error.verify_message = 86, "Missing Subject Key Identifier"
    assert refusal(error, "").startswith("a certificate of its chain has no Subject Key Identifier, and `strict_")
    error.verify_code, error.verify_message = 87, "Empty Subject Alternative Name extension"
    assert "is not as RFC 5280 asks (Empty Subject Alternative Name extension)" in refusal(error, "")
