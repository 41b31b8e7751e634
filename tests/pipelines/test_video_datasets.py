"""Videos and takes as Parquet; what is published is stood in for by small folders in the published layout."""

import io
import json
import os
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines import datasets, video_datasets
from pipelines.bodies import JOINTS
from pipelines.cameras import read_calibration
from pipelines.datasets import DatasetOptions, write
from pipelines.errors import UserError
from pipelines.motions import MOTIONS
from pipelines.sources import Data, open_source, read_take
from pipelines.video_datasets import count_frames, encode


def frames(count, value=0, size=16):
    ramp = np.arange(size * size * 3).reshape(1, size, size, 3) // 4
    return ((ramp + 5 * np.arange(count)[:, None, None, None] + value) % 256).astype(np.uint8)


def decoded(video):
    with av.open(io.BytesIO(video), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def video(path, count=3, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(frames(count, value)))
    return path


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def made(name, tmp_path, **options):
    return write(name, DatasetOptions(to=str(tmp_path / "to"), source=str(tmp_path), **options))


# --------------------------------------------------------------------------------------------- encoding


def test_encoding_is_lossless_and_keyed():
    pictures = np.random.default_rng(0).integers(0, 256, (30, 18, 22, 3), dtype=np.uint8)
    encoded = encode(pictures)
    assert np.array_equal(decoded(encoded), pictures) and encoded == encode(pictures)
    assert count_frames(encoded) == 30
    with av.open(io.BytesIO(encoded), "r") as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert [i for i, key in enumerate(keys) if key] == [0, 12, 24]
    lossy = encode(frames(5, size=17), lossless=False)
    assert np.abs(decoded(lossy).astype(int) - frames(5, size=17)).mean() < 12


@pytest.mark.parametrize("content", [b"", b"no video", encode(frames(3))[:40]])
def test_what_is_no_video_is_not_counted(content):
    with pytest.raises(ValueError):
        count_frames(content)


# ---------------------------------------------------------------------------------------------- motions


def test_motions(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "VIDEOS_PER_GROUP", 10)
    train, test = write("motions", DatasetOptions(str(tmp_path), videos=24, size=16))
    with pq.ParquetFile(train) as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [10, 10, 4]
        assert json.loads(file.schema_arrow.metadata[b"class_names"]) == list(MOTIONS)
        rows = file.read().to_pylist()
    assert list(rows[0]) == ["video", "label", "num_frames"]
    assert [row["label"] for row in rows] == [i % 8 for i in range(24)] and pq.read_metadata(test).num_rows == 8
    assert decoded(rows[5]["video"]).shape == (rows[5]["num_frames"], 16, 16, 3)
    (more,) = write("motions", DatasetOptions(str(tmp_path / "more"), videos=26, size=16, split="train"))
    again = pq.read_table(more).to_pylist()
    assert again[:24] == rows and rows[0] != pq.read_table(test).to_pylist()[0]
    with pytest.raises(UserError, match="motions needs --videos of at least 8 and --size of at least 16"):
        write("motions", DatasetOptions(str(tmp_path / "b"), videos=5))


def test_groups_and_files_by_bytes(tmp_path, monkeypatch):
    """Rows of 3, 3, 5 and 1 bytes in groups of at most 6: [3, 3], [5, 1]; full files hold one group."""
    monkeypatch.setattr(datasets, "BYTES_PER_GROUP", 6)
    rows = [(b"x" * n, n) for n in (3, 3, 5, 1)]
    paths = datasets._write(datasets.Split("train", 4, rows, datasets.LABEL, None, "video"), tmp_path)
    assert len(paths) == 1 and pq.read_metadata(paths[0]).num_row_groups == 2
    assert pq.read_table(paths[0])["label"].to_pylist() == [3, 3, 5, 1]
    monkeypatch.setattr(datasets, "BYTES_PER_FILE", 1)
    paths = datasets._write(datasets.Split("test", 4, rows, datasets.LABEL, None, "video"), tmp_path)
    assert [p.name for p in paths] == ["test-00000.parquet", "test-00001.parquet"]
    assert [pq.read_metadata(path).num_rows for path in paths] == [2, 2]


# -------------------------------------------------------------------------------------- published splits


@pytest.fixture
def ucf101(tmp_path):
    names = [f"{c}/v_{c}_g{g:02}_c01.avi" for c in ("Biking", "Archery") for g in range(1, 7)]
    for i, name in enumerate(names):
        video(tmp_path / "UCF-101" / name, value=i)
    lists = tmp_path / "ucfTrainTestlist"
    text(lists / "classInd.txt", "1 Archery\r\n2 Biking\r\n")
    text(lists / "trainlist01.txt", "".join(f"{n} {1 if 'Archery' in n else 2}\n" for n in names if "g01" not in n))
    text(lists / "testlist01.txt", "".join(f"{n}\n" for n in names if "g01" in n))
    text(lists / "trainlist02.txt", f"{names[0]} 2\n")
    return tmp_path


def test_ucf101(ucf101):
    train, test = (pq.read_table(path) for path in made("ucf101", ucf101))
    rows = train.to_pylist()
    assert json.loads(train.schema.metadata[b"class_names"]) == ["Archery", "Biking"]
    assert Counter(row["label"] for row in rows) == {0: 5, 1: 5}
    assert [row["label"] for row in rows] != sorted(row["label"] for row in rows)  # shuffled
    for row in rows:
        folder = ("Archery", "Biking")[row["label"]]
        assert row["video"] == (ucf101 / "UCF-101" / folder / row["name"]).read_bytes()
    assert sorted(test["name"].to_pylist()) == ["v_Archery_g01_c01.avi", "v_Biking_g01_c01.avi"]
    (second,) = write("ucf101", DatasetOptions(str(ucf101 / "b"), str(ucf101), split="train", fold=2))
    assert pq.read_table(second)["name"].to_pylist() == ["v_Biking_g01_c01.avi"]


def test_ucf101_incomplete(ucf101, capsys):
    with pytest.raises(UserError, match=r"no split file .*trainlist03\.txt"):
        made("ucf101", ucf101, fold=3)
    with pytest.raises(UserError, match="--fold is 1, 2 or 3, got 4"):
        made("ucf101", ucf101, fold=4)
    (ucf101 / "UCF-101" / "Biking" / "v_Biking_g03_c01.avi").unlink()
    with pytest.raises(UserError, match=r"1 of the split's 10 videos are missing .*: Biking/v_Biking_g03_c01\.avi"):
        made("ucf101", ucf101)
    assert not list((ucf101 / "to").glob("train*"))
    train, _ = made("ucf101", ucf101, allow_missing=True)
    assert pq.read_metadata(train).num_rows == 9 and "left out: 1 of 10 videos" in capsys.readouterr().err
    with pytest.raises(UserError, match="--source names the folder"):
        write("ucf101", DatasetOptions(str(ucf101 / "c")))


def test_hmdb51(tmp_path):
    for name in ("climb", "shoot bow"):
        for i in range(3):
            video(tmp_path / "hmdb51_org" / name / f"a #{i}.avi", value=i)
        text(
            tmp_path / "testTrainMulti_7030_splits" / f"{name}_test_split2.txt",
            "a #0.avi 1 \na #1.avi 2 \na #2.avi 0 \n",
        )
    train, test = (pq.read_table(path) for path in made("hmdb51", tmp_path, fold=2))
    assert train["name"].to_pylist() == ["a #0.avi"] * 2 and test["name"].to_pylist() == ["a #1.avi"] * 2
    assert sorted(train["label"].to_pylist()) == [0, 1]
    assert json.loads(train.schema.metadata[b"class_names"]) == ["climb", "shoot bow"]
    with pytest.raises(UserError, match=r"no split files .*CLASS_test_split1\.txt"):
        write("hmdb51", DatasetOptions(str(tmp_path / "b"), str(tmp_path)))


def test_kinetics(tmp_path):
    header = "label,youtube_id,time_start,time_end,split\n"
    text(tmp_path / "train.csv", f"{header}zumba,abC,3,13,train\nabseiling,Abc,0,10,train\n")
    text(tmp_path / "val.csv", f"{header}zumba,x-_y,100,110,val\nzumba,gone,0,10,val\n")
    video(tmp_path / "train" / "zumba" / "abC_000003_000013.mp4", value=1)
    video(tmp_path / "train" / "Abc.mp4", value=2)
    video(tmp_path / "x-_y_000100_000110.mp4", value=3)
    with pytest.raises(UserError, match=r"1 of the split's 2 videos are missing under .*: gone_000000_000010"):
        made("kinetics", tmp_path, split="val")
    train, val = (pq.read_table(path) for path in made("kinetics", tmp_path, allow_missing=True))
    assert json.loads(val.schema.metadata[b"class_names"]) == ["abseiling", "zumba"]
    labels = dict(zip(train["name"].to_pylist(), train["label"].to_pylist(), strict=True))
    assert labels == {"abC_000003_000013.mp4": 1, "Abc.mp4": 0} and val["label"].to_pylist() == [1]
    text(tmp_path / "val.csv", "a,b\n1,2\n")
    with pytest.raises(UserError, match=r"val\.csv: its first line names the columns"):
        write("kinetics", DatasetOptions(str(tmp_path / "b"), str(tmp_path), split="val"))


# ------------------------------------------------------------------------------------------------- takes


def test_takes_of_a_folder(tmp_path, capsys):
    for take, counts in (("b", (4, 4)), ("a", (5, 6)), ("c", (20, 4))):
        for i, count in enumerate(counts):
            video(tmp_path / take / f"cam{i}.mp4", count, i)
    video(tmp_path / "lone" / "cam0.mp4")
    with pytest.raises(UserError, match=r"1 of 4 takes lack a camera: lone: no camera cam1\n"):
        made("takes", tmp_path)
    (tmp_path / "lone" / "cam0.mp4").unlink()
    with pytest.raises(UserError, match=r"take c: cam1 has 4 frames, cam0 has 20\n.*--allow-missing"):
        made("takes", tmp_path)
    (path,) = made("takes", tmp_path, allow_missing=True)
    assert "left out: 1 of 3 takes, the first c: cam1 has 4 frames" in capsys.readouterr().err
    with pq.ParquetFile(path) as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2]
        rows = file.read().to_pylist()
    assert list(rows[0]) == ["take", "camera", "video", "num_frames"]
    assert [(row["take"], row["camera"], row["num_frames"]) for row in rows] == [
        *(("a", "cam0", 5), ("a", "cam1", 5), ("b", "cam0", 4), ("b", "cam1", 4))
    ]
    assert rows[1]["video"] == (tmp_path / "a" / "cam1.mp4").read_bytes()
    (tmp_path / "b" / "cam1.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"take b: .*cam1\.mp4 is no video"):
        write("takes", DatasetOptions(str(tmp_path / "x"), str(tmp_path)))
    with pytest.raises(UserError, match="no videos under"):
        write("takes", DatasetOptions(str(tmp_path / "x"), str(tmp_path / "a")))


def test_takes_of_parquet_are_regrouped(tmp_path):
    """Rows of two takes in turn, in row groups that cut them."""
    rows = [
        {"video": encode(frames(3, 10 * take + lens)), "camera": f"c{lens}", "scene": f"s{take}", "label": take}
        for lens in range(3)
        for take in range(2)
    ]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"class_names": json.dumps(["one", "two"])})
    pq.write_table(table, tmp_path / "videos.parquet", row_group_size=4)
    source = str(tmp_path / "videos.parquet")
    (path,) = write("takes", DatasetOptions(str(tmp_path / "to"), source))
    with pq.ParquetFile(path) as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 3]
        assert json.loads(file.schema_arrow.metadata[b"class_names"]) == ["one", "two"]
        written = file.read().to_pylist()
    assert [(row["take"], row["camera"], row["label"]) for row in written] == [
        (f"s{take}", f"c{lens}", take) for take in range(2) for lens in range(3)
    ]
    assert written[4]["video"] == rows[3]["video"]
    with pytest.raises(UserError, match=r"has no column place; its columns are .*: --take names that of takes"):
        write("takes", DatasetOptions(str(tmp_path / "b"), source, take="place"))
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="neither a folder nor a Parquet file"):
        write("takes", DatasetOptions(str(tmp_path / "b"), str(tmp_path / "bad.parquet")))
    with pytest.raises(UserError, match="no file"):
        write("takes", DatasetOptions(str(tmp_path / "b"), str(tmp_path / "none.parquet")))


