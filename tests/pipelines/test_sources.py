"""Sources are read from files made here, in each format; the real sets only where RAYSSL_DATA names their folder."""

import io
import json
import os
import pickle
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from pipelines import sources
from pipelines.errors import UserError
from pipelines.sources import (
    Bad,
    Data,
    Source,
    check_bad,
    check_classes,
    decode,
    fingerprint,
    load,
    open_source,
    selected,
)

DATA = Path(os.environ.get("RAYSSL_DATA", "/nonexistent"))


def photo(width=40, height=30, seed=0):
    """Smooth, so that JPEG keeps it: uint8 (height, width, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def encoded(pixels, form="PNG", mode=None, **options):
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, form, **options)
    return buffer.getvalue()


def parquet(path, images, labels=None, metadata=None, rows_per_group=4, name="image", image_type=None):
    columns = {name: pa.array(images, image_type or pa.binary())}
    if labels is not None:
        columns["label"] = labels if isinstance(labels, pa.Array) else pa.array(labels, pa.int32())
    table = pa.table(columns).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def everything(source: Source, size=8):
    parts = [load(source, group, np.arange(group.rows), size) for group in source.groups]
    image, index, label = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return image, index, label, [bad for part in parts for bad in part.bad]


GREY = [encoded(np.full((8, 8, 3), i, np.uint8)) for i in range(10)]  # image i has the value i everywhere


# --------------------------------------------------------------------------------------------- decoding


def test_decode_is_torchvisions_resize_and_centre_crop():
    """Shorter side to 16, then the centre: within 1 of 255, but for the columns where the filter meets the crop."""
    pixels = photo(60, 30)
    expected = tv.center_crop(tv.resize(torch.from_numpy(pixels).permute(2, 0, 1), [16], antialias=True), [16, 16])
    got = decode(encoded(pixels), 16)
    assert got.shape == (3, 16, 16) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - expected.numpy())[..., 1:-1].max() <= 1


def test_decode_leaves_the_right_size_alone():
    pixels = photo(16, 16)
    assert np.array_equal(decode(encoded(pixels), 16), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"quality": 95}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
    ],
)
def test_colour_formats(form, mode, options):
    pixels = photo()
    got = decode(encoded(pixels, form, mode, **options), 30)
    assert np.abs(got.astype(int) - pixels[:, 5:35].transpose(2, 0, 1)).mean() < 4


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_palette(form):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, 2:] = (250, 10, 20)
    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(2).save(buffer, form)
    assert Image.open(buffer).mode == "P"
    assert np.array_equal(decode(buffer.getvalue(), 4), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(("form", "mode"), [("PNG", "L"), ("JPEG", "L"), ("PNG", "LA"), ("WEBP", "L"), ("PNG", "1")])
def test_grey_is_repeated(form, mode):
    got = decode(encoded(np.full((6, 6, 3), 255, np.uint8), form, mode), 6)
    assert got.shape == (3, 6, 6) and got.min() >= 254


def test_alpha_is_dropped_not_blended():
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[..., 3] = 0
    assert (decode(encoded(pixels), 4) == 200).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_eight(form):
    values = (np.arange(16, dtype=np.uint16) * 4096 + 255).reshape(4, 4)
    assert np.array_equal(decode(encoded(values, form), 4)[1], values >> 8)


def test_orientation_is_applied():
    """Orientation 6: the stored picture is to be turned by 90 degrees clockwise; its left edge comes to the top."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    for form, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        got = decode(encoded(pixels, form, exif=exif, **options), 16)
        assert got[:, :6].min() > 240 and got[:, 10:].max() < 15, form


def test_animation_gives_its_first_frame():
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (5, 5), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for form in ("GIF", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:], lossless=True)
        assert decode(buffer.getvalue(), 5)[0].min() > 250


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (3, 20_000), (20_000, 3), (2, 3)])
def test_tiny_and_very_long(shape):
    got = decode(encoded(np.full((*shape, 3), 77, np.uint8)), 8)
    assert got.shape == (3, 8, 8) and (got == 77).all()


