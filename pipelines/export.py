"""Export: a run's backbone as safetensors (weights alone), TorchScript or ONNX, chosen by the file's suffix.

TorchScript and ONNX take uint8 images (B, C, H, W) and normalize them inside; B is free, H and W are free where the
network allows it (transformers fix them). The networks are in eval mode, with the batch norms' running statistics.
TorchScript keeps the parameters (their names with `__` for each dot), so it moves to GPUs and can be trained on.

A file is a function of the weights and of the versions of torch, onnxscript and this project alone: names, paths,
stack traces and what else was traced in the process are stripped.
"""

import importlib.util
import io
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from methods.backbones import Backbone
from pipelines.errors import UserError
from pipelines.evaluate import defaults, subject
from pipelines.storage import open_folder

BATCHES = (1, 2, 7)
"""Sizes of the batches on which an export is compared with the original."""
ONNX_BYTES = 2**31 - 2**24
"""What fits into one ONNX file, which is a protobuf message, less room for the graph."""


@dataclass(frozen=True)
class ExportOptions:
    to: str
    """The file: .safetensors (weights alone), .pt (TorchScript) or .onnx. An existing one is never replaced."""


# -------------------------------------------------------------------------------------------- safetensors


def write_safetensors(backbone: Backbone, example: Tensor) -> bytes:
    return safetensors_bytes(backbone.state_dict())


def read_safetensors(path: Path, backbone: Backbone) -> Backbone:
    twin = deepcopy(backbone)
    twin.load_state_dict(load_file(path))  # strict: every weight comes from the file
    return twin


# -------------------------------------------------------------------------------------------- TorchScript


@contextmanager
def torchscript() -> Iterator[None]:
    """Silences torch's notice that TorchScript is deprecated, and the tracer's on shapes, which are checked after."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


class _Flat(nn.Module):
    """A backbone's tensors without its tree of modules: TorchScript names a class a module, numbered by process."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.call = backbone.forward  # not a submodule
        for name, parameter in backbone.named_parameters():
            self.register_parameter(name.replace(".", "__"), parameter)
        for name, buffer in backbone.named_buffers():
            self.register_buffer(name.replace(".", "__"), buffer)

    def forward(self, images: Tensor) -> Tensor:
        return self.call(images)


def write_torchscript(backbone: Backbone, example: Tensor) -> bytes:
    traced, fields = io.BytesIO(), json.dumps({"dim": backbone.dim, "image": example.shape[1:]})
    with torchscript():
        network = torch.jit.trace(_Flat(backbone).eval(), example, check_trace=False)
        torch.jit.save(network, traced, _extra_files={"backbone.json": fields})
    out = io.BytesIO()  # without what was traced before (numbers of classes), source paths and torch's id
    with zipfile.ZipFile(traced) as archive, zipfile.ZipFile(out, "w") as clean:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".debug_pkl") or "/traced_inputs" in name or name.endswith("/serialization_id"):
                continue
            if name.endswith((".py", ".pkl")):
                name, content = (
                    re.sub(r"/___torch_mangle_\d+", "", name),
                    re.sub(rb"\.___torch_mangle_\d+", b"", content),
                )
            clean.writestr(zipfile.ZipInfo(name), content)  # dated 1980
    return out.getvalue()


MOST_CODE = 2**24  # bytes that the compressed entries of a TorchScript file may take; weights lie as they are
_REACHES = re.compile(rb"\b(ops|classes|save|load|from_file|__setstate__|__getstate__)\b")


def _harmless(archive: bytes) -> bytes:
    """The archive packed anew, of what was looked at here. TorchScript runs no Python, but has operators that read and
    write files, and methods that are called when it is loaded.

    Raises:
        ValueError: code that names one, or a decompression bomb.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as given, zipfile.ZipFile(out, "w") as clean:
        packed = sum(entry.file_size for entry in given.infolist() if entry.compress_type != zipfile.ZIP_STORED)
        if packed > MOST_CODE:
            raise ValueError(f"what is compressed in it expands to {packed:,} bytes: taken for a decompression bomb")
        for entry in given.infolist():
            content = given.read(entry)
            code, pickled = (entry.filename.endswith(suffix) for suffix in (".py", ".pkl"))
            if (code and (found := _REACHES.search(content))) or (pickled and b"torch.classes" in content):
                raise ValueError(f"{entry.filename} in it uses {found[0].decode() if code and found else 'classes'}")
            clean.writestr(zipfile.ZipInfo(entry.filename), content)
    return out.getvalue()


class TorchScript(nn.Module):
    """An exported backbone: uint8 (B, C, H, W), of clips (B, T, C, H, W) -> (B, dim). Pickled as its file's bytes, so
    that Ray can send it.

    Args:
        archive: the bytes of the file.

    Raises:
        ValueError: not TorchScript, or not written by `export`, whose networks reach no files.
    """

    def __init__(self, archive: bytes) -> None:
        super().__init__()
        extra: dict[str, Any] = {"backbone.json": ""}
        try:
            with torchscript():
                checked = io.BytesIO(_harmless(archive))
                self.network = torch.jit.load(checked, map_location="cpu", _extra_files=extra)
            fields = json.loads(extra["backbone.json"])
            dim, image = int(fields["dim"]), tuple(map(int, fields["image"]))
        except (RuntimeError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(f"not a TorchScript file that `export` wrote ({reason})") from error
        self.archive = archive
        self.dim = dim
        self.image: tuple[int, ...] = image
        """(C, H, W) of the images, or (T, C, H, W) of the clips, that the run's network saw."""

    @property
    def mean(self) -> Tensor:
        """(1, C, 1, 1), of pixels in 0 to 255; `std` likewise."""
        return self.network.mean

    @property
    def std(self) -> Tensor:
        return self.network.std

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def __reduce__(self) -> tuple[type["TorchScript"], tuple[bytes]]:
        return TorchScript, (self.archive,)


