"""The real process behind other proxies: raw bytes, and Debian's haproxy and nginx, with and without TLS."""

import asyncio
import json
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.process import House, ask, calling, client, command, document, house, request, until, write

LOOPBACK: dict[str, Any] = {"inbound": {"trusted_proxies": ["127.0.0.0/8"]}}
HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 1000 80\r\n"
PROXIED = {"address": "127.0.0.1:0", "proxy_protocol": True}


def addresses(home: House) -> list[str]:
    """The callers that the lines of requests name."""
    lines = [json.loads(line) for line in home.keyturn.process.lines if line.startswith("{")]
    return [line.get("client_address", "") for line in lines if line["event"] == "request"]


async def logged(home: House, number: int) -> list[str]:
    """The callers in the log, when so many requests are there."""
    await until(lambda: len(addresses(home)) >= number, f"{number} requests are logged")
    return addresses(home)


def told(reply: Any) -> dict[str, str]:
    """Return the forwarding fields that the upstream received."""
    names = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto")
    return {name.lower(): value for name, value in reply.json()["headers"] if name.lower() in names}


async def test_fields_of_trusted_proxies_name_the_caller(tmp_path: Path) -> None:
    """In the log; the upstream learns nothing of it by default. Nobody is believed who is not named."""
    async with house(tmp_path, **LOOPBACK) as home:
        reply = await home.ask(request("/echo", "X-Forwarded-For: 1.1.1.1, 192.0.2.7"))
        assert (reply.status, told(reply)) == (200, {})
        reply = await home.ask(request("/echo", 'Forwarded: for="[2001:db8::7]:80"'))
        assert (reply.status, told(reply)) == (200, {})
        assert await logged(home, 2) == ["192.0.2.7", "2001:db8::7"]
    async with house(tmp_path) as home:
        await home.ask(request("/echo", "X-Forwarded-For: 192.0.2.7"))
        assert await logged(home, 1) == ["127.0.0.1"]


async def test_the_upstream_is_told_if_asked(tmp_path: Path) -> None:
    """Forwarding fields name callers and trusted proxies; a reload turns them on and off and changes the trust."""
    settings: dict[str, Any] = {"upstream": {"forwarded": True}}
    async with house(tmp_path, **settings) as home:
        reply = await home.ask(request("/echo", "X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https"))
        assert told(reply) == {
            "forwarded": 'for=127.0.0.1;host="proxy.example";proto=http',
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-host": "proxy.example",
            "x-forwarded-proto": "http",
        }
        write(tmp_path, document(home.api, tmp_path, **settings, **LOOPBACK))

        async def believed() -> bool:
            reply = await home.ask(request("/echo", "X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https"))
            return told(reply)["x-forwarded-for"] == "192.0.2.7, 127.0.0.1"

        await until(believed, "the proxy is trusted")
        write(tmp_path, document(home.api, tmp_path))

        async def silent() -> bool:
            return told(await home.ask(request("/echo"))) == {}

        await until(silent, "the upstream is told nothing")


async def test_a_token_in_such_a_field_does_not_go_on(tmp_path: Path) -> None:
    """A caller's token is taken off what the upstream is told (law 11)."""
    async with house(tmp_path, upstream={"forwarded": True}, **LOOPBACK) as home:
        token = "secret-token-of-ci"
        fields = (f"X-Forwarded-For: {token}, 192.0.2.7", f"X-Forwarded-Host: {token}", f"Forwarded: for={token}")
        for line in fields:
            reply = await home.ask(request("/echo", line))
            assert reply.status == 200
            assert token not in json.dumps(reply.json()["headers"])


async def test_failed_attempts_of_one_caller_do_not_slow_others(tmp_path: Path) -> None:
    """Each caller behind a trusted proxy has an address of its own: one that is slowed waits alone."""
    async with house(tmp_path, **LOOPBACK) as home:
        for _ in range(61):
            assert (await home.ask(request("/me", "X-Forwarded-For: 192.0.2.7", token=None))).status == 401
        assert (await home.ask(request("/me", "X-Forwarded-For: 192.0.2.8", token=None))).status == 401
        lines: list[str] = []

        def slowed() -> bool:
            lines[:] = [line for line in home.keyturn.process.lines if "many failed attempts" in line]
            return bool(lines)

        await until(slowed, "the line about failed attempts is written")
        assert ["192.0.2.7" in line for line in lines] == [True]


