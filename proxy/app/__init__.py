"""The composition root: the only place that builds things, and owns how long they live."""

from proxy.app.composition import App
from proxy.app.parts import link_to_store
from proxy.app.plan import Plan
from proxy.app.serving import serve_until_told, until_told

__all__ = ["App", "Plan", "link_to_store", "serve_until_told", "until_told"]
