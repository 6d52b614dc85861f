"""No value without an effect: each changes what is rendered, so none is there in vain, and each is seen off and on."""

from typing import Any

import pytest

from helm import generate
from tests.helm.charts import CHART, refusal, render

REDIS = {"redis": {"existingSecret": "r"}}
EMBEDDED = {"redis": {"embedded": True}}
URL = {"redis": {"url": "redis://r:6379"}}
SCALED = {"autoscaling": {"enabled": True}, **REDIS}
INGRESS = {"ingress": {"enabled": True, "host": "a.example"}}
ROUTE = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}}
TLS = {"tls": {"existingSecret": "cert"}}
RULES = {"metrics": {"rules": {"enabled": True}}}
MONITOR = {"metrics": {"podMonitor": {"enabled": True}}}
DASHBOARDS = {"metrics": {"dashboards": {"enabled": True}}}
SIDECARS = {"mode": "sidecar", **MONITOR, **REDIS}
NOTHING: dict[str, Any] = {}

EFFECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "mode": (REDIS, "sidecar"),
    "nameOverride": (NOTHING, "other"),
    "fullnameOverride": (NOTHING, "other"),
    "commonLabels": (NOTHING, {"a": "b"}),
    "image.repository": (NOTHING, "r.example/k"),
    "image.tag": (NOTHING, "7"),
    "image.digest": (NOTHING, "sha256:" + "0" * 64),
    "image.pullPolicy": (NOTHING, "Always"),
    "imagePullSecrets": (NOTHING, [{"name": "r"}]),
    "config.drain": (NOTHING, "1s"),
    "config.clients": (NOTHING, [{"name": "a", "token": "${A}"}]),
    "keys.default.existingSecret": (NOTHING, "mine"),
    "keys.default.values": (NOTHING, {"a": "b"}),
    "redis.url": (NOTHING, "redis://r:6379"),
    "redis.existingSecret": (NOTHING, "r"),
    "redis.existingSecretKey": (REDIS, "uri"),
    "redis.embedded": (NOTHING, True),
    "redis.image": (EMBEDDED, "r.example/valkey:1"),
    "redis.resources": (EMBEDDED, {"limits": {"memory": "1Gi"}}),
    "tls.existingSecret": (NOTHING, "cert"),
    "tls.clientCa": (TLS, True),
    "replicas": (REDIS, 2),
    "autoscaling.enabled": (REDIS, True),
    "autoscaling.minReplicas": (SCALED, 3),
    "autoscaling.maxReplicas": (SCALED, 9),
    "autoscaling.metric": (SCALED, "mine"),
    "autoscaling.target": (SCALED, "9"),
    "podDisruptionBudget.enabled": ({"replicas": 2, **REDIS}, False),
    "podDisruptionBudget.maxUnavailable": ({"replicas": 2, **REDIS}, "50%"),
    "strategy": (REDIS, {"type": "RollingUpdate"}),
    "restartOnChange": (NOTHING, "needed"),
    "graceMarginSeconds": (NOTHING, 9),
    "revisionHistoryLimit": (NOTHING, 0),
    "spread": (NOTHING, "off"),
    "topologySpreadConstraints": (NOTHING, [{"maxSkew": 2}]),
    "affinity": (NOTHING, {"nodeAffinity": {}}),
    "nodeSelector": (NOTHING, {"a": "b"}),
    "tolerations": (NOTHING, [{"key": "a"}]),
    "priorityClassName": (NOTHING, "high"),
    "resources": (NOTHING, {"limits": {"memory": "1Gi"}}),
    "probes.startup": (NOTHING, {"failureThreshold": 9}),
    "probes.liveness": (NOTHING, {"failureThreshold": 9}),
    "probes.readiness": (NOTHING, {"failureThreshold": 9}),
    "userId": (NOTHING, 7),
    "check.enabled": (NOTHING, False),
    "check.resources": (NOTHING, {"limits": {"memory": "1Gi"}}),
    "podLabels": (NOTHING, {"a": "b"}),
    "podAnnotations": (NOTHING, {"a": "b"}),
    "extraEnv": (NOTHING, [{"name": "A", "value": "b"}]),
    "envFrom": (NOTHING, [{"secretRef": {"name": "a"}}]),
    "extraVolumes": (NOTHING, [{"name": "a", "emptyDir": {}}]),
    "extraVolumeMounts": (NOTHING, [{"name": "a", "mountPath": "/a"}]),
    "extraObjects": (NOTHING, [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}]),
    "serviceAccount.create": (NOTHING, False),
    "serviceAccount.name": (NOTHING, "mine"),
    "serviceAccount.annotations": (NOTHING, {"a": "b"}),
    "service.type": (NOTHING, "NodePort"),
    "service.port": (NOTHING, 81),
    "service.annotations": (NOTHING, {"a": "b"}),
    "service.spec": (NOTHING, {"externalTrafficPolicy": "Local"}),
    "ingress.enabled": ({"ingress": {"host": "a.example"}}, True),
    "ingress.className": (INGRESS, "nginx"),
    "ingress.host": (INGRESS, "b.example"),
    "ingress.tlsSecret": (INGRESS, "cert"),
    "ingress.annotations": (INGRESS, {"a": "b"}),
    "httpRoute.enabled": ({"httpRoute": {"parentRefs": [{"name": "g"}]}}, True),
    "httpRoute.parentRefs": (ROUTE, [{"name": "h"}]),
    "httpRoute.hostnames": (ROUTE, ["a.example"]),
    "httpRoute.annotations": (ROUTE, {"a": "b"}),
    "networkPolicy.enabled": (NOTHING, False),
    "networkPolicy.callers": (NOTHING, [{"podSelector": {}}]),
    "networkPolicy.monitoring": (NOTHING, [{"podSelector": {}}]),
    "networkPolicy.redisPorts": (REDIS, [7000]),
    "networkPolicy.extraEgress": (NOTHING, [{"ports": [{"port": 3128}]}]),
    "metrics.podMonitor.enabled": (NOTHING, True),
    "metrics.podMonitor.interval": (MONITOR, "9s"),
    "metrics.podMonitor.labels": (MONITOR, {"a": "b"}),
    "metrics.rules.enabled": (NOTHING, True),
    "metrics.rules.labels": (RULES, {"a": "b"}),
    "metrics.rules.runbookUrl": (RULES, "https://a.example/runbooks.md"),
    "metrics.rules.fewUsableKeys": (RULES, 5),
    "metrics.dashboards.enabled": (NOTHING, True),
    "metrics.dashboards.labels": (DASHBOARDS, {"a": "b"}),
    "sidecar.podLabels": (SIDECARS, {"a": "b"}),
}
IN_THE_APPLICATION = {
    "sidecar.service": "other",
    "sidecar.readiness": True,
    "sidecar.applicationSeconds": 9,
    "sidecar.resources": {"limits": {"memory": "1Gi"}},
}
"""Settings that show only in the pods of an application."""


