"""What is read never runs code, never writes elsewhere, and takes no more memory than it may."""

import ast
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import encoded
from PIL import Image
from torch import nn
from videos import encoded_video, numbered

from pipelines import sources, video
from pipelines.errors import UserError
from pipelines.export import read_torchscript
from pipelines.extractors import inception
from pipelines.recipe import find_recipe, from_json
from pipelines.sources import Data, decode, load, open_source, read_labels
from pipelines.storage import Checkpoints, open_folder

ROOT = Path(__file__).parents[2]
GREY = encoded(np.full((8, 8, 3), 128, np.uint8))


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that hostile content would make."""
    path = tmp_path / "pwned"
    yield path
    assert not path.exists()


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_the_control_is_hostile(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(tmp_path / "x")))
    assert (tmp_path / "x").exists()


def hostile(form: str, marker: Path) -> bytes:
    out = io.BytesIO()
    if form == "pickle":
        pickle.dump(Hostile(marker), out, protocol=2)
    elif form == "npy":
        np.save(out, np.array([Hostile(marker)], object), allow_pickle=True)
    else:
        torch.save({"step": Hostile(marker)}, out, _use_new_zipfile_serialization=form == "zip")
    return out.getvalue()


# ------------------------------------------------------------------------------------------- no code is run


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "npy"])
def test_a_checkpoint_with_the_right_sha256(tmp_path: Path, marker: Path, form: str) -> None:
    checkpoints = Checkpoints(open_folder(str(tmp_path)) / "checkpoints")
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": 2})
    content = hostile(form, marker)
    (tmp_path / "checkpoints" / "step-00000002.pt").write_bytes(content)
    manifest = {"step": 2, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "checkpoints" / "step-00000002.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"step-00000002\.pt"):
        checkpoints.load(2)
    state, broken = checkpoints.newest()
    assert state == {"step": 1} and len(broken) == 1


@pytest.mark.parametrize("form", ["npy", "pickle", "zip"])
def test_a_noise_file(tmp_path: Path, marker: Path, form: str) -> None:
    path = tmp_path / "labels.npy"
    path.write_bytes(hostile(form, marker))
    with pytest.raises(UserError, match=r"cannot be read .*: it is an array of integers"):
        read_labels(str(path), 1, 2)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_an_exported_file_and_an_extractor(tmp_path: Path, marker: Path, form: str) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(hostile(form, marker))
    with pytest.raises(UserError, match="not a TorchScript file that `export` wrote"):
        read_torchscript(path)
    with pytest.raises(UserError, match="holds no weights"):
        inception(path)


class Reads(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ops.image.read_file("secret")[0]


class Loads(nn.Module):
    @torch.jit.export
    def __getstate__(self) -> int:
        return 1

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        self.training = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("module", "named"), [(Reads, "ops"), (Loads, "__[gs]etstate__")])
@pytest.mark.filterwarnings("ignore")
def test_torchscript_that_reaches_beyond_tensors(tmp_path: Path, module: type[nn.Module], named: str) -> None:
    path = tmp_path / "file.pt"
    fields = json.dumps({"dim": 3, "image": [3, 8, 8]})
    torch.jit.save(torch.jit.script(module()), str(path), _extra_files={"backbone.json": fields})
    with pytest.raises(UserError, match=f"in it uses {named}"):
        read_torchscript(path)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_that_expands(tmp_path: Path) -> None:
    made, path = io.BytesIO(), tmp_path / "file.pt"
    torch.jit.save(
        torch.jit.script(nn.Identity()), made, _extra_files={"backbone.json": '{"dim": 3, "image": [3, 8, 8]}'}
    )
    path.write_bytes(made.getvalue())
    assert read_torchscript(path).dim == 3
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as larger:
        larger.writestr("file/data/0", bytes(2**24))
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"expands to 16,7\d\d,\d\d\d bytes"):
        read_torchscript(path)


def test_a_parquet_files_extension_types(tmp_path: Path, marker: Path) -> None:
    """Before version 14.0.1 pyarrow unpickled the metadata of such a type when the file was opened (CVE-2023-47248)."""
    extension = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Hostile(marker)),
    }
    schema = pa.schema([pa.field("image", pa.binary(), metadata=extension)], {"pandas": pickle.dumps(Hostile(marker))})
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([[GREY]], schema=schema), path)
    source = open_source(str(path), Data())
    assert len(load(source, source.groups[0], np.arange(1), 8).image) == 1


@pytest.mark.parametrize("name", ["class_names", "huggingface"])
@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"{", b"[1]", b'{"a": ' * 5000, b"5"])
def test_metadata_that_are_no_json(tmp_path: Path, name: str, content: bytes) -> None:
    table = pa.table({"image": [GREY], "label": [0]}).replace_schema_metadata({name: content})
    pq.write_table(table, tmp_path / "a.parquet")
    if name == "huggingface" and content in (b"[1]", b"5"):
        assert open_source(str(tmp_path / "a.parquet"), Data()).class_names is None
        return
    with pytest.raises(UserError, match=r"a\.parquet: .*metadata.*write it anew"):
        open_source(str(tmp_path / "a.parquet"), Data())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: b"\xff" + text,
        lambda text: b"[" * 100_000,
        lambda text: text.replace(b'"sce"', b'"os"'),
        lambda text: text.replace(b'"sce"', b'"../../x"'),
        lambda text: text.replace(b'"epochs": 200', b'"epochs": []'),
        lambda text: text.replace(b'"epochs": 200', b'"epochs": "x"'),
        lambda text: text.replace(b'"views": {', b'"views": 5, "view": {'),
        lambda text: text.replace(b'"media": "image"', b'"media": ["image"]'),
    ],
)
def test_a_recipe_that_is_damaged(damage: Any) -> None:
    text = find_recipe("sce_cifar10").to_json().encode()
    assert from_json(text) == from_json(text.decode()) == find_recipe("sce_cifar10")
    assert damage(text) != text
    with pytest.raises(UserError) as told:
        from_json(damage(text))
    assert str(told.value) and len(str(told.value)) < 1000 and "pydantic.dev" not in str(told.value)


CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"extractall", "system", "popen", "unpack_archive"}
MODULES = {"pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "yaml"}


@pytest.mark.parametrize("package", ["methods", "pipelines", "tuning", "cluster"])
def test_nothing_that_runs_what_it_reads(package: str) -> None:
    """Of `pickle` only the names of its errors are used; `torch.load` and `np.load` say that there is none."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in MODULES:
                assert node.attr.endswith("Error"), where
            if isinstance(node, ast.ImportFrom):
                assert node.module not in MODULES, where
            if not isinstance(node, ast.Call):
                continue
            given = {word.arg: word.value for word in node.keywords}
            called = ast.unparse(node.func)
            if isinstance(node.func, ast.Name):
                assert node.func.id not in CALLS, where
            assert called.rpartition(".")[2] not in METHODS, where
            if called == "torch.load":
                assert ast.unparse(given["weights_only"]) == "True", where
            if called == "np.load":
                assert ast.unparse(given["allow_pickle"]) == "False", where
            assert "shell" not in given, where


