"""Runs on clusters of this machine that lose processes and nodes, and a long one: each is compared with one that was
left alone.

    python tests/faults.py kills --rounds 20     SIGKILL at random moments to a worker, a data process, the driver, or
                                                 whoever writes a checkpoint
    python tests/faults.py nodes                 a job on two nodes, of which one is lost; a sweep; a new head
    python tests/faults.py elastic               1, 2, 1, 2, 1 workers, as nodes come, one is lost, one is drained
    python tests/faults.py soak --minutes 30     memory and files of every process, and what is left behind
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import heads
import psutil
import tyro
from conftest import assert_equal
from heads import ROOT, Head
from rich.console import Console
from rich.table import Table

from pipelines.storage import Checkpoints, open_folder

console = Console(highlight=False, soft_wrap=True)
LIMIT = 600.0
"""Seconds that anything may take: beyond it hangs."""
VICTIMS = {
    "worker": re.compile(r"ray::.*RayTrainWorker"),
    "data process": re.compile(r"ray::.*(Map|Read|Split|Block)"),
    "checkpoint": re.compile(r"ray::.*RayTrainWorker"),
    "driver": re.compile(r"-m pipelines pretrain"),
}


@dataclass(frozen=True)
class Images:
    train: str = ""
    """Files of training images. Empty: CIFAR-10's below RAYSSL_DATA, else shapes that are made."""
    keep: Path | None = None
    """A new folder for the runs and logs. None: a temporary one."""


@dataclass(frozen=True)
class Kills:
    images: Annotated[Images, tyro.conf.arg(name="")] = Images()
    rounds: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Nodes:
    images: Annotated[Images, tyro.conf.arg(name="")] = Images()
    grid: str = "prelax_table3b"
    """Of the sweep, on its smoke profile. Empty: none."""


@dataclass(frozen=True)
class Elastic:
    images: Annotated[Images, tyro.conf.arg(name="")] = Images()


@dataclass(frozen=True)
class Soak:
    images: Annotated[Images, tyro.conf.arg(name="")] = Images()
    minutes: float = 30.0


@contextmanager
def bench(
    images: Images, cpus: int, memory: int = 400_000_000, variables: Mapping[str, str] = {}
) -> Iterator[tuple[Head, Path, str]]:
    """(A cluster, a folder, the files of images)."""
    with tempfile.TemporaryDirectory() as made:
        folder = images.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=images.keep is None)
        files = images.train
        if not files and (data := os.environ.get("RAYSSL_DATA")):
            files = f"{data}/cifar10/train-*.parquet"
        elif not files:
            command = [sys.executable, "-m", "pipelines", "data", "shapes", "--images", "2400", "--to"]
            subprocess.run([*command, str(folder / "shapes")], cwd=ROOT, check=True)
            files = str(folder / "shapes" / "train-*.parquet")
        with heads.head(folder.resolve(), cpus, memory, **{"RAY_worker_niceness": "0", **variables}) as head:
            yield head, folder.resolve(), files


def recipe(files: str, folder: Path, name: str, *options: str) -> list[str]:
    """`pretrain`'s words: 16 steps of 64 an epoch, each with a line, and a checkpoint every fourth."""
    words = f"pretrain sce_cifar10 --data.train {files} --data.limit 1024 --backbone resnet20 --batch-size 64".split()
    words += ["--data.test", "", "--run.storage", str(folder), "--run.name", name, "--run.threads", "1"]
    return [*words, "--run.log-steps", "1", "--run.checkpoint-steps", "4", *options]


def begin(head: Head, log: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """`python -m pipelines WORDS` as a driver beside the cluster."""
    environment = head.environment | {"RAY_ADDRESS": f"127.0.0.1:{head.port}", "COLUMNS": "200"}
    with log.open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *words], cwd=ROOT, env=environment, stdout=output, stderr=output
        )


def ended(process: subprocess.Popen[bytes], log: Path) -> float:
    """Waits for success -> seconds."""
    start = time.monotonic()
    code = process.wait(LIMIT)
    assert code == 0, f"exit code {code}\n{log.read_text()}"
    return time.monotonic() - start


def final(run: Path) -> dict[str, Any]:
    state, broken = Checkpoints(open_folder(str(run / "checkpoints"))).newest()
    assert state is not None and not broken, broken
    return state


