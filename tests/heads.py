"""Ray clusters in processes of their own: a head that asks for a token, and further nodes, all on loopback."""

import itertools
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
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
TOKEN = secrets.token_hex(16)  # not written here: a file that holds the cluster's token is not sent


@dataclass(frozen=True)
class Head:
    address: str
    """Of the dashboard."""
    port: int
    """Of the cluster."""
    environment: dict[str, str]
    """With the right token."""
    folder: Path
    """Of Ray's sessions on it."""
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """`ray start` of each; the head is the first."""

    def command(self, *words: str) -> list[str]:
        """python -m cluster WORDS --address ..."""
        own, cut, command = list(words), [], []
        if "--" in own:
            own, cut, command = own[: own.index("--")], ["--"], own[own.index("--") + 1 :]
        return [sys.executable, "-m", "cluster", *own, "--address", self.address, *cut, *command]

    def cluster(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`command`, run with `variables` set; an empty one is left out."""
        environment = {name: value for name, value in (self.environment | variables).items() if value}
        command = self.command(*words)
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)

    def start(self, log: Path, options: dict[str, object], *flags: str) -> subprocess.Popen[bytes]:
        """A node, with ports that no other has."""
        agent, *others = free_ports(4)
        options = {
            "--dashboard-agent-listen-port": agent,
            "--dashboard-agent-grpc-port": others[0],
            "--runtime-env-agent-port": others[1],
            "--metrics-export-port": others[2],
            "--min-worker-port": 0,
            "--max-worker-port": 0,
            "--node-ip-address": "127.0.0.1",
            **options,
        }
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *flags]
                + [f"{name}={value}" for name, value in options.items()],
                cwd=log.parent,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(process)
        until(lambda: "Ray runtime started" in log.read_text() and listens(agent), process, log)
        return process

    def add(self, cpus: int, memory: int = 200_000_000) -> subprocess.Popen[bytes]:
        """A further node, with a folder of its own, as on another machine: nodes that share one take from each other
        the code of jobs."""
        options: dict[str, object] = {
            "--address": f"127.0.0.1:{self.port}",
            "--temp-dir": self.folder.parent / f"n{len(self.nodes)}",
            "--num-cpus": cpus,
            "--object-store-memory": memory,
        }
        for attempt in itertools.count(1):
            try:
                return self.start(self.folder.parent / f"node{len(self.nodes)}.txt", options)
            except AssertionError:  # Ray gives up after 30 s where the machine is busy; whoever runs nodes tries again
                if attempt == 3:
                    raise
        raise AssertionError

    def processes(self) -> list[psutil.Process]:
        """All of the nodes'."""
        found = []
        for node in self.nodes:
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(node.pid).children(recursive=True)
        return found


@contextmanager
def head(scratch: Path, cpus: int = 1, memory: int = 100_000_000, **variables: str) -> Iterator[Head]:
    """A cluster of one node, with `variables` in its environment. Its processes, and no others, end with it."""
    (scratch / "right").write_text(TOKEN)
    (scratch / "right").chmod(0o600)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a job's `python` is this one
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(scratch / "right"),
        "RAY_USAGE_STATS_ENABLED": "0",
        **variables,
    }
    port, dashboard, client = free_ports(3)
    options: dict[str, object] = {
        "--port": port,
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": dashboard,
        "--ray-client-server-port": client,
        "--num-cpus": cpus,
        "--object-store-memory": memory,
    }
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # short: sockets lie in it
        address, log = f"http://127.0.0.1:{dashboard}", scratch / "head.txt"
        options["--temp-dir"] = f"{folder}/ray"
        it = Head(address, port, environment, Path(folder) / "ray")
        try:
            process = it.start(log, options, "--head")
            until(lambda: answers(address), process, log)
            yield it
        finally:
            for node in reversed(it.nodes):
                end(node)


def free_ports(count: int) -> list[int]:
    """Held all at once, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 90.0) -> None:
    """Waits for `condition`, while `process`, which writes `log`, runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
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


def kill(node: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a node and all that it started, as where a machine is lost; nothing where it has ended."""
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait()


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
