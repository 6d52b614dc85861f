from pathlib import Path
from typing import Any

import pytest
import yaml
from keyturn.config import Config, load

from tests.helm.charts import CHART, CI, Rendered, render
from tests.helm.kubelet import lay_out

DIGEST = "2f916238cbb91954e900ed5923872a587e00b20ef5c65cfeed39cd5285a74ae5"
ENVIRONMENT = {
    "KEYTURN_STORE_URL": "redis://redis:6379/0",
    "CRAWLER_TOKEN": "token-of-the-crawler",
    "ADMIN_TOKEN": "token-of-the-admin",
    "B_TOKEN": "token-of-b",
    "SPOOL": "1000",
}


def loaded(rendered: Rendered, folder: Path) -> Config:
    """The configuration as the application reads it from the pod's volumes."""
    given = {
        "postman-keys": {"team-a": "PMAK-a"},
        "keys-of-team-b": {"shared-1": "PMAK-1", "shared-2": "PMAK-2"},
        "gateway-tls": {"tls.crt": "certificate", "tls.key": "key", "ca.crt": "authority"},
        "company-ca": {"ca.pem": "authority"},
    }
    layout = lay_out(rendered.gateway, rendered.container, rendered.objects, given, folder)
    return load(layout.path("/etc/keyturn/config.yaml"), ENVIRONMENT)


@pytest.mark.parametrize(
    "values", [path for path in CI if "sidecar" not in path.name], ids=lambda path: path.name.split("-values")[0]
)
def test_the_application_reads_what_the_chart_writes(values: Path, tmp_path: Path) -> None:
    """Every file of values makes a configuration without a problem, its keys where the chart mounts them."""
    config = loaded(render(None, values), tmp_path)
    assert config.authentication_required
    assert config.has_keys


def test_the_configuration_is_the_users() -> None:
    """Everything under `config` is rendered unchanged: numbers, text that looks like something else, lists."""
    mine = {
        "upstream": {"max_body": 104857600, "url": "https://api.example.com"},
        "retry": {"budget": 0.1, "attempts": 2},
        "queue": {"max_waiting": 10000000},
        "anonymous": {"name": "007"},
        "clients": [{"name": "yes", "token_sha256": DIGEST, "allow": ["GET /**"], "pin": True}],
        "log": {"level": "info"},
        "lame_duck": "1s",
        "drain": "90s",
    }
    config = render({"config": mine}).config
    assert {name: config[name] for name in mine} == mine


def test_what_a_pod_needs_is_filled_in() -> None:
    """A gateway listens for others, wants tokens, and reads its keys where they are mounted."""
    assert render().config == {
        "listen": "0.0.0.0:8080",
        "admin": "0.0.0.0:9090",
        "authentication": "required",
        "lame_duck": "5s",
        "pools": {"default": {"keys_dir": "/run/keyturn/keys/default"}},
        "clients": [],
        "drain": "25s",
    }


def test_what_is_written_is_not_filled_in() -> None:
    """The chart's own settings give way to the user's."""
    mine = {
        "listen": "0.0.0.0:7000",
        "admin": "0.0.0.0:7001",
        "authentication": "off",
        "allow_anonymous_network": True,
        "pools": {"other": {"keys_dir": "/keys"}},
        "store": {"url": "redis://r:6379"},
    }
    config = render({"config": mine}).config
    assert {name: config[name] for name in mine} == mine


# Keys


def test_keys_are_a_mounted_folder() -> None:
    """A pool's keys are a Secret mounted whole and read-only, so that a changed one is seen."""
    rendered = render({"keys": {"default": {"existingSecret": "mine"}}})
    (mount,) = [one for one in rendered.container["volumeMounts"] if one["mountPath"] == "/run/keyturn/keys/default"]
    (volume,) = [one for one in rendered.gateway["volumes"] if one["name"] == mount["name"]]
    assert (mount["readOnly"], "subPath" in mount) == (True, False)
    assert volume["secret"] == {"secretName": "mine", "defaultMode": 0o440, "optional": False}
    assert "Secret" not in rendered.kinds


def test_keys_of_the_values_are_a_secret() -> None:
    """`keys.*.values` makes the Secret that is mounted."""
    rendered = render({"keys": {"default": {"values": {"a": "PMAK-a"}}}})
    assert rendered.one("Secret")["data"] == {"a": "UE1BSy1h"}
    (volume,) = [one for one in rendered.gateway["volumes"] if "secret" in one]
    assert volume["secret"]["secretName"] == rendered.one("Secret")["metadata"]["name"]


def test_keys_may_come_later() -> None:
    """Without either, pods start beside a Secret that need not be there yet."""
    (volume,) = [one for one in render().gateway["volumes"] if "secret" in one]
    assert volume["secret"]["optional"] is True
    assert volume["secret"]["secretName"] == "shop-keyturn-keys-default"


def test_every_pool_has_its_secret() -> None:
    """Pools that name no keys get a folder of their own; those that do are left alone."""
    pools = {"Team_B": {}, "c": {"keys": [{"name": "k", "secret": "${K}"}]}, "d": {"keys_dir": "/elsewhere"}}
    rendered = render({"config": {"pools": pools}})
    secrets = [one["secret"]["secretName"] for one in rendered.gateway["volumes"] if "secret" in one]
    assert secrets == ["shop-keyturn-keys-team-b"]
    assert rendered.config["pools"]["Team_B"] == {"keys_dir": "/run/keyturn/keys/Team_B"}
    assert {name: rendered.config["pools"][name] for name in ("c", "d")} == {name: pools[name] for name in ("c", "d")}