def lines(run: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, those of steps; a last one that is being written is left out."""
    path = run / "metrics.jsonl"
    found = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in map(json.loads, (text for text in found if text.endswith("\n"))) if "loss" in line]


def step(run: Path) -> int:
    return int(lines(run)[-1]["step"]) if lines(run) else 0


def compared(run: Path, alone: Path) -> str:
    """ "same" where both ended with the same state to the bit, and each step has one line; else what differs."""
    try:
        assert_equal(final(run), final(alone))
        assert [line["step"] for line in lines(run)] == [line["step"] for line in lines(alone)], "steps"
    except AssertionError as error:
        return f"DIFFERS: {str(error).splitlines()[0][:100]}"
    return "same"


# ------------------------------------------------------------------------------------------------ kills


def struck(kind: str, after: float, driver: subprocess.Popen[bytes], head: Head, run: Path) -> str:
    """After so many seconds, and once there is one, kills a victim -> where the run stood; "" where it was over, or
    there was none in time."""
    with suppress(subprocess.TimeoutExpired):
        driver.wait(after)
    limit = time.monotonic() + LIMIT
    while driver.poll() is None and time.monotonic() < limit:
        with suppress(subprocess.TimeoutExpired):
            driver.wait(0.001)  # a checkpoint in the making is there for milliseconds
        if kind == "checkpoint" and not any(name.endswith(".tmp") for name in names(run / "checkpoints")):
            continue
        among = [psutil.Process(driver.pid)] if kind == "driver" else head.processes()
        victims = [process for process in among if VICTIMS[kind].search(called(process))]
        if not victims:
            continue
        for victim in victims if kind == "checkpoint" else victims[:1]:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        left = sum(name.endswith(".tmp") for name in names(run / "checkpoints"))
        return f"step {step(run)}" + (f", {left} half written" if left else "")
    return ""


def names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def called(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kills(options: Kills) -> int:
    random = Random(options.seed)
    table = Table("round", "victim", "feed", "struck", "went on", "s", "s alone", "weights", title="SIGKILL")
    failures, unstruck = 0, set(list(VICTIMS)[: options.rounds])
    with bench(options.images, 4) as (head, folder, files):
        alone: dict[str, float] = {}
        for feed in ("stream", "resident"):
            log = folder / f"{feed}.log"
            words = recipe(files, folder, feed, "--epochs", "4", "--run.workers", "2", "--run.feed", feed)
            alone[feed] = ended(begin(head, log, words), log)
            console.print(f"{feed} alone: {alone[feed]:.0f} s, {step(folder / feed)} steps")
        for number in range(options.rounds):
            kind = list(VICTIMS)[number % len(VICTIMS)]
            feed = "stream" if kind == "data process" else random.choice(["stream", "resident"])
            run, log = folder / f"round{number}", folder / f"round{number}.log"
            words = recipe(files, folder, run.name, "--epochs", "4", "--run.workers", "2", "--run.feed", feed)
            start = time.monotonic()
            process = begin(head, log, words)
            where = struck(kind, random.uniform(0, 0.8 * alone[feed]), process, head, run)
            how = "by itself"
            try:
                if process.wait(LIMIT) != 0:
                    how = "resumed"
                    ended(begin(head, log, [*words, "--run.resume"]), log)
                outcome = compared(run, folder / feed)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                process.kill()
                outcome = f"FAILED: {str(error)[:200]}"
            failures += outcome != "same"
            unstruck -= {kind} if where else set()
            row = (str(number), kind, feed, where or "over before", how, f"{time.monotonic() - start:.0f}")
            table.add_row(*row, f"{alone[feed]:.0f}", outcome)
            console.print(" | ".join((*row, outcome)))
    console.print(table)
    if unstruck:
        console.print(f"never struck: {', '.join(sorted(unstruck))}")
    return failures + len(unstruck)


# ------------------------------------------------------------------------------------------------ nodes


def submitted(head: Head, log: Path, words: list[str]) -> subprocess.Popen[bytes]:
    with log.open("a") as output:
        command = head.command("submit", "--env", "RAY_worker_niceness=0", "--", *words)
        return subprocess.Popen(command, cwd=ROOT, env=head.environment, stdout=output, stderr=output)


def reached(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    heads.until(condition, process, log, LIMIT)


def nodes(options: Nodes) -> int:
    """A worker takes 1.5 of a node's 2 CPUs, so that each node has one. Where one is lost, a new one comes."""
    failures, seconds = 0, dict[str, float]()
    own = ["--run.workers", "2", "--run.cpus", "1.5", "--run.feed", "resident", "--epochs", "8"]

    def told(name: str, what: str) -> int:
        outcome, lost = compared(folder / name, folder / "alone"), seconds[name] - seconds["alone"]
        console.print(f"{what}: {outcome}; {seconds['alone']:.0f} s alone, {lost:.0f} s lost")
        return int(outcome != "same")

    with bench(options.images, 2) as (head, folder, files):
        node = head.add(2)
        for name in ("alone", "struck"):
            log = folder / f"{name}.log"
            start, process = time.monotonic(), submitted(head, log, recipe(files, folder, name, *own))
            if name == "struck":
                reached(lambda: step(folder / "struck") >= 66, process, log)
                console.print(f"node killed at step {step(folder / 'struck')}")
                heads.kill(node)
                node = head.add(2)
            ended(process, log)
            seconds[name] = time.monotonic() - start
        failures += told("struck", "pretrain, a node lost")
        if options.grid:
            failures += sweeps(options.grid, head, folder, files, node)

        log, words = folder / "headless.log", recipe(files, folder, "headless", *own)
        start, process = time.monotonic(), submitted(head, log, words)
        reached(lambda: step(folder / "headless") >= 66, process, log)
        console.print(f"all nodes killed at step {step(folder / 'headless')}")
        for one in head.nodes:
            heads.kill(one)
        process.kill()
        with heads.head(folder, 2, 400_000_000, RAY_worker_niceness="0") as other:
            other.add(2)
            ended(submitted(other, log, [*words, "--run.resume"]), log)
            seconds["headless"] = time.monotonic() - start
        failures += told("headless", "pretrain, a new cluster")
    return failures


def sweeps(grid: str, head: Head, folder: Path, files: str, node: subprocess.Popen[bytes]) -> int:
    """A node is lost once one of the trials, which are on both, has a checkpoint. The tables are compared."""
    seconds, tables = {}, {}
    test = files.replace("train-", "test-")
    for name in ("sweep alone", "sweep struck"):
        log, run = folder / f"{name}.log", folder / name.replace(" ", "-")
        words = ["sweep", grid, "--profile", "smoke", "--data.train", files, "--data.test", test]
        start = time.monotonic()
        process = submitted(head, log, [*words, "--run.storage", str(folder), "--run.name", run.name])
        if name == "sweep struck":
            reached(lambda run=run: any(run.glob("trials/*/checkpoints/*.json")), process, log)  # type: ignore[misc]
            steps = {trial.name: step(trial) for trial in sorted(run.glob("trials/*seed*"))}
            console.print(f"node killed at steps {steps}")
            heads.kill(node)
            head.add(2)
        ended(process, log)
        seconds[name] = time.monotonic() - start
        tables[name] = (run / "results.csv").read_text()
    same = tables["sweep alone"] == tables["sweep struck"]
    lost = seconds["sweep struck"] - seconds["sweep alone"]
    console.print(
        f"sweep {grid}: {'same' if same else 'DIFFERS'}; {seconds['sweep alone']:.0f} s alone, {lost:.0f} s lost"
    )
    return int(not same)


# ------------------------------------------------------------------------------------------------ elastic


def elastic(options: Elastic) -> int:
    """Whole CPUs a worker; no batch norm, whose statistics are of a worker's share of the batch."""
    own = ["--epochs", "20", "--run.cpus", "1", "--run.feed", "resident", "--batch-norm", "none"]
    with bench(options.images, 1) as (head, folder, files):
        run, log = folder / "elastic", folder / "elastic.log"
        process = begin(head, log, recipe(files, folder, "elastic", *own, "--run.workers", "1:2"))

        def trained(steps: int) -> None:
            begun = step(run)
            reached(lambda: step(run) >= begun + steps, process, log)

        def changed(groups: int) -> dict[str, int]:
            """The lineage's line of so many groups after the first, once it is there."""
            reached(lambda: len(groups_of(run)) >= groups, process, log)
            return groups_of(run)[groups - 1]

        trained(32)
        lost = head.add(1)
        grown = [changed(1)]
        trained(32)
        console.print(f"node killed at step {step(run)}")
        heads.kill(lost)
        after_loss = changed(2)
        trained(8)
        gone = head.add(1)
        grown.append(changed(3))
        trained(32)
        console.print(f"node drained at step {step(run)}")
        drain(head)
        after_notice = changed(4)
        heads.end(gone)
        ended(process, log)
        log = folder / "fixed.log"
        ended(begin(head, log, recipe(files, folder, "fixed", *own, "--run.workers", "1")), log)
        for group in groups_of(run):
            console.print(json.dumps(group))
        mine, other = lines(run), lines(folder / "fixed")
        as_told = (
            [line["step"] for line in mine] == [*range(1, 20 * 16 + 1)]
            and [group["workers"] for group in groups_of(run)] == [2, 1, 2, 1]
            and all(group["again"] == 0 for group in (*grown, after_notice))
            and 0 <= after_loss["again"] <= 4
        )
        worst = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(mine, other, strict=True))
        console.print(f"as it should be: {as_told}; largest difference of a loss from the fixed run's: {worst:.2%}")
    return int(not as_told or worst > 0.05)


