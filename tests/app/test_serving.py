import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from keyturn.practice import PracticeSettings

from tests.app.test_composition import held, sending
from tests.process import KEYS, Gate, calling, house, limit, request, until


async def test_second_signal(tmp_path: Path) -> None:
    """A second signal ends the process at once, whatever is under way; that is no clean end."""
    async with house(tmp_path, drain="10m") as home:
        keyturn, gate = home.keyturn, Gate(home.api)
        async with sending(keyturn.data, request("/echo")) as caller:
            await held(gate)
            keyturn.process.signal(signal.SIGTERM)
            await until(keyturn.sends_away, "it drains")
            keyturn.process.signal(signal.SIGINT)
            assert await caller.ended() == b""
            assert await keyturn.process.ended() == 1
        gate.open()


async def test_interrupt_when_nothing_is_under_way(tmp_path: Path) -> None:
    """Ctrl-C drains as SIGTERM does; with nothing to wait for that is at once, whoever keeps connections alive."""
    async with house(tmp_path, drain="10m") as home, calling(home.keyturn.data) as idle:
        assert (await idle.ask(request("/me"))).status == 200
        home.keyturn.process.signal(signal.SIGINT)
        assert await home.keyturn.process.ended() == 0
        assert await idle.ended() == b""


async def test_a_drain_that_cuts_requests_is_no_clean_end(tmp_path: Path) -> None:
    """Downloads that nobody takes, and requests that are not answered in time: 1, and a line that counts them."""
    async with house(tmp_path, drain="1ms") as home, AsyncExitStack() as stack:
        for _ in range(3):
            caller = await stack.enter_async_context(calling(home.keyturn.data))
            assert isinstance(caller.writer.transport, asyncio.Transport)
            caller.writer.transport.pause_reading()
            caller.send(request("/bytes/100000000"))
        await until(lambda: len(home.arrivals("/bytes/")) == 3, "the downloads have arrived")
        gate = Gate(home.api)
        await stack.enter_async_context(sending(home.keyturn.data, request("/echo")))
        await held(gate)
        home.keyturn.process.signal(signal.SIGTERM)
        assert await home.keyturn.process.ended() == 1
        (line,) = [line for line in home.keyturn.process.lines if "the drain is over" in line]
        assert '"requests": 4' in line
        gate.open()


async def test_a_drain_in_which_everything_is_answered_is_clean(tmp_path: Path) -> None:
    """Also what is refused at its end."""
    practice = PracticeSettings(tls=True, keys=KEYS[:1], limit=1, window=200)
    async with house(tmp_path, practice, limits=(limit(1, "200s"),), keys=KEYS[:1], drain="1ms") as home:
        assert (await home.ask(request("/me"))).status == 200
        async with sending(home.keyturn.data, request("/me", "Prefer: wait=300")) as caller:
            await home.keyturn.waiting(1)
            home.keyturn.process.signal(signal.SIGTERM)
            assert (await caller.reply()).status == 503
        assert await home.keyturn.process.ended() == 0