NAMED = {
    "joint_names": json.dumps(["root", "head"]),
    "joint_parents": "[-1, 0]",
    "joint_mirror": "[0, 1]",
    "keypoint_names": json.dumps(["nose", None]),
}


def listed(path, counts=(3, 4), metadata=NAMED, **changed):
    """A take of a camera for each number of frames, with a box, 2 keypoints and 2 joints in each of them."""
    rows = {
        "take": ["t"] * len(counts),
        "camera": [f"c{i}" for i in range(len(counts))],
        "video": [encode(frames(n, i)) for i, n in enumerate(counts)],
        "num_frames": [*counts],
        "box": [np.arange(3.0 * n).tolist() for n in counts],
        "keypoints": [[4.0, 2, 1, 12, 6, 0.5] * n for n in counts],
        "pose": [np.arange(6.0 * n).tolist() for n in counts],
    }
    rows = {name: column for name, column in {**rows, **changed}.items() if column is not None}
    pq.write_table(pa.table(rows).replace_schema_metadata(metadata), path)
    return str(path)


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_lists_of_takes_are_carried_over(tmp_path, names, counted):
    """Of 3 and 4 frames the first 3 count, of the lists too; what says K is the metadata, num_frames or the video."""
    metadata = {name: text for name, text in NAMED.items() if names or name != "keypoint_names"}
    more = {} if counted else {"num_frames": None}
    source = listed(tmp_path / "some.parquet", metadata=metadata, **more)
    (path,) = write("takes", DatasetOptions(str(tmp_path / "to"), source))
    written = pq.read_table(path)
    assert {k.decode(): v.decode() for k, v in written.schema.metadata.items()} == metadata
    row = written.to_pylist()[1]
    assert row["num_frames"] == 3 and row["box"] == list(range(9)) and row["pose"] == list(range(18))
    assert row["keypoints"] == [4.0, 2, 1, 12, 6, 0.5] * 3
    take = read_take(open_source(str(path), Data(media="take", pose="pose")), 0, "pose")
    assert np.asarray(take.pose[1]).shape == (3, 2, 3)
    np.testing.assert_array_equal(take.box[1], [[0, 1, 2], [3, 4, 5], [6, 7, 8]])


