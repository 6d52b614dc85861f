from pathlib import Path
from typing import Any

import pytest
from keyturn.config.fields import (
    BASE,
    Duration,
    FilePath,
    HeaderName,
    Listeners,
    Name,
    QueryName,
    RuleText,
    SecretText,
    Settings,
    Sha256,
    Timeout,
    Window,
    is_header_value,
    is_name,
    is_proxy_own,
    is_visible,
)
from keyturn.config.units import TcpListener
from keyturn.core.model import SECOND, Secret
from keyturn.core.policy import Rule
from pydantic import ValidationError, create_model


class Section(Settings):
    """A section with one setting."""

    weight: int = 1


def read(kind: Any, value: object, **context: object) -> Any:
    """A value of a kind."""
    one = create_model("One", __base__=Settings, value=(kind, ...))
    return dict(one.model_validate({"value": value}, context=context))["value"]


def refusal(kind: Any, value: object) -> str:
    """Why a value is none of a kind."""
    with pytest.raises(ValidationError) as caught:
        read(kind, value)
    return str(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize(
    ("kind", "value", "micros"),
    [
        (Duration, "0s", 0),
        (Duration, "31d", 31 * 86_400 * SECOND),
        (Timeout, "1ms", 1000),
        (Timeout, "1d", 86_400 * SECOND),
        (Window, "31d", 31 * 86_400 * SECOND),
    ],
)
def test_durations_have_bounds(kind: Any, value: str, micros: int) -> None:
    """The bounds themselves are within."""
    assert read(kind, value) == micros


@pytest.mark.parametrize(
    ("kind", "value", "bounds"),
    [
        (Duration, "32d", "0s to 31d"),
        (Timeout, "0s", "1ms to 1d"),
        (Timeout, "2d", "1ms to 1d"),
        (Window, "0ms", "1ms to 31d"),
    ],
)
def test_durations_beyond_their_bounds_are_refused(kind: Any, value: str, bounds: str) -> None:
    """The message says both bounds."""
    assert bounds in refusal(kind, value)


def test_a_secret_is_one_visible_word() -> None:
    """Blanks around it are left out; it is a `Secret` from then on."""
    secret = Secret("5ecret")
    assert read(SecretText, " 5ecret\n") == secret
    assert read(SecretText, secret) is secret


@pytest.mark.parametrize("value", ["", " \n", "a 5ecret", "5ecret\r\nX-Admin: 1", "5ecretü", 5, None, ["5ecret"]])
def test_what_is_no_secret_is_not_shown_either(value: object) -> None:
    """It may be half of one."""
    assert "5ecret" not in refusal(SecretText, value)


def test_listeners_are_one_or_a_list() -> None:
    """One stands for a list of one."""
    one = TcpListener("127.0.0.1", 1)
    assert read(Listeners, "127.0.0.1:1") == read(Listeners, ["127.0.0.1:1"]) == (one,)
    assert "at least 1" in refusal(Listeners, [])
    assert read(Listeners, {"address": "127.0.0.1:1"}) == (one,)


def test_rules_are_read() -> None:
    """A rule that was read before passes."""
    rule = read(RuleText, "GET /collections/*")
    assert rule == Rule.parse("GET /collections/*")
    assert read(RuleText, rule) is rule
    assert "write a method" in refusal(RuleText, "collections")
    assert "write a method" in refusal(RuleText, 5)


def test_files_start_from_the_folder_of_the_configuration(tmp_path: Path) -> None:
    """An absolute path stays."""
    assert read(FilePath, " a/b ", **{BASE: tmp_path}) == tmp_path / "a" / "b"
    assert read(FilePath, "/a", **{BASE: tmp_path}) == Path("/a")
    assert read(FilePath, "a") == Path("a")


@pytest.mark.parametrize("value", ["", "/", "a\0b"])
def test_a_file_has_a_name(value: str) -> None:
    """A folder's root or nothing is none."""
    assert "path of a file" in refusal(FilePath, value)


@pytest.mark.parametrize(
    ("value", "good"), [("a", True), ("A.b_c-9", True), ("a" * 64, True), ("a" * 65, False), ("", False)]
)
def test_names_are_short(value: str, *, good: bool) -> None:
    """They become values of headers and labels of metrics."""
    assert is_name(value) is good


@pytest.mark.parametrize("value", ["a b", "ü", "a\n", "a/b", "a\r\nb"])
def test_names_are_plain(value: str) -> None:
    """Nothing in them needs quoting anywhere."""
    assert not is_name(value)
    assert "1 to 64" in refusal(Name, value)


def test_digests_are_compared_in_small_letters() -> None:
    """However they were written."""
    assert read(Sha256, "AB" * 32) == "ab" * 32
    assert "64 hexadecimal" in refusal(Sha256, "ab" * 31)
    assert "64 hexadecimal" in refusal(Sha256, "zz" * 32)


def test_names_of_headers_and_parameters_are_tokens() -> None:
    """As RFC 9110 (section 5.6.2) has them."""
    assert read(HeaderName, "X-Api-Key") == "X-Api-Key"
    assert "name of a header" in refusal(HeaderName, "X:")
    assert read(QueryName, "apikey") == "apikey"
    assert "write letters" in refusal(QueryName, "a=b")


@pytest.mark.parametrize(
    "name", ["Connection", "TE", "transfer-encoding", "Host", "Content-Length", "Proxy-Authorization", "Via"]
)
def test_some_headers_are_the_proxys_own(name: str) -> None:
    """Those that end at each hop, frame the message, or are set by the proxy."""
    assert is_proxy_own(name)
    assert not is_proxy_own("X-Api-Key")


@pytest.mark.parametrize(
    ("value", "good"), [("", True), ("a b\tc", True), (" a", False), ("a ", False), ("a\r\nb", False), ("ü", False)]
)
def test_values_of_headers_are_printable(value: str, *, good: bool) -> None:
    """A line end in one would begin another header."""
    assert is_header_value(value) is good


def test_visible_text_has_no_blanks() -> None:
    """A name that fits one word of a header is accepted."""
    assert is_visible("PMAK-1_~!")
    assert not any(map(is_visible, ("", "a b", "a\n", "ü", "a\x7f")))


@pytest.mark.parametrize("document", [None, {}, {"weight": None}])
def test_a_name_without_a_value_is_not_given(document: object) -> None:
    """All lines of a section may be commented out."""
    assert Section.model_validate(document).weight == 1


def test_an_unknown_name_without_a_value_is_still_unknown() -> None:
    """A slip of the pen is found in any case."""
    with pytest.raises(ValidationError, match="extra"):
        Section.model_validate({"wieght": None})


def test_a_refused_value_is_not_shown() -> None:
    """Not even by pydantic's own message."""
    with pytest.raises(ValidationError) as caught:
        Section.model_validate({"weight": "5ecret"})
    assert "5ecret" not in str(caught.value)
