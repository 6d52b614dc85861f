"""How the objects of a release find each other: by labels, names and ports, all of which have to be there."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.charts import CHART, CI, Rendered, named, render

EVERYTHING = CHART / "ci" / "everything-values.yaml"
EMBEDDED = {"redis": {"embedded": True}, "replicas": 2, "networkPolicy": {"callers": [{"podSelector": {}}]}}
GATEWAYS = [path for path in CI if "sidecar" not in path.name]


def component(labels: dict[str, str], rendered: Rendered) -> str:
    """The component of the one pod of the release that has all of these labels."""
    pods = [thing["spec"]["template"]["metadata"]["labels"] for thing in rendered.all("Deployment")]
    pods += [thing["metadata"]["labels"] for thing in rendered.all("Pod")]
    (found,) = [pod["app.kubernetes.io/component"] for pod in pods if labels.items() <= pod.items()]
    return str(found)


def selectors(thing: dict[str, Any]) -> list[dict[str, str]]:
    """The labels by which an object looks for the pods that it is about."""
    spec = thing["spec"]
    if thing["kind"] == "Service":
        return [spec["selector"]]
    if thing["kind"] == "NetworkPolicy":
        return [spec["podSelector"]["matchLabels"]]
    found = [spec["selector"]["matchLabels"]]
    if thing["kind"] == "Deployment":
        pod = spec["template"]["spec"]
        found += [one["labelSelector"]["matchLabels"] for one in pod.get("topologySpreadConstraints", [])]
        for rules in pod.get("affinity", {}).get("podAntiAffinity", {}).values():
            terms = [rule.get("podAffinityTerm", rule) for rule in rules]
            assert {term["topologyKey"] for term in terms} == {"kubernetes.io/hostname"}
            found += [term["labelSelector"]["matchLabels"] for term in terms]
    return found


@pytest.mark.parametrize("spread", ["soft", "hard", "off"])
def test_selectors_find_the_pods_that_they_are_for(spread: str) -> None:
    """Whatever selects pods finds the gateway's, or the embedded Redis', and never both or the test's."""
    rendered = render({**EMBEDDED, "spread": spread, "metrics": {"podMonitor": {"enabled": True}}})
    seen = 0
    for thing in rendered.objects:
        if thing["kind"] in ("Service", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "Deployment"):
            part = "redis" if thing["metadata"]["name"].endswith("-redis") else "gateway"
            for labels in selectors(thing):
                assert component(labels, rendered) == part, thing
                seen += 1
    assert seen >= 8


def test_peers_of_the_policies_are_the_release_s() -> None:
    """The gateway's pods reach the embedded Redis, and the release's test reaches the gateway."""
    rendered = render(EMBEDDED)
    (to_redis,) = rendered.one("NetworkPolicy", "-redis")["spec"]["ingress"]
    assert [component(peer["podSelector"]["matchLabels"], rendered) for peer in to_redis["from"]] == ["gateway"]
    assert to_redis["ports"] == [{"port": 6379, "protocol": "TCP"}]
    to_gateway = rendered.one("NetworkPolicy", "-keyturn")["spec"]["ingress"][0]["from"]
    assert component(to_gateway[-1]["podSelector"]["matchLabels"], rendered) == "test"


@pytest.mark.parametrize("values", CI, ids=named)
def test_policies_are_about_both_directions(values: Path) -> None:
    """Traffic without a rule is denied; the embedded Redis makes no connections."""
    for policy in render(None, values).all("NetworkPolicy"):
        assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
        assert bool(policy["spec"]["egress"]) is not policy["metadata"]["name"].endswith("-redis")


@pytest.mark.parametrize("values", GATEWAYS, ids=named)
def test_names_and_ports_are_there(values: Path) -> None:
    """The autoscaler, the Ingress and the route lead to objects of the release, the monitor and Services to ports."""
    rendered = render(None, values)
    deployments = {thing["metadata"]["name"] for thing in rendered.all("Deployment")}
    services = {
        thing["metadata"]["name"]: {port["name"]: port["port"] for port in thing["spec"]["ports"]}
        for thing in rendered.all("Service")
    }
    for thing in rendered.all("HorizontalPodAutoscaler"):
        assert thing["spec"]["scaleTargetRef"]["kind"] == "Deployment"
        assert thing["spec"]["scaleTargetRef"]["name"] in deployments
    for thing in rendered.all("Ingress"):
        (path,) = thing["spec"]["rules"][0]["http"]["paths"]
        service = path["backend"]["service"]
        assert service["port"]["name"] in services[service["name"]]
        assert (path["path"], path["pathType"]) == ("/", "Prefix")
    for thing in rendered.all("HTTPRoute"):
        (backend,) = thing["spec"]["rules"][0]["backendRefs"]
        assert backend["port"] in services[backend["name"]].values()
    declared = {port["name"] for port in rendered.container["ports"]}
    for thing in rendered.all("PodMonitor"):
        (endpoint,) = thing["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"] in declared, endpoint["path"]) == (True, "/metrics")
    for thing in rendered.all("Service"):
        pods = {port["name"] for one in containers(rendered) for port in one.get("ports", [])}
        assert {port["targetPort"] for port in thing["spec"]["ports"]} <= pods
    (url,) = [entry["value"] for entry in rendered.one("Pod")["spec"]["containers"][0]["env"]]
    name, _, port = url.partition("://")[2].removesuffix("/me").rpartition(":")
    assert int(port) in services[name].values()


