"""A process in which inputs are tried, since decoders may crash it: watched, ended and started anew by its parent."""

import faulthandler
import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from pipelines.errors import UserError

Target = Callable[[str, bytes, Path], str]
"""(the input's name, its content, an empty folder, in which the process stands) -> how it ended."""
FAILURE = "FAILURE"


@dataclass(frozen=True)
class Outcome:
    ended: str
    """What the target returned, refused, or FAILURE."""
    why: str = ""
    """Of a refusal its message; of a failure in its first line what it was."""


class Child:
    """Args:
    scratch: a folder for what inputs do; whatever comes to be in it outside the input's own folder is a failure.
    seconds: of computing that an input may take, and tenfold by the clock.
    memory: MiB that an input may take.
    """

    def __init__(self, scratch: Path, seconds: float, memory: int, preload: list[str]) -> None:
        self.scratch, self.seconds, self.memory = scratch, seconds, memory
        for name in ("home", "temporary", "deep/within"):
            (scratch / name).mkdir(parents=True, exist_ok=True)
        self.context = multiprocessing.get_context("forkserver")  # it imports once, and forks children that know all
        self.context.set_forkserver_preload(preload)
        self.preload = preload
        self.trace = scratch / "trace.txt"
        self.process: Any = None

    def start(self) -> None:
        self.pipe, other = self.context.Pipe()
        self.process = self.context.Process(
            target=serve, args=(other, self.scratch, self.memory, self.preload), daemon=True
        )
        self.process.start()
        other.close()
        self.pipe.recv()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None

    def attempt(self, target: Target, name: str, content: bytes) -> Outcome:
        if self.process is None:
            self.start()
        began, of = time.monotonic(), psutil.Process(self.process.pid)
        self.pipe.send((target, name, content))
        used = sum(of.cpu_times()[:2])
        try:
            while not self.pipe.poll(0.1):
                with suppress(psutil.Error):
                    spent = sum(of.cpu_times()[:2]) - used
                    if spent > self.seconds or time.monotonic() - began > 10 * self.seconds:
                        os.kill(self.process.pid, signal.SIGABRT)  # faulthandler then says where it stands
                        self.process.join(10)
                        self.stop()
                        return Outcome(FAILURE, f"more than {self.seconds:g} s\n{self.trace.read_text()}")
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.stop()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Outcome(FAILURE, f"the process ended: {how}\n{self.trace.read_text()}")


# ---------------------------------------------------------------------------------------- in the child


def serve(pipe: Connection, scratch: Path, memory: int, preload: list[str]) -> None:
    sys.dont_write_bytecode = True
    for name in preload:
        importlib.import_module(name)
    trace = (scratch / "trace.txt").open("w")
    faulthandler.enable(trace)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders' own words
    home, within = scratch / "home", scratch / f"deep/within/{os.getpid()}-0"
    os.environ |= {"HOME": str(home), "TMPDIR": str(scratch / "temporary"), "RAY_ADDRESS": ""}
    limit = psutil.Process().memory_info().vms + 4 * memory * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # the machine's safety; what counts is measured below
    done: list[str] = []
    sys.addaudithook(lambda event, arguments: watch(event, arguments, scratch, done))
    pipe.send(None)
    number = 0
    while True:
        try:
            target, name, content = pipe.recv()
        except EOFError:
            return
        shutil.rmtree(within, ignore_errors=True)
        within = within.with_name(f"{os.getpid()}-{(number := number + 1)}")  # listings of folders are remembered
        within.mkdir()
        os.chdir(within)
        before = files(scratch, within)
        forget_peak()
        done.clear()
        begun = memory_now("VmRSS")
        try:
            outcome = Outcome(target(name, content, within))
        except UserError as error:
            told = str(error).strip()
            outcome = Outcome("refused", told) if told else Outcome(FAILURE, "refused without a word")
        except BaseException as error:
            outcome = Outcome(FAILURE, f"{type(error).__name__}: {str(error)[:200]}\n{traceback.format_exc()}")
        taken = memory_now("VmHWM") - begun
        if taken > memory * 2**20:
            outcome = Outcome(FAILURE, f"{taken / 2**20:.0f} MiB of memory\n{outcome}")
        if outside := done + sorted(files(scratch, within) - before):
            outcome = Outcome(FAILURE, f"did {', '.join(outside[:3])}\n{outcome}")
            for path in files(scratch, within) - before:
                shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
        pipe.send(outcome)


def files(scratch: Path, within: Path) -> set[str]:
    """What lies in `scratch`, but not below the input's folder, the home and the folder of temporary files."""
    found = set()
    for folder, below, names in os.walk(scratch):
        if folder in (str(within), str(scratch / "home"), str(scratch / "temporary")):
            below.clear()
            continue
        found |= {os.path.join(folder, name) for name in (*below, *names)}
    return found


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pty.spawn")
CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.truncate")


def watch(event: str, arguments: tuple[Any, ...], scratch: Path, done: list[str]) -> None:
    """An audit hook: notes programs that are started, connections, and files that Python changes elsewhere."""
    if event in STARTS and arguments[0] != "fc-list":  # matplotlib's, when it first looks for fonts
        done.append(f"{event} {arguments[0]!r:.100}")
    changes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
    if changes and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith((f"{scratch}/", "/dev/")):
            done.append(f"{event} {path}")


def forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_now(field: str) -> int:
    """Bytes, of /proc/self/status; of systems without it the peak, which only grows."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])
