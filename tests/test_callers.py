"""Callers of every kind before the real process: certificates, JSON Web Tokens, tokens, and those who have none."""

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.access import issuers
from tests.process import KEYS, TOKENS, House, Reply, calling, client, house, limit, request, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SPIFFE = "spiffe://cluster.example/ns/jobs/sa/build"
NAMES: dict[str, x509.GeneralName] = {
    "by-dns": x509.DNSName("build.example"),
    "by-uri": x509.UniformResourceIdentifier(SPIFFE),
    "by-address": x509.IPAddress(ip_address("192.0.2.7")),
    "by-mail": x509.RFC822Name("build@example.com"),
}
SANS = {"by-dns": "build.example", "by-uri": SPIFFE, "by-address": "192.0.2.7", "by-mail": "build@example.com"}
INTRUDER = "secret-token-of-nobody"


class Authority:
    """Signs certificates with names of any kind."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.pem = folder / f"{name}.pem"
        own = self._builder(self._name, self._key.public_key())
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        own = own.add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
        self.pem.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))

    def issue(
        self, file: str, *names: x509.GeneralName, usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH
    ) -> Path:
        """A certificate and its key in one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "build.example")]), key.public_key()
        ).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        path = self._folder / file
        path.write_bytes(
            builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
            + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return path


def tls_settings(folder: Path, authority: Authority, **more: Any) -> dict[str, Any]:
    """The section `tls`: certificates of callers are verified by the same authority."""
    local = x509.IPAddress(ip_address("127.0.0.1"))
    server = authority.issue("server.pem", local, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    return {"cert": str(server), "key": str(server), "client_ca": str(authority.pem), **more}


def trusting(authority: Authority, certificate: Path | None = None) -> ssl.SSLContext:
    """A caller's side of TLS, with a certificate or without."""
    context = ssl.create_default_context(cafile=str(authority.pem))
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


async def over_tls(home: House, context: ssl.SSLContext, data: bytes) -> Reply:
    """One request over TLS."""
    async with calling(home.keyturn.data, context) as caller:
        return await caller.ask(data)


def who(home: House, path: str) -> int:
    """How many requests for a path arrived upstream."""
    return len(home.arrivals(path))


# Certificates


async def test_a_certificate_is_enough(tmp_path: Path) -> None:
    """Each kind of name says who calls; a token, when there is one, says more; without either nobody is known."""
    authority = Authority(tmp_path)
    clients: list[dict[str, Any]] = [
        {"name": name, "certificate": {"san": san}, "allow": [f"GET /echo/{name}"]} for name, san in SANS.items()
    ]
    tls = tls_settings(tmp_path, authority, client_certificate="optional")
    async with house(tmp_path, tls=tls, clients=[*clients, client("ci")]) as home:
        for name, entry in NAMES.items():
            context = trusting(authority, authority.issue(f"{name}.pem", entry))
            for other in NAMES:
                reply = await over_tls(home, context, request(f"/echo/{other}", token=None))
                assert reply.status == (200 if other == name else 403), (name, other)
            assert (await over_tls(home, context, request("/echo/all"))).status == 200
            reply = await over_tls(home, context, request(f"/echo/{name}", token="PMAK-of-the-caller"))
            assert reply.status == 200
            assert "PMAK-of-the-caller" not in reply.body.decode()
        common_name_only = trusting(authority, authority.issue("bare.pem"))
        reply = await over_tls(home, common_name_only, request("/echo/by-dns", token=None))
        assert (reply.status, "No name in the certificate" in reply.body.decode()) == (401, True)
        plain = trusting(authority)
        assert (await over_tls(home, plain, request("/echo", token=None))).status == 401
        assert (await over_tls(home, plain, request("/echo"))).status == 200


async def test_a_certificate_must_be_signed(tmp_path: Path) -> None:
    """One of another authority or for another purpose ends the handshake, also where none is required."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    name = NAMES["by-dns"]
    tls = tls_settings(tmp_path, authority, client_certificate="optional")
    clients = [{"name": "build", "certificate": {"san": "build.example"}}]
    async with house(tmp_path, tls=tls, clients=clients) as home:
        for certificate in (
            stranger.issue("strange.pem", name),
            authority.issue("purpose.pem", name, usage=ExtendedKeyUsageOID.SERVER_AUTH),
        ):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await over_tls(home, trusting(authority, certificate), request("/me", token=None))
        good = trusting(authority, authority.issue("good.pem", name))
        assert (await over_tls(home, good, request("/me", token=None))).status == 200


# JSON Web Tokens


class Identity:
    """An issuer at an address of this machine, with a discovery document."""

    def __init__(self) -> None:
        self.url = ""
        self.keys = [issuers.jwk(issuers.RSA, "RS256")]

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/.well-known/openid-configuration":
            return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})
        return web.json_response({"keys": self.keys})

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Identity"]:
        """For as long as the block lasts."""
        runner = web.ServerRunner(web.Server(self._answer))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def token(self, **claims: Any) -> str:
        """A token of this moment."""
        now = int(time.time())  # noqa: TID251  # tokens are of the wall clock
        usual = {"iss": self.url, "exp": now + 600, "nbf": now, "iat": now, "sub": "system:serviceaccount:team-a:x"}
        return issuers.token(**{**usual, **claims}).decode()


async def test_a_service_account_is_known_by_its_token(tmp_path: Path) -> None:
    """In every place of a token, from the first request on; the upstream never sees it, not even when it is refused."""
    async with Identity().open() as identity:
        jwt = {"issuer": identity.url, "audience": "keyturn", "subject": "system:serviceaccount:team-a:*"}
        async with house(tmp_path, clients=[{"name": "team-a", "jwt": jwt}, client("ci")]) as home:
            good = identity.token()
            for data in (
                request("/echo/a", f"Authorization: Bearer {good}", token=None),
                request("/echo/a", token=good),
                request(f"/echo/a?apikey={good}", token=None),
            ):
                reply = await home.ask(data)
                assert reply.status == 200, reply.body
                assert good not in reply.body.decode()
            for bad, why in (
                (identity.token(exp=1), "has expired"),
                (identity.token(aud="other"), "another audience"),
                (identity.token(sub="system:serviceaccount:team-b:x"), "no client's"),
                (identity.token(key=issuers.OTHER_RSA), "not signed by its issuer"),
                (identity.token(key=None, algorithm="none"), "not permitted"),
            ):
                reply = await home.ask(request("/echo/b", f"Authorization: Bearer {bad}", token=None))
                assert (reply.status, why in reply.body.decode()) == (401, True), reply.body
                reply = await home.ask(request("/echo/c", f"Authorization: Bearer {bad}"))
                assert (reply.status, bad in reply.body.decode()) == (200, False)
                assert bad not in home.keyturn.process.stderr
            assert who(home, "/echo/b") == 0
            assert good not in home.keyturn.process.stderr


async def test_keys_may_be_in_a_file(tmp_path: Path) -> None:
    """Then nobody is asked."""
    (tmp_path / "keys.json").write_bytes(issuers.jwks(issuers.jwk(issuers.P256, "ES256")))
    jwt = {"issuer": "cluster", "audience": "keyturn", "subject": "*", "jwks_file": "keys.json"}
    async with house(tmp_path, clients=[{"name": "job", "jwt": jwt}]) as home:
        identity = Identity()
        identity.url = "cluster"
        text = identity.token(key=issuers.P256, algorithm="ES256", sub="job")
        assert (await home.ask(request("/me", token=text))).status == 200


# Everybody else


async def test_many_failed_attempts_slow_nobody_but_themselves(tmp_path: Path) -> None:
    """From the same address a valid caller is served meanwhile; some answers come late, the others end connections."""
    async with house(tmp_path) as home:
        bad = request("/me", token=INTRUDER)
        attempts = asyncio.gather(*(home.ask(bad) for _ in range(200)))
        while not attempts.done():
            assert (await home.ask(request("/me"))).status == 200
        replies = attempts.result()
        assert {reply.status for reply in replies} == {401}
        closed = [reply for reply in replies if reply.all("Connection") == ["close"]]
        assert 0 < len(closed) <= 200 - 60
        assert {reply.one("WWW-Authenticate") for reply in replies} == {"Bearer"}
    assert "many failed attempts from 127.0.0.1" in home.keyturn.process.stderr


# Policy


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Clients of different rights."""
    pools = {
        name: {"limits": [limit(10_000, "60s")], "keys": [{"name": f"team-{number}", "secret": KEYS[number - 1]}]}
        for number, name in enumerate(("default", "second"), 1)
    }
    clients = [
        client("reader", allow=["GET /echo/**", "PUT /echo/mine"], pool="second"),
        client("pinner", pin=True, rate={"requests": 3, "window": "1h"}),
        client("ci"),
    ]
    async with house(tmp_path_factory.mktemp("policy"), pools=pools, clients=clients) as home:
        yield home


READER = TOKENS["reader"]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/echo/a"),
        ("GET", "//echo//a"),
        ("GET", "/./echo/./a"),
        ("GET", "/x/../echo/a"),
        ("GET", "/%65cho/a"),
        ("GET", "/echo/a%2Fb"),
        ("GET", "/echo/"),
        ("HEAD", "/echo/a"),
        ("PUT", "/echo/mine"),
    ],
)
async def test_what_is_allowed_passes(home: House, method: str, target: str) -> None:
    """In any way of writing it that has one meaning, and goes on as it was written."""
    reply = await home.ask(request(target, method=method, token=READER))
    assert reply.status != 403, reply.body
    assert home.arrivals(target)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/me"),
        ("GET", "//me"),
        ("GET", "/ECHO/a"),
        ("GET", "/echo/../me"),
        ("GET", "/echo/%2e%2e/me"),
        ("GET", "/echo/%2E%2e/me"),
        ("GET", "/echo/.%2e/me"),
        ("GET", "/echo/a/../../me"),
        ("GET", "/echo/%2e%2e%2fme"),
        ("GET", "/echo/..%2fme"),
        ("GET", "/echo/..%5cme"),
        ("GET", "/echo/..;/me"),
        ("GET", "/echo//../me"),
        ("GET", "/echo/%252e%252e/%zz"),
        ("GET", "/echo/%00/../me"),
        ("GET", "/echo/a%"),
        ("GET", "/../echo/a"),
        ("GET", "/echo%2fa"),
        ("GET", "/me?/echo/a"),
        ("GET", "/me;/echo/a"),
        ("GET", "http://api.getpostman.com/echo/../me"),
        ("DELETE", "/echo/a"),
        ("POST", "/echo/a"),
        ("PATCH", "/echo/mine"),
        ("PUT", "/echo/mine/more"),
        ("PUT", "/echo/x/../mine/../other"),
        ("OPTIONS", "*"),
        ("PROPFIND", "/echo/a"),
    ],
)
async def test_what_is_not_allowed_does_not_slip_past(home: House, method: str, target: str) -> None:
    """Neither by dots, slashes, escapes and parameters nor by another method."""
    before = len(home.api.arrivals)
    assert (await home.ask(request(target, method=method, token=READER))).status == 403
    assert len(home.api.arrivals) == before


