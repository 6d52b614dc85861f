"""A caller's request as it is read: its framing and its target are checked, its body is a stream."""

import re
from asyncio import get_running_loop, timeout_at
from collections.abc import AsyncIterator, Collection

from aiohttp.hdrs import CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD

from keyturn.core.errors import BadRequest, Misdirected, Refusal, TooLarge, TooSlow
from keyturn.web.connection import IncomingRequest
from keyturn.web.error_responses import MalformedBody, UnreadableBody

_ABSOLUTE = re.compile(rb"(https?)://([^/?]*+)(.*)", re.IGNORECASE)
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.v]+\])(?::\d{0,5})?")
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
_HOSTS = frozenset({b"api.getpostman.com", b"api.postman.com"})
_EUROPEAN_HOSTS = frozenset({b"api.eu.postman.com"})
_POSTMAN = _HOSTS | _EUROPEAN_HOSTS
_SLOWEST_BODY = 1024
"""Bytes of a body that buy one second more."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def check_framing(incoming: IncomingRequest) -> None:
    """Refuse what the parser lets through and what others read in another way (RFC 9112, sections 2.3 and 6.1).

    The parser itself refuses a `Content-Length` beside a `Transfer-Encoding`, repeated or malformed ones, codings
    behind `chunked`, no or several `Host`; a `Host` that is none (section 3.2) is refused here.

    Raises:
        BadRequest: the end of the message, or its target, cannot be trusted.
    """
    version = incoming.version
    if version not in (HttpVersion11, HttpVersion10):
        raise BadRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if TRANSFER_ENCODING in incoming.headers:
        if version == HttpVersion10:
            raise BadRequest("HTTP/1.0 has no Transfer-Encoding: send a Content-Length.")
        if incoming.headers[TRANSFER_ENCODING].lower() != "chunked":
            raise BadRequest("The only transfer coding known here is chunked.")
    host = incoming.headers.get(HOST)
    if host and not _HOST.fullmatch(host):
        raise BadRequest("The field Host is no host and port.")
    if b"#" in incoming.target:
        raise BadRequest("A request target has no fragment: encode # as %23, or leave it out.")


def postman_hosts(upstream: str = "") -> frozenset[bytes]:
    """The names under which clients know the Postman API that an upstream is, or stands for.

    It is the one of the USA, unless the upstream is the European one.
    """
    return _EUROPEAN_HOSTS if upstream.lower().encode() in _EUROPEAN_HOSTS else _HOSTS


def origin_form(incoming: IncomingRequest, hosts: Collection[bytes]) -> bytes:
    """Path and query, byte for byte (RFC 9112, section 3.2); `*` as it is.

    An absolute target must name one of `hosts` (lower-case authorities), or the address at which it arrived. A `Host`
    may be any but a Postman API that is none of them: its data are elsewhere.

    Raises:
        Misdirected: it names another.
    """
    target = incoming.target
    if target.startswith(b"/") or target == b"*":
        named = incoming.headers.get(HOST, "").partition(":")[0].lower().encode("utf-8", "replace")
        if named in _POSTMAN and named not in hosts:
            raise _other_api(named)
        return target
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise BadRequest("The request target is neither a path nor an http or https URL.")
    authority = found[2].lower()
    if authority.removesuffix(_DEFAULT_PORTS[found[1].lower()]) not in hosts and authority not in _own(incoming):
        if authority.removesuffix(_DEFAULT_PORTS[found[1].lower()]) in _POSTMAN:
            raise _other_api(authority)
        host = authority.rpartition(b"@")[2].decode("ascii", "replace")
        raise Misdirected(f"This proxy stands for the Postman API, not for {host}. Do not use it for others.")
    return found[3] if found[3].startswith(b"/") else b"/" + found[3]


def _other_api(host: bytes) -> Misdirected:
    return Misdirected(
        f"The upstream of this proxy is not {host.decode('ascii')} (`upstream.url`). Ask a proxy whose upstream it is."
    )


def own_url(incoming: IncomingRequest) -> str:
    """The URL of the listener that the request arrived at; empty where it has none, as at a Unix socket."""
    return "".join(f"{incoming.scheme}://{name.decode('ascii')}" for name in _own(incoming)[:1])


def _own(incoming: IncomingRequest) -> tuple[bytes, ...]:
    """The names of the listener that the request arrived at."""
    transport = incoming.transport
    address = transport.get_extra_info("sockname") if transport is not None else None
    if not isinstance(address, tuple):
        return ()
    host, port = address[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}".encode(), f"localhost:{port}".encode()


class RequestBody:
    """A request's body as it comes in: counted, and refused beyond `most` bytes.

    Waiting for its bytes may take `patience` seconds in all, and one more for each KiB, so that a slow caller does not
    hold a lease for ever. Time in which the body is not being read does not count.

    The first read tells a caller that waits for it (`Expect: 100-continue`, RFC 9110, section 10.1.1) to go on. Other
    expectations are ignored, as the RFC permits.
    """

    __slots__ = ("_awaited", "_incoming", "_most", "_patience", "_waited", "length", "received")

    def __init__(self, incoming: IncomingRequest, length: int | None, most: int, patience: float) -> None:
        self._incoming = incoming
        self._most = most
        self._patience = patience
        self._waited = 0.0
        self._awaited = incoming.headers.get(EXPECT, "").lower() == "100-continue" and incoming.version == HttpVersion11
        self.length: int | None = length
        self.received: int = 0
        """Bytes read so far."""

    @classmethod
    def of(cls, incoming: IncomingRequest, most: int, patience: float) -> "RequestBody | None":
        """The body, `None` when there is none.

        Raises:
            TooLarge: its announced length is over `most`.
        """
        length = incoming.headers.get(CONTENT_LENGTH)
        if length is not None and int(length) > most:
            raise _too_large(most)
        if incoming.content is EMPTY_PAYLOAD:
            return None
        return cls(incoming, int(length) if length is not None else None, most, patience)

    def check(self) -> None:
        """See that what is here of it is framed as announced, before anybody waits for it.

        Raises:
            BadRequest, HeadTooLarge: it is not.
        """
        if (error := self._incoming.content.exception()) is not None:
            raise _misframed(error)

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they arrive.

        Raises:
            TooLarge: there are more than `most`.
            TooSlow: they do not come in time.
            BadRequest, HeadTooLarge: they are not framed as announced, or end in too many trailers.
            ConnectionError: the caller broke off.
        """
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        stream = self._incoming.content
        if self._awaited:
            self._awaited = False
            self._continue()
        try:
            data = stream.read_nowait() or await self._more()
        except UnreadableBody as error:
            raise _misframed(error) from error
        except RuntimeError as error:
            raise ConnectionResetError("the caller broke off") from error
        if not data:
            raise StopAsyncIteration
        self.received += len(data)
        if self.received > self._most:
            raise _too_large(self._most)
        return data

    async def _more(self) -> bytes:
        """The next bytes, which are not here yet."""
        loop = get_running_loop()
        began = loop.time()
        try:
            async with timeout_at(began + self._patience + self.received / _SLOWEST_BODY - self._waited):
                return await self._incoming.content.readany()
        except TimeoutError:
            self._incoming.content.set_exception(UnreadableBody())  # the rest is not awaited any more
            raise TooSlow("The body did not come in time. Send it faster, or in smaller parts.") from None
        finally:
            self._waited += loop.time() - began

    def _continue(self) -> None:
        transport = self._incoming.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the caller broke off")
        if not self._incoming.content.total_bytes:
            transport.write(_CONTINUE)


def _misframed(error: BaseException) -> Refusal:
    """The answer to a body that stopped being HTTP."""
    return (
        error.refusal
        if isinstance(error, MalformedBody)
        else BadRequest("The body is not framed as its head announces.")
    )


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"The body of a request has at most {most} bytes here (`upstream.max_body`). Send less at a time.")
