"""Evaluation end to end on a run that is easy to judge: colour tells the class, so raw pixels are near perfect."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from methods import sce
from methods.optim import Optimizer
from methods.views import strong, weak
from pipelines.errors import UserError
from pipelines.evaluate import Options, defaults, evaluate, subject
from pipelines.pretrain import pretrain
from pipelines.recipe import Recipe, Run
from pipelines.sources import Data

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def run(images: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    storage = tmp_path_factory.mktemp("evaluate")
    recipe = Recipe(
        method=sce.Config(hidden=32, dim=16, queue=100, momentum=0.9, momentum_end=1.0),
        backbone="resnet20",
        data=Data(train=str(images[0]), test=str(images[1]), size=16, limit=300),
        views={"online": strong("online", 16), "target": weak("target", 16)},
        optimizers={"model": Optimizer(lr=0.06)},
        epochs=1,
        batch_size=64,
    )
    pretrain(recipe, Run(storage=str(storage), name="run"), "test")
    return storage / "run"


def options(run: Path, **fields: Any) -> Options:
    from dataclasses import replace

    base = defaults(str(run))
    linear = replace(
        base.linear,
        augment="none",
        epochs=5,
        batch_size=50,
        optimizer=replace(base.linear.optimizer, milestones=(3.0,)),
    )
    return replace(base, **{"linear": linear, **fields})


def test_every_protocol_beside_its_baselines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocols = ["knn", "linear", "logistic", "tsne", "retrieval"]
    figures = evaluate(str(run), protocols, options(run))
    assert json.loads(json.dumps(figures)) == json.loads((run / "evaluation.json").read_text())
    for place in (figures, figures["random_init"], figures["raw_pixels"]):
        for name in ("knn", "linear", "logistic"):
            assert 0 <= place[name]["top1"] <= 1
        assert 0 <= place["retrieval"]["precision"] <= 1
    assert figures["raw_pixels"]["knn"]["top1"] > 0.9  # the mean colour is in the pixels
    assert figures["protocol"]["knn"]["k"] == 20 and figures["protocol"]["knn"]["train_images"] == 300
    assert figures["protocol"]["knn"]["step"] == 4 and figures["protocol"]["linear"]["epochs"] == 5
    for name in ("tsne", "retrieval"):
        for suffix in ("", "_random_init", "_raw_pixels"):
            assert (run / f"{name}{suffix}.png").read_bytes().startswith(b"\x89PNG")
    assert "raw pixels" in capsys.readouterr().out


def test_figures_merge_and_baselines_are_computed_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.evaluate as module

    evaluate(str(run), ["knn"], options(run))
    before = json.loads((run / "evaluation.json").read_text())
    asked: list[str] = []
    real = module.PROTOCOLS["knn"]

    def counted(ready: module.Ready, of: str) -> module.Result:
        asked.append(of)
        return real(ready, of)

    monkeypatch.setattr(module, "PROTOCOLS", {**module.PROTOCOLS, "knn": counted})
    evaluate(str(run), ["knn"], options(run))
    assert asked == ["trained"]
    after = json.loads((run / "evaluation.json").read_text())
    assert after == before
    evaluate(str(run), ["knn"], options(run, knn=module.KNN(k=5)))
    assert asked == ["trained", "trained", "random_init", "raw_pixels"]


def test_random_initialization_is_what_the_run_began_with(run: Path) -> None:
    it = subject(str(run), defaults(str(run)))
    torch.manual_seed(0)
    assert it.recipe is not None and it.random is not None
    began = it.recipe.build(it.recipe.facts(330, 4)).backbone
    for name, value in began.state_dict().items():
        assert torch.equal(value, it.random.state_dict()[name]), name
    assert not torch.equal(next(began.parameters()), next(it.backbone.parameters()))


def test_linear_through_the_loop_leaves_the_backbone_alone(run: Path) -> None:
    from dataclasses import replace

    from pipelines.storage import Checkpoints, open_folder

    chosen = options(run)
    figures = evaluate(str(run), ["linear"], replace(chosen, linear=replace(chosen.linear, augment="crop_flip")))
    assert 0 <= figures["linear"]["top1"] <= 1
    [folder] = (run / "evaluation").glob("linear-4-*")
    state, _ = Checkpoints(open_folder(str(folder)) / "checkpoints").newest()
    before, _ = Checkpoints(open_folder(str(run)) / "checkpoints").newest()
    assert state is not None and before is not None
    for name, value in state["method"].items():
        if name.startswith("backbone."):
            assert torch.equal(value, before["method"][name]), name


def test_mistakes(run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match="no protocol kn; did you mean knn"):
        evaluate(str(run), ["kn"], options(run))
    with pytest.raises(UserError, match=r"give --data.test"):
        evaluate(str(run), ["knn"], options(run, data=replace(options(run).data, test=None)))
    with pytest.raises(UserError, match=r"knn: .*k"):
        from pipelines.evaluate import KNN

        evaluate(str(run), ["knn"], options(run, knn=KNN(k=10_000)))
    with pytest.raises(UserError, match="neither a run"):
        defaults(str(tmp_path))