def groups_of(run: Path) -> list[dict[str, int]]:
    """Of lineage.jsonl: those after the first."""
    path = run / "lineage.jsonl"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def drain(head: Head) -> None:
    """Notice for the node that is not the head: it will be gone in five minutes."""
    node = asked(
        head,
        "print(*(n['NodeID'] for n in ray.nodes() if n['Alive'] and 'node:__internal_head__' not in n['Resources']))",
    )
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", f"127.0.0.1:{head.port}"]
    command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    subprocess.run([*command, "--deadline-remaining-seconds", "300"], env=head.environment, timeout=LIMIT, check=True)


# ------------------------------------------------------------------------------------------------ soak


def kind_of(process: psutil.Process, driver: int) -> str:
    words = called(process)
    if process.pid == driver:
        return "driver"
    if found := re.search(r"ray::(\S+)", words):
        return found[1].split("(")[0]
    for name in ("raylet", "gcs_server", "dashboard/dashboard", "agent", "log_monitor", "monitor"):
        if name in words:
            return name
    return "other"


def shared() -> int:
    return len(os.listdir("/dev/shm"))


BOUNDED = {
    "RAY_task_events_max_num_task_in_gcs": "500",
    "RAY_maximum_gcs_destroyed_actor_cached_count": "100",
}
"""Ray's head keeps records of the last 100,000 tasks and 100,000 actors: half an hour would see only its growth."""


