"""Identifies callers by a token's SHA-256, a JSON Web Token, or their connection's certificate.

Law 11: a credential is never kept, shown or compared as such; a request leaves here without any of its caller's.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from itertools import chain
from typing import Any

from keyturn.access.jwts import Jwts, RejectedJwt
from keyturn.access.rate_limits import AuthenticationFailed, ClientRates, FailedAttempts, Peer, SigningKeyUnknown
from keyturn.core.credentials import CredentialPlaces, FoundCredentials, remove_credentials, stray_words, without
from keyturn.core.errors import BadRequest, Forbidden, Unauthenticated
from keyturn.core.events import Observer
from keyturn.core.headers import from_another_site
from keyturn.core.http import Fields
from keyturn.core.model import Client, Micros
from keyturn.core.redaction import MAX_VALUES, Redactor
from keyturn.core.values import value_object

Name = tuple[str, str]
"""A kind as Python's `ssl` calls it, and the name in the form in which it is compared."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?!\d+\Z).")


def san_kind(san: str) -> Name:
    """The kind of a configured name: `spiffe://a/b` is a URI, `10.0.0.1` an address, `a@b` an e-mail, others are DNS.

    A name of another kind that happens to read the same is another name.
    """
    address = _address(san)
    if address:
        return "IP Address", address
    if _URI.match(san):
        return "URI", san
    if "@" in san:
        return "email", san
    return "DNS", san.lower()


def clients_by_name(clients: Iterable[Client]) -> dict[Name, Client]:
    """The clients that are known by a certificate; of two with the same name the first counts."""
    found: dict[Name, Client] = {}
    for client in clients:
        if client.san is not None:
            found.setdefault(san_kind(client.san), client)
    return found


def certificate_holder(certificate: Mapping[str, Any], known: Mapping[Name, Client]) -> Client | None:
    """The client of a certificate, as `ssl` describes it; the first of its names that is a client's decides."""
    names = (entry for entry in certificate.get("subjectAltName", ()) if _is_text(entry))
    return next((known[name] for name in map(_as_compared, names) if name in known), None)


def _is_text(entry: object) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(part, str) for part in entry)  # noqa: PLR2004


def _as_compared(entry: tuple[str, str]) -> Name:
    kind, name = entry
    match kind:
        case "IP Address":
            return kind, _address(name) or ""
        case "DNS":
            return kind, name.lower()
        case _:
            return kind, name


def _address(text: str) -> str | None:
    """The one way in which an address is written, `None` when it is none."""
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        return None


@value_object
class Admission:
    """A request whose caller is known, without the caller's credential."""

    client: Client
    fields: Fields = field(repr=False)
    target: bytes = field(repr=False)
    hidden: Redactor | None = field(default=None, compare=False)
    """The values that no log may show; `None` when the path and the id of the request cannot hold any of them."""


def _monotonic() -> Micros:
    return time.monotonic_ns() // 1000


def _wall() -> Micros:
    return time.time_ns() // 1000  # what JSON Web Tokens say is wall time


