"""Evaluation end to end on a run that is easy to judge: colour tells the class, so raw pixels are near perfect."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipelines.recipe as recipes
from methods import sce, transformations
from methods.optim import Optimizer
from methods.views import View, strong, weak
from pipelines import transfer
from pipelines.errors import UserError
from pipelines.evaluate import Options, Ready, Subject, defaults, evaluate, subject
from pipelines.pretrain import pretrain
from pipelines.recipe import Recipe, Run
from pipelines.sources import Data
from pipelines.storage import Checkpoints, open_folder
from pipelines.transfer import Finetune, Layerwise

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


# ------------------------------------------------------------------------------------------- transfer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state, _ = Checkpoints(open_folder(str(folder)) / "checkpoints").newest()
    assert state is not None
    return {name.removeprefix("backbone."): value for name, value in state["method"].items() if "backbone." in name}


def test_layer_by_layer_beside_random_initialization(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both backbones stay what they were: the run's, and what the run began with, whatever the evaluation's seed."""
    short = Layerwise(layers=("stem", "stage3"), epochs=2, batch_size=50)
    figures = evaluate(str(run), ["layerwise"], options(run, layerwise=short, seed=5))
    for place in (figures, figures["random_init"]):
        assert place["layerwise"].keys() == {"stem", "stage3", "last"}
        assert 0.25 < place["layerwise"]["stem"] <= 1  # the mean colour is in each layer
        assert place["layerwise"]["last"] == place["layerwise"]["stage3"]
    assert "layerwise" not in figures.get("raw_pixels", {})
    assert figures["protocol"]["layerwise"]["test_images"] == 80 and figures["protocol"]["layerwise"]["norm"]
    shown = capsys.readouterr().out
    assert "stage3" in shown and "last" not in shown
    [trained], [random] = (list((run / "evaluation").glob(f"layerwise-{of}-*")) for of in ("4", "random_init"))
    it = subject(str(run), options(run))
    assert it.random is not None
    for folder, expected in ((trained, it.backbone.state_dict()), (random, it.random.state_dict())):
        assert all(torch.equal(value, expected[name]) for name, value in weights(folder).items())
    again = evaluate(str(run), ["layerwise"], options(run, layerwise=short, seed=5))
    assert again == figures and len(list((run / "evaluation").glob("layerwise-*"))) == 2
    with pytest.raises(UserError, match=r"no layer conv9 \(it has stem, stage1, stage2, stage3\)"):
        evaluate(str(run), ["layerwise"], options(run, layerwise=replace(short, layers=("conv9",))))


def test_fine_tuning_from_a_rescaled_start(run: Path) -> None:
    """From stage2 on: what lies before it is the run's to the bit, and what follows starts with equal rates."""
    short = Finetune(from_layer="stage2", rescale="new", calibration=40, epochs=2, batch_size=50)
    ready = Ready(subject(str(run), options(run)), options(run, finetune=short))
    assert 0.25 < transfer.finetune(ready, "trained")["top1"] <= 1
    [folder] = (run / "evaluation").glob("finetune-4-*")
    rates = json.loads((folder / "start" / "rescaling.json").read_text())
    apart = [max(rates[when].values()) / min(rates[when].values()) for when in ("before", "after")]
    assert apart[0] > 2 and apart[1] < 1.05 and rates["change"] < 0.01
    before, start, after = weights(run), weights(folder / "start"), weights(folder)
    place = {name: name.split(".")[1] for name in before if name.startswith("network.")}
    for name in place:
        frozen = int(place[name]) <= 5  # resnet20's stage1 ends at its sixth module
        assert torch.equal(before[name], start[name]) or not frozen, name
        assert torch.equal(start[name], after[name]) == frozen, name
    images = ready.images("test", ready.wanted("test"))
    twin = ready.subject.backbone
    features = twin.eval()(images)
    twin.load_state_dict(start)
    torch.testing.assert_close(twin(images), features, rtol=1e-3, atol=1e-3)  # rescaled, with the same function


