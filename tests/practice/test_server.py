import asyncio
import errno
import gc
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import uvloop
from aiohttp import (
    ClientConnectionError,
    ClientConnectorCertificateError,
    ClientError,
    ClientOSError,
    ClientResponse,
    ClientSession,
)
from keyturn.core.errors import StartError
from keyturn.practice import FaultKind, PracticeApi, PracticeSettings
from keyturn.practice.server import Certificates

from tests.practice.client import KEY, Clock, practising, session_of, trusting


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


async def status_of(session: ClientSession, path: str = "/me") -> int:
    """Return the status of a GET."""
    async with session.get(path) as response:
        await response.read()
        return response.status


class Hold:
    """Hold requests before they are counted, until released."""

    def __init__(self, api: PracticeApi) -> None:
        self.held, self.go, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        api._travel = self._travel  # type: ignore[method-assign]

    async def _travel(self) -> None:
        if self.held.is_set():
            self.done.set()
        self.held.set()
        await self.go.wait()


@pytest.mark.parametrize("tls", [False, True])
async def test_url(tls: bool) -> None:
    """The URL has scheme, host and the port that was taken."""
    async with practising(tls=tls) as (api, session):
        assert api.url == f"{'https' if tls else 'http'}://127.0.0.1:{api.port}"
        assert await status_of(session) == 200
        assert repr(api) == f"PracticeApi({api.url}, 60/60s first)"


def test_no_url_before_the_start() -> None:
    """Before the start there is no address."""
    api = PracticeApi(PracticeSettings())
    with pytest.raises(RuntimeError):
        _ = api.url
    assert "not started" in repr(api)


async def test_any_key_without_keys() -> None:
    """Without given keys any key is accepted."""
    async with practising(keys=None) as (api, _), session_of(api, key="anything") as session:
        assert await status_of(session) == 200


async def test_tls_is_verified(tmp_path: Path) -> None:
    """The certificate is accepted with its authority's file, and refused without."""
    async with practising(tls=True) as (api, _):
        api.write_ca(tmp_path / "ca.pem")
        assert (tmp_path / "ca.pem").read_bytes() == api.ca_pem
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        async with ClientSession(api.url, headers={"X-Api-Key": KEY}) as stranger:
            async with stranger.get("/me", ssl=context) as response:
                assert response.status == 200
            with pytest.raises(ClientConnectorCertificateError):
                await stranger.get("/collections", headers={"Connection": "close"}, ssl=True)


async def test_no_authority_without_tls(tmp_path: Path) -> None:
    """Without TLS there is no authority to write."""
    api = PracticeApi(PracticeSettings())
    assert api.ca_pem is None
    with pytest.raises(RuntimeError):
        api.write_ca(tmp_path / "ca.pem")


async def test_port_in_use() -> None:
    """A port that is taken is a start error."""
    async with practising() as (api, _):
        with pytest.raises(StartError, match=str(api.port)):
            await PracticeApi(PracticeSettings(port=api.port)).start()


@pytest.mark.parametrize("tls", [False, True])
async def test_stop_and_start_again(tls: bool) -> None:
    """After a stop it can be started again at the same address with the same counts."""
    async with practising(tls=tls, limit=2) as (api, session):
        assert await status_of(session) == 200
        await api.stop()
        await api.stop()
        with pytest.raises(ClientConnectionError):
            await status_of(session)
        await api.start()
        await api.start()
        assert [await status_of(session) for _ in range(2)] == [200, 429]


async def _broken_off(call: AbstractAsyncContextManager[ClientResponse]) -> None:
    """Check that a request ends without its whole answer."""
    with pytest.raises(ClientError):
        async with call as response:
            await response.read()


@pytest.mark.parametrize("tls", [False, True])
async def test_stop_breaks_off(tls: bool) -> None:
    """A stop breaks off requests in flight and leaves nothing open."""
    async with practising(tls=tls) as (api, session):
        arrivals = asyncio.Semaphore(0)

        def latency() -> float:
            arrivals.release()
            return 0.0

        async def endless() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.Event().wait()

        api.latency = latency
        calls = (session.get("/slow/900000"), session.get("/bytes/99999999999"), session.post("/echo", data=endless()))
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(_broken_off(call))
            for _ in range(len(calls) + 1):  # each before it is counted, and the large one before its head
                await arrivals.acquire()
            await api.stop()
        assert api.connections == 0
    gc.collect()


async def test_stop_waits_for_nobody() -> None:
    """A stop does not wait for a caller that ignores the end of TLS."""
    async with practising(tls=True) as (api, _):
        context = trusting(api)
        assert isinstance(context, ssl.SSLContext)
        _reader, writer = await asyncio.open_connection("127.0.0.1", api.port, ssl=context)
        async with asyncio.timeout(30):
            while not api.connections:  # the server gives no sign of a handshake
                await asyncio.sleep(0)
        assert api._server is not None
        sockets = [
            handler.transport.get_extra_info("socket") for handler in api._server.connections if handler.transport
        ]
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await api.stop()
        assert [carrier.fileno() for carrier in sockets] == [-1]
        writer.transport.abort()
    gc.collect()


