"""The baseline for Keyturn: a minimal aiohttp proxy that swaps the key and streams both ways.

Run as `python -m bench.bare UPSTREAM_URL CA.pem KEY`; prints `ready data=http://127.0.0.1:PORT` to stderr.
"""

import asyncio
import ssl
import sys

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from yarl import URL


async def serve(upstream: str, ca: str, key: str) -> None:
    """Forward every request to a free port of the loopback until the process is ended."""
    connector = TCPConnector(limit=256, ssl=ssl.create_default_context(cafile=ca))
    session = ClientSession(
        connector=connector,
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        timeout=ClientTimeout(total=None),
    )

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = request.headers.copy()
        headers.popall("Host", None)
        headers["X-Api-Key"] = key
        url = URL(upstream + request.raw_path, encoded=True)
        body = request.content if request.body_exists else None
        async with session.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=answer.headers)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"ready data=http://127.0.0.1:{runner.addresses[0][1]}", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:4]))
