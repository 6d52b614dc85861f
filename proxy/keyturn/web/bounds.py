"""How much a listener takes from its callers, and how long it waits for them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sizes in bytes, times in seconds; the defaults are those of the section `inbound`."""

    connections: int = 10_000
    """Open at once."""
    per_peer: int = 5_000
    """Of these from one network address, as `access.failures.origin_of` tells them apart."""
    head: int = 2**16
    """A request's line and fields."""
    fields: int = 128
    target: int = 2**15
    head_time: float = 10.0
    """From the first byte of a head to its last, and for the handshake of TLS."""
    write_time: float = 60.0
    """Without a caller's taking anything of what is written to it."""
    keep_alive: float = 75.0
    """Without a request: longer than most clients wait before they use a connection again."""
