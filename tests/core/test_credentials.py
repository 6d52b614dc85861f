from base64 import b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keyturn.core.credentials import (
    MAX_STRAY_WORDS,
    CredentialPlaces,
    FoundCredentials,
    parameter,
    remove_credentials,
    remove_parameter,
    stray_words,
    without,
)
from keyturn.core.http import Fields
from keyturn.core.redaction import Redactor

MARK = b"5ecret"
OURS = {b"5ecret-ci": "ci", b"5ecret-web": "web"}
PLACES = CredentialPlaces.named("X-Api-Key", "apikey")
APIKEY = parameter("apikey")

NAME = st.sampled_from(
    [
        b"apikey",
        b"api%6Bey",
        b"%61%70%69%6b%65%79",
        b"apikeys",
        b"Apikey",
        b"apikey[]",
        b"a",
        b"",
        b"%",
        b"api%6",
        b"api+key",
    ]
)
VALUE = st.sampled_from([b"", b"=", b"=5ecret-ci", b"=x%20y", b"=a=b", b"=%"])
PIECE = st.builds(bytes.__add__, NAME, VALUE)
PATH = st.sampled_from([b"/", b"/a%2Fb", b"/apikey", b"http://h/apikey=1", b"*", b""])


def found(
    target: bytes = b"/", *fields: tuple[bytes, bytes], places: CredentialPlaces = PLACES
) -> FoundCredentials[str]:
    """Return what is found in a request."""
    return remove_credentials(fields, target, places, OURS.get)


def is_ours(piece: bytes) -> bool:
    """Return whether a piece of a query is the parameter `apikey`, plain or escaped."""
    return piece.partition(b"=")[0] in (b"apikey", b"Apikey", b"apikey[]", b"api%6Bey", b"%61%70%69%6b%65%79")


@example(b"/", [b"", b"apikey", b"apikeys"])
@given(PATH, st.lists(PIECE, max_size=5))
def test_all_but_the_parameter_survives(path: bytes, pieces: list[bytes]) -> None:
    """The rest of a query stays byte for byte, in order; an empty query goes with its `?`."""
    target = path + b"?" + b"&".join(pieces)
    _, rest = remove_parameter(target, APIKEY)
    kept = [piece for piece in pieces if not is_ours(piece)]
    if len(kept) == len(pieces):
        assert rest is target
    else:
        assert rest == (path + b"?" + b"&".join(kept) if b"&".join(kept) else path)


@given(st.binary(max_size=30))
def test_a_target_without_the_parameter_stays(noise: bytes) -> None:
    """A target without the parameter is not changed."""
    target = noise.replace(b"k", b"_").replace(b"K", b"_").replace(b"%", b"_")
    assert remove_parameter(target, APIKEY) == ([], target)


@given(st.binary(max_size=30), st.binary(max_size=10))
def test_taking_off_leaves_nothing_to_take_off(path: bytes, value: bytes) -> None:
    """Removing the credential twice removes no more than once."""
    _, rest = remove_parameter(path + b"?apikey=" + value, APIKEY)
    assert remove_parameter(rest, APIKEY) == ([], rest)


@pytest.mark.parametrize(
    "target", [b"/", b"/?", b"/?&&", b"/?a", b"/?%", b"/a?b=apikey", b"/apikey=5?x", b"/?xapikey=1", b""]
)
def test_other_targets_stay_as_they_are(target: bytes) -> None:
    """A target without a credential is the same object afterwards."""
    assert remove_parameter(target, APIKEY)[1] is target


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
        (b"/a?ApiKey=t&b=1", b"t", b"/a?b=1"),
        (b"/a?%41%70i%4b%65Y=t&b=1", b"t", b"/a?b=1"),
        (b"/a?&apikey=t", b"t", b"/a"),
        (b"/a?apikey=t&apikey=u&&b", b"t", b"/a?&b"),
        (b"/a?apikey[x=t&apikey.x=u", b"t", b"/a?apikey.x=u"),
        (b"/a?b=1;apikey=t;c=2", b"t", b"/a?b=1;c=2"),
        (b"/a?b=1;APIKEY=t&c=2", b"t", b"/a?b=1&c=2"),
        (b"/a?b=1&amp;apikey=t", b"t", b"/a?b=1&amp"),
        (b"/a?apikey[]=t&apikey[0]=u", b"t", b"/a"),
        (b"/a?apikey%5B%5D=t&[apikey]=u&apikey%20=v&+apikey=w", b"t", b"/a"),
        (b"/a?b=1&;c;;apikey=t;;d", b"t", b"/a?b=1&;c;;;d"),
    ],
)
def test_the_parameter_is_taken_off(target: bytes, value: bytes | None, rest: bytes) -> None:
    """Its first value that is not empty is the credential, decoded, however servers may read its name."""
    values, left = remove_parameter(target, APIKEY)
    assert (next(iter(values), None), left) == (value, rest)