def test_without_torchvisions_decoder_pixels_are_the_same(monkeypatch):
    """It is deprecated in torchvision 0.29: Pillow takes over."""
    files = [encoded(photo(seed=i), form) for i, form in enumerate(("JPEG", "PNG", "WEBP"))]
    fast = [decode(file, 16) for file in files]
    monkeypatch.setattr(sources, "_decode_fast", None)
    assert all(np.array_equal(decode(file, 16), pixels) for file, pixels in zip(files, fast, strict=True))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_is_broken(form, share):
    data = encoded(photo(200, 200), form)
    with pytest.raises(ValueError, match=r"\w"):
        decode(data[: int(len(data) * share)], 8)


@pytest.mark.parametrize(
    "content",
    [zlib.compress(b"\x09" + bytes(12) + b"\x00" + bytes(12)), zlib.compress(bytes(4_000))[:6] + b"\xff" * 40],
    ids=["no such filter", "no such code"],
)
def test_png_whose_content_is_wrong_and_its_sums_right_is_broken(content):
    """libpng finds out in the midst of decoding, where torchvision's decoder ends the process."""

    def chunk(name, body):
        return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)

    header = chunk(b"IHDR", (4).to_bytes(4) + (2).to_bytes(4) + bytes([8, 2, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"\w"):
        decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", content) + chunk(b"IEND", b""), 2)


def test_jpeg_cut_by_two_bytes_is_broken():
    with pytest.raises(ValueError, match="truncated"):
        decode(encoded(photo(), "JPEG")[:-2], 8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"just some text", "not an image.*just some text"), (b"", "empty"), (b"\xff\xd8", "not an image")],
)
def test_what_is_no_image_says_why(data, reason):
    with pytest.raises(ValueError, match=reason):
        decode(data, 8)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_decompression_bomb_is_refused_by_its_header(form):
    """The header is changed to 16,000 x 16,000 (GIF: 65,535 x 65,535); nothing of that size is made."""
    data = bytearray(encoded(photo(16, 16), form, **({"lossless": True} if form == "WEBP" else {})))
    if form == "PNG":
        data[16:24] = (16_000).to_bytes(4) * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    elif form == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = (16_000).to_bytes(2) * 2
    elif form == "WEBP":
        data[21:25] = (15_999 | 15_999 << 14).to_bytes(4, "little")
    else:
        data[6:10] = b"\xff" * 4
    with pytest.raises(ValueError, match="bomb"):
        decode(bytes(data), 8)


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["JPEG", "WEBP"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_header_agrees_with_pillow(width, height, form, lossless):
    data = encoded(np.zeros((height, width, 3), np.uint8), form, **({"lossless": lossless} if form == "WEBP" else {}))
    assert sources._header(data) == (width, height)


@given(st.binary(max_size=64), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF....WEBPVP8L"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_an_image_or_a_value_error(noise, start):
    with pytest.raises(ValueError):
        decode(start + noise, 4)


# ---------------------------------------------------------------------------------------------- Parquet


def test_parquet(tmp_path):
    names = json.dumps(["a", "b", "c"])
    parquet(tmp_path / "train-1.parquet", GREY[6:], [2, 1, 0, 2], {"class_names": names})
    parquet(tmp_path / "train-0.parquet", GREY[:6], [0, 1, 2, 0, 1, 2], {"class_names": names})
    source = open_source(str(tmp_path / "train-*.parquet"), Data())
    assert [(g.part, g.first, g.rows) for g in source.groups] == [(0, 0, 4), (1, 4, 2), (0, 6, 4)]
    assert (source.rows, source.labelled, source.classes, source.class_names) == (10, True, 3, ("a", "b", "c"))
    assert pickle.loads(pickle.dumps(source)) == source and len(pickle.dumps(source)) < 2000
    image, index, label, bad = everything(source)
    assert image[:, 0, 0, 0].tolist() == index.tolist() == list(range(10)) and not bad
    assert label.tolist() == [0, 1, 2, 0, 1, 2, 2, 1, 0, 2]


def test_only_the_rows_asked_for(tmp_path):
    source = open_source(str(parquet(tmp_path / "a.parquet", GREY, list(range(10)))), Data())
    got = load(source, source.groups[1], np.array([1, 3]), 8)
    assert got.index.tolist() == got.label.tolist() == got.image[:, 1, 2, 3].tolist() == [5, 7]
    names = source.read(source.groups[1], np.array([1, 3])).names
    assert [Path(name).name for name in names] == ["a.parquet:5", "a.parquet:7"]


def test_a_fingerprint_is_of_names_sizes_and_rows(tmp_path):
    images = [encoded(photo(seed=i)) for i in range(6)]
    parquet(tmp_path / "a.parquet", images)
    before = fingerprint(open_source(str(tmp_path / "a.parquet"), Data()))
    assert fingerprint(open_source(str(tmp_path / "a.parquet"), Data())) == before
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    assert fingerprint(open_source(f"{other}/*.parquet", Data())) == before  # a copy of the same name
    parquet(other / "a.parquet", [*images[:5], encoded(photo(seed=9), "JPEG")])
    assert fingerprint(open_source(f"{other}/*.parquet", Data())) != before


def test_clean_data_are_in_plain_order_with_true_labels():
    noisy = Data(train="x", size=64, order="balanced", validation_ratio=0.2, noise=0.5, limit=7)
    assert noisy.clean() == Data(train="x", size=64, limit=7)
    assert replace(noisy, noise=0.0, noise_file="labels.npy").clean() == noisy.clean()


@pytest.mark.parametrize("where", ["a.parquet", "", "*.parquet"])
def test_a_uri_reads_the_same(tmp_path, where):
    parquet(tmp_path / "deep" / "a.parquet", GREY, list(range(10)))
    local = open_source(str(tmp_path / "deep" / where), Data())
    remote = open_source(f"file://{tmp_path}/de*/{where}" if where else f"file://{tmp_path}/deep", Data())
    assert remote.filesystem.startswith("file://") and local.filesystem == ""
    assert replace(remote, filesystem="") == local
    assert np.array_equal(everything(remote)[0], everything(local)[0])


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    parquet(tmp_path / "a.parquet", GREY)
    monkeypatch.chdir(tmp_path)
    assert open_source("a.parquet", Data()).groups[0].path == str(tmp_path / "a.parquet")


def test_the_hubs_struct_and_class_names(tmp_path):
    features = {"info": {"features": {"img": {"_type": "Image"}, "label": {"names": ["cat", "dog"]}}}}
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": GREY[0], "path": "0.png"}, None, {"bytes": None, "path": "2.png"}, {"bytes": GREY[3], "path": ""}]
    path = parquet(
        tmp_path / "0.parquet", rows, [0, 1, 1, 0], {"huggingface": json.dumps(features)}, name="img", image_type=struct
    )
    source = open_source(str(path), Data(image="img"))
    assert source.class_names == ("cat", "dog")
    image, index, label, bad = everything(source)
    assert index.tolist() == [0, 3] and label.tolist() == [0, 0] and image[:, 0, 0, 0].tolist() == [0, 3]
    assert [(b.index, b.reason) for b in bad] == [(1, "no image bytes (null)"), (2, "no image bytes (null)")]


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        (pa.array(["dog", "cat", None, "eel"]), ("cat", "dog", "eel"), [1, 0, -1, 2]),
        (pa.array(["b", "a", "b", "a"]).dictionary_encode(), ("a", "b"), [1, 0, 1, 0]),
        (pa.array([3, None, 1, 0], pa.uint8()), None, [3, -1, 1, 0]),
        (pa.array([True, False, True, True]), None, [1, 0, 1, 1]),
    ],
)
def test_labels_of_other_types(tmp_path, values, classes, expected):
    source = open_source(str(parquet(tmp_path / "a.parquet", GREY[:4], values)), Data())
    assert source.class_names == classes and source.classes == max(expected) + 1
    assert everything(source)[2].tolist() == expected


