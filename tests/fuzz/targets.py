"""What a changed input is given to: the project's own entry points. Each returns how it ended, or raises."""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
from mutation import STATE

from pipelines.clips import UniformClips
from pipelines.errors import UserError
from pipelines.evaluate import defaults
from pipelines.feed import Decode, Piece, inspection_of
from pipelines.frames import stored
from pipelines.sources import Data, Media, Source, open_source
from pipelines.storage import Checkpoints, open_folder

ACCEPTED, BROKEN, REFUSED = "accepted", "broken rows", "refused"


def read(name: str, content: bytes, folder: Path) -> str:
    """An image, a video, a tar or a Parquet file, looked through as before a run."""
    media: Media = "image"
    path = folder / "data" / name
    if name.endswith(".parquet"):
        media = name.split("-")[0]  # type: ignore[assignment]
    elif not name.endswith(".tar"):
        path = folder / "data" / "class" / name
        media = "image" if name.endswith((".png", ".jpg", ".webp", ".gif", ".bmp", ".tif")) else "video"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    data = Data(media=media, size=24, pose="pose" if media == "take" else "")
    source = open_source(str(folder / "data" if "class" in path.parts else path), data)
    pieces = [Piece(number, np.arange(group.rows)) for number, group in enumerate(source.groups)]
    bad = Decode.broken(inspection_of(source, data, True, {})(pieces))
    if media == "video":
        further(source, data, pieces)
    if any(not one.reason or not one.where for one in bad):
        raise AssertionError(f"a broken row without a reason: {bad}")
    return BROKEN if bad else ACCEPTED


def further(source: Source, data: Data, pieces: list[Piece]) -> None:
    """What becomes of a video: clips for evaluation, and the frame cache."""
    UniformClips(source, data, 2, 2, 1, 24)(pieces)
    for piece in pieces:
        for encoded in source.read(source.groups[piece.group], piece.rows).files:
            stored(encoded, size=24, width=None, raw=False, quality=3)


def checkpoint(name: str, content: bytes, folder: Path) -> str:
    """A file of a run's folder, beside a good checkpoint that must stay found."""
    if name.endswith("recipe.json"):
        (folder / "runs").mkdir()
        (folder / "runs" / "recipe.json").write_bytes(content)
        defaults(str(folder / "runs"))
        return ACCEPTED
    checkpoints = Checkpoints(open_folder(str(folder)) / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, {**STATE, "step": step})
    path, manifest = (folder / "checkpoints" / f"step-00000002.{suffix}" for suffix in ("pt", "json"))
    if name == "manifest.json":
        manifest.write_bytes(content)
    else:
        path.write_bytes(content)
    if name.endswith("signed.pt") and name != "unsigned.pt":
        told = {"step": 2, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest.write_text(json.dumps(told))
    state, broken = checkpoints.newest()
    if state is None or (broken and state["step"] != 1):
        raise AssertionError(f"the good checkpoint is not found: {broken}")
    if broken:
        raise UserError(broken[0])
    return ACCEPTED


@cache
def seeds() -> dict[str, bytes]:
    """What command lines find in their folder."""
    from mutation import checkpoints, parquet

    return {"train.parquet": parquet()["image-plain.parquet"], "recipe.json": checkpoints()["demo.recipe.json"]}


class Reached(BaseException):
    """A command line was understood, and what it asks for would begin."""


HEAVY = ["ray.init", "pipelines.datasets.write", "pipelines.frames.write_frames", "pipelines.bench.feed"]
HEAVY += ["pipelines.bench.step", "pipelines.bench.recipe_step", "pipelines.bench_video.video"]
HEAVY += ["pipelines.bench_neighbours.search", "urllib.request.urlopen"]


@contextlib.contextmanager
def stopped_before_ray() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in HEAVY:
            stack.enter_context(mock.patch(name, side_effect=Reached))
        yield


def command_line(name: str, content: bytes, folder: Path) -> str:
    """`python -m PACKAGE ...` in this process, up to where Ray would start."""
    import pipelines.__main__
    import tuning.__main__

    (folder / "train.parquet").write_bytes(seeds()["train.parquet"])
    (folder / "runs" / "there").mkdir(parents=True)
    (folder / "runs" / "there" / "recipe.json").write_bytes(seeds()["recipe.json"])
    package, *arguments = json.loads(content)
    main = {"pipelines": pipelines.__main__.main, "tuning": tuning.__main__.main}.get(package, pipelines.__main__.main)
    said = io.StringIO()
    try:
        with stopped_before_ray(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(arguments)
    except Reached:
        return ACCEPTED
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if code and not said.getvalue().strip():
        raise AssertionError(f"exit code {code} without a word")
    if code:
        raise UserError(said.getvalue())
    return ACCEPTED


TARGETS = {
    "image": read,
    "video": read,
    "parquet": read,
    "checkpoint": checkpoint,
    "command line": command_line,
}
