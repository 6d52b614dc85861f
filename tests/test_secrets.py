"""Secrets never get out (law 11): secrets of every kind are marked, and every output is searched for them."""

import asyncio
import copy
import dataclasses
import gc
import io
import json
import logging
import pickle
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import redirect_stderr
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pytest
from keyturn import config
from keyturn.app import App
from keyturn.core.model import Secret
from keyturn.telemetry import set_up_logs

from tests.access import issuers
from tests.observability.collector import OPENMETRICS, Collector, attributes, collecting
from tests.placements import KNOWN, UNKNOWN, UPSTREAMS, holds, placements
from tests.process import Keyturn, ask, calling, command, limit, request, serving, write
from tests.vectors.origin import Answering, Origin

KEYS = {name: f"PMAK-5ecret-of-{name}-0123456789abcdef" for name in ("inline", "in-a-file", "in-a-folder")}
TOKENS = {name: f"5ecret-token-of-{name}" for name in ("plain", "hashed", "nobody")}
ADMIN_TOKEN = "5ecret-token-of-the-admin"
PASSWORD = "5ecret-password-of-the-store"


def settings(folder: Path, upstream: str, **more: Any) -> dict[str, Any]:
    """A configuration that holds a secret wherever there can be one; its store cannot be reached."""
    (folder / "key").write_text(KEYS["in-a-file"] + "\n")
    (folder / "keys.d").mkdir()
    (folder / "keys.d" / "in-a-folder").write_text(KEYS["in-a-folder"])
    (folder / "jwks.json").write_bytes(issuers.jwks(issuers.jwk(issuers.P256, "ES256")))
    for path in (folder / "key", folder / "keys.d" / "in-a-folder"):
        path.chmod(0o600)
    keys = [{"name": "inline", "secret": KEYS["inline"]}, {"name": "in-a-file", "secret_file": "key"}]
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "admin_token": ADMIN_TOKEN,
        "upstream": {"url": upstream, "response_timeout": "300ms"},
        "pools": {"default": {"limits": [limit(10_000, "60s")], "keys": keys, "keys_dir": "keys.d"}},
        "store": {"url": f"redis://user:{PASSWORD}@127.0.0.1:1/0", "timeout": "50ms"},
        "clients": [
            {"name": "plain", "token": TOKENS["plain"], "allow": ["GET /**", "POST /**"]},
            {"name": "hashed", "token_sha256": sha256(TOKENS["hashed"].encode()).hexdigest(), "pin": True},
            {
                "name": "job",
                "jwt": {"issuer": "cluster", "audience": "keyturn", "subject": "*", "jwks_file": "jwks.json"},
            },
        ],
        "retry": {"attempts": 1},
        "log": {"level": "debug", "format": "json"},
        **more,
    }


def jwt(**claims: Any) -> str:
    """A token of the issuer."""
    now = int(time.time())  # noqa: TID251  # tokens are of the wall clock
    usual = {"iss": "cluster", "aud": "keyturn", "sub": "job", "exp": now + 600}
    return issuers.token(key=issuers.P256, algorithm="ES256", **{**usual, **claims}).decode()


# Through the process


def echoing(key: str) -> bytes:
    """An answer that shows the key wherever an answer's head has room for it."""
    return (
        f"HTTP/1.1 103 {key}\r\nLink: <{key}>\r\n\r\nHTTP/1.1 200 {key}\r\nLocation: /me?apikey={key}&x=1\r\n"
        f"X-Echo: {key}\r\nX-{key}: 1\r\nWWW-Authenticate: Key {key}\r\n"
        f"Set-Cookie: key={key}; Path=/\r\nContent-Length: 2\r\n\r\nok"
    ).encode()


