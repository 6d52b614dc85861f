"""The doors of the real process: several at once, sockets with permissions, TLS, and whom they let in unasked."""

import asyncio
import json
import os
import ssl
import stat
import warnings
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.process import KEYS, Caller, House, calling, command, house, request, until, write


def has_line(home: House, text: str) -> bool:
    """Whether the process has written a line with it."""
    return any(text in line for line in home.keyturn.process.lines)


async def over_socket(path: Path, data: bytes) -> int:
    """The status of an answer over a Unix socket."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        return (await Caller(reader, writer).ask(data)).status
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(("mode", "expected"), [("0600", 0o600), ("0666", 0o666)])
async def test_it_listens_at_ports_and_sockets_at_once(tmp_path: Path, mode: str, expected: int) -> None:
    """A socket has the permissions of `inbound.socket_mode`, and goes with the process."""
    path = tmp_path / "s"
    listen = ["127.0.0.1:0", "[::1]:0", f"unix:{path}"]
    async with house(tmp_path, listen=listen, inbound={"socket_mode": mode}) as home:
        ports = [address for address in home.keyturn.data.split(",") if address.startswith("http")]
        assert len(ports) == 2
        for address in ports:
            async with calling(address.replace("[::1]", "::1")) as caller:
                assert (await caller.ask(request("/me"))).status == 200
        assert stat.S_IMODE(path.stat().st_mode) == expected
        assert await over_socket(path, request("/me")) == 200
        assert await over_socket(path, request("/me", token=None)) == 401
    assert not path.exists()


async def test_tls_is_of_this_decade(tmp_path: Path) -> None:
    """1.2 and 1.3, with any ciphers that Python's defaults name; 1.1 is refused."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    async with house(tmp_path, tls={"cert": "server.pem", "key": "server.pem"}) as home:
        for version, spoken in (("TLSv1_3", "TLSv1.3"), ("TLSv1_2", "TLSv1.2"), ("TLSv1_1", None)):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            authority.configure_trust(context)
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            with warnings.catch_warnings(action="ignore"):  # of versions that are too old
                context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
            if spoken is None:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    async with calling(home.keyturn.data, context):
                        pass
                continue
            async with calling(home.keyturn.data, context) as caller:
                assert caller.writer.get_extra_info("ssl_object").version() == spoken
                assert (await caller.ask(request("/me"))).status == 200


async def test_nobody_opens_the_keys_to_a_network_by_mistake(tmp_path: Path) -> None:
    """Without authentication it listens on loopback and Unix sockets only, unless the configuration consents."""
    settings = {
        "listen": ["127.0.0.1:0", "0.0.0.0:0"],
        "authentication": "off",
        "pools": {"default": {"keys": [{"name": "team-1", "secret": KEYS[0]}]}},
    }
    ended = await command("serve", "-c", str(write(tmp_path, settings)), folder=tmp_path)
    assert ended.code == 2
    assert "allow_anonymous_network" in ended.err


async def test_consent_is_written_in_the_configuration(tmp_path: Path) -> None:
    """Then it listens where it was told to."""
    consent: dict[str, Any] = {"authentication": "off", "allow_anonymous_network": True, "clients": []}
    async with house(tmp_path, listen="0.0.0.0:0", **consent) as home:
        port = home.keyturn.data.rpartition(":")[2]
        async with calling(f"http://127.0.0.1:{port}") as caller:
            assert (await caller.ask(request("/me", token=None))).status == 200
    assert json.loads((tmp_path / "config.yaml").read_text())["allow_anonymous_network"]


async def test_bounds_of_the_configuration_hold(tmp_path: Path) -> None:
    """Each is told by its own answer, and counted where it ends a connection."""
    inbound = {
        "max_connections": 3,
        "max_head": 8192,
        "max_target": 1024,
        "max_fields": 16,
        "head_timeout": "200ms",
        "body_timeout": "200ms",
    }
    async with house(tmp_path, inbound=inbound) as home:
        for data, status in (
            (request("/" + "x" * 1100), 414),
            (request("/me", "X: " + "x" * 9000), 431),
            (request("/me", *["X: 1"] * 20), 431),
            (request("/echo/late", "Content-Length: 5", method="PUT"), 408),
            (b"GET /me HTTP/1.1\r\nHost:", 408),
        ):
            async with calling(home.keyturn.data) as caller:
                assert (await caller.ask(data)).status == status, data
                await caller.ended()
        async with AsyncExitStack() as stack:
            for _ in range(3):
                caller = await stack.enter_async_context(calling(home.keyturn.data))
                assert (await caller.ask(request("/me"))).status == 200
            one_too_many = await stack.enter_async_context(calling(home.keyturn.data))
            assert b"tooManyConnections" in await one_too_many.ended()
        for why in ("head_timeout", "too_many"):
            assert await home.keyturn.metric("keyturn_connections_ended_total", reason=why) == 1
        assert await home.keyturn.metric("keyturn_refused_total", reason="too_slow") == 1


