from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.access.claims import Accepted, Holder, Rejected, judge, subject_pattern
from keyturn.core.model import SECOND, Client, Issuer, Jwt

LEEWAY = 30
NOW = 1000.0
USUAL = {"aud": "keyturn", "sub": "a:b", "exp": 2000}


def holders(*jwts: tuple[str, str, str]) -> list[Holder]:
    """Clients by name, audience and subject."""
    issuer = Issuer("i")
    return [Holder.of(Client(name), Jwt(issuer, audience, subject)) for name, audience, subject in jwts]


def verdict(claims: dict[str, Any], now: float = NOW) -> Accepted | Rejected:
    """Judge with the usual client and leeway."""
    return judge(
        {**USUAL, **claims}, holders(("ci", "keyturn", "a:*")), leeway=LEEWAY * SECOND, now=round(now * SECOND)
    )


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-a:builder", True),
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-a:", False),
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-a", False),
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-a:x:y", False),
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-ab:x", False),
        ("system:serviceaccount:*:builder", "system:serviceaccount:team-b:builder", True),
        ("system:serviceaccount:*:builder", "system:serviceaccount:a:b:builder", False),
        ("a:ci-*-job", "a:ci-7-job", True),
        ("a:ci-*-job", "a:ci--job", False),
        ("a:ci-*-*-job", "a:ci-1-2-3-job", True),
        ("a.b", "axb", False),
        ("A", "a", False),
        ("a", "a\n", False),
        ("*", "a", True),
        ("*", "a:b", False),
        ("**", "a:b", False),
    ],
)
def test_a_star_stays_within_its_part(pattern: str, subject: str, matches: bool) -> None:
    """It stands for one or more characters but no colon; everything else is compared letter by letter."""
    assert bool(subject_pattern(pattern).fullmatch(subject)) is matches


@pytest.mark.parametrize(
    ("claims", "now", "why"),
    [
        ({"exp": None}, NOW, "no time at which it expires"),
        ({"exp": "2000"}, NOW, "no time at which it expires"),
        ({"exp": True}, NOW, "no time at which it expires"),
        ({"exp": float("inf")}, NOW, "no time at which it expires"),
        ({"exp": float("nan")}, NOW, "no time at which it expires"),
        ({"exp": 10**400}, NOW, "no time at which it expires"),
        ({"nbf": "x"}, NOW, "a time that is no number"),
        ({"iat": [1]}, NOW, "a time that is no number"),
        ({}, 2000 + LEEWAY, "has expired"),
        ({"nbf": NOW + LEEWAY + 1}, NOW, "not valid yet"),
        ({"iat": NOW + LEEWAY + 1}, NOW, "not valid yet"),
        ({"aud": "other"}, NOW, "another audience"),
        ({"aud": None}, NOW, "another audience"),
        ({"aud": {"keyturn": 1}}, NOW, "another audience"),
        ({"aud": ["other", 7]}, NOW, "another audience"),
        ({"sub": "b:a"}, NOW, "no client's"),
        ({"sub": None}, NOW, "has no subject"),
        ({"sub": ["a:b"]}, NOW, "has no subject"),
    ],
)
def test_what_is_not_right_lets_nobody_in(claims: dict[str, Any], now: float, why: str) -> None:
    """Each claim that counts has to be there and right."""
    found = verdict(claims, now)
    assert isinstance(found, Rejected)
    assert not found
    assert why in found.why


@pytest.mark.parametrize(
    ("claims", "now"),
    [
        ({}, NOW),
        ({}, 2000 + LEEWAY - 0.001),
        ({"exp": 2000.5}, 2000 + LEEWAY),
        ({"nbf": NOW + LEEWAY, "iat": NOW + LEEWAY}, NOW),
        ({"aud": ["other", "keyturn"]}, NOW),
    ],
)
def test_clocks_may_differ_by_the_leeway(claims: dict[str, Any], now: float) -> None:
    """At both ends of a token's time."""
    found = verdict(claims, now)
    assert isinstance(found, Accepted)
    assert found.client.name == "ci"
    assert found.until == round((claims.get("exp", 2000) + LEEWAY) * SECOND)


def test_the_first_client_that_fits_counts() -> None:
    """By audience and subject together."""
    several = holders(("a", "x", "a:b"), ("b", "y", "a:*"), ("c", "x", "a:*"))
    for audience, subject, name in (("x", "a:b", "a"), ("y", "a:b", "b"), ("x", "a:z", "c"), (["y", "x"], "a:b", "a")):
        found = judge({"exp": 2, "aud": audience, "sub": subject}, several, leeway=0, now=0)
        assert isinstance(found, Accepted)
        assert found.client.name == name


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "aud", "sub"]), JSON))
def test_any_claims_are_judged(claims: dict[str, Any]) -> None:
    """Whatever an issuer signs, judging it ends with a verdict."""
    assert isinstance(verdict(claims), Accepted | Rejected)