def test_nothing_is_made_anew_when_nothing_is_taken_off() -> None:
    """A request without a credential passes unchanged."""
    fields: Fields = ((b"Accept", b"*/*"), (b"Authorization", b"Basic abc"))
    request = remove_credentials(fields, b"/a?b=1", PLACES, OURS.get)
    assert request.fields is fields
    assert (request.authorized, request.header, request.query) == (None, None, None)


def basic(text: bytes) -> bytes:
    """Return Basic credentials."""
    return b"Basic " + b64encode(text)


IN_A_SCHEME = [
    b"Bearer 5ecret-ci",
    b"bearer 5ecret-ci",
    b"BEARER   5ecret-ci",
    b" Bearer 5ecret-ci ",
    b"Bearer 5ecret-ci\t",
    b"Bearer\t5ecret-ci",
    b"\tBearer \t 5ecret-ci",
    b"Bearer\xa05ecret-ci",
    b"5ecret-ci",
    b"Token 5ecret-ci",
    b"ApiKey 5ecret-ci",
    b"Anything 5ecret-ci",
    b"Basic 5ecret-ci",
    b'Token token="5ecret-ci"',
    b"Bearer <5ecret-ci>",
    b"Bearer: 5ecret-ci",
    b"Bearer token=5ecret-ci, x=y",
    b"Bearer5ecret-ci,5ecret-ci",
    basic(b"x:5ecret-ci"),
    basic(b":5ecret-ci"),
    basic(b"5ecret-ci:"),
    basic(b"5ecret-ci:x"),
    basic(b"5ecret-ci"),
    basic(b"5ecret-ci:").rstrip(b"="),
    b"bAsIc\t" + b64encode(b"x:5ecret-ci"),
]


@pytest.mark.parametrize("name", [b"aUTHORIZATION", b"Proxy-Authorization"])
@pytest.mark.parametrize("value", IN_A_SCHEME)
def test_a_token_of_ours_is_taken_off_in_every_scheme(name: bytes, value: bytes) -> None:
    """A token is found in any scheme, in any case (RFC 9110, section 11.1), or without one."""
    request = found(b"/", (name, value), (b"A", b"b"))
    assert request.authorized == "ci"
    assert request.fields == ((b"A", b"b"),)
    assert request.ours == (b"5ecret-ci",)
    assert (request.others, request.proxied) == ((), ())


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (b"Bearer other", (b"other",)),
        (b"Bearer", ()),
        (b"Bearer ", ()),
        (b"", ()),
        (b"Bearer5ecret-ci", (b"Bearer5ecret-ci",)),
        (basic(b"user:other"), (b64encode(b"user:other"), b"other")),
        (basic(b"other:"), (b64encode(b"other:"), b"other")),
        (b'Digest username="other", uri="/me"', (b'username="other", uri="/me"',)),
    ],
)
def test_another_authorization_belongs_to_the_upstream(value: bytes, held: tuple[bytes, ...]) -> None:
    """A foreign `Authorization` passes and is kept out of logs; `Proxy-Authorization` never passes."""
    fields = ((b"Authorization", value),)
    request = found(b"/", *fields)
    assert (request.fields, request.others, request.proxied, request.ours) == (fields, held, (), ())
    request = found(b"/", (b"Proxy-Authorization", value))
    assert (request.others, request.proxied) == ((), held)


