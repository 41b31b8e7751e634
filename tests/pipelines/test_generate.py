"""Grids and figures of generated images, on runs whose checkpoints are written here: nothing is trained."""

import dataclasses
import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models
from torchvision.transforms.v2 import functional as transforms

import pipelines.generate as module
from methods import dfgan
from methods.metrics import fid as metrics
from methods.metrics.fid import fid, inception_score, moments
from methods.optim import Optimizer
from methods.views import View
from pipelines import evaluate, extractors
from pipelines.__main__ import main
from pipelines.command_line import parsed
from pipelines.errors import UserError
from pipelines.feed import shuffled
from pipelines.generate import (
    Generative,
    GridOptions,
    Options,
    Real,
    extractor_of,
    generate,
    generative,
)
from pipelines.recipe import Recipe
from pipelines.recipes.simsiam import simsiam_cifar10
from pipelines.recipes.supervised import supervised_cifar10
from pipelines.sources import Data, load, open_source, selected
from pipelines.storage import Checkpoints, open_folder

ray = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def write_run(folder: Path, recipe: Recipe, steps: tuple[int, ...] = (10,), scale: float = 1.0) -> Path:
    """A run's folder with a checkpoint at each of `steps`, of random weights, times `scale`, that differ by step."""
    run, facts = open_folder(str(folder)), recipe.facts(330, 4)
    run.write("recipe.json", recipe.to_json().encode())
    run.write("run.json", json.dumps({"found": {"rows": 330, "classes": 4}}).encode())
    for step in steps:
        torch.manual_seed(step)
        method = recipe.build(facts)
        for parameter in method.parameters():
            parameter.data.mul_(scale)
        Checkpoints(run / "checkpoints", keep=9).save(step, {"method": method.state_dict(), "step": step})
    return folder


def gan(data: Data) -> Recipe:
    return Recipe(
        method=dfgan.Config(width=1 / 16, latent=8, initialization="torch", spectral_norm=True),
        backbone="own",
        data=data,
        views={"image": View("image", 32, crop=0.0, flip=0.0)},
        optimizers={turn: Optimizer("adam", lr=1e-4) for turn in ("discriminator", "generator")},
        epochs=1,
        batch_size=16,
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, images: tuple[Path, Path]) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    data = Data(train=str(images[0]), size=32, limit=300)
    write_run(folder / "gan", gan(data), steps=(10, 20, 30), scale=2.0)  # so that the images have contrast
    write_run(folder / "classifier", supervised_cifar10().with_(backbone="resnet20", data={"train": str(images[0])}))
    write_run(folder / "simsiam", simsiam_cifar10().with_(backbone="resnet20", method={"hidden": 8, "dim": 8}))
    return folder


def sampled(run: Path, step: int, count: int, seed: int = 0) -> Tensor:
    it = module.opened(str(run))
    return it.method(Checkpoints(it.folder / "checkpoints").load(step)["method"]).sample(torch.arange(count), seed)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """stderr without the terminal's line breaks."""
    return " ".join(capsys.readouterr().err.split())


# --------------------------------------------------------------------------------------------- grids


def cells(path: Path, columns: int, size: int = 32) -> np.ndarray:
    """(rows, columns, size, size, 3), without the frames of 2 pixels."""
    grid = np.asarray(Image.open(path))
    rows = (grid.shape[0] - 2) // (size + 2)
    assert grid.shape == (rows * (size + 2) + 2, columns * (size + 2) + 2, 3) and grid.dtype == np.uint8
    framed = grid[2:, 2:].reshape(rows, size + 2, columns, size + 2, 3).swapaxes(1, 2)
    return framed[:, :, :size, :size]


