import re
from typing import Any

import pytest
from keyturn.app.resolved_config import FIXED_SETTINGS

from tests.helm.charts import CHART, CI, RELEASE, refusal, render

NAME = f"{RELEASE}-keyturn"
REDIS = {"redis": {"existingSecret": "keyturn-redis"}}
EVERYTHING = CHART / "ci" / "everything-values.yaml"


def mounts(container: Any) -> dict[str, str]:
    """The container's volumes by the path at which they stand."""
    return {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}


def volumes(pod: Any) -> dict[str, Any]:
    """The pod's volumes by name."""
    return {volume["name"]: volume for volume in pod["volumes"]}


# The pod


@pytest.mark.parametrize("values", CI, ids=lambda path: path.name.removesuffix("-values.yaml"))
def test_restricted_throughout(values: Any) -> None:
    """Every container of every pod is as the restricted Pod Security Standard wants it, without a token."""
    rendered = render(None, values)
    pods = [one["spec"]["template"]["spec"] for one in rendered.all("Deployment")]
    pods += [one["spec"] for one in rendered.all("Pod")]
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["runAsUser"] == context["runAsGroup"] == pod["securityContext"]["runAsUser"] > 0
            assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert "cpu" not in container["resources"]["limits"]


def test_probes_ask_the_admin_port() -> None:
    """Startup and liveness ask for life, readiness for service, none of them at the port for callers."""
    container = render().container
    paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: get["path"] for name, get in paths.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {get["port"] for get in paths.values()} == {"keyturn-admin"}


def test_numbers_of_a_probe() -> None:
    """`probes` changes the numbers of a probe and keeps what it does not name."""
    probe = render({"probes": {"startup": {"failureThreshold": 300}}}).container["startupProbe"]
    assert (probe["failureThreshold"], probe["periodSeconds"]) == (300, 1)


@pytest.mark.parametrize(
    ("drain", "seconds"),
    [("25s", 35), ("1m", 70), ("1500ms", 12), ("999ms", 11), ("0s", 10), ("2h", 7210), ("1d", 86410)],
)
def test_grace_period_follows_the_drain(drain: str, seconds: int) -> None:
    """The kubelet waits for 5 s of lame duck, the drain in whole seconds and a margin."""
    assert render({"config": {"drain": drain}}).gateway["terminationGracePeriodSeconds"] == seconds


def test_grace_period_follows_its_other_parts() -> None:
    """`config.lame_duck` and `graceMarginSeconds` are added."""
    values = {"graceMarginSeconds": 7, "config": {"lame_duck": "20s", "drain": "3s"}}
    assert render(values).gateway["terminationGracePeriodSeconds"] == 30


def test_no_hook_delays_the_end() -> None:
    """That the pod serves on until every node has noticed is the application's part, in every version of Kubernetes."""
    assert "lifecycle" not in render().container
    assert render().config["lame_duck"] == "5s"


def checksum(values: Any) -> Any:
    """Values whose change makes new pods."""
    return render(values).one("Deployment", NAME)["spec"]["template"]["metadata"]["annotations"]["checksum/config"]


def test_configuration_changes_start_new_pods() -> None:
    """The checksum follows `config` and `redis`; the Secret of the keys does not count, for it is read again."""
    keys = {"keys": {"default": {"values": {"a": "one"}}}}
    assert checksum({}) != checksum({"config": {"drain": "26s"}})
    assert checksum({"redis": {"url": "redis://a"}}) != checksum({"redis": {"url": "redis://b"}})
    assert checksum(keys) == checksum({"keys": {"default": {"values": {"a": "two"}}}})


OTHER: dict[str, Any] = {
    "listen": "0.0.0.0:7000",
    "admin": "0.0.0.0:7001",
    "inbound.socket_mode": "0600",
    "strict_certificates": True,
    "upstream.url": "https://other.example",
    "upstream.key_header": "X-Other",
    "upstream.key_query": "other",
    "upstream.max_connections": 7,
    "upstream.settle_bound": "7s",
    "store.url": "redis://other",
    "store.username": "other",
    "store.password": "${OTHER}",
    "store.password_file": "/run/other",
    "store.sentinel_username": "other",
    "store.sentinel_password": "${OTHER}",
    "store.sentinel_password_file": "/run/other",
    "store.prefix": "other",
    "store.timeout": "7s",
    "store.on_loss": "wait",
    "log.format": "text",
    "traces.endpoint": "http://other:4318/v1/traces",
    "traces.sample": 0.5,
}


