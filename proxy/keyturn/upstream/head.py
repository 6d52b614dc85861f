"""The head of a request as bytes, put together by us: what the caller wrote goes out as it was written."""

from keyturn.core.http import Body, Fields, Request
from keyturn.core.model import Secret
from keyturn.core.translate import VIA

_OURS = frozenset({b"connection", b"content-length", b"host", b"transfer-encoding", b"via", b"x-request-id"})
_EMPTY = b"Content-Length: 0"
_CHUNKED = b"Transfer-Encoding: chunked"
_VIA = b"Via: " + VIA
_CONTENT_EXPECTED = frozenset({"PATCH", "POST", "PUT"})


class HeadWriter:
    """Writes heads for one upstream: `authority` goes into `Host`, and the key into the field `key_header`."""

    __slots__ = ("_begin", "_key", "_ours")

    def __init__(self, authority: str, key_header: str) -> None:
        self._begin = b" HTTP/1.1\r\nHost: " + authority.encode("ascii")
        self._key = key_header.encode("ascii") + b": "
        self._ours = _OURS | {key_header.lower().encode("ascii")}

    def write(self, request: Request, key: Secret, extra: Fields, body: Body | None) -> bytes:
        """The head of `request` with its empty line; `extra` replaces fields of the same name.

        The framing follows `body`, not the fields. Our `Via` goes behind those of others (RFC 9110, section 7.6.3).

        Raises:
            ValueError: the key cannot stand in a field.
        """
        ours = self._ours | {name.lower() for name, _ in extra} if extra else self._ours
        framing = _framing(request.method, body)
        via = []
        lines = [request.method.encode("ascii") + b" " + request.target + self._begin]
        for field in request.fields:
            if (name := field[0].lower()) not in ours:
                lines.append(b": ".join(field))
            elif name == b"content-length":
                framing = framing or _EMPTY
            elif name == b"via":
                via.append(field[1])
        if framing:
            lines.append(framing)
        lines.extend(map(b": ".join, extra))
        lines += (
            self._key + _bytes(key),
            b"Via: " + b", ".join((*via, VIA)) if via else _VIA,
            b"X-Request-Id: " + request.id.encode("ascii", "replace"),
            b"\r\n",
        )
        return b"\r\n".join(lines)


def _framing(method: str, body: Body | None) -> bytes:
    """How the body's end is known (RFC 9112, section 6).

    A request without a body says so where its method makes servers expect one (RFC 9110, section 8.6): some answer 411.
    """
    if body is None:
        return _EMPTY if method in _CONTENT_EXPECTED else b""
    return _CHUNKED if body.length is None else b"Content-Length: %d" % body.length


def _bytes(key: Secret) -> bytes:
    value = key.reveal()
    if "\r" in value or "\n" in value:
        raise ValueError("a key holds a line break: it cannot be sent")
    return value.encode("utf-8", "replace")
