"""The files that start clusters: valid, safe as they claim, and in agreement with the project they run.

What they are validated against: Kubernetes' own schema, KubeRay's documented fields, Ray's own checks of cluster files
(see schemas/NOTICE). None of them starts anything; SLURM's commands and Ray's are stand-ins.
"""

import ast
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipelines.__main__ import Pretrain, main
from pipelines.command_line import parsed
from pipelines.place import placed, quiet
from pipelines.recipe import find_recipe

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = Path(__file__).parent / "schemas"
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
RAY_UP = sorted((CLUSTER / "ray_up").glob("*.yaml"))
FILES = [*KUBERAY, *RAY_UP, *(CLUSTER / name for name in ("slurm.sh", "Dockerfile", "README.md"))]
KINDS = {
    "PersistentVolumeClaim": "api.core.v1.PersistentVolumeClaim",
    "Deployment": "api.apps.v1.Deployment",
    "Service": "api.core.v1.Service",
    "NetworkPolicy": "api.networking.v1.NetworkPolicy",
    "RayJob": "RayJob",
    "RayCluster": "RayCluster",
}
(RAY,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.M)
PART_OF = {"app.kubernetes.io/part-of": "rayssl"}


@cache
def read() -> list[dict[str, Any]]:
    return [part for path in KUBERAY for part in yaml.safe_load_all(path.read_text()) if part]


def documents() -> list[dict[str, Any]]:
    return deepcopy(read())


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (part for part in documents() if part["kind"] == kind)
    return found


