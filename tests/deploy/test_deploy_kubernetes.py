"""The kustomize base, built by the real tool and read as the API server would get it."""

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from support.services import require_tool

BASE = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "base"
OWN_LABEL = {"app.kubernetes.io/name": "pmwatch"}

pytestmark = pytest.mark.service("kubectl")


@cache
def built() -> dict[str, Any]:
    """Return every object of the base by "Kind/name", without a cluster."""
    kubectl = require_tool("kubectl", "the Kubernetes release (Debian's kubernetes-client is too old)")
    manifest = subprocess.run(
        [kubectl, "kustomize", str(BASE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (manifest.returncode, manifest.stderr) == (0, "")
    # kubectl's own parser turns the YAML into JSON; --local asks no server.
    as_json = subprocess.run(
        [kubectl, "annotate", "--local", "-f", "-", "-o", "json", "checked=yes"],
        input=manifest.stdout,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (as_json.returncode, as_json.stderr) == (0, "")
    objects: dict[str, Any] = {}
    decoder, text = json.JSONDecoder(), as_json.stdout.strip()
    while text:
        item, end = decoder.raw_decode(text)
        objects[f"{item['kind']}/{item['metadata']['name']}"] = item
        text = text[end:].lstrip()
    return objects


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