def test_joints_of_a_camera_without_boxes_are_relative_to_the_root(tmp_path):
    """Its frames are not cropped about the subject; of the other camera's crop the joints tell where it looks."""
    source = listed(tmp_path / "some.parquet", box=[None, [1.0] * 12], keypoints=None)
    take = read_take(open_source(source, Data(media="take", pose="pose")), 0, "pose")
    np.testing.assert_array_equal(take.pose[0], [[[0, 0, 0], [3, 3, 3]]] * 3)
    np.testing.assert_array_equal(take.pose[1], np.arange(24.0).reshape(4, 2, 3))


def test_lists_that_some_rows_lack(tmp_path):
    source = listed(tmp_path / "some.parquet", box=[None, [1.0] * 12], pose=None, keypoints=None)
    (path,) = write("takes", DatasetOptions(str(tmp_path / "to"), source))
    written = pq.read_table(path)
    assert written["box"].to_pylist() == [None, [1.0] * 9] and "pose" not in written.column_names


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"box": [[1.0] * 7, None]}, r"take t: .*camera c0: box holds 7 values, which are not 3 a frame"),
        ({"keypoints": [[1.0] * 7, None]}, r"camera c0: keypoints holds 7 values, which are not 6 a frame"),
        ({"box": [[1.0] * 90, None]}, r"take t: c0 has 3 frames, box of c0 has 30"),
        ({"pose": ["here", "there"]}, "column pose is of type string, not a list of floats"),
        ({"metadata": {}}, "has a column pose, but no joint_names"),
        ({"metadata": {}, "pose": None, "keypoints": [None, [1.0] * 10]}, "not 3 for each keypoint of 4 frames"),
    ],
)
def test_bad_lists_of_takes(tmp_path, changed, says):
    with pytest.raises(UserError, match=says):
        write("takes", DatasetOptions(str(tmp_path / "to"), listed(tmp_path / "some.parquet", **changed)))


