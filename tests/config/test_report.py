import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from keyturn.config import Config, effective, load, schema, warnings
from keyturn.core.model import Secret

from tests.config.samples import KEYS, MARK, loaded, write

SECRETS = f"""
admin_token: {MARK}a
store: {{url: "redis://:{MARK}@h/0"}}
pools: {{default: {{keys: [{{name: a, secret: {MARK}b}}, {{name: b, secret: "${{POSTMAN_API_KEYS}}"}}]}}}}
clients: [{{name: c, token: {MARK}c}}]
"""


def warned(folder: Path, config: Config) -> dict[str, str]:
    """Warnings about what stands in a folder, by path."""
    return {problem.path: problem.message for problem in warnings(folder / "config.yaml", config)}


def test_secrets_in_plain_text_that_everybody_can_read_are_warned_of(tmp_path: Path) -> None:
    """Each with its path and what to do; none in a file that only its owner reads."""
    config = loaded(tmp_path, SECRETS, {"POSTMAN_API_KEYS": "x"})
    assert warned(tmp_path, config) == {}
    (tmp_path / "config.yaml").chmod(0o644)
    found = warned(tmp_path, config)
    assert set(found) == {"admin_token", "store.url", "pools.default.keys[0].secret", "clients[0].token"}
    assert all("chmod 600" in message and "${NAME}" in message for message in found.values())
    assert "secret_file" in found["pools.default.keys[0].secret"]
    assert MARK not in str(found)


def test_key_files_that_everybody_can_read_are_warned_of(tmp_path: Path) -> None:
    """Those in a folder as well, by their names."""
    (tmp_path / "keys").mkdir()
    for name in ("one", "keys/open", "keys/closed"):
        (tmp_path / name).write_text(MARK + name[-3:])
        (tmp_path / name).chmod(0o600 if name.endswith("closed") else 0o644)
    config = loaded(tmp_path, "pools: {default: {keys: [{name: a, secret_file: one}], keys_dir: keys}}", {})
    found = warned(tmp_path, config)
    assert set(found) == {"pools.default.keys[0].secret_file", "pools.default.keys_dir"}
    assert str(tmp_path / "keys" / "open") in found["pools.default.keys_dir"]
    assert "chmod 600" in found["pools.default.keys_dir"]


def test_nothing_is_warned_of_without_a_file() -> None:
    """The environment is the place for secrets."""
    assert warnings(None, load(None, KEYS)) == ()


def test_a_proxy_that_nobody_can_use_is_warned_of(tmp_path: Path) -> None:
    """Authentication is required, and nobody is known."""
    assert "401" in warned(tmp_path, loaded(tmp_path, "listen: 0.0.0.0:8080"))["clients"]


def test_files_that_are_gone_since_are_no_matter(tmp_path: Path) -> None:
    """Warnings never fail."""
    config = loaded(tmp_path, SECRETS)
    (tmp_path / "config.yaml").unlink()
    assert warned(tmp_path, config) == {}


def test_the_effective_configuration_shows_no_secret(tmp_path: Path) -> None:
    """They stand as `…`, a password within its URL."""
    shown = effective(loaded(tmp_path, SECRETS))
    assert MARK not in str(shown)
    assert shown["admin_token"] == shown["clients"][0]["token"] == "…"
    assert shown["pools"]["default"]["keys"][0]["secret"] == "…"
    assert shown["store"]["url"] == "redis://:…@h/0"


def test_fields_that_are_set_may_be_secrets(tmp_path: Path) -> None:
    """By their names; others are shown."""
    headers = {"X-Extra": "value", "Authorization": MARK, "cookie": MARK, "X-Vault-Token": MARK, "Api_Secret": MARK}
    shown = effective(loaded(tmp_path, yaml.safe_dump({"pools": {"default": {"headers": headers}}})))
    assert shown["pools"]["default"]["headers"] == {name: "value" if name == "X-Extra" else "…" for name in headers}


def test_the_effective_configuration_has_every_default(tmp_path: Path) -> None:
    """In the words of config.yaml: durations and addresses as text."""
    shown = effective(
        loaded(tmp_path, "clients: [{name: a, token: x, rate: {requests: 5, window: 90s}, allow: ['GET /**']}]")
    )
    assert shown["listen"] == ["127.0.0.1:8080"]
    assert shown["admin"] == "127.0.0.1:9090"
    assert shown["authentication"] == "required"
    assert shown["upstream"]["response_timeout"] == "310s"
    assert shown["pools"]["default"]["limits"] == [{"requests": 60, "window": "1m", "match": []}]
    name = f"key-{Secret(f'PMAK-{MARK}-1').digest()[:8]}"
    assert shown["pools"]["default"]["keys"][0] == {"name": name, "secret": "…", "secret_file": None, "quota": None}
    client = shown["clients"][0]
    assert next(iter(client)) == "name"
    assert client["rate"] == {"requests": 5, "window": "90s"}
    assert client["allow"] == ["GET /**"]
    assert client["max_waiting"] == shown["queue"]["max_waiting"] == 10_000