async def test_what_is_no_http_is_told_what_to_send(tmp_path: Path) -> None:
    """In an answer that says what to set instead, and in the log: once, with the address."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100
    async with house(tmp_path) as home:
        reply = await home.ask(request("api.getpostman.com:443", method="CONNECT", host="api.getpostman.com:443"))
        assert (reply.status, reply.error) == (405, "methodNotAllowed")
        assert f"use {home.keyturn.data} as the base URL" in reply.json()["error"]["message"]
        for data, told, line in (
            (hello, "Use http://, not https://.", "TLS on a port of plain HTTP"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "Send HTTP/1.1", "HTTP/2"),
            (b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", "percent-encoded", "bytes outside ASCII"),
        ):
            for _ in range(2):
                async with calling(home.keyturn.data) as caller:
                    caller.send(data)
                    reply = await caller.reply()
                assert (reply.status, reply.error) == (400, "badRequest")
                assert told in reply.json()["error"]["message"]
            await until(partial(has_line, home, f"{line} came from 127.0.0.1"), "the line is written")
        lines = [one for one in home.keyturn.process.lines if "came from" in one]
    assert len(lines) == 3


async def test_plain_http_at_a_port_of_tls_is_told_so(tmp_path: Path) -> None:
    """By an answer in plain HTTP, and a line in the log; a handshake that fails otherwise leaves a line, too."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    async with house(tmp_path, tls={"cert": "server.pem", "key": "server.pem"}) as home:
        reply = await home.ask(request("/me"))
        assert (reply.status, reply.error) == (400, "badRequest")
        assert "Use https://, not http://." in reply.json()["error"]["message"]
        async with calling(home.keyturn.data) as caller:
            caller.send(b"no protocol at all")
            assert await caller.ended() == b""
        for line in ("plain HTTP on a port of TLS", "a TLS handshake that failed (wrong version number)"):
            await until(partial(has_line, home, f"{line} came from 127.0.0.1"), "the line is written")


async def test_a_body_over_tls_is_read_when_its_request_is_admitted(tmp_path: Path) -> None:
    """Though the system keeps few bytes of a connection before that; and none without a token."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    body = b"x" * 3_000_000
    async with house(tmp_path, tls={"cert": "server.pem", "key": "server.pem"}) as home:
        async with calling(home.keyturn.data, trust) as caller:
            for _ in range(2):
                reply = await caller.ask(request("/echo", method="PUT", body=body))
                assert (reply.status, reply.json()["length"]) == (200, len(body))
        async with calling(home.keyturn.data, trust) as caller:
            caller.send(request("/echo", method="PUT", body=body, token=None))
            assert (await caller.reply()).status == 401
        assert await home.keyturn.metric("keyturn_buffered_bytes") < 100_000


async def test_a_download_by_drops_is_cut(tmp_path: Path) -> None:
    """Its upstream connection is free then; the metric counts it, and the log names its client and why."""
    async with house(tmp_path, inbound={"write_timeout": "100ms"}) as home:
        async with calling(home.keyturn.data) as caller:
            caller.send(request("/bytes/100000000"))
            await caller.head()
            assert isinstance(caller.writer.transport, asyncio.Transport)
            caller.writer.transport.pause_reading()

            async def cut() -> bool:
                sock = caller.writer.transport.get_extra_info("socket")
                with suppress(OSError):  # a drop, past what asyncio has read
                    os.read(sock.fileno(), 1)
                return bool(await home.keyturn.metric("keyturn_connections_ended_total") > 0)

            await until(cut, "it is cut")
            await until(lambda: home.api.connections == 0, "the upstream's connection is closed")
        await until(partial(has_line, home, "/bytes/100000000"), "the line is written")
        (line,) = [line for line in home.keyturn.process.lines if "/bytes/100000000" in line]
        entry = json.loads(line)
        assert (entry["client"], entry["outcome"]) == ("ci", "gone")
        assert entry["reason"] in ("write_timeout", "slow_reader")