def test_a_grid_holds_the_images_row_by_row(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PIECE", 4)  # in pieces as in one
    path = generate(str(storage / "gan"), GridOptions(to=str(tmp_path / "new" / "grid.png"), n=11))
    expected = sampled(storage / "gan", 30, 11).permute(0, 2, 3, 1).numpy()
    found = cells(path, columns=3)
    assert (found.reshape(-1, 32, 32, 3)[:11] == expected).all() and not found[3, 2].any()
    assert expected.std(0).max() > 5  # the images differ
    assert "11 generated at step 30" in told(capsys)


def test_seed_and_step_choose_the_images(storage: Path, tmp_path: Path) -> None:
    run, path = str(storage / "gan"), tmp_path / "grid.png"
    for seed, step in ((0, 10), (5, 10), (0, 20)):  # into one file: it is replaced
        generate(run, GridOptions(to=str(path), n=1, seed=seed, step=step))
        expected = sampled(storage / "gan", step, 1, seed)[0].permute(1, 2, 0)
        assert (np.asarray(Image.open(path)) == expected.numpy()).all()


def test_the_command(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(storage / "gan"), "--n", "9", "--to", str(tmp_path / "grid.png"), "--seed", "3"]) == 0
    assert cells(tmp_path / "grid.png", columns=3).shape[0] == 3
    with pytest.raises(SystemExit) as stopped:
        main(["generate"])
    assert stopped.value.code == 2 and "generate RUN --to" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["generate", str(storage / "gan"), "--n", "0", "--to", "grid.png"])
    assert stopped.value.code == 2 and "--n is a number of images above 0" in told(capsys)


def test_a_broken_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, images: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", gan(Data(train=str(images[0]))), steps=(1, 2))
    (run / "checkpoints" / "step-00000002.pt").write_bytes(b"cut off")
    generate(str(run), GridOptions(to=str(tmp_path / "grid.png"), n=1))
    lines = told(capsys)
    assert "step-00000002.pt is broken" in lines and "1 generated at step 1" in lines
    (run / "checkpoints" / "step-00000001.pt").write_bytes(b"cut off")
    with pytest.raises(UserError, match="no good checkpoint"):
        generate(str(run), GridOptions(to=str(tmp_path / "grid.png"), n=1))


def test_mistakes_of_a_grid(storage: Path, tmp_path: Path) -> None:
    def attempt(run: str = "gan", to: str = str(tmp_path / "grid.png"), **fields: Any) -> None:
        generate(str(storage / run), GridOptions(to=to, **fields))

    with pytest.raises(UserError, match=r"simsiam: SimSiam has no generator: choose a run of dfgan"):
        attempt("simsiam")
    with pytest.raises(UserError, match="nothing is not a run"):
        attempt("nothing")
    with pytest.raises(UserError, match=r"--step 15: .* has 10, 20, 30"):
        attempt(step=15)
    for name in ("grid.jpg", "grid", "s3://bucket/grid.png"):
        with pytest.raises(UserError, match=r"ends in \.png"):
            attempt(to=name)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "grid.png", tmp_path / "folder.png"):
        with pytest.raises(UserError, match="choose another --to"):
            attempt(to=str(path))


# ---------------------------------------------------------------------------------------- extractors


def test_a_run_of_supervised_as_extractor(storage: Path) -> None:
    """Features of the backbone, softmax of the classifier; of any number of images, resized where they are larger."""
    extractor = extractor_of(str(storage / "classifier"))
    it = module.opened(str(storage / "classifier"))
    sha256 = extractors.digest(extractor.state_dict())
    assert extractor.name == f"supervised resnet20 of classifier at step 10, weights' sha256 {sha256[:8]}"
    assert extractor.sha256 == sha256
    method: Any = it.method(Checkpoints(it.folder / "checkpoints").load(10)["method"])
    images = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = extractor(images)
        features, probabilities = whole.split([64, 4], dim=1)
        torch.testing.assert_close(features, method.backbone(images))
        torch.testing.assert_close(probabilities, method.classifiers["features"](features).softmax(1))
        large = images[:3].repeat_interleave(2, 2).repeat_interleave(2, 3)
        small = transforms.resize(large.float(), [32, 32], antialias=True)
        torch.testing.assert_close(extractor(large)[:, :64], method.backbone(small))
        with torch.autocast("cpu", torch.bfloat16):  # 8 bits are not enough for a distance of moments
            assert torch.equal(extractor(images), whole)
            assert not torch.equal(method.backbone(images), features)


def test_a_hash_is_of_what_the_weights_compute() -> None:
    """Names in any order, without the counters; another value, name, shape or dtype is another hash."""
    one = {"b": torch.ones(2, 2), "a": torch.zeros(())}
    content = b"a torch.float32 ()\n" + bytes(4) + b"b torch.float32 (2, 2)\n" + np.ones(4, "<f4").tobytes()
    assert extractors.digest(one) == hashlib.sha256(content).hexdigest()
    assert extractors.digest({"a": one["a"], "bn.num_batches_tracked": torch.tensor(7), "b": one["b"]}) == (
        extractors.digest(one)
    )
    others: list[dict[str, Tensor]] = [
        {**one, "a": torch.ones(())},
        {**one, "b": torch.ones(4)},
        {**one, "b": torch.ones(2, 2).int()},
        {"b": one["b"], "c": one["a"]},
    ]
    assert len({extractors.digest(weights) for weights in [one, *others]}) == 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception v3 at random, its second classifier included, as torchvision's file has it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(models.inception_v3(weights=None, init_weights=False).state_dict(), path)
    return path


