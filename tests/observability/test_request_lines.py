import json
import signal
import socket
from pathlib import Path
from typing import Any

from tests.process import ADMIN_TOKEN, INTRUDER, KEYS, SECRETS, TOKENS, Keyturn, house, limit, request, until

MARKED = "PMAK-secret-in-a-strange-place"


def lines(keyturn: Keyturn) -> list[dict[str, Any]]:
    """The lines of requests that have been written."""
    found = [json.loads(line) for line in keyturn.process.lines if line.startswith("{")]
    return [line for line in found if line["logger"] == "keyturn.requests"]


async def test_a_request_s_line_tells_what_really_happened(tmp_path: Path) -> None:
    """Beside the answer that its caller got and what arrived at the upstream."""
    async with house(tmp_path, log={"format": "json"}, limits=(limit(3, "2s"),)) as home:
        data = request("/echo/a%2Fb?x=1", "X-Request-Id: mine-1", "Content-Length: 4", method="PUT") + b"body"
        answers = [await home.ask(data), await home.ask(request("/me", token=INTRUDER))]
        for _ in range(5):
            answers.append(await home.ask(request("/me")))  # noqa: PERF401  # one after another
        await until(lambda: len(lines(home.keyturn)) == len(answers), "a line for each request")
        put, stranger, *waited = lines(home.keyturn)
        assert (put["id"], put["client"], put["pool"], put["method"]) == ("mine-1", "ci", "default", "PUT")
        assert (put["path"], put["code"], put["outcome"], put["attempts"]) == ("/echo/a%2Fb", 200, "forwarded", 1)
        assert put["key"] == answers[0].one("Keyturn-Key")
        assert (put["received_bytes"], put["sent_bytes"]) == (4, len(answers[0].body))
        assert 0 < put["upstream_seconds"] <= put["total_seconds"]
        assert (stranger["code"], stranger["outcome"], stranger["reason"]) == (401, "refused", "unauthenticated")
        assert {"client", "key", "pool"} & set(stranger) == set()
        assert [line["id"] for line in waited] == [answer.one("X-Request-Id") for answer in answers[2:]]
        assert all(line["queue_seconds"] < line["total_seconds"] for line in waited)
        assert [line["level"] for line in lines(home.keyturn)] == ["info"] * len(answers)


async def test_tries_without_a_connection_are_tries(tmp_path: Path) -> None:
    """As many as were retried, and one; what failed is told in words, not in those of a library's source."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    log, upstream = {"format": "json"}, {"url": f"http://127.0.0.1:{port}"}
    for join in (False, True):
        async with house(tmp_path, log=log, upstream=upstream, queue={"join": join}) as home:
            await home.ask(request("/me", "User-Agent: newman/6", "Prefer: wait=60"))
            await until(lambda: lines(home.keyturn), "its line")
            (line,) = lines(home.keyturn)
            assert (line["code"], line["outcome"]) == (502, "failed")
            assert line["attempts"] == len(line["retry_reasons"]) + 1 > 1
            assert line["problem"] == f"No connection to 127.0.0.1:{port}: connection refused. Try again later."
            assert (line["client_address"], line["user_agent"]) == ("127.0.0.1", "newman/6")
            assert line["key"] in {"team-1", "team-2"}


async def test_nothing_that_is_logged_holds_a_secret(tmp_path: Path) -> None:
    """Whatever is logged at `debug`, of requests that carry secrets wherever one can stand (law 11)."""
    log = {"level": "debug", "format": "json"}
    async with house(tmp_path, log=log, admin_token=ADMIN_TOKEN) as home:
        for data in (
            request("/me"),
            request(f"/me?apikey={TOKENS['ci']}&x={INTRUDER}", token=None),
            request("/me", f"Authorization: Bearer {INTRUDER}", token=None),
            request("/me", f"X-Api-Key: {INTRUDER}", f"Cookie: session={INTRUDER}"),
            request(f"/{MARKED}/me"),
            request("/me", f"X-Request-Id: {MARKED}"),
            request("/me", f"X-Broken: {INTRUDER}\0"),
            request("/me", f"Keyturn-Key: {KEYS[0]}"),
            f"GET {INTRUDER}\r\n\r\n".encode(),
            request("/status/500"),
        ):
            await home.ask(data)
        await until(lambda: len(lines(home.keyturn)) >= 8, "the lines of the requests")
        written = home.keyturn.process.stderr
        assert [secret for secret in (*SECRETS, MARKED) if secret in written] == []


async def test_a_signal_and_the_bearer_of_the_token_change_the_level(tmp_path: Path) -> None:
    """While it runs; nobody else can."""
    async with house(tmp_path, log={"level": "warning", "format": "json"}, admin_token=ADMIN_TOKEN) as home:
        await home.ask(request("/me"))
        home.keyturn.process.signal(signal.SIGUSR1)
        await until(lambda: "log level is changed" in home.keyturn.process.stderr, "the level is debug")
        assert lines(home.keyturn) == []
        await home.ask(request("/me"))
        await until(lambda: len(lines(home.keyturn)) == 1, "a request is told")
        assert (await home.keyturn.post("/log/error")).status == 401
        assert (await home.keyturn.post("/log/error", ADMIN_TOKEN)).status == 200
        await home.ask(request("/me"))
        assert len(lines(home.keyturn)) == 1