def test_changes_that_need_new_pods() -> None:
    """With `restartOnChange: needed` those count that the application itself refuses to reload, and no others."""
    assert set(OTHER) == set(FIXED_SETTINGS)
    needed = {"restartOnChange": "needed"}
    for path, value in OTHER.items():
        section, _, name = path.partition(".")
        assert checksum({**needed, "config": {section: {name: value} if name else value}}) != checksum(needed), path
    assert checksum({**needed, "tls": {"existingSecret": "cert"}}) != checksum(needed)
    for change in (
        {"clients": [{"name": "a", "token_sha256": "0" * 64}]},
        {"pools": {"default": {"limits": [{"requests": 1, "window": "1s"}]}}},
        {"queue": {"max_wait": "1s"}, "log": {"level": "debug"}},
    ):
        assert checksum({**needed, "config": change}) == checksum(needed), change
        assert checksum({"config": change}) != checksum({}), change


def test_image_by_tag_and_by_digest() -> None:
    """The tag is the chart's version unless given; a digest counts before it."""
    digest = "sha256:" + "0" * 64
    assert render().container["image"].startswith("keyturn:0.")
    assert render({"image": {"repository": "r.example/k", "tag": "7"}}).container["image"] == "r.example/k:7"
    assert render({"image": {"tag": "7", "digest": digest}}).container["image"] == f"keyturn@{digest}"


def test_extras_reach_the_pod() -> None:
    """Environment, volumes, mounts, labels, annotations and objects of the user's own are put in as they are."""
    rendered = render(None, EVERYTHING)
    metadata = rendered.one("Deployment")["spec"]["template"]["metadata"]
    assert [entry["name"] for entry in rendered.container["env"]] == ["KEYTURN_STORE_URL", "ADMIN_TOKEN"]
    assert rendered.container["envFrom"] == [{"secretRef": {"name": "keyturn-tokens"}}]
    assert mounts(rendered.container)["/etc/company-ca"] == "ca"
    assert volumes(rendered.gateway)["ca"] == {"name": "ca", "configMap": {"name": "company-ca"}}
    assert metadata["labels"]["tier"] == "edge"
    assert metadata["annotations"]["example.com/note"] == "yes"
    assert rendered.one("ConfigMap", "-extra")["data"] == {"release": RELEASE}


def test_one_pod_has_no_environment_of_its_own() -> None:
    """Without Redis and extras nothing is in the environment, and no link to other Services."""
    rendered = render()
    assert "env" not in rendered.container
    assert rendered.gateway["enableServiceLinks"] is False


# Where pods run


@pytest.mark.parametrize(
    ("spread", "affinity", "zones"),
    [
        ("soft", "preferredDuringSchedulingIgnoredDuringExecution", 1),
        ("hard", "requiredDuringSchedulingIgnoredDuringExecution", 1),
        ("off", None, 0),
    ],
)
def test_spread(spread: str, affinity: str | None, zones: int) -> None:
    """Pods prefer, demand, or do not care for, a node of their own."""
    pod = render({"spread": spread}).gateway
    assert len(pod.get("topologySpreadConstraints", [])) == zones
    assert list(pod.get("affinity", {}).get("podAntiAffinity", {})) == ([affinity] if affinity else [])


def test_own_affinity_and_constraints() -> None:
    """`affinity` and `topologySpreadConstraints` take the place of the chart's."""
    mine: dict[str, Any] = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}
    pod = render({"affinity": mine, "topologySpreadConstraints": [{"maxSkew": 2}]}).gateway
    assert (pod["affinity"], pod["topologySpreadConstraints"]) == (mine, [{"maxSkew": 2}])


def test_strategy_of_shared_tokens() -> None:
    """With Redis a new pod is ready before an old one ends."""
    strategy = render(REDIS).one("Deployment")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_strategy_of_the_memory_store() -> None:
    """Without, the old pod ends before the new one starts: two at once would spend twice."""
    assert render().one("Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_own_strategy() -> None:
    """`strategy` takes the place of either."""
    assert render({"strategy": {"type": "Recreate"}, **REDIS}).one("Deployment")["spec"]["strategy"] == {
        "type": "Recreate"
    }


# Objects beside the pod


@pytest.mark.parametrize(
    ("values", "there"),
    [
        ({}, False),
        ({"replicas": 2}, True),
        ({"autoscaling": {"enabled": True}}, True),
        ({"autoscaling": {"enabled": True, "minReplicas": 1}}, False),
        ({"replicas": 2, "podDisruptionBudget": {"enabled": False}}, False),
    ],
)
def test_disruption_budget_needs_more_than_one_pod(values: dict[str, Any], there: bool) -> None:
    """With one pod it would only keep nodes from being emptied."""
    assert ("PodDisruptionBudget" in render({**values, **REDIS}).kinds) is there


def test_autoscaling_is_by_waiting() -> None:
    """The autoscaler owns the number of pods, and looks at the time that callers wait."""
    rendered = render({"autoscaling": {"enabled": True, "target": "3"}, **REDIS})
    (metric,) = rendered.one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "keyturn_estimated_wait_seconds"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "3"}
    assert "replicas" not in rendered.one("Deployment")["spec"]
    assert "HorizontalPodAutoscaler" not in render(REDIS).kinds


