"""Encoded videos: which frames there are from demuxing alone, and decoding no more than the wanted ones need.

`table` numbers a video's frames in the order in which a full sequential decode shows them; `plan` says which packets
must be decoded to see some of them; `decode` does it; `all_key` rewrites a video for the frame cache.

How frames are numbered without decoding, where timestamps cannot be trusted:

- MPEG-4 part 2 (DivX, Xvid: UCF101, HMDB51), in any container: by the picture types. A B picture is shown at once, any
  other when the next that is no B has come. Packed bitstreams (a P and its B in one packet, then a placeholder) are
  taken apart; placeholders (no picture, or one that says "not coded") show nothing.
- codecs that never reorder pictures: the order of their packets; VP8's hidden pictures are not shown.
- other codecs in MP4, Matroska and FLV: their presentation times.
- all else (H.264 in AVI, transport and program streams, times missing or twice the same): decoded once, which is slow.

Pictures become uint8 RGB, upright (display matrix applied), resized with antialiasing as images are (a triangle filter
as wide as the reduction) in one pass of swscale. Alpha is dropped, grey repeated, 10 bits become 8; the pixels' aspect
ratio is not applied; interlaced pictures are not separated.

Legend: F frames of a video in presentation order, P packets in the order of decoding, n frames wanted.
"""

import io
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData, Type
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

MOST_PIXELS = 2**26  # 8192 x 8192, of one frame, stored or resized; more is a bomb: decoders hold up to 17 frames
CONTAINERS = "avi,mov,mp4,matroska,webm,flv,asf,mpeg,mpegts,mpegvideo,ogg,ivf,nut,mxf,rm,dv"
"""What may be opened: files whose pictures lie within; no playlists, which name other files, no images, no text."""
LIMITS = {"max_pixels": str(MOST_PIXELS)}
TIMED = ("mov", "matroska", "flv")  # containers that store presentation times
ALLOWED = 0.02  # of the frames that a container declares may be missing (one always may): some count wrongly

_SMOOTH = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND

av.logging.set_level(None)  # broken files are told by exceptions, not on stderr


@dataclass(frozen=True, eq=False)
class Table:
    """A video's frames, known before any is decoded. `len(table)` is their number, F."""

    pts: np.ndarray
    """int64 (F,), ascending: presentation times in `time_base`; of files that store none the times of decoding."""
    time_base: Fraction
    """Seconds."""
    height: int
    """Pixels as stored: of a video that is turned when shown this is the width."""
    width: int
    packet: np.ndarray
    """int64 (F,): the packet on which the decoder makes frame i."""
    key: np.ndarray
    """bool (P,): decoding can start here."""
    key_frame: np.ndarray
    """int64 (P,): of keys the first frame that decoding from here gives whole."""
    spare: np.ndarray
    """bool (P,): no other packet needs this one."""

    def __len__(self) -> int:
        return len(self.pts)


# ------------------------------------------------------------------------------------------------- tables


def table(encoded: bytes) -> Table:
    """The frames of a file's first video stream; covers of audio files are none.

    Raises:
        ValueError: empty; no video container of `CONTAINERS`; no video stream; a codec that PyAV lacks; no frames;
            frames beyond `MOST_PIXELS`; truncated. Truncated is a file with fewer packets than it declares (AVI, MP4:
            their number; Matroska, WebM: the duration), beyond a tolerance of `ALLOWED`. The text is the reason.
    """
    with _opened(encoded) as (container, stream):
        context = stream.codec_context
        codec, size = context.codec, (context.height, context.width)
        if size[0] * size[1] > MOST_PIXELS:
            raise ValueError(
                f"{size[1]} x {size[0]} pixels are more than {MOST_PIXELS}: taken for a decompression bomb"
            )
        packets = _demuxed(container, stream)
        if not any(p.size for p in packets):
            raise ValueError("a video of no frames")
        clock = np.array([i if p.dts is None else p.dts for i, p in enumerate(packets)], np.int64)
        if all(p.pts is not None for p in packets):
            clock = np.array([p.pts for p in packets], np.int64)
        _check_whole(container, stream, clock)
        key = np.array([p.is_keyframe for p in packets], bool)
        full = np.array([p.size > 0 for p in packets], bool)  # of no bytes: an AVI file's way to hold a frame
        shown = full & np.array([not p.is_discard for p in packets], bool)  # what edit lists leave out is not shown
        spare = ~full | np.array([p.is_disposable for p in packets], bool)
        order: np.ndarray | None = np.arange(len(packets))  # (P,): ascending as the packets' frames are shown
        if codec.name == "mpeg4":
            order, pictured, key = _mpeg4([bytes(p) for p in packets], context.extradata or b"")
            shown, spare = shown & pictured, ~full
        elif not codec.reorder:
            spare |= key.all()
            if codec.name == "vp8":
                shown &= [p.size > 0 and bytes(p)[0] & 0x10 > 0 for p in packets]
        elif (
            container.format.name.split(",")[0] in TIMED
            and all(p.pts is not None for p in packets)
            and key[:1].all()
            and len(np.unique(clock[shown])) == shown.sum()
            and (clock[shown] >= clock[0]).all()  # else it begins within an open group of pictures
        ):
            order = clock
        else:
            order = None
        key &= full
        time_base = stream.time_base or Fraction(1, 25)
    if order is None:
        order, shown = _decoded_order(encoded, key, full)
    if not shown.any():
        raise ValueError("a video of no frames")
    packet = np.flatnonzero(shown)
    packet = packet[np.argsort(order[packet], kind="stable")]
    key_frame = np.zeros(len(key), np.int64)
    # where edit lists make a key's place unsure it is taken to be no earlier than those of the keys before
    key_frame[key] = np.maximum.accumulate(np.searchsorted(order[packet], order[key]))
    return Table(np.sort(clock[packet]), time_base, *size, packet, key, key_frame, spare)


