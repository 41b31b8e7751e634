"""Small videos for tests, made with PyAV: pictures that tell their own number, in any codec and container."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream


def numbered(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """uint8 (count, height, width, 3): a drifting wash of colours; the left half's 8 rows of blocks tell the number."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    t = np.arange(count)[:, None, None] / 20
    pixels = np.stack([np.sin(3 * x + t), np.sin(3 * y - t), np.cos(2 * (x + y) + 2 * t)], -1) * 60 + 128
    for bit in range(8):
        rows = slice(bit * height // 8, (bit + 1) * height // 8)
        pixels[:, rows, : width // 2] = np.where(np.arange(count) >> bit & 1, 220, 35)[:, None, None, None]
    return pixels.astype(np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """What `numbered` wrote, of uint8 (n, 3, H, W) at whatever size and quality."""
    height, width = frames.shape[2:]
    rows = (np.arange(8) * 2 + 1) * height // 16
    grey = frames[:, :, rows, width // 8 : 3 * width // 8].mean((1, 3))  # (n, 8)
    return ((grey > 128) << np.arange(8)).sum(1).tolist()


def encoded_video(
    frames: np.ndarray,
    codec: str = "mpeg4",
    container: str = "avi",
    *,
    gop: int = 12,
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    degrees: int = 0,
    mirrored: bool = False,
    sound: bool = False,
) -> bytes:
    """A video file of uint8 (F, H, W, 3).

    Args:
        gop: frames from key to key.
        times: of each frame, in 1/25 s; 0, 1, 2 and so on unless given.
        options, container_options: of the encoder, and of the muxer.
        degrees, mirrored: of the display matrix (MP4): the player turns the picture counter-clockwise, then mirrors it.
        sound: adds an audio stream.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=dict(container_options or {})) as output:
        stream = cast(VideoStream, output.add_stream(codec, rate=25, options=dict(options or {})))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size, stream.bit_rate = pix_fmt, gop, 4_000_000
        stream.codec_context.thread_count = 1
        if degrees or mirrored:
            stream.set_display_rotation(degrees, hflip=mirrored)
        audio = output.add_stream("pcm_s16le" if container == "avi" else "aac", rate=16000) if sound else None
        for i, pixels in enumerate(frames):
            picture = VideoFrame.from_ndarray(pixels)
            picture.pts, picture.time_base = i if times is None else times[i], Fraction(1, 25)
            output.mux(stream.encode(picture))
            if audio is not None and i < 20:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.int16), format="s16", layout="mono")
                samples.sample_rate, samples.pts = 16000, 640 * i
                output.mux(audio.encode(samples))
        if not len(frames):
            output.start_encoding()
        else:
            output.mux(stream.encode(None))
            if audio is not None:
                output.mux(audio.encode(None))
    return file.getvalue()


def index_first(encoded: bytes) -> bytes:
    """An MP4 file whose index stands before the pictures, as for streaming."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/video.mp4"
        with (
            av.open(io.BytesIO(encoded), "r") as source,
            av.open(path, "w", container_options={"movflags": "faststart"}) as output,
        ):
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
        with open(path, "rb") as file:
            return file.read()


def sound_alone(container: str = "matroska") -> bytes:
    """A file with an audio stream only."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        samples.sample_rate, samples.pts = 16000, 0
        output.mux([*stream.encode(samples), *stream.encode(None)])
    return file.getvalue()


def packed_video(frames: np.ndarray, gop: int = 12, drop: Sequence[int] = (), last: bool = True) -> bytes:
    """MPEG-4 in AVI as DivX and Xvid wrote it: a P comes with its first B in one packet, a placeholder after the last
    B. After the frames `drop` (of the stored order) a packet of one byte, which shows nothing, stands in between.
    Without the `last` placeholder the last B never comes out."""
    with av.open(io.BytesIO(encoded_video(frames, gop=gop, options={"bf": "2"})), "r") as source:
        pictures = [bytes(packet) for packet in source.demux(video=0) if packet.size]
    kinds = [p[p.index(b"\0\0\1\xb6") + 4] >> 6 for p in pictures]
    start = pictures[0].index(b"\0\0\1\xb6")
    packets = [pictures[0][:start] + b"\0\0\1\xb2DivX503b1393p" + pictures[0][start:]]
    placeholder = b"\0\0\1\xb6" + int("0101000001001111", 2).to_bytes(2)  # P; 5 bits of time
    i = 1
    while i < len(pictures):
        bs = next((j for j in range(i + 1, len(pictures)) if kinds[j] != 2), len(pictures)) - i - 1
        if kinds[i] == 0 or not bs:
            packets += pictures[i : i + 1 + bs]
        else:
            packets += [pictures[i] + pictures[i + 1], *pictures[i + 2 : i + 1 + bs], placeholder]
        if i in drop:
            packets.append(b"\x7f")
        i += 1 + bs
    if not last and packets[-1] == placeholder:
        packets.pop()
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for time, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = time
            output.mux(packet)
    return file.getvalue()
