"""Where the head of a request ends, and what the bytes of it cost while they are held."""

_END = b"\r\n\r\n"
_SEAM = len(_END) - 1
_COST, _COST_BEYOND_ASCII = 2, 5
"""Bytes of memory for each byte of a head: the parser keeps every field as bytes and as text, and text with one
character outside ASCII may take four bytes for each."""


class HeadCount:
    """Counts the bytes of one head after another, as they come in pieces."""

    __slots__ = ("_cost", "_seam", "received")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Expect another head."""
        self.received = 0
        """Bytes of a head that has begun and is not complete."""
        self._seam = b""
        """The last few of them, where its end may have begun."""
        self._cost = _COST

    @property
    def cost(self) -> int:
        """Bytes of memory that what has been received takes."""
        return self.received * self._cost

    def affordable(self, room: int) -> int:
        """How many bytes of a head fit into so much memory."""
        return room // self._cost

    def length(self, data: bytes, at: int) -> int:
        """How many of the bytes from `at` on belong to this head."""
        if self._seam:
            across = (self._seam + data[at : at + _SEAM]).find(_END)
            if across >= 0:
                return across + len(_END) - len(self._seam)
        end = data.find(_END, at)
        return (len(data) if end < 0 else end + len(_END)) - at

    def add(self, piece: bytes) -> None:
        """Count a piece of it."""
        self.received += len(piece)
        self._seam = piece[-_SEAM:] if len(piece) >= _SEAM else (self._seam + piece)[-_SEAM:]
        if not piece.isascii():
            self._cost = _COST_BEYOND_ASCII
