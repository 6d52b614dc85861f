import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.credentials import Found, Places, take_off, take_off_target
from proxy.core.http import Fields

MARK = b"5ecret"
OURS = {b"5ecret-ci": "ci", b"5ecret-web": "web"}
PLACES = Places.named("X-Api-Key", "apikey")

NAME = st.sampled_from(
    [b"apikey", b"api%6Bey", b"%61%70%69%6b%65%79", b"apikeys", b"Apikey", b"a", b"", b"%", b"api%6", b"api+key"]
)
VALUE = st.sampled_from([b"", b"=", b"=5ecret-ci", b"=x%20y", b"=a=b", b"=%"])
PIECE = st.builds(bytes.__add__, NAME, VALUE)
PATH = st.sampled_from([b"/", b"/a%2Fb", b"/apikey", b"http://h/apikey=1", b"*", b""])


def found(target: bytes = b"/", *fields: tuple[bytes, bytes], places: Places = PLACES) -> Found[str]:
    """What is found in a request."""
    return take_off(fields, target, places, OURS.get)


def is_ours(piece: bytes) -> bool:
    """Whether a piece of a query is the parameter `apikey`, in plain letters or escaped ones."""
    return piece.partition(b"=")[0] in (b"apikey", b"api%6Bey", b"%61%70%69%6b%65%79")


@given(PATH, st.lists(PIECE, max_size=5))
def test_all_but_the_parameter_survives(path: bytes, pieces: list[bytes]) -> None:
    """Byte for byte, in order; without anything left, the query goes with its `?`."""
    target = path + b"?" + b"&".join(pieces)
    _, rest = take_off_target(target, b"apikey")
    kept = [piece for piece in pieces if not is_ours(piece)]
    if len(kept) == len(pieces):
        assert rest is target
    else:
        assert rest == (path + b"?" + b"&".join(kept) if b"&".join(kept) else path)


@given(st.binary(max_size=30))
def test_a_target_without_the_parameter_stays(noise: bytes) -> None:
    """Whatever it looks like."""
    target = noise.replace(b"k", b"_").replace(b"%", b"_")
    assert take_off_target(target, b"apikey") == (None, target)


@given(st.binary(max_size=30), st.binary(max_size=10))
def test_taking_off_leaves_nothing_to_take_off(path: bytes, value: bytes) -> None:
    """Once is enough."""
    _, rest = take_off_target(path + b"?apikey=" + value, b"apikey")
    assert take_off_target(rest, b"apikey") == (None, rest)


@pytest.mark.parametrize(
    "target", [b"/", b"/?", b"/?&&", b"/?a", b"/?%", b"/a?b=apikey", b"/apikey=5?x", b"/?xapikey=1", b""]
)
def test_other_targets_stay_as_they_are(target: bytes) -> None:
    """The very same bytes."""
    assert take_off_target(target, b"apikey")[1] is target


@pytest.mark.parametrize(
    ("target", "value", "rest"),
    [
        (b"/a?apikey=t", b"t", b"/a"),
        (b"/a?apikey=t&b=1", b"t", b"/a?b=1"),
        (b"/a?b=1&apikey=t", b"t", b"/a?b=1"),
        (b"/a?b&apikey=t&&c", b"t", b"/a?b&&c"),
        (b"/a?api%6Bey=t", b"t", b"/a"),
        (b"/a?apikey=t%2Dx%2B+", b"t-x++", b"/a"),
        (b"/a?apikey=t=x", b"t=x", b"/a"),
        (b"/a?apikey", None, b"/a"),
        (b"/a?apikey=", None, b"/a"),
        (b"/a?apikey=&x=%2F&apikey=t&apikey=u", b"t", b"/a?x=%2F"),
        (b"/a?apikey=t&", b"t", b"/a"),
        (b"/a?x?apikey=1&apikey=t", b"t", b"/a?x?apikey=1"),
        (b"http://api.getpostman.com/a%2Fb?apikey=t&b=1", b"t", b"http://api.getpostman.com/a%2Fb?b=1"),
        (b"?apikey=t", b"t", b""),
    ],
)
def test_the_parameter_is_taken_off(target: bytes, value: bytes | None, rest: bytes) -> None:
    """Its first value that is not empty is the credential, decoded."""
    assert take_off_target(target, b"apikey") == (value, rest)


def test_nothing_is_made_anew_when_nothing_is_taken_off() -> None:
    """The request passes as it came."""
    fields: Fields = ((b"Accept", b"*/*"), (b"Authorization", b"Basic abc"))
    request = take_off(fields, b"/a?b=1", PLACES, OURS.get)
    assert request.fields is fields
    assert (request.bearer, request.header, request.query) == (None, None, None)