def test_service_account() -> None:
    """One without a token is made, or one that exists is used."""
    assert render().one("ServiceAccount")["automountServiceAccountToken"] is False
    assert render().gateway["serviceAccountName"] == NAME
    other = render({"serviceAccount": {"create": False, "name": "mine"}})
    assert ("ServiceAccount" in other.kinds, other.gateway["serviceAccountName"]) == (False, "mine")
    assert render({"serviceAccount": {"create": False}}).gateway["serviceAccountName"] == "default"


def test_service_leads_to_the_gateway() -> None:
    """The Service selects the gateway's pods and no other, and has no admin port."""
    rendered = render({"redis": {"embedded": True}})
    spec = rendered.one("Service", NAME)["spec"]
    labels = rendered.one("Deployment", NAME)["spec"]["template"]["metadata"]["labels"]
    redis = rendered.one("Deployment", "-redis")["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"].items() <= labels.items()
    assert not spec["selector"].items() <= redis.items()
    assert [(port["port"], port["targetPort"]) for port in spec["ports"]] == [(80, "keyturn")]


def test_ports_follow_the_configuration() -> None:
    """The ports of `listen` and `admin` are declared; the first address reachable by TCP counts."""
    listen = ["unix:/run/keyturn/socket", "0.0.0.0:7000", "0.0.0.0:7001"]
    ports = render({"config": {"listen": listen, "admin": "[::]:7009"}}).container["ports"]
    assert {port["name"]: port["containerPort"] for port in ports} == {"keyturn": 7000, "keyturn-admin": 7009}


def test_ports_of_listeners_that_expect_the_proxy_protocol() -> None:
    """They are declared as others are; the release's own test is content with a connection that is closed."""
    listen = [{"address": "0.0.0.0:8443", "proxy_protocol": True}]
    values = {"config": {"listen": listen, "inbound": {"trusted_proxies": ["10.0.0.0/8"]}}}
    rendered = render(values)
    assert rendered.container["ports"][0]["containerPort"] == 8443
    assert "ConnectionResetError" in str(rendered.one("Pod")["spec"])
    assert "ConnectionResetError" not in str(render({}).one("Pod")["spec"])


def test_ingress_and_route() -> None:
    """Both are off unless asked for, and lead to the Service."""
    assert not {"Ingress", "HTTPRoute"} & render().kinds
    rendered = render({"ingress": {"enabled": True, "host": "a.example"}})
    (path,) = rendered.one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"] == {"service": {"name": NAME, "port": {"name": "http"}}}
    route = render({"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}}).one("HTTPRoute")
    assert route["spec"]["rules"] == [{"backendRefs": [{"name": NAME, "port": 80}]}]


def test_tls() -> None:
    """A Secret with a certificate makes the listener speak TLS, and names the Service's port so."""
    rendered = render({"tls": {"existingSecret": "cert", "clientCa": True}})
    folder = "/run/keyturn/tls"
    assert rendered.config["tls"] == {
        "cert": f"{folder}/tls.crt",
        "key": f"{folder}/tls.key",
        "client_ca": f"{folder}/ca.crt",
    }
    assert volumes(rendered.gateway)[mounts(rendered.container)[folder]]["secret"]["secretName"] == "cert"
    assert rendered.one("Service")["spec"]["ports"][0]["name"] == "https"
    assert rendered.one("Pod")["spec"]["containers"][0]["env"][0]["value"].startswith("https://")


# Network policy


def test_network_policy_of_the_gateway() -> None:
    """In come callers and the scraper, out go DNS, the upstream and Redis, each by its port."""
    policy = render(REDIS).one("NetworkPolicy")["spec"]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["ingress"]] == [[8080], [9090]]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["egress"]] == [[53, 53], [443], [6379, 26379]]
    assert "from" not in policy["ingress"][0]
    assert policy["ingress"][1]["from"] == [{"namespaceSelector": {}}]