def test_crops_are_cut_out_of_the_larger_image(run: Path) -> None:
    data = replace(options(run).data, size=24)
    ready = Ready(subject(str(run), options(run, data=data)), options(run, data=data))
    other = transfer.recipe_of(ready, transfer.supervised.Config(), Layerwise(size=20)).views["image"]
    assert other.size == 20 and other.crop_scale == ((20 / 24) ** 2,) * 2
    with pytest.raises(UserError, match=r"layerwise.size 25 is more than the images have: give --data.size 25"):
        transfer.recipe_of(ready, transfer.supervised.Config(), Layerwise(size=25))
    recipe = transfer.recipe_of(ready, transfer.supervised.Config(), Layerwise())
    view = recipe.views["image"]
    images = torch.randint(256, (20, 3, 24, 24), dtype=torch.uint8)
    seen = view.apply(images, view.draw(0, 0, torch.arange(20)))
    places = set()
    for image, found in zip(images, seen, strict=True):
        cuts = image.unfold(1, 16, 1).unfold(2, 16, 1)  # (3, 9, 9, 16, 16)
        for mirrored in (False, True):
            same = (cuts == (found.flip(2) if mirrored else found)[:, None, None]).all(dim=(0, 3, 4))
            places |= {(*place, mirrored) for place in same.nonzero().tolist()}
    assert len(places) >= 15  # each image is one of its 81 cuts, mirrored or not


def test_networks_see_what_they_were_trained_on(run: Path, tmp_path: Path) -> None:
    """Of views of 16 pixels a method that crops 12 of them."""
    recipe = replace(
        recipes.from_json((run / "recipe.json").read_text()),
        method=transformations.Config(transformations=("rotation",), crop=12, head=()),
        views={"image": View("image", 16)},
        batch_norm="global",
    )
    folder = open_folder(str(tmp_path))
    folder.write("recipe.json", recipe.to_json().encode())
    with pytest.raises(UserError, match="no good checkpoint"):
        subject(str(tmp_path), options(tmp_path))
    state = {"method": recipe.build(recipe.facts(1, None)).state_dict(), "step": 4, "steps_per_epoch": 4}
    Checkpoints(folder / "checkpoints").save(4, state)
    with pytest.raises(UserError, match=r"has a recipe.json but no run.json: copy the run's folder whole"):
        subject(str(tmp_path), options(tmp_path))
    folder.write("run.json", json.dumps({"found": {"rows": 1, "classes": None}}).encode())
    it = subject(str(tmp_path), options(tmp_path))
    assert it.size == 12
    found = evaluate(str(tmp_path), ["task"], options(tmp_path, test_limit=20))["task"]
    assert found["images"] == 20 and len(found["confusion"]) == 4
    assert found["accuracy"] == pytest.approx(np.trace(found["confusion"]) / 4, abs=1e-6)


def test_an_exported_backbone_cannot_be_trained(run: Path) -> None:
    it = subject(str(run), options(run))
    exported = Ready(Subject(it.backbone, it.random, it.folder, "", it.size), options(run))
    for protocol in (transfer.layerwise, transfer.finetune):
        with pytest.raises(UserError, match="no run to train in"):
            protocol(exported, "trained")
    assert it.recipe is not None
    own = Ready(replace(it, recipe=replace(it.recipe, backbone="own")), options(run))
    with pytest.raises(UserError, match="network of sce is its own"):
        transfer.layerwise(own, "trained")
    plain = Ready(replace(it, recipe=replace(it.recipe, batch_norm="none")), options(run))
    with pytest.raises(UserError, match="no batch norm"):
        transfer.layerwise(plain, "trained")


# ------------------------------------------------------------------------------------------- pictures


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())))


