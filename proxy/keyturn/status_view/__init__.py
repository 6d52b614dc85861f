"""What `keyturn status` shows: the status document of a running proxy, in a terminal."""

from keyturn.status_view.showing import output, show

__all__ = ["output", "show"]
