"""Videos: frames are numbered as a full decode shows them; few are decoded; broken files say why."""

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from videos import encoded_video, index_first, numbered, numbers, packed_video, sound_alone

from pipelines import video
from pipelines.video import all_key, decode, plan, table

FRAMES = 40
X264 = {"bf": "3", "preset": "veryfast", "x264-params": "log-level=none:b-adapt=0"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1:bframes=3"}
VPX = {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"}
JPEG = {"pix_fmt": "yuvj420p"}
VARYING = np.cumsum(np.arange(FRAMES) % 4 + 1).tolist()
BEFORE_ZERO = {"times": range(-5, FRAMES - 5), "container_options": {"avoid_negative_ts": "disabled"}}

KINDS: dict[str, tuple[str, str, dict]] = {
    "mpeg4.avi": ("mpeg4", "avi", {}),
    "mpeg4 B.avi": ("mpeg4", "avi", {"options": {"bf": "2"}, "sound": True}),
    "mpeg4 B.mp4": ("mpeg4", "mp4", {"options": {"bf": "2"}}),
    "h264.mp4": ("libx264", "mp4", {"options": X264, "sound": True}),
    "h264 late.mp4": ("libx264", "mp4", {"options": X264, "times": range(50, 50 + FRAMES)}),
    "h264 edit list.mp4": ("libx264", "mp4", {"options": X264, **BEFORE_ZERO}),
    "h264 varying.mp4": ("libx264", "mp4", {"options": X264, "times": VARYING}),
    "h264 fragments.mp4": (
        "libx264",
        "mp4",
        {"options": X264, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    ),
    "h264 open.mkv": (
        "libx264",
        "matroska",
        {"options": X264 | {"x264-params": "log-level=none:open-gop=1:b-adapt=0"}},
    ),
    "h264 refresh.ts": ("libx264", "mpegts", {"options": X264 | {"x264-params": "intra-refresh=1:log-level=none"}}),
    "h264.avi": ("libx264", "avi", {"options": X264}),
    "h264.flv": ("libx264", "flv", {"options": X264, "times": VARYING}),
    "hevc.mp4": ("libx265", "mp4", {"options": X265}),
    "vp8 hidden.webm": ("libvpx", "webm", {"options": VPX}),
    "vp9 hidden.webm": ("libvpx-vp9", "webm", {"options": VPX}),
    "mjpeg.mkv": ("mjpeg", "matroska", JPEG),
    "mjpeg.avi": ("mjpeg", "avi", JPEG),
    "ffv1.mkv": ("ffv1", "matroska", {"pix_fmt": "bgr0", "gop": 1}),
    "raw.avi": ("rawvideo", "avi", {"pix_fmt": "bgr24"}),
    "mpeg2.mpg": ("mpeg2video", "mpeg", {"options": {"bf": "2"}}),
    "wmv2.asf": ("wmv2", "asf", {}),
}
MADE = [*KINDS, "packed", "packed with gaps", "packed to the end"]
_made: dict[str, bytes] = {}


def made(name: str) -> bytes:
    """The file of that name, encoded once."""
    if name not in _made:
        frames = numbered(FRAMES)
        if name in KINDS:
            codec, container, more = KINDS[name]
            if codec == "libx265":
                frames = numbered(FRAMES, 64, 96)  # smaller ones make x265 write beyond its memory
            _made[name] = encoded_video(frames, codec, container, **more)
        elif name == "packed to the end":  # the last B never comes out
            _made[name] = packed_video(frames[:12], last=False)
        else:
            _made[name] = packed_video(frames, drop=(1, 4, 16) if name == "packed with gaps" else ())
    return _made[name]


def naive(encoded: bytes, height: int = 32, width: int = 48) -> np.ndarray:
    """All frames by a full decode, uint8 (F, 3, height, width), without the packets that fail."""
    flags = av.video.reformatter.Interpolation
    how = flags.BILINEAR | flags.FULL_CHR_H_INT | flags.ACCURATE_RND

    def pixels(frame: VideoFrame) -> np.ndarray:
        return frame.to_ndarray(width=width, height=height, format="rgb24", interpolation=how)

    shown: list[np.ndarray] = []
    with av.open(io.BytesIO(encoded), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            with suppress(av.error.InvalidDataError):
                shown += [pixels(frame) for frame in packet.decode()]
    return np.stack(shown).transpose(0, 3, 1, 2)


def choices(count: int, rng: np.random.Generator, times: int) -> list[np.ndarray]:
    """Frames to want: all, the first, the last, every fourth of the later half, and random ones."""
    fixed = [np.arange(count), np.array([0]), np.array([count - 1]), np.arange(count // 2, count, 4)]
    return fixed + [np.sort(rng.choice(count, rng.integers(1, min(count, 12) + 1), False)) for _ in range(times)]


# ------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("name", MADE)
def test_frames_are_those_of_a_full_decode(name: str) -> None:
    encoded = made(name)
    opened, expected = table(encoded), naive(encoded)
    assert len(opened) == len(expected) == len(opened.pts) == len(opened.packet)
    assert (np.diff(opened.pts) > 0).all() and opened.height * 3 == opened.width * 2
    for wanted in choices(len(opened), np.random.default_rng(1), 8):
        found = decode(encoded, opened, wanted, 32, 48, square=False)
        assert found.dtype == np.uint8 and np.array_equal(found, expected[wanted])
    first = 5 if "edit list" in name else 0
    if name != "packed to the end":
        assert numbers(expected) == list(range(first, FRAMES))


def test_times_are_the_stored_ones() -> None:
    for name in ("h264 varying.mp4", "h264.flv"):
        opened = table(made(name))
        seconds = opened.pts * float(opened.time_base)
        assert np.allclose(np.diff(seconds), np.diff(VARYING) / 25, atol=0.002)
    opened = table(made("h264 late.mp4"))
    assert float(opened.pts[0] * opened.time_base) == 2


def test_no_more_is_decoded_than_needed() -> None:
    """MPEG-4 with keys at 0, 12, 24, 36: frames 14 and 15 need 12 to 15; 14 and 26 also 24 to 26, 16 to 23 not."""
    opened = table(made("mpeg4.avi"))
    assert np.flatnonzero(opened.key).tolist() == [0, 12, 24, 36]
    assert np.flatnonzero(plan(opened, np.array([14, 15]))).tolist() == [12, 13, 14, 15]
    assert np.flatnonzero(plan(opened, np.array([14, 26]))).tolist() == [12, 13, 14, 24, 25, 26]
    for name in ("mjpeg.mkv", "mjpeg.avi", "ffv1.mkv", "raw.avi"):
        opened = table(made(name))
        assert opened.key.all() and np.flatnonzero(plan(opened, np.array([3, 30]))).tolist() == [3, 30]


def test_frames_before_a_key_of_an_open_group_are_decoded_from_the_key_before() -> None:
    opened = table(made("h264 open.mkv"))
    keys = np.flatnonzero(opened.key)
    leading = [i for i in range(len(opened)) if any(k < opened.packet[i] and opened.key_frame[k] > i for k in keys)]
    assert leading  # decoded after a key, shown before it
    for i in leading:
        needed = np.flatnonzero(plan(opened, np.array([i])))
        after = keys[keys < opened.packet[i]][-1]
        assert needed[0] < after and needed[0] in keys


def test_disposable_frames_are_passed_over() -> None:
    opened = table(made("hevc.mp4"))
    assert opened.spare.sum() > 10
    assert plan(opened, np.array([11])).sum() < 12


def test_decoder_stops_at_the_last_frame_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan says is what is decoded: packets handed to the decoder are counted."""
    encoded = made("mpeg4.avi")
    opened, shown = table(encoded), video._shown
    seen: list[Packet | None] = []

    def counted(context: VideoCodecContext, packet: Packet | None) -> Iterator[tuple[int, VideoFrame]]:
        seen.append(packet)
        return shown(context, packet)

    monkeypatch.setattr(video, "_shown", counted)
    wanted = np.array([14, 26])
    decode(encoded, opened, wanted, 32, 48, square=False)
    assert sum(packet is not None for packet in seen) == plan(opened, wanted).sum() == 6


@pytest.mark.parametrize("wanted", [[3, 2], [2, 2], [-1], [FRAMES]])
def test_wanted_frames_ascend_and_exist(wanted: list[int]) -> None:
    encoded = made("mpeg4.avi")
    with pytest.raises(ValueError, match="ascending order"):
        decode(encoded, table(encoded), np.array(wanted), 32, 32)
    assert decode(encoded, table(encoded), np.array([], np.int64), 8, 8).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="at least 1 x 1"):
        decode(encoded, table(encoded), np.array([0]), 0, 8)


# ------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (37, 37), (40, 20), (64, 64)])
def test_the_central_square_is_resized_as_images_are(size: tuple[int, int]) -> None:
    """Against torch's antialiased bilinear, whose square is cut exactly; whole frames differ at the border alone, where
    torch leaves out what swscale repeats."""
    y, x = np.mgrid[:96, :168]
    wash = np.stack([np.sin(x / 9) + np.cos(y / 7), np.cos(x / 12), np.sin((x + y) / 10)], -1) * 50 + 128
    frames = wash.round().astype(np.uint8)[None]
    encoded = encoded_video(frames, "rawvideo", "nut", pix_fmt="rgb24")
    found = decode(encoded, table(encoded), np.array([0]), *size)
    square = torch.from_numpy(frames).permute(0, 3, 1, 2)[..., 36 : 36 + 96].float()
    error = np.abs(found - F.interpolate(square, size, mode="bilinear", antialias=True).numpy())
    assert error.mean() < 2 and error.max() < 12
    whole = decode(encoded, table(encoded), np.array([0]), *size, square=False)
    resized = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    error = np.abs(whole - F.interpolate(resized, size, mode="bilinear", antialias=True).numpy())
    assert error.mean() < 0.6 and error.max() < 6 and error[..., 2:-2, 2:-2].max() < 2


def test_the_size_stored_is_kept_exactly() -> None:
    frames = numbered(3, 33, 47)
    encoded = encoded_video(frames, "rawvideo", "nut", pix_fmt="rgb24")
    found = decode(encoded, table(encoded), np.arange(3), 33, 47, square=False)
    assert np.array_equal(found, frames.transpose(0, 3, 1, 2))
    square = decode(encoded, table(encoded), np.arange(3), 33, 33)
    assert np.array_equal(square, frames[:, :, 7 : 7 + 33].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("ffv1", "gray"), ("ffv1", "gray16le"), ("ffv1", "yuva420p"), ("ffv1", "yuv420p10le")]
)
def test_other_pixel_formats(codec: str, pix_fmt: str) -> None:
    frames = numbered(4)
    encoded = encoded_video(frames, codec, "matroska", pix_fmt=pix_fmt)
    found = decode(encoded, table(encoded), np.arange(4), 32, 48, square=False)
    expected = frames.transpose(0, 3, 1, 2).astype(float)
    if pix_fmt.startswith("gray"):
        expected = np.einsum("nchw,c->nhw", expected, [0.299, 0.587, 0.114])[:, None].repeat(3, 1)
    assert np.abs(found - expected)[..., 28:].mean() < 4  # of the smooth half


@pytest.mark.parametrize(
    ("degrees", "mirrored"), [(90, False), (180, False), (270, False), (0, True), (90, True), (-90, True)]
)
def test_turned_videos_come_out_upright(degrees: int, mirrored: bool) -> None:
    """A phone stores the picture turned, and by how much the player is to turn it back."""
    frames = numbered(3)
    stored = np.rot90(frames[:, :, ::-1] if mirrored else frames, -degrees // 90, (1, 2))
    encoded = encoded_video(stored, "libx264", "mp4", options=X264 | {"crf": "5"}, degrees=degrees, mirrored=mirrored)
    opened = table(encoded)
    assert (opened.height, opened.width) == stored.shape[1:3]
    found = decode(encoded, opened, np.arange(3), 32, 48, square=False)
    assert np.abs(found - frames.transpose(0, 3, 1, 2).astype(int)).mean() < 3
    kept = all_key(encoded, opened, None, None, square=False, quality=2)
    assert (table(kept).height, table(kept).width) == (32, 48)


# ------------------------------------------------------------------------------------------- broken files


def cut(encoded: bytes, part: float) -> bytes:
    return encoded[: int(len(encoded) * part)]


BAD = {
    "no bytes": (lambda: b"", "empty"),
    "text": (lambda: b"hello world\n" * 100, "not a video file"),
    "noise": (lambda: np.random.default_rng(0).bytes(5000), "not a video file"),
    "a playlist, which names other files": (lambda: b"#EXTM3U\n#EXTINF:1,\n/tmp/x.ts\n", "not a video file"),
    "sound alone, Matroska": (sound_alone, "no video stream, only audio"),
    "sound alone, MP4": (lambda: sound_alone("mp4"), "no video stream, only audio"),
    "no frames": (lambda: encoded_video(numbered(0), container="avi"), "no frames"),
    "codec": (lambda: made("mpeg4.avi").replace(b"FMP4", b"ZZZZ"), "codec is one that PyAV lacks"),
    "half an AVI": (lambda: cut(made("mpeg4.avi"), 0.5), r"truncated: \d+ of 40 frames"),
    "most of an AVI": (lambda: cut(made("mpeg4.avi"), 0.85), r"truncated: \d+ of 40 frames"),
    "the start of an AVI": (lambda: cut(made("mpeg4.avi"), 0.1), "not a whole one"),
    "half an MP4, index first": (lambda: cut(index_first(made("h264.mp4")), 0.5), r"truncated: \d+ of 40 frames"),
    "half an MP4, index last": (lambda: cut(made("h264.mp4"), 0.5), "not a whole one"),
    "half a Matroska": (lambda: cut(made("mjpeg.mkv"), 0.5), r"truncated: 0\.\d+ of 1\.60 seconds"),
    "half a WebM": (lambda: cut(made("vp9 hidden.webm"), 0.5), "truncated"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_why(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, reason = BAD[name]
    encoded = make()
    capfd.readouterr()
    with pytest.raises(ValueError, match=reason):
        table(encoded)
    assert capfd.readouterr().err == ""


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = made("mpeg4.avi")
    monkeypatch.setattr(video, "MOST_PIXELS", 32 * 48 - 1)
    with pytest.raises(ValueError, match="48 x 32 pixels are more than"):
        table(encoded)
    monkeypatch.undo()
    thin = encoded_video(numbered(1, 2, 4000), "rawvideo", "nut", pix_fmt="rgb24")
    with pytest.raises(ValueError, match="too narrow"):
        decode(thin, table(thin), np.array([0]), 400, 400)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "mjpeg"])
@pytest.mark.parametrize("container", ["avi", "mp4", "matroska"])
def test_videos_of_one_frame(codec: str, container: str) -> None:
    encoded = encoded_video(numbered(1), codec, container, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    opened = table(encoded)
    assert len(opened) == 1
    assert numbers(decode(encoded, opened, np.array([0]), 32, 48, square=False)) == [0]


def test_a_little_less_than_declared_is_not_truncated() -> None:
    """One frame may always be missing, of 100 two: some programs count wrongly."""
    encoded = made("mpeg4.avi")
    position = encoded.index(b"strh") + 8 + 32  # dwLength
    assert int.from_bytes(encoded[position : position + 4], "little") == FRAMES
    for declared, whole in ((FRAMES + 1, True), (FRAMES + 2, False), (2 * FRAMES, False)):
        changed = encoded[:position] + declared.to_bytes(4, "little") + encoded[position + 4 :]
        if whole:
            assert len(table(changed)) == FRAMES
        else:
            with pytest.raises(ValueError, match=f"truncated: 40 of {declared} frames"):
                table(changed)


def spoilt(encoded: bytes, packets: range | list[int]) -> bytes:
    """The file with the bytes of some packets, in the order of decoding, overwritten."""
    data = bytearray(encoded)
    with av.open(io.BytesIO(encoded), "r") as container:
        contents = [bytes(packet) for packet in container.demux(video=0)]
    for i in packets:
        at = encoded.index(contents[i])
        data[at : at + len(contents[i])] = bytes(len(contents[i]))
    return bytes(data)


def test_a_broken_frame_repeats_the_one_before() -> None:
    encoded = spoilt(made("mjpeg.avi"), [0, 7, 8, 39])
    opened = table(encoded)
    assert len(opened) == FRAMES
    found = numbers(decode(encoded, opened, np.arange(FRAMES), 32, 48, square=False))
    assert found == [1, *range(1, 7), 6, 6, *range(9, 39), 38]
    assert numbers(decode(encoded, opened, np.array([0]), 32, 48, square=False)) == [1]
    assert numbers(decode(encoded, opened, np.array([8, 20, 39]), 32, 48, square=False)) == [6, 20, 38]
    kept = all_key(encoded, opened, 32, 48, square=False, quality=2)
    assert numbers(decode(kept, table(kept), np.arange(FRAMES), 32, 48, square=False)) == found


def test_a_broken_key_is_left_to_the_key_before(capfd: pytest.CaptureFixture[str]) -> None:
    """Without its start code the picture is not one of the table; without its data it is, and frames are missing."""
    encoded = spoilt(made("mpeg4.avi"), [12])
    opened, expected = table(encoded), naive(encoded)
    assert len(opened) == len(expected) == FRAMES - 1
    wanted = np.array([3, 12, 30])
    assert np.array_equal(decode(encoded, opened, wanted, 32, 48, square=False), expected[wanted])
    encoded = made("vp9 hidden.webm")
    encoded = spoilt(encoded, [int(np.flatnonzero(table(encoded).key)[1])])
    found = decode(encoded, table(encoded), np.array([3, 11, 12]), 32, 48, square=False)
    assert numbers(found) == [3, 11, 11]
    assert capfd.readouterr().err == ""


def test_nothing_of_it_decodes() -> None:
    encoded = spoilt(made("mjpeg.avi"), range(FRAMES))
    opened = table(encoded)
    with pytest.raises(ValueError, match="no frame of it can be decoded"):
        decode(encoded, opened, np.array([3]), 32, 32)
    with pytest.raises(ValueError, match="no frame of it can be decoded"):
        all_key(encoded, opened, 32, 32, square=True, quality=2)


# ------------------------------------------------------------------------------------------------ caching


@pytest.mark.parametrize("name", ["mpeg4 B.avi", "packed", "h264 edit list.mp4", "h264 varying.mp4", "ffv1.mkv"])
def test_frames_are_kept_as_jpeg_or_exactly(name: str) -> None:
    encoded = made(name)
    opened = table(encoded)
    everything = np.arange(len(opened))
    frames = decode(encoded, opened, everything, 24, 24)
    kept = all_key(encoded, opened, 24, 24, square=True, quality=2)
    again = table(kept)
    assert len(again) == len(opened) and again.key.all()
    seconds = opened.pts * float(opened.time_base)
    assert np.allclose(again.pts * float(again.time_base), seconds - seconds[0], atol=0.002)
    error = (decode(kept, again, everything, 24, 24).astype(float) - frames) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 30
    exact = all_key(encoded, opened, 24, 24, square=True, quality=2, raw=True)
    again = table(exact)
    assert len(again) == len(opened) and again.key.all()
    for wanted in choices(len(opened), np.random.default_rng(2), 3):
        assert np.array_equal(decode(exact, again, wanted, 24, 24), frames[wanted])


def test_sizes_of_kept_frames() -> None:
    encoded = encoded_video(numbered(3, 34, 48))
    opened = table(encoded)
    for asked, square, size in (
        ((None, None), True, (34, 34)),
        ((None, None), False, (34, 48)),
        ((17, None), False, (17, 48)),
        ((15, 23), False, (15, 23)),
    ):
        for raw in (False, True):
            kept = table(all_key(encoded, opened, *asked, square=square, quality=5, raw=raw))
            assert (kept.height, kept.width, len(kept)) == (*size, 3)
    best, worst = (len(all_key(encoded, opened, 34, 48, square=False, quality=q)) for q in (1, 31))
    assert best > 1.3 * worst
    with pytest.raises(ValueError, match="from 1"):
        all_key(encoded, opened, 8, 8, square=True, quality=0)


# ---------------------------------------------------------------------------------------------- real files


@pytest.mark.skipif("RAYSSL_DATA" not in os.environ, reason="real videos are found by RAYSSL_DATA")
@pytest.mark.parametrize(
    ("file", "every"), [("ut_interaction/set1", 15), ("ut_interaction/set2", 15), ("video_misc/clips", 1)]
)
def test_real_videos(file: str, every: int) -> None:
    """DivX and Xvid, packed; the number of frames is also the data's own."""
    rows = pq.read_table(Path(os.environ["RAYSSL_DATA"]) / f"{file}.parquet").to_pylist()[::every]
    for row in rows:
        encoded = row["video"]
        opened, expected = table(encoded), naive(encoded, 30, 40)
        assert len(opened) == len(expected) == row["num_frames"], row["name"]
        for wanted in choices(len(opened), np.random.default_rng(3), 1):
            assert np.array_equal(decode(encoded, opened, wanted, 30, 40, square=False), expected[wanted]), row["name"]


@pytest.mark.skipif("RAYSSL_DATA" not in os.environ, reason="real videos are found by RAYSSL_DATA")
@pytest.mark.parametrize("row", [1, 4])
def test_real_cameras(row: int) -> None:
    """H.264 and VP9 in MP4."""
    rows = pq.read_table(Path(os.environ["RAYSSL_DATA"]) / "multiview/videos.parquet").slice(row, 1).to_pylist()
    encoded = rows[0]["video"]
    opened, expected = table(encoded), naive(encoded, 24, 24)
    assert len(opened) == len(expected) == rows[0]["num_frames"]
    for wanted in (np.array([3, 40]), np.arange(98, 100)):
        assert np.array_equal(decode(encoded, opened, wanted, 24, 24, square=False), expected[wanted])
