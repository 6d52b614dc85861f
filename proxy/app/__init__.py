"""The composition root: the only place that builds things, and owns how long they live."""

from proxy.app.composition import App
from proxy.app.serving import serve_until_told, until_told

__all__ = ["App", "serve_until_told", "until_told"]
