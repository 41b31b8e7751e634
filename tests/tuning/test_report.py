"""Reports: figures in their places, spread over seeds, correlation, what failed and what is still to be run."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipelines.errors import UserError
from pipelines.storage import Folder, open_folder
from tuning.grid import Cell, find_grid
from tuning.report import Outcome, Sweep, cells_frame, rank_correlation, read_sweep, report, trial_name, write_outcomes


def swept(tmp_path: Path, sweep: Sweep, ended: list[Outcome]) -> Folder:
    folder = open_folder(str(tmp_path))
    sweep.write(folder)
    for outcome in ended:
        write_outcomes(folder / "trials" / trial_name(find_grid(sweep.grid), outcome.cell, outcome.seed), [outcome])
    return folder


LAMBDAS: tuple[Cell, ...] = ((0.0,), (0.5,), (1.0,))


def test_a_sweep_is_reported_from_its_folder(tmp_path: Path) -> None:
    sweep = Sweep("sce_table1", "small", LAMBDAS, seeds=2)
    ended = [
        Outcome((0.0,), 0, "finished", 40.0, 100),
        Outcome((0.0,), 1, "finished", 42.0, 100),
        Outcome((0.5,), 0, "finished", 45.0, 100),
        Outcome((0.5,), 1, "failed", error="ValueError on rank 1: odd | number"),
        Outcome((1.0,), 0, "collapsed", 10.0, 20),
    ]
    folder = swept(tmp_path, sweep, ended)
    text = report(folder)
    assert text == folder.read("results.md").decode()
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        ["lam", "ours", "deviation", "paper (ImageNet-100, ResNet-50, 200 epochs)", "status"],
        ["---"] * 5,
        ["0", "41.00", "1.41", "81.53", ""],
        ["0.5", "45.00", "-", "82.94", "1 failed"],
        ["1", "10.00", "-", "81.11", "1 collapsed, 1 to be run"],
    ]
    assert "correlation (Spearman) of our column and the paper's: 1.00." in text
    assert "- 0.5, seed 1: ValueError on rank 1: odd | number" in text
    trials = pd.read_csv(io.BytesIO(folder.read("results.csv")))
    assert trials["status"].tolist() == ["finished", "finished", "finished", "failed", "collapsed"]
    assert trials["ours"].tolist()[:3] == [40.0, 42.0, 45.0] and np.isnan(trials["ours"][3])
    assert trials["paper"].tolist() == [81.53, 81.53, 82.94, 82.94, 81.11]
    assert Image.open(tmp_path / "results.png").size[0] > 300
    hparams = sorted(path.parent.name for path in tmp_path.glob("tensorboard/*/events.*"))
    assert hparams == ["0-seed0", "0-seed1", "0.5-seed0", "1-seed0"]
    assert report(folder) == text
    assert sorted(path.parent.name for path in tmp_path.glob("tensorboard/*/events.*")) == hparams


def test_a_difference_stands_beside_the_papers_own_setting_alone(tmp_path: Path) -> None:
    cells: tuple[Cell, ...] = (("moco", "cifar10"), ("ressl", "cifar10"))
    ended = [Outcome(cells[0], 0, "finished", 88.0), Outcome(cells[1], 0, "finished", 90.0)]
    text = report(swept(tmp_path, Sweep("sce_table5", "paper", cells), ended))
    assert "| method | dataset | ours | deviation | paper | difference | cited by it |" in text
    assert "| moco | cifar10 | 88.00 | - | 87.56 | 0.44 | - |" in text
    assert "| ressl | cifar10 | 90.00 | - | 90.20 | -0.20 | 90.20 |" in text
    assert "correlation (Spearman) of our column and the paper's: -." in text


@pytest.mark.parametrize("name", ["ressl_table1", "sce_table3", "sce_table4", "sce_table6"])
def test_every_shape_of_table_has_a_picture(name: str, tmp_path: Path) -> None:
    """Even before the first trial has ended."""
    grid = find_grid(name)
    cells = tuple(grid.figures)[:20]
    ended = [Outcome(cell, 0, "finished" if i else "collapsed", 50.0 + i) for i, cell in enumerate(cells)]
    for some in ([], ended):
        report(swept(tmp_path, Sweep(name, "small", cells), some))
        picture = np.asarray(Image.open(tmp_path / "results.png").convert("RGB"))
        assert picture.std() > 10


def test_rank_correlation_by_hand() -> None:
    """Ranks 1 2 3 4 and 1 2 4 3: rho = 1 - 6 * 2 / (4 * 15) = .8; a cell without a figure is left out."""
    cells = pd.DataFrame({"ours": [1.0, 2.0, 3.0, 4.0, 9.0], "paper": [10.0, 20.0, 40.0, 30.0, np.nan]})
    assert rank_correlation(cells) == pytest.approx(0.8)
    assert rank_correlation(cells[:2]) is None
    assert rank_correlation(cells.assign(ours=1.0)) is None


def test_numbers_come_back_as_the_grid_has_them(tmp_path: Path) -> None:
    """JSON may have turned 0.0 into 0."""
    folder = open_folder(str(tmp_path))
    folder.write("sweep.json", b'{"grid": "sce_table1", "profile": "smoke", "cells": [[0], [1]], "seeds": 1}')
    assert read_sweep(folder) == Sweep("sce_table1", "smoke", ((0.0,), (1.0,)))
    frame = cells_frame(find_grid("sce_table1"), read_sweep(folder), [])
    assert frame["status"].tolist() == ["1 to be run"] * 2


def test_what_is_no_sweep(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"no sweep lies at .* \(it has no sweep.json\)"):
        report(folder)
    folder.write("sweep.json", b'{"grid": "sce_table1", "profile": "huge", "cells": [[0.5]]}')
    with pytest.raises(UserError, match="does not fit this version of the project"):
        report(folder)
    folder.write("sweep.json", b'{"grid": "sce_table1", "profile": "small", "cells": [[0.55]]}')
    with pytest.raises(UserError, match=r"has a cell that sce_table1 has not: \(0\.55,\)"):
        report(folder)
