import asyncio
import errno
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from keyturn import aiohttp_internals
from keyturn.core.errors import Broken, LocalCause, LocalError, StartError, TimedOut, Unreachable
from keyturn.core.model import MILLISECOND
from keyturn.keepalive import OPTIONS
from keyturn.tasks import finish, spawn
from keyturn.upstream import Upstream, UpstreamOptions, trust_of
from keyturn.upstream.connector import ConnectionSlots

from tests.authorities import FAULTS, LENIENT, Authority, Sort
from tests.upstream.origin import (
    KEY,
    OK,
    a_request,
    answering,
    closed_by_peer,
    idle,
    in_use,
    only_idle,
    opened,
    origin,
    sent,
    whole,
)


class Street:
    """Slots of which the test takes and frees some."""

    def __init__(self, most: int) -> None:
        self.taken = 0
        self.slots = ConnectionSlots(most, lambda: self.taken)
        self.order: list[int] = []
        self.tasks: set[asyncio.Task[object]] = set()

    def come(self, number: int) -> asyncio.Task[object]:
        """Somebody waits in line."""
        return spawn(self._wait(number), name=str(number), owner=self.tasks)

    async def _wait(self, number: int) -> None:
        await self.slots.wait()
        self.taken += 1
        self.order.append(number)

    def free(self) -> None:
        """Somebody is done."""
        self.taken -= 1
        self.slots.freed()


async def turns(number: int = 5) -> None:
    """Let everything happen that is due."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_they_are_given_in_the_order_of_arrival() -> None:
    """Never more than there are, and nobody comes before those in line."""
    it = Street(2)
    for number in range(4):
        it.come(number)
    await turns()
    assert it.order == [0, 1]
    assert it.slots.full
    it.free()
    assert it.slots.full, "it is promised"
    await turns()
    assert (it.order, it.taken) == ([0, 1, 2], 2)
    it.free()
    it.free()
    await turns()
    assert (it.order, it.taken, it.slots.full) == ([0, 1, 2, 3], 1, False)


async def test_who_leaves_passes_it_on() -> None:
    """Also in the very tick in which it was told."""
    it = Street(1)
    it.taken = 1
    before, told, next_one = it.come(0), it.come(1), it.come(2)
    await turns()
    before.cancel()
    await turns()
    it.free()
    told.cancel()
    await asyncio.gather(told, return_exceptions=True)
    await next_one
    assert (it.order, it.slots.full) == ([2], True)
    await finish(it.tasks)


async def test_who_left_in_the_tick_of_its_turn_is_passed_over() -> None:
    """The slot goes to the next."""
    it = Street(1)
    it.taken = 1
    leaving, staying = it.come(0), it.come(1)
    await turns()
    leaving.cancel()
    it.free()
    await turns()
    assert leaving.cancelled()
    assert staying.done()
    assert (it.order, it.slots.full) == ([1], True)


def tls_of(authority: trustme.CA, name: str) -> ssl.SSLContext:
    """A server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def authority() -> trustme.CA:
    """Somebody who issues certificates."""
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> Path:
    """The authority's own certificate."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


async def test_connections_are_kept_alive() -> None:
    """Requests one after another go over one connection."""
    async with origin(answering(OK, OK, OK)) as url, opened(url) as upstream:
        for _ in range(3):
            assert await whole(await sent(upstream)) == b"ok"
            assert (idle(upstream), in_use(upstream)) == (1, 0)


async def test_the_authority_is_that_of_the_url() -> None:
    """Host and port as they stand in `Host`; the scheme's own port is left out."""
    for url, authority in [
        ("https://api.getpostman.com", "api.getpostman.com"),
        ("https://api.getpostman.com:443/", "api.getpostman.com"),
        ("http://127.0.0.1:8081", "127.0.0.1:8081"),
        ("http://[::1]:8081", "[::1]:8081"),
    ]:
        assert Upstream(UpstreamOptions(url)).authority == authority


async def test_an_unused_connection_goes_back() -> None:
    """A lease that came too late costs no connection."""
    async with origin(answering(OK)) as url, opened(url) as upstream:
        wire = await upstream.connect()
        assert in_use(upstream) == 1
        wire.put_back()
        assert not wire.started
        assert (idle(upstream), in_use(upstream)) == (1, 0)
        assert await whole(await sent(upstream)) == b"ok"


