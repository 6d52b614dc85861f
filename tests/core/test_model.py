import copy
import dataclasses
import json
import pickle
import traceback
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.model import MILLISECOND, SECOND, Client, Key, Limit, Pool, Secret, by_name
from keyturn.core.policy import Rule

TEXT = "PMAK-0123456789abcdef"
SECRET = Secret(TEXT)
KEY = Key("team-a", SECRET, "team-a")


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        format,
        ascii,
        lambda secret: f"{secret}",
        lambda secret: f"{secret!r}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031  # logging formats in this way
        lambda _: repr(KEY),
        lambda _: str(Pool("default", (KEY,), ())),
        lambda _: repr([KEY, {"secret": SECRET}]),
    ],
)
def test_a_secret_never_shows_itself(show: Callable[[Secret], str]) -> None:
    """No text made of a secret, or of an object that holds it, shows more than that there is one (law 11)."""
    shown = show(SECRET)
    assert "Secret(…)" in shown or "Secret(\\u2026)" in shown
    assert TEXT not in shown


@pytest.mark.parametrize(
    "write",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        json.dumps,
        lambda secret: pickle.dumps(secret, 0),
        lambda secret: format(secret, ">40"),
        lambda _: dataclasses.asdict(KEY),
        vars,
        bytes,
    ],
)
def test_a_secret_is_not_written_anywhere(write: Callable[[Secret], object]) -> None:
    """Pickling and copying a secret are refused, by an error that does not hold it."""
    with pytest.raises(TypeError) as caught:
        write(SECRET)
    assert TEXT not in "".join(traceback.format_exception(caught.value))


def test_a_secret_stays_out_of_tracebacks_with_local_variables() -> None:
    """Tracebacks with local variables do not show a secret."""
    secret, key = SECRET, KEY

    def fail() -> None:
        held = (secret, key)
        raise RuntimeError(held)

    with pytest.raises(RuntimeError) as caught:
        fail()
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "held = " in shown
    assert TEXT not in shown


def test_secrets_are_compared_by_what_they_hold() -> None:
    """Two secrets of the same text are equal; a secret never equals its text."""
    assert {Secret(TEXT), SECRET} == {SECRET}
    assert Secret("other") != SECRET
    assert SECRET != TEXT
    assert SECRET.reveal() == TEXT
    assert Secret("abc").digest() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        (Limit(60, 60 * SECOND), "60/60s"),
        (Limit(1, SECOND), "1/1s"),
        (Limit(10, 250 * MILLISECOND), "10/250ms"),
        (Limit(10, 1500 * MILLISECOND), "10/1500ms"),
    ],
)
def test_a_limits_name_tells_its_size_and_window(limit: Limit, name: str) -> None:
    """A limit's name tells its size and window, in seconds if they are whole."""
    assert limit.name == name


@given(st.integers(1, 10**12), st.integers(0, 10**9))
def test_a_stretched_window_covers_the_guard_and_the_rates_of_two_clocks(window: int, guard: int) -> None:
    """A window is stretched by 0.05 % and the guard (law 1)."""
    limit = Limit(1, window)
    stretched = Pool("p", (), (limit,), guard=guard).stretched(limit)
    assert window * 1.0005 - 1 <= stretched - guard <= window * 1.0005 + 1


NARROW = (Rule.parse("GET /collections"), Rule.parse("GET /workspaces/*"))
POOL = Pool(
    "default",
    (KEY, Key("b", Secret("b"), "shared"), Key("c", Secret("c"), "shared")),
    (Limit(60, 60 * SECOND), Limit(10, 10 * SECOND, NARROW), Limit(20, 60 * SECOND, (Rule.parse("PUT /**"),))),
    headers=(("X-Extra", "välue"),),
)


@pytest.mark.parametrize(
    ("method", "path", "limits"),
    [
        ("GET", "/collections", (0, 1)),
        ("HEAD", "/workspaces/1", (0, 1)),
        ("GET", "/collections/1", (0,)),
        ("PUT", "/collections", (0, 2)),
        ("GET", None, (0, 1, 2)),
    ],
)
def test_the_limits_that_a_request_falls_under(method: str, path: str | None, limits: tuple[int, ...]) -> None:
    """A request falls under limits without a match and matching ones, under all if its path has no normal form."""
    assert POOL.limits_on(method, path) == limits


def test_keys_of_one_user_share_a_quota() -> None:
    """Keys of one user share a quota, and quotas are in the order of their first keys."""
    assert POOL.quotas == ("team-a", "shared")
    assert [key.name for key in POOL.keys_of["shared"]] == ["b", "c"]
    assert POOL.key("c") is POOL.keys[2]
    assert POOL.key("unknown") is None
    assert by_name([POOL]) == {"default": POOL}
    assert POOL.fields == ((b"X-Extra", "välue".encode()),)


def test_what_a_client_may() -> None:
    """Without a list a client may do everything, with one only what it names."""
    assert Client("a").may("DELETE", None)
    client = Client("a", allow=NARROW, digests=("0a1b2c",))
    assert client.may("GET", "/collections")
    assert not client.may("DELETE", "/collections")
    assert not client.may("GET", None)
    assert "0a1b2c" not in repr(client)
