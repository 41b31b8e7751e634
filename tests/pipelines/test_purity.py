"""Figures of clusters: by hand, and of a run's checkpoints."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torchvision.io import decode_image

from methods import rcl
from methods.optim import Optimizer
from methods.views import strong
from pipelines.errors import UserError
from pipelines.evaluate import Options, Ready, subject
from pipelines.purity import described, run_clusters
from pipelines.recipe import Recipe
from pipelines.sources import Data, open_source
from pipelines.storage import Checkpoints, open_folder


def test_purity_and_sizes_by_hand() -> None:
    """Level 2: {0, 1, 2} of classes a, a, b and {3, 4, 5} of b, b, b: 5 of 6 are of the most frequent class; one sample
    has no class. Level 3: all in one, of 4 b. With every sample alone all is pure, and so is chance."""
    labels = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 3, 3, 3, 0], [0, 0, 0, 0, 0, 0, 0]])
    classes = torch.tensor([0, 0, 1, 1, 1, 1, -1])
    found = described(labels, classes)
    assert found["purity"] == pytest.approx([1, 5 / 6, 4 / 6])
    assert found["chance"][0] == 1 and found["chance"][2] == pytest.approx(4 / 6)
    assert found["clusters"] == [6, 2, 1]
    assert found["largest"] == pytest.approx([1 / 6, 1 / 2, 1]) and found["alone"] == [1, 0, 0]
    assert found["mutual_information"][2] == pytest.approx(0, abs=1e-9)


def test_of_all_kept_checkpoints(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Two checkpoints: as it begins, all alone, which is left out; and with the true classes as clusters of level 2."""
    recipe = Recipe(
        method=rcl.Config(levels=2, hidden=8, dim=8, predictor_hidden=8, queue=8),
        backbone="resnet20",
        data=Data(train=str(images[0]), test=str(images[1]), size=16),
        views={name: strong(name, 16) for name in ("online", "target")},
        optimizers={"model": Optimizer(lr=0.1)},
        epochs=4,
    )
    folder, source = open_folder(str(tmp_path / "run")), open_source(str(images[0]), recipe.data)
    folder.write("recipe.json", recipe.to_json().encode())
    found = {"rows": source.rows, "classes": source.classes or 0, "broken": [{"index": 5}]}
    folder.write("run.json", json.dumps({"found": found}).encode())
    method = cast(Any, recipe.build(recipe.facts(source.rows, source.classes)))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, {"method": method.state_dict(), "step": 10, "steps_per_epoch": 10})
    method.bank.labels[1] = torch.arange(source.rows) % 4
    method.bank.labels[1, 5] = 5  # a broken row is alone, and no cluster
    method.bank.started.fill_(True)
    checkpoints.save(2, {"method": method.state_dict(), "step": 20, "steps_per_epoch": 10})
    options = Options(data=recipe.data)
    figures, pictures = run_clusters(Ready(subject(str(tmp_path / "run"), options), options), "trained")
    assert figures["epochs"] == [2] and figures["clusters.2"] == [4] and figures["alone.2"] == [0]
    assert figures["purity.2"] == [1] and 0.25 <= figures["chance.2"][0] < 0.5
    assert figures["mutual_information.2"] == [pytest.approx(1)]
    assert decode_image(torch.frombuffer(bytearray(pictures[""]), dtype=torch.uint8)).float().std() > 10
    other = Options(data=Data(train=str(images[1]), test=str(images[1]), size=16))
    with pytest.raises(UserError, match=r"80 rows and the run has 330"):
        run_clusters(Ready(subject(str(tmp_path / "run"), other), other), "trained")


def test_other_runs_have_no_clusters() -> None:
    ready = cast(Any, SimpleNamespace(subject=SimpleNamespace(method=torch.nn.Linear(1, 1))))
    with pytest.raises(UserError, match="as rcl's"):
        run_clusters(ready, "trained")