async def test_tls_is_verified(authority: trustme.CA, bundle: Path) -> None:
    """A certificate of an extra CA is accepted when it is for the upstream's name."""
    async with origin(answering(OK), tls_of(authority, "localhost")) as url, opened(url, ca=bundle) as upstream:
        assert await whole(await sent(upstream)) == b"ok"


async def test_a_certificate_of_nobody_known_is_refused(authority: trustme.CA) -> None:
    """Without the extra CA there is no connection, and no use in trying again."""
    async with origin(answering(OK), tls_of(authority, "localhost")) as url, opened(url) as upstream:
        with pytest.raises(Unreachable, match=r"certificate of localhost:.* refused: .*upstream.ca") as caught:
            await upstream.connect()
        assert not caught.value.transient


async def test_a_certificate_of_another_host_is_refused(authority: trustme.CA, bundle: Path) -> None:
    """A valid certificate for another name is none for this one."""
    async with origin(answering(OK), tls_of(authority, "other.example")) as url, opened(url, ca=bundle) as upstream:
        with pytest.raises(Unreachable, match=r"certificate of localhost:.* refused: .*[^.]: check `.*`\.$") as caught:
            await upstream.connect()
        assert not caught.value.transient


@pytest.mark.parametrize("sort", ["conforming", *LENIENT])
async def test_a_company_s_own_authority_is_accepted_unless_certificates_are_strict(tmp_path: Path, sort: Sort) -> None:
    """On every Python; a strict refusal names the certificate, the extension and the setting."""
    issued = Authority(tmp_path, sort)
    async with origin(answering(OK, OK), issued.server_context()) as url, opened(url, ca=issued.ca) as upstream:
        assert await whole(await sent(upstream)) == b"ok"
        upstream.adopt(UpstreamOptions(""), trust_of(issued.ca, strict=True))
        if sort == "conforming":
            assert await whole(await sent(upstream)) == b"ok"
        else:
            with pytest.raises(Unreachable) as caught:
                await upstream.connect()
            assert not caught.value.transient
            assert FAULTS[sort] in str(caught.value)
            assert str(caught.value).endswith("or set `strict_certificates: false`.")
        await asyncio.gather(*upstream.uploads)


async def test_nobody_listens() -> None:
    """A refused connection is worth another try; nothing was sent."""
    async with origin(answering(OK)) as url:
        pass
    async with opened(url) as upstream:
        with pytest.raises(Unreachable, match=r"No connection to 127.0.0.1:\d+: connection refused\. Try") as caught:
            await upstream.connect()
        assert caught.value.transient
        assert not caught.value.written


async def test_a_name_that_nobody_has() -> None:
    """A host that does not resolve is worth another try."""
    async with opened("http://nowhere.invalid") as upstream:
        with pytest.raises(Unreachable, match=r"No connection to nowhere.invalid"):
            await upstream.connect()


async def test_connecting_takes_no_longer_than_allowed() -> None:
    """A handshake that does not come to its end is given up."""

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        origin(silent) as url,
        opened(url.replace("http:", "https:"), connect_timeout=50 * MILLISECOND) as upstream,
    ):
        with pytest.raises(Unreachable, match=r"within 0.05 s") as caught:
            await upstream.connect()
        assert caught.value.transient
        assert not caught.value.local


async def test_a_free_connection_is_waited_for() -> None:
    """For as long as it takes: `connect_timeout` is for making one. The next in line gets it, whoever leaves."""
    async with origin(answering(OK, OK)) as url, opened(url, max_connections=1) as upstream:

        async def patient() -> bytes:
            await upstream.wait_until_free()
            return await whole(await sent(upstream))

        assert (upstream.limit, upstream.full) == (1, False)
        wire = await upstream.connect()
        assert (upstream.in_use, upstream.full) == (1, True)
        async with asyncio.TaskGroup() as group:
            leaving, staying = group.create_task(patient()), group.create_task(patient())
            await asyncio.sleep(0)
            wire.put_back()
            leaving.cancel()
            assert await staying == b"ok"
        assert not upstream.full


async def test_an_old_connection_is_not_used_again() -> None:
    """Also when other settings make it so; a name that leads elsewhere by now is followed."""
    async with origin(answering(OK, OK)) as url, opened(url) as upstream:
        for _ in range(2):
            assert await whole(await sent(upstream)) == b"ok"
        first = only_idle(upstream)
        upstream.adopt(UpstreamOptions("", max_connection_age=0), None)
        assert await whole(await sent(upstream)) == b"ok"
        assert only_idle(upstream) is not first


