import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from keyturn.config import Config, effective, load
from keyturn.config.models import Document
from pydantic import BaseModel

from tests.config.samples import KEYS, problems, with_digests

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "config.yaml"
GUIDE = ROOT / "docs" / "configuration.md"
COMMENTED = re.compile(r"^#(?=[a-z]|  )", re.MULTILINE)
"""Before a setting that is not in effect; prose stands behind `# `."""

ENVIRON = {
    "ADMIN_TOKEN": "a",
    "POSTMAN_KEY_A": "b",
    "PORTAL_TOKEN": "c",
    "CRAWLER_TOKEN": "d",
    "REDIS_PASSWORD": "e",
    "SENTINEL_PASSWORD": "f",
}


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a setting holds, alone or in a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_in(part))), None)


def settings(model: type[BaseModel], path: str = "") -> set[str]:
    """Paths of all settings of a section, without positions and names of pools."""
    found = set()
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        found |= settings(inner, f"{path}{name}.") if inner else {f"{path}{name}"}
    return found


def written(value: Any, path: str = "") -> set[str]:
    """Paths of all settings that a document writes."""
    if isinstance(value, list) and value:
        return set().union(*(written(item, path) for item in value))
    if isinstance(value, dict) and path != "pools.default.headers.":
        return set().union(*(written(item, f"{path}{name}.") for name, item in value.items()))
    return {path.removesuffix(".").replace("pools.default.", "pools.")}


def uncommented() -> str:
    """The example with every setting in effect."""
    return with_digests(COMMENTED.sub("", EXAMPLE.read_text(encoding="utf-8")))


def files_for(folder: Path, text: str) -> None:
    """Make every file that a document names, beside it."""
    names = r"(?:cert|key|client_ca|ca|secret_file|jwks_file|bearer_file): ([\w./-]+)"
    for number, name in enumerate(re.findall(names, text)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"file-{number}")
    for name in re.findall(r"keys_dir: ([\w./-]+)", text):
        (folder / name).mkdir(parents=True, exist_ok=True)


def test_the_example_works_with_keys_of_the_environment() -> None:
    """As it stands it changes nothing."""
    assert effective(load(EXAMPLE, KEYS)) == effective(load(None, KEYS))
    assert EXAMPLE.read_text().startswith("# yaml-language-server: $schema=docs/config.schema.json\n")


def test_the_example_shows_every_setting(tmp_path: Path) -> None:
    """Commented out with its default; put into effect it is a configuration."""
    text = uncommented()
    shown = written(yaml.safe_load(text))
    caller = {f"anonymous.{name}" for name in ("pool", "urgency", "max_waiting", "max_in_flight", "allow", "pin")}
    rate = {"anonymous.rate.requests", "anonymous.rate.window"}
    either = {"store.password_file", "store.sentinel_password_file"}  # named in prose: they exclude the passwords
    assert settings(Document) - shown == caller | rate | either
    assert all(f"`{path.partition('.')[2]}`" in EXAMPLE.read_text(encoding="utf-8") for path in either)
    assert shown <= settings(Document)
    files_for(tmp_path, text)
    (tmp_path / "config.yaml").write_text(text)
    config = load(tmp_path / "config.yaml", ENVIRON)
    assert [client.name for client in config.client_models()] == ["ci", "portal", "pipeline", "job", "deploy"]


@pytest.mark.parametrize(
    "section",
    ["listen", "admin", "upstream", "store", "queue", "retry", "allow_anonymous_network", "lame_duck", "drain"],
)
def test_the_example_shows_defaults(tmp_path: Path, section: str) -> None:
    """Settings that are commented out show the defaults in effect."""
    text = re.sub(r"  (ca: tls/upstream-ca|(sentinel_)?(username|password): ).*", "", uncommented())
    files_for(tmp_path, text)
    (tmp_path / "config.yaml").write_text(text)
    assert effective(load(tmp_path / "config.yaml", ENVIRON))[section] == effective(load(None, KEYS))[section]