def test_network_policy_of_named_callers() -> None:
    """With `callers` only those get in, and the release's own test."""
    policy = render(None, EVERYTHING).one("NetworkPolicy")["spec"]
    data, admin = policy["ingress"]
    assert data["from"][0] == {"namespaceSelector": {"matchLabels": {"postman": "allowed"}}}
    assert data["from"][1]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"
    assert admin["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    ports = [[port["port"] for port in rule["ports"]] for rule in policy["egress"]]
    assert ports == [[53, 53], [8443], [6379, 26379, 6380], [3128]]


def egress(values: dict[str, Any]) -> list[list[int]]:
    """The ports that the gateway's policy lets out to, rule by rule, behind DNS."""
    (dns, *others) = render(values).one("NetworkPolicy")["spec"]["egress"]
    assert dns == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    return [[port["port"] for port in rule["ports"]] for rule in others]


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("redis://user:5ecret@r:6390/0", [6379, 26379, 6390]),
        ("redis+sentinel://a:7001,b:7002/service", [6379, 26379, 7001, 7002]),
        ("rediss://r", [6379, 26379]),
        ("redis://[fd00::6390]:6391?x=1", [6379, 26379, 6391]),
    ],
)
def test_network_policy_knows_the_ports_of_redis(url: str, ports: list[int]) -> None:
    """Wherever the values name the URL, its ports are let out to."""
    assert egress({"redis": {"url": url}}) == [[443], ports]
    assert egress({"config": {"store": {"url": url}}}) == [[443], ports]


def test_network_policy_knows_the_ports_of_the_web() -> None:
    """The upstream's port and those at which issuers of callers' tokens tell their keys are let out to."""
    jwt = {"audience": "a", "subject": "s"}
    clients = [
        {"name": "a", "jwt": {"issuer": "https://a.example", **jwt}},
        {"name": "b", "jwt": {"issuer": "https://b.example:8443/realm", **jwt}},
        {"name": "c", "jwt": {"issuer": "https://c.example:1", "jwks_url": "https://c.example:9443/keys", **jwt}},
        {"name": "d", "jwt": {"issuer": "https://d.example:2", "jwks_file": "/etc/jwks", **jwt}},
        {"name": "e", "token": "${E}"},
    ]
    upstream = {"url": "https://[fd00::1]:7443/"}
    assert egress({"config": {"upstream": upstream, "clients": clients}}) == [[7443, 443, 8443, 9443]]
    assert egress({"config": {"upstream": {"url": "https://[fd00::1]/"}}}) == [[443]]
    assert egress({"config": {"traces": {"endpoint": "http://collector:4318/v1/traces"}}}) == [[443, 4318]]
    assert egress({"config": {"traces": {"endpoint": "http://collector/v1/traces"}}}) == [[443, 80]]


def test_network_policy_off() -> None:
    """`networkPolicy.enabled: false` makes none."""
    assert "NetworkPolicy" not in render({"networkPolicy": {"enabled": False}}).kinds


def test_network_policy_without_redis() -> None:
    """The memory store needs no way to Redis."""
    assert len(render().one("NetworkPolicy")["spec"]["egress"]) == 2