def test_authorization_comes_before_its_like_for_proxies() -> None:
    """`Authorization` comes before `Proxy-Authorization`, in any order of fields."""
    proxied, own = (b"Proxy-Authorization", basic(b"x:5ecret-web")), (b"Authorization", b"Bearer 5ecret-ci")
    assert found(b"/", proxied, own).authorized == found(b"/", own, proxied).authorized == "ci"
    assert found(b"/", proxied, (b"Authorization", b"Bearer scim")).authorized == "web"


def test_a_referer_goes_without_the_parameter() -> None:
    """A `Referer` loses the parameter, whether its value is known or not, since clients send it on redirects."""
    request = found(b"/", (b"rEFERER", b"http://proxy/me?apikey=other&x=1"), (b"Referer", b"http://proxy/?x=1"))
    assert request.fields == ((b"rEFERER", b"http://proxy/me?x=1"), (b"Referer", b"http://proxy/?x=1"))
    assert (request.ours, request.query) == ((b"other",), None)


def test_each_authorization_is_judged_alone() -> None:
    """Our `Authorization` fields are removed and others stay; the first of ours counts."""
    others = ((b"Authorization", b"Bearer scim"), (b"Authorization", b"Basic x"))
    request = found(
        b"/", others[0], (b"Authorization", b"Bearer 5ecret-web"), others[1], (b"Authorization", b"Bearer 5ecret-ci")
    )
    assert request.authorized == "web"
    assert request.fields == others


def test_every_key_header_is_taken_off() -> None:
    """Every key header is removed, in any case; the first that is not empty is the credential."""
    request = found(b"/", (b"x-api-key", b" "), (b"A", b"b"), (b"X-API-KEY", b" 5ecret-ci "), (b"X-Api-Key", b"other"))
    assert request.header == b"5ecret-ci"
    assert request.fields == ((b"A", b"b"),)


def test_a_name_that_servers_read_alike_is_taken_off() -> None:
    """A key header spelled with `_` is removed, but is no credential."""
    request = found(b"/", (b"X_API_KEY", b"evil"), (b"X-Api-Key", b"mine"), (b"x_other-key", b"1"))
    assert (request.header, request.fields) == (b"mine", ((b"x_other-key", b"1"),))


def test_the_upstreams_own_key_header_is_one_more() -> None:
    """The upstream's own key header is removed like `X-Api-Key`."""
    places = CredentialPlaces.named("X-Other", "key")
    fields = ((b"x-other", b"a"), (b"X-Api-Key", b"b"), (b"apikey", b"c"))
    request = found(b"/?apikey=1&key=2", *fields, places=places)
    assert (request.header, request.query) == (b"a", b"2")
    assert (request.fields, request.target) == (((b"apikey", b"c"),), b"/?apikey=1")


def test_all_places_are_cleared_at_once() -> None:
    """All places are cleared, whichever of them decides."""
    request = found(
        b"/?apikey=5ecret-web", (b"X-Api-Key", b"5ecret-x"), (b"Host", b"h"), (b"Authorization", b"Bearer 5ecret-ci")
    )
    assert (request.authorized, request.header, request.query) == ("ci", b"5ecret-x", b"5ecret-web")
    assert MARK not in b"".join(name + value for name, value in request.fields) + request.target


def test_what_is_found_is_not_shown() -> None:
    """No `repr` shows a credential, or a field that may be one."""
    request = found(b"/?apikey=5ecret-a", (b"X-Api-Key", b"5ecret-b"), (b"Authorization", b"Bearer 5ecret-other"))
    assert "5ecret" not in repr(request)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"X-Api-Key", b"x-api-key", b"Authorization", b"Accept"]), st.binary(max_size=12))
    )
)
def test_other_fields_stay_in_order(fields: list[tuple[bytes, bytes]]) -> None:
    """Other fields stay byte for byte, in order."""
    kept = tuple(field for field in fields if field[0].lower() != b"x-api-key")
    assert found(b"/", *fields).fields == kept


