"""Noticing that the files of a configuration have changed, and taking or refusing them as a whole."""

from keyturn.reload.reloader import Loaded, Reloader

__all__ = ["Loaded", "Reloader"]
