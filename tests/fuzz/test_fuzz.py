"""Some tens of changed inputs, and a control: faults that are planted are found, and what was tried can be repeated."""

import ctypes
import os
import subprocess
from pathlib import Path
from random import Random

import pytest
from child import FAILURE, Child, Outcome
from mutation import KINDS, mutated
from targets import ACCEPTED, TARGETS

from pipelines.errors import UserError

PRELOAD = ["pipelines.feed", "pipelines.evaluate", "pipelines.frames", "tuning.sweep", "ray"]
FEW = {"image": 20, "video": 8, "parquet": 10, "checkpoint": 10, "command line": 2}


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory):
    child = Child(tmp_path_factory.mktemp("fuzz").resolve(), seconds=20, memory=600, preload=PRELOAD)
    yield child
    child.stop()


def crashes(name: str, content: bytes, folder: Path) -> str:
    ctypes.string_at(0)
    return ACCEPTED


def hangs(name: str, content: bytes, folder: Path) -> str:
    while True:
        pass


def fills(name: str, content: bytes, folder: Path) -> str:
    return str(len(bytearray(os.urandom(1)) * 700 * 2**20))[:0] + ACCEPTED


def escapes(name: str, content: bytes, folder: Path) -> str:
    (folder.parent / "outside").write_bytes(content)
    return ACCEPTED


def escapes_far(name: str, content: bytes, folder: Path) -> str:
    Path(name).write_bytes(content)
    return ACCEPTED


def raises(name: str, content: bytes, folder: Path) -> str:
    return dict[str, str]()[name]


def starts(name: str, content: bytes, folder: Path) -> str:
    subprocess.run(["true"])
    return ACCEPTED


def refuses(name: str, content: bytes, folder: Path) -> str:
    raise UserError(name)


@pytest.mark.parametrize("kind", FEW)
def test_changed_inputs(child: Child, kind: str) -> None:
    seeds = KINDS[kind][1]()
    for case in range(FEW[kind]):
        random = Random(f"test/{case}")
        name = random.choice(sorted(seeds))
        outcome = child.attempt(TARGETS[kind], name, mutated(name, seeds[name], seeds, random))
        assert outcome.ended != FAILURE, f"{kind} {case}, of {name}: {outcome.why}"


def test_seeds_are_valid_and_a_change_is_a_function_of_its_seed(child: Child) -> None:
    images = KINDS["image"][1]()
    for name, content in images.items():
        assert child.attempt(TARGETS["image"], name, content) == Outcome(ACCEPTED), name
        assert mutated(name, content, images, Random("1")) == mutated(name, content, images, Random("1"))
    assert len({mutated("plain.png", images["plain.png"], images, Random(i)) for i in range(20)}) > 15


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (crashes, "the process ended: SIGSEGV"),
        (fills, "MiB of memory"),
        (escapes, "outside"),
        (raises, "KeyError: 'x'"),
        (starts, "subprocess.Popen"),
    ],
)
def test_a_planted_fault_is_found(child: Child, fault, told: str) -> None:
    outcome = child.attempt(fault, "x", b"")
    assert outcome.ended == FAILURE and told in outcome.why
    assert child.attempt(refuses, "in words", b"") == Outcome("refused", "in words")  # and others go on
    assert child.attempt(refuses, "", b"").ended == FAILURE


def test_a_file_far_away_is_found(child: Child, tmp_path: Path) -> None:
    outcome = child.attempt(escapes_far, str(tmp_path / "x"), b"")
    assert outcome.ended == FAILURE and f"open {tmp_path.resolve() / 'x'}" in outcome.why


def test_what_does_not_end_is_found(child: Child) -> None:
    child.attempt(refuses, "x", b"")
    before, child.seconds = child.seconds, 0.3
    outcome = child.attempt(hangs, "x", b"")
    child.seconds = before
    assert outcome.ended == FAILURE and "more than 0.3 s" in outcome.why and "in hangs" in outcome.why
