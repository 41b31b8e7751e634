"""Videos and takes end to end: their stages, runs that are killed, evaluation, and whatever is wrong with a file."""

import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import assert_equal, moving
from test_pretrain import checkpoints_of, final, killer, run
from videos import encoded_video

from methods import multiview, temporal
from methods.clips import ClipView
from methods.optim import Optimizer
from methods.takes import TakeView
from pipelines.clips import MakeClips, UniformClips
from pipelines.errors import UserError
from pipelines.evaluate import Clips, Options, Ready, defaults, evaluate
from pipelines.feed import Piece, Share, epoch_plan, inspection_of, stage_of
from pipelines.posing import Posing
from pipelines.pretrain import pretrain
from pipelines.recipe import Recipe
from pipelines.sources import Data, open_source
from pipelines.takes import MakeMoments
from pipelines.tasks import Gaps, run_gaps
from pipelines.transfer import Timing
from pipelines.video import Table

VIDEO = Data(media="video", size=12, width=16)
TAKE = Data(media="take", size=16, width=16)
CLIPS: dict[str, Any] = {kind: ClipView(kind, kind, size=8, frames=8) for kind in temporal.KINDS}
ROLES: tuple[Any, ...] = ("anchor", "synchronized", "unsynchronized")
PAIRS: dict[str, Any] = {role: TakeView(role, 12, role) for role in ROLES}
ADAM = Optimizer("adamw", lr=1e-3, scaling="none", weight_decay=1e-2)
JOINTS = ("root", "head", "left", "right")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 videos of 3 classes, of 5 to 39 frames, in row groups of 4; `scene` groups them by six."""
    path = tmp_path_factory.mktemp("clips") / "clips.parquet"
    videos = [encoded_video(moving(5 + 2 * i, i)) for i in range(18)]
    table = pa.table({"video": videos, "label": [i % 3 for i in range(18)], "scene": [f"s{i // 6}" for i in range(18)]})
    pq.write_table(table, path, row_group_size=4)
    return path


def written(path: Path, takes: int = 3, frames: int = 14, cameras: int = 3, **columns: list[Any]) -> Path:
    """Takes of cameras that see a white square walk over a texture of their own; joints are its corners."""
    rows: dict[str, list[Any]] = {name: [] for name in ("take", "camera", "video", "pose", "box")}
    for number in range(takes):
        for camera in range(cameras):
            scene = moving(1, 100 + camera)[0]
            film = np.stack([scene] * frames)
            boxes, joints = [], []
            for t in range(frames):
                x, y = 4 + (2 * t + number) % 24, 12
                film[t, y - 4 : y + 4, x - 4 : x + 4] = 255
                boxes.append((x, y, 14))
                joints.append([(0, 0, 3000), (10 * t, -400, 3000), (-200 - 5 * t, 0, 3000), (200, 50 * number, 3000)])
            rows["take"].append(f"t{number}")
            rows["camera"].append(f"c{camera}")
            rows["video"].append(encoded_video(film, "ffv1", "matroska"))
            rows["pose"].append(np.array(joints, np.float32).ravel().tolist())
            rows["box"].append(np.array(boxes, np.float32).ravel().tolist())
    named = {"joint_names": json.dumps(JOINTS), "joint_parents": "[-1, 0, 0, 0]", "joint_mirror": "[0, 1, 3, 2]"}
    table = pa.table({**rows, **columns}).replace_schema_metadata(named)
    pq.write_table(table, path, row_group_size=cameras)
    return path


@pytest.fixture(scope="session")
def takes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("takes") / "takes.parquet")


def of_clips(path: Path, **fields: Any) -> Recipe:
    return Recipe(
        method=temporal.Config(),
        backbone="c3d:small",
        data=dataclasses.replace(VIDEO, train=str(path), test=str(path)),
        views=dict(CLIPS),
        optimizers={"model": ADAM},
        epochs=3,
        batch_size=6,
    ).with_(**fields)


def of_takes(path: Path, **fields: Any) -> Recipe:
    return Recipe(
        method=multiview.Config(),
        backbone="resnet20",
        data=dataclasses.replace(TAKE, train=str(path), test=str(path)),
        views=dict(PAIRS),
        optimizers={"model": ADAM},
        epochs=1,
        batch_size=20,
    ).with_(**fields)


# ------------------------------------------------------------------------------------------ stages


def every(path: Path, data: Data) -> list[Piece]:
    source = open_source(str(path), data)
    return [Piece(number, np.arange(group.rows)) for number, group in enumerate(source.groups)]


def test_a_video_s_clips_do_not_depend_on_what_is_read_with_it(clips: Path) -> None:
    source = open_source(str(clips), VIDEO)
    whole = MakeClips(source, VIDEO, CLIPS, 3, 1)(every(clips, VIDEO))
    assert whole["index"].tolist() == list(range(18)) and whole["label"].tolist() == [i % 3 for i in range(18)]
    assert whole["length"].tolist() == [5 + 2 * i for i in range(18)]
    assert whole["speed"].shape == (18, 8, 3, 8, 8) and whole["speed"].dtype == np.uint8
    part = MakeClips(source, VIDEO, CLIPS, 3, 1)([Piece(2, np.array([1, 3]))])
    for name, column in part.items():
        assert np.array_equal(column, whole[name][[9, 11]]), name


@pytest.mark.parametrize("media", ["video", "take"])
def test_two_ranks_share_an_epoch_and_change_no_sample(media: str, clips: Path, takes: Path) -> None:
    """Each sample at most once, the same number for both, and its views those of one rank."""
    data, views, path = (VIDEO, CLIPS, clips) if media == "video" else (TAKE, PAIRS, takes)
    source = open_source(str(path), data)
    usable = np.arange(source.rows)
    stage = stage_of(source, data, views, 5, 2)
    alone = stage(epoch_plan(source, usable, Share(4), 5, 2))
    shares = [stage(epoch_plan(source, usable, Share(4, rank, 2), 5, 2)) for rank in range(2)]
    assert len(shares[0]["index"]) == len(shares[1]["index"]) == source.rows // 4 * 2
    both = {name: np.concatenate([share[name] for share in shares]) for name in alone}
    assert len(np.unique(both["index"])) == len(both["index"]) and set(both["index"]) == set(alone["index"])
    places, own = both["index"].argsort(), alone["index"].argsort()
    for name, column in both.items():
        assert np.array_equal(column[places], alone[name][own]), name


def test_the_four_clips_of_a_video_come_from_one_decoding(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.clips

    calls: list[np.ndarray] = []
    real = pipelines.clips.decode

    def counted(encoded: bytes, table: Table, wanted: np.ndarray, *size: int, square: bool) -> np.ndarray:
        calls.append(wanted)
        return real(encoded, table, wanted, *size, square=square)

    monkeypatch.setattr(pipelines.clips, "decode", counted)
    source = open_source(str(clips), VIDEO)
    MakeClips(source, VIDEO, CLIPS, 0, 0)(every(clips, VIDEO))
    assert len(calls) == 18 and all((np.diff(wanted) > 0).all() for wanted in calls)


def test_uniform_clips_are_the_central_parts_of_named_frames(clips: Path) -> None:
    source = open_source(str(clips), VIDEO)
    found = UniformClips(source, VIDEO, 3, 4, 1, 8)([Piece(4, np.array([1]))])  # 39 frames
    assert found["image"].shape == (1, 3, 4, 3, 8, 8) and found["length"].tolist() == [39]
    still = UniformClips(source, VIDEO, 3, 4, 1, 8, still=True)([Piece(4, np.array([1]))])["image"]
    assert np.array_equal(still, found["image"][:, :, :1].repeat(4, 2))


def test_moments_are_the_frames_that_their_parameters_name(takes: Path) -> None:
    source = open_source(str(takes), TAKE)
    assert (source.rows, len(source.groups)) == (42, 3) and source.takes[1].cameras == ("c0", "c1", "c2")
    views = {role: dataclasses.replace(view, background="keep").plain() for role, view in PAIRS.items()}
    found = MakeMoments(source, TAKE, views, 0, 0)([Piece(1, np.arange(14))])
    anchor, synchronized, apart = (found[f"{role}.parameters"] for role in ROLES)
    assert np.array_equal(anchor[:, 1], np.arange(14)) and np.array_equal(synchronized[:, 1], anchor[:, 1])
    assert (anchor[:, 0] != synchronized[:, 0]).all() and (abs(apart[:, 1] - anchor[:, 1]) > 4).all()
    middle = found["anchor"][:, :, 5:7, 5:7]
    assert (middle > 200).all()  # the box is centred on the square
    removed = MakeMoments(source, TAKE, PAIRS, 0, 0)([Piece(1, np.arange(14))])["anchor"]
    assert (removed[:, :, 0] == 0).mean() > 0.9 and removed.max() > 200


def test_boxes_are_those_of_the_upright_picture_and_a_camera_without_one_shows_its_middle(tmp_path: Path) -> None:
    """Three cameras film the same; the second lies on its side, the third has no box, and the first and it differ."""
    shown = np.full((8, 48, 32, 3), 40, np.uint8)
    shown[:, 8:16, 20:28] = 230
    options = {"crf": "5", "threads": "1", "preset": "veryfast"}
    upright = encoded_video(shown, "libx264", "mp4", options=options)
    turned = encoded_video(np.rot90(shown, -1, (1, 2)), "libx264", "mp4", options=options, degrees=90)
    box = [24.0, 12.0, 12.0] * 8
    rows = {"take": ["a"] * 3, "camera": ["c0", "c1", "c2"], "video": [upright, turned, upright]}
    pq.write_table(pa.table({**rows, "box": [box, box, None]}), tmp_path / "takes.parquet")
    data = dataclasses.replace(TAKE, size=32, width=None)
    source = open_source(str(tmp_path / "takes.parquet"), data)
    view = {"image": TakeView("image", 12, cameras="one", background="keep", flip=0.0)}
    first, second, third = (
        MakeMoments(source, data, view, 0, 0, camera)([Piece(0, np.arange(8))])["image"][0] for camera in range(3)
    )
    assert abs(first.astype(int) - second).max() < 12 and (first[:, 4:8, 4:8] > 200).all()
    assert (third > 135).mean() == pytest.approx(8 / 32 * 8 / 32, abs=0.02)  # the whole width


def test_joints_travel_with_the_moment_and_are_mirrored_with_it(takes: Path) -> None:
    data = dataclasses.replace(TAKE, pose="pose")
    source = open_source(str(takes), data)
    view = {"image": TakeView("image", 12, cameras="one", background="keep")}
    found = MakeMoments(source, data, view, 0, 0)([Piece(2, np.arange(14))])
    flipped = found["image.parameters"][:, 2] > 0
    assert 0 < flipped.sum() < 14 and found["pose"].shape == (14, 4, 3)
    assert found["pose"][~flipped][:, 3, 0].tolist() == [200.0] * int((~flipped).sum())  # right
    assert found["pose"][flipped][:, 2, 0].tolist() == [-200.0] * int(flipped.sum())  # the right one, now left


# ------------------------------------------------------------------------------------------ bad input


def broken_clips(folder: Path) -> Path:
    good = encoded_video(moving(30, 1))
    sound = b"RIFF" + bytes(40)
    videos = [good, b"", good[: len(good) // 2], sound, None, encoded_video(moving(1, 2)), good]
    path = folder / "broken.parquet"
    pq.write_table(pa.table({"video": pa.array(videos, pa.binary())}), path)
    return path


def test_broken_videos_are_named_and_one_frame_is_a_video(tmp_path: Path) -> None:
    path = broken_clips(tmp_path)
    found = inspection_of(open_source(str(path), VIDEO), VIDEO, False, {})(every(path, VIDEO))
    good = found["bad"] == ""
    assert found["index"][good].tolist() == [0, 5, 6]
    told = dict(zip(found["index"][~good].tolist(), found["bad"][~good], strict=True))
    assert told.keys() == {1, 2, 3, 4} and all(f"broken.parquet:{row}\t" in said for row, said in told.items())
    assert "null" in told[4]
    one = MakeClips(open_source(str(path), VIDEO), VIDEO, CLIPS, 0, 0)([Piece(0, np.array([5]))])
    assert (one["warp"] == one["warp"][:, :1]).all()  # its frame, again and again


def test_a_view_may_ask_for_videos_of_its_length(clips: Path) -> None:
    view = {"clip": ClipView("clip", size=8, frames=20, whole=True)}
    found = inspection_of(open_source(str(clips), VIDEO), VIDEO, False, view)(every(clips, VIDEO))
    said = [reason.split("\t")[1] for reason in found["bad"] if reason]
    assert len(said) == 8 and said[0] == "5 frames, and 20 are needed"  # of 5 to 19


def test_a_wrong_extension_and_folders_of_videos(tmp_path: Path) -> None:
    for number, name in enumerate(("walk/a.mp4", "walk/b.avi", "run/c.webm")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded_video(moving(12, number)))
    (tmp_path / "run" / "notes.txt").write_text("x")
    source = open_source(str(tmp_path), VIDEO)
    assert (source.rows, source.class_names) == (3, ("run", "walk"))
    assert stage_of(source, VIDEO, CLIPS, 0, 0)(every(tmp_path, VIDEO))["label"].tolist() == [0, 1, 1]
    with pytest.raises(UserError, match=r"no image files under"):
        open_source(str(tmp_path), Data())


@pytest.mark.parametrize(
    ("change", "bad", "told"),
    [
        ("short", 4, "camera c1 ends at frame 10"),
        ("one camera", 14, r"1 camera\(s\) \(c0\), and 2 are needed"),
        ("not a video", 14, "camera c2: "),
        ("nan", 1, "camera c0: a joint is not finite"),
        ("no joints", 14, "camera c1 has no joints"),
        ("fewer joints", 2, "camera c2 ends at frame 12"),
        ("a box of NaN", 1, "camera c1: the box is not finite, or empty"),
    ],
)
def test_broken_takes(tmp_path: Path, change: str, bad: int, told: str) -> None:
    table = pq.read_table(written(tmp_path / "good.parquet", takes=1))
    rows = table.to_pydict()
    if change == "short":
        rows["video"][1] = encoded_video(moving(10, 1), "ffv1", "matroska")
    elif change == "one camera":
        rows = {name: column[:1] for name, column in rows.items()}
    elif change == "not a video":
        rows["video"][2] = b"no video at all"
    elif change == "nan":
        rows["pose"][0][12 * 7] = float("nan")
    elif change == "no joints":
        rows["pose"][1] = None
    elif change == "fewer joints":
        rows["pose"][2] = rows["pose"][2][: 12 * 12]
    else:
        rows["box"][1][3 * 5] = float("nan")
    path = tmp_path / "takes.parquet"
    pq.write_table(pa.table(rows, table.schema), path)
    data = dataclasses.replace(TAKE, pose="pose")
    found = inspection_of(open_source(str(path), data), data, False, PAIRS)(every(path, data))
    said = [reason for reason in found["bad"] if reason]
    assert len(said) == bad and all("takes.parquet: take t0, frame" in reason for reason in said)
    assert re.search(told, said[0])
    good = found["index"][found["bad"] == ""]
    for epoch in range(4 if len(good) else 0):  # whatever frame the other image of a pair is of
        made = MakeMoments(open_source(str(path), data), data, PAIRS, 0, epoch)([Piece(0, good)])
        assert made["index"].tolist() == good.tolist()


def test_what_takes_cannot_be(tmp_path: Path, takes: Path) -> None:
    table = pq.read_table(takes)
    pq.write_table(table, tmp_path / "split.parquet", row_group_size=2)
    with pytest.raises(UserError, match=r"take t0 lies in several row groups .*data takes"):
        open_source(str(tmp_path / "split.parquet"), TAKE)
    with pytest.raises(UserError, match=r"no column scene; .*--data\.take"):
        open_source(str(takes), dataclasses.replace(TAKE, take="scene"))
    with pytest.raises(UserError, match=r"camera c0 of take t0 twice"):
        pq.write_table(pa.concat_tables([table[:1], table[:1]]).combine_chunks(), tmp_path / "twice.parquet")
        open_source(str(tmp_path / "twice.parquet"), TAKE)
    with pytest.raises(ValueError, match=r"views\.anchor is a TakeView, not one of --data\.media video"):
        of_takes(takes, data={"media": "video"})
    with pytest.raises(UserError, match=r"--data\.width"):
        Data(width=10)


@pytest.mark.skipif("RAYSSL_DATA" not in os.environ, reason="RAYSSL_DATA names no folder of real data")
def test_the_nine_real_clips_and_the_two_real_takes() -> None:
    root = Path(os.environ.get("RAYSSL_DATA", ""))
    data = dataclasses.replace(VIDEO, size=56, width=72)
    clips = str(root / "video_misc" / "clips.parquet")
    source = open_source(clips, data)
    pieces = [Piece(number, np.arange(group.rows)) for number, group in enumerate(source.groups)]
    assert not any(inspection_of(source, data, False, {})(pieces)["bad"])
    found = MakeClips(source, data, {"warp": ClipView("warp", "warp", size=48)}, 0, 0)(pieces)
    assert found["warp"].shape == (9, 16, 3, 48, 48) and found["length"].min() >= 81
    assert (found["warp"].astype(float).std(axis=(2, 3, 4)) > 5).all()  # pictures, not grey
    data = dataclasses.replace(TAKE, take="scene", size=96, width=54)
    source = open_source(str(root / "multiview" / "videos.parquet"), data)
    assert {take.name for take in source.takes} == {"multi_person", "single_person"} and source.rows == 200


# ------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def filmed(clips: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A run on videos: three epochs of three steps on two workers."""
    storage = tmp_path_factory.mktemp("filmed")
    pretrain(of_clips(clips), run(storage, "whole"), "test")
    return storage / "whole"