def read_torchscript(path: Path) -> TorchScript:
    """The backbone in a .pt file that `export` wrote.

    Raises:
        UserError: another file, as a checkpoint.
    """
    try:
        return TorchScript(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}; a run's checkpoints are evaluated by the run's folder") from error


# --------------------------------------------------------------------------------------------------- ONNX


def write_onnx(backbone: Backbone, example: Tensor) -> bytes:
    if sum(tensor.nbytes for tensor in backbone.state_dict().values()) > ONNX_BYTES:
        raise UserError("an ONNX file holds at most 2 GB, and this backbone is larger: choose .safetensors or .pt")
    clips = example.ndim == 5  # of frames and pixels as they were trained on
    free = {0: torch.export.Dim("batch"), **({} if clips else dict.fromkeys((2, 3), torch.export.Dim.AUTO))}
    program = torch.onnx.export(
        backbone,
        (example,),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes={"images": free},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    strip(model)
    names = ("batch", "", "", "", "") if clips else ("batch", "", "height", "width")
    for size, name in zip(model.graph.input[0].type.tensor_type.shape.dim, names, strict=True):
        if size.dim_param:
            size.dim_param = name
    return model.SerializeToString(deterministic=True)


def strip(message: Any) -> None:
    """Clears what is said about a graph beside the graph: stack traces, names and versions of programs."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string", "value_info", "producer_name", "producer_version"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                strip(part)


def read_onnx(path: Path, backbone: Backbone) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


# ------------------------------------------------------------------------------------------------ command


@dataclass(frozen=True)
class Format:
    name: str
    write: Callable[[Backbone, Tensor], bytes]
    """Of the backbone and example images."""
    read: Callable[[Path, Backbone], Callable[[Tensor], Tensor]]
    """What the file holds as a function of images; the original gives the network where weights alone are there."""
    tolerance: float
    """Largest difference of features that is accepted, relative to the largest feature."""
    needs: tuple[str, ...] = ()
    """Packages of the extra `onnx`."""


FORMATS = {
    ".safetensors": Format("safetensors", write_safetensors, read_safetensors, 0.0),
    ".pt": Format("TorchScript", write_torchscript, lambda path, _: read_torchscript(path), 0.0),
    ".onnx": Format("ONNX", write_onnx, read_onnx, 1e-4, ("onnx", "onnxruntime", "onnxscript")),
}


def export(run: str, to: str) -> Path:
    """Writes the backbone of a run's newest good checkpoint, reads it back and compares the features of random images.

    Args:
        run: the run's folder or URI.
        to: a local file that does not exist, whose suffix is one of `FORMATS`. Written whole or not at all.

    Returns:
        The file. A line on stderr gives format, size and the largest difference.

    Raises:
        UserError: another suffix, an existing file, no run or no good checkpoint there, packages that are not
            installed, a folder that can't be written, a backbone that the format cannot hold, or features that
            differ by more than its tolerance.
    """
    path = Path(to).expanduser()
    if path.suffix not in FORMATS or "://" in to:
        raise UserError(f"--to {to}: name a local file that ends in .safetensors, .pt (TorchScript) or .onnx")
    if path.exists():
        raise UserError(f"--to {to} is there already, and is not replaced: choose another name, or delete it")
    form = FORMATS[path.suffix]
    missing = [name for name in form.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{form.name} needs {', '.join(missing)}: pip install 'rayssl[onnx]'")
    if not open_folder(run).exists("recipe.json"):
        raise UserError(f"{run} is not a run: no recipe.json in it")
    it = subject(run, defaults(run))
    backbone = it.backbone.eval()
    generator = torch.Generator().manual_seed(0)
    image = (*((it.frames,) if it.frames else ()), backbone.mean.shape[1], it.size, it.size)
    batches = [torch.randint(0, 256, (count, *image), generator=generator, dtype=torch.uint8) for count in BATCHES]
    try:
        with torch.no_grad():
            content = form.write(backbone, batches[1])
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{form.name} cannot hold this backbone ({reason}): choose .safetensors") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        found = difference(form.read(temporary, backbone), backbone, batches)
        if not found <= form.tolerance:
            raise UserError(
                f"{form.name} gives other features than the run: largest difference {found:.1g}, relative to the "
                f"largest feature, above {form.tolerance:g}; nothing was written. Choose another format"
            )
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): choose another --to") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    print(
        f"{path}: {form.name} of step {it.step}, {len(content) / 1e6:.1f} MB, read back: largest relative difference "
        f"of features {found:.1g} (at most {form.tolerance:g})",
        file=sys.stderr,
    )
    return path


@torch.no_grad()
def difference(found: Callable[[Tensor], Tensor], wanted: Callable[[Tensor], Tensor], batches: list[Tensor]) -> float:
    """Largest absolute difference over all batches, divided by the largest absolute value that is wanted."""
    pairs = [(found(images), wanted(images)) for images in batches]
    largest = max(want.abs().max().item() for _, want in pairs)
    return torch.stack([(got - want).abs().max() for got, want in pairs]).max().item() / (largest or 1.0)
