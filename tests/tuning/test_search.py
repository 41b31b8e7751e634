"""Searches: spaces, what derives from them, and what their results say."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from pipelines.errors import UserError
from pipelines.recipe import Run, find_recipe, recipes
from pipelines.storage import open_folder
from tuning.search import Options, frame_of, search, write_results
from tuning.spaces import derived, find_space, lambda_, temperatures
from tuning.trials import check_dashboard


def test_temperatures_are_those_the_method_has() -> None:
    names = {name: set(temperatures(find_recipe(f"{name}_cifar10"))) for name in ("sce", "ressl", "moco")}
    assert names == {
        "sce": {"method.temperature", "method.target_temperature"},
        "ressl": {"method.student_temperature", "method.teacher_temperature"},
        "moco": {"method.temperature"},
    }
    for recipe in (find_recipe("sce_cifar10"), find_recipe("ressl_cifar10")):
        for name, domain in temperatures(recipe).items():
            target = "target" in name or "teacher" in name
            assert (domain.lower, domain.upper) == ((0.02, 0.2) if target else (0.05, 0.5))
    with pytest.raises(UserError, match="byol has no temperature to search"):
        temperatures(find_recipe("byol_cifar10"))


@pytest.mark.parametrize("name", [name for name in recipes() if hasattr(find_recipe(name).method, "coefficient")])
def test_lambda_spans_the_unit_interval(name: str) -> None:
    (domain,) = lambda_(find_recipe(name)).values()
    assert (domain.lower, domain.upper) == (0.0, 1.0)


def test_fields_are_replaced_by_their_dotted_names() -> None:
    recipe = find_recipe("sce_cifar10")
    made = derived(recipe, {"method.coefficient": 0.25, "optimizers.model.lr": 0.5, "epochs": 3})
    assert (made.method.coefficient, made.optimizers["model"].lr, made.epochs) == (0.25, 0.5, 3)
    assert made.with_(method={"coefficient": 0.5}, optimizers={"model": {"lr": 0.06}}, epochs=200) == recipe
    with pytest.raises(UserError, match="did you mean coefficient"):
        derived(recipe, {"method.coeficient": 0.25})


def test_a_users_own_space(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def wide(recipe):\n    return {'method.queue': recipe.method.queue}\n")
    recipe = find_recipe("sce_cifar10")
    assert find_space(f"{file}:wide")(recipe) == {"method.queue": 4096}
    assert find_space("tuning.spaces:lambda_") is lambda_
    with pytest.raises(UserError, match="has no function wid; did you mean wide"):
        find_space(f"{file}:wid")
    with pytest.raises(UserError, match="nowhere can't be read"):
        find_space("nowhere:wide")


class Result:
    """As Tune's."""

    def __init__(self, config: dict[str, Any], metrics: dict[str, Any], error: Exception | None = None) -> None:
        self.config, self.metrics, self.error = config, metrics, error


def test_results_are_ordered_and_say_how_each_trial_ended(tmp_path: Path) -> None:
    results = [
        Result({"method.coefficient": 0.25}, {"name": "a", "knn": 31.0, "epoch": 1}),
        Result({"method.coefficient": 0.75}, {"name": "b", "knn": 42.0, "epoch": 9, "status": "finished"}),
        Result({"method.coefficient": 0.6}, {"name": "c", "knn": 41.0, "epoch": 9}),
        Result({"method.coefficient": 0.5}, {"name": "d", "knn": 0.0, "epoch": 0, "status": "failed", "error": "no"}),
        Result({"method.coefficient": 1.0}, {}, RuntimeError("first\nlast line")),
    ]
    frame = frame_of(results, ["method.coefficient"], 9)
    assert frame["trial"].tolist() == ["b", "c", "a", "d", ""]
    assert frame["status"].tolist() == ["finished", "finished", "stopped", "failed", "failed"]
    assert frame["error"].tolist() == ["", "", "", "no", "last line"]
    folder = open_folder(str(tmp_path))
    write_results(folder, "sce_cifar10", frame, ["method.coefficient"], 9)
    rows = [line for line in folder.read("results.md").decode().splitlines() if line.startswith("| ")][2:]
    assert rows[0] == "| b | 0.75 | 42.00 | 9 | finished |" and rows[3] == "| d | 0.5 | - | 0 | failed |"
    assert pd.read_csv(io.BytesIO(folder.read("results.csv")))["knn"].tolist()[:3] == [42.0, 41.0, 31.0]
    assert Image.open(tmp_path / "results.png").size[0] > 300
    assert sorted(path.parent.name for path in tmp_path.glob("tensorboard/*/events.*")) == ["a", "b", "c"]


def test_options_that_make_no_search() -> None:
    recipe = find_recipe("sce_cifar10")
    with pytest.raises(ValueError, match="trials and grace_epochs are at least 1"):
        Options(recipe, trials=0)
    with pytest.raises(ValueError, match="reduction is above 1"):
        Options(recipe, reduction=1.0)
    for run in (Run(), Run(knn_epochs=2), Run(knn_epochs=300)):
        with pytest.raises(ValueError, match="grace_epochs at least that and at most the recipe's 200 epochs"):
            Options(recipe, run=run)
    with pytest.raises(ValueError, match="can't be gone on with"):
        Options(recipe, run=Run(knn_epochs=1, resume=True))


def test_a_cluster_without_a_dashboard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(**options: Any) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr("ray.util.state.list_nodes", silent)
    with pytest.raises(UserError, match=r"needs Ray's dashboard, .* \(no answer\): start the cluster with it"):
        check_dashboard(patience=0.0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_ends_with_figures(images: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = find_recipe("sce_cifar10").with_(
        backbone="resnet20",
        data={"train": str(images[0]), "test": str(images[1]), "size": 16},
        method={"queue": 128, "hidden": 32, "dim": 16},
        views={view: {"size": 16} for view in ("online", "target")},
        epochs=1,
        batch_size=64,
    )
    run = Run(storage=str(tmp_path), name="s", cpus=0.4, knn_epochs=1)
    options = Options(recipe, "lambda", "optuna", trials=2, run=run)
    search("sce_cifar10", options)
    frame = pd.read_csv(tmp_path / "s" / "results.csv")
    assert frame["status"].tolist() == ["finished"] * 2 and frame["epochs"].tolist() == [1, 1]
    assert frame["knn"].between(0, 100).all() and frame["method.coefficient"].nunique() == 2
    with pytest.raises(UserError, match=r"holds something already: give another --run\.name"):
        search("sce_cifar10", options)