@contextmanager
def _opened(encoded: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    if not encoded:
        raise ValueError("empty: no bytes")
    try:
        container = av.open(
            io.BytesIO(encoded),
            "r",
            metadata_errors="replace",
            options=LIMITS,  # also of the decoders that look at the first packets
            container_options={"format_whitelist": CONTAINERS},
        )
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"not a video file, or not a whole one (it begins with {bytes(encoded[:12])!r})") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = sorted({str(s.type) for s in container.streams})
            raise ValueError(f"no video stream, only {', '.join(kinds) or 'a header'}")
        if streams[0].codec_context is None:
            raise ValueError("its video codec is one that PyAV lacks")
        yield container, streams[0]


def _demuxed(container: InputContainer, stream: VideoStream) -> list[Packet]:
    packets = []
    try:
        for packet in container.demux(stream):
            packets.append(packet)
    except av.FFmpegError:  # the rest is missing, which is looked at next
        return packets
    return packets[:-1]  # the last is the sign of the end


def _check_whole(container: InputContainer, stream: VideoStream, clock: np.ndarray) -> None:
    format, found = container.format.name.split(",")[0], len(clock)
    declared = len(stream.index_entries) if format == "mov" else stream.frames  # an edit list may leave out samples
    if declared - found > max(1, ALLOWED * declared):
        raise ValueError(f"truncated: {found} of {declared} frames")
    if format != "matroska" or stream.time_base is None:
        return
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip("\0 "))
    if tag is not None:
        length = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    elif container.duration is not None and len(container.streams) == 1:
        length = container.duration / av.time_base
    else:
        return
    first, last = int(clock.min()), int(clock.max())
    one = (
        float(1 / (stream.average_rate or 25)) if found == 1 else float((last - first) / (found - 1) * stream.time_base)
    )
    end = float(last * stream.time_base) + one
    if length - end > max(2 * one, ALLOWED * length):
        raise ValueError(f"truncated: {end:.2f} of {length:.2f} seconds")


def _decoded_order(encoded: bytes, key: np.ndarray, full: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,): the place at which a full decode shows each packet's frame; whether it does."""
    order, shown = np.zeros(len(key), np.int64), np.zeros(len(key), bool)
    nothing = np.zeros(0, np.int64)
    everything = Table(nothing, Fraction(1), 0, 0, nothing, key, np.zeros(len(key), np.int64), ~full)
    for place, (packet, _) in enumerate(_frames(encoded, everything, full)):
        order[packet], shown[packet] = place, True
    # a packet that shows nothing has the place of the one that is decoded before it
    return np.where(shown, order, np.maximum.accumulate(order)), shown


# ------------------------------------------------------------------------- MPEG-4 part 2 (ISO/IEC 14496-2)

_PICTURE = b"\x00\x00\x01\xb6"  # start code of a picture (VOP); 2 bits for its type follow: I, P, B, S (sprite)
_PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+(?:b|Build)\d+p")
_SHORT = 64  # bytes: a picture that is not coded is shorter
_PLACEHOLDER = 19  # bytes at most, as FFmpeg has it


