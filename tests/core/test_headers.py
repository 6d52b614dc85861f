import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.errors import Broken
from keyturn.core.headers import (
    accepts_problem,
    from_another_site,
    from_upstream,
    names,
    passed,
    prefer_wait,
    priority_urgency,
    sane_request_id,
    to_upstream,
    values,
    without,
)
from keyturn.core.http import Fields
from keyturn.core.model import Secret

HOP_BY_HOP = [b"Connection", b"Keep-Alive", b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade", b"Proxy-Connection"]

field_names = st.from_regex(rb"[A-Za-z][A-Za-z-]{0,12}", fullmatch=True)
fields_of_any_kind = st.lists(
    st.tuples(field_names | st.sampled_from(HOP_BY_HOP), st.binary(max_size=12)), max_size=8
).map(tuple)


def fields(*lines: str) -> Fields:
    """Return fields from `Name: value` lines."""
    split = (line.partition(": ") for line in lines)
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, _, value in split)


@pytest.mark.parametrize("name", [*HOP_BY_HOP, b"keep-alive", b"PROXY-X", b"Expect", b"Host", b"Keyturn-Key"])
def test_what_ends_here_does_not_reach_the_upstream(name: bytes) -> None:
    """Hop-by-hop fields, `Proxy-*`, `Expect`, `Host` and `Keyturn-Key` are removed, in any case."""
    assert to_upstream(((b"A", b"1"), (name, b"x"), (b"B", b"2"))) == ((b"A", b"1"), (b"B", b"2"))


@pytest.mark.parametrize("take", [to_upstream, from_upstream])
def test_what_connection_lists_is_taken_off(take: object) -> None:
    """Every `Connection` field counts, in any case and with any whitespace."""
    assert callable(take)
    message = fields(
        "Connection: close , X-One", "x-one: 1", "X-Two: 2", "connection: \tx-TWO", "X-Three: 3", "X-ONE: 4"
    )
    assert take(message) == fields("X-Three: 3")


@pytest.mark.parametrize("take", [to_upstream, from_upstream])
def test_connection_cannot_take_off_what_is_meant_for_all(take: object) -> None:
    """`Connection: Content-Length` does not change where the message ends."""
    assert callable(take)
    message = fields("Connection: content-length, Content-Encoding", "Content-Length: 3", "Content-Encoding: gzip")
    assert take(message) == message[1:]


def test_challenges_of_a_proxy_end_here() -> None:
    """`Proxy-Authenticate` ends here, while `Proxy-Status` passes."""
    message = fields("Proxy-Authenticate: Basic", "Proxy-Status: edge", "WWW-Authenticate: Bearer")
    assert from_upstream(message) == message[1:]


def test_content_length_goes_beside_a_transfer_encoding() -> None:
    """An answer's `Content-Length` counts only without a `Transfer-Encoding`."""
    assert from_upstream(fields("Content-Length: 5")) == fields("Content-Length: 5")
    assert from_upstream(fields("Content-Length: 5", "Connection: close")) == fields("Content-Length: 5")
    assert from_upstream(fields("Content-Length: 5", "Transfer-Encoding: chunked")) == ()


@given(fields_of_any_kind)
def test_the_rest_is_untouched(message: Fields) -> None:
    """Other fields keep order, repetitions and bytes, and removing twice removes no more."""
    for take in (to_upstream, from_upstream):
        kept = take(message)
        remaining = iter(message)
        assert all(field in remaining for field in kept)
        assert take(kept) == kept
        assert not names(kept) & {b"connection", b"transfer-encoding", b"upgrade", b"te", b"keep-alive", b"trailer"}


def test_values_are_found_in_order() -> None:
    """The values of a repeated field are returned in order."""
    assert values(fields("A: 1", "B: 2", "a: 3"), b"a") == [b"1", b"3"]


@pytest.mark.parametrize("value", [b"a", b"7f3c-21", b"Root=1-67:a/b+c=", b"me@host.example_1", b"x" * 128])
def test_sane_request_ids_are_kept(value: bytes) -> None:
    """A request id of harmless characters is forwarded."""
    assert sane_request_id(value)


@pytest.mark.parametrize("value", [b"", b"x" * 129, b"a b", b"a\nb", b"a\n", b'"a"', b"\xff", b"a,b", b"<script>"])
def test_other_request_ids_are_replaced(value: bytes) -> None:
    """A request id that could be misread in a log or a page is replaced."""
    assert not sane_request_id(value)


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([], None),
        (["Prefer: wait=10"], 10),
        (["prefer: WAIT=10"], 10),
        (["Prefer: respond-async, wait=10"], 10),
        (["Prefer: respond-async", "Prefer: wait = 7 ; x=y"], 7),
        (['Prefer: wait="12"'], 12),
        (["Prefer: wait=5, wait=9"], 5),
        (["Prefer: wait=5", "Prefer: wait=9"], 5),
        (["Prefer: wait=soon, wait=9"], None),
        (["Prefer: wait"], None),
        (["Prefer: wait=-1"], None),
        (["Prefer: wait=1.5"], None),
        (["Prefer: waiting=5"], None),
        (['Prefer: note="a, wait=5", wait=6'], 6),
        (['Prefer: note="unfinished, wait=5'], 5),
        (["Prefer: ,, wait=0"], 0),
        (["Prefer: wait=" + "9" * 5000], 999_999_999),
        (["Prefer: wait=000000000000030"], 30),
        (["Prefer: respond-async; foo=wait, handling=lenient"], None),
    ],
)
def test_prefer_wait(lines: list[str], seconds: int | None) -> None:
    """The first `wait` of RFC 7240 counts, quoted or not, in whichever field it stands."""
    assert prefer_wait(fields(*lines)) == seconds