def test_the_guide_names_every_setting() -> None:
    """By its own name, in code."""
    words = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`[^`\n]+`", GUIDE.read_text(encoding="utf-8")))))
    assert {path.split(".")[-1] for path in settings(Document)} - words == set()


@pytest.mark.parametrize("number", [0, 1], ids=["gateway", "sidecar"])
def test_the_examples_of_the_guide_work(tmp_path: Path, number: int) -> None:
    """With the files that they name."""
    guide = with_digests(GUIDE.read_text(encoding="utf-8")).partition("## Examples")[2]
    text = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)[number].replace("/run/", "run/")
    files_for(tmp_path, text)
    (tmp_path / "run" / "keys" / "a").write_text("x")
    (tmp_path / "config.yaml").write_text(text)
    assert load(tmp_path / "config.yaml", ENVIRON).has_keys


def test_defaults_are_those_of_the_contract() -> None:
    """60 requests in 60 s on each key, 30 s of waiting, answers within 310 s."""
    config = Config()
    pool = config.pools["default"]
    assert [(limit.requests, limit.window, limit.match) for limit in pool.limits] == [(60, 60_000_000, ())]
    assert pool.guard == 100_000
    assert config.upstream.url == "https://api.getpostman.com"
    assert config.upstream.connect_timeout == 5_000_000
    assert config.upstream.response_timeout == 310_000_000
    assert config.upstream.settle_bound == 10_000_000
    assert config.upstream.max_body == 100 * 1024 * 1024
    assert config.upstream.max_connections == 256
    assert (config.upstream.key_header, config.upstream.key_query) == ("X-Api-Key", "apikey")
    assert (config.store.prefix, config.store.timeout, config.store.on_loss) == ("keyturn", 500_000, "share")
    assert (config.queue.max_wait, config.queue.max_wait_ceiling) == (30_000_000, 300_000_000)
    assert config.queue.max_waiting == 10_000
    assert (config.retry.attempts, config.retry.budget) == (3, 0.2)
    assert config.anonymous.name == "local"
    assert (config.lame_duck, config.drain) == (0, 25_000_000)
    assert (config.log.level, config.log.format) == ("info", None)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("pools: {default: {limits: [{requests: 0, window: 1s}]}}", "pools.default.limits[0].requests"),
        ("pools: {default: {limits: [{requests: 100001, window: 1s}]}}", "pools.default.limits[0].requests"),
        ("pools: {default: {limits: [{requests: 1, window: 0s}]}}", "pools.default.limits[0].window"),
        ("pools: {default: {limits: [{requests: 1, window: 32d}]}}", "pools.default.limits[0].window"),
        ("pools: {default: {limits: [{requests: 1}]}}", "pools.default.limits[0].window"),
        ("pools: {default: {limits: [{requests: true, window: 1s}]}}", "pools.default.limits[0].requests"),
        ("clients: [{name: a, token: x, weight: 0}]", "clients[0].weight"),
        ("clients: [{name: a, token: x, weight: 1001}]", "clients[0].weight"),
        ("clients: [{name: a, token: x, weight: 1.5}]", "clients[0].weight"),
        ("clients: [{name: a, token: x, urgency: 8}]", "clients[0].urgency"),
        ("clients: [{name: a, token: x, urgency: -1}]", "clients[0].urgency"),
        ("clients: [{name: a, token_sha256: abc}]", "clients[0].token_sha256"),
        ("clients: [{name: a b, token: x}]", "clients[0].name"),
        ("clients: [{token: x}]", "clients[0].name"),
        ("clients: [{name: a, token: x, allow: ['collections']}]", "clients[0].allow[0]"),
        ("clients: [{name: a, token: x, rate: {requests: 1}}]", "clients[0].rate.window"),
        ("anonymous: {token: x}", "anonymous.token"),
        ("retry: {attempts: 0}", "retry.attempts"),
        ("retry: {attempts: 11}", "retry.attempts"),
        ("retry: {budget: 1.1}", "retry.budget"),
        ("retry: {budget: .nan}", "retry.budget"),
        ("store: {on_loss: hope}", "store.on_loss"),
        ("store: {url: 'mysql://x'}", "store.url"),
        ("upstream: {url: 'http://x'}", "upstream.url"),
        ("upstream: {key_header: Host}", "upstream.key_header"),
        ("upstream: {connect_timeout: 0s}", "upstream.connect_timeout"),
        ("authentication: maybe", "authentication"),
        ("log: {level: loud}", "log.level"),
        ("listen: []", "listen"),
        ("listen: nonsense", "listen"),
        ("admin: [127.0.0.1:1]", "admin"),
        ("pools: {a b: {keys: [{name: a, secret: x}]}}", 'pools["…"]'),
        ("tls: {cert: config.yaml}", "tls.key"),
    ],
)
def test_values_have_bounds(tmp_path: Path, text: str, path: str) -> None:
    """Each mistake is found at its own path."""
    assert path in problems(tmp_path, text)
