"""Shared by all tests: one Ray cluster for the session, and a small dataset of images whose class can be seen."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are about the CPU, also where there is a GPU


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Four logical CPUs, whatever the machine has: workers and data stages then run side by side everywhere."""
    import ray

    from pipelines.place import quiet

    quiet()
    ray.init(num_cpus=4, log_to_driver=False, object_store_memory=500 * 2**20)
    yield
    ray.shutdown()


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """(H, W, 3) uint8 -> bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def moving(frames: int, seed: int, *, height: int = 24, width: int = 32) -> np.ndarray:
    """(T, H, W, 3) uint8: a coarse texture that moves, each frame another."""
    rng = np.random.default_rng(seed)
    scene = rng.integers(0, 256, (-(-(height + frames) // 4), -(-(width + frames) // 4), 3), np.uint8)
    scene = scene.repeat(4, 0).repeat(4, 1)
    return np.stack([scene[t : t + height, t : t + width] for t in range(frames)])


def write_images(path: Path, count: int, *, size: int = 16, classes: int = 4, seed: int = 0, group: int = 50) -> Path:
    """A Parquet file of noisy images whose mean colour tells the class, with row groups of `group` rows."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(7).integers(40, 216, (classes, 3))
    labels = np.arange(count) % classes
    noise = rng.normal(0, 30, (count, size, size, 3))
    pixels = (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
    table = pa.table({"image": [encoded(image) for image in pixels], "label": pa.array(labels, pa.int32())})
    names = json.dumps([f"class {i}" for i in range(classes)])
    pq.write_table(table.replace_schema_metadata({"class_names": names}), path, row_group_size=group)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and test Parquet: 330 and 80 images of 16 px, 4 classes."""
    folder = tmp_path_factory.mktemp("images")
    return write_images(folder / "train.parquet", 330), write_images(folder / "test.parquet", 80, seed=1)


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """To the bit, through all of a checkpoint."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where