@pytest.mark.parametrize("labels", [None, pa.array([-1] * 4), pa.nulls(4)])
def test_without_labels(tmp_path, labels):
    source = open_source(str(parquet(tmp_path / "a.parquet", GREY[:4], labels)), Data())
    assert not source.labelled and source.classes is None and source.class_names is None
    assert everything(source)[2].tolist() == [-1] * 4


def test_files_without_labels_beside_labelled_ones(tmp_path):
    parquet(tmp_path / "a.parquet", GREY[:2], [0, 1])
    parquet(tmp_path / "b.parquet", GREY[2:4])
    source = open_source(str(tmp_path / "*.parquet"), Data())
    assert source.labelled and everything(source)[2].tolist() == [0, 1, -1, -1]


def test_a_missing_column_lists_those_there_are(tmp_path):
    path = parquet(tmp_path / "a.parquet", GREY, list(range(10)), name="picture")
    with pytest.raises(UserError, match=r"no column image; its columns are picture, label.*--data\.image"):
        open_source(str(path), Data())
    with pytest.raises(UserError, match="no column target; its columns are picture, label"):
        open_source(str(path), Data(image="picture", label="target"))


def test_columns_of_wrong_types(tmp_path):
    with pytest.raises(UserError, match="column image is of type string, not encoded bytes"):
        open_source(str(parquet(tmp_path / "a.parquet", ["x.jpg"], image_type=pa.string())), Data())
    with pytest.raises(UserError, match="column label is of type double, not a class"):
        open_source(str(parquet(tmp_path / "b.parquet", GREY[:2], pa.array([0.5, 1.5]))), Data())