def nested(path: str, value: Any, base: dict[str, Any]) -> dict[str, Any]:
    """The base with a value at a path."""
    name, _, rest = path.partition(".")
    return {**base, name: nested(rest, value, base.get(name, {})) if rest else value}


@pytest.mark.parametrize("path", EFFECTS)
def test_a_value_has_an_effect(path: str) -> None:
    """The rendered objects differ with the value."""
    base, value = EFFECTS[path]
    assert render(nested(path, value, base)) != render(base)


@pytest.mark.parametrize("path", IN_THE_APPLICATION)
def test_a_value_of_sidecars_has_an_effect(example: Any, path: str) -> None:
    """The application's pod differs with it."""
    changed = nested(f"keyturn.{path}", IN_THE_APPLICATION[path], {})
    assert render(changed, chart=example) != render(chart=example)


def test_a_single_pod_needs_no_redis() -> None:
    """`sidecar.alone` lets pass what is refused without it, and changes nothing else."""
    alone = {"mode": "sidecar", "sidecar": {"alone": True}}
    assert "Each pod with a sidecar is a replica" in refusal(nested("sidecar.alone", False, alone))
    assert render(alone).config["listen"] == "127.0.0.1:8080"


def test_every_value_is_here() -> None:
    """The values of the README's table are those whose effect is seen."""
    rows = [value.path for value in generate.values((CHART / "values.yaml").read_text(encoding="utf-8"))]
    leaves = {path for path in rows if not any(other.startswith(f"{path}.") for other in rows)}
    assert leaves == {*EFFECTS, *IN_THE_APPLICATION, "sidecar.alone"}


# Text that looks like something else


def strings(thing: Any) -> set[str]:
    """Every text of an object."""
    if isinstance(thing, dict):
        return {text for value in thing.values() for text in strings(value)}
    if isinstance(thing, list):
        return {text for value in thing for text in strings(value)}
    return {thing} if isinstance(thing, str) else set()


@pytest.mark.parametrize(
    ("path", "base", "text"),
    [
        ("keys.default.existingSecret", NOTHING, "007"),
        ("redis.existingSecret", NOTHING, "1e3"),
        ("redis.existingSecretKey", REDIS, "1"),
        ("tls.existingSecret", NOTHING, "123"),
        ("priorityClassName", NOTHING, "1"),
        ("serviceAccount.name", NOTHING, "2"),
        ("nameOverride", NOTHING, "null"),
        ("fullnameOverride", NOTHING, "true"),
        ("ingress.className", INGRESS, "3"),
        ("ingress.tlsSecret", INGRESS, "4"),
        ("autoscaling.metric", SCALED, "5"),
    ],
)
def test_text_stays_text(path: str, base: dict[str, Any], text: str) -> None:
    """A name that YAML would take for a number or a truth is a name in the objects, too."""
    assert text in strings(render(nested(path, text, base)).objects)


def test_the_name_of_a_release_stays_text() -> None:
    """So is the name of a release that is all digits."""
    assert "123" in strings(render({"fullnameOverride": "gateway"}, release="123").objects)
