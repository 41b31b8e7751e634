"""The command line as a user types it: help that teaches, and mistakes answered in one or two lines."""

import os
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.__main__ import COMMANDS, main

README = Path(__file__).parents[2] / "README.md"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Runs a command that is to fail; returns what it said on stderr."""
    try:
        code = main(list(words))
    except SystemExit as error:
        code = int(error.code or 0)
    shown = capsys.readouterr()
    assert code != 0 and "Traceback" not in shown.err
    return shown.err


def test_no_such_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, "pretrain", "sce_cifar10", "--data.train", str(tmp_path / "nowhere"))
    assert said == f"error: {tmp_path}/nowhere: no such file or folder\n"
    assert "no data: give --data.train" in refused(capsys, "pretrain", "sce_cifar10")


def test_no_image_column_lists_those_that_there_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"], "caption": ["y"]}), tmp_path / "a.parquet")
    said = refused(capsys, "pretrain", "sce_cifar10", "--data.train", str(tmp_path / "a.parquet"))
    assert "no column image; its columns are picture, caption: name one with --data.image" in said
    assert len(said.splitlines()) <= 2


def test_empty_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "a.parquet")
    assert "hold no rows" in refused(capsys, "pretrain", "sce_cifar10", "--data.train", str(tmp_path / "a.parquet"))
    (tmp_path / "folder").mkdir()
    assert "it is empty" in refused(capsys, "pretrain", "sce_cifar10", "--data.train", str(tmp_path / "folder"))


def test_unknown_names_are_answered_with_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no recipe sce_cifar; did you mean sce_cifar10" in refused(capsys, "pretrain", "sce_cifar")
    said = refused(capsys, "pretrain", "sce_cifar10", "--method.temperatur", "0.1")
    assert "Unrecognized" in said and "--method.temperature" in said
    assert "--epochs" in refused(capsys, "pretrain", "sce_cifar10", "--epoch", "3")
    assert "did you mean shapes" in refused(capsys, "data", "shape", "--to", str(tmp_path))
    assert "no command pretrian" in refused(capsys, "pretrian")
    assert "neither a run" in refused(capsys, "evaluate", str(tmp_path), "knn")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--epochs", "0", "epochs is at least 1, got 0"),
        ("--run.workers", "0", "run.workers is at least 1, got 0"),
        ("--method.temperature", "-1", "above 0"),
        ("--views.online.blur", "2", "views.online.blur is in"),
        ("--optimizers.model.lr", "-3", "lr"),
        ("--data.size", "0", "--data.size"),
        ("--run.storage", "nonsense://bucket/x", "give a path, or a URI"),
    ],
)
def test_values_out_of_range_are_named(
    capsys: pytest.CaptureFixture[str], images: tuple[Path, Path], option: str, value: str, said: str
) -> None:
    words = ["--data.train", str(images[0]), "--batch-size", "32", option, value]
    assert said in refused(capsys, "pretrain", "sce_cifar10", *words)


def test_storage_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], images: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    words = ["--data.train", str(images[0]), "--batch-size", "32", "--run.storage", str(tmp_path / "file")]
    said = refused(capsys, "pretrain", "sce_cifar10", *words)
    assert "cannot write" in said and "choose another --run.storage" in said


def test_list_shows_whole_names_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in ("sce_cifar10", "ressl_tinyimagenet", "mobilenet_v3_large", "retrieval", "simsiam"):
        assert re.search(rf"\b{name}\b", shown), name


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "sce_cifar10", "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    for words in (
        "--method.target-temperature",
        "tau_m",
        "--optimizers.model.lr",
        "--views.online.blur",
        "--run.resume",
    ):
        assert words in shown, words
    assert main([]) == 2 and main(["--help"]) == 0


def commands() -> list[list[str]]:
    """Every `python -m pipelines ...` of the README, its continuation lines joined, its comment dropped."""
    blocks = re.findall(r"```\n(.*?)```", README.read_text(), flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[3:] for line in lines if line.startswith("python -m pipelines")]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_the_readme_names_only_what_there_is(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's options are known: with --help added, everything is parsed and nothing runs."""
    assert words[0] in COMMANDS
    if words[0] in ("evaluate", "export"):  # these read the run first: their own tests run them
        return
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for word in words:
        if word.startswith("--"):
            assert word in shown, word


def test_the_readme_has_python_that_runs() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    smaller = program.replace("(512,", "(64,").replace("arange(512)", "arange(64)").replace("128", "32")
    exec(compile(smaller, "README.md", "exec"), {})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