@pytest.mark.ray
def test_a_run_on_videos_is_killed_and_ends_with_the_same_weights(clips: Path, filmed: Path, tmp_path: Path) -> None:
    """SIGKILL within the second epoch."""
    killed: list[int] = []
    thread = killer(tmp_path / "killed", lambda folder: 4 in checkpoints_of(folder), killed)
    pretrain(of_clips(clips), run(tmp_path, "killed", checkpoint_steps=2, keep=9), "test")
    thread.join()
    assert killed and killed[0] < 9, "the run was over before a worker could be killed"
    assert_equal(final(tmp_path, "killed"), final(filmed.parent, "whole"))


@pytest.mark.ray
def test_what_evaluation_says_of_a_run_on_videos(filmed: Path) -> None:
    options: Options = dataclasses.replace(defaults(str(filmed)), clips=Clips(count=2, speed=1))
    figures = evaluate(str(filmed), ["linear", "retrieval", "task"], options)
    assert 0 <= figures["linear"]["top1"] <= 1 and "random_init" in figures
    assert {"top1", "top5", "top10", "precision"} <= figures["retrieval"].keys()
    assert (filmed / "retrieval.png").stat().st_size > 10_000
    task = figures["task"]
    assert task["videos"] == 18 and np.shape(task["motion_confusion"]) == (4, 4)
    motion = task["motion_balanced"]
    assert motion["low"] <= motion["accuracy"] <= motion["high"] and motion["chance"] == 0.25
    assert motion["chance_by_length"] == 0.25 <= task["speed_balanced"]["chance_by_length"]
    evaluate(str(filmed), ["active_pixels", "pictures"], options)
    assert (filmed / "active_pixels.png").stat().st_size > 10_000
    assert (filmed / "pictures_clips.png").stat().st_size > 1000
    groups = dataclasses.replace(options, groups="scene")
    assert {"top1", "balanced", "low", "high"} == evaluate(str(filmed), ["linear"], groups)["linear"].keys()