def test_nothing_there(tmp_path):
    for pattern in (tmp_path / "no.parquet", tmp_path / "*.parquet", f"file://{tmp_path}/none", f"file://{tmp_path}/*"):
        with pytest.raises(UserError, match="no such file or folder"):
            open_source(str(pattern), Data())
    with pytest.raises(UserError, match=r"no data: give --data\.train"):
        open_source("", Data())
    with pytest.raises(UserError, match="cannot be opened"):
        open_source("nowhere://bucket/a.parquet", Data())


def test_empty_and_damaged_parquet(tmp_path):
    with pytest.raises(UserError, match="hold no rows"):
        open_source(str(parquet(tmp_path / "a.parquet", [], [])), Data())
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"b\.parquet is not a Parquet file, or is damaged"):
        open_source(str(tmp_path / "b.parquet"), Data())


def test_a_folder_of_several_splits_is_refused(tmp_path):
    for split in ("train", "test"):
        parquet(tmp_path / f"{split}-00000.parquet", GREY)
    with pytest.raises(UserError, match=r"holds several splits \(test, train\): give a glob"):
        open_source(str(tmp_path), Data())


def test_a_file_that_changed_or_went(tmp_path):
    path = parquet(tmp_path / "a.parquet", GREY)
    source = open_source(str(path), Data())
    parquet(path, GREY[:3])
    with pytest.raises(UserError, match="no longer what it was"):
        load(source, source.groups[0], np.arange(4), 8)
    path.unlink()
    with pytest.raises(UserError, match=r"a\.parquet cannot be read"):
        load(source, source.groups[0], np.arange(4), 8)


# ---------------------------------------------------------------------------------------------- broken