def test_files_of_takes_that_name_other_joints(tmp_path):
    listed(tmp_path / "a.parquet")
    listed(tmp_path / "b.parquet", metadata={**NAMED, "joint_mirror": "[1, 0]"})
    with pytest.raises(UserError, match=r"b\.parquet: joint_mirror of its metadata is not that of .*a\.parquet"):
        write("takes", DatasetOptions(str(tmp_path / "to"), str(tmp_path)))


def test_string_labels_of_takes(tmp_path):
    """Their sorted values are the classes, in what is read as in what `data takes` writes; a take may have none."""
    rows = [
        {"video": encode(frames(3, i)), "camera": f"c{i}", "take": f"t{take}", "label": label}
        for take, label in enumerate(("walk", "run", "walk"))
        for i in range(2)
    ]
    source = tmp_path / "some.parquet"
    pq.write_table(pa.Table.from_pylist(rows), source, row_group_size=2)
    (path,) = write("takes", DatasetOptions(str(tmp_path / "to"), str(source)))
    for file in (source, path):
        opened = open_source(str(file), Data(media="take"))
        assert (opened.labelled, opened.classes, opened.class_names) == (True, 2, ("run", "walk"))
        assert [take.label for take in opened.takes] == [1, 0, 1]
    assert pq.read_schema(path).field("label").type == pa.int32()
    coded = pa.array(["walk", "walk", None, None, "run", "run"]).dictionary_encode()
    pq.write_table(pa.Table.from_pylist(rows).set_column(3, "label", coded), source, row_group_size=2)
    assert [take.label for take in open_source(str(source), Data(media="take")).takes] == [1, -1, 0]


