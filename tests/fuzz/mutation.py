"""Small valid inputs of each kind, made on the spot, and a seeded mutator of them."""

import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

ROOT = Path(__file__).parents[2]

Seeds = dict[str, bytes]
"""By name, whose suffix and first word say how it is read."""


def images() -> Seeds:
    y, x = np.mgrid[:24, :32]
    pixels = np.stack([x * 8, y * 10, (x + y) * 4], -1).astype(np.uint8)
    made: dict[str, tuple[str, str, dict[str, Any]]] = {
        "plain.png": ("PNG", "RGB", {}),
        "palette.png": ("PNG", "P", {}),
        "alpha.png": ("PNG", "RGBA", {}),
        "plain.jpg": ("JPEG", "RGB", {}),
        "progressive.jpg": ("JPEG", "RGB", {"progressive": True}),
        "cmyk.jpg": ("JPEG", "CMYK", {}),
        "lossy.webp": ("WEBP", "RGB", {}),
        "lossless.webp": ("WEBP", "RGBA", {"lossless": True}),
        "plain.gif": ("GIF", "RGB", {}),
        "plain.bmp": ("BMP", "RGB", {}),
        "deflate.tif": ("TIFF", "RGB", {"compression": "tiff_deflate"}),
        "lzw.tif": ("TIFF", "CMYK", {"compression": "tiff_lzw"}),
    }
    seeds = {}
    for name, (form, mode, options) in made.items():
        Image.fromarray(pixels).convert(mode).save(buffer := io.BytesIO(), form, **options)
        seeds[name] = buffer.getvalue()
    Image.fromarray(pixels.astype(np.uint16)[..., 0] * 256).save(buffer := io.BytesIO(), "PNG")
    seeds["deep.png"] = buffer.getvalue()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in (("0.png", seeds["plain.png"]), ("0.cls", b"1"), ("1.jpg", seeds["plain.jpg"])):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return {**seeds, "samples.tar": buffer.getvalue()}


def video(codec: str, container: str, frames: int = 8) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.gop_size = 32, 48, 4
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(frames):
            pixels = np.roll(np.arange(32 * 48 * 3, dtype=np.uint32), 50 * i).reshape(32, 48, 3) // 19
            output.mux(stream.encode(VideoFrame.from_ndarray(pixels.astype(np.uint8))))
        output.mux(stream.encode(None))
    return file.getvalue()


def videos() -> Seeds:
    kinds = [("mpeg4", "avi"), ("mjpeg", "avi"), ("libx264", "mp4"), ("mpeg4", "mp4"), ("libvpx", "webm")]
    kinds += [("libx264", "matroska"), ("flv1", "flv"), ("mpeg1video", "mpeg")]
    suffix = {"matroska": "mkv", "mpeg": "mpg"}
    return {f"{codec}.{suffix.get(form, form)}": video(codec, form) for codec, form in kinds}


def parquet() -> Seeds:
    few = [content for name, content in images().items() if name.startswith("plain")]
    clip = video("mjpeg", "avi", 4)
    hub = {"huggingface": json.dumps({"info": {"features": {"label": {"names": list("abcd")}}}})}
    structs = [{"bytes": content, "path": "a.png"} for content in few]
    joints = {"joint_names": '["a", "b"]', "joint_mirror": "[1, 0]", "joint_parents": "[-1, 0]"}
    takes = {
        "take": ["0", "0", "1", "1"],
        "camera": ["a", "b", "a", "b"],
        "video": [clip] * 4,
        "num_frames": pa.array([4] * 4, pa.int32()),
        "pose": pa.array([list(range(4 * 6))] * 4, pa.list_(pa.float32())),
        "box": pa.array([[16.0, 16.0, 8.0] * 4] * 4, pa.list_(pa.float32())),
    }
    tables: dict[str, tuple[pa.Table, dict[str, Any]]] = {
        "image-plain": (pa.table({"image": few, "label": list(range(len(few)))}), {"compression": "none"}),
        "image-zstd": (pa.table({"image": few * 4, "label": ["b", "a", "c", "d"] * len(few)}), {"compression": "zstd"}),
        "image-hub": (pa.table({"image": structs, "label": [0] * len(few)}).replace_schema_metadata(hub), {}),
        "video-plain": (pa.table({"video": [clip] * 3, "label": [0, 1, 2]}), {"row_group_size": 2}),
        "take-plain": (pa.table(takes).replace_schema_metadata(joints), {"row_group_size": 2}),
    }
    seeds = {}
    for name, (table, options) in tables.items():
        pq.write_table(table, buffer := io.BytesIO(), **options)
        seeds[f"{name}.parquet"] = buffer.getvalue()
    return seeds


def checkpoints() -> Seeds:
    """Names say which file of a run is changed; `signed.pt` is a checkpoint whose manifest is made after the change."""
    from pipelines.recipe import find_recipe

    torch.save(STATE, buffer := io.BytesIO())
    recipes = {f"{name}.recipe.json": find_recipe(name).to_json().encode() for name in ("sce_cifar10", "demo")}
    torch.save(STATE, legacy := io.BytesIO(), _use_new_zipfile_serialization=False)
    return {
        "signed.pt": buffer.getvalue(),
        "legacy.signed.pt": legacy.getvalue(),
        "unsigned.pt": buffer.getvalue(),
        "manifest.json": json.dumps({"step": 2, "bytes": 1000, "sha256": "0" * 64}).encode(),
        **recipes,
    }


STATE = {"step": 2, "method": {"weight": torch.arange(64.0).reshape(8, 8)}, "losses": [1.5, None, "text"]}