async def test_listeners_expect_the_proxy_protocol(tmp_path: Path) -> None:
    """Each as it is configured; a connection without a header is closed, counted and logged."""
    async with house(tmp_path, listen=["127.0.0.1:0", PROXIED], **LOOPBACK) as home:
        plain, proxied = home.keyturn.data.split(",")
        assert (await ask(plain, request("/me"))).status == 200
        async with calling(proxied) as caller:
            caller.send(HEADER)
            assert (await caller.ask(request("/me"))).status == 200
            assert (await caller.ask(request("/me"))).status == 200
        async with calling(proxied) as caller:
            caller.send(request("/me"))
            assert await caller.ended() == b""
        home.keyturn.data = plain
        assert await logged(home, 3) == ["127.0.0.1", "192.0.2.7", "192.0.2.7"]
        assert await home.keyturn.metric("keyturn_connections_ended_total", reason="proxy_protocol") == 1
        text = "without a header of the PROXY protocol"
        await until(lambda: any(text in line for line in home.keyturn.process.lines), f"a line {text}")


async def test_tls_behind_the_proxy_protocol(tmp_path: Path) -> None:
    """A caller's certificate counts; what is no TLS is told as at any port of TLS, with the caller's address."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "clients.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    tls = {"cert": "server.pem", "key": "server.pem", "client_ca": "clients.pem", "client_certificate": "optional"}
    robot = {"name": "robot", "certificate": {"san": "robot.example"}}
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    authority.issue_cert("robot.example").configure_cert(trust)
    async with house(tmp_path, listen=PROXIED, tls=tls, clients=[client("ci"), robot], **LOOPBACK) as home:
        async with calling(home.keyturn.data) as caller:
            caller.send(HEADER)
            await caller.writer.start_tls(trust, server_hostname="127.0.0.1")
            assert (await caller.ask(request("/me", token=None))).status == 200
            assert (await caller.ask(request("/me"))).status == 200
        assert await logged(home, 2) == ["192.0.2.7", "192.0.2.7"]
        async with calling(home.keyturn.data) as caller:
            caller.send(HEADER)
            assert (await caller.ask(request("/me"))).status == 400
        async with calling(home.keyturn.data) as caller:
            caller.send(HEADER + b"no handshake at all")
            await caller.ended()

        def said() -> list[str]:
            return [line for line in home.keyturn.process.lines if " came from 192.0.2.7" in line]

        await until(lambda: len(said()) == 2, "both are told")
        assert "plain HTTP on a port of TLS" in said()[0]
        assert "a TLS handshake that failed" in said()[1]


async def test_the_proxy_protocol_needs_trusted_proxies(tmp_path: Path) -> None:
    """`check` says so; it prints what is in effect as it is written."""
    settings: dict[str, Any] = {"listen": [PROXIED], "clients": [client("ci")]}
    environ = {"POSTMAN_API_KEYS": "secret-of-key-one"}
    write(tmp_path, settings)
    ended = await command("check", folder=tmp_path, environ=environ)
    assert ended.code == 2
    assert "listen[0]" in ended.err
    assert "inbound.trusted_proxies" in ended.err
    write(tmp_path, {**settings, "inbound": {"trusted_proxies": ["10.0.0.0/8", "unix", "2001:db8::1"]}})
    ended = await command("check", folder=tmp_path, environ=environ)
    assert ended.code == 0, ended.err


async def test_a_listener_does_not_change_its_mind(tmp_path: Path) -> None:
    """`proxy_protocol` needs a restart, and the log says so."""
    async with house(tmp_path, listen="127.0.0.1:0", **LOOPBACK) as home:
        write(tmp_path, document(home.api, tmp_path, listen=[PROXIED], **LOOPBACK))
        await until(lambda: "needs a restart" in home.keyturn.process.stderr, "the reload is refused")
        assert (await home.ask(request("/me"))).status == 200


# Real proxies in front


def program(name: str, package: str) -> str:
    """The path of a program of Debian's; where it is absent the test is skipped, or fails if KEYTURN_REQUIRE is set."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not found:
        absent = f"{name} is not here (Debian: `apt-get install --no-install-recommends {package}`)"
        if os.environ.get("KEYTURN_REQUIRE"):
            pytest.fail(absent, pytrace=False)
        pytest.skip(absent)
    return found


@asynccontextmanager
async def in_front(*arguments: str, socket: Path) -> AsyncIterator[None]:
    """A proxy that serves at a socket, for as long as it is needed."""
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        await until(lambda: socket.exists() or process.returncode is not None, "it listens")
        if process.returncode is not None and process.stdout is not None:
            raise AssertionError((await process.stdout.read()).decode())
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


