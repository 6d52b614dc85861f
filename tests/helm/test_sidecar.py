import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from keyturn.config import load

from tests.helm.charts import (
    CHART,
    EXAMPLE,
    NATIVE_SIDECARS,
    NEWEST,
    Rendered,
    copy_with_dependencies,
    refusal,
    render,
)
from tests.helm.kubelet import environment, lay_out
from tests.helm.kubernetes import check
from tests.helm.tools import tool
from tests.process import ROOT

SECRETS = {"postman-keys": {"team-a": "PMAK-a"}, "keyturn-redis": {"url": "redis://redis:6379/0"}}
KUSTOMIZE = ROOT / "deploy" / "kustomize"


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with the sidecar as one more container, for older clusters."""
    chart = copy_with_dependencies(tmp_path_factory.mktemp("plain"))
    deployment = chart / "templates" / "deployment.yaml"
    lines = deployment.read_text(encoding="utf-8").splitlines(keepends=True)
    begin = lines.index("      initContainers:\n")
    del lines[begin : begin + 2]
    lines.insert(begin + 1, '        {{- include "keyturn.plainSidecar" .Subcharts.keyturn | nindent 8 }}\n')
    deployment.write_text("".join(lines), encoding="utf-8")
    metadata = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8")) | {"kubeVersion": ">=1.25.0-0"}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    return chart


@pytest.fixture(scope="session")
def kustomized() -> Rendered:
    """The example that uses the Kustomize component."""
    return kustomize(KUSTOMIZE / "example")


def kustomize(folder: Path) -> Rendered:
    """Kustomize's output for a folder."""
    command = [tool("kubectl"), "kustomize", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return Rendered(list(yaml.safe_load_all(made.stdout)))


def sidecar(rendered: Rendered) -> Any:
    """The sidecar, wherever it stands."""
    pod = rendered.gateway
    (found,) = [one for one in [*pod.get("initContainers", []), *pod["containers"]] if one["name"] == "keyturn"]
    return found


def check_hardened(container: Any) -> None:
    """All that the restricted standard asks for stands at the container: its pod is somebody else's."""
    context = container["securityContext"]
    assert context == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_two_lines_make_a_sidecar() -> None:
    """The example's deployment includes two templates for it: the container and its volumes."""
    text = (EXAMPLE / "templates" / "deployment.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "nindent" in line and '{{- include "keyturn.' in line]
    assert len(lines) == 2, lines


def test_native_sidecar(example: Path) -> None:
    """It is an init container that always restarts: up before the application, told to end after it."""
    rendered = render(chart=example)
    container = sidecar(rendered)
    assert container in rendered.gateway["initContainers"]
    assert container["restartPolicy"] == "Always"
    assert "startupProbe" in container
    assert "lifecycle" not in container
    check_hardened(container)


def test_a_revoked_key_does_not_take_the_application_away(example: Path, plain: Path) -> None:
    """A pod is ready without Keyturn's word, unless `sidecar.readiness` asks for it; its life is watched anyway."""
    for chart in (example, plain):
        container = sidecar(render(chart=chart))
        assert "readinessProbe" not in container
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        asked = sidecar(render({"keyturn": {"sidecar": {"readiness": True}}}, chart=chart))
        assert asked["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_only_the_admin_port_is_declared(example: Path) -> None:
    """The data listener is on the loopback, where nobody outside the pod gets; probes and scraping use the other."""
    rendered = render(chart=example)
    assert rendered.config["listen"] == "127.0.0.1:8080"
    assert [port["name"] for port in sidecar(rendered)["ports"]] == ["keyturn-admin"]


def test_callers_need_no_token(example: Path, tmp_path: Path) -> None:
    """The caller is the service named in the values, and the budget is shared through Redis."""
    rendered = render(chart=example)
    container = sidecar(rendered)
    layout = lay_out(rendered.gateway, container, rendered.objects, SECRETS, tmp_path)
    environ = environment(container, rendered.objects, SECRETS)
    config = load(layout.path("/etc/keyturn/config.yaml"), environ)
    assert not config.authentication_required
    assert config.anonymous.name == "orders"
    assert config.store.url.scheme == "redis"
    assert config.has_keys


def test_callers_are_named_for_the_release(example: Path) -> None:
    """Without `sidecar.service` the release's name is who they are."""
    (service, _) = sidecar(render({"keyturn": {"sidecar": {"service": ""}}}, chart=example))["env"]
    assert service == {"name": "KEYTURN_SERVICE", "value": "shop"}


def test_grace_period_holds_both(example: Path) -> None:
    """The pod's grace period is the application's time, the drain and a margin."""
    values = {"keyturn": {"sidecar": {"applicationSeconds": 40}, "config": {"drain": "10s"}}}
    assert render(values, chart=example).gateway["terminationGracePeriodSeconds"] == 55


def test_files_are_readable_without_a_file_group(example: Path) -> None:
    """The pod's file group is the application's business, so the container's user reads the files without it."""
    for volume in render(chart=example).gateway["volumes"]:
        (source,) = [value for name, value in volume.items() if name != "name"]
        assert volume["name"] == "keyturn-tmp" or source["defaultMode"] == 0o444


def test_sidecar_mode_makes_no_gateway() -> None:
    """`mode: sidecar` makes only what sidecars share."""
    assert render(None, CHART / "ci" / "sidecar-values.yaml").kinds == {"ConfigMap", "PodMonitor"}
    assert render({"mode": "sidecar", "redis": {"embedded": True}}).kinds == {
        *("ConfigMap", "Deployment", "Service", "NetworkPolicy"),
    }


def test_sidecars_are_scraped_by_the_application_s_labels() -> None:
    """The PodMonitor looks for the application's pods."""
    values = {"mode": "sidecar", "redis": {"existingSecret": "r"}, "metrics": {"podMonitor": {"enabled": True}}}
    selector = render(values).one("PodMonitor")["spec"]["selector"]["matchLabels"]
    assert selector == {"app.kubernetes.io/instance": "shop"}
    mine = render({**values, "sidecar": {"podLabels": {"app": "orders"}}}).one("PodMonitor")
    assert mine["spec"]["selector"]["matchLabels"] == {"app": "orders"}


@pytest.mark.parametrize("version", ["1.25.0", "1.28.0", NEWEST])
def test_plain_sidecar(plain: Path, version: str) -> None:
    """As one more container it serves on for the application's time before SIGTERM, on any cluster."""
    rendered = render(chart=plain, version=version)
    container = sidecar(rendered)
    assert container in rendered.gateway["containers"]
    assert "restartPolicy" not in container
    hook = container["lifecycle"]["preStop"]
    assert hook in ({"exec": {"command": ["sleep", "20"]}}, {"sleep": {"seconds": 20}})
    check_hardened(container)
    for thing in rendered.objects:
        check(thing, version)


def test_native_sidecars_need_a_cluster_that_has_them(example: Path, tmp_path: Path) -> None:
    """On an older cluster the template says what to include instead."""
    metadata = (example / "Chart.yaml").read_text(encoding="utf-8")
    assert f">={NATIVE_SIDECARS}" in metadata
    older = copy_with_dependencies(tmp_path)
    (older / "Chart.yaml").write_text(metadata.replace(f">={NATIVE_SIDECARS}", ">=1.25.0"), encoding="utf-8")
    said = refusal({}, chart=older, version="1.28.0")
    assert "keyturn.sidecar needs Kubernetes 1.29 or newer: include keyturn.plainSidecar" in said


def test_sidecars_need_their_mode(example: Path) -> None:
    """A dependency in the gateway's mode is refused with what to write."""
    said = refusal({"keyturn": {"mode": "gateway"}}, chart=example)
    assert "A pod with a sidecar needs mode: sidecar in the values" in said


# Kustomize


def test_component_gives_a_sidecar(kustomized: Rendered) -> None:
    """A Deployment with the label gets the container, its volumes and the time to end, and keeps its own."""
    pod = kustomized.gateway
    assert [one["name"] for one in pod["containers"]] == ["orders"]
    assert sidecar(kustomized)["restartPolicy"] == "Always"
    assert sidecar(kustomized)["image"] == "registry.example.com/keyturn:0.1.0"
    check_hardened(sidecar(kustomized))


@pytest.mark.parametrize("version", [NATIVE_SIDECARS, NEWEST])
def test_component_is_valid(kustomized: Rendered, version: str) -> None:
    """The output passes Kubernetes' schemas strictly."""
    for thing in kustomized.objects:
        check(thing, version)


def test_component_is_the_chart_s_sidecar(kustomized: Rendered, example: Path) -> None:
    """The component's container and configuration are those of the chart, but for where the service's name is from."""
    theirs, ours = sidecar(kustomized), sidecar(render(chart=example))
    different = ("env", "image", "imagePullPolicy")
    assert {key: value for key, value in theirs.items() if key not in different} == {
        key: value for key, value in ours.items() if key not in different
    }
    assert [entry["name"] for entry in theirs["env"]] == [entry["name"] for entry in ours["env"]]
    assert kustomized.config == {key: value for key, value in render(chart=example).config.items() if key != "clients"}
    assert kustomized.gateway["terminationGracePeriodSeconds"] == 50
    (spool,) = [volume for volume in kustomized.gateway["volumes"] if volume["name"] == "keyturn-tmp"]
    assert spool in render(chart=example).gateway["volumes"]


def changed(folder: Path, orders: str, more: str = "") -> Rendered:
    """The example with another application, and more in its kustomization.yaml."""
    shutil.copytree(KUSTOMIZE, folder / "kustomize")
    example = folder / "kustomize" / "example"
    (example / "orders.yaml").write_text(orders, encoding="utf-8")
    with (example / "kustomization.yaml").open("a", encoding="utf-8") as file:
        file.write(more)
    return kustomize(example)


ORDERS = (KUSTOMIZE / "example" / "orders.yaml").read_text(encoding="utf-8")


def test_component_leaves_others_alone(tmp_path: Path) -> None:
    """A Deployment without the label stays as it is."""
    text = ORDERS.replace(", keyturn: sidecar", "")
    assert changed(tmp_path, text).one("Deployment") == yaml.safe_load(text)


def test_component_comes_before_the_application_s_own(tmp_path: Path) -> None:
    """Init containers of the application's own find Keyturn running; its volumes stay."""
    own = "      initContainers: [{name: migrate, image: m}]\n      volumes: [{name: mine, emptyDir: {}}]\n"
    pod = changed(tmp_path, ORDERS.replace("      containers:\n", f"{own}      containers:\n")).gateway
    assert [one["name"] for one in pod["initContainers"]] == ["keyturn", "migrate"]
    assert {"mine", "keyturn-config", "keyturn-tmp", "keyturn-keys-default"} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_component_s_time_to_end_can_be_raised(tmp_path: Path) -> None:
    """An application that takes longer says so by a patch, as the component's comment tells."""
    text = (KUSTOMIZE / "sidecar" / "kustomization.yaml").read_text(encoding="utf-8")
    patch = "".join(line.removeprefix("#   ") for line in text.splitlines(keepends=True) if line.startswith("#   "))
    assert changed(tmp_path, ORDERS, patch).gateway["terminationGracePeriodSeconds"] == 120
