"""The frame cache: the same rows, videos of key frames alone, boxes in their pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import moving
from videos import encoded_video

from pipelines.__main__ import main
from pipelines.errors import UserError
from pipelines.frames import FrameOptions, scaled_boxes, upright, write_frames
from pipelines.video import decode, table


def test_boxes_follow_the_frames() -> None:
    """Of 100 x 200 the central square is 50 to 150: x 100 is its middle, and 25 of 100 pixels a quarter of 20."""
    boxes = np.array([[100.0, 50.0, 25.0], [50.0, 0.0, 100.0]])
    assert scaled_boxes(boxes, (100, 200), (20, None)).tolist() == [[10.0, 10.0, 5.0], [0.0, 0.0, 20.0]]
    assert scaled_boxes(boxes, (100, 200), (50, 100)).tolist() == [[50.0, 25.0, 12.5], [25.0, 0.0, 50.0]]


def test_rows_come_back_with_key_frames_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = [encoded_video(moving(12, 1)), b"none", encoded_video(moving(9, 2))]
    rows = {"video": videos, "take": ["a", "a", "b"], "box": [[16.0, 12.0, 8.0] * 12, None, [4.0, 4.0, 8.0] * 9]}
    named = pa.table(rows).replace_schema_metadata({"class_names": json.dumps(["x"])})
    pq.write_table(named, tmp_path / "some.parquet", row_group_size=2)
    options = FrameOptions(str(tmp_path / "some.parquet"), str(tmp_path / "to"), size=8, raw=True, workers=1)
    [path] = write_frames(options)
    assert "some.parquet:0, row 1: " in " ".join(capsys.readouterr().err.split())
    found = pq.read_table(path)
    assert found["take"].to_pylist() == ["a", "a", "b"] and found["num_frames"].to_pylist() == [12, 0, 9]
    assert pq.ParquetFile(path).num_row_groups == 2 and found.schema.metadata[b"class_names"] == b'["x"]'
    assert np.allclose(found["box"][0].as_py()[:3], [4.0, 4.0, 8 / 3]) and found["box"][1].as_py() is None
    assert found["video"][1].as_py() is None
    for row, source in ((0, videos[0]), (2, videos[2])):
        stored = found["video"][row].as_py()
        opened = table(stored)
        wanted = np.arange(len(opened))
        assert opened.key.all() and (opened.height, opened.width) == (8, 8)
        twin = decode(source, table(source), wanted, 8, 8)
        assert np.abs(decode(stored, opened, wanted, 8, 8).astype(int) - twin).mean() < 1.5  # YUV and back
    with pytest.raises(UserError, match="is there already"):
        write_frames(options)


def cached(tmp_path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any) -> pa.Table:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / "some.parquet")
    fields = {"size": 12, "raw": True, "workers": 1, **options}
    [path] = write_frames(FrameOptions(str(tmp_path / "some.parquet"), str(tmp_path / "to"), **fields))
    return pq.read_table(path)


@pytest.mark.parametrize("known", ["num_frames", "keypoint_names", "video"])
def test_keypoints_become_boxes(tmp_path: Path, known: str) -> None:
    """Of 24 x 32 pixels to 12 x 12 the central square is 4 to 28: x of (16, 12, 10) is 12 of 24, the side 5.

    The second row has a box, which stays; the third no keypoint that was found; the fourth no video.
    """
    video, points = encoded_video(moving(3, 1)), [12.0, 8, 1, 20, 16, 0.5, 99, 99, 0] * 3
    columns = {
        "video": [video, video, video, b"none"],
        "keypoints": [points, points, [0.0] * 27, points],
        "box": [None, [16.0, 12.0, 24.0] * 3, None, None],
    }
    named = {"keypoint_names": '["head", null, "foot"]'} if known == "keypoint_names" else None
    found = cached(tmp_path, columns | ({"num_frames": [3, 3, 3, 3]} if known == "num_frames" else {}), named)
    box = found["box"].to_pylist()
    assert np.allclose(box[0], [6, 6, 5] * 3) and np.allclose(box[1], [6, 6, 12] * 3) and box[2:] == [None, None]
    assert "keypoints" not in found.column_names and found["num_frames"].to_pylist() == [3, 3, 3, 0]


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("box", [1.0] * 10, r"some\.parquet:0, row 0: box holds 10 values, which are not 3 a frame"),
        ("keypoints", [1.0] * 10, r"row 0: keypoints holds 10 values, which are not 3 for each keypoint of 3 frames"),
        ("keypoints", [], r"row 0: keypoints holds 0 values"),
    ],
)
def test_lists_that_are_not_whole_frames(tmp_path: Path, name: str, values: list[float], told: str) -> None:
    values_of = pa.array([values], pa.list_(pa.float32()))
    with pytest.raises(UserError, match=told):
        cached(tmp_path, {"video": [encoded_video(moving(3, 1))], name: values_of})


def test_a_column_of_keypoints_that_is_no_list_of_numbers_stays(tmp_path: Path) -> None:
    found = cached(tmp_path, {"video": [encoded_video(moving(3, 1))], "keypoints": ["elsewhere"]})
    assert found["keypoints"].to_pylist() == ["elsewhere"] and "box" not in found.column_names


@pytest.mark.parametrize(("degrees", "shape"), [(0, (48, 32)), (90, (32, 48)), (180, (48, 32)), (270, (32, 48))])
@pytest.mark.parametrize("width", [None, 24])
def test_boxes_of_turned_videos_are_those_of_the_upright_picture(
    tmp_path: Path, degrees: int, shape: tuple[int, int], width: int | None
) -> None:
    """A bright square at (centre x, centre y) of the picture as it is shown lies in its box in the cached frames."""
    height, along = shape
    shown = np.full((2, height, along, 3), 40, np.uint8)
    x, y = along // 2 + 4, height // 2 - 6
    shown[:, y - 4 : y + 4, x - 4 : x + 4] = 230
    stored = np.rot90(shown, -degrees // 90, (1, 2))
    options = {"crf": "5", "threads": "1", "preset": "veryfast"}
    video = encoded_video(stored, "libx264", "mp4", options=options, degrees=degrees)
    assert upright(video, table(video)) == shape and (table(video).height, table(video).width) == (48, 32)
    found = cached(tmp_path, {"video": [video], "box": [[float(x), float(y), 8.0] * 2]}, width=width, size=24)
    frame = decode(found["video"][0].as_py(), table(found["video"][0].as_py()), np.arange(1), 24, 24)[0].mean(0)
    bright = np.argwhere(frame > 135)
    centre_x, centre_y, side = found["box"][0].as_py()[:3]
    down, right = (bright.min(0) + bright.max(0) + 1) / 2
    assert abs(right - centre_x) <= 1 and abs(down - centre_y) <= 1 and abs(len(bright) ** 0.5 - side) <= 1


def test_the_command_line_of_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "frames", "--source", str(tmp_path / "nothing"), "--to", str(tmp_path / "to")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
