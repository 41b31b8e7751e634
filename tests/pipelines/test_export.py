"""Each format is read by its own library, not by ours; the same weights give the same bytes everywhere."""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from methods import backbones
from methods.backbones import Backbone
from methods.parts import set_batch_norm
from pipelines import export as module
from pipelines.errors import UserError
from pipelines.evaluate import Options, subject
from pipelines.export import FORMATS, export, read_torchscript, torchscript
from pipelines.recipes.sce import sce_cifar10
from pipelines.recipes.temporal import temporal_motions
from pipelines.sources import Data
from pipelines.storage import Checkpoints, open_folder

ROOT = Path(__file__).parents[2]
onnxruntime = pytest.importorskip("onnxruntime")


def images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)


def run_folder(folder: Path, name: str = "resnet20", batch_norm: str = "global") -> Backbone:
    """A run without Ray: a recipe, and a checkpoint whose running statistics are not the initial ones."""
    recipe = sce_cifar10().with_(backbone=name, batch_norm=batch_norm)
    backbone = build(name)
    if batch_norm == "none":
        set_batch_norm(backbone, "none")
    features(backbone.train(), images(4))
    run = open_folder(str(folder))
    run.write("recipe.json", recipe.to_json().encode())
    run.write("run.json", json.dumps({"found": {"rows": 1, "classes": None}}).encode())
    method = recipe.build(recipe.facts(1, None))
    if batch_norm == "none":
        set_batch_norm(method, "none")
    method.backbone.load_state_dict(backbone.state_dict())
    Checkpoints(run / "checkpoints").save(5, {"method": method.state_dict(), "step": 5, "steps_per_epoch": 5})
    return backbone.eval()


def build(name: str) -> Backbone:
    data = sce_cifar10().data
    torch.manual_seed(3)
    return backbones.build(name, image=(3, 32, 32), mean=data.mean, std=data.std)