async def over(socket: Path, *fields: str, header: bytes = b"") -> Any:
    """A request over a proxy's socket."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(header + request("/echo", *fields, "Connection: close"))
        answer = await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    assert b" 200 " in answer.split(b"\r\n")[0], answer
    return answer


def haproxy(folder: Path, port: str, mode: str, server: str) -> tuple[str, ...]:
    """Start haproxy; it takes connections that tell their caller themselves, as if they came from anywhere."""
    config = folder / "haproxy.cfg"
    config.write_text(
        f"""defaults
  mode {mode}
  timeout connect 10s
  timeout client 60s
  timeout server 60s
{"  option forwardfor" if mode == "http" else ""}
frontend callers
  bind unix@{folder}/front accept-proxy
  default_backend keyturn
backend keyturn
  server keyturn 127.0.0.1:{port} {server}
"""
    )
    return program("haproxy", "haproxy"), "-db", "-f", str(config)


def nginx(folder: Path, port: str, scheme: str) -> tuple[str, ...]:
    """Start nginx, which appends to `X-Forwarded-For`; its callers tell themselves where they come from."""
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen unix:{folder}/front proxy_protocol;
    set_real_ip_from unix:; real_ip_header proxy_protocol;
    location / {{
      proxy_pass {scheme}://127.0.0.1:{port};
      proxy_http_version 1.1;
      proxy_ssl_verify off;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto https;
      proxy_set_header Host public.example;
    }}
  }}
}}
"""
    )
    return program("nginx", "nginx-light"), "-e", "stderr", "-p", str(folder), "-c", str(config)


def secured(folder: Path) -> dict[str, Any]:
    """The settings of TLS."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return {"tls": {"cert": "server.pem", "key": "server.pem"}}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
async def test_haproxy_announces_callers(tmp_path: Path, version: str, tls: bool) -> None:
    """By the PROXY protocol, in front of HTTP or of TLS: it passes bytes on, and the address stands in the log."""
    program("haproxy", "haproxy")
    settings = {"listen": [PROXIED], **LOOPBACK, **(secured(tmp_path) if tls else {})}
    async with house(tmp_path, upstream={"forwarded": True}, **settings) as home:
        server = f"{version} {'ssl verify none' if tls else ''}"
        arguments = haproxy(tmp_path, home.keyturn.data.rpartition(":")[2], "tcp", server)
        async with in_front(*arguments, socket=tmp_path / "front"):
            answer = await over(tmp_path / "front", "X-Forwarded-For: 1.1.1.1", header=HEADER)
            assert b'"192.0.2.7"' in answer
            answer = await over(tmp_path / "front", header=b"PROXY TCP6 2001:db8::7 ::1 1000 80\r\n")
            assert b"2001:db8::7" in answer
        assert await logged(home, 2) == ["192.0.2.7", "2001:db8::7"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_haproxy_names_callers_in_a_field(tmp_path: Path, tls: bool) -> None:
    """It appends to `X-Forwarded-For`; a caller that sends that itself, or `Forwarded`, stays who it is or hides."""
    program("haproxy", "haproxy")
    settings = {**LOOPBACK, **(secured(tmp_path) if tls else {})}
    async with house(tmp_path, **settings) as home:
        arguments = haproxy(tmp_path, home.keyturn.data.rpartition(":")[2], "http", "ssl verify none" if tls else "")
        async with in_front(*arguments, socket=tmp_path / "front"):
            await over(tmp_path / "front", header=HEADER)
            await over(tmp_path / "front", "X-Forwarded-For: 1.1.1.1", header=HEADER)
            await over(tmp_path / "front", "Forwarded: for=1.1.1.1", header=HEADER)
        assert await logged(home, 3) == ["192.0.2.7", "192.0.2.7", "127.0.0.1"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_nginx_names_callers_in_a_field(tmp_path: Path, tls: bool) -> None:
    """The scheme and host that it reports go upstream as well."""
    program("nginx", "nginx-light")
    settings = {**LOOPBACK, **(secured(tmp_path) if tls else {})}
    async with house(tmp_path, upstream={"forwarded": True}, **settings) as home:
        scheme = "https" if tls else "http"
        arguments = nginx(tmp_path, home.keyturn.data.rpartition(":")[2], scheme)
        async with in_front(*arguments, socket=tmp_path / "front"):
            answer = await over(tmp_path / "front", "X-Forwarded-For: 1.1.1.1", header=HEADER)
            said = ['["X-Forwarded-For", "1.1.1.1, 192.0.2.7, 127.0.0.1"]', '["X-Forwarded-Proto", "https"]']
            assert [line for line in said if line.replace(", ", ",").encode() not in answer.replace(b", ", b",")] == []
        assert await logged(home, 1) == ["192.0.2.7"]