def test_numbered_labels_of_takes_have_the_names_of_the_file(tmp_path):
    source = listed(tmp_path / "some.parquet", label=[1, 1], metadata={"class_names": '["a", "b", "c"]'})
    opened = open_source(source, Data(media="take"))
    assert (opened.classes, opened.class_names, opened.takes[0].label) == (3, ("a", "b", "c"), 1)
    none = open_source(listed(tmp_path / "none.parquet", metadata={"class_names": '["a"]'}), Data(media="take"))
    assert (none.labelled, none.classes, none.class_names) == (False, None, None)


@pytest.mark.parametrize("names", [True, False])
def test_boxes_are_made_of_keypoints_where_there_are_none(tmp_path, names):
    """(4, 2) and (12, 6): centre (8, 4), side 1.25 * 8. Camera c1 has a box, c2 no keypoint that was found, c3 none."""
    point = [4.0, 2, 1, 12, 6, 0.5]
    source = listed(
        tmp_path / "some.parquet",
        (3, 3, 3, 3),
        NAMED if names else {},
        keypoints=[[0.0] * 6 + point * 2, point * 3, [0.0] * 18, None],
        box=[None, [8.0] * 9, None, None],
        pose=None,
    )
    box = read_take(open_source(source, Data(media="take")), 0).box
    np.testing.assert_allclose(np.array(box[:2]), [[(8, 4, 10)] * 3, [(8, 8, 8)] * 3])
    assert box[2:] == [None, None]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"keypoints": [[1.0] * 7, None]}, "take t, camera c0: keypoints holds 7 values, which are not 6 a frame"),
        (
            {"metadata": {}},
            r"take t, camera c1: keypoints .* 10 values, .* of 4 frames: mend the row, or store",
        ),
        (
            {"metadata": {}, "num_frames": None},
            "c0: how many keypoints a frame has is not known: store num_frames",
        ),
        ({"box": [None, [1.0] * 4]}, "take t, camera c1: box holds 4 values, which are not 3 a frame"),
    ],
)
def test_bad_keypoints_are_told(tmp_path, changed, says):
    defaults = {"box": None, "pose": None, "keypoints": [[1.0] * 18, [1.0] * 10 if "metadata" in changed else None]}
    source = listed(tmp_path / "some.parquet", **{**defaults, **changed})
    with pytest.raises(ValueError, match=says):
        read_take(open_source(source, Data(media="take")), 0)


