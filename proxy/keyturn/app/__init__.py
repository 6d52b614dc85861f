"""The composition root: the only place that builds things, and owns how long they live."""

from keyturn.app.composition import App
from keyturn.app.parts import link_to_store
from keyturn.app.plan import Plan
from keyturn.app.serving import serve_until_told, until_told

__all__ = ["App", "Plan", "link_to_store", "serve_until_told", "until_told"]