# --------------------------------------------------------------------------------- nothing is written elsewhere


def test_a_tars_names_and_links(tmp_path: Path) -> None:
    """Members are read where they lie, by place: names are only told, links are left out."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(GREY)
    with tarfile.open(inside / "x.tar", "w") as tar:
        for name in ("../../escaped.png", f"{tmp_path}/absolute.png", "fine.png"):
            member = tarfile.TarInfo(name)
            member.size = len(GREY)
            tar.addfile(member, io.BytesIO(GREY))
        for name, kind in (
            ("soft.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../secret.png"
            tar.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    source = open_source(str(inside / "x.tar"), Data())
    loaded = load(source, source.groups[0], np.arange(3), 8)
    assert source.rows == 3 and len(loaded.image) == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_a_postscript_program_is_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand it to Ghostscript."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(ValueError, match="not an image that is known"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n%%EOF\n", 8)


# ---------------------------------------------------------------------------------------- memory is bounded


@pytest.mark.parametrize("form", ["TIFF", "BMP"])
def test_gigapixels(form: str) -> None:
    data = bytearray(encoded(np.zeros((16, 16, 3), np.uint8), form))
    if form == "BMP":
        data[18:26] = (50_000).to_bytes(4, "little") * 2
    else:
        at = int.from_bytes(data[4:8], "little")
        for i in range(int.from_bytes(data[at : at + 2], "little")):
            entry = at + 2 + 12 * i
            if int.from_bytes(data[entry : entry + 2], "little") in (256, 257):  # width, length
                data[entry + 2 : entry + 12] = b"\x04\0\1\0\0\0" + (50_000).to_bytes(4, "little")
    with pytest.raises(ValueError, match="bomb"):
        decode(bytes(data), 8)


def test_a_jpeg_with_two_frame_headers() -> None:
    """Whoever takes the restart marker for one with a length finds the second frame header, 16 x 16; decoders find the
    first, 40,000 x 40,000, and took 4.6 GB for it."""
    jpeg = encoded(np.zeros((16, 16, 3), np.uint8), "JPEG")
    at = jpeg.index(b"\xff\xc0")
    end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    large = jpeg[at : at + 5] + (40_000).to_bytes(2) * 2 + jpeg[at + 9 : end]
    rest = jpeg[2:at] + large + jpeg[end:-2]
    data = b"\xff\xd8\xff\xd0" + (len(rest) + 2).to_bytes(2) + rest + jpeg[at:end] + b"\xff\xd9"
    assert sources._header(data) is None
    with pytest.raises(ValueError, match="bomb"):
        decode(data, 8)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.array([[0, 255, 256, 65535], [300, 40_000, 1, 2]], np.uint16)
    Image.fromarray(values).save(buffer := io.BytesIO(), "PNG")
    image = sources._decoded(buffer.getvalue())
    assert torch.equal(image[1], torch.from_numpy((values >> 8).astype(np.uint8)))


def bombs(tmp_path: Path) -> dict[str, Path]:
    """Of one row that compresses well; of one value that is named again and again; of rows that take no space."""
    value, paths = bytes(2**20), {name: tmp_path / f"{name}.parquet" for name in ("page", "dictionary", "rows")}
    pq.write_table(pa.table({"image": [value * 4]}), paths["page"], compression="zstd", use_dictionary=False)
    pq.write_table(pa.table({"image": [value] * 500, "label": [0] * 500}), paths["dictionary"])
    pq.write_table(pa.table({"image": pa.nulls(2_000_000, pa.binary())}), paths["rows"])
    return paths


def test_parquet_that_expands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = bombs(tmp_path)
    assert max(path.stat().st_size for path in paths.values()) < 70_000
    with pytest.raises(UserError, match=r"declares 2,000,000 rows in .* bytes: taken for a decompression bomb"):
        open_source(str(paths["rows"]), Data())
    monkeypatch.setattr(sources, "ALWAYS", 2 * 2**20)
    read = pa.total_allocated_bytes()
    for name in ("page", "dictionary"):
        source = open_source(str(paths[name]), Data())
        with pytest.raises(UserError, match=rf"{name}\.parquet: a row group expands to more than .*smaller row groups"):
            source.read(source.groups[0], np.arange(source.rows))
    assert pa.total_allocated_bytes() - read < 40 * 2**20
    monkeypatch.setattr(sources, "ALWAYS", 2**30)
    assert len(source.read(source.groups[0], np.array([3, 400])).files) == 2


def test_a_take_that_declares_too_many_frames(tmp_path: Path) -> None:
    columns = {"take": ["0"], "camera": ["a"], "video": [b"x"], "num_frames": pa.array([2**31 - 1], pa.int32())}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"declares 2,147,483,647 frames of a take in .* bytes"):
        open_source(str(tmp_path / "a.parquet"), Data(media="take"))


def test_a_group_is_read_in_portions_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.bytes(int(n)) for n in rng.integers(0, 50, 700)]
    table = pa.table({"image": [{"bytes": row, "path": str(i)} for i, row in enumerate(rows)], "label": range(700)})
    for options in ({}, {"compression": "none", "use_dictionary": False}, {"compression": "zstd"}):
        pq.write_table(table.replace_schema_metadata({"a": "b"}), tmp_path / "a.parquet", row_group_size=600, **options)
        with sources.parquet_file("", str(tmp_path / "a.parquet")) as file:
            assert sources.read_group(file, 0, "x").equals(table[:600]) and file.num_row_groups == 2
            assert sources.read_group(file, 1, "x").schema.metadata[b"a"] == b"b"
            wanted = np.array([0, 15, 16, 255, 256, 599])
            found = sources.read_group(file, 0, "x", ["image"], wanted)
            assert found["image"].to_pylist() == table["image"].take(wanted).to_pylist()
            assert len(sources.read_group(file, 0, "x", ["image"], wanted[:0])) == 0


def test_frames_larger_than_the_container_says(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded_video(numbered(3), "libx264", "mp4")
    known = video.table(file)
    assert len(video.decode(file, known, np.arange(3), 16, 16)) == 3
    monkeypatch.setattr(video, "LIMITS", {"max_pixels": "1000"})
    with pytest.raises(ValueError, match="no frame of it can be decoded"):
        video.decode(file, known, np.arange(3), 16, 16)


@pytest.mark.parametrize("codec", ["rawvideo", "ffv1"])
@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2)])
def test_videos_of_huge_frames(codec: str, width: int, height: int) -> None:
    """Of codecs whose frames are as large as the container says."""
    file = bytearray(encoded_video(numbered(3), codec, "avi"))
    assert len(video.decode(bytes(file), video.table(bytes(file)), np.arange(1), 16, 16)) == 1
    at = file.index(b"strf") + 8  # BITMAPINFOHEADER
    file[at + 4 : at + 12] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    file[64:72] = file[at + 4 : at + 12]  # of the file's own header
    with pytest.raises(ValueError, match="no frame of it can be decoded"):
        video.decode(bytes(file), video.table(bytes(file)), np.arange(1), 16, 16)


def test_a_count_of_frames_beyond_all_bounds() -> None:
    """The sample table of an MP4 file says that there are 170 million, of a byte each."""
    file = bytearray(encoded_video(numbered(3), "mpeg4", "mp4"))
    at, chunks = file.index(b"stsz"), file.index(b"stsc")
    file[at + 8 : at + 16] = (1).to_bytes(4) + (170_000_000).to_bytes(4)
    file[chunks + 16 : chunks + 20] = (170_000_000).to_bytes(4)
    with pytest.raises(ValueError):
        video.table(bytes(file))


# ------------------------------------------------------------------------------------------- make audit


A = '{"name": "a", "version": "1", "vulns": []}'
B = '{"name": "b", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}'
C = '{"name": "c", "skip_reason": "not found"}'


@pytest.mark.parametrize(
    ("found", "script", "code", "told"),
    [
        ([A, C], "exit 0", 0, "audit: 0 of 1 packages have known vulnerabilities; asked for 1 of 2, not c"),
        ([A, B], "exit 1", 1, "b 1: PYSEC-1, mended in 2\naudit: 1 of 2 packages have known vulnerabilities"),
        ([C, C], "exit 0", 2, r"out of reach \(it knows none of 2 packages"),
        ([], "echo 'ERROR: no connection' >&2; exit 1", 2, r"out of reach \(ERROR: no connection\)"),
        ([], "exit 3", 2, r"out of reach \(exit code 3\)"),
    ],
)
def test_an_audit_tells_what_is_known(tmp_path: Path, found: list[str], script: str, code: int, told: str) -> None:
    """A stand-in for pip-audit, whose last argument is the file for its findings."""
    content = f"echo '{{\"dependencies\": [{', '.join(found)}]}}' > $O\n" if found else ""
    tool = tmp_path / "pip-audit"
    tool.write_text(f"#!/bin/sh\nfor O; do :; done\n{content}{script}\n")
    tool.chmod(0o755)
    command = [sys.executable, str(ROOT / "tests" / "audit.py"), str(tool), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and re.search(told, done.stdout) and not done.stderr
