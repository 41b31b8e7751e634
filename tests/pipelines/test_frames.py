"""The frame cache: the same rows, videos of key frames alone, boxes in their pixels."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import moving
from videos import encoded_video

from pipelines.__main__ import main
from pipelines.errors import UserError
from pipelines.frames import FrameOptions, scaled_boxes, write_frames
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


def test_the_command_line_of_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "frames", "--source", str(tmp_path / "nothing"), "--to", str(tmp_path / "to")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