def test_columns_of_takes_that_are_no_lists(tmp_path):
    source = listed(tmp_path / "some.parquet", keypoints=["here", "there"])
    with pytest.raises(UserError, match="column keypoints is of type string, not a list of floats"):
        open_source(source, Data(media="take"))


@pytest.mark.skipif("RAYSSL_DATA" not in os.environ, reason="RAYSSL_DATA names no folder of real data")
def test_boxes_of_real_keypoints(tmp_path):
    """Keypoints are in pixels of the calibration's frames, 1088 wide; two of the four videos are 1080 wide."""
    folder = Path(os.environ["RAYSSL_DATA"]) / "multiview"
    flat = pq.read_table(folder / "pose2d_single_person.parquet")
    videos = pq.read_table(folder / "videos.parquet").filter(pc.field("scene") == "single_person")
    lenses, points = read_calibration(folder / "calibration.toml"), []
    for row in videos.to_pylist():
        mine = flat.filter(pc.field("camera") == row["camera"]).sort_by("frame")
        found = np.stack(mine["keypoints2d"].to_numpy()).reshape(-1, 25, 3)
        width, height = lenses[row["camera"].replace("cam", "cam_")].size
        points.append(found * [row["width"] / width, row["height"] / height, 1])
    column = pa.array([p.ravel().astype(np.float32) for p in points], pa.list_(pa.float32()))
    pq.write_table(videos.append_column("keypoints", column), tmp_path / "source.parquet")
    (path,) = write("takes", DatasetOptions(str(tmp_path / "to"), str(tmp_path / "source.parquet")))
    take = read_take(open_source(str(path), Data(media="take")), 0)
    for lens, (keypoints, stored) in enumerate(zip(points, take.box, strict=True)):
        box = np.asarray(stored)
        assert box.shape == (100, 3) and np.isfinite(box).all() and (box[:, 2] > 100).all()
        seen = keypoints[..., 2] > 0
        apart = np.abs(keypoints[..., :2] - box[:, None, :2]).max(-1)
        assert (apart[seen] <= np.broadcast_to(box[:, None, 2] / 2, seen.shape)[seen]).all(), lens
    assert min((p[..., 2] > 0).any(1).sum() for p in points) == 99  # a frame of some camera shows nobody


# --------------------------------------------------------------------------------------------- Human3.6M

CAMERA = "size = [64, 64]\nmatrix = [[50, 0, 32], [0, 50, 32], [0, 0, 1]]\nrotation = [0, 0, 0]\n"


