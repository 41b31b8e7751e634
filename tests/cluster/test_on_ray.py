"""On a real head, in processes of its own: token authentication, the job's log, exit codes, a token that is wrong."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
TOKEN = secrets.token_hex(16)  # not written here: a file that holds the cluster's token is not sent


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]
    """With the right token."""
    folder: Path
    """Of Ray's sessions."""

    def cluster(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """python -m cluster WORDS --address ..., with `variables` set; an empty one is left out."""
        environment = {name: value for name, value in (self.environment | variables).items() if value}
        own, cut, command = list(words), [], []
        if "--" in own:
            own, cut, command = own[: own.index("--")], ["--"], own[own.index("--") + 1 :]
        arguments = [sys.executable, "-m", "cluster", *own, "--address", self.address, *cut, *command]
        return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def free_ports(count: int) -> list[int]:
    """Held all at once, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def until(condition: Callable[[], bool], head: subprocess.Popen[bytes], log: Path, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def answers(address: str) -> bool:
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """One CPU, all of it on loopback and on ports of its own; its processes, and no others, are ended afterwards."""
    scratch = tmp_path_factory.mktemp("head")
    (scratch / "right").write_text(TOKEN)
    (scratch / "right").chmod(0o600)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a job's `python` is this one
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(scratch / "right"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    gcs, dashboard, agent, *others = free_ports(7)
    options = {
        "--port": gcs,
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": agent,
        "--dashboard-agent-grpc-port": others[0],
        "--runtime-env-agent-port": others[1],
        "--metrics-export-port": others[2],
        "--ray-client-server-port": others[3],
        "--min-worker-port": 0,
        "--max-worker-port": 0,
        "--node-ip-address": "127.0.0.1",
        "--num-cpus": 1,
        "--object-store-memory": 100_000_000,
    }
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # short: sockets lie in it
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--temp-dir", folder]
        log = scratch / "head.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, *(f"{name}={value}" for name, value in options.items())],
                cwd=scratch,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            until(lambda: answers(address) and listens(agent), process, log)
            yield Head(address, environment, Path(folder))
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends `process` and all that it started: asks first, then kills by process ID."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    process.terminate()  # Ray then ends its own processes
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(started, timeout=10)
    for left in alive:
        left.kill()  # psutil looks at the start time too: another process of the same ID is left alone
    psutil.wait_procs(alive, timeout=10)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_jobs_on_a_head_that_asks_for_a_token(head: Head, tmp_path: Path) -> None:
    done = head.cluster("submit", "--submission-id", "lists", "--", "list")
    assert done.returncode == 0, done.stderr
    assert "sce_cifar10" in done.stdout and "protocol" in done.stdout and "lists succeeded" in done.stderr

    asked = head.cluster("submit", "--submission-id", "asks", "--", "bench")  # without a benchmark: usage, exit code 2
    assert asked.returncode == 2, asked.stderr
    assert "python -m pipelines bench" in asked.stdout

    storage = str(tmp_path / "a folder")  # with a space, through the shell
    failed = head.cluster("submit", "--submission-id", "fails", "--", "pretrain", "no_such", "--run.storage", storage)
    assert failed.returncode == 1, failed.stderr
    assert "no recipe no_such" in failed.stdout and "fails failed, exit code 1" in failed.stderr

    twice = head.cluster("submit", "--submission-id", "lists", "--", "list")
    assert twice.returncode == 1 and "already exists" in twice.stderr and "Traceback" not in twice.stderr

    shown = head.cluster("status")
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in ("lists", "asks", "fails", "SUCCEEDED", "FAILED"))
    logs = head.cluster("logs", "lists")
    assert logs.stdout == done.stdout
    stopped = head.cluster("stop", "lists")
    assert stopped.returncode == 0 and "lists succeeded" in stopped.stderr, stopped.stderr

    (tmp_path / "wrong").write_text(TOKEN[::-1])
    wrong = head.cluster("submit", "--", "list", RAY_AUTH_TOKEN_PATH=str(tmp_path / "wrong"))
    assert wrong.returncode == 1 and "the token is not that of" in wrong.stderr, wrong.stderr
    none = head.cluster("submit", "--", "list", RAY_AUTH_MODE="")
    assert none.returncode == 1 and "asks for a token and got none" in none.stderr, none.stderr
    lost = head.cluster("status", RAY_AUTH_TOKEN_PATH=str(tmp_path / "nowhere"))
    assert lost.returncode == 1 and "nowhere" in lost.stderr and "Traceback" not in lost.stderr, lost.stderr

    everything = [done, asked, failed, twice, shown, logs, stopped, wrong, none, lost]
    assert not any(token in one.stdout + one.stderr for one in everything for token in (TOKEN, TOKEN[::-1]))
    written = [path for path in head.folder.rglob("job-driver-*.log") if path.is_file()]
    assert len({path.name for path in written}) == 3
    assert not any(TOKEN in path.read_text() for path in written)