def command_lines() -> Seeds:
    """Those of the README, and some on data that are there. JSON lists of words, the package first."""
    found = re.findall(r"^python -m ((?:pipelines|tuning) (?:.*\\\n)*.*)$", (ROOT / "README.md").read_text(), re.M)
    data = "--data.train train.parquet --data.test train.parquet"
    found += [
        f"pipelines pretrain demo {data} --run.name first --run.workers 2 --epochs 2 --batch-size 2",
        f"pipelines pretrain sce_cifar10 {data} --run.storage runs --run.name second --method.tau 0.1",
        f"pipelines pretrain supervised_cifar10 {data} --data.noise 0.2 --optimizers.model.lr 0.1",
        "pipelines evaluate runs/there knn linear --data.limit 100",
        "pipelines export runs/there --to out.safetensors",
        f"tuning sweep sce_table1 --profile smoke {data} --run.name third",
        "tuning report runs/there",
    ]
    lines = [shlex.split(line.replace("\\\n", " "), comments=True) for line in found]
    return {f"{i}.argv": json.dumps(line).encode() for i, line in enumerate(lines) if len(line) > 1}


KINDS: dict[str, tuple[int, Callable[[], Seeds]]] = {
    "image": (6, images),
    "video": (4, videos),
    "parquet": (4, parquet),
    "checkpoint": (3, checkpoints),
    "command line": (3, command_lines),
}
"""The share of each kind, of 20, and its seeds."""

# --------------------------------------------------------------------------------------------- mutation

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 24, 65_000)
WORDS = ["", "-1", "0", "nan", "inf", "1e400", "-", "--", "=", "None", "[]", "{}", "'", "99999999999999999999", "True"]
WORDS += [
    "../../outside",
    "/dev/null/x",
    "nonsense://x/y",
    "s3:",
    "file://",
    "~nobody/x",
    "*",
    "[",
    "ü" * 5,
    "x" * 5000,
]
WORDS += [
    "--help",
    "--data.media",
    "video",
    "take",
    "--run.resume",
    "--batch-norm",
    "split:0",
    "a\nb",
    "\ud800",
    "%s{}",
]
PLACES = ("--run.storage", "--to")
"""Options that say where to write: wherever they point is what was asked for."""


def mutated(name: str, content: bytes, seeds: Seeds, random: Random) -> bytes:
    """One to four changes of `content`, a seed of that name."""
    if name.endswith(".argv"):
        return json.dumps(_words(json.loads(content), random)).encode()
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        if name.endswith(".json") and random.random() < 0.5:
            _value(changed, random)
        else:
            _bytes(changed, random.choice(list(seeds.values())), random)
    return bytes(changed)


def _bytes(content: bytearray, other: bytes, random: Random) -> None:
    size = len(content)
    place = random.choice((lambda: random.randrange(min(size, 64)), lambda: max(0, size - 1 - random.randrange(512))))
    at = (place() if random.random() < 0.6 else random.randrange(size)) if size else 0
    length = random.choice((1, 2, 4, 16, 256, 4096))
    kind = random.choice(
        ("flip", "flip", "set", "number", "number", "cut", "remove", "repeat", "splice", "zero", "swap")
    )
    if not size or kind == "splice":
        begin = random.randrange(max(len(other), 1))
        content[at:at] = other[begin : begin + length]
    elif kind == "flip":
        content[at] ^= 1 << random.randrange(8)
    elif kind == "set":
        content[at] = random.randrange(256)
    elif kind == "number":
        width = random.choice((1, 2, 4, 8))
        number = (random.choice(EXTREMES) % (1 << 8 * width)).to_bytes(width, random.choice(("little", "big")))
        content[at : at + width] = number
    elif kind == "cut":
        del content[at:]
    elif kind == "remove":
        del content[at : at + length]
    elif kind == "repeat":
        content[at:at] = content[at : at + length] * random.choice((1, 3, 50))
    elif kind == "zero":
        content[at : at + length] = bytes(len(content[at : at + length]))
    else:
        there = random.randrange(size)
        content[at], content[there] = content[there], content[at]


def _value(content: bytearray, random: Random) -> None:
    """Another value in place of one of a JSON text."""
    values = list(re.finditer(rb'-?\d+(\.\d+)?(e-?\d+)?|"[^"]*"|true|false|null', content))
    if values:
        found = random.choice(values)
        new = random.choice(("null", "-1", "0", "1e999", "[]", "{}", '"x"', "NaN", "[" * 5000, "1" * 5000, "true"))
        content[found.start() : found.end()] = new.encode()


def _words(words: list[str], random: Random) -> list[str]:
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(1, len(words)) if len(words) > 1 else 0
        kind = random.choice(("drop", "twice", "swap", "word", "word", "word", "add", "join", "flip"))
        if at and kind == "drop":
            del words[at]
        elif kind == "twice":
            words.insert(at, words[at])
        elif kind == "swap":
            there = random.randrange(min(1, len(words) - 1), len(words))
            words[at], words[there] = words[there], words[at]
        elif at and kind == "word":
            words[at] = random.choice(WORDS)
        elif kind == "add":
            words.insert(at + 1, random.choice(WORDS))
        elif kind == "join" and at + 1 < len(words):
            words[at : at + 2] = [f"{words[at]}={words[at + 1]}"]
        elif at and words[at]:
            letter = random.randrange(len(words[at]))
            changed = chr(max(1, ord(words[at][letter]) ^ 1 << random.randrange(6)))
            words[at] = words[at][:letter] + changed + words[at][letter + 1 :]
    return [
        "elsewhere" if i and before.startswith(PLACES) and ("/" in word or ".." in word) else word
        for i, (before, word) in enumerate(zip(["", *words], words, strict=False))
    ]
