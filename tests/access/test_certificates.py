from typing import Any

import pytest
from keyturn.access.certificates import by_name, holder, kind_of
from keyturn.core.model import Client

SPIFFE = "spiffe://cluster.example/ns/jobs/sa/builder"


def certificate(*names: Any) -> dict[str, Any]:
    """A certificate as `ssl` tells of one."""
    return {"subject": ((("commonName", "ci.example"),),), "subjectAltName": names}


@pytest.mark.parametrize(
    ("san", "name"),
    [
        ("ci.example", ("DNS", "ci.example")),
        ("CI.Example", ("DNS", "ci.example")),
        (SPIFFE, ("URI", SPIFFE)),
        ("urn:uuid:1", ("URI", "urn:uuid:1")),
        ("192.0.2.7", ("IP Address", "192.0.2.7")),
        ("2001:DB8:0:0::7", ("IP Address", "2001:db8::7")),
        ("ci@example.com", ("email", "ci@example.com")),
        ("*.example", ("DNS", "*.example")),
    ],
)
def test_a_configured_name_has_a_kind(san: str, name: tuple[str, str]) -> None:
    """Its form says which."""
    assert kind_of(san) == name


@pytest.mark.parametrize(
    ("san", "entry"),
    [
        ("ci.example", ("DNS", "CI.example")),
        (SPIFFE, ("URI", SPIFFE)),
        ("192.0.2.7", ("IP Address", "192.0.2.7")),
        ("2001:db8::7", ("IP Address", "2001:DB8:0:0:0:0:0:7\n")),
        ("ci@example.com", ("email", "ci@example.com")),
        ("*.example", ("DNS", "*.example")),
    ],
)
def test_a_name_of_the_certificate_says_whose_it_is(san: str, entry: tuple[str, str]) -> None:
    """One of its names is enough; letters of DNS names count without their case, addresses in any form."""
    client = Client("ci", san=san)
    assert holder(certificate(("DNS", "other.example"), entry), by_name([client])) is client


@pytest.mark.parametrize(
    ("san", "entries"),
    [
        ("ci.example", ()),
        ("ci.example", (("DNS", "x.ci.example"), ("DNS", "*.example"), ("DNS", "ci.example.org"))),
        ("ci.example", (("URI", "ci.example"), ("email", "ci.example"), ("DirName", (("commonName", "ci.example"),)))),
        ("192.0.2.7", (("DNS", "192.0.2.7"),)),
        ("192.0.2.7", (("IP Address", "<invalid>"),)),
        (SPIFFE, (("DNS", SPIFFE), ("URI", SPIFFE + "/x"), ("URI", SPIFFE.upper()))),
        ("*.example", (("DNS", "ci.example"),)),
    ],
)
def test_no_other_name_does(san: str, entries: tuple[Any, ...]) -> None:
    """Not the common name, not a name of another kind that reads the same, and no pattern matches."""
    assert holder(certificate(*entries), by_name([Client("ci", san=san)])) is None
    assert holder({}, by_name([Client("ci", san=san)])) is None


def test_the_first_name_that_is_known_decides() -> None:
    """In the order of the certificate; clients that are known otherwise have none."""
    first, second = Client("a", san="a.example"), Client("b", san="b.example")
    known = by_name([Client("token"), first, second, Client("again", san="A.example")])
    assert len(known) == 2
    assert holder(certificate(("DNS", "c"), ("DNS", "b.example"), ("DNS", "a.example")), known) is second
    assert holder(certificate(("DNS", "a.example")), known) is first
