"""`keyturn status`: the status document of a running proxy in a terminal."""

from keyturn.status_view.status_command import output, show

__all__ = ["output", "show"]
