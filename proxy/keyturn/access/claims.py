"""What a JSON Web Token claims, judged at a moment: whose it is, and until when (RFC 7519, section 4.1; RFC 8725)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from keyturn.core.model import SECOND, Client, Jwt, Micros
from keyturn.core.values import value_object

_STARS = re.compile(r"\*+")
_FARTHEST = 2**53
"""Seconds beyond which a number of JSON is no whole one any more."""


@value_object
class Rejected:
    """Why a JSON Web Token of a known issuer lets nobody in. It counts as nobody: it is false."""

    why: str
    """Goes on from "The JSON Web Token"; shows nothing of the token."""

    def __bool__(self) -> Literal[False]:
        return False


@value_object
class Accepted:
    """Whose token it is, and until which wall time."""

    client: Client
    until: Micros


@dataclass(frozen=True, slots=True)
class Holder:
    """A client and the tokens that are its own."""

    client: Client
    jwt: Jwt
    subject: re.Pattern[str] = field(repr=False)

    @classmethod
    def of(cls, client: Client, jwt: Jwt) -> "Holder":
        """With its subject's pattern made ready."""
        return cls(client, jwt, subject_pattern(jwt.subject))


def subject_pattern(text: str) -> re.Pattern[str]:
    """What a configured subject matches: `*` stands for one or more characters, but no colon.

    Matching takes time linear in the subject for each star, whatever a caller sends: all stars but the last of a part
    take the least that they can and are never tried again (atomic groups), as in `core.policy`.
    """
    return re.compile(":".join(map(_part, text.split(":"))), re.DOTALL)


def _part(text: str) -> str:
    first, *others = map(re.escape, _STARS.split(text))
    if not others:
        return first
    held = "".join(f"(?>[^:]+?{piece})" for piece in others[:-1])
    return f"{first}{held}[^:]+{others[-1]}"


def judge(claims: Mapping[str, Any], holders: Iterable[Holder], *, leeway: Micros, now: Micros) -> Accepted | Rejected:
    """Say whose token it is; `now` is wall time, the signature has been verified.

    Of several clients that it could be, the first counts.
    """
    times = [_instant(claims.get(name)) for name in ("exp", "nbf", "iat")]
    expiry, *begins = times
    if expiry is None:
        return Rejected("has no time at which it expires (`exp`)")
    if any(time is None and claims.get(name) is not None for time, name in zip(begins, ("nbf", "iat"), strict=True)):
        return Rejected("holds a time that is no number")
    if now >= expiry + leeway:
        return Rejected("has expired")
    if any(time is not None and now < time - leeway for time in begins):
        return Rejected("is not valid yet")
    return _owner(claims, holders, expiry + leeway)


def _owner(claims: Mapping[str, Any], holders: Iterable[Holder], until: Micros) -> Accepted | Rejected:
    subject, audiences = claims.get("sub"), _texts(claims.get("aud"))
    if not isinstance(subject, str):
        return Rejected("has no subject (`sub`)")
    fitting = [holder for holder in holders if holder.jwt.audience in audiences]
    if not fitting:
        return Rejected("is for another audience (`aud`)")
    for holder in fitting:
        if holder.subject.fullmatch(subject):
            return Accepted(holder.client, until)
    return Rejected("has a subject (`sub`) that is no client's")


def _texts(value: object) -> frozenset[str]:
    if isinstance(value, str):
        return frozenset({value})
    return frozenset(item for item in value if isinstance(item, str)) if isinstance(value, list) else frozenset()


def _instant(value: object) -> Micros | None:
    """A `NumericDate` (RFC 7519, section 2) in microseconds, `None` when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return round(value * SECOND) if abs(value) < _FARTHEST else None  # false for NaN and infinity too
