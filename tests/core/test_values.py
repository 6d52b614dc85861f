from dataclasses import field

from keyturn.core.values import value_object


@value_object
class Place:
    """A value of two fields, one of which is hidden."""

    name: str
    secret: str = field(default="", repr=False)


def test_values_are_compared_and_hashed_by_their_fields() -> None:
    """Two values with the same fields are equal and hash alike."""
    assert Place("a", "x") == Place("a", "x") != Place("a", "y")
    assert len({Place("a", "x"), Place("a", "x"), Place("b")}) == 2


def test_values_show_what_they_may() -> None:
    """The `repr` leaves out hidden fields."""
    assert repr(Place("a", "hidden")) == "Place(name='a')"


def test_values_have_no_other_attributes() -> None:
    """Values are slotted."""
    assert not hasattr(Place("a"), "__dict__")


def test_values_match_by_position() -> None:
    """A `match` statement takes values apart by position."""
    match Place("a", "b"):
        case Place(name, secret):
            assert (name, secret) == ("a", "b")