def test_one_truncated_jpeg_among_good_ones(tmp_path):
    images = [encoded(photo(seed=i), "JPEG") for i in range(10)]
    images[6] = images[6][: len(images[6]) // 2]
    source = open_source(str(parquet(tmp_path / "a.parquet", images, list(range(10)))), Data())
    image, index, label, bad = everything(source)
    assert len(image) == 9 and index.tolist() == label.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert [(b.index, Path(b.where).name) for b in bad] == [(6, "a.parquet:6")] and "runcated" in bad[0].reason


def test_too_many_broken_rows_stop_and_name_the_first():
    bad = [Bad(7, "b.parquet:7", "empty"), Bad(3, "a.parquet:3", "truncated")]
    check_bad(bad, 200, 0.01)
    check_bad([], 0, 0.0)
    with pytest.raises(UserError, match=r"2 of 199 rows are broken.*--data\.max-bad 0\.01.*a\.parquet:3: truncated"):
        check_bad(bad, 199, 0.01)


@given(st.integers(1, 500), st.integers(1, 600))
@settings(max_examples=50, deadline=None)
def test_selected_is_evenly_spaced(rows, limit):
    source = Source("parquet", "image", "", "", "image", "label", (), rows, False, None, None)
    picked = selected(source, limit)
    assert picked.dtype == np.int64 and len(picked) == min(limit, rows) and picked[0] == 0 and picked[-1] < rows
    steps = np.diff(picked)
    assert not len(steps) or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    assert np.array_equal(selected(source, None), np.arange(rows))


def test_selected_keeps_the_classes_of_sorted_data():
    source = Source("parquet", "image", "", "", "image", "label", (), 1000, False, None, None)
    assert np.bincount(selected(source, 100) // 100).tolist() == [10] * 10


@pytest.mark.parametrize("field", [{"size": 0}, {"limit": 0}, {"max_bad": 1.5}, {"std": (0.0, 1.0, 1.0)}])
def test_data_out_of_range(field):
    with pytest.raises(UserError, match="--data"):
        Data(**field)


# ---------------------------------------------------------------------------------------------- folders


def save(path, value, form="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(np.full((9, 9, 3), value, np.uint8), form))


def test_folder_of_classes(tmp_path):
    save(tmp_path / "dog" / "b.PNG", 30)
    save(tmp_path / "dog" / "a.bmp", 20)
    save(tmp_path / "cat" / "z.webp", 10, "WEBP")
    save(tmp_path / "eel" / "images" / "y.png", 40)
    save(tmp_path / "eel" / ".hidden.png", 0)
    save(tmp_path / ".thumbnails" / "x.png", 0)
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path), Data())
    assert source.class_names == ("cat", "dog", "eel") and source.rows == 4 and source.labelled
    image, _, label, bad = everything(source)
    assert label.tolist() == [0, 1, 1, 2] and not bad
    assert np.abs(image[:, 0, 0, 0].astype(int) - [10, 20, 30, 40]).max() <= 1


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_flat_folder_in_runs(tmp_path, monkeypatch, prefix):
    monkeypatch.setattr(sources, "PER_GROUP", 3)
    for i in range(7):
        save(tmp_path / f"{i}.png", i)
    source = open_source(f"{prefix}{tmp_path}", Data())
    assert [(g.part, g.first, g.rows) for g in source.groups] == [(0, 0, 3), (3, 3, 3), (6, 6, 1)]
    image, index, label, _ = everything(source)
    assert image[:, 0, 0, 0].tolist() == index.tolist() == list(range(7)) and not source.labelled
    assert label.tolist() == [-1] * 7
    assert load(source, source.groups[1], np.array([2]), 8).index.tolist() == [5]


def test_links_to_class_folders_are_followed(tmp_path):
    save(tmp_path / "full" / "cat" / "a.png", 1)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "cat").symlink_to(tmp_path / "full" / "cat")
    assert open_source(str(tmp_path / "part"), Data()).rows == 1


def test_a_text_file_renamed_is_named(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.jpg", i, "JPEG")
    (tmp_path / "1.jpg").write_text("Dear diary, today I renamed a file")
    _, index, _, bad = everything(open_source(str(tmp_path), Data()))
    assert index.tolist() == [0, 2] and bad[0].where == str(tmp_path / "1.jpg")
    assert "not an image" in bad[0].reason and "Dear diary" in bad[0].reason


def test_folders_without_images(tmp_path):
    with pytest.raises(UserError, match=r"no image files under .*: it is empty"):
        open_source(str(tmp_path), Data())
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"no image files under .*: known are bmp, .*\.parquet and \.tar"):
        open_source(str(tmp_path), Data())
    with pytest.raises(UserError, match=r"neither \.parquet nor \.tar"):
        open_source(str(tmp_path / "*.txt"), Data())


def test_classes_of_training_and_test_data_agree(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "val/dog", "val/cat"):
        save(tmp_path / name / "a.png", 0)
    train, test, val = (open_source(str(tmp_path / name), Data()) for name in ("train", "test", "val"))
    check_classes(train, val)
    with pytest.raises(UserError, match=r"different classes \(dog\)"):
        check_classes(train, test)