def test_a_rotated_secret_is_read_as_a_whole(tmp_path: Path) -> None:
    """After the kubelet has swapped a Secret's files, the same configuration has the new keys, and no old one."""
    rendered = render({"keys": {"default": {"existingSecret": "mine"}}})
    before = {"mine": {"a": "one", "b": "two"}}
    layout = lay_out(rendered.gateway, rendered.container, rendered.objects, before, tmp_path)

    def keys() -> dict[str, str]:
        (pool,) = load(layout.path("/etc/keyturn/config.yaml"), {}).pools_of_model()
        return {key.name: key.secret.reveal() for key in pool.keys}

    assert keys() == {"a": "one", "b": "two"}
    layout.swap("/run/keyturn/keys/default", {"b": "three", "c": "four"})
    assert keys() == {"b": "three", "c": "four"}


def test_keys_of_one_user_share_a_quota(tmp_path: Path) -> None:
    """A Secret's keys can be named one by one instead, to say more of them."""
    (pool,) = [
        pool
        for pool in loaded(render(None, CHART / "ci" / "everything-values.yaml"), tmp_path).pools_of_model()
        if pool.name == "Team_B"
    ]
    assert {key.quota for key in pool.keys} == {"user"}


# Redis


def store_url(rendered: Rendered) -> Any:
    """Where the container takes the store's URL from."""
    (found,) = [one for one in rendered.container["env"] if one["name"] == "KEYTURN_STORE_URL"]
    return found.get("value") or found["valueFrom"]["secretKeyRef"]


def test_redis_by_url() -> None:
    """The URL goes into a Secret, and nowhere else."""
    rendered = render({"redis": {"url": "redis://:5ecret@r:6379/0"}})
    assert rendered.config["store"] == {"url": "${KEYTURN_STORE_URL}"}
    assert store_url(rendered) == {"name": "shop-keyturn-redis", "key": "url"}
    assert rendered.one("Secret", "-redis")["data"] == {"url": "cmVkaXM6Ly86NWVjcmV0QHI6NjM3OS8w"}
    assert "5ecret" not in yaml.safe_dump(rendered.objects)


def test_redis_by_secret() -> None:
    """A Secret that exists is named; no other is made."""
    rendered = render({"redis": {"existingSecret": "mine", "existingSecretKey": "uri"}, "replicas": 3})
    assert store_url(rendered) == {"name": "mine", "key": "uri"}
    assert "Secret" not in rendered.kinds


def test_redis_keeps_other_settings_of_the_store() -> None:
    """Only the URL is filled in."""
    rendered = render({"redis": {"existingSecret": "mine"}, "config": {"store": {"on_loss": "wait"}}})
    assert rendered.config["store"] == {"url": "${KEYTURN_STORE_URL}", "on_loss": "wait"}


def test_redis_of_the_configuration() -> None:
    """A store that `config` names itself is shared, too."""
    rendered = render({"config": {"store": {"url": "redis://:${PASSWORD}@r:6379"}}, "replicas": 2})
    assert rendered.one("Deployment")["spec"]["replicas"] == 2


def test_embedded_redis() -> None:
    """One pod without persistence or eviction, which only Keyturn's pods reach."""
    rendered = render({"redis": {"embedded": True}, "replicas": 2})
    deployment = rendered.one("Deployment", "-redis")["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    arguments = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert (arguments["--save"], arguments["--appendonly"]) == ("", "no")
    assert arguments["--maxmemory-policy"] == "noeviction"
    assert store_url(rendered) == "redis://shop-keyturn-redis:6379/0"
    (rule,) = rendered.one("NetworkPolicy", "-redis")["spec"]["ingress"]
    (peer,) = rule["from"]
    labels = rendered.one("Deployment", "shop-keyturn")["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()


def test_no_embedded_redis_unless_asked_for() -> None:
    """`redis.embedded` is off."""
    assert len(render().all("Deployment")) == 1


@pytest.mark.parametrize(
    ("inbound", "volume"),
    [
        ({}, {"sizeLimit": "1296Mi"}),
        ({"spool_size": 400 * 2**20}, {"sizeLimit": "516Mi"}),
        ({"spool_size": 0}, {"sizeLimit": "16Mi"}),
        ({"spool_size": "${SPOOL}"}, {}),
    ],
)
def test_bodies_have_a_folder(inbound: dict[str, Any], volume: dict[str, str], tmp_path: Path) -> None:
    """A pod that fills its volume is evicted, so it is larger than what the application takes."""
    rendered = render({"config": {"inbound": inbound}})
    (mount,) = [one for one in rendered.container["volumeMounts"] if one["mountPath"] == "/tmp"]
    assert not mount.get("readOnly")
    assert {"name": mount["name"], "emptyDir": volume} in rendered.gateway["volumes"]
    config = loaded(rendered, tmp_path)
    assert not volume or config.inbound.spool_size < int(volume["sizeLimit"].removesuffix("Mi")) * 2**20
