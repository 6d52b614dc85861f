"""The admin listener: whether the process lives, whether it can serve, and its metrics. Never a secret on them."""

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from proxy.telemetry import Metrics

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Admin:
    """Answers what Kubernetes and Prometheus ask.

    `unready` says why requests cannot be served now; empty when they can.
    """

    def __init__(self, metrics: Metrics, unready: Callable[[], tuple[str, ...]]) -> None:
        self._metrics = metrics
        self._unready = unready
        self._pages: dict[str, Handler] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._show_metrics,
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        page = self._pages.get(request.path)
        if page is None:
            return _json(404, {"error": {"name": "notFound", "message": f"Here are {', '.join(self._pages)}."}})
        if request.method not in ("GET", "HEAD"):
            message = f"{request.path} answers GET."
            return _json(405, {"error": {"name": "methodNotAllowed", "message": message}}, Allow="GET, HEAD")
        return await page(request)

    async def _healthz(self, _: web.BaseRequest) -> web.StreamResponse:
        return _json(200, {"status": "alive"})

    async def _readyz(self, _: web.BaseRequest) -> web.StreamResponse:
        reasons = self._unready()
        if reasons:
            return _json(503, {"status": "unready", "reasons": list(reasons)})
        return _json(200, {"status": "ready"})

    async def _show_metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        # Several fields of one name are one list (RFC 9110, section 5.3).
        accept = ",".join(request.headers.getall("Accept", ()))
        body, content_type = self._metrics.exposition(accept)
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


def _json(status: int, document: object, **headers: str) -> web.Response:
    body = json.dumps(document).encode() + b"\n"
    return web.Response(
        status=status, body=body, headers={"Content-Type": "application/json", "Cache-Control": "no-store", **headers}
    )
