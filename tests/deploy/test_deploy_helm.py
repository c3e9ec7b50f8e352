"""The Helm chart, linted and rendered by Helm itself, and held against Kubernetes' schemas and the kustomize files."""

import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.helm import Refused, lint, render
from support.services import require_tool

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "pmwatch"
MODES = ("export", "export-once", "sftp", "sidecar", "watch")
NEWEST = ("1.35", "1.36", "1.37")
OWN_LABELS = {"app.kubernetes.io/name": "pmwatch", "app.kubernetes.io/instance": "pmwatch"}
CONFIG = '[[tenants]]\nname = "acme"\n[[folders]]\n'

pytestmark = pytest.mark.service("helm_python")


def example(mode: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "examples" / f"{mode}.yaml").read_text())
    return values


@cache
def rendered(mode: str) -> dict[str, str]:
    return render(CHART, example(mode))


def objects(manifests: dict[str, str]) -> dict[str, Any]:
    """Return every object by "Kind/name"."""
    texts = (text for name, text in manifests.items() if name.endswith(".yaml"))
    found = [item for text in texts for item in yaml.safe_load_all(text) if item]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


def workload(made: dict[str, Any]) -> dict[str, Any]:
    """Return what has the Pod's template: the Deployment's spec, or that of the CronJob's Job."""
    job = made.get("CronJob/pmwatch-export")
    spec = job["spec"]["jobTemplate"]["spec"] if job else made["Deployment/pmwatch"]["spec"]
    assert isinstance(spec, dict)
    return spec