def ways_in(good: str, bad: str) -> Iterator[bytes]:
    """Requests that end in every way, each with secrets in it."""
    plain, hashed, nobody = TOKENS["plain"], TOKENS["hashed"], TOKENS["nobody"]
    for token in (plain, hashed, nobody, good, bad):
        yield request("/me", f"Authorization: Bearer {token}", token=None)
        yield request("/me", token=token)
        yield request(f"/me?a=1&apikey={token}", token=None)
        yield request("/me", f"X_Api_Key: {token}", "Cookie: a=b", token=plain)
        yield request("/me", f"Keyturn-Key: {token}", token=hashed)
        yield request("/me", f"Host: {token}", token=plain)
        yield request(f"http://{token}@example.com/me?apikey={token}", token=plain)
        yield f"GET /me HTTP/1.1\r\nHost: a\r\nX-Api-Key {token}\r\n\r\n".encode()
        yield f"{token} /me?apikey={token} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        yield request("/me", "X: " + "x" * 70_000, token=token)
        yield request("/me?apikey=" + token + "x" * 40_000, token=None)
    for key in KEYS:
        yield request(f"/echo/{key}", f"Keyturn-Key: {key}", token=hashed)
    yield request("/me", "Via: 1.1 keyturn, 1.1 keyturn, 1.1 keyturn, 1.1 keyturn", token=plain)
    yield request("/me", "Accept: application/problem+json", token=nobody)
    yield request("/broken", token=plain)
    yield request("/late", token=plain)
    yield request("/me", method="DELETE", token=plain)
    yield request("/me", method="TRACE", token=plain)
    yield request("/me", "Content-Length: 999999999999", method="POST", token=plain)


async def out_of_the_data_listener(keyturn: Keyturn) -> bytes:
    """All that callers are told."""
    said = []
    for data in ways_in(jwt(), jwt(sub="job", aud="5ecret-audience")):
        async with calling(keyturn.data) as caller:
            caller.send(data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            said.append(await caller.ended())
        assert b"HTTP/1.1 " in said[-1], data
    return b"\n".join(said)


async def out_of_the_admin_listener(keyturn: Keyturn) -> bytes:
    """Every page, and what is told to those who may not, or may, change something."""
    paths = ("/", "/status.json", "/metrics", "/healthz", "/readyz", f"/{ADMIN_TOKEN}?token={ADMIN_TOKEN}")
    said = [await keyturn.page(path) for path in paths]
    said.append(await ask(keyturn.admin, request("/metrics", OPENMETRICS, token=None)))
    for token in (ADMIN_TOKEN, TOKENS["nobody"], KEYS["inline"]):
        for path in (
            "/keys/default/inline/pause",
            "/keys/default/inline/resume",
            "/log/debug",
            "/keys/default/no/pause",
        ):
            bearer = f"Authorization: Bearer {token}"
            said.append(await ask(keyturn.admin, request(path, bearer, method="POST", token=None)))
    return b"\n".join(reply.head + reply.body for reply in said)


async def out_of_commands(keyturn: Keyturn, path: Path) -> str:
    """Return the output of the commands about the configuration and the process."""
    ended = [
        await command("check", "-c", str(path), folder=path.parent),
        await command("status", "--json", "--url", keyturn.admin, folder=path.parent),
    ]
    assert [end.code for end in ended] == [0, 0]
    return "\n".join(end.out + end.err for end in ended)


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    """An upstream that shows each key in its answers, breaks off, and is late."""
    origin = Origin()
    origin.answers = {f"/echo/{name}".encode(): Answering((echoing(key),)) for name, key in KEYS.items()}
    origin.answers[b"/broken"] = Answering((b"HTTP/1.1 200 O",), "close")
    origin.answers[b"/late"] = Answering(then="never")
    async with origin.open():
        yield origin


async def test_no_way_out_shows_a_secret(tmp_path: Path, origin: Origin) -> None:
    """Not an answer, a page, a command, the log or a span; upstream goes one key, in its field, and no token."""
    async with collecting() as (collector, endpoint):
        path = write(tmp_path, settings(tmp_path, origin.url, traces={"endpoint": endpoint}))
        told = await everything_told(path)
    told["spans"] = b"\n".join(collector.received).decode("latin-1")
    assert {way for way, text in told.items() if "5ecret" in text} == set()
    assert "the store does not respond" in told["log"]
    assert not re.search(r"\bey[\w-]{20,}\.", "".join(told.values()))
    assert "Location: /me?apikey=***&x=1\r\n" in told["answers"]
    assert ' # {trace_id="' in told["pages"]
    check_what_was_traced(collector)
    check_what_went_upstream(origin)


async def everything_told(path: Path) -> dict[str, str]:
    """Return the output of a process from its start to its end, by its source."""
    async with serving(path) as keyturn:
        told = {
            "answers": (await out_of_the_data_listener(keyturn)).decode("latin-1"),
            "pages": (await out_of_the_admin_listener(keyturn)).decode("latin-1"),
            "commands": await out_of_commands(keyturn, path),
        }
        keyturn.process.signal(signal.SIGTERM)
        await keyturn.process.ended()
        told["log"] = keyturn.process.stderr
    return told


def check_what_was_traced(collector: Collector) -> None:
    """Requests of every kind were among it, with their waits and tries."""
    seen = [(span.name, attributes(span)) for span in collector.spans]
    assert {"wait", "GET", "POST"} < {name for name, _ in seen}
    assert {key for _, told in seen if (key := told.get("keyturn.key"))} == set(KEYS)
    assert {"", "forbidden", "unauthenticated", "too_large", "upstream"} <= {
        told.get("keyturn.reason", "") for _, told in seen
    }


def check_what_went_upstream(origin: Origin) -> None:
    """Nothing of a caller's, and of ours the key alone."""
    assert len(origin.arrivals) > 12
    for arrival in origin.arrivals:
        (key,) = arrival.values(b"x-api-key")
        assert key.decode() in KEYS.values()
        rest = arrival.head.replace(b"X-Api-Key: " + key, b"") + arrival.body
        assert b"5ecret" not in rest
        assert b"Bearer ey" not in rest


# Credentials that callers repeat


def placing(upstream: str, **more: Any) -> dict[str, Any]:
    """A configuration with one client, which is known by its digest only."""
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": {"url": upstream, "key_header": "X-Key"},
        "pools": {"default": {"limits": [limit(10_000, "60s")], "keys": [{"name": "one", "secret": "pooled-key"}]}},
        "clients": [{"name": "ci", "token_sha256": sha256(KNOWN.encode()).hexdigest()}],
        "log": {"level": "debug", "format": "json"},
        **more,
    }


