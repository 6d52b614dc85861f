"""Target: every document loads as a configuration or gives a list of problems, and shows no secret."""

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from keyturn import config
from keyturn.core.errors import ConfigError

MARK = "5ecret"
"""Appears in secrets only, where a secret belongs: other names and values may be shown."""
ENVIRON = {
    "POSTMAN_API_KEYS": f"PMAK-{MARK}-1",
    "TOKEN": f"{MARK}-token",
    "WORD": "word",
    "EMPTY": "",
    "ODD": " \n\x7f",
    "BYTES": "/\udcff",
    "ODD_TOKEN": f"{MARK} \n\x7f",
}

_SCHEMA = config.schema()
_WORDS = st.sampled_from(
    [
        "", "~", "true", "off", "0", "-1", "1.5", "60s", "250ms", "10", "1e9", "GET /**", "* /a/*", "GET",
        "127.0.0.1:0",
        "0.0.0.0:80", "unix:/x", "[::1]:1", "https://a", "http://127.0.0.1:1", "redis://h:1/0",
        "memory://",
        "a" * 64, "a" * 65, "0660", "x-api-key", "${WORD}", "${NONE}", "${EMPTY:-a}", "${ODD}", "${BYTES}",
        "$${A}", "${",
        "/etc/hostname", "/nowhere", "default", "required", "RS256", "2001-01-01", "\x00", "\ud800", "\u2028", "é",
    ]
)  # fmt: skip
_SECRETS = {
    name: st.sampled_from(
        [MARK, f"{MARK} {MARK}", f"{MARK}\n", "${TOKEN}", "${ODD_TOKEN}", f"${{NONE:-{MARK}}}", f"${{{MARK}"]
    )
    for name in ("secret", "token", "admin_token")
} | {
    "url": st.sampled_from(
        [f"redis://:{MARK}@h:1/0", f"redis://u:{MARK}@h:1/x?y#z", f"redis+sentinel://{MARK}@a,b/c", f"//{MARK}@h"]
    )
}
_SCALARS = st.none() | st.booleans() | st.integers(-3, 100_001) | st.floats() | _WORDS | st.text(max_size=8)
_NAMES = st.sampled_from(
    sorted({name for body in (_SCHEMA, *_SCHEMA["$defs"].values()) for name in body.get("properties", {})})
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES | _WORDS, inner, max_size=4),
    max_leaves=12,
)


def _of(body: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Generate values that a part of the schema describes, and sometimes others."""
    if "$ref" in body:
        body = _SCHEMA["$defs"][body["$ref"].rpartition("/")[2]]
    if "anyOf" in body:
        return st.one_of([_of(option, depth) for option in body["anyOf"]]) | _SCALARS
    if body.get("type") == "object" and depth < 4:  # noqa: PLR2004  # the configuration has no deeper sections
        own = {
            name: _SECRETS.get(name, st.nothing()) | _of(field, depth + 1)
            for name, field in body.get("properties", {}).items()
        }
        more = body.get("additionalProperties")
        if isinstance(more, dict):
            return st.dictionaries(_WORDS, _of(more, depth + 1), max_size=3)
        return st.fixed_dictionaries({}, optional=own) | _TREES
    if body.get("type") == "array":
        return st.lists(_of(body.get("items", {}), depth + 1), max_size=3) | _SCALARS
    if "enum" in body:
        return st.sampled_from(body["enum"]) | _SCALARS
    return _SCALARS


def _dumped(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def _cut(text: bytes, start: int, length: int, instead: bytes) -> bytes:
    start %= len(text) + 1
    return text[:start] + instead + text[start + length :]


_WHOLE = st.builds(_dumped, _of(_SCHEMA) | st.dictionaries(_NAMES, _TREES, max_size=4))
DOCUMENTS = (
    _WHOLE
    | st.builds(_cut, _WHOLE, st.integers(0, 4000), st.integers(0, 40), st.binary(max_size=6))
    | st.binary(max_size=64)
)


def check(document: bytes) -> None:
    """Load a document; neither its problems nor what `check` shows holds a secret."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_bytes(document)
        try:
            loaded = config.load(path, ENVIRON)
        except ConfigError as error:
            told = error
        else:
            _check_loaded(path, loaded)
            return
    assert told.problems
    assert all(problem.message for problem in told.problems)
    assert MARK not in str(told) + repr(told.problems)
    str(told).encode()


def _check_loaded(path: Path, loaded: config.Config) -> None:
    shown = (
        yaml.safe_dump(config.effective(loaded), allow_unicode=True)
        + repr(loaded)
        + "".join(map(str, config.warnings(path, loaded)))
    )
    assert MARK not in shown
    shown.encode()
    loaded.pools_of_model()
    loaded.client_models()
    loaded.anonymous_client()
    loaded.watched_files()
