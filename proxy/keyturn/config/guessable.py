"""Tokens that anybody guesses: words that everybody tries first, placeholders of examples, and their digests."""

from functools import lru_cache
from hashlib import sha256

_WORDS = """
    abc abc123 admin admin123 administrator api api-key api-token api_key api_token apikey bearer ci ci-token changeit
    changeme change-me change_me choose-a-token client client-token crawler credential default demo demo-token dev
    development dummy empty example fake foo foobar guest hello key keyturn letmein local localhost master monkey
    mysecret my-secret my-token mytoken newman none null password password1 password123 passwd pass pipeline
    placeholder portal portal-token postman prod production proxy qwerty replace-me replaceme root sample secret
    secret123 sesame staging string tbd test test123 test-token testing testtoken todo token token123 undefined user
    username welcome xxx xxxx your-api-key your-secret your-token your_token yourtoken 123 1234 12345 123456 1234567
    12345678 123456789 1234567890 0000 00000000 11111111 <token> <your-token> ${token} … ... PMAK PMAK- PMAK-…
    PMAK-... PMAK-xxx PMAK-example PMAK-example-a PMAK-example-b PMAK-one PMAK-two
"""
_NO_DIGESTS = frozenset({"0123456789abcdef" * 4, "deadbeef" * 8, "1234567890" * 6 + "1234"})
"""Digests that nobody takes for real, but for a program."""


def is_guessable(token: str) -> bool:
    """Whether a token is one that is tried first, in letters of either case."""
    return token.lower() in {word.lower() for word in _words()}


def is_guessable_digest(digest: str) -> bool:
    """Whether a (lower-case) SHA-256 is that of such a token, with a line end or without, or stands for one."""
    return digest in _digests() or len(set(digest)) == 1 or digest in _NO_DIGESTS


@lru_cache(maxsize=1)
def _words() -> frozenset[str]:
    return frozenset(_WORDS.split()) | {""}


@lru_cache(maxsize=1)
def _digests() -> frozenset[str]:
    spellings = {spelt for word in _words() for spelt in (word, word.lower(), word.upper(), word.capitalize())}
    return frozenset(sha256(f"{word}{end}".encode()).hexdigest() for word in spellings for end in ("", "\n", "\r\n"))
