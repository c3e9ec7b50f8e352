"""The kustomize base, built by the real tool and read as the API server would get it."""

import base64
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.apiserver import ApiServer
from support.pages import blocks
from support.services import require_tool

BASE = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "base"
OWN_LABEL = {"app.kubernetes.io/name": "pmwatch"}

pytestmark = pytest.mark.service("kubectl")


OVERLAYS = sorted(path.parent.name for path in BASE.parent.glob("overlays/*/kustomization.yaml"))
NEWEST = ("1.35", "1.36", "1.37")


@cache
def manifest(directory: Path) -> str:
    """Return what kustomize makes of a directory."""
    kubectl = require_tool("kubectl", "the Kubernetes release (Debian's kubernetes-client is too old)")
    words = [kubectl, "kustomize", str(directory)]
    made = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    return made.stdout


@cache
def built(overlay: str = "") -> dict[str, Any]:
    """Return every object of the base or of an overlay by "Kind/name", without a cluster."""
    directory = BASE.parent / "overlays" / overlay if overlay else BASE
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in yaml.safe_load_all(manifest(directory))}


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = built()["Deployment/pmwatch"]["spec"]["template"]["spec"]
    return spec


def sidecar() -> dict[str, Any]:
    (container,) = pod()["initContainers"]
    assert isinstance(container, dict)
    return container


def config() -> dict[str, Any]:
    (generated,) = (item for name, item in built().items() if name.startswith("ConfigMap/pmwatch-config-"))
    return tomllib.loads(generated["data"]["config.toml"])


def seconds(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([smh])", duration).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def test_there_is_one_of_each_and_no_key_among_them() -> None:
    kinds = sorted(name.partition("/")[0] for name in built())
    assert kinds == [
        "ConfigMap",
        "Deployment",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "PersistentVolumeClaim",
    ]


def test_pmwatch_is_a_native_sidecar_that_drains() -> None:
    assert sidecar()["restartPolicy"] == "Always"
    assert sidecar()["args"] == ["run", "--config", "/etc/pmwatch/config.toml", "--drain"]
    assert [container["name"] for container in pod()["containers"]] == ["writer"]


def test_only_one_pod_ever_has_the_ledger() -> None:
    spec = built()["Deployment/pmwatch"]["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_the_grace_period_covers_the_drain() -> None:
    drain_seconds = seconds(config()["delivery"]["drain_timeout"])
    assert pod()["terminationGracePeriodSeconds"] >= drain_seconds + 10


@pytest.mark.parametrize("kind", ["initContainers", "containers"])
def test_every_container_is_locked_down_and_bounded(kind: str) -> None:
    for container in pod()[kind]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]) == {"requests", "limits"}
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False


def test_writer_and_pmwatch_share_a_user_so_that_read_leases_work() -> None:
    assert pod()["securityContext"]["runAsUser"] == 10001
    assert [c for c in (*pod()["containers"], sidecar()) if "runAsUser" in c["securityContext"]] == []


def test_no_service_puts_variables_where_settings_are_read() -> None:
    assert pod()["enableServiceLinks"] is False


def test_a_rotated_key_arrives_without_a_restart() -> None:
    mounts = {mount["name"]: mount for mount in sidecar()["volumeMounts"]}
    assert [name for name, mount in mounts.items() if "subPath" in mount] == []
    assert Path(config()["tenants"][0]["api_key_file"]).parent == Path(mounts["keys"]["mountPath"])


def test_what_the_configuration_names_is_mounted() -> None:
    mounts = {mount["mountPath"] for mount in sidecar()["volumeMounts"]}
    assert config()["state"]["dir"] in mounts
    assert all(str(Path(folder["path"]).parent) in mounts for folder in config()["folders"])
    assert {mount["name"] for c in (*pod()["containers"], sidecar()) for mount in c["volumeMounts"]} == {
        volume["name"] for volume in pod()["volumes"]
    }