def test_a_token_of_ours_that_lets_nobody_in_is_taken_off() -> None:
    """An invalid token of this proxy is removed, and the next bearer token counts."""
    owners = {b"5ecret-late": "", b"5ecret-ci": "ci"}
    late, known, foreign = ((b"Authorization", b"Bearer " + token) for token in (b"5ecret-late", b"5ecret-ci", b"scim"))
    refused = remove_credentials((late, foreign), b"/", PLACES, owners.get)
    assert (refused.authorized, refused.fields) == ("", (foreign,))
    for fields in ((late, known), (known, late)):
        assert remove_credentials(fields, b"/", PLACES, owners.get).authorized == "ci"


HIDDEN = Redactor([b"5ecret-ci"])


@pytest.mark.parametrize(
    ("name", "value", "rest"),
    [
        (b"X-Any", b"a 5ecret-ci b", None),
        (b"X-Any", b64encode(b"xx5ecret-ci"), None),
        (b"X-5ecret-ci", b"1", None),
        (b"Cookie", b"a=1; session=5ecret-ci; b=2", b"a=1; b=2"),
        (b"cookie", b"session=5%65cret-ci; b=2", b"b=2"),
        (b"Cookie", b"session=5ecret-ci", None),
        (b"Referer", b"http://a/b?c=1&token=5ecret-ci&d=2", b"http://a/b?c=1&d=2"),
        (b"Referer", b"http://5ecret-ci@a/b?c=1", None),
        (b"Referer", b"http://a/5ecret-ci?c=1", None),
        (b"Connection", b"close, 5ecret-ci", b"close, 5ecret-ci"),
        (b"X-Any", b"5ecret-c", b"5ecret-c"),
    ],
)
def test_a_field_that_repeats_a_credential_goes_without_it(name: bytes, value: bytes, rest: bytes | None) -> None:
    """A field that repeats a credential is removed; all others stay in order."""
    fields = ((b"A", b"1"), (name, value), (b"B", b"2"))
    kept = () if rest is None else ((name, rest),)
    assert without(fields, b"/", HIDDEN) == ((fields[0], *kept, fields[2]), b"/")


@pytest.mark.parametrize(
    ("target", "rest"),
    [
        (b"/a?x=1&any=5ecret-ci;y=2", b"/a?x=1;y=2"),
        (b"/a?5ecret-ci", b"/a"),
        (b"/a?x=5%65cret%2Dci&y=2", b"/a?y=2"),
        (b"/a?x=5%2565cret-ci&y=2", b"/a?y=2"),
        (b"/a?x=" + b64encode(b"a:5ecret-ci"), b"/a"),
        (b"/5ecret-ci/a?x=1", b"/5ecret-ci/a?x=1"),
    ],
)
def test_a_parameter_that_repeats_a_credential_goes(target: bytes, rest: bytes) -> None:
    """A parameter that repeats a credential is removed, whatever its name."""
    assert without((), target, HIDDEN) == ((), rest)


def test_a_credential_that_spans_parameters_takes_the_query_with_it() -> None:
    """A credential that spans parameters removes the whole query."""
    assert without((), b"/a?x=5ecret&ci=1&y=2", Redactor([b"5ecret&ci"])) == ((), b"/a")


def test_nothing_is_made_anew_when_nothing_repeats_it() -> None:
    """Fields without a repetition are the same object afterwards."""
    fields: Fields = ((b"Accept", b"*/*"), (b"X", b"y"))
    assert without(fields, b"/a?b", HIDDEN)[0] is fields


def test_the_words_of_a_head_are_bounded() -> None:
    """The words of a head are percent-decoded first, and their number is bounded."""
    assert b"5ecret-ci" in stray_words(((b"A", b'x="5ecret-ci"'),), b"/")
    assert b"5ecret-ci" in stray_words((), b"/a;k=5%65cret-ci/b")
    assert len(list(stray_words(((b"A", b"x " * 60_000),), b"/"))) == MAX_STRAY_WORDS


def test_many_parameters_are_cleaned_of_some() -> None:
    """Each parameter that repeats the credential is removed, wherever it stands."""
    parts = [b"x=5ecret-ci" if number in (0, 1, 500, 998, 999) else b"%d=%%41" % number for number in range(1000)]
    kept = b";".join(part for part in parts if b"5ecret" not in part)
    assert without((), b"/a?" + b";".join(parts), HIDDEN) == ((), b"/a?" + kept)