def test_pictures_need_neither_features_nor_a_cluster(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.evaluate as module

    def refused(*arguments: Any, **fields: Any) -> Any:
        raise AssertionError("not for a picture")

    def pictures(method: Any, batch: dict[str, torch.Tensor], clock: Any) -> dict[str, torch.Tensor]:
        assert not method.training and not torch.is_grad_enabled()
        assert (clock.step, clock.total_steps, clock.epoch) == (4, 4, 1)
        assert batch["online.parameters"].shape[0] == len(batch["index"]) == 5
        return {"views": batch["online"], "gray": batch["target"][:2, :1]}

    monkeypatch.setattr(module, "extract", refused)
    monkeypatch.setattr(module, "cluster", refused)
    with pytest.raises(UserError, match="sce draws no pictures"):
        evaluate(str(run), ["pictures"], options(run))
    monkeypatch.setattr(sce.SCE, "pictures", pictures)
    chosen = options(run, gradcam=module.GradCAM(images=3), pictures=module.Pictures(images=5))
    figures = evaluate(str(run), ["filters", "gradcam", "pictures"], chosen)
    assert figures["filters"] == {"filters": 16} and figures["gradcam"] == {"layer": "stage3", "images": 3}
    assert figures["pictures"] == {"images": 5}
    sizes = {"filters": (16, 1, 30), "gradcam": (3, 2, 16), "pictures_views": (5, 1, 16), "pictures_gray": (2, 1, 16)}
    for name, (across, down, side) in sizes.items():
        assert drawn(run / f"{name}.png").shape == (2 + down * (side + 2), 2 + across * (side + 2), 3), name
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "evaluation"))
    events.Reload()
    assert set(sizes) <= set(events.Tags()["images"]) and events.Images("gradcam")[-1].step == 4
    above = drawn(run / "gradcam.png")[2:18, 2:20]
    image = Ready(subject(str(run), chosen), chosen).images("test", torch.tensor([0]))[0]
    assert np.array_equal(above[:, :16], image.permute(1, 2, 0).numpy())


def test_a_task_is_averaged_over_all_test_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of batches of other sizes, as 80 images in row groups of 50; each image once, in the run's views."""
    batches: list[torch.Tensor] = []

    def task(method: Any, batch: dict[str, torch.Tensor], clock: Any) -> dict[str, torch.Tensor]:
        batches.append(batch["index"])
        assert not method.training and batch["online"].shape == (len(batch["index"]), 3, 16, 16)
        return {"index": batch["index"].float().mean(), "pair": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}

    with pytest.raises(UserError, match="sce has no figures of its own task"):
        evaluate(str(run), ["task"], options(run))
    monkeypatch.setattr(sce.SCE, "task", task)
    figures = evaluate(str(run), ["task"], options(run))
    assert figures["task"] == {"images": 80, "index": 39.5, "pair": [[1.0, 2.0], [3.0, 4.0]]}
    assert torch.equal(torch.cat(batches), torch.arange(80)) and len(batches) == 2


def test_filters_need_no_data(run: Path) -> None:
    (run / "filters.png").unlink(missing_ok=True)
    nowhere = replace(options(run).data, train="/nowhere/*.parquet", test=None)
    evaluate(str(run), ["filters"], options(run, data=nowhere))
    assert (run / "filters.png").exists()
    with pytest.raises(UserError, match="test data"):
        evaluate(str(run), ["gradcam"], options(run, data=nowhere))


def test_mistakes(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no protocol kn; did you mean knn"):
        evaluate(str(run), ["kn"], options(run))
    with pytest.raises(UserError, match=r"give --data.test"):
        evaluate(str(run), ["knn"], options(run, data=replace(options(run).data, test=None)))
    with pytest.raises(UserError, match=r"knn: .*k"):
        from pipelines.evaluate import KNN

        evaluate(str(run), ["knn"], options(run, knn=KNN(k=10_000)))
    with pytest.raises(UserError, match="neither a run"):
        defaults(str(tmp_path))
