"""Target: reading fields never fails, removed fields are not forwarded, and forwarded ones are unchanged."""

from hypothesis import strategies as st
from keyturn.core.credentials import CredentialPlaces, remove_credentials
from keyturn.core.errors import Broken
from keyturn.core.headers import (
    accepts_problem,
    from_upstream,
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

KEY = "PMAK-5ecret+of the/pool"
TOKEN = b"5ecret-token"
PLACES = CredentialPlaces.named("X-Key", "apikey")

_KNOWN = [
    b"Connection", b"Keep-Alive", b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade", b"Proxy-Connection", b"Expect",
    b"Host", b"Keyturn-Key", b"X-Api-Key", b"X-Key", b"Authorization", b"Via", b"Prefer", b"Priority", b"Accept",
    b"X-Request-Id", b"Content-Length", b"Content-Type", b"X", b"x_api_key", b"Content_Length", b"Proxy_X",
]  # fmt: skip
_NAMES = st.sampled_from(_KNOWN) | st.sampled_from(_KNOWN).map(bytes.swapcase) | st.binary(max_size=6)
_WORDS = st.sampled_from(
    [
        b",", b";", b"=", b'"', b"\\", b" ", b"\t", b"wait", b"u", b"5", b"-1", b"9" * 30, b"q", b"0.5",
        b"keyturn", b"1.1",
        b"(x)", b"*/*", b"application/json", b"application/problem+json", b"Bearer", b"Basic", TOKEN, b"X-Key",
        b"close",
        b"content-length", b"u=0", b"wait=1", b"?1", b":YQ==:", b"(", b")", KEY.encode(),
        b"PMAK-5ecret%2Bof%20the%2Fpool",
    ]
)  # fmt: skip
_VALUES = st.lists(_WORDS | st.binary(max_size=4), max_size=8).map(b"".join)
FIELDS = st.lists(st.tuples(_NAMES, _VALUES), max_size=8).map(tuple)

_ENDS_HERE = frozenset(name.lower() for name in _KNOWN[:10])


def check(fields: Fields) -> None:
    """Read fields of any content."""
    _check_what_is_read(fields)
    _check_what_goes_up(fields)
    _check_what_comes_back(fields)


def _check_what_is_read(fields: Fields) -> None:
    wait, urgency = prefer_wait(fields), priority_urgency(fields)
    assert wait is None or 0 <= wait < 10**9
    assert urgency is None or 0 <= urgency <= 7  # noqa: PLR2004  # RFC 9218, section 4.1
    assert passed(fields, b"keyturn") >= 0
    accepts_problem(fields)
    for value in values(fields, b"x-request-id"):
        assert not sane_request_id(value) or (value.isascii() and b"\r" not in value and len(value) <= 128)  # noqa: PLR2004


def _check_what_goes_up(fields: Fields) -> None:
    found = remove_credentials(fields, b"/?a=1&apikey=x", PLACES, lambda token: "somebody" if token == TOKEN else None)
    kept = to_upstream(found.fields)
    names = {name.lower().replace(b"_", b"-") for name, _ in kept if b"_" in name} | {name.lower() for name, _ in kept}
    assert not names & _ENDS_HERE
    assert not any(name.startswith(b"proxy-") for name in names)
    assert not names & {b"x-api-key", b"x-key"}
    assert found.target == b"/?a=1"
    assert [field for field in fields if field in kept] == [field for field in fields if field in set(kept)]
    assert _is_within(kept, fields)


def _check_what_comes_back(fields: Fields) -> None:
    try:
        kept = without(Secret(KEY), from_upstream(fields))
    except Broken:
        return
    assert not {name.lower() for name, _ in kept} & _ENDS_HERE - {b"expect", b"host", b"keyturn-key"}
    assert all(KEY.encode() not in value for _, value in kept)
    if not Secret(KEY).is_in(b"\n".join(value for _, value in fields)):
        assert _is_within(kept, fields)


def _is_within(kept: Fields, fields: Fields) -> bool:
    """Return whether fields are some of others, in their order."""
    rest = iter(fields)
    return all(field in rest for field in kept)