def _mpeg4(packets: Sequence[bytes], header: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) each: order in which the pictures are shown, whether there is one, keys.

    In a packed bitstream the second picture of a packet waits for the next packet. If that is a placeholder the
    picture takes its place, else that one waits in turn.
    """
    head = header + b"".join(packets[:1])
    clock, packed = _clock_bits(head), _PACKED.search(head) is not None
    kinds, waiting = np.full(len(packets), -1), -1  # -1: no picture
    key = np.zeros(len(packets), bool)
    for i, data in enumerate(packets):
        at = data.find(_PICTURE)
        kind = data[at + 4] >> 6 if 0 <= at < len(data) - 4 else -1
        if len(data) < at + _SHORT and kind >= 0 and not _coded(data, at + 4, clock):
            kind = -1
        if waiting >= 0 and not data.startswith(b"\x00\x00\x01\xb0"):  # a new sequence drops what waits
            kinds[i], waiting = waiting, kind if len(data) > _PLACEHOLDER else -1
            continue
        kinds[i], key[i], waiting = kind, kind == 0, -1
        if packed and kind >= 0:
            after = data.find(_PICTURE, at + 4)
            if 0 <= after < len(data) - 4 and not data[after + 4] & 0x40:  # I or B
                waiting = data[after + 4] >> 6
    # B pictures are shown at once, others when the next that is no B has come
    order, place, held = np.zeros(len(packets), np.int64), 0, -1
    for i in np.flatnonzero(kinds >= 0).tolist():
        if kinds[i] != 2:
            i, held = held, i
        if i >= 0:
            order[i], place = place, place + 1
    order[held] = place
    complete = np.cumsum((kinds >= 0) & (kinds != 2)) > 1  # B pictures before that lack a reference
    return order, (kinds >= 0) & ((kinds != 2) | complete), key


def _clock_bits(data: bytes) -> int:
    """Bits of a picture's time, as the header of its video object layer says; 0 without one."""
    found = re.search(rb"\x00\x00\x01[\x20-\x2f]", data)
    if found is None:
        return 0
    bits = _Bits(data[found.end() : found.end() + 32])
    bits.take(9)  # random access, type
    version = bits.take(7) >> 3 if bits.take(1) else 1
    if bits.take(4) == 15:  # aspect ratio
        bits.take(16)
    if bits.take(1):
        bits.take(3)  # chroma, delay
        if bits.take(1):
            bits.take(79)  # buffering
    if bits.take(2) == 3 and version != 1:  # shape
        bits.take(4)
    bits.take(1)
    return max(1, (bits.take(16) - 1).bit_length())


def _coded(data: bytes, at: int, clock: int) -> bool:
    """False for a picture that only says that it repeats the one before: `vop_coded` of the header that begins at
    `at`."""
    bits = _Bits(data[at : at + 12])
    bits.take(2)
    while bits.take(1):  # whole seconds
        pass
    bits.take(2 + clock)
    return not clock or bits.take(1) == 1


