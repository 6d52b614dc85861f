from typing import get_args

import pytest
from keyturn.access.refusals import NotKnown, NotYetKnown, Why


class Nobody:
    async def learn(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("why", get_args(Why))
def test_each_has_words_for_the_log(why: Why) -> None:
    """Its own, or better ones."""
    assert NotKnown(why).why == why
    assert str(NotKnown(why)) == NotKnown(why).detail != ""
    assert NotKnown(why, "a stranger").detail == "a stranger"


def test_a_token_may_become_known() -> None:
    """Whoever can find out more is named."""
    nobody = Nobody()
    assert NotYetKnown(nobody).teacher is nobody
    assert NotYetKnown(nobody).why == "jwt"
