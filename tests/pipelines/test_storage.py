"""Checkpoints are whole or not at all, and never run code."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import UserError
from pipelines.storage import Checkpoints, open_folder

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


@pytest.mark.parametrize("damage", ["half", "bit", "empty", "no manifest"])
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
    else:
        newest.with_suffix(".json").unlink()  # killed between the two writes: it never counted
    state, broken = checkpoints.newest()
    assert state is not None and state["step"] == 1
    if damage != "no manifest":
        assert len(broken) == 1 and "step-00000002.pt is broken" in broken[0] and "the one before is used" in broken[0]


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
