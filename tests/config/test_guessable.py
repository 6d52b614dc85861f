from hashlib import sha256
from pathlib import Path

import pytest
from keyturn.config.guessable import is_guessable, is_guessable_digest

from tests.config.samples import loaded, problems
from tests.process import TOKENS

WORDS = [
    "",
    "test",
    "Test",
    "TEST",
    "token",
    "password",
    "secret",
    "admin",
    "changeme",
    "choose-a-token",
    "PMAK-example",
]


@pytest.mark.parametrize("word", WORDS)
def test_words_that_everybody_tries_are_no_tokens(word: str) -> None:
    """Nor are their digests, with the line end that `echo` adds or without."""
    assert is_guessable(word)
    for text in (word, f"{word}\n"):
        assert is_guessable_digest(sha256(text.encode()).hexdigest())


@pytest.mark.parametrize("digest", ["0" * 64, "f" * 64, "0123456789abcdef" * 4, "deadbeef" * 8])
def test_what_only_stands_for_a_digest_is_none(digest: str) -> None:
    """It lets nobody in, and is meant to be replaced."""
    assert is_guessable_digest(digest)


@pytest.mark.parametrize("token", [*TOKENS.values(), "testimony", "kt-4f7cz"])
def test_other_tokens_are_tokens(token: str) -> None:
    """Also those that begin like a word."""
    assert not is_guessable(token)
    assert not is_guessable_digest(sha256(token.encode()).hexdigest())


def test_such_tokens_are_refused(tmp_path: Path) -> None:
    """Wherever there is one, with what to do and without the token itself."""
    digest = sha256(b"test").hexdigest()
    found = problems(
        tmp_path,
        f"""
        admin_token: changeme
        clients:
          - {{name: a, token: password}}
          - {{name: b, token: "${{CI_TOKEN}}"}}
          - {{name: c, token_sha256: {digest.upper()}}}
        """,
        {"CI_TOKEN": "secret", "POSTMAN_API_KEYS": "one"},
    )
    assert set(found) == {"admin_token", "clients[0].token", "clients[1].token", "clients[2].token_sha256"}
    for message in found.values():
        assert "`keyturn token NAME`" in message
    assert "changeme" not in str(found)
    loaded(tmp_path, "clients: [{name: a, token: kt-4f7cz}]")