@pytest.mark.parametrize(
    ("told", "kept"), [(b"timeout=60", True), (b"max=9, Timeout = 1", False), (b"timeout=x, max", True)]
)
async def test_the_upstreams_keep_alive_is_honoured(told: bytes, kept: bool) -> None:
    """A connection that the upstream is about to close is not used again."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: " + told + b"\r\n\r\nok"
    async with origin(answering(answer, answer)) as url, opened(url) as upstream:
        assert await whole(await sent(upstream)) == b"ok"
        first = only_idle(upstream)
        assert await whole(await sent(upstream)) == b"ok"
        assert (only_idle(upstream) is first) == kept


async def test_the_other_side_is_asked_whether_it_is_there() -> None:
    """TCP keep-alive is on."""
    async with origin(answering(OK)) as url, opened(url) as upstream:
        wire = await upstream.connect()
        assert wire._protocol.transport is not None
        sock = wire._protocol.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert {option: sock.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS} == OPTIONS
        wire.put_back()


TROUBLES = [
    (OSError(errno.EMFILE, "Too many open files"), "descriptors"),
    (OSError(errno.ENFILE, "Too many open files in system"), "descriptors"),
    (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "ports"),
    (OSError(errno.ENOBUFS, "No buffer space available"), "memory"),
    (PermissionError(errno.EPERM, "Operation not permitted"), "forbidden"),
    (OSError(errno.ENETUNREACH, "Network is unreachable"), "network"),
    (RuntimeError("can't start new thread"), "threads"),
]


@pytest.mark.parametrize(("problem", "cause"), TROUBLES, ids=[cause for _, cause in TROUBLES])
async def test_a_trouble_of_this_machine_is_named(
    monkeypatch: pytest.MonkeyPatch, problem: Exception, cause: LocalCause
) -> None:
    """It is told with what to do, and marked as none of the upstream's."""

    def fails(_: object) -> socket.socket:
        raise problem

    async with origin(answering(OK)) as url, opened(url) as upstream:
        assert upstream._connector is not None
        monkeypatch.setattr(upstream._connector, "_socket_factory", fails)
        with pytest.raises(LocalError, match=r"^This machine .* 127\.0\.0\.1:\d+.*: .*\.$") as caught:
            await upstream.connect()
        assert (caught.value.cause, caught.value.local, caught.value.written) == (cause, True, False)


async def test_a_look_up_that_does_not_end_is_this_machines_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream has not been asked for anything yet."""

    async def hangs(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async with opened("http://somewhere.example", connect_timeout=50 * MILLISECOND) as upstream:
        assert upstream._connector is not None
        monkeypatch.setattr(upstream._connector._resolver, "resolve", hangs)
        with pytest.raises(LocalError, match=r"cannot look up the name of somewhere\.example") as caught:
            await upstream.connect()
        assert (caught.value.cause, caught.value.proxy_error) == ("resolver", "dns_timeout")


async def test_a_caller_that_leaves_while_connecting_leaves_nothing() -> None:
    """A cancelled attempt, over TCP or in its TLS handshake, holds no place."""
    begun = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(1)
        begun.set()
        await reader.read()

    async with origin(silent) as url, opened(url.replace("http:", "https:")) as upstream:
        async with asyncio.TaskGroup() as group:
            attempt = group.create_task(upstream.connect())
            await begun.wait()
            assert in_use(upstream) == 1
            attempt.cancel()
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_a_transmission_says_how_far_it_is() -> None:
    """And whether its connection was kept alive, for people who debug."""
    async with origin(answering(OK, OK)) as url, opened(url) as upstream:
        wire = await upstream.connect()
        assert repr(wire) == "<Transmission unsent on a new connection>"
        await wire.send(a_request(), KEY, (), body=None, on_written=lambda: None)
        assert repr(wire) == "<Transmission ended on a new connection>"
        kept = upstream.idle_connection()
        assert repr(kept) == "<Transmission unsent on a kept connection>"
        assert kept is not None
        kept.put_back()


async def test_a_connection_that_is_idle_for_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the upstream closes it; one that was used meanwhile has its time anew."""
    monkeypatch.setattr(aiohttp_internals, "KEPT_ALIVE", 0.01)
    async with origin(answering(OK, OK)) as url, opened(url) as upstream:
        for _ in range(2):
            assert await whole(await sent(upstream)) == b"ok"
            async with asyncio.timeout(60):
                while idle(upstream):
                    await asyncio.sleep(0)
            assert in_use(upstream) == 0