@pytest.mark.parametrize("method", ["get", "Get", "delete", "dELETE"])
async def test_the_case_of_a_method_opens_nothing(home: House, method: str) -> None:
    """Methods are case-sensitive to HTTP (RFC 9110, section 9.1): it is refused, or judged as what it looks like."""
    before = len(home.api.arrivals)
    reply = await home.ask(request("/me", method=method, token=READER))
    assert reply.status in (400, 403)
    assert len(home.api.arrivals) == before


async def test_a_client_uses_the_keys_of_its_pool(home: House) -> None:
    """Only those."""
    for token, key in ((READER, "team-2"), (TOKENS["ci"], "team-1")):
        assert (await home.ask(request("/echo/pool", token=token))).one("Keyturn-Key") == key


async def test_a_client_may_choose_a_key_only_where_it_may(home: House) -> None:
    """And only one of its pool."""
    pinned = request("/echo/pin", "Keyturn-Key: team-1", token=TOKENS["pinner"])
    assert (await home.ask(pinned)).one("Keyturn-Key") == "team-1"
    foreign = request("/echo/pin", "Keyturn-Key: team-2", token=TOKENS["pinner"])
    assert (await home.ask(foreign)).status == 400
    assert (await home.ask(request("/echo/pin", "Keyturn-Key: team-1"))).status == 403


