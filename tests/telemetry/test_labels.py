import pytest
from keyturn.telemetry import labels


@pytest.mark.parametrize(("given", "told"), [("GET", "GET"), ("DELETE", "DELETE"), ("BREW", "other"), ("get", "other")])
def test_a_method_is_a_known_one_or_other(given: str, told: str) -> None:
    """Methods are case-sensitive (RFC 9110, section 9.1)."""
    assert labels.method(given) == told


@pytest.mark.parametrize(
    ("given", "told"), [(200, "200"), (404, "404"), (599, "5xx"), (450, "4xx"), (0, "0"), (-5, "0"), (600, "0")]
)
def test_a_code_is_a_known_one_its_class_or_none(given: int, told: str) -> None:
    """So that a sum over a class still holds."""
    assert labels.code(given) == told