# What is refused


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"replicas": 2}, "More than one replica needs a shared store"),
        ({"replicas": 2, "config": {"store": {"url": "memory://"}}}, "More than one replica needs a shared store"),
        ({"autoscaling": {"enabled": True}}, "More than one replica needs a shared store"),
        (
            {"redis": {"embedded": True, "url": "redis://r:6379"}},
            "redis.url, redis.existingSecret and redis.embedded exclude each other",
        ),
        (
            {"redis": {"existingSecret": "s", "url": "redis://r:6379"}},
            "redis.url, redis.existingSecret and redis.embedded exclude each other",
        ),
        ({"config": {"store": {"url": "redis://r:6379"}}, **REDIS}, "config.store.url and redis both name a store"),
        (
            {"keys": {"default": {"existingSecret": "s", "values": {"a": "b"}}}},
            "keys.default has both existingSecret and values",
        ),
        ({"keys": {"b": {"existingSecret": "s"}}}, "keys.b has no pool of that name"),
        (
            {"config": {"pools": {"team-b": {}, "Team_B": {}}}},
            "The pool name config.pools.team-b is empty or equal to another one as a Kubernetes name",
        ),
        ({"config": {"listen": "127.0.0.1:8080"}}, "config.listen is loopback"),
        ({"config": {"listen": ["unix:/a", "localhost:1"]}}, "config.listen is loopback"),
        ({"config": {"listen": "${LISTEN}"}}, "config.listen and config.admin need ports that are written out"),
        ({"config": {"admin": "127.0.0.1:9090"}}, "config.admin must be reachable"),
        ({"config": {"admin": "0.0.0.0:8080"}}, "config.listen and config.admin have the same port"),
        ({"config": {"authentication": "off"}}, "config.authentication is off on a network listener"),
        ({"config": {"drain": "${DRAIN:-25s}"}}, "config.drain must be a plain duration"),
        ({"config": {"lame_duck": "${LAME:-5s}"}}, "config.lame_duck must be a plain duration"),
        ({"tls": {"clientCa": True}}, "tls.clientCa needs tls.existingSecret"),
        (
            {"tls": {"existingSecret": "s"}, "config": {"tls": {"cert": "a", "key": "b"}}},
            "tls.existingSecret and config.tls are both given",
        ),
        ({"ingress": {"enabled": True}}, "ingress.enabled needs ingress.host"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.enabled needs httpRoute.parentRefs"),
        (
            {"autoscaling": {"enabled": True, "minReplicas": 9}, **REDIS},
            "autoscaling.minReplicas is more than autoscaling.maxReplicas",
        ),
        ({"mode": "sidecar"}, "Each pod with a sidecar is a replica, and without a shared store"),
        (
            {"mode": "sidecar", "config": {"listen": "0.0.0.0:8080"}, **REDIS},
            "config.listen of a sidecar must be loopback",
        ),
        (
            {"mode": "sidecar", "ingress": {"enabled": True, "host": "a"}, **REDIS},
            "ingress.enabled needs mode: gateway",
        ),
    ],
)
def test_values_that_do_not_go_together(values: dict[str, Any], sentence: str) -> None:
    """Nothing is rendered, and a sentence says what to change."""
    said = refusal(values)
    assert sentence in said
    assert re.search(r"[a-z0-9]\.$", said.strip().split("\n")[0]), said


def test_every_sentence_has_a_test() -> None:
    """Each `fail` of the templates is provoked by a test of this package."""
    texts = "".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").glob("*.tpl"))
    tests = "".join(path.read_text(encoding="utf-8") for path in (CHART.parent.parent / "tests/helm").glob("test_*.py"))
    sentences = re.findall(r'fail \(?(?:printf )?"([^"]+)"', texts)
    assert len(sentences) > 15
    for sentence in sentences:
        words = [part for part in re.split(r"%s\.?", sentence) if len(part) > 10]
        assert any(part[:24].strip() in tests for part in words), sentence


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"replica": 2}, "replica"),
        ({"image": {"repo": "a"}}, "repo"),
        ({"config": {"lisen": "0.0.0.0:80"}}, "lisen"),
        ({"config": {"clients": [{"name": "a", "wait": 1}]}}, "wait"),
        ({"config": {"drain": 25}}, "drain"),
        ({"config": {"authentication": False}}, "authentication"),
        ({"replicas": "2"}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"fullnameOverride": "1.keyturn"}, "fullnameOverride"),
        ({"resources": {"limit": {}}}, "limit"),
        ({"resources": {"limits": {"memory": "much"}}}, "memory"),
        ({"strategy": {"type": "Now"}}, "strategy"),
        ({"mode": "daemon"}, "mode"),
        ({"service": {"port": 70000}}, "port"),
        ({"redis": {"url": "http://r"}}, "url"),
        ({"redis": {"urls": "redis://r"}}, "urls"),
        ({"image": {"digest": "md5:0"}}, "digest"),
        ({"spread": "maybe"}, "spread"),
        ({"userId": 0}, "userId"),
        ({"keys": {"default": {"values": {"a": "two words"}}}}, "values"),
        ({"keys": {"a pool": {}}}, "a pool"),
        ({"keys": {"default": {"secret": "a"}}}, "secret"),
        ({"metrics": {"podMonitor": {"interval": "soon"}}}, "interval"),
        ({"metrics": {"rules": {"fewUsableKeys": 1}}}, "fewUsableKeys"),
        ({"extraEnv": {"A": "b"}}, "extraEnv"),
    ],
)
def test_bad_values_are_refused_by_the_schema(values: dict[str, Any], path: str) -> None:
    """A name that there is not, and a value of another kind, is refused with its path."""
    said = refusal(values)
    assert "values don't meet the specifications of the schema" in said
    assert path in said
