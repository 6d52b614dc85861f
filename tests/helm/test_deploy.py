import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator
from keyturn.config import load

from tests.helm.charts import render
from tests.process import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
UNIT = ROOT / "deploy" / "systemd" / "keyturn.service"


def seconds(text: str) -> int:
    """A duration in seconds."""
    return int(text.removesuffix("s"))


# Compose


def test_compose_s_configuration_is_valid(tmp_path: Path) -> None:
    """The file that it mounts loads with the variables that it asks for, and its replicas share the service `redis`."""
    volume, writable = COMPOSE["services"]["keyturn"]["volumes"]
    assert writable == "/tmp"
    source, target, mode = volume.split(":")
    assert (target, mode) == ("/etc/keyturn/config.yaml", "ro")
    config = load(ROOT / source, {"POSTMAN_API_KEYS": "one,two", "KEYTURN_TOKEN": "5ecret"})
    assert config.authentication_required
    assert str(config.store.url) == "redis://redis:6379/0"
    assert "redis" in COMPOSE["services"]
    assert set(COMPOSE["services"]["keyturn"]["environment"]) == {"POSTMAN_API_KEYS", "KEYTURN_TOKEN"}


def test_compose_is_understood() -> None:
    """Compose's own schema knows every setting, and would find one that it does not know."""
    schema = Path(sys.prefix, "servers", "compose", "config", "compose_spec.json")
    reader = Draft7Validator(json.loads(schema.read_text(encoding="utf-8")))
    assert list(reader.iter_errors(COMPOSE)) == []
    (service, *_) = COMPOSE["services"].values()
    assert [*reader.iter_errors({"services": {"keyturn": {**service, "mem_limt": "512m"}}})]


def test_compose_s_services_have_what_the_chart_s_have() -> None:
    """The image has the version that the chart has, and memory ends where the chart's limits end it."""
    rendered = render({"redis": {"embedded": True}})
    (redis,) = rendered.one("Deployment", "-redis")["spec"]["template"]["spec"]["containers"]
    for service, container in (("keyturn", rendered.container), ("redis", redis)):
        assert COMPOSE["services"][service]["image"] == container["image"]
        assert f"{COMPOSE['services'][service]['mem_limit']}i" == container["resources"]["limits"]["memory"].lower()


def test_compose_publishes_to_this_machine_only() -> None:
    """Both ports are those of the configuration, on the loopback of the machine."""
    settings = yaml.safe_load((ROOT / "deploy" / "compose" / "config.yaml").read_text(encoding="utf-8"))
    ports = [settings[name].rpartition(":")[2] for name in ("listen", "admin")]
    assert COMPOSE["services"]["keyturn"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_compose_takes_rights_away(service: str) -> None:
    """Every container runs as a numeric user without capabilities and without a writable root file system."""
    settings = COMPOSE["services"][service]
    assert (settings["read_only"], settings["cap_drop"], settings["user"]) == (True, ["ALL"], "10001:10001")
    assert settings["security_opt"] == ["no-new-privileges:true"]


def test_compose_lets_requests_end() -> None:
    """It waits longer than `drain` before it kills."""
    settings = yaml.safe_load((ROOT / "deploy" / "compose" / "config.yaml").read_text(encoding="utf-8"))
    assert seconds(COMPOSE["services"]["keyturn"]["stop_grace_period"]) > seconds(settings["drain"])


def test_compose_s_redis_is_the_chart_s() -> None:
    """The same settings against eviction and persistence."""
    container = render({"redis": {"embedded": True}}).one("Deployment", "-redis")["spec"]["template"]["spec"]
    redis = COMPOSE["services"]["redis"]
    assert redis["command"][1:] == container["containers"][0]["args"][: len(redis["command"]) - 1]


# systemd


def directive(name: str) -> list[str]:
    """The values of a directive of the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)


def test_unit_starts_what_the_image_starts() -> None:
    """The same command with the same file."""
    assert directive("ExecStart") == ["/opt/keyturn/bin/keyturn serve -c /etc/keyturn/config.yaml"]


def test_unit_starts_again_until_it_runs() -> None:
    """Whatever ended it, it starts again, however often; but not with a configuration that is wrong (exit 2)."""
    assert (directive("Restart"), directive("RestartPreventExitStatus")) == (["on-failure"], ["2"])
    assert directive("StartLimitIntervalSec") == ["0"]
    assert directive("ExecStartPre") == []  # its exit code would not prevent a restart


def test_unit_lets_requests_end() -> None:
    """It waits longer than the default of `drain` before it kills."""
    (stop,) = directive("TimeoutStopSec")
    assert seconds(stop) > seconds("25s")
    assert directive("KillSignal") == ["SIGTERM"]


def test_unit_takes_rights_away() -> None:
    """Nothing of the machine can be written, no capability is left, and a call that is not allowed fails."""
    settings = ("NoNewPrivileges", "ProtectSystem", "ProtectHome", "CapabilityBoundingSet", "SystemCallErrorNumber")
    assert [directive(name) for name in settings] == [["yes"], ["strict"], ["yes"], [""], ["EPERM"]]


def test_unit_is_understood(tmp_path: Path) -> None:
    """Systemd knows every directive."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd here")
    text = UNIT.read_text(encoding="utf-8").replace("/opt/keyturn/bin/keyturn", "/bin/true")
    (tmp_path / "keyturn.service").write_text(text, encoding="utf-8")
    command = [analyze, "verify", "--man=no", str(tmp_path / "keyturn.service")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if "keyturn.service" in line] == []
