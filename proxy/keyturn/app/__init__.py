"""The composition root: builds all parts of a process and owns their lifetimes."""

from keyturn.app.composition import App
from keyturn.app.resolved_config import ResolvedConfig, link_to_store
from keyturn.app.serving import serve_until_told, until_told

__all__ = ["App", "ResolvedConfig", "link_to_store", "serve_until_told", "until_told"]