class _Bits:
    """Reads big-endian bits; zeros beyond the end."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        self.left -= count
        value = self.value >> self.left if self.left >= 0 else self.value << -self.left
        return value & ((1 << count) - 1)


# ----------------------------------------------------------------------------------------------- decoding


def plan(table: Table, wanted: np.ndarray) -> np.ndarray:
    """bool (P,): the packets to decode for the frames `wanted`, int64 (n,) ascending; their number is what it costs.

    For each frame from the latest key before it, without packets that no other needs: a gap that holds a key is jumped
    over, and of streams of keys alone only what is wanted is decoded.
    """
    wanted = np.asarray(wanted, np.int64)
    last = table.packet[wanted]  # (n,)
    keys = np.flatnonzero(table.key)
    before = np.minimum(  # keys that are decoded, and shown, no later than the frame
        np.searchsorted(table.key_frame[keys], wanted, "right"), np.searchsorted(keys, last, "right")
    )
    first = np.where(before > 0, keys[before - 1], 0) if len(keys) else np.zeros_like(last)
    steps = np.zeros(len(table.key) + 1, np.int64)
    np.add.at(steps, first, 1)
    np.add.at(steps, last + 1, -1)
    needed = (np.cumsum(steps[:-1]) > 0) & ~table.spare
    needed[last] = True
    return needed


def decode(
    encoded: bytes, table: Table, wanted: np.ndarray, height: int, width: int, *, square: bool = True
) -> np.ndarray:
    """The frames `wanted` (int64 (n,), ascending, each once) of the video that `table` describes.

    With `square` the central square of each is resized to height x width, else the whole frame. The square is cut
    after resizing, whose size is rounded so that the cut is in the middle (less than a pixel from the exact place at
    the border). One thread, as the stages of data are parallel by process.

    A frame that cannot be decoded repeats the nearest earlier one that can, or the first: a broken packet loses no
    video. To find it, the video is decoded from its beginning.

    Returns:
        uint8 (n, 3, height, width).

    Raises:
        ValueError: nothing of the video can be decoded; frames that it does not have; a size below 1.
    """
    wanted = np.asarray(wanted, np.int64)
    if len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(table) or (np.diff(wanted) < 1).any()):
        raise ValueError(f"frames are wanted in ascending order, each once, of 0 to {len(table) - 1}")
    if height < 1 or width < 1:
        raise ValueError(f"frames are at least 1 x 1, not {height} x {width}")
    frames = np.empty((len(wanted), 3, height, width), np.uint8)
    picture = _Picture(height, width, square)
    for row, stop, frame in _rows(encoded, table, wanted):
        frames[row:stop] = picture(frame)
    return frames


def _rows(encoded: bytes, table: Table, wanted: np.ndarray) -> Iterator[tuple[int, int, VideoFrame]]:
    """(first, stop, frame) for runs of the n wanted, in order. Runs may come again where the first reading failed."""
    if not len(wanted):
        return
    exact = some = 0
    for row, stop, number, frame in _filled(encoded, table, wanted, plan(table, wanted)):
        exact, some = exact + (wanted[row] == number), some + 1
        yield row, stop, frame
    if exact == len(wanted):
        return
    for row, stop, _, frame in _filled(encoded, table, wanted, np.ones(len(table.key), bool)):
        some += 1
        yield row, stop, frame
    if not some:
        raise ValueError("no frame of it can be decoded")


def _filled(
    encoded: bytes, table: Table, wanted: np.ndarray, fed: np.ndarray
) -> Iterator[tuple[int, int, int, VideoFrame]]:
    """(first, stop, number, frame): frame `number` is the nearest decoded one for the wanted first to stop."""
    number_of = np.full(len(table.key), -1, np.int64)
    number_of[table.packet] = np.arange(len(table))
    rows, row, held, shown = wanted.tolist(), 0, -1, None
    for packet, frame in _frames(encoded, table, fed):
        number = int(number_of[packet])
        if number <= held:
            continue
        stop = bisect_left(rows, number)
        if stop > row:
            yield row, stop, number if shown is None else held, frame if shown is None else shown
            row = stop
        held, shown = number, frame
        if row + 1 == len(rows) and rows[row] == number:
            break
    if shown is not None and row < len(rows):
        yield row, len(rows), held, shown


def _frames(encoded: bytes, table: Table, fed: np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
    """(packet, frame) as the decoder shows them when only the packets `fed` are decoded; broken ones are left out."""
    last = int(np.flatnonzero(fed)[-1])
    needed = np.cumsum(np.concatenate([[0], ~table.spare]))  # (P + 1,)
    with _opened(encoded) as (container, stream):
        context = stream.codec_context
        context.options = dict(LIMITS)  # a stream's frames may be larger than its container says
        context.thread_type = "NONE"
        context.thread_count = 1
        before = -1
        try:
            for number, packet in enumerate(container.demux(stream)):
                if number > last:
                    break
                if not fed[number]:
                    continue
                if before >= 0 and needed[number] > needed[before + 1]:  # a jump: to a key
                    yield from _shown(context, None)
                    context.flush_buffers()
                packet.pts = packet.dts = before = number  # which the decoder hands on to the frame
                yield from _shown(context, packet)
        except av.FFmpegError:  # of reading: what has come is all
            pass
        yield from _shown(context, None)


def _shown(context: VideoCodecContext, packet: Packet | None) -> Iterator[tuple[int, VideoFrame]]:
    try:
        frames = context.decode(packet)
    except av.FFmpegError:
        return
    for frame in frames:
        if frame.pts is not None:
            yield frame.pts, frame


class _Picture:
    """VideoFrame -> uint8 (3, height, width), upright; None keeps the frame's own height or width."""

    def __init__(self, height: int | None, width: int | None, square: bool) -> None:
        self.size, self.square, self.reformatter = (height, width), square, VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        turn = _turn(frame)
        stored = frame.height, frame.width
        side = min(stored)
        seen = (side, side) if self.square else stored[::-1] if turn.swap else stored
        height, width = (own if asked is None else asked for asked, own in zip(self.size, seen, strict=True))
        cut = (width, height) if turn.swap else (height, width)
        whole = tuple(c + 2 * round((s * c / side - c) / 2) for s, c in zip(stored, cut, strict=True))
        if not self.square:
            whole = cut
        if whole[0] * whole[1] > MOST_PIXELS:
            raise ValueError(f"frames of {stored[1]} x {stored[0]} are too narrow to be resized to {height} x {width}")
        # in planes: the same values as of rgb24, in half the time
        planar = self.reformatter.reformat(frame, whole[1], whole[0], "gbrp", interpolation=_SMOOTH, threads=1)
        top, left = (whole[0] - cut[0]) // 2, (whole[1] - cut[1]) // 2
        rows, columns = slice(top, top + cut[0]), slice(left, left + cut[1])
        green, blue, red = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[rows, columns]
            for plane in planar.planes
        )
        pixels = np.stack([red, green, blue])
        if turn.swap:
            pixels = pixels.swapaxes(1, 2)
        return pixels[:, :: turn.down, :: turn.right]