def test_inception_of_a_file_is_torchvisions(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torchvision's own network and its own transforms, without the crop: the whole image at 299 px."""
    network = models.inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    pooled: list[Tensor] = []
    network.avgpool.register_forward_hook(lambda _, __, output: pooled.append(output.flatten(1)))
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = extractor_of(str(weights)).eval()
    assert extractor.name == f"torchvision inception_v3 of inception.pth, weights' sha256 {extractor.sha256[:8]}"
    with torch.no_grad():
        found = extractor(images)
        whole = transforms.resize(images.float() / 255, [299, 299], antialias=True)
        logits = network(transforms.normalize(whole, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert found.shape == (1, 3048) and extractor.dim == 2048
    torch.testing.assert_close(found[:, :2048], pooled[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found[:, 2048:], logits.softmax(1), atol=1e-5, rtol=1e-3)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(extractors, "WEIGHTS_HASH", sha256[:8])  # the content decides, not where it comes from
    official = f"torchvision inception_v3 IMAGENET1K_V1, weights' sha256 {extractor.sha256[:8]}"
    assert extractor_of(str(weights)).name == official


def test_inception_without_its_second_classifier_and_counters(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    kept = {k: v for k, v in state.items() if "AuxLogits" not in k and not k.endswith("num_batches_tracked")}
    save_file(kept, tmp_path / "same.safetensors")
    save_file({name: value.half() for name, value in kept.items()}, tmp_path / "some.safetensors")
    network: Any = extractor_of(str(tmp_path / "some.safetensors"))
    same, whole = extractor_of(str(tmp_path / "same.safetensors")), extractor_of(str(weights))
    assert same.sha256 == whole.sha256 != network.sha256  # of the same weights in another file, and of rounded ones
    assert all(value.is_cpu and value.dtype in (torch.float32, torch.int64) for value in network.state_dict().values())
    torch.testing.assert_close(network.classifier.weight.data, state["fc.weight"], atol=1e-3, rtol=1e-3)
    found, wanted = network.backbone.network.Mixed_7c.branch_pool.conv.weight, state["Mixed_7c.branch_pool.conv.weight"]
    torch.testing.assert_close(found.data, wanted, atol=1e-3, rtol=1e-3)


def test_inceptions_that_are_not_torchvisions(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = models.inception_v3(weights=None, init_weights=False)
    shapes = {k: torch.zeros(()).expand(v.shape) for k, v in network.state_dict().items()}  # a number each in the file
    torch.save(shapes | {"fc.weight": torch.zeros(()).expand(1008, 2048)}, tmp_path / "tensorflow.pth")
    with pytest.raises(UserError, match=r"in 1 tensors; the first, fc.weight, is \(1008, 2048\) there and \(1000, 20"):
        extractor_of(str(tmp_path / "tensorflow.pth"))
    torch.save(shapes | {"Mixed_8a.weight": torch.zeros(3)}, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"in 1 tensors; the first, Mixed_8a.weight, is \(3,\) there and absent here"):
        extractor_of(str(tmp_path / "more.pth"))


def test_files_that_are_no_inception(tmp_path: Path, storage: Path) -> None:
    for name in ("text.pth", "text.safetensors", "empty.pth", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all" * name.startswith("text"))
        with pytest.raises(UserError, match=rf"{name} holds no weights .*give --generative.extractor FILE"):
            extractor_of(str(tmp_path / name))
    for name, content in (("other.pth", {"weight": torch.ones(3)}), ("list.pth", [torch.ones(3)])):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} does not fit torchvision's inception_v3 .* is absent there and"):
            extractor_of(str(tmp_path / name))
    with pytest.raises(UserError, match=r"neither inception, nor a file, nor a run: give --generative\.extractor FILE"):
        extractor_of("incepton")
    with pytest.raises(UserError, match=r"a run of simsiam, not supervised: .* supervised_cifar10"):
        extractor_of(str(storage / "simsiam"))


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked: list[float] = []

    def unreachable(request: Any, timeout: float) -> None:
        asked.append(timeout)
        raise URLError("no route to host")

    monkeypatch.setattr(extractors, "urlopen", unreachable)
    remedy = (
        r"no route to host.*give --generative.extractor FILE .* or --generative.extractor RUN, a run of supervised_"
    )
    with pytest.raises(UserError, match=remedy):
        extractor_of("inception")
    assert asked == [10]
    file = tmp_path / "hub/checkpoints/inception_v3_google-0cc3c7bd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half of it")
    with pytest.raises(UserError, match="does not begin with 0cc3c7bd: delete it"):
        extractor_of("inception")


def test_weights_are_fetched_once_into_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, downloads = b"weights", list[str]()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(extractors, "WEIGHTS_HASH", hashlib.sha256(content).hexdigest()[:8])
    monkeypatch.setattr(extractors, "urlopen", lambda request, timeout: nullcontext())

    def download(url: str, to: str, hash_prefix: str) -> None:
        assert hash_prefix == extractors.WEIGHTS_HASH
        downloads.append(url)
        Path(to).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    paths = {extractors.fetched() for _ in range(2)}
    assert downloads == [extractors.WEIGHTS.url]
    assert paths == {tmp_path / "hub/checkpoints/inception_v3_google-0cc3c7bd.pth"}


# ------------------------------------------------------------------------------------------- figures


def options(storage: Path, **fields: Any) -> Options:
    chosen = Generative(extractor=str(storage / "classifier"), samples=60, splits=3)
    return Options(run_data(storage), dataclasses.replace(chosen, **fields))


def run_data(storage: Path) -> Data:
    return module.opened(str(storage / "gan")).recipe.data


def real_images(data: Data, count: int) -> Tensor:
    source = open_source(data.train, data)
    wanted = selected(source, count)
    parts = [
        load(source, group, wanted[(wanted >= group.first) & (wanted < group.first + group.rows)] - group.first, 32)
        for group in source.groups
    ]
    return torch.from_numpy(np.concatenate([part.image for part in parts]))


def test_checkpoints_share_the_extractor_and_the_real_factor(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cluster: the extractor is put once, and of 1 + 3 covariances each is decomposed once."""
    draws = torch.Generator().manual_seed(0)
    wanted = options(storage)
    real = torch.randn(60, 68, generator=draws)
    fakes = {step: torch.randn(60, 68, generator=draws) for step in (30, 20, 10)}
    fakes = {step: torch.cat([x[:, :64], x[:, 64:].softmax(1)], 1) for step, x in fakes.items()}
    put, decomposed, seen = list[Any](), list[Tensor](), list[tuple[int, Any]]()

    def reference(value: Any) -> str:
        put.append(value)
        return "reference"

    def embedded(run: Any, state: Any, extractor: Any, *_: Any) -> Tensor:
        seen.append((state["step"], extractor))
        return fakes[state["step"]]

    def factor(covariance: Tensor) -> Tensor:
        decomposed.append(covariance)
        return original(covariance)

    original = metrics.factor
    known = Real(*moments(real[:, :64]), torch.tensor(1.5), torch.tensor(60))
    monkeypatch.setattr("ray.put", reference)
    monkeypatch.setattr(module, "cluster", lambda address: nullcontext({}))
    monkeypatch.setattr(module, "real_moments", lambda *_: known)
    monkeypatch.setattr(module, "embedded", embedded)
    for where in (module, metrics):
        monkeypatch.setattr(where, "factor", factor)
    figures = generative(str(storage / "gan"), ["fid"], wanted)
    assert seen == [(30, "reference"), (20, "reference"), (10, "reference")]
    assert len(put) == 1 and len(decomposed) == 4
    assert figures["fid"]["each"] == [fid(fakes[step][:, :64], real[:, :64]) for step in (10, 20, 30)]


class TestFigures:
    pytestmark = ray

    def test_they_are_those_of_all_images_at_once(
        self, storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Against one pass on the driver; mean and sample deviation over the checkpoints, worked out anew."""
        monkeypatch.setattr(module, "TASK", 25)  # three tasks
        run = storage / "gan"
        (run / "evaluation.json").write_text(json.dumps({"knn": {"top1": 0.5}, "protocol": {"knn": {"k": 20}}}))
        figures = generative(str(run), ["fid", "inception_score"], options(storage))
        extractor = extractor_of(str(storage / "classifier"))
        with torch.no_grad():
            real = extractor(real_images(run_data(storage), 60))
            fakes = [extractor(sampled(run, step, 60)) for step in (10, 20, 30)]
        distances = [fid(fake[:, :64], real[:, :64]) for fake in fakes]
        scores = [inception_score(fake[:, 64:], 3)[0] for fake in fakes]
        assert len({round(value, 3) for value in distances}) == 3 and min(distances) > 0.1
        for name, each in (("fid", distances), ("inception_score", scores)):
            found = figures[name]
            assert found["each"] == pytest.approx(each, rel=1e-3) and found["steps"] == [10, 20, 30]
            assert found[name] == pytest.approx(np.mean(each), rel=1e-3)
            assert found["deviation"] == pytest.approx(np.std(each, ddof=1), rel=2e-2)
            assert (found["checkpoints"], found["samples"], found["real_samples"]) == (3, 60, 60)
            assert found["extractor"] == extractor.name and found["extractor_sha256"] == extractor.sha256
            assert figures["protocol"][name]["samples"] == 60 and figures["protocol"][name]["step"] == 30
        mixed = real[shuffled(0, 0, torch.arange(60))]
        assert figures["inception_score"]["real"] == pytest.approx(inception_score(mixed[:, 64:], 3)[0], rel=1e-3)
        assert figures["knn"] == {"top1": 0.5} and figures["protocol"]["knn"] == {"k": 20}
        assert json.loads((run / "evaluation.json").read_text()) == figures
        shown = capsys.readouterr()
        assert extractor.sha256[:8] in shown.out.replace("\n", "") and f"{figures['fid']['fid']:.3f}" in shown.out
        assert "3 good checkpoints are there, of 5: pretrain with --run.keep 5" in " ".join(shown.err.split())

    def test_real_images_are_read_once_in_a_storage(self, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = options(storage, samples=40, checkpoints=1)
        first = generative(str(storage / "gan"), ["fid"], wanted)
        assert first["fid"]["steps"] == [30] and first["fid"]["deviation"] is None

        def unexpected(*_: Any, **__: Any) -> None:
            raise AssertionError("read again")

        monkeypatch.setattr(module, "extract", unexpected)
        assert generative(str(storage / "gan"), ["fid"], wanted) == first
        for other in (
            options(storage, samples=41),
            dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, limit=99)),
        ):
            with pytest.raises(AssertionError, match="read again"):
                generative(str(storage / "gan"), ["fid"], other)

    def test_fewer_real_images_than_samples_are_told(self, storage: Path) -> None:
        wanted = options(storage, checkpoints=1)
        wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, limit=33))
        figures = generative(str(storage / "gan"), ["fid"], wanted)
        assert (figures["fid"]["samples"], figures["fid"]["real_samples"]) == (60, 33)

    def test_mistakes(self, storage: Path) -> None:
        def attempt(run: str = "gan", protocol: str = "fid", **fields: Any) -> None:
            generative(str(storage / run), [protocol], options(storage, **fields))

        with pytest.raises(UserError, match="no protocol fdi; did you mean fid"):
            attempt(protocol="fdi")
        with pytest.raises(UserError, match="SimSiam has no generator"):
            attempt("simsiam")
        with pytest.raises(UserError, match="neither inception, nor a file, nor a run"):
            attempt(extractor="nothing")
        with pytest.raises(UserError, match=r"2 real images are too few: give at least 3, or fewer --generative"):
            wanted = options(storage)
            generative(
                str(storage / "gan"),
                ["fid"],
                dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, limit=2)),
            )


def test_options_on_the_command_line(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--generative.extractor",
        "weights.pth",
        "--generative.samples",
        "500",
        "--generative.checkpoints",
        "2",
        "--data.limit",
        "7",
    ]
    found = parsed(evaluate.Options, evaluate.defaults(str(storage / "gan")), given, "test")
    assert found.generative == Generative("weights.pth", samples=500, checkpoints=2) and found.data.limit == 7
    for words, rule in (
        (["--generative.samples", "1"], "generative.samples is at least 2"),
        (["--generative.checkpoints", "0"], "generative.checkpoints is at least 1"),
        (["--generative.splits", "0"], "generative.splits is 1 to generative.samples, 10000"),
    ):
        with pytest.raises(SystemExit):
            parsed(evaluate.Options, evaluate.defaults(str(storage / "gan")), words, "test")
        assert rule in told(capsys)