def containers(rendered: Rendered) -> list[Any]:
    """Every container of the Deployments."""
    return [one for thing in rendered.all("Deployment") for one in thing["spec"]["template"]["spec"]["containers"]]


@pytest.mark.parametrize("values", CI, ids=named)
def test_mounts_have_volumes(values: Path) -> None:
    """Every mount has its volume, every volume is mounted, and the user's file group owns it."""
    for thing in render(None, values).all("Deployment"):
        pod = thing["spec"]["template"]["spec"]
        mounted = {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert pod["securityContext"]["fsGroup"] == pod["containers"][0]["securityContext"]["runAsGroup"]


@pytest.mark.parametrize("values", GATEWAYS, ids=named)
def test_secrets_of_the_release_are_those_that_are_named(values: Path) -> None:
    """A Secret that the chart makes is one that the pod mounts or reads its environment from."""
    rendered = render(None, values)
    used = yaml.safe_dump(rendered.gateway)
    for secret in rendered.all("Secret"):
        assert f"{secret['metadata']['name']}\n" in used
        assert secret["type"] == "Opaque"


def test_ingress_with_a_certificate() -> None:
    """The host has the certificate and the class that the values name."""
    spec = render(None, EVERYTHING).one("Ingress")["spec"]
    host = "postman.example.com"
    assert spec["tls"] == [{"hosts": [host], "secretName": "ingress-tls"}]
    assert (spec["ingressClassName"], spec["rules"][0]["host"]) == ("nginx", host)


def test_route_has_what_the_values_say() -> None:
    """Gateways and host names are the values'."""
    spec = render(None, EVERYTHING).one("HTTPRoute")["spec"]
    assert spec["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    assert spec["hostnames"] == ["postman.example.com"]


def test_the_release_s_test_is_a_hook() -> None:
    """`helm test` runs it, an installation does not, and it goes again once it has passed."""
    annotations = render().one("Pod")["metadata"]["annotations"]
    assert annotations == {
        "helm.sh/hook": "test",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }


@pytest.mark.parametrize(("version", "eviction"), [("1.26.0", None), ("1.27.0", "AlwaysAllow")])
def test_a_sick_pod_keeps_no_node(version: str, eviction: str | None) -> None:
    """Where there is such a policy, a pod that is not ready may always be moved away."""
    budget = render(EMBEDDED, version=version).one("PodDisruptionBudget")["spec"]
    assert (budget.get("unhealthyPodEvictionPolicy"), budget["maxUnavailable"]) == (eviction, 1)


def test_pods_spread_evenly_over_zones() -> None:
    """At most one more in one zone than in another, if the scheduler can help it."""
    (zones,) = render().gateway["topologySpreadConstraints"]
    assert (zones["maxSkew"], zones["whenUnsatisfiable"]) == (1, "ScheduleAnyway")
    assert zones["topologyKey"] == "topology.kubernetes.io/zone"


def test_secrets_of_the_registry_are_for_every_pod() -> None:
    """Whatever image a pod has, it is pulled with them."""
    rendered = render({**EMBEDDED, "imagePullSecrets": [{"name": "registry"}]})
    pods = [thing["spec"]["template"]["spec"] for thing in rendered.all("Deployment")]
    for pod in [*pods, rendered.one("Pod")["spec"]]:
        assert pod["imagePullSecrets"] == [{"name": "registry"}]


def test_probes_of_the_embedded_redis() -> None:
    """It is asked on its own port, and by its own client."""
    (container,) = render(EMBEDDED).one("Deployment", "-redis")["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["exec"] == {"command": ["valkey-cli", "ping"]}
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["tcpSocket"] == {"port": "redis"}