class _Turn(NamedTuple):
    """How a stored frame is shown: rows and columns swapped, then each direction kept (1) or reversed (-1)."""

    swap: bool = False
    down: int = 1
    right: int = 1


def _turn(frame: VideoFrame) -> _Turn:
    """From the display matrix, by which (x, y) is shown at (a x + c y, b x + d y); to the nearest quarter turn."""
    extra = cast(Iterable[SideData], frame.side_data)  # which PyAV declares as names
    matrix = next((bytes(data) for data in extra if data.type == Type.DISPLAYMATRIX), b"")
    if len(matrix) < 36:
        return _Turn()
    a, b, _, c, d = np.frombuffer(matrix, "=i4")[:5].tolist()
    swap = abs(b) + abs(c) > abs(a) + abs(d)
    right, down = (c, b) if swap else (a, d)
    return _Turn(swap, -1 if down < 0 else 1, -1 if right < 0 else 1)


# -------------------------------------------------------------------------------------------- frame cache


def all_key(
    encoded: bytes,
    table: Table,
    height: int | None,
    width: int | None,
    *,
    square: bool,
    quality: int,
    raw: bool = False,
) -> bytes:
    """The video decoded once, resized as `decode` does, and written so that each frame can be decoded alone.

    Args:
        height, width: None keeps the video's own: with `square` the shorter side.
        quality: 1 (best) to 31, the scale of the quantizer, of Motion JPEG with halved chroma.
        raw: uint8 RGB as it is, in place of JPEG.

    Returns:
        A file of as many frames, upright, times to the millisecond; broken ones repeated as `decode` does. Matroska;
        if `raw` NUT, as Matroska is not written with RGB, and lossless codecs take longer to decode than JPEG.

    Raises:
        ValueError: as `decode`; a quality out of range.
    """
    if not 1 <= quality <= 31:
        raise ValueError(f"quality is from 1 (best) to 31, got {quality}")
    count = np.arange(len(table))
    milliseconds = np.round((table.pts - table.pts[0]) * float(table.time_base * 1000)).astype(np.int64)
    milliseconds = np.maximum.accumulate(milliseconds - count) + count  # no two the same
    picture = _Picture(height, width, square)
    file = io.BytesIO()
    with av.open(file, "w", format="nut" if raw else "matroska") as output:
        stream: VideoStream | None = None
        for row, stop, frame in _runs_once(encoded, table):
            image = VideoFrame.from_ndarray(np.ascontiguousarray(picture(frame).transpose(1, 2, 0)))
            if stream is None:
                quantizer = {} if raw else {"qmin": str(quality), "qmax": str(quality)}
                stream = cast(VideoStream, output.add_stream("rawvideo" if raw else "mjpeg", 1000, options=quantizer))
                stream.width, stream.height = image.width, image.height
                stream.pix_fmt = "rgb24" if raw else "yuvj420p"
                stream.codec_context.time_base, stream.codec_context.thread_count = Fraction(1, 1000), 1
            if not raw:
                image = picture.reformatter.reformat(image, format="yuvj420p", interpolation=_SMOOTH, threads=1)
            for number in range(row, stop):
                image.pts, image.time_base = int(milliseconds[number]), Fraction(1, 1000)
                output.mux(stream.encode(image))
        if stream is not None:
            output.mux(stream.encode(None))
    return file.getvalue()


def _runs_once(encoded: bytes, table: Table) -> Iterator[tuple[int, int, VideoFrame]]:
    """(first, stop, frame): all frames of the video in order, each once."""
    some = False
    everything = np.ones(len(table.key), bool)
    for row, stop, _, frame in _filled(encoded, table, np.arange(len(table)), everything):
        some = True
        yield row, stop, frame
    if not some:
        raise ValueError("no frame of it can be decoded")