@pytest.mark.ray
def test_synchronization_is_learned_on_videos_that_are_long_enough(filmed: Path) -> None:
    """Offsets of -2 to 2 take 12 frames, which 14 of the 18 videos have. The baseline is kept by what it depends on."""
    options = defaults(str(filmed))
    timing = Timing(epochs=1, batch_size=6, head=(8,), most_offset=2, norm_momentum=0.1)
    options = dataclasses.replace(options, timing=timing, data=dataclasses.replace(options.data, max_bad=0.5))
    figures = evaluate(str(filmed), ["synchronization"], options)["synchronization"]
    assert figures["videos"] == 14 and 0 <= figures["mae"] <= 4 and 0 <= figures["accuracy"] <= 1
    known = [json.loads(key) for key in json.loads((filmed.parent / "baselines.json").read_text())]
    [settings] = [key[2] for key in known if key[0] == "synchronization"]
    assert (settings["epochs"], settings["most_offset"], settings["draws"]) == (1, 2, 1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_takes_are_pretrained_and_their_joints_are_learned(takes: Path, tmp_path: Path) -> None:
    pretrain(of_takes(takes), run(tmp_path, "takes"), "test")
    options = defaults(str(tmp_path / "takes"))
    assert options.data.pose == "pose"
    options = dataclasses.replace(options, posing=Posing(frozen=1, epochs=1, batch_size=8, every=3, optimizer=ADAM))
    options = dataclasses.replace(options, gaps=Gaps((2, 8, 16), less=0, more=0))
    figures = evaluate(str(tmp_path / "takes"), ["pose", "task", "gaps"], options)
    assert figures["gaps"].keys() == {"2", "8"} and figures["gaps"]["8"]["pairs"] == 3 * 2 * 12
    assert (tmp_path / "takes" / "gaps.png").stat().st_size > 5000
    assert figures["pose"].keys() >= {"mpjpe", "nmpjpe", "pmpjpe"} <= figures["random_init"]["pose"].keys()
    assert figures["pose"]["labels"] == 3 * 42 and figures["pose"]["images"] == 3 * 14
    assert 0 < figures["pose"]["pmpjpe"] < figures["pose"]["mpjpe"] < 1000
    assert figures["task"]["moments"] == 42
    assert (tmp_path / "takes" / "pose.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="choose among them"):
        evaluate(str(tmp_path / "takes"), ["knn"], options)


def test_gaps_are_of_two_cameras(takes: Path) -> None:
    """Of a single-view run a synchronized pair without augmentation is the same picture twice."""
    recipe = of_takes(takes)
    views = {name: dataclasses.replace(view, cameras="one") for name, view in recipe.views.items()}
    subject = SimpleNamespace(recipe=dataclasses.replace(recipe, views=views), method=object(), clock=object())
    with pytest.raises(UserError, match="gaps compares two cameras, and this run learned from one"):
        run_gaps(cast(Ready, SimpleNamespace(subject=subject)), "trained")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_run_on_videos_refuses(clips: Path, tmp_path: Path) -> None:
    for fields, message in (
        ({"feed": "resident"}, "views of videos are made while they are read"),
        ({"knn_epochs": 1}, "the online kNN is for images"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(of_clips(clips), run(tmp_path, "x", **fields), "test")
    bad = of_clips(broken_clips(tmp_path), batch_size=2)
    with pytest.raises(UserError, match=r"4 of 7 rows are broken, more than --data.max-bad 0.01; the first is"):
        pretrain(bad, run(tmp_path, "y"), "test")