@pytest.mark.parametrize(
    ("lines", "urgency"),
    [
        ([], None),
        (["Priority: u=0"], 0),
        (["Priority: u=7, i"], 7),
        (["Priority: i, u=5"], 5),
        (["Priority: i;a=1, u=5;b"], 5),
        (["Priority: u=1", "Priority: u=6"], 6),
        (["Priority: u=1,u=2"], 2),
        (["Priority: u=8"], None),
        (["Priority: u=-1"], None),
        (["Priority: u=1.0"], None),
        (["Priority: u"], None),
        (['Priority: u="3"'], None),
        (["Priority: U=3"], None),
        (["Priority: u=3,"], None),
        (["Priority: u=3;;"], None),
        (["Priority: u= 3"], None),
        (["Priority: u=3 i"], None),
        (['Priority: x="a, u=1", u=4'], 4),
        (["Priority: x=(1 2;q=a);z, u=4"], 4),
        (["Priority: x=(1, u=4"], None),
        (["Priority: "], None),
    ],
)
def test_priority_urgency(lines: list[str], urgency: int | None) -> None:
    """The `u` of RFC 9218 counts when the whole field is a structured dictionary."""
    assert priority_urgency(fields(*lines)) == urgency


@given(st.binary(max_size=40))
def test_no_field_makes_a_reader_fail(value: bytes) -> None:
    """Any field is read or ignored."""
    everywhere = tuple((name, value) for name in (b"Prefer", b"Priority", b"Accept", b"Via", b"Connection"))
    wait, urgency = prefer_wait(everywhere), priority_urgency(everywhere)
    assert wait is None or wait >= 0
    assert urgency is None or 0 <= urgency <= 7
    assert accepts_problem(everywhere) in (True, False)
    assert passed(everywhere, b"keyturn") >= 0


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ([], False),
        (["*/*"], False),
        (["application/json"], False),
        (["application/problem+json"], True),
        (["application/problem+json, application/json"], False),
        (["application/problem+json, application/json;q=0.5"], False),
        (["application/problem+json, application/json;q=0"], True),
        (["application/problem+json", "application/json; q=0.000"], True),
        (["APPLICATION/Problem+JSON;charset=utf-8"], True),
        (["application/problem+json;q=0, */*"], False),
        (["application/*, application/json;q=0"], True),
        (["application/problem+json, */*;q=0.1"], False),
        (["text/html"], False),
        (['text/html;a="x, application/json", application/problem+json'], True),
    ],
)
def test_problems_are_for_callers_that_want_them(accept: list[str], wanted: bool) -> None:
    """A caller gets `application/problem+json` when it accepts that and no `application/json`."""
    assert accepts_problem(fields(*(f"Accept: {value}" for value in accept))) is wanted


def test_proxies_passed_are_counted() -> None:
    """`Via` tells how often a message has passed a proxy of a name."""
    message = fields("Via: 1.0 fred, HTTP/1.1 Keyturn (a comment, keyturn)", "via: 1.1 keyturn", "Via: 1.1 keyturning")
    assert passed(message, b"keyturn") == 2
    assert passed((), b"keyturn") == 0


@pytest.mark.parametrize(
    "name", [b"Content_Length", b"transfer_encoding", b"Proxy_Authorization", b"CONNECTION", b"Keyturn_Key", b"hOST"]
)
def test_names_that_servers_read_alike_end_here_too(name: bytes) -> None:
    """Names that differ only in `_` for `-` are removed, since CGI reads them alike."""
    assert to_upstream(((name, b"1"), (b"X_Other", b"2"), (b"Content-Length", b"3"))) == (
        (b"X_Other", b"2"),
        (b"Content-Length", b"3"),
    )


@pytest.mark.parametrize("name", [b"Content-Length ", b"X Y", b"", b"X\t", b"X\xe9", b"X(Y)"])
def test_a_malformed_name_breaks_the_answer(name: bytes) -> None:
    """An answer with a malformed name is refused, since the caller could read it differently."""
    for _ in range(2):
        with pytest.raises(Broken):
            from_upstream(((b"A", b"1"), (name, b"2")))


def test_a_secret_in_an_answer_is_masked() -> None:
    """A secret is masked anywhere in a value, plain or percent-encoded."""
    secret = Secret("PMAK/of the+pool")
    message = fields(
        "Location: /?apikey=PMAK%2Fof%20the%2Bpool&b=PMAK%2Fof+the%2Bpool", "X: PMAK/of the+pool!", "Y: PMAK/of"
    )
    assert without(secret, message) == fields("Location: /?apikey=***&b=***", "X: ***!", "Y: PMAK/of")
    assert without(secret, message[2:]) == message[2:]
    assert without(Secret("of"), message) == message
    assert without(Secret("PMAK-of-the-pool"), fields("X-PMAK-of-the-pool: 1", "Y: 2")) == fields("X-***: 1", "Y: 2")


@pytest.mark.parametrize(
    ("sent", "elsewhere"),
    [
        ((), False),
        (((b"Origin", b"https://a.example"),), True),
        (((b"ORIGIN", b" http://localhost:3000 "),), False),
        (((b"Origin", b"http://localhost:3000/"),), True),
        (((b"Origin", b""),), True),
        (((b"Sec-Fetch-Site", b"cross-site"), (b"Origin", b"http://127.0.0.1")), True),
        (((b"Sec-Fetch-Site", b"same-site"),), False),
        (((b"Origi-", b"https://a.example"), (b"sec-fetch-mode", b"cross-site")), False),
    ],
)  # fmt: skip
def test_a_browser_says_whose_page_it_shows(sent: Fields, *, elsewhere: bool) -> None:
    """`Origin` and `Sec-Fetch-Site` tell another site's page; the loopback is no other site."""
    assert from_another_site(sent) is elsewhere
