"""Reports: figures in their places, spread over seeds, correlation, what failed and what is still to be run."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipelines.errors import UserError
from pipelines.extractors import INCEPTION
from pipelines.storage import Folder, open_folder
from tuning.grid import Cell, find_grid
from tuning.report import (
    Outcome,
    Sweep,
    cells_frame,
    picture,
    rank_correlation,
    read_sweep,
    report,
    trial_name,
    write_outcomes,
)


def swept(tmp_path: Path, sweep: Sweep, ended: list[Outcome]) -> Folder:
    folder = open_folder(str(tmp_path))
    sweep.write(folder)
    trials: dict[str, list[Outcome]] = {}
    for outcome in ended:
        trials.setdefault(trial_name(find_grid(sweep.grid), outcome.cell, outcome.seed), []).append(outcome)
    for name, mine in trials.items():
        write_outcomes(folder / "trials" / name, mine)
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


def judged(*by: str) -> list[Outcome]:
    """Of Table 7.1, CIFAR-10: three rows, ours in the paper's order by FID, in the reverse by inception score."""
    figures = {"standard": (50.0, 4.0), "gaussian": (30.0, 3.0), "df-1": (20.0, 2.0)}
    return [
        Outcome((noise, "cifar10", measure), 0, "finished", figure, by=by[i % len(by)])
        for i, (noise, pair) in enumerate(figures.items())
        for measure, figure in zip(("fid", "inception_score"), pair, strict=True)
    ]


def test_fid_names_what_it_is_by_and_stands_beside_the_papers_by_inception_alone(tmp_path: Path) -> None:
    ended = judged(f"{INCEPTION}, weights' sha256 01234567")
    sweep = Sweep("thesis_table7_1", "paper", tuple(outcome.cell for outcome in ended))
    text = report(swept(tmp_path / "a", sweep, ended))
    assert "1 seed(s); fid, inception_score." in text
    assert "correlation (Spearman) of our column and the paper's: fid 1.00, inception_score -1.00." in text
    assert "are by torchvision inception_v3 IMAGENET1K_V1, weights' sha256 01234567: near the paper's" in text
    assert "| standard | cifar10 | fid | 50.00 | - | 46.10 | 3.90 |" in text
    trials = pd.read_csv(tmp_path / "a" / "results.csv")
    assert trials["by"].unique().tolist() == [ended[0].by]

    ended = judged("supervised resnet20 of a", ended[0].by)
    text = report(swept(tmp_path / "b", sweep, ended))
    assert "difference" not in text and "and with nothing in print" in text
    assert "are by (1) supervised resnet20 of a; (2) torchvision inception_v3" in text
    assert "| standard | cifar10 | fid | 50.00 | - | 46.10 | (1) |" in text
    assert "difference" not in report(swept(tmp_path / "c", sweep, judged(""))), "of an unknown one"


def test_fid_and_inception_score_have_panels_of_their_own() -> None:
    ended = judged("x")
    sweep = Sweep("thesis_table7_1", "small", tuple(outcome.cell for outcome in ended))
    grid = find_grid(sweep.grid)
    panels = picture(grid, sweep, cells_frame(grid, sweep, ended)).axes
    assert [panel.get_title() for panel in panels[:2]] == ["ours, small\nfid", "ours, small\ninception_score"]
    assert len(panels) == 4 and np.asarray(panels[0].images[0].get_array()).tolist() == [[50.0], [30.0], [20.0]]


def test_baselines_stand_by_layer_also_where_there_is_one_alone(tmp_path: Path) -> None:
    layers = {"conv1": (9.8, 10.2), "conv2": (30.0, 30.0)}
    ended = [
        Outcome((what, layer), 0, "finished", 40.0, random_init=pair[i])
        for i, what in enumerate(("rot", "warp"))
        for layer, pair in layers.items()
    ]
    text = report(swept(tmp_path, Sweep("thesis_table4_2", "small", tuple(it.cell for it in ended)), ended))
    assert "random initialization has conv1 9.80 to 10.20, conv2 30.00." in text and "raw pixels" not in text
    assert "; conv1, conv2 by layerwise, in percent." in text


@pytest.mark.parametrize(
    "name", ["ressl_table1", "sce_table3", "sce_table4", "sce_table6", "thesis_table7_1", "thesis_table7_4"]
)
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