def test_the_effective_configuration_is_a_configuration(tmp_path: Path) -> None:
    """Written as YAML it is one with the same effect, as far as it holds no secrets."""
    (tmp_path / "k").write_text("x")
    config = loaded(
        tmp_path, "pools: {default: {keys: [{name: a, secret_file: k}], guard: 0s}}\nauthentication: off", {}
    )
    again = load(write(tmp_path, yaml.safe_dump(effective(config), allow_unicode=True)), {})
    assert again.pools_of_model() == config.pools_of_model()
    assert effective(again) == effective(config)


def test_a_password_that_is_decoded_is_warned_of(tmp_path: Path) -> None:
    """A URL is decoded; who writes a password into it that is not encoded gets another one."""
    for url, count in (("redis://:a%41b@h", 1), ("redis://:a%2Fb@h", 0)):
        path = write(tmp_path, "store: {url: '${STORE}'}")
        found = warnings(path, load(path, {**KEYS, "STORE": url}))
        assert ["`store.password`" in problem.message for problem in found] == [True] * count


def test_an_open_password_file_is_warned_of(tmp_path: Path) -> None:
    """As are key files."""
    (tmp_path / "password").write_text("p")
    (tmp_path / "password").chmod(0o644)
    path = write(tmp_path, "store: {url: 'redis://h', password_file: password}")
    assert [problem.path for problem in warnings(path, load(path, KEYS))] == ["store.password_file"]


FILE = Path(__file__).parent.parent.parent / "docs" / "config.schema.json"


def settings(of: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting of every section, by section and name."""
    for section, body in {"": of, **of["$defs"]}.items():
        for name, field in body.get("properties", {}).items():
            yield f"{section}.{name}", field


def options(field: dict[str, Any]) -> list[dict[str, Any]]:
    """All forms that a setting can have."""
    forms = field.get("anyOf", [field])
    return [found for form in forms for found in (options(form) if form is not field else [form])]


SCHEMA = schema()
SETTINGS = dict(settings(SCHEMA))


def test_the_file_for_editors_is_current() -> None:
    """It is what `keyturn schema` prints."""
    assert json.loads(FILE.read_text(encoding="utf-8")) == SCHEMA


def test_it_says_what_it_is() -> None:
    """For editors that look for the dialect and a title."""
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"] == "Keyturn configuration"
    assert SCHEMA["additionalProperties"] is False


def test_every_setting_is_described() -> None:
    """Editors show it beside the cursor."""
    assert [name for name, field in SETTINGS.items() if not field.get("description")] == []
    assert all(body["description"] for body in SCHEMA["$defs"].values())


@pytest.mark.parametrize("name", SETTINGS)
def test_the_environment_can_give_every_value(name: str) -> None:
    """Where more than some text is asked for, `${NAME}` is another form."""
    text = "${WEIGHT:-1}"
    for form in options(SETTINGS[name]):
        if form.get("$ref") == "#/$defs/FromEnvironment":
            pattern = SCHEMA["$defs"]["FromEnvironment"]["pattern"]
            assert re.search(pattern, text)
            return
        if "$ref" in form or form.get("type") in ("array", "object", "null"):
            return
    assert all(form == {"type": "string", **form} and "pattern" not in form for form in options(SETTINGS[name]))


def test_durations_secrets_and_bounds_are_told() -> None:
    """As far as a schema can."""
    (duration,) = (form for form in options(SETTINGS["QueueSettings.max_wait"]) if "pattern" in form)
    assert re.search(duration["pattern"], "10s")
    assert not re.search(duration["pattern"], "10")
    assert SETTINGS["QueueSettings.max_wait"]["default"] == "30s"
    assert {"type": "string", "minLength": 1} in options(SETTINGS["KeySettings.secret"])
    weight = next(form for form in options(SETTINGS["ClientSettings.weight"]) if form.get("type") == "integer")
    assert (weight["minimum"], weight["maximum"]) == (1, 1000)
    assert SCHEMA["$defs"]["KeySettings"]["required"] == ["name"]


def test_every_reference_leads_somewhere() -> None:
    """The schema is whole."""
    text = json.dumps(SCHEMA)
    assert set(re.findall(r'"#/\$defs/(\w+)"', text)) <= set(SCHEMA["$defs"])
