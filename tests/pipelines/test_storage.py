"""Checkpoints are whole or not at all, and never run code; storage that is away is waited for."""

import errno
import hashlib
import io
import itertools
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs
import pytest
import torch

from pipelines import storage
from pipelines.errors import UserError
from pipelines.sources import Data, open_source
from pipelines.storage import PATIENCE, PAUSES, Checkpoints, Folder, open_folder

STATE: dict[str, Any] = {"weights": torch.arange(1000.0), "step": 3, "nested": {"list": [1, 2.5, "x", None]}}


def make(path: Path, keep: int = 3) -> Checkpoints:
    return Checkpoints(open_folder(str(path)) / "checkpoints", keep)


def test_what_is_saved_is_loaded_and_old_ones_are_pruned(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, keep=2)
    for step in (5, 10, 15):
        checkpoints.save(step, {**STATE, "step": step})
    assert checkpoints.steps() == [10, 15]
    state, broken = checkpoints.newest()
    assert broken == [] and state is not None and state["step"] == 15
    assert torch.equal(state["weights"], STATE["weights"]) and state["nested"] == STATE["nested"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        f"step-000000{n}.{suffix}" for n in (10, 15) for suffix in ("json", "pt")
    ]


@pytest.mark.parametrize("damage", ["half", "bit", "empty", "manifest", "cut manifest", "no manifest"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    checkpoints = make(tmp_path)
    checkpoints.save(1, {**STATE, "step": 1})
    checkpoints.save(2, {**STATE, "step": 2})
    newest = tmp_path / "checkpoints" / "step-00000002.pt"
    content = bytearray(newest.read_bytes())
    if damage == "half":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "manifest":
        newest.with_suffix(".json").write_text("[" * 100_000)
    elif damage == "cut manifest":
        newest.with_suffix(".json").write_text(newest.with_suffix(".json").read_text()[:30])
    else:
        newest.with_suffix(".json").unlink()  # killed between the two writes: it never counted
    state, broken = checkpoints.newest()
    assert state is not None and state["step"] == 1
    if damage != "no manifest":
        assert len(broken) == 1 and re.search(r"step-00000002.(pt|json) is broken", broken[0])
        assert "the one before is used" in broken[0]


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/pwned",)

    checkpoints = make(tmp_path)
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": Hostile()})
    with pytest.raises(UserError, match="other things than tensors"):
        checkpoints.load(2)
    assert not (tmp_path / "pwned").exists()
    state, broken = checkpoints.newest()
    assert state == {"step": 1} and len(broken) == 1


def test_full_storage_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on file size in a process of its own stands for a full disk: writing fails midway with an OSError."""
    checkpoints = make(tmp_path)
    checkpoints.save(1, {"step": 1})
    program = (
        "import resource, signal, sys, torch\n"
        "from pipelines.errors import UserError\n"
        "from pipelines.storage import Checkpoints, open_folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"c = Checkpoints(open_folder({str(tmp_path)!r}) / 'checkpoints')\n"
        "try:\n    c.save(2, {'step': 2, 'x': torch.zeros(1_000_000)})\n"
        "except UserError as error:\n    print(error); sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr
    assert "cannot write" in done.stdout and "free space" in done.stdout and "--run.resume" in done.stdout
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000001.json", "step-00000001.pt"]
    assert checkpoints.newest() == ({"step": 1}, [])
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_unwritable_and_unknown_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*choose another --run.storage"):
        (open_folder(str(tmp_path / "file")) / "run").write("x", b"1")
    with pytest.raises(UserError, match="give a path, or a URI"):
        open_folder("nonsense://bucket/x")


class Clock:
    """Stands for time: it passes by sleeping alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.pauses = 0.0, list[float]()
        self.then: Callable[[], None] = lambda: None
        monkeypatch.setattr(storage, "monotonic", lambda: self.now)
        monkeypatch.setattr(storage, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        self.then()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Faulty:
    """A disk, or an object store in a folder of one: `fault` is asked before each call, with its number and name."""

    def __init__(self, kind: str = "disk") -> None:
        self.type_name = {"disk": "mounted", "object store": "s3"}[kind]
        self.inner = pyarrow.fs.LocalFileSystem()
        self.calls = list[str]()
        self.fault: Callable[[int, str], BaseException | None] = lambda number, name: None

    def ask(self, name: str) -> None:
        self.calls.append(name)
        if error := self.fault(len(self.calls), name):
            raise error

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.ask(name)
            return getattr(self.inner, name)(*arguments, **named)

        return call

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator[Any]:
        self.ask("open_output_stream")
        content = io.BytesIO()
        if self.type_name == "mounted":  # what arrives is seen, whole or not
            Path(path).write_bytes(b"")

        def write(some: bytes) -> None:
            if self.type_name == "mounted":
                Path(path).write_bytes(some[: len(some) // 2])
            self.ask("write")
            content.write(some)

        yield SimpleNamespace(write=write)
        self.ask("close")
        Path(path).parent.mkdir(parents=self.type_name == "s3", exist_ok=True)
        Path(path).write_bytes(content.getvalue())


def faulty(path: Path, kind: str = "disk") -> tuple[Folder, Faulty]:
    filesystem: Any = Faulty(kind)
    return Folder(filesystem, str(path), str(path)), filesystem


def number(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def of_s3(code: str) -> OSError:
    return OSError(f"When reading key 'TOKEN/x' in bucket 'b': AWS Error {code} during GetObject operation: no.")


AWAY = [
    *map(number, (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED)),
    *map(of_s3, ("SLOW_DOWN", "INTERNAL_FAILURE", "NETWORK_CONNECTION", "REQUEST_TIMEOUT", "NO_SUCH_UPLOAD")),
    *(of_s3(f"UNKNOWN (HTTP status {status})") for status in (408, 429, 500, 503)),
]
DOES = {
    "names": lambda folder: folder.names() == ["x"],
    "exists": lambda folder: folder.exists("x") and not folder.exists("y"),
    "read": lambda folder: folder.read("x") == b"1",
    "write": lambda folder: folder.write("x", b"2") is None and folder.read("x") == b"2",
    "delete": lambda folder: folder.delete("x") is None and folder.delete("x") is None and folder.names() == [],
    "wait_for": lambda folder: folder.wait_for("x") is None,
}


@pytest.mark.parametrize("error", AWAY, ids=str)
def test_what_may_pass_is_tried_again(tmp_path: Path, clock: Clock, error: OSError) -> None:
    for does in DOES.values():
        folder, filesystem = faulty(tmp_path)
        (tmp_path / "x").write_bytes(b"1")
        filesystem.fault = lambda number, name: error if number <= 4 else None
        assert does(folder)


def test_pauses_grow_to_a_bound_and_end_in_a_clear_error(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    folder, filesystem = faulty(tmp_path)
    filesystem.fault = lambda number, name: of_s3("SLOW_DOWN")
    for name, does in DOES.items():
        began = clock.now
        clock.pauses.clear()
        caplog.clear()
        with pytest.raises(UserError) as told:
            does(folder)
        assert PATIENCE - PAUSES[1] - 1 < clock.now - began <= PATIENCE, name
        assert 0.25 <= clock.pauses[0] <= 0.5 <= clock.pauses[1] <= 1 and 5 <= clock.pauses[-1] <= 10
        assert "SLOW_DOWN" in str(told.value) and "120 s" in str(told.value) and "check" in str(told.value)
        assert len(caplog.messages) == 1 and "trying again for up to 120 seconds" in caplog.messages[0]
    with pytest.raises(UserError, match=r"--run.resume goes on"):
        folder.write("x", b"2")
    filesystem.fault = lambda number, name: None
    assert folder.names() == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (number(errno.ENOSPC), "full: free space"),
        (number(errno.EDQUOT), "full: free space"),
        (of_s3("UNKNOWN (HTTP status 507) Unable to parse ExceptionName: InsufficientStorage"), "full: free space"),
        (number(errno.EACCES), "get the right"),
        (number(errno.EROFS), "get the right"),
        (of_s3("ACCESS_DENIED"), "check the keys"),
        (of_s3("INVALID_ACCESS_KEY_ID"), "check the keys"),
        (of_s3("SIGNATURE_DOES_NOT_MATCH"), "check the keys"),
        (of_s3("UNKNOWN (HTTP status 400) Unable to parse ExceptionName: ExpiredToken"), "check the keys"),
        (of_s3("NO_SUCH_BUCKET"), "check the address"),
        (of_s3("UNKNOWN (HTTP status 301)"), "check the address"),
        (number(errno.ENOTDIR), "check the path"),
    ],
    ids=str,
)
def test_what_cannot_heal_is_said_at_once(tmp_path: Path, clock: Clock, error: OSError, remedy: str) -> None:
    for does in DOES.values():
        folder, filesystem = faulty(tmp_path)
        filesystem.fault = lambda number, name: error
        with pytest.raises(UserError, match=remedy):
            does(folder)
        assert clock.pauses == []
    with pytest.raises(FileNotFoundError):
        open_folder(str(tmp_path)).read("none")
    assert clock.pauses == []


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["disk", "object store"])
@pytest.mark.parametrize("how", ["passing", "one call", "from then on", "killed"])
@pytest.mark.parametrize("case", ["new", "again", "broken"])
def test_a_save_that_fails_anywhere_leaves_a_good_one(
    tmp_path: Path, clock: Clock, kind: str, how: str, case: str
) -> None:
    """At each call that a save makes. `again`: the step is there, and the only one. `broken`: it is there, cut."""
    error: BaseException = {"passing": number(errno.EIO), "killed": Killed()}.get(how, number(errno.ENOSPC))
    for failing in itertools.count(1):
        path = tmp_path / str(failing)
        folder, filesystem = faulty(path / "checkpoints", kind)
        checkpoints = Checkpoints(folder, keep=1 if case == "again" else 2)
        for step in {"new": (1, 2), "again": (3,), "broken": (1, 2, 3)}[case]:
            checkpoints.save(step, {**STATE, "step": step})
        if case == "broken":
            (path / "checkpoints" / "step-00000003.pt").write_bytes(b"cut")
        filesystem.calls.clear()
        filesystem.fault = lambda number, name, n=failing: (  # type: ignore[misc]
            error if number == n or (number > n and how in ("from then on", "killed")) else None
        )
        good = False
        with suppress(UserError, Killed):
            checkpoints.save(3, {**STATE, "step": 3})
            good = True
        reached = len(filesystem.calls) >= failing
        assert good or how != "passing"
        filesystem.fault = lambda number, name: None
        state, _ = Checkpoints(folder).newest()
        assert state is not None, (failing, filesystem.calls)
        assert state["step"] == 3 if good or case == "again" else state["step"] in (2, 3)
        assert torch.equal(state["weights"], STATE["weights"])
        checkpoints.save(4, {**STATE, "step": 4})  # and what was left is tidied up
        assert checkpoints.steps()[-1] == 4 and len(checkpoints.steps()) == checkpoints.keep
        left = {name for name in os.listdir(path / "checkpoints") if not name.startswith("step-")}
        assert not left
        if not reached:
            break
    assert failing > {"new": 12, "again": 2, "broken": 12}[case] - 4 * (kind == "object store")


def test_storage_that_cannot_be_read_is_not_a_broken_checkpoint(tmp_path: Path, clock: Clock) -> None:
    """Else a run would begin anew while a server restarts."""
    folder, filesystem = faulty(tmp_path / "checkpoints")
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"step": 1})
    filesystem.fault = lambda number, name: OSError(errno.EIO, "no") if name == "open_input_stream" else None
    with pytest.raises(UserError, match="cannot read"):
        checkpoints.newest()
    clock.then = lambda: setattr(filesystem, "fault", lambda number, name: None)
    assert checkpoints.newest() == ({"step": 1}, [])


def test_broken_newer_ones_never_push_out_a_good_one(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpoints.save(step, {"step": step})
    for step in (20, 30):
        (tmp_path / "checkpoints" / f"step-000000{step}.pt").write_bytes(b"cut")
    checkpoints.save(15, {"step": 15})
    state, broken = checkpoints.newest()
    assert state == {"step": 15} and len(broken) == 2
    checkpoints.save(20, {"step": 20})  # cut: written again
    assert checkpoints.load(20) == {"step": 20}


def test_a_newest_one_that_is_deleted_while_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = make(tmp_path, keep=1)
    checkpoints.save(1, {"step": 1})
    load = checkpoints.load

    def meanwhile(step: int, device: Any = "cpu") -> dict[str, Any]:
        if step == 1:
            make(tmp_path, keep=1).save(2, {"step": 2})
        return load(step, device)

    monkeypatch.setattr(checkpoints, "load", meanwhile)
    assert checkpoints.newest() == ({"step": 2}, [])


def test_other_files_are_left_alone_and_a_killed_writers_are_not(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, keep=1)
    checkpoints.save(1, {"step": 1})
    here = tmp_path / "checkpoints"
    left = [".step-00000001.pt.01234567.tmp", "step-00000000.pt"]
    others = ["step-x.pt", "step-x.json", "step-1.pt", "step-1.json", "notes.txt", ".hidden"]
    for name in (*left, *others):
        (here / name).write_text("")
    assert checkpoints.steps() == [1]
    checkpoints.save(2, {"step": 2})
    assert sorted(os.listdir(here)) == sorted([*others, "step-00000002.json", "step-00000002.pt"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", b"\x80\x02K\x01.", torch.zeros(2), [1, 2]])
def test_a_forged_checkpoint_is_broken(tmp_path: Path, content: Any) -> None:
    """Its manifest fits."""
    checkpoints = make(tmp_path)
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": 2})
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content = buffer.getvalue()
    here = tmp_path / "checkpoints"
    (here / "step-00000002.pt").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (here / "step-00000002.json").write_text(json.dumps({"step": 2, "bytes": len(content), "sha256": digest}))
    state, broken = checkpoints.newest()
    assert state == {"step": 1} and "holds other things" in broken[0]


def test_a_full_disk_is_named_and_free_space_heals_it(tmp_path: Path, clock: Clock) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "rayssl-test", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        checkpoints = make(disk)
        large = {"weights": torch.zeros(200_000)}  # 800 kB
        checkpoints.save(1, {"step": 1, **large})
        (disk / "others").write_bytes(bytes(800_000))
        with pytest.raises(UserError, match=r"cannot write .*step-00000002.pt .*full: free space there .*--run.resume"):
            checkpoints.save(2, {"step": 2, **large})
        assert clock.pauses == []
        assert sorted(os.listdir(disk / "checkpoints")) == ["step-00000001.json", "step-00000001.pt"]
        state, broken = checkpoints.newest()
        assert state is not None and state["step"] == 1 and broken == []
        (disk / "others").unlink()
        checkpoints.save(2, {"step": 2, **large})
        assert checkpoints.steps() == [1, 2] and checkpoints.load(2)["step"] == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_mount_that_is_away_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    """The run's folder is missing for 30 seconds; none is made in its place."""
    run, away = tmp_path / "run", tmp_path / "away"
    folder = open_folder(str(run))
    folder.write("recipe.json", b"{}")
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, {"step": 1})

    def back() -> None:
        assert not run.exists()
        if clock.now > 30:
            away.rename(run)
            clock.then = lambda: None

    run.rename(away)
    clock.then = back
    checkpoints.save(2, {"step": 2})
    assert clock.now > 30 and checkpoints.newest() == ({"step": 2}, [])
    assert checkpoints.steps() == [1, 2]
    run.rename(away)
    clock.now, clock.then = 0.0, back
    folder.wait_for("recipe.json")
    assert clock.now > 30
    run.rename(away)
    clock.now, clock.then = 0.0, lambda: None
    for does in (lambda: checkpoints.save(3, {"step": 3}), lambda: folder.wait_for("recipe.json")):
        with pytest.raises(UserError, match=r"tried for 120 s.*check that the storage is mounted, on all nodes"):
            does()
    assert not run.exists()


def test_the_disk_has_it_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """So that no power loss leaves a name without its content."""
    here, seen = tmp_path / "checkpoints", list[tuple[str, list[str]]]()
    broken = [errno.EIO, errno.EINVAL]  # the first is tried again, the second is of a mounted store that can't tell
    fsync = os.fsync

    def watched(opened: int) -> None:
        seen.append((os.readlink(f"/proc/self/fd/{opened}"), sorted(os.listdir(here))))
        if broken:
            raise number(broken.pop(0))
        fsync(opened)

    monkeypatch.setattr(os, "fsync", watched)
    make(tmp_path).save(1, {"step": 1})
    assert len(clock.pauses) == 1
    names = [Path(path).name.split(".")[2] if path.endswith(".tmp") else Path(path).name for path, _ in seen]
    assert names == ["pt", "pt", "checkpoints", "json", "checkpoints"]
    assert "step-00000001.pt" not in seen[1][1] and "step-00000001.pt" in seen[3][1]
    assert "step-00000001.json" not in seen[3][1] and seen[4][1] == ["step-00000001.json", "step-00000001.pt"]


@pytest.mark.parametrize("what", [open_folder, lambda uri: open_source(uri, Data())])
@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAX:hunter2@bucket/x?region=r",
        "s3://AKIAX:hun/ter2@bucket/x?region=r",
        "s3://bucket/x?region=r&secret_key=hunter2",
        "abfs://bucket/x?client_secret=hunter2",
        "s3://bucket/x?X-Amz-Signature=hunter2",
    ],
)
def test_keys_in_an_address_are_refused_and_not_repeated(uri: str, what: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="has keys in it") as told:
        what(uri)
    assert "ter2" not in str(told.value) and "AKIAX" not in str(told.value) and "bucket/x" in str(told.value)


def test_an_addresss_query_stays_behind_the_path() -> None:
    query = "?endpoint_override=http://127.0.0.1:1&region=r"
    run = open_folder(f"s3://bucket/runs/{query}") / "first"
    assert (run.path, run.uri) == ("bucket/runs/first", f"s3://bucket/runs/first{query}")
    assert (run.parent.path, run.parent.uri) == ("bucket/runs", f"s3://bucket/runs{query}")
    assert open_folder(run.uri).filesystem == run.filesystem
    odd = open_folder("/tmp/a?b") / "c"
    assert (odd.path, odd.uri, odd.parent.uri) == ("/tmp/a?b/c", "/tmp/a?b/c", "/tmp/a?b")
