"""`keyturn check` before an installation or upgrade: a hook with copies of what the release is about to have."""

from pathlib import Path
from typing import Any

import pytest

from tests.helm import kubelet
from tests.helm.charts import BEFORE, CHART, CI, Rendered, hook_events, named, refusal, render

EVERYTHING = CHART / "ci" / "everything-values.yaml"
DIGEST = "2f916238cbb91954e900ed5923872a587e00b20ef5c65cfeed39cd5285a74ae5"
SECRETS = {
    "postman-keys": {"team-a": "PMAK-a"},
    "keys-of-team-b": {"shared-1": "PMAK-1", "shared-2": "PMAK-2"},
    "gateway-tls": {"tls.crt": "certificate", "tls.key": "key", "ca.crt": "authority"},
    "company-ca": {"ca.pem": "authority"},
    "keyturn-redis": {"url": "redis://redis:6379/0"},
    "keyturn-tokens": {
        "admin": "tok-admin-1c6f",
        "B_TOKEN": "tok-b-5d2e8a",
        "CRAWLER_TOKEN": "tok-crawler-9b",
        "ADMIN_TOKEN": "tok-admin-1c6f",
    },
}


def job(rendered: Rendered) -> Any:
    """The Job of the check."""
    (found,) = [thing for thing in rendered.hooks if thing["kind"] == "Job"]
    return found


def copies(rendered: Rendered) -> dict[tuple[str, str], Any]:
    """The other objects of the hook, by kind and name."""
    return {(thing["kind"], thing["metadata"]["name"]): thing for thing in rendered.hooks if thing["kind"] != "Job"}


# The objects


@pytest.mark.parametrize("values", CI, ids=named)
def test_the_check_has_copies_of_what_the_chart_makes(values: Path) -> None:
    """The same contents under names of their own, made before the Job and removed with it."""
    rendered = render(None, values)
    made = {
        (thing["kind"], thing["metadata"]["name"]): thing["data"]
        for kind in ("ConfigMap", "Secret")
        for thing in rendered.all(kind)
        if not thing["metadata"]["name"].endswith(("-extra", "-dashboards"))
    }
    found = {(kind, name.replace("-check", "")): thing["data"] for (kind, name), thing in copies(rendered).items()}
    assert found == made
    assert not {name for _, name in made} & {name for _, name in copies(rendered)}
    weights = {thing["kind"]: int(thing["metadata"]["annotations"]["helm.sh/hook-weight"]) for thing in rendered.hooks}
    assert max(weights[kind] for kind, _ in copies(rendered)) < weights["Job"]
    for thing in rendered.hooks:
        assert hook_events(thing) == BEFORE
        policy = thing["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        assert policy == "before-hook-creation,hook-succeeded"


@pytest.mark.parametrize("values", CI, ids=named)
def test_the_job_refers_to_nothing_of_the_release(values: Path) -> None:
    """Before an installation none of its objects is there, and before an upgrade they are old."""
    rendered = render(None, values)
    pod = job(rendered)["spec"]["template"]["spec"]
    names = {name for _, name in copies(rendered)} | set(SECRETS)
    for volume in pod["volumes"]:
        for source, key in (("configMap", "name"), ("secret", "secretName")):
            assert source not in volume or volume[source][key] in names or volume[source]["optional"]
    for entry in pod["containers"][0].get("env", []):
        if "valueFrom" in entry:
            assert entry["valueFrom"]["secretKeyRef"]["name"] in names
    account = pod["serviceAccountName"]
    assert account not in {thing["metadata"]["name"] for thing in rendered.all("ServiceAccount")}


@pytest.mark.parametrize("values", CI, ids=named)
def test_the_job_is_as_restricted_as_the_gateway(values: Path) -> None:
    """It runs once, without a token of the cluster, and no Service or policy takes it for a gateway."""
    rendered = render(None, values)
    spec = job(rendered)["spec"]
    pod = spec["template"]["spec"]
    assert (spec["backoffLimit"], pod["restartPolicy"], pod["automountServiceAccountToken"]) == (0, "Never", False)
    assert spec["activeDeadlineSeconds"] < 300
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    assert spec["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "check"


def test_the_job_reads_what_the_gateway_reads() -> None:
    """The container has the gateway's image, variables, mounts and nodes."""
    rendered = render(None, EVERYTHING)
    pod = job(rendered)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for name in ("image", "imagePullPolicy", "envFrom", "volumeMounts", "securityContext"):
        assert container[name] == rendered.container[name], name
    for name in ("nodeSelector", "tolerations", "imagePullSecrets", "securityContext"):
        assert pod[name] == rendered.gateway[name], name
    assert [entry["name"] for entry in container["env"]] == [entry["name"] for entry in rendered.container["env"]]


def test_a_service_account_that_exists_is_used() -> None:
    """One that the chart makes is not there yet, so the check has the namespace's own."""
    given = {"serviceAccount": {"create": False, "name": "mine"}}
    accounts = [job(render(values))["spec"]["template"]["spec"]["serviceAccountName"] for values in ({}, given)]
    assert accounts == ["default", "mine"]


@pytest.mark.parametrize("values", CI, ids=named)
def test_the_check_can_be_switched_off(values: Path) -> None:
    """Then there is no hook, and everything else is as it was."""
    without = render({"check": {"enabled": False}}, values)
    assert without.hooks == []
    assert without.objects == render(None, values).objects


@pytest.mark.parametrize(
    ("annotations", "uses", "events"),
    [
        ({}, {}, BEFORE),
        ({}, {"envFrom": [{"secretRef": {"name": "shop-extra"}}]}, {"pre-upgrade"}),
        ({}, {"extraVolumes": [{"name": "a", "secret": {"secretName": "shop-extra"}}]}, {"pre-upgrade"}),
        ({}, {"keys": {"default": {"existingSecret": "shop-extra"}}}, {"pre-upgrade"}),
        ({"helm.sh/hook": "pre-install"}, {"envFrom": [{"secretRef": {"name": "shop-extra"}}]}, BEFORE),
    ],
)
def test_objects_of_the_user_s_own_come_after_the_check(
    annotations: dict[str, str], uses: dict[str, Any], events: set[str]
) -> None:
    """A pod that needs one could not start before an installation, so only upgrades are checked."""
    own = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "{{ .Release.Name }}-extra", "annotations": annotations},
    }
    assert hook_events(job(render({"extraObjects": [own], **uses}))) == events