class Access:
    """The clients that are known. From `start` to `stop`, when any of them has a JSON Web Token.

    Args:
        clients: each with the digests of its tokens, a name in its certificate, its JSON Web Tokens.
        anonymous: who callers without a credential are; `None` when one is required.
        key_header: the upstream's key header, in which callers may send their token, as in `X-Api-Key`.
        key_query: the query parameter in which they may send it.
        observer: told of failed attempts and of issuers.
        clock: monotonic microseconds; `wall` epoch microseconds, for the times in JSON Web Tokens.
    """

    def __init__(
        self,
        clients: Iterable[Client],
        *,
        anonymous: Client | None,
        key_header: str,
        key_query: str,
        observer: Observer | None = None,
        clock: Callable[[], Micros] = _monotonic,
        wall: Callable[[], Micros] = _wall,
    ) -> None:
        self._rates = ClientRates()
        self._failures = FailedAttempts(observer)
        self._jwts = Jwts(clock, wall, observer)
        self.accept = self._rates.accept
        self.replace(clients, anonymous=anonymous, key_header=key_header, key_query=key_query)

    def replace(self, clients: Iterable[Client], *, anonymous: Client | None, key_header: str, key_query: str) -> None:
        """Take other clients from now on; what a client has used of a rate that stays the same stays used."""
        known = tuple(clients)
        self._by_digest = {digest: (digest, client) for client in known for digest in client.digests}
        self._by_name = clients_by_name(known)
        self._anonymous = anonymous
        self._places = CredentialPlaces.named(key_header, key_query)
        self._ways = f"`Authorization: Bearer <token>`, `{key_header}: <token>` or `?{key_query}=<token>`"
        self._rates.keep((*known, *filter(None, [anonymous])))
        self._jwts.replace(known)

    async def start(self) -> None:
        """Begin to read the keys of the issuers of JSON Web Tokens; does not wait for them."""
        self._jwts.start()

    async def stop(self) -> None:
        """End that, and close the connections to issuers."""
        await self._jwts.stop()

    def admit(self, fields: Fields, target: bytes, peer: Peer | None = None) -> Admission:
        """Say whose a request is, and take the caller's credential off it, wherever it is repeated.

        The first that is a client's decides: a token in `Authorization` or in `Proxy-Authorization`, the key header or,
        when that is not there, the query, the certificate of the connection (`peer`). An `Authorization` that is no
        client's belongs to the upstream and passes, unless a known issuer has made it.

        A caller that is known by its place alone, or by Basic credentials, which browsers keep, is not the web page of
        another site that a browser in that place shows.

        Raises:
            Unauthenticated: no credential, or an unknown one, and one is required; hand it to `learn` and `slow`.
            Forbidden: such a page sent it.
            BadRequest: the path holds a credential.
        """
        try:
            found: FoundCredentials[Client | RejectedJwt] = remove_credentials(
                fields, target, self._places, self._owner
            )
            given = found.authorized or self._owner(found.header or found.query)
        except SigningKeyUnknown as unlearned:
            raise Unauthenticated(f"The JSON Web Token cannot be verified. Send one as {self._ways}.") from unlearned
        client = given or (self._certified(peer) if self._by_name else None) or self._anonymous
        if client is None:
            message, cause = self._refusal(found, given, peer)
            raise Unauthenticated(f"{message} as {self._ways}.") from cause
        if (not given or found.basic) and from_another_site(fields):
            raise Forbidden(
                "A web page of another site sent this, as its `Origin` or `Sec-Fetch-Site` says, without a token "
                f"of its own. Send one as {self._ways}, or leave these fields out where no browser writes them."
            )
        return self._cleaned(client, found, known=bool(given))

    def _cleaned(self, client: Client, found: FoundCredentials[Client | RejectedJwt], *, known: bool) -> Admission:
        """The request without what repeats a credential; `known` says whether its token is known.

        Raises:
            BadRequest: its path repeats one, or there are too many to look for.
        """
        fields, target = found.fields, found.target
        strays = () if known else self._strays(fields, target)
        hidden = Redactor((*found.ours, *found.proxied, *strays))
        if hidden.too_many:
            raise BadRequest(f"The request holds more than {MAX_VALUES} tokens. Send one.")
        repeated = bool(hidden) and hidden.is_in(b"\n".join((target, *chain.from_iterable(fields))))
        if repeated:
            if hidden.is_in(target.partition(b"?")[0]):
                raise BadRequest(
                    "The path holds the caller's token, and a path goes to the upstream. Send the token only as "
                    f"{self._ways}, and replace it: others may have logged it."
                )
            fields, target = without(fields, target, hidden)
        if repeated or found.others:
            hidden = Redactor((*found.ours, *found.proxied, *strays, *found.others))
            return Admission(client, fields, target, hidden)
        return Admission(client, fields, target)

    def hidden(self, fields: Fields, target: bytes) -> Redactor:
        """The parts of a request that was not admitted which look like a credential, and may not be shown."""
        found: FoundCredentials[Client] = remove_credentials(fields, target, self._places, _nobody)
        return Redactor((*found.ours, *found.proxied, *found.others, *self._strays(fields, target)))

    def _strays(self, fields: Fields, target: bytes) -> Iterator[bytes]:
        """Clients' tokens that stand in no place for them."""
        if self._by_digest:
            for word in stray_words(fields, target):
                if sha256(word).hexdigest() in self._by_digest:
                    yield word

    async def refresh_keys(self, refusal: Unauthenticated) -> bool:
        """Whether a refused request is worth a second look: its token's issuer was asked for its keys meanwhile."""
        cause = refusal.__cause__
        if not isinstance(cause, SigningKeyUnknown):
            return False
        await cause.refresh()
        return True

    async def slow(self, refusal: Unauthenticated, caller: str) -> bool:
        """Take note of a failed attempt of the caller at an address.

        Returns when it may be answered, and whether its connection may go on.
        """
        cause = refusal.__cause__
        return await self._failures.slow(cause, caller) if isinstance(cause, AuthenticationFailed) else True

    def _owner(self, token: bytes | None) -> Client | RejectedJwt | None:
        if not token:
            return None
        digest = sha256(token).hexdigest()
        known = self._by_digest.get(digest)
        if known and compare_digest(known[0], digest):
            return known[1]
        return self._jwts.owner(token, digest) if self._jwts else None

    def _certified(self, peer: Peer | None) -> Client | None:
        certificate = peer.get_extra_info("peercert") if peer is not None else None
        return certificate_holder(certificate, self._by_name) if certificate else None

    def _refusal(
        self, found: FoundCredentials[Client | RejectedJwt], given: Client | RejectedJwt | None, peer: Peer | None
    ) -> tuple[str, AuthenticationFailed]:
        """The message of the refusal, up to the places of a credential, and its cause."""
        rejected = next((one for one in (given, found.authorized) if isinstance(one, RejectedJwt)), None)
        if rejected is not None:
            cause = AuthenticationFailed("jwt", f"a JSON Web Token that {rejected.why}")
            return f"The JSON Web Token {rejected.why}. Send a valid one", cause
        if place := _place(found):
            return f"The token in {place} is not known to this proxy. Send a valid one", AuthenticationFailed("token")
        if self._by_name and peer is not None and peer.get_extra_info("peercert"):
            message = "No name in the certificate is known to this proxy, and there is no token. Send it"
            return message, AuthenticationFailed("certificate")
        return "This proxy needs a token. Send it", AuthenticationFailed("missing")


def _place(found: FoundCredentials[Client | RejectedJwt]) -> str:
    """The place of an unknown token, for a message; empty when there is none."""
    if found.header:
        return "the key header"
    if found.query:
        return "the query"
    if found.proxied:
        return "`Proxy-Authorization`"
    return "`Authorization`" if found.others else ""


def _nobody(_: bytes) -> None:
    """The owner of every token, where it does not matter whose it is."""