@pytest.fixture
def h36m(tmp_path):
    """Joints move by 30 mm a frame from frame 2 on; the second camera stands 1 m aside."""
    cameras = []
    for subject in ("S1", "S5", "S6", "S7", "S8", "S9", "S11"):
        for i, lens in enumerate(("54138969", "55011271")):
            video(tmp_path / subject / "Videos" / f"Walking 1.{lens}.mp4", 6, i)
            cameras.append(f"[{subject}.{lens}]\n{CAMERA}translation = [{1000.0 * i}, 0, 3000]\n")
        video(tmp_path / subject / "Videos" / "_ALL.54138969.mp4")
        poses = np.random.default_rng(0).uniform(-500, 500, (1, 32, 3)).repeat(6, 0)
        poses[3:, :, 0] += 30 * np.arange(1, 4)[:, None]
        (tmp_path / subject / "Poses").mkdir()
        np.save(tmp_path / subject / "Poses" / "Walking 1.npy", poses)
    text(tmp_path / "cameras.toml", "\n".join(cameras))
    return tmp_path


def test_h36m(h36m):
    train, test = (pq.read_table(path) for path in made("h36m", h36m))
    assert json.loads(train.schema.metadata[b"joint_names"]) == list(JOINTS)
    assert json.loads(test.schema.metadata[b"class_names"]) == ["S1", "S5", "S6", "S7", "S8", "S9", "S11"]
    rows = train.to_pylist()
    assert [row["take"] for row in rows[::2]] == [f"{s}/Walking 1" for s in ("S1", "S5", "S6", "S7", "S8")]
    assert sorted(set(test["label"].to_pylist())) == [5, 6] and rows[0]["num_frames"] == 6
    assert rows[1]["video"] == (h36m / "S1" / "Videos" / "Walking 1.55011271.mp4").read_bytes()
    world = np.load(h36m / "S1" / "Poses" / "Walking 1.npy")
    pose = np.array(rows[1]["pose"]).reshape(6, 17, 3)
    np.testing.assert_allclose(pose[:, 4], world[:, 6] + [1000, 0, 3000], atol=0.01)  # the left hip is number 6 of 32
    u = 32 + 50 * pose[0, :, 0] / pose[0, :, 2]
    assert rows[1]["box"][0] == pytest.approx((u.min() + u.max()) / 2, abs=0.01)


def test_h36m_without_still_frames(h36m):
    """Of frames at 0, 0, 0, 30, 60, 90 mm those at least 50 from the last kept: 0, 4 (60); the test split keeps all."""
    train, test = (pq.read_table(path) for path in made("h36m", h36m, least_motion=50.0))
    row = train.to_pylist()[0]
    assert row["num_frames"] == count_frames(row["video"]) == 2 and len(row["pose"]) == 2 * 17 * 3
    original = decoded((h36m / "S1" / "Videos" / "Walking 1.54138969.mp4").read_bytes())
    assert np.abs(decoded(row["video"]).astype(int) - original[[0, 4]]).mean() < 12
    assert test["num_frames"].to_pylist() == [6] * 4
    assert video_datasets.moved(np.zeros((4, 17, 3)), 0.0).tolist() == [0, 1, 2, 3]


def test_h36m_incomplete(h36m, capsys):
    np.save(h36m / "S6" / "Poses" / "Walking 1.npy", np.zeros((6, 16, 3)))
    with pytest.raises(UserError, match=r"S6/Walking 1: .*holds float64 \(6, 16, 3\): poses are floats"):
        made("h36m", h36m)
    (h36m / "S7" / "Poses" / "Walking 1.npy").unlink()
    (h36m / "S5" / "Videos" / "Eating.54138969.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 2 takes lack a camera: S5/Eating: no camera 55011271"):
        made("h36m", h36m)
    train, _ = made("h36m", h36m, allow_missing=True)
    assert sorted(set(pq.read_table(train)["take"].to_pylist())) == [f"S{i}/Walking 1" for i in (1, 5, 8)]
    assert "S7/Walking 1: no poses" in capsys.readouterr().err.replace("\n", " ")
    text(h36m / "cameras.toml", f"[S1.1]\n{CAMERA}translation = [0, 0, 0]\n")
    with pytest.raises(UserError, match=r"has no table \[S1\.54138969\]"):
        write("h36m", DatasetOptions(str(h36m / "b"), str(h36m)))