# What it finds


async def check(rendered: Rendered, secrets: kubelet.Secrets, place: Path) -> tuple[int, str]:
    """Run the Job's container: its exit code and what it says of problems."""
    pod = job(rendered)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    layout = kubelet.lay_out(pod, container, rendered.hooks, secrets, place / "root")
    words = [layout.text(word) for word in (*container["command"], *container["args"])]
    environ = kubelet.environment(container, rendered.hooks, secrets)
    process = await kubelet.start(words, environ, container["securityContext"], place)
    try:
        code = await process.ended()
    finally:
        await process.end()
    return code, process.stderr


@pytest.mark.parametrize("values", CI, ids=named)
async def test_good_values_pass(values: Path) -> None:
    """The container of the Job finds all that it needs, and needs neither Redis nor the upstream."""
    plain = {"tls": {"existingSecret": "", "clientCa": False}}  # its Secret holds no real certificate here
    with kubelet.folder() as place:
        code, said = await check(render(plain, values), SECRETS, place)
    assert code == 0, said


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"config": {"clients": [{"name": name, "token_sha256": DIGEST} for name in ("a", "b")]}},
            "clients[1]",
        ),
        ({"redis": {"existingSecret": "forgotten"}}, "KEYTURN_STORE_URL"),
        ({"tls": {"existingSecret": "forgotten"}}, "tls.cert"),
    ],
)
async def test_bad_values_fail_with_their_problems(values: dict[str, Any], problem: str) -> None:
    """A problem that no schema detects ends the Job, and so the release, before anything has changed."""
    with kubelet.folder() as place:
        code, said = await check(render(values), {}, place)
    assert code != 0
    assert problem in said


# What needs no Job


@pytest.mark.parametrize("nothing", [{}, {"weight": 2}])
def test_a_client_without_a_credential_is_not_rendered(nothing: dict[str, Any]) -> None:
    """It could never call, and the pods would not start."""
    said = refusal({"config": {"clients": [{"name": "ci", **nothing}]}})
    assert "The client ci of config.clients has no credential" in said


@pytest.mark.parametrize(
    "credential",
    [{"token": "${T}"}, {"token_sha256": DIGEST}, {"certificate": {"san": "a.example"}}],
)
def test_a_client_with_a_credential_is_rendered(credential: dict[str, Any]) -> None:
    """Any of them will do, and none is needed where callers are not asked for one."""
    assert render({"config": {"clients": [{"name": "ci", **credential}]}}).config["clients"]
    nobody = {"authentication": "off", "allow_anonymous_network": True, "clients": [{"name": "ci"}]}
    assert render({"config": nobody}).config["clients"] == [{"name": "ci"}]