async def test_a_clients_rate_is_its_own(tmp_path: Path) -> None:
    """So many at once, then 429 with the time at which another is accepted; nobody else is touched."""
    clients = [client("reader", rate={"requests": 3, "window": "1h"}), client("ci")]
    async with house(tmp_path, clients=clients) as home:
        replies = [await home.ask(request("/me", token=READER)) for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
        assert 1100 < int(replies[-1].one("Retry-After")) <= 1200
        assert (await home.ask(request("/me"))).status == 200


async def test_a_client_has_only_so_many_waiting(tmp_path: Path) -> None:
    """The next is refused at once; another client's lane is its own."""
    clients = [client("reader", max_waiting=1), client("ci")]
    async with house(tmp_path, limits=(limit(1, "60s"),), keys=KEYS[:1], clients=clients) as home:
        assert (await home.ask(request("/me"))).status == 200
        patient = request("/me", "Prefer: wait=300", token=READER)
        async with calling(home.keyturn.data) as first, calling(home.keyturn.data) as other:
            first.send(patient)
            await home.keyturn.waiting(1)
            reply = await home.ask(patient)
            assert (reply.status, reply.error) == (429, "rateLimitError")
            other.send(request("/me", "Prefer: wait=300"))
            await home.keyturn.waiting(2)
    assert json.loads(reply.body)


async def test_who_may_not_wait_is_served_while_there_is_something_to_have(tmp_path: Path) -> None:
    """However many come at once; `max_waiting` bounds those that have to wait."""
    clients = [client("ci"), client("reader", max_waiting=0)]
    async with house(tmp_path, clients=clients, limits=(limit(20, "60s"),), keys=KEYS[:1]) as home:
        assert (await home.ask(request("/me"))).status == 200
        await until_settled(home)
        data = request("/me", token=TOKENS["reader"])
        replies = await asyncio.gather(*(home.ask(data) for _ in range(30)))
        assert Counter(reply.status for reply in replies) == {200: 19, 429: 11}
        assert all(int(reply.one("Retry-After")) >= 50 for reply in replies if reply.status == 429)


async def until_settled(home: House) -> None:
    """See that the first request of a quota, which goes alone, is over for the store as well."""

    async def settled() -> bool:
        return await home.keyturn.metric("keyturn_tokens_available") == 19

    await until(settled, "the rest of the tokens is at hand")
