import signal
from pathlib import Path

from tests.app.test_composition import held, sending
from tests.process import Gate, calling, house, request, until


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