async def test_a_caller_s_token_goes_nowhere_from_any_place(tmp_path: Path) -> None:
    """Neither upstream, nor into a line of the log, a span, an answer or a page; what can pass passes without it."""
    table = placements()
    assert len(table) > 140
    origin = Origin()
    async with origin.open(), collecting() as (collector, endpoint):
        path = write(tmp_path, placing(origin.url, traces={"endpoint": endpoint}))
        async with serving(path) as keyturn:
            answers = [await answered(keyturn, placement.data) for placement in table]
            pages = [(await keyturn.page(name)).body for name in ("/metrics", "/status.json", "/")]
            pages.append((await ask(keyturn.admin, request("/metrics", OPENMETRICS, token=None))).body)
            keyturn.process.signal(signal.SIGTERM)
            await keyturn.process.ended()
            log = keyturn.process.stderr.encode()
    told = [(placement, answer.split(b" ", 2)[1]) for placement, answer in zip(table, answers, strict=True)]
    assert [(placement.name, status) for placement, status in told if int(status) != placement.status] == []
    arrived = [int(arrival.target.split(b"/")[2].partition(b"?")[0]) for arrival in origin.arrivals]
    assert arrived == [number for number, placement in enumerate(table) if placement.status == 200]
    heads = {table[number].name: arrival.head for number, arrival in zip(arrived, origin.arrivals, strict=True)}
    shown = {placement.name: answer for placement, answer in zip(table, answers, strict=True)}
    assert [name for name, data in heads.items() if shows(data)] == []
    assert [name for name, data in shown.items() if shows(data)] == []
    assert [line for line in log.splitlines() if shows(line)] == []
    assert [data for data in (*pages, *collector.received) if shows(data)] == []
    assert len([line for line in log.splitlines() if b'"event": "request"' in line]) == len(table)


async def answered(keyturn: Keyturn, data: bytes) -> bytes:
    """The whole answer to a request that ends its connection."""
    async with calling(keyturn.data) as caller:
        caller.send(data)
        return await caller.ended()


def shows(data: bytes) -> bool:
    """Whether there is a caller's token in it."""
    return holds(data, KNOWN) or holds(data, UNKNOWN)


async def test_what_is_not_the_token_stays(tmp_path: Path) -> None:
    """Byte for byte: the other parameters, the other pairs, and an `Authorization` of the upstream's."""
    origin = Origin()
    async with origin.open(), serving(write(tmp_path, placing(origin.url))) as keyturn:
        key = f"X-Api-Key: {KNOWN}"
        cookie, referer = f"Cookie: a=1; t={KNOWN}; b=%2F", f"Referer: http://p/x?a=%2F&t={KNOWN}&b"
        scim = f"Authorization: Bearer {UPSTREAMS}"
        await keyturn.ask(request(f"/a?x=%2F&t={KNOWN};y=%2f", key, cookie, referer, scim, "X-Any: 1", token=None))
        reply = await keyturn.ask(request(f"/{UPSTREAMS}", key, scim, f"X-Request-Id: {UPSTREAMS}", token=None))
        assert reply.status == 200
    first, second = origin.arrivals
    assert first.target == b"/a?x=%2F;y=%2f"
    assert first.values(b"cookie") == [b"a=1; b=%2F"]
    assert first.values(b"referer") == [b"http://p/x?a=%2F&b"]
    assert first.values(b"x-any") == [b"1"]
    assert first.values(b"authorization") == second.values(b"authorization") == [f"Bearer {UPSTREAMS}".encode()]
    assert second.target == f"/{UPSTREAMS}".encode()
    assert not holds(keyturn.process.stderr.encode(), UPSTREAMS)