def soak(options: Soak) -> int:
    """Memory is a process's own (USS, MiB), of each kind the largest; files are its descriptors. Shown are medians of
    the thirds of the time: what grows by a tenth and 20 from the second to the last is not flat."""
    with bench(options.images, 4, variables=BOUNDED) as (head, folder, files):
        run, log, before = folder / "soak", folder / "soak.log", shared()
        words = recipe(files, folder, "soak", "--epochs", "100000", "--run.workers", "2", "--run.feed", "stream")
        process = begin(head, log, words)
        reached(lambda: step(run) >= 32, process, log)
        samples: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
        start = time.monotonic()
        while (now := time.monotonic() - start) < 60 * options.minutes:
            assert process.poll() is None, log.read_text()
            of: dict[str, tuple[float, int]] = {}
            for each in [psutil.Process(process.pid), *head.processes()]:
                with suppress(psutil.Error):
                    kind, held = kind_of(each, process.pid), of.get(kind_of(each, process.pid), (0.0, 0))
                    memory, files_open = each.memory_full_info().uss / 2**20, each.num_fds()
                    of[kind] = (max(held[0], memory), max(held[1], files_open))
            for kind, (memory, files_open) in of.items():
                samples[kind].append((now, memory, files_open))
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        reached_step = step(run)
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT)
        table = Table(
            "process", "MiB start", "middle", "end", "files start", "middle", "end", title=f"{reached_step} steps"
        )
        growing = []
        for kind, seen in sorted(samples.items()):
            thirds = [seen[i * len(seen) // 3 : (i + 1) * len(seen) // 3] for i in range(3)]
            if all(thirds):
                told = [statistics.median(one[at] for one in third) for at in (1, 2) for third in thirds]
                table.add_row(kind, *(f"{one:.0f}" for one in told))
                if any(last > 1.1 * middle + 20 for middle, last in (told[1:3], told[4:6])):
                    growing.append(kind)
        console.print(table)
        with suppress(AssertionError):
            heads.until(lambda: left_behind(head) == 0, head.nodes[0], folder / "head.txt")
        left = left_behind(head)
    after = shared()
    console.print(
        f"not flat: {', '.join(growing) or 'none'}; placement groups left: {left}; "
        f"files in /dev/shm before and after: {before}, {after}"
    )
    return int(bool(growing) or left != 0 or after > before)


def left_behind(head: Head) -> int:
    """Placement groups that still hold something."""
    table = "ray.util.placement_group_table().values()"
    return int(asked(head, f"print(sum(one['state'] != 'REMOVED' for one in {table}))"))


def asked(head: Head, program: str) -> str:
    """The last word that a program prints which is connected with the cluster."""
    environment = head.environment | {"RAY_ADDRESS": f"127.0.0.1:{head.port}"}
    command = [sys.executable, "-c", f"import ray, ray.util; ray.init(logging_level='ERROR'); {program}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=True)
    return done.stdout.split()[-1]


def main() -> int:
    """Exit code 1 where something differs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the clusters end too
    options = tyro.cli(Kills | Nodes | Elastic | Soak, description=__doc__)
    does: dict[type, Callable[[Any], int]] = {Kills: kills, Nodes: nodes, Elastic: elastic, Soak: soak}
    return int(does[type(options)](options) > 0)


if __name__ == "__main__":
    sys.exit(main())