def specs() -> dict[str, dict[str, Any]]:
    """The two specifications of a RayCluster, by the kind that they are in."""
    return {"RayCluster": of_kind("RayCluster")["spec"], "RayJob": of_kind("RayJob")["spec"]["rayClusterSpec"]}


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's and the workers'."""
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def templates(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template in a document."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("template", "submitterPodTemplate"):
                yield value
            else:
                yield from templates(value)
    elif isinstance(node, list):
        for value in node:
            yield from templates(value)


def amount(quantity: str | int) -> int:
    """Bytes of a Kubernetes quantity, as 12Gi."""
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi)?", str(quantity)).groups()  # type: ignore[union-attr]
    return int(number) * {None: 1, "Mi": 2**20, "Gi": 2**30}[unit]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(gzip.decompress((SCHEMAS / "kubernetes.json.gz").read_bytes()))
    return {"$defs": {**known["$defs"], **yaml.safe_load((SCHEMAS / "kuberay.yaml").read_text())}}


def mistakes(schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """Of a document, by the schema of its kind: where, and what."""
    validator = Draft202012Validator({**schema, "$ref": f"#/$defs/{KINDS[document['kind']]}"})
    return [f"{'.'.join(map(str, error.path))}: {error.message[:200]}" for error in validator.iter_errors(document)]


# ------------------------------------------------------------------------------------------ Kubernetes


def test_manifests_are_valid(schema: dict[str, Any]) -> None:
    assert {part["kind"] for part in documents()} == set(KINDS)
    for part in documents():
        assert mistakes(schema, part) == [], part["kind"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["spec", "backofLimit"], 1, "backofLimit"),
        (["spec", "submissionMode"], "K8sJob", "K8sJob"),
        (["spec", "rayClusterSpec", "authOptions", "mode"], "tokens", "tokens"),
        (["spec", "rayClusterSpec", "enableInTreeAutoscaling"], "yes", "boolean"),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0, "string"),
        (
            ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "securityContext", "runAsRoot"],
            1,
            "runAsRoot",
        ),
        (["spec", "submitterPodTemplate", "spec", "containers"], [{"image": "x"}], "name"),
    ],
)
def test_mistakes_in_manifests_are_seen(schema: dict[str, Any], path: list[str], value: Any, said: str) -> None:
    job = of_kind("RayJob")
    place = job
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    found = mistakes(schema, job)  # several, where pods share the section
    assert found and all(said in mistake for mistake in found)


def test_job_and_cluster_are_the_same_cluster() -> None:
    both = specs()
    assert both["RayJob"] == both["RayCluster"]


def test_versions_are_the_pinned_one() -> None:
    assert {spec["rayVersion"] for spec in specs().values()} == {RAY}
    (base,) = re.findall(r"^FROM (\S+)$", (CLUSTER / "Dockerfile").read_text(), flags=re.M)
    assert base == f"rayproject/ray:{RAY}-py311-${{DEVICE}}"
    assert f"Ray {RAY.rpartition('.')[0]} cluster" in (CLUSTER / "README.md").read_text()


def test_all_pods_run_one_image() -> None:
    images = {c["image"] for part in documents() for pod in templates(part) for c in pod["spec"]["containers"]}
    assert images == {"rayssl:0.1.0"}
    for path in RAY_UP:
        assert yaml.safe_load(path.read_text())["docker"]["image"] == "REGISTRY/rayssl:0.1.0"
    assert "REGISTRY/rayssl:0.1.0 ." in (CLUSTER / "Dockerfile").read_text()


def test_no_container_is_root_or_may_become_it() -> None:
    """As the Pod Security Standard `restricted` asks, of the operator's autoscaler container too."""
    found = [pod for part in documents() for pod in templates(part)]
    assert len(found) == 8  # head, two groups, twice; the submitter; TensorBoard
    for pod in found:
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0 and context["fsGroup"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
        assert all({"emptyDir", "persistentVolumeClaim"} & set(v) for v in pod["spec"].get("volumes", []))
        for container in pod["spec"]["containers"]:
            confined(container["securityContext"])
            assert not any("hostPort" in port for port in container.get("ports", []))
    for spec in specs().values():
        confined(spec["autoscalerOptions"]["securityContext"])


def confined(context: dict[str, Any]) -> None:
    assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_nothing_is_reachable_from_beyond_the_cluster() -> None:
    assert of_kind("Service")["spec"]["type"] == "ClusterIP"
    for spec in specs().values():
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP" and spec["headGroupSpec"]["enableIngress"] is False
        assert not {"headService", "ingressOptions"} & set(spec["headGroupSpec"])
    text = "".join(path.read_text() for path in KUBERAY)
    assert not re.search(r"NodePort|LoadBalancer|kind: Ingress|nodePort|externalIPs", text)


def test_the_network_policy_holds_for_every_pod() -> None:
    policy = of_kind("NetworkPolicy")["spec"]
    assert policy["podSelector"] == {"matchLabels": PART_OF} and policy["policyTypes"] == ["Ingress"]
    own, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": PART_OF}}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    for part in documents():
        for pod in templates(part):
            assert PART_OF.items() <= pod["metadata"]["labels"].items()


def test_only_the_head_has_the_rights_of_a_service_account() -> None:
    """The autoscaler beside it starts pods; nothing else talks to Kubernetes."""
    for part in documents():
        for pod in templates(part):
            head = pod["spec"]["containers"][0]["name"] == "ray-head"
            assert pod["spec"].get("automountServiceAccountToken") is (None if head else False)


def test_shared_memory_holds_the_object_store_and_the_pod_holds_both() -> None:
    for spec in specs().values():
        for group in groups(spec):
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm")
            (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
            assert volume["emptyDir"]["medium"] == "Memory"
            store, size = int(group["rayStartParams"]["object-store-memory"]), amount(volume["emptyDir"]["sizeLimit"])
            assert 75 * 2**20 < store <= size <= amount(container["resources"]["limits"]["memory"]) / 2


def test_every_pod_has_the_storage_at_one_path() -> None:
    claim = of_kind("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    pods = [group["template"]["spec"] for spec in specs().values() for group in groups(spec)]
    pods.append(of_kind("Deployment")["spec"]["template"]["spec"])
    paths = set()
    for pod in pods:
        (volume,) = (v for v in pod["volumes"] if "persistentVolumeClaim" in v)
        assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
        paths |= {m["mountPath"] for c in pod["containers"] for m in c["volumeMounts"] if m["name"] == volume["name"]}
    (path,) = paths
    run = pretraining()[1].run
    (board,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    assert run.storage.startswith(f"{path}/") and f"--logdir={run.storage}" in board["command"]


def test_a_group_with_gpus_and_one_without_are_autoscaled() -> None:
    for spec in specs().values():
        assert spec["enableInTreeAutoscaling"] is True
        limits = {}
        for group in spec["workerGroupSpecs"]:
            (container,) = group["template"]["spec"]["containers"]
            limits[group["groupName"]] = container["resources"]["limits"]
            assert 1 <= group["minReplicas"] == group["replicas"] < group["maxReplicas"]
        assert limits["gpu"]["nvidia.com/gpu"] == 1 and "nvidia.com/gpu" not in limits["cpu"]
        assert "nvidia.com/gpu" not in str(spec["headGroupSpec"])


def pretraining() -> tuple[str, Pretrain]:
    """The RayJob's recipe and options, as the project reads them: the submitter's shell takes the quotes away."""
    python, m, package, command, name, *rest = shlex.split(of_kind("RayJob")["spec"]["entrypoint"])
    assert (python, m, package, command) == ("python", "-m", "pipelines", "pretrain")
    return name, parsed(Pretrain, Pretrain(find_recipe(name)), rest, name)


def resources(spec: dict[str, Any]) -> dict[str, float]:
    """Ray's, of the smallest cluster: as the operator reckons them where rayStartParams don't say."""
    total = {"CPU": 0.0, "GPU": 0.0, "object_store_memory": 0.0}
    for group in groups(spec):
        (container,) = group["template"]["spec"]["containers"]
        limits, said, count = container["resources"]["limits"], group["rayStartParams"], group.get("minReplicas", 1)
        total["CPU"] += count * int(said.get("num-cpus", limits["cpu"]))
        total["GPU"] += count * limits.get("nvidia.com/gpu", 0)
        total["object_store_memory"] += count * int(said["object-store-memory"])
    return total


def test_the_job_is_one_that_the_project_runs_and_a_retry_goes_on() -> None:
    name, options = pretraining()
    spec = of_kind("RayJob")["spec"]
    assert name == "sce_cifar10" and options.recipe == find_recipe(name).with_(
        data={"train": options.recipe.data.train, "test": options.recipe.data.test}
    )
    assert "*" in options.recipe.data.train and options.run.name and options.run.resume
    assert spec["backoffLimit"] >= 1 and spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0


def test_the_smallest_cluster_takes_the_job() -> None:
    """Training on GPU nodes, whose CPUs it takes whole; the data stages' share is the CPU nodes'."""
    _, options = pretraining()
    (spec, _) = specs().values()
    gpu, cpu = spec["workerGroupSpecs"]
    place = placed(options.recipe, options.run, 50_000, resources(spec))
    assert place.device == "cuda" and options.run.workers == gpu["minReplicas"]
    assert float(gpu["rayStartParams"]["num-cpus"]) == options.run.cpus
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    cpus = int(cpu["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert place.data_cpus == cpu["minReplicas"] * cpus


# ------------------------------------------------------------------------------------------ ray up


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_takes_the_cluster_file(path: Path) -> None:
    """By what `ray up` itself checks before it talks to a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(path.read_text())
    assert config["provider"]["type"] == path.stem
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config({**config, "max_worker": 3}))


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_machines(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    types = config["available_node_types"]
    assert set(types) == {"head", "gpu", "cpu"} and config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0} and types["head"]["max_workers"] == 0
    assert types["gpu"]["resources"] == {"CPU": 1, "GPU": 1}
    assert sum(types[name]["max_workers"] for name in ("gpu", "cpu")) <= config["max_workers"]
    for name in ("gpu", "cpu"):
        assert 1 <= types[name]["min_workers"] < types[name]["max_workers"]
        assert "spot" in str(types[name]["node_config"]).lower()
    assert "spot" not in str(types["head"]).lower()


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_machines_ask_for_the_token_and_keep_the_dashboard_to_themselves(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "disable_shm_size_detection" not in config["docker"]
    (start,) = (line for line in config["head_start_ray_commands"] if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in start and "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    assert "security_group" not in config["provider"]


# ------------------------------------------------------------------------------------------ SLURM

STANDINS = {
    "scontrol": 'printf "n1\\nn2\\nn3\\n"',
    "hostname": "echo 10.0.0.1",
    "ray": 'echo "ray $*" >>"$LOG"',
    "srun": """echo "srun $*" >>"$LOG"
stat -c %a "$RAY_AUTH_TOKEN_PATH" >>"$LOG.modes"; cat "$RAY_AUTH_TOKEN_PATH" >>"$LOG.token"; echo >>"$LOG.token"
echo $$ >>"$LOG.pids"; exec sleep 60""",
    "python": f"""case $1 in
-c) exec {shlex.quote(sys.executable)} "$@" ;;
-) cat >/dev/null; until (($(wc -l <"$LOG.pids") == 2)); do sleep 0.05; done; echo "wait $2 at $RAY_ADDRESS" >>"$LOG" ;;
*) echo "python $*" >>"$LOG"; exit 7 ;;
esac""",
}


def slurm(folder: Path, *words: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Runs slurm.sh as SLURM does on the first of three nodes. Returns how it ended, and the commands that it ran."""
    commands, log = folder / "bin", folder / "log"
    commands.mkdir()
    for name, body in STANDINS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    told = {
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_PER_TASK": "8",
    }
    inherited = {"PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(folder), "LOG": str(log)}
    ended = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh"), *words],
        env={**inherited, **told, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return ended, log.read_text() if log.exists() else ""


def test_slurm_starts_a_cluster_runs_the_command_and_ends_it(tmp_path: Path) -> None:
    ended, log = slurm(tmp_path, "pretrain", "demo", "--data.train", "a b/*.parquet")
    assert ended.returncode == 7, ended.stderr  # the command's
    (head,) = (line for line in log.splitlines() if line.startswith("srun") and "--head" in line)
    (others,) = (line for line in log.splitlines() if line.startswith("srun") and "--head" not in line)
    assert "--nodes=1 --ntasks=1 --nodelist=n1 ray start --head --node-ip-address=10.0.0.1" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "--nodes=2 --ntasks=2 --exclude=n1 ray start --address=10.0.0.1:6379" in others
    assert all("--block" in line and "--num-cpus=8" in line for line in (head, others))
    assert log.splitlines()[-2:] == [
        "wait 3 at 10.0.0.1:6379",
        "python -m pipelines pretrain demo --data.train a b/*.parquet",
    ]
    for pid in (tmp_path / "log.pids").read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_slurm_keeps_its_token_to_itself(tmp_path: Path) -> None:
    ended, log = slurm(tmp_path, "pretrain", "demo")
    (token,) = set((tmp_path / "log.token").read_text().split())  # all nodes have the same
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert set((tmp_path / "log.modes").read_text().split()) == {"600"}
    assert token not in log + ended.stdout + ended.stderr
    assert list((tmp_path / ".ray").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "restarts", "ran"),
    [
        ("pretrain demo", "1", "pipelines pretrain demo --run.resume"),
        ("pretrain demo --run.resume", "1", "pipelines pretrain demo --run.resume"),
        ("sweep sce_table1", "2", "tuning sweep sce_table1 --run.resume"),
        ("evaluate /runs/a knn", "1", "pipelines evaluate /runs/a knn"),
    ],
)
def test_slurm_goes_on_after_a_requeue(tmp_path: Path, words: str, restarts: str, ran: str) -> None:
    _, log = slurm(tmp_path, *words.split(), SLURM_RESTART_COUNT=restarts)
    assert log.splitlines()[-1] == f"python -m {ran}"


def test_slurm_says_how_it_is_used(tmp_path: Path) -> None:
    ended, log = slurm(tmp_path)
    assert ended.returncode == 2 and ended.stderr.startswith("usage: sbatch") and not log
    text = (CLUSTER / "slurm.sh").read_text()
    assert subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")]).returncode == 0
    assert "#SBATCH --requeue" in text and "#SBATCH --exclusive" in text and os.access(CLUSTER / "slurm.sh", os.X_OK)
    (program,) = re.findall(r"<<'PYTHON'\n(.*?)^PYTHON$", text, flags=re.S | re.M)
    ast.parse(program)


# ------------------------------------------------------------------------------------------ image, page, secrets


def test_the_image_has_the_project_and_no_data_and_is_not_root() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"cluster"}
    assert set(copied) == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} | packages
    assert all((ROOT / name).exists() for name in copied)
    assert any("-c constraints.txt ." in line for line in lines)
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 1000"]
    assert {pod["spec"]["securityContext"]["runAsUser"] for part in documents() for pod in templates(part)} == {1000}


def test_the_image_and_slurm_have_the_settings_that_a_driver_cannot_give_a_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of those that `quiet` sets for clusters of its own."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_idle_worker_killing_time_threshold_ms"):
        monkeypatch.delenv(name, raising=False)
        quiet()
        setting = f"{name}={os.environ[name]}"
        for file in ("Dockerfile", "slurm.sh"):
            assert setting in (CLUSTER / file).read_text(), (file, setting)
    assert "RAY_AUTH_MODE=token" in (CLUSTER / "Dockerfile").read_text()


def commands() -> list[list[str]]:
    """Every command of the project that the page shows, from its package on; `submit`'s is what it sends."""
    blocks = re.findall(r"```\n(.*?)```", (CLUSTER / "README.md").read_text(), flags=re.S)
    lines = [shlex.split(line, comments=True) for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    found = []
    for words in lines:
        if words[:4] == ["python", "-m", "cluster", "submit"]:
            found.append(words[words.index("--") + 1 :])
        elif "cluster/slurm.sh" in words:
            found.append(words[words.index("cluster/slurm.sh") + 1 :])
        elif "pipelines" in words:
            found.append(words[words.index("pipelines") + 1 :])
    return found


def test_the_page_shows_a_command_for_each_place() -> None:
    assert len(commands()) == 6
    assert sum(words[0] == "pretrain" for words in commands()) == 4


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_the_page_names_only_what_there_is(words: list[str]) -> None:
    """Everything is parsed and nothing runs."""
    if words[0] == "pretrain":
        options = parsed(Pretrain, Pretrain(find_recipe(words[1])), words[2:], words[1])
        assert options.run.device == "cuda" and options.run.workers == 2 and options.run.name == "first"
    else:
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--help"])
        assert stopped.value.code == 0


def test_files_that_the_page_names_are_there() -> None:
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"(?<![\w/])cluster/[\w/]+(?:\.\w+)?", text)) | {
        f"cluster/{name}" for name in re.findall(r"`((?:kuberay|ray_up)/\w+\.yaml)`", text)
    }
    assert len(named) >= 7
    assert not [name for name in named if not (ROOT / name).exists() and not (ROOT / "tests" / name).exists()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_secret_and_nothing_of_one_machine(path: Path) -> None:
    text = path.read_text()
    for secret in (
        r"AKIA[0-9A-Z]{16}",
        r"-----BEGIN",
        r"\b[0-9a-f]{32,}\b",
        r"(?i)(password|secret|token|key)\s*[:=]\s*['\"]?(?=[\w/+-]*\d)[\w/+-]{16,}",
        r"kind: Secret",
    ):
        assert not re.search(secret, text), secret
    tops = set(re.findall(r"(?<![\w.:/~}*$\])-])/[A-Za-z]\w*(?=/)", text))
    assert tops <= {"/bin", "/dev", "/home", "/mnt", "/shared", "/tmp"}, tops
    assert set(re.findall(r"/home/\w+", text)) <= {"/home/ray"}  # the image's user