async def test_an_unknown_token_is_told_and_counted_as_one(tmp_path: Path) -> None:
    """It is no missing credential, wherever it stands."""
    async with serving(write(tmp_path, placing("http://127.0.0.1:1"))) as keyturn:
        for field, place in (
            (f"Authorization: Bearer {UNKNOWN}", "`Authorization`"),
            (f"Proxy-Authorization: Basic {UNKNOWN}", "`Proxy-Authorization`"),
            (f"X-Api-Key: {UNKNOWN}", "key header"),
        ):
            reply = await keyturn.ask(request("/me", field, token=None))
            assert reply.status == 401
            assert f"{place} is not known" in reply.json()["error"]["message"]
        assert await keyturn.metric("keyturn_authentication_failures_total", reason="token") == 3
        assert await keyturn.metric("keyturn_authentication_failures_total", reason="missing") == 0
    assert keyturn.process.stderr.count("no entry for a token that is not known") == 3


async def test_a_redirect_leads_back_to_the_proxy(tmp_path: Path) -> None:
    """URLs on the upstream's own authority become paths, in final and interim answers."""
    origin = Origin()
    async with origin.open(), serving(write(tmp_path, placing(origin.url))) as keyturn:
        other = origin.url.replace("http:", "https:")
        origin.answers[b"/from"] = Answering(
            (
                f"HTTP/1.1 103 Early Hints\r\nLink: <{origin.url}/a>; rel=preload\r\n\r\n"
                f"HTTP/1.1 302 Found\r\nLocation: {origin.url}/to?x=1\r\nContent-Location: {other}/c\r\n"
                f"Link: <{origin.url}/b>; rel=next, <https://other.example/>; rel=a\r\n"
                f"Refresh: 0; url={origin.url.upper()}/d\r\nContent-Length: 0\r\n\r\n".encode(),
            )
        )
        answer = await answered(keyturn, request("/from", "Connection: close", f"X-Api-Key: {KNOWN}", token=None))
        lines = answer.split(b"\r\n")
        assert b"Location: /to?x=1" in lines
        assert b"Content-Location: /c" in lines
        assert b"Refresh: 0; url=/d" in lines
        assert [line for line in lines if line.startswith(b"Link: ")] == [
            b"Link: </a>; rel=preload",
            b"Link: </b>; rel=next, <https://other.example/>; rel=a",
        ]
        assert origin.url.partition("://")[2].encode() not in answer
        found = f"HTTP/1.1 307 Found\r\nLocation: {origin.url}/to\r\nContent-Length: 0\r\n\r\n"
        origin.answers[b"/found"] = Answering((found.encode(),))
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FOLLOWING, f"{keyturn.data}/found", KNOWN), stdout=asyncio.subprocess.PIPE
        )
        assert (await client.communicate())[0] == b"ok"
    assert [arrival.target for arrival in origin.arrivals] == [b"/from", b"/found", b"/to"]
    assert not any(holds(arrival.head, KNOWN) for arrival in origin.arrivals)


FOLLOWING = """
import sys, urllib.request
asked = urllib.request.Request(sys.argv[1], headers={"X-Api-Key": sys.argv[2]})
print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked).read().decode(), end="")
"""
"""A client that follows redirects, and takes its fields along."""


async def test_what_intermediaries_say_of_a_caller_stays_here(tmp_path: Path) -> None:
    """Addresses and names of the inner network; `Via` and the trace pass."""
    origin = Origin()
    told = ["Forwarded: for=10.1.2.3", *(f"{name}: 10.1.2.3" for name in OF_INTERMEDIARIES)]
    async with origin.open(), serving(write(tmp_path, placing(origin.url))) as keyturn:
        kept = ["Via: 1.0 inner", "X-Any: 1", f"traceparent: 00-{'a' * 32}-{'b' * 16}-01"]
        await keyturn.ask(request("/a", *told, *kept, f"X-Api-Key: {KNOWN}", token=None))
    (arrival,) = origin.arrivals
    assert b"10.1.2.3" not in arrival.head
    assert arrival.values(b"via") == [b"1.0 inner, 1.1 keyturn"]
    assert arrival.values(b"x-any") == [b"1"]
    assert len(arrival.values(b"traceparent")) == 1