def features(network, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(batch)


def outside(path: Path):
    """The file as a function of images, by the format's own library."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda batch: torch.from_numpy(session.run(["features"], {"images": batch.numpy()})[0])
    if path.suffix == ".pt":
        with torchscript():
            return torch.jit.load(path)
    network = build("resnet20").eval()
    network.load_state_dict(load_file(path))
    return network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    return str(folder), run_folder(folder)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """One file of each format, in a folder that was not there."""
    to = tmp_path_factory.mktemp("exports") / "new"
    return {suffix: export(run[0], str(to / f"backbone{suffix}")) for suffix in FORMATS}


@pytest.mark.parametrize("suffix", FORMATS)
def test_features_are_the_originals(run, exported, suffix):
    """On batches and sizes that the export did not see: the shapes are free."""
    network = outside(exported[suffix])
    for batch in (images(1), images(5), images(3, 40)):
        want = features(run[1], batch)
        assert want.std() > 0.01
        bound = 1e-5 * want.abs().max().item() if suffix == ".onnx" else 0.0
        torch.testing.assert_close(features(network, batch), want, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large", "efficientnet_b0"])
def test_other_backbones(name, tmp_path):
    original = run_folder(tmp_path / "run", name)
    network = outside(export(str(tmp_path / "run"), str(tmp_path / "b.pt")))
    assert torch.equal(features(network, images(3)), features(original, images(3)))


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_backbones_of_clips(suffix, tmp_path):
    """C3D takes clips of the length and size that it was trained on."""
    recipe = temporal_motions()
    run = open_folder(str(tmp_path / "run"))
    run.write("recipe.json", recipe.to_json().encode())
    run.write("run.json", json.dumps({"found": {"rows": 1, "classes": None}}).encode())
    method = recipe.build(recipe.facts(1, None))
    Checkpoints(run / "checkpoints").save(5, {"method": method.state_dict(), "step": 5, "steps_per_epoch": 5})
    path = export(str(tmp_path / "run"), str(tmp_path / f"backbone{suffix}"))
    clips = torch.randint(0, 256, (3, 16, 3, 32, 32), dtype=torch.uint8)
    found, wanted = outside(path)(clips), features(method.backbone.eval(), clips)
    assert found.shape == (3, 512) and (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    if suffix == ".pt":
        assert read_torchscript(path).image == (16, 3, 32, 32)


def test_says_what_was_written(run, tmp_path, capsys):
    path = export(run[0], str(tmp_path / "b.pt"))
    said = capsys.readouterr().err
    assert said.startswith(f"{path}: TorchScript of step 5, 1.1 MB") and "difference of features 0 (at most 0)" in said
    assert os.listdir(tmp_path) == ["b.pt"]


def test_without_batch_norm(tmp_path):
    original = run_folder(tmp_path / "run", batch_norm="none")
    network = read_torchscript(export(str(tmp_path / "run"), str(tmp_path / "b.pt")))
    assert torch.equal(features(network, images(4)), features(original, images(4)))


def test_same_weights_same_bytes(run, exported, tmp_path):
    """In another process, which works in another folder, with other hashes, on a copy of the run, in another order, to
    other names; and of those formats that are quick, in this process, where other networks were traced before."""
    shutil.copytree(run[0], tmp_path / "copy")
    script = "import sys; from pipelines.export import export\nfor to in sys.argv[1:]: export('copy', to)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345"}
    names = [f"other name{suffix}" for suffix in reversed(FORMATS)]
    subprocess.run([sys.executable, "-c", script, *names], cwd=tmp_path, env=environment, check=True)
    files = {suffix: [path, tmp_path / f"other name{suffix}"] for suffix, path in exported.items()}
    for suffix in (".safetensors", ".pt"):
        files[suffix].append(export(run[0], str(tmp_path / f"again{suffix}")))
    for suffix, same in files.items():
        contents = [path.read_bytes() for path in same]
        assert len({hashlib.sha256(content).hexdigest() for content in contents}) == 1, suffix
        for name in (str(ROOT), str(tmp_path), "site-packages", "torch_mangle", "other name", torch.__version__):
            assert name.encode() not in contents[0], (suffix, name)


def test_torchscript_is_sent_to_workers_and_moved(run, exported):
    network = read_torchscript(exported[".pt"])
    sent = pickle.loads(pickle.dumps(network)).eval().requires_grad_(False)
    sent.to("cpu", memory_format=torch.channels_last)
    assert (sent.dim, sent.image) == (64, (3, 32, 32))
    assert torch.equal(sent.mean, run[1].mean) and torch.equal(sent.std, run[1].std)
    torch.testing.assert_close(features(sent, images(4)), features(run[1], images(4)))
    assert sent.double().mean.dtype == torch.float64  # the archive's own tensors follow


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_evaluation_takes_it(run, exported, suffix):
    it = subject(str(exported[suffix]), Options(data=Data(), backbone="resnet20"))
    assert torch.equal(features(it.backbone.eval(), images(4)), features(run[1], images(4)))
    assert it.random is not None
    assert not torch.equal(features(it.random.eval(), images(4)), features(run[1], images(4)))


@pytest.mark.parametrize("what", ["checkpoint", "text", "foreign"])
def test_other_pt_files_are_refused(run, what, tmp_path):
    path = tmp_path / "b.pt"
    if what == "checkpoint":
        shutil.copy(next(Path(run[0], "checkpoints").glob("*.pt")), path)
    elif what == "text":
        path.write_text("no archive")
    else:
        with torchscript():
            torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(UserError, match=r"b\.pt: not a TorchScript file"):
        read_torchscript(path)


@pytest.mark.parametrize("to", ["b", "b.pth", "b.PT", "s3://bucket/b.pt"])
def test_unknown_suffix(run, to, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"\.safetensors, \.pt \(TorchScript\) or \.onnx"):
        export(run[0], to)
    assert not os.listdir(tmp_path)


def test_existing_file_is_kept(run, tmp_path):
    path = tmp_path / "b.pt"
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        export(run[0], str(path))
    assert path.read_text() == "mine"


def test_not_a_run(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not a run: no recipe\.json"):
        export(str(tmp_path / "nowhere"), str(tmp_path / "b.pt"))
    assert not os.listdir(tmp_path)


def test_no_checkpoint(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run", ignore=shutil.ignore_patterns("*.json.tmp", "step-*"))
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())
    with pytest.raises(UserError, match="no good checkpoint"):
        export(str(tmp_path / "run"), str(tmp_path / "b.pt"))


def test_onnx_not_installed(run, tmp_path, monkeypatch):
    found = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name))
    with pytest.raises(UserError, match=r"needs onnx, onnxruntime, onnxscript: pip install 'rayssl\[onnx\]'"):
        export(run[0], str(tmp_path / "b.onnx"))


def test_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        export(run[0], str(tmp_path / "file" / "b.safetensors"))


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_other_features_leave_nothing(run, error, tmp_path, monkeypatch):
    right = FORMATS[".pt"]
    wrong = dataclasses.replace(right, read=lambda path, backbone: lambda batch: backbone(batch) + error)
    monkeypatch.setitem(FORMATS, ".pt", wrong)
    with pytest.raises(UserError, match="gives other features than the run"):
        export(run[0], str(tmp_path / "b.pt"))
    assert not os.listdir(tmp_path)


def test_a_backbone_that_cannot_be_traced(run, tmp_path, monkeypatch):
    def refused(backbone, example):
        raise RuntimeError("no such operator")

    monkeypatch.setitem(FORMATS, ".onnx", dataclasses.replace(FORMATS[".onnx"], write=refused))
    with pytest.raises(UserError, match=r"ONNX cannot hold this backbone.*no such operator"):
        export(run[0], str(tmp_path / "b.onnx"))
    assert not os.listdir(tmp_path)