# ------------------------------------------------------------------------------------------------- tars


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_webdataset(tmp_path, monkeypatch, prefix):
    monkeypatch.setattr(sources, "PER_GROUP", 2)
    long = "deep/" + "n" * 120  # beyond the plain header's 100 bytes
    samples = [f"{long}{i}" for i in range(4)]
    members = [m for i, key in enumerate(samples) for m in ((f"{key}.cls", b"%d\n" % i), (f"{key}.PNG", GREY[i]))]
    tar(tmp_path / "b-000.tar", [("readme.txt", b"skip me"), *members])
    tar(tmp_path / "b-001.tar", [("x.png", GREY[4]), ("x.json", b"{}"), ("y.mask.png", GREY[9]), ("y.png", GREY[5])])
    source = open_source(f"{prefix}{tmp_path}/*.tar", Data())
    assert [(g.first, g.rows) for g in source.groups] == [(0, 2), (2, 2), (4, 2)] and source.classes == 4
    image, index, label, bad = everything(source)
    assert image[:, 0, 0, 0].tolist() == index.tolist() == list(range(6)) and not bad
    assert label.tolist() == [0, 1, 2, 3, -1, -1]
    got = load(source, source.groups[1], np.array([1]), 8)
    assert (got.index.tolist(), got.label.tolist(), got.image[0, 0, 0, 0]) == ([3], [3], 3)


def test_unlabelled_tar_and_broken_member(tmp_path):
    path = tar(tmp_path / "a.tar", [("0.jpg", b"text"), ("1.jpg", encoded(photo(), "JPEG"))])
    source = open_source(str(path), Data())
    _, index, label, bad = everything(source)
    assert not source.labelled and index.tolist() == [1] and label.tolist() == [-1]
    assert bad[0].where == f"{path}:0.jpg"


def test_tars_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=r"no samples in .*KEY\.EXT"):
        open_source(str(tar(tmp_path / "a.tar", [("readme.txt", b"")])), Data())
    with pytest.raises(UserError, match=r"0\.cls in a tar holds b'cat': \.cls is one integer"):
        open_source(str(tar(tmp_path / "b.tar", [("0.cls", b"cat"), ("0.png", GREY[0])])), Data())
    whole = tar(tmp_path / "c.tar", [("0.png", encoded(photo(400, 400)))]).read_bytes()
    for name, content in (("d.tar", whole[:2000]), ("e.tar", b"no tar at all" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is not an uncompressed tar, or is cut off"):
            open_source(str(tmp_path / name), Data())


# --------------------------------------------------------------------------------------------- real data


@pytest.mark.skipif(not DATA.is_dir(), reason="RAYSSL_DATA names no folder")
def test_cifar10():
    source = open_source(str(DATA / "cifar10" / "train-*.parquet"), Data())
    assert source.rows == 50_000 and len(source.groups) == 50 and source.classes == 10
    first = load(source, source.groups[0], np.arange(3), 32)
    assert first.label.tolist() == [6, 9, 9] and first.image.shape == (3, 3, 32, 32)  # frog, truck, truck
    assert first.image[0, :, 0, 0].tolist() == [59, 62, 63]  # the first pixel of data_batch_1


@pytest.mark.skipif(not DATA.is_dir(), reason="RAYSSL_DATA names no folder")
def test_imagenette_with_its_grey_images():
    source = open_source(str(DATA / "imagenette" / "train-*.parquet"), Data())
    assert source.rows == 1500 and source.class_names is not None and source.class_names[0] == "tench"
    rows = np.arange(source.groups[0].rows)[:150]
    modes = [Image.open(io.BytesIO(i or b"")).mode for i in source.read(source.groups[0], rows).files]
    got = load(source, source.groups[0], rows, 96)
    assert len(got.image) == 150 and not got.bad and "L" in modes
    grey = got.image[modes.index("L")]
    assert np.array_equal(grey[0], grey[1]) and np.array_equal(grey[0], grey[2])