def test_the_probes_ask_the_port_that_pmwatch_listens_on() -> None:
    (port,) = sidecar()["ports"]
    assert config()["http"]["listen"] == f"0.0.0.0:{port['containerPort']}"
    paths = {name: sidecar()[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert {sidecar()[name]["httpGet"]["port"] for name in paths} == {port["name"]}


def test_the_network_policy_holds_for_this_pod_and_reaches_the_clusters_dns() -> None:
    policy = built()["NetworkPolicy/pmwatch"]["spec"]
    assert policy["podSelector"] == {"matchLabels": OWN_LABEL}
    assert built()["Deployment/pmwatch"]["spec"]["template"]["metadata"]["labels"] == OWN_LABEL
    dns, https = policy["egress"]
    assert dns["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert {port["port"] for port in dns["ports"]} == {53}
    assert [port["port"] for port in https["ports"]] == [443]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [9108]


def test_pmwatch_accepts_the_configuration() -> None:
    command = [sys.executable, "-m", "pmwatch", "check", "--config", str(BASE / "config.toml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


# ---- the overlays -------------------------------------------------------------------------------------------------


def pod_of(overlay: str) -> dict[str, Any]:
    """Return the Pod of an overlay's Deployment or CronJob."""
    objects = built(overlay)
    job = objects.get("CronJob/pmwatch-export")
    spec = (job["spec"]["jobTemplate"] if job else objects["Deployment/pmwatch"])["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def containers_of(overlay: str) -> dict[str, Any]:
    pod = pod_of(overlay)
    return {one["name"]: one for one in [*pod.get("initContainers", []), *pod["containers"]]}


@pytest.mark.service("kubernetes-validate")
@pytest.mark.parametrize("overlay", ["", *OVERLAYS])
@pytest.mark.parametrize("version", NEWEST)
def test_the_newest_kubernetes_accept_it(overlay: str, version: str, tmp_path: Path) -> None:
    tool = require_tool("kubernetes-validate", "the Python package kubernetes-validate")
    path = tmp_path / "all.yaml"
    path.write_text(manifest(BASE.parent / "overlays" / overlay if overlay else BASE))
    done = subprocess.run(
        [tool, "--strict", "-k", version, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_is_locked_down_keeps_the_ledger_and_has_one_workload(overlay: str) -> None:
    objects, pod = built(overlay), pod_of(overlay)
    assert len([name for name in objects if name.startswith(("Deployment/", "CronJob/", "Job/"))]) == 1
    assert {"PersistentVolumeClaim/pmwatch-drop", "PersistentVolumeClaim/pmwatch-state"} < objects.keys()
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["enableServiceLinks"]
    assert not pod["automountServiceAccountToken"]
    for container in containers_of(overlay).values():
        assert container["securityContext"] == sidecar()["securityContext"]
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    pmwatch = containers_of(overlay)["pmwatch"]
    assert pmwatch["volumeMounts"] == sidecar()["volumeMounts"]
    assert pmwatch["resources"] == sidecar()["resources"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes["keys"]["secret"]["secretName"] == "pmwatch-keys"
    assert volumes["config"]["configMap"]["name"] in {name.partition("/")[2] for name in objects}
    grace = seconds(config()["delivery"]["drain_timeout"]) + 10
    assert pod["terminationGracePeriodSeconds"] >= grace


def test_watching_a_volume_needs_no_writer() -> None:
    pod = pod_of("watch")
    assert [one["name"] for one in pod["containers"]] == ["pmwatch"]
    assert "initContainers" not in pod
    assert "restartPolicy" not in pod["containers"][0]
    assert pod["containers"][0]["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert built("watch")["Deployment/pmwatch"]["spec"]["strategy"] == {"type": "Recreate"}


def test_partners_reach_the_sftp_server_and_nothing_else() -> None:
    objects = built("sftp")
    [port] = objects["Service/partners"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (22, "sftp")
    assert containers_of("sftp")["sftp"]["ports"] == [{"name": "sftp", "containerPort": 2222}]
    ingress = objects["NetworkPolicy/pmwatch"]["spec"]["ingress"]
    assert [rule["ports"][0]["port"] for rule in ingress if "from" not in rule] == [2222]
    assert objects["Service/partners"]["spec"]["selector"] == OWN_LABEL


def test_an_export_job_drains_in_a_sidecar_that_starts_before_it() -> None:
    job = built("export")["CronJob/pmwatch-export"]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    [pmwatch] = pod_of("export")["initContainers"]
    assert (pmwatch["restartPolicy"], pmwatch["args"][-1]) == ("Always", "--drain")
    assert pmwatch["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert [one["name"] for one in pod_of("export")["containers"]] == ["export"]


def test_an_export_job_whose_result_tells_uploads_in_its_main_container() -> None:
    job = built("export-once")["CronJob/pmwatch-export"]["spec"]
    assert job["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert [one["name"] for one in pod_of("export-once")["initContainers"]] == ["export"]
    [pmwatch] = pod_of("export-once")["containers"]
    assert pmwatch["args"][-1] == "--once"
    assert "restartPolicy" not in pmwatch


@pytest.mark.parametrize("overlay", ["export", "export-once"])
def test_the_labels_of_the_network_policy_are_on_the_job_s_pods(overlay: str) -> None:
    template = built(overlay)["CronJob/pmwatch-export"]["spec"]["jobTemplate"]["spec"]["template"]
    assert OWN_LABEL.items() <= template["metadata"]["labels"].items()


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_leads_to_an_overlay_and_its_commands_make_all_that_the_pod_asks_for(tmp_path: Path) -> None:
    require_tool("kubectl", "the Kubernetes release (Debian's kubernetes-client is too old)")
    make, apply = blocks("README.md", "Kubernetes")[:2]
    *lines, doctor = apply.splitlines()
    assert doctor.endswith("-- pmwatch doctor")  # which needs a cluster; the same command is tried in the container
    shutil.copytree(BASE.parent, tmp_path / "deploy" / "kubernetes")
    (tmp_path / "acme.key").write_text("the key")
    with ApiServer() as cluster:
        cluster.write_kubeconfig(tmp_path / "kubeconfig")
        words = ["bash", "-euo", "pipefail", "-c", "\n".join([make, *lines])]
        environment = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, env=environment
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "successfully rolled out" in done.stdout
    made = {(kind, name): one for (space, kind, name), one in cluster.objects.items() if space == "exports"}
    pod = made["Deployment", "pmwatch"]["spec"]["template"]["spec"]
    assert [one["image"] for one in pod["containers"]] == ["registry.example.com/pmwatch:0.1.0"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    key = made["Secret", volumes["keys"]["secret"]["secretName"]]["data"]["acme"]
    assert base64.b64decode(key) == b"the key"
    assert (
        made["ConfigMap", volumes["config"]["configMap"]["name"]]["data"]["config.toml"]
        == (BASE / "config.toml").read_text()
    )
    for name in ("drop", "state"):
        assert ("PersistentVolumeClaim", volumes[name]["persistentVolumeClaim"]["claimName"]) in made


# ---- components -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", ["watch", "sftp"])
def test_a_pod_monitor_finds_the_metrics_under_the_job_of_the_alert_rules(overlay: str, tmp_path: Path) -> None:
    ours = Path(os.path.relpath(BASE.parent, tmp_path))
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{ours}/overlays/{overlay}]\ncomponents: [{ours}/components/podmonitor]\n"
    )
    objects = {one["kind"]: one for one in yaml.safe_load_all(manifest(tmp_path))}
    monitor, template = objects["PodMonitor"]["spec"], objects["Deployment"]["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert template["metadata"]["labels"][monitor["jobLabel"]] == "pmwatch"
    ports = [port["name"] for one in containers_of(overlay).values() for port in one["ports"]]
    assert monitor["podMetricsEndpoints"][0]["port"] in ports