async def test_a_connection_that_died_while_idle_is_not_used() -> None:
    """A kept connection that the upstream has closed is replaced by a new one."""
    async with origin(answering(OK, close=True)) as url, opened(url) as upstream:
        for _ in range(3):
            assert await whole(await sent(upstream)) == b"ok"
            await closed_by_peer(upstream)


async def test_what_comes_unasked_is_not_taken_for_an_answer() -> None:
    """A connection on which the upstream spoke while it was idle is closed."""
    spoken = asyncio.Event()

    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        if not spoken.is_set():
            writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 5\r\n\r\nwrong")
            await writer.drain()
            spoken.set()
        await reader.read()

    async with origin(chatty) as url, opened(url) as upstream:
        assert await whole(await sent(upstream)) == b"ok"
        await spoken.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        answer = await sent(upstream)
        assert (answer.status, await whole(answer)) == (200, b"ok")


async def test_a_connection_closed_under_a_lease_was_not_written_to() -> None:
    """A connection that dies between connecting and sending is `Unreachable`, so that the lease counts as unsent."""
    closing = asyncio.Event()

    async def impatient(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await closing.wait()

    async with origin(impatient) as url, opened(url) as upstream:
        wire = await upstream.connect()
        closing.set()
        assert wire._protocol.closed is not None
        await wire._protocol.closed
        with pytest.raises(Unreachable) as caught:
            await wire.send(a_request(), KEY, (), body=None, on_written=lambda: None)
        assert not wire.started
        assert not caught.value.written


async def test_closing_ends_what_is_under_way() -> None:
    """Requests that wait for an answer or read one fail once the upstream's connections are closed."""
    async with origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")) as url:
        upstream = Upstream(UpstreamOptions(url))
        await upstream.open()
        answer = await sent(upstream)
        assert await answer.body.read() == b"part"
        reading = spawn(answer.body.read(), name="reading", owner=set())
        await asyncio.sleep(0)
        await upstream.close()
        with pytest.raises(Broken):
            await reading
        with pytest.raises(Unreachable):
            await upstream.connect()
    await Upstream(UpstreamOptions(url)).close()


async def test_certificates_must_be_readable(tmp_path: Path) -> None:
    """A CA file that is missing or none stops the start with its name."""
    (tmp_path / "none.pem").write_text("no certificate")
    for name in ("missing.pem", "none.pem"):
        with pytest.raises(StartError, match=name):
            await Upstream(UpstreamOptions("https://localhost", tmp_path / name)).open()


async def test_other_certificates_are_trusted_from_the_next_connection_on(
    authority: trustme.CA, bundle: Path, tmp_path: Path
) -> None:
    """Requests in flight go on; no connection of the old settings is used again."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    settings = UpstreamOptions("")
    async with (
        origin(answering(OK, OK, OK), tls_of(authority, "localhost")) as url,
        opened(url, ca=bundle) as upstream,
    ):
        busy = await upstream.connect()
        assert await whole(await sent(upstream)) == b"ok"
        upstream.adopt(settings, None)
        assert idle(upstream) == 1, "what is the same changes nothing"
        upstream.adopt(settings, trust_of(other))
        with pytest.raises(Unreachable, match="certificate"):
            await sent(upstream)
        upstream.adopt(settings, trust_of(bundle))
        assert await whole(await sent(upstream)) == b"ok"
        answer = await busy.send(a_request(), KEY, (), body=None, on_written=lambda: None)
        assert await whole(answer) == b"ok"
        assert upstream._retired == [busy._connector]
        upstream.adopt(settings, trust_of(bundle))
        assert upstream._retired == []
        await asyncio.gather(*upstream.uploads)


async def test_other_times_hold_from_the_next_request_on() -> None:
    """Those of what is under way stay."""

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with origin(silent) as url, opened(url) as upstream:
        upstream.adopt(UpstreamOptions("", response_timeout=50 * MILLISECOND), None)
        with pytest.raises(TimedOut):
            await sent(upstream)