def test_on_uvloop() -> None:
    """The practice API runs on uvloop, faults included."""

    async def scenario() -> list[int]:
        async with practising(tls=True) as (api, session):
            statuses = [await status_of(session)]
            api.fail_next(1, how="reset")
            with pytest.raises(ClientConnectionError):
                await session.post("/me")
            statuses.append(await status_of(session))
            return statuses

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario()) == [200, 200]


async def test_latency_before_counting_and_before_the_head() -> None:
    """Latency is drawn twice for each request: before it is counted, and before its answer."""
    async with practising() as (api, session):
        counted: list[tuple[int, int]] = []

        def latency() -> float:
            arrivals = api.arrivals
            counted.append((len(arrivals), arrivals[-1].status if arrivals else 0))
            return 0.0

        api.latency = latency
        assert await status_of(session) == 200
    assert counted == [(0, 0), (1, 0)]
    assert api.arrivals[0].status == 200


async def test_counted_though_the_caller_left() -> None:
    """A request whose caller leaves before it is counted is counted at that moment."""
    clock = Clock(7.0)
    async with practising(clock) as (api, session), asyncio.timeout(30), asyncio.TaskGroup() as group:
        hold = Hold(api)
        call = group.create_task(status_of(session))
        await hold.held.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        clock.now = 8.0
        hold.go.set()
        await hold.done.wait()
        assert [(arrival.at, arrival.counted) for arrival in api.arrivals] == [(8.0, True)]


@pytest.mark.parametrize(("how", "status"), [("503", 503), ("504", 504)])
async def test_fail_next_with_an_answer(how: FaultKind, status: int) -> None:
    """The next requests fail with that status and are charged, then no more."""
    async with practising() as (api, session):
        api.fail_next(2, how=how)
        assert [await status_of(session) for _ in range(3)] == [status, status, 200]
    assert [arrival.counted for arrival in api.arrivals] == [True] * 3


@pytest.mark.parametrize("tls", [False, True])
async def test_fail_next_with_a_reset(tls: bool) -> None:
    """A reset ends the connection without an answer; the request was counted, and its status stays 0."""
    async with practising(tls=tls) as (api, session):
        api.fail_next(1, how="reset")
        with pytest.raises(ClientOSError) as caught:
            await session.post("/monitors/1/run")
        assert caught.value.errno == errno.ECONNRESET
        assert await status_of(session) == 200
    assert [(arrival.counted, arrival.status) for arrival in api.arrivals] == [(True, 0), (True, 200)]


async def test_fail_next_leaves_refused_ones_alone() -> None:
    """Refused requests use up no fault."""
    async with practising(limit=1) as (api, session):
        assert await status_of(session) == 200
        api.fail_next(1)
        assert await status_of(session) == 429
        async with session_of(api, key="") as stranger:
            assert await status_of(stranger) == 401


def test_fail_next_knows_its_faults() -> None:
    """An unknown fault is refused."""
    with pytest.raises(ValueError, match="reset, 503, 504"):
        PracticeApi(PracticeSettings()).fail_next(1, how="gone")  # type: ignore[arg-type]


async def test_it_breaks_down_and_recovers() -> None:
    """During an outage every request fails, with the time to wait if there is one."""
    async with practising() as (api, session):
        api.break_down("503", retry_after=20)
        for _ in range(2):
            async with session.get("/me") as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "20")
                assert "within the next 5 minutes" in await response.text()
        api.break_down("504")
        async with session.get("/me") as response:
            assert (response.status, response.headers.get("Retry-After")) == (504, None)
        api.recover()
        assert await status_of(session) == 200
        with pytest.raises(ValueError, match="reset, 503, 504"):
            api.break_down("gone")  # type: ignore[arg-type]


async def test_somebody_else_spends() -> None:
    """Places can be taken without an arrival, up to the limit."""
    async with practising(limit=5, narrow=True, narrow_limit=2) as (api, session):
        assert api.spend(KEY, 1) == 1
        assert api.spend(KEY, 9, "/collections") == 2
        async with session.get("/me") as response:
            assert response.headers["X-RateLimit-Remaining"] == "1"
        assert api.spend("nobody", 1) == 0
        assert len(api.arrivals) == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_close_idle_connections(tls: bool) -> None:
    """Idle connections are closed, busy ones stay."""
    async with practising(tls=tls) as (api, session):
        assert await status_of(session) == 200
        async with session_of(api) as other, asyncio.timeout(30), asyncio.TaskGroup() as group:
            hold = Hold(api)
            busy = group.create_task(status_of(other))
            await hold.held.wait()
            assert api.connections == 2
            assert api.close_idle_connections() == 1
            hold.go.set()
        assert busy.result() == 200
    assert api.close_idle_connections() == 0