def pod_of(made: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = workload(made)["template"]["spec"]
    return spec


def containers_of(pod: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in [*pod.get("initContainers", []), *pod["containers"]]}


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"]}


def with_config(**values: Any) -> dict[str, Any]:
    return {"config": CONFIG, **values}


# ---- every mode -----------------------------------------------------------------------------------------------------


def test_there_is_an_example_for_every_mode() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert sorted(schema["properties"]["mode"]["enum"]) == sorted(MODES)
    assert sorted(path.stem for path in (CHART / "examples").glob("*.yaml")) == sorted(MODES)
    assert all(example(mode)["mode"] == mode for mode in MODES)


@pytest.mark.parametrize("mode", MODES)
def test_helm_s_lint_has_nothing_to_say(mode: str) -> None:
    assert lint(CHART, example(mode)) == []


@pytest.mark.service("kubernetes-validate")
@pytest.mark.parametrize("version", NEWEST)
def test_the_newest_kubernetes_accept_all_modes(version: str, tmp_path: Path) -> None:
    tool = require_tool("kubernetes-validate", "the Python package kubernetes-validate")
    path = tmp_path / "all.yaml"
    made = [one for mode in MODES for one in objects(rendered(mode)).values()]
    path.write_text(yaml.safe_dump_all(one for one in made if one["kind"] != "PodMonitor"))  # not Kubernetes' own
    command = [tool, "--strict", "-k", version, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_everything_is_locked_down_bounded_and_mounted_whole(mode: str) -> None:
    made = objects(rendered(mode))
    pod = pod_of(made)
    assert len([name for name in made if name.startswith(("Deployment/", "CronJob/"))]) == 1
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]
    assert pod["securityContext"]["runAsNonRoot"]
    for container in containers_of(pod).values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"].keys() == {"requests", "limits"}
        assert [mount for mount in container["volumeMounts"] if "subPath" in mount or "subPathExpr" in mount] == []
    mounted = {mount["name"] for one in containers_of(pod).values() for mount in one["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("mode", MODES)
def test_the_grace_period_covers_writer_and_drain(mode: str) -> None:
    pod = pod_of(objects(rendered(mode)))
    drain = variables(containers_of(pod)["pmwatch"])["PMWATCH_DELIVERY_DRAIN_TIMEOUT"]
    assert drain == f"{example(mode).get('drainTimeoutSeconds', 50)}s"
    writer = 0 if mode == "watch" else 15
    assert pod["terminationGracePeriodSeconds"] == int(drain.removesuffix("s")) + writer + 10


@pytest.mark.parametrize("mode", MODES)
def test_the_network_policy_holds_for_the_pods_of_this_release(mode: str) -> None:
    made = objects(rendered(mode))
    assert made["NetworkPolicy/pmwatch"]["spec"]["podSelector"] == {"matchLabels": OWN_LABELS}
    assert OWN_LABELS.items() <= workload(made)["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("mode", MODES)
def test_claims_outlive_an_uninstall_and_no_secret_is_made(mode: str) -> None:
    made = objects(rendered(mode))
    claims = {name: one for name, one in made.items() if name.startswith("PersistentVolumeClaim/")}
    own = {"PersistentVolumeClaim/pmwatch-drop", "PersistentVolumeClaim/pmwatch-state"}
    assert claims.keys() == (own - {"PersistentVolumeClaim/pmwatch-drop"} if mode == "watch" else own)
    assert all(one["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"} for one in claims.values())
    assert [name for name in made if name.startswith("Secret/")] == []


@pytest.mark.parametrize("mode", ["sidecar", "export-once"])
def test_pmwatch_accepts_the_configuration_with_the_variables_of_the_chart(mode: str, tmp_path: Path) -> None:
    made = objects(rendered(mode))
    path = tmp_path / "config.toml"
    path.write_text(made["ConfigMap/pmwatch-config"]["data"]["config.toml"])
    container = containers_of(pod_of(made))["pmwatch"]
    command = [sys.executable, "-m", "pmwatch", "check", "--config", str(path)]
    environment = {**os.environ, **variables(container)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    config = tomllib.loads(path.read_text())
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert Path(config["tenants"][0]["api_key_file"]).parent == Path(mounts["keys"])
    assert Path(config["folders"][0]["path"]).parent == Path(mounts["drop"])
    assert variables(container)["PMWATCH_STATE_DIR"] == mounts["state"]


def test_the_notes_name_what_there_is() -> None:
    for mode in MODES:
        notes = rendered(mode)["NOTES.txt"]
        assert "create secret generic pmwatch-keys" in notes
        named = set(re.findall(r"(?:deployment|cronjob)/([\w-]+)", notes))
        assert named == {"pmwatch-export" if mode.startswith("export") else "pmwatch"}


# ---- one mode -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["watch", "sidecar", "sftp"])
def test_only_one_pod_ever_has_the_ledger(mode: str) -> None:
    spec = objects(rendered(mode))["Deployment/pmwatch"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert spec["selector"]["matchLabels"] == OWN_LABELS


@pytest.mark.parametrize("mode", ["sidecar", "sftp", "export"])
def test_pmwatch_is_a_native_sidecar_that_drains(mode: str) -> None:
    pod = pod_of(objects(rendered(mode)))
    [pmwatch] = pod["initContainers"]
    assert (pmwatch["restartPolicy"], pmwatch["args"][-1]) == ("Always", "--drain")
    assert pmwatch["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert [one["name"] for one in pod["containers"]] == ["writer"]


def test_watching_needs_no_writer_and_takes_the_volume_that_is_there() -> None:
    pod = pod_of(objects(rendered("watch")))
    [pmwatch] = pod["containers"]
    assert "initContainers" not in pod
    assert "restartPolicy" not in pmwatch
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes["drop"]["persistentVolumeClaim"]["claimName"] == "exports"


@pytest.mark.parametrize("mode", ["export", "export-once"])
def test_an_export_never_runs_twice_at_a_time_nor_again_by_itself(mode: str) -> None:
    job = objects(rendered(mode))["CronJob/pmwatch-export"]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    assert job["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert pod_of(objects(rendered(mode)))["restartPolicy"] == "Never"
    assert (job["schedule"], job["timeZone"]) == ("15 2 * * *", "Europe/Amsterdam")


def test_an_export_job_whose_result_tells_uploads_in_its_main_container() -> None:
    pod = pod_of(objects(rendered("export-once")))
    assert [one["name"] for one in pod["initContainers"]] == ["writer"]
    [pmwatch] = pod["containers"]
    assert pmwatch["args"][-1] == "--once"
    assert not {"restartPolicy", "livenessProbe", "ports"} & pmwatch.keys()


def test_partners_reach_the_sftp_server_and_nothing_else() -> None:
    made = objects(rendered("sftp"))
    service = made["Service/partners-pmwatch"]["spec"]
    assert service["selector"] == OWN_LABELS
    assert [(port["port"], port["targetPort"]) for port in service["ports"]] == [(22, "sftp")]
    assert containers_of(pod_of(made))["writer"]["ports"] == [{"name": "sftp", "containerPort": 2222}]
    ingress = made["NetworkPolicy/pmwatch"]["spec"]["ingress"]
    assert [rule["ports"][0]["port"] for rule in ingress if "from" not in rule] == [2222]


def test_a_pod_monitor_where_it_is_asked_for() -> None:
    assert "PodMonitor/pmwatch" not in objects(rendered("watch"))
    monitor = objects(rendered("sidecar"))["PodMonitor/pmwatch"]["spec"]
    assert monitor["selector"] == {"matchLabels": OWN_LABELS}
    [port] = containers_of(pod_of(objects(rendered("sidecar"))))["pmwatch"]["ports"]
    assert monitor["podMetricsEndpoints"][0]["port"] == port["name"]


# ---- the same as the kustomize files --------------------------------------------------------------------------------


@pytest.mark.service("kubectl")
@pytest.mark.parametrize("mode", MODES)
def test_it_is_what_kustomize_makes(mode: str) -> None:
    kubectl = require_tool("kubectl", "the Kubernetes release (Debian's kubernetes-client is too old)")
    directory = DEPLOY / "kubernetes" / ("base" if mode == "sidecar" else f"overlays/{mode}")
    text = subprocess.run([kubectl, "kustomize", str(directory)], capture_output=True, text=True, check=True).stdout
    theirs = {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(text)}
    ours = objects(rendered(mode))
    pods = [pod_of(made) for made in (ours, theirs)]
    for key in ("securityContext", "enableServiceLinks", "automountServiceAccountToken", "restartPolicy"):
        assert pods[0].get(key) == pods[1].get(key), key
    first = [[one["name"] == "pmwatch" for one in pod.get("initContainers", [])] for pod in pods]
    assert first[0] == first[1], "pmwatch before the writer, or after it"
    mine, their = (containers_of(pod)["pmwatch"] for pod in pods)
    for key in (*their.keys() - {"image"}, "restartPolicy"):
        assert mine.get(key) == their.get(key), key
    secrets = [next(one for one in pod["volumes"] if one["name"] == "keys") for pod in pods]
    assert secrets[0] == secrets[1]
    policies = [made["NetworkPolicy/pmwatch"]["spec"] for made in (ours, theirs)]
    for key in ("policyTypes", "ingress", "egress"):
        assert policies[0][key] == policies[1][key], key


# ---- values that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "config: it has no [[tenants]]"),
        ({"config": "[[tenants]]\n"}, "config: it has no [[folders]]"),
        ({"config": CONFIG + 'api_key = "secret"\n'}, "put it into the Secret of keysSecret"),
        (with_config(existingConfigMap="mine"), "config and existingConfigMap are both set"),
        (with_config(mode="wacth"), "at '/mode': value must be one of 'watch', 'sidecar'"),
        (with_config(replicas=2), "additional properties 'replicas' not allowed"),
        (with_config(mode="export"), 'writer.image: mode "export" needs the image'),
        (with_config(drainTimeoutSeconds="50s"), "at '/drainTimeoutSeconds': got string, want integer"),
        (with_config(drainTimeoutSeconds=20), "shutdownGraceSeconds must be less than drainTimeoutSeconds"),
        (with_config(user=0), "at '/user': minimum: got 0, want 1"),
        (with_config(image={"digest": "sha256:12"}), "at '/image/digest': 'sha256:12' does not match"),
        (with_config(drop={"size": "10 GB"}), "at '/drop/size': '10 GB' does not match"),
        (with_config(state={"accessModes": ["ReadWriteMany"]}), "additional properties 'accessModes' not allowed"),
        (with_config(schedule={"cron": "daily"}), "at '/schedule/cron': 'daily' does not match"),
        (with_config(writer={"port": 22}), "at '/writer/port': minimum: got 22, want 1,024"),
        (with_config(resources={"limits": {}, "limit": {}}), "additional properties 'limit' not allowed"),
        (with_config(env=[{"name": "PMWATCH_STATE_DIR", "value": "/x"}]), "PMWATCH_STATE_DIR is set by the chart"),
        (
            with_config(mode="sidecar", writer={"image": "x", "volumeMounts": [{"name": "keys", "mountPath": "/k"}]}),
            "keys is pmwatch's own",
        ),
        (
            with_config(mode="export-once", writer={"image": "x"}, podMonitor={"enabled": True}),
            "mode export-once ends before it could be scraped",
        ),
    ],
)
def test_wrong_values_are_refused_and_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as refused:
        render(CHART, values)
    assert said in str(refused.value)


# ---- values that change what is made --------------------------------------------------------------------------------


def test_every_value_is_explained_and_known_to_the_schema() -> None:
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert yaml.safe_load(text).keys() | {"global"} == schema["properties"].keys()
    for name, values in yaml.safe_load(text).items():
        if isinstance(values, dict) and "properties" in schema["properties"][name]:
            assert values.keys() == schema["properties"][name]["properties"].keys(), name
    plain = text[: text.index("# Put on the Pod.")]
    tops = [match.start() for match in re.finditer(r"^\w", plain, flags=re.MULTILINE)]
    assert [plain[at : at + 20] for at in tops if not plain[:at].rstrip("\n").rpartition("\n")[2].startswith("#")] == []


def test_a_changed_configuration_rolls_the_pod_out_anew() -> None:
    one, other = (
        workload(objects(render(CHART, {"config": CONFIG + more})))["template"]["metadata"]["annotations"]
        for more in ("", "# new\n")
    )
    assert one["checksum/config"] != other["checksum/config"]


def test_names_that_are_there_already_are_taken() -> None:
    made = objects(
        render(
            CHART,
            {
                "existingConfigMap": "my-config",
                "keysSecret": "my-keys",
                "drop": {"existingClaim": "my-drop"},
                "state": {"existingClaim": "my-state"},
                "image": {"repository": "registry.example.com/pmwatch", "digest": "sha256:" + "a" * 64},
                "imagePullSecrets": ["pull"],
                "networkPolicy": {"enabled": False},
                "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
                "nodeSelector": {"disk": "ssd"},
            },
        )
    )
    assert made.keys() == {"Deployment/pmwatch"}
    pod = pod_of(made)
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "my-drop"
    assert pod["volumes"][1]["persistentVolumeClaim"]["claimName"] == "my-state"
    assert pod["volumes"][2]["configMap"]["name"] == "my-config"
    assert pod["volumes"][3]["secret"]["secretName"] == "my-keys"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["nodeSelector"] == {"disk": "ssd"}
    [container] = pod["containers"]
    assert container["image"] == "registry.example.com/pmwatch@sha256:" + "a" * 64
    assert variables(container)["HTTPS_PROXY"] == "http://proxy:3128"