OF_INTERMEDIARIES = [
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-Server",
    "X-Forwarded-Prefix",
    "X-Forwarded",
    "X-Forwarded-Client-Cert",
    "X_Forwarded_For",
    "x-forwarded-for",
    "Forwarded-For",
    "X-Real-IP",
    "X-Client-IP",
    "True-Client-IP",
    "Client-IP",
    "CF-Connecting-IP",
    "CF-Connecting-IPv6",
    "X-Cluster-Client-IP",
    "Fastly-Client-IP",
    "Fly-Client-IP",
    "X-Original-Forwarded-For",
    "X-Original-Host",
    "X-Original-URL",
    "X-Original-URI",
    "X-Rewrite-URL",
    "X-Envoy-External-Address",
    "X-Envoy-Internal",
    "X-Envoy-Original-Path",
    "X-Envoy-Peer-Metadata",
    "L5d-Client-Id",
    "X-Remote-Addr",
    "X-Azure-ClientIP",
    "X-Appengine-User-IP",
]


# Within it


def ours() -> Iterator[object]:
    """Every object of a class of ours that is alive."""
    yield from (thing for thing in gc.get_objects() if str(type(thing).__module__).startswith("keyturn."))


async def test_nothing_that_is_alive_shows_a_secret(tmp_path: Path) -> None:
    """However it is printed: `repr`, `str`, a format, its fields, its dump."""
    loaded = config.load(write(tmp_path, settings(tmp_path, "http://127.0.0.1:1")), {})
    app = App(loaded)
    shown: list[object] = [
        config.effective(loaded),
        loaded.model_dump(),
        loaded.model_dump(mode="json"),
        loaded.model_dump_json(),
    ]
    shown += [loaded.pools_of_model(), loaded.client_models(), vars(app), app.__dict__.values()]
    for thing in ours():
        shown += [repr(thing), f"{thing}", f"{thing!r}"]
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            shown.append([getattr(thing, field.name) for field in dataclasses.fields(thing)])
    assert len(shown) > 200
    assert [text for text in map(repr, shown) if "5ecret" in text] == []


def test_a_secret_is_one_type_that_is_not_written() -> None:
    """Not printed, not copied, not pickled, not dumped; equal secrets are equal."""
    secret = Secret(KEYS["inline"])
    assert {str(secret), repr(secret), f"{secret}", f"{secret!r}", "%s" % secret} == {"Secret(…)"}  # noqa: UP031
    ways: tuple[Callable[[Any], object], ...] = (pickle.dumps, copy.copy, copy.deepcopy, json.dumps, bytes, list)
    for write_it in ways:
        with pytest.raises(TypeError):
            write_it(secret)
    with pytest.raises(TypeError):
        vars(secret)
    assert secret == Secret(KEYS["inline"])


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_shows_no_secret(form: Literal["json", "text"]) -> None:
    """Neither values of local variables nor what an exception's text quotes."""

    def fails(token: str) -> None:
        authorization = {"Authorization": f"Bearer {token}"}
        raise ValueError(f"cannot send {authorization}, X-Api-Key: {token}, /me?apikey={token}")

    handlers, level = logging.root.handlers[:], logging.root.level
    stream = io.StringIO()
    try:
        with redirect_stderr(stream):
            set_up_logs("debug", form)
            for token in (*KEYS.values(), TOKENS["plain"]):
                try:
                    fails(token)
                except ValueError:
                    logging.getLogger("keyturn").exception("unexpected error in request %s", "id-1")
                    logging.getLogger("asyncio").exception("Task exception was never retrieved")
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    assert stream.getvalue().count("cannot send") >= 8
    assert "5ecret" not in stream.getvalue()


async def test_a_private_key_stays_in_its_file(tmp_path: Path) -> None:
    """A certificate without its key stops the start in one line that shows neither."""
    (tmp_path / "server.pem").write_text("-----BEGIN PRIVATE KEY-----\n5ecret\n-----END PRIVATE KEY-----\n")
    tls = {"cert": "server.pem", "key": "server.pem"}
    path = write(tmp_path, {**settings(tmp_path, "http://127.0.0.1:1"), "tls": tls})
    ended = await command("serve", "-c", str(path), folder=tmp_path)
    assert ended.code == 2
    assert "5ecret" not in ended.out + ended.err
    assert len(ended.complaints) == 1