@pytest.mark.parametrize(
    "value",
    [b"Bearer 5ecret-ci", b"bearer 5ecret-ci", b"BEARER   5ecret-ci", b" Bearer 5ecret-ci ", b"Bearer 5ecret-ci\t"],
)
def test_a_bearer_token_of_ours_is_taken_off(value: bytes) -> None:
    """Its scheme in any letters (RFC 9110, section 11.1)."""
    request = found(b"/", (b"aUTHORIZATION", value), (b"A", b"b"))
    assert request.bearer == "ci"
    assert request.fields == ((b"A", b"b"),)


@pytest.mark.parametrize(
    "value", [b"Bearer other", b"Bearer", b"Bearer ", b"", b"Basic 5ecret-ci", b"5ecret-ci", b"Bearer5ecret-ci"]
)
def test_another_authorization_belongs_to_the_upstream(value: bytes) -> None:
    """It passes."""
    fields = ((b"Authorization", value),)
    assert found(b"/", *fields).fields == fields


def test_each_authorization_is_judged_alone() -> None:
    """Ours go, others stay; the first of ours counts."""
    others = ((b"Authorization", b"Bearer scim"), (b"Authorization", b"Basic x"))
    request = found(
        b"/", others[0], (b"Authorization", b"Bearer 5ecret-web"), others[1], (b"Authorization", b"Bearer 5ecret-ci")
    )
    assert request.bearer == "web"
    assert request.fields == others


def test_every_key_header_is_taken_off() -> None:
    """Ours or not, in any letters; the first that is not empty is the credential."""
    request = found(b"/", (b"x-api-key", b" "), (b"A", b"b"), (b"X-API-KEY", b" 5ecret-ci "), (b"X-Api-Key", b"other"))
    assert request.header == b"5ecret-ci"
    assert request.fields == ((b"A", b"b"),)


def test_a_name_that_servers_read_alike_is_taken_off() -> None:
    """Where `_` is taken for `-` it would stand beside the pool's key; as a credential here it is none."""
    request = found(b"/", (b"X_API_KEY", b"evil"), (b"X-Api-Key", b"mine"), (b"x_other-key", b"1"))
    assert (request.header, request.fields) == (b"mine", ((b"x_other-key", b"1"),))


def test_the_upstreams_own_key_header_is_one_more() -> None:
    """Beside `X-Api-Key`, which clients know."""
    places = Places.named("X-Other", "key")
    fields = ((b"x-other", b"a"), (b"X-Api-Key", b"b"), (b"apikey", b"c"))
    request = found(b"/?apikey=1&key=2", *fields, places=places)
    assert (request.header, request.query) == (b"a", b"2")
    assert (request.fields, request.target) == (((b"apikey", b"c"),), b"/?apikey=1")


def test_all_places_are_cleared_at_once() -> None:
    """Whichever of them decides."""
    request = found(
        b"/?apikey=5ecret-web", (b"X-Api-Key", b"5ecret-x"), (b"Host", b"h"), (b"Authorization", b"Bearer 5ecret-ci")
    )
    assert (request.bearer, request.header, request.query) == ("ci", b"5ecret-x", b"5ecret-web")
    assert MARK not in b"".join(name + value for name, value in request.fields) + request.target


def test_what_is_found_is_not_shown() -> None:
    """No `repr` holds a credential, or a field that may be one."""
    request = found(b"/?apikey=5ecret-a", (b"X-Api-Key", b"5ecret-b"), (b"Authorization", b"Bearer 5ecret-other"))
    assert "5ecret" not in repr(request)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"X-Api-Key", b"x-api-key", b"Authorization", b"Accept"]), st.binary(max_size=12))
    )
)
def test_other_fields_stay_in_order(fields: list[tuple[bytes, bytes]]) -> None:
    """Byte for byte."""
    kept = tuple(field for field in fields if field[0].lower() != b"x-api-key")
    assert found(b"/", *fields).fields == kept


def test_a_token_of_ours_that_lets_nobody_in_is_taken_off() -> None:
    """It belongs to this proxy all the same; a bearer token behind it counts, and one of nobody's passes."""
    owners = {b"5ecret-late": "", b"5ecret-ci": "ci"}
    late, known, foreign = ((b"Authorization", b"Bearer " + token) for token in (b"5ecret-late", b"5ecret-ci", b"scim"))
    refused = take_off((late, foreign), b"/", PLACES, owners.get)
    assert (refused.bearer, refused.fields) == ("", (foreign,))
    for fields in ((late, known), (known, late)):
        assert take_off(fields, b"/", PLACES, owners.get).bearer == "ci"
