from typing import Any

import pytest
from keyturn.core.errors import ConfigError
from keyturn.practice import PracticeSettings


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("limit", 0),
        ("narrow_limit", 0),
        ("window", 0.0),
        ("window", float("nan")),
        ("narrow_window", -1.0),
        ("keep_alive", 0.0),
        ("monitor_delay", -0.1),
        ("kind", "sliding"),
        ("style", "loud"),
        ("keys", ("one", "")),
    ],
)
def test_nonsense_is_refused(path: str, value: Any) -> None:
    """A setting that makes no sense is a configuration error that names it."""
    settings: dict[str, Any] = {path: value}
    with pytest.raises(ConfigError) as caught:
        PracticeSettings(**settings)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_all_problems_at_once() -> None:
    """All problems are reported at once."""
    with pytest.raises(ConfigError) as caught:
        PracticeSettings(limit=0, window=-1.0)
    assert [problem.path for problem in caught.value.problems] == ["limit", "window"]


def test_defaults_are_the_measured_ones() -> None:
    """The default is 60 in 60 seconds from the first request on, as measured."""
    settings = PracticeSettings()
    assert (settings.limit, settings.window, settings.kind, settings.style) == (60, 60.0, "first", "x-ratelimit")


def test_repr_hides_the_keys() -> None:
    """The `repr` of the settings shows no key."""
    assert "PMAK" not in repr(PracticeSettings(keys=("PMAK-1",), users={"PMAK-1": "ann"}))
