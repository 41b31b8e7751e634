"""A run's folder on any of pyarrow's filesystems, and checkpoints that are written whole or not at all.

Storage that is away for a while (an NFS server restarts, a bucket is throttled or stalls) is waited for; what waiting
does not mend (a full disk, refused keys, a file in a folder's place) is a clear error at once.
"""

import copy
import errno
import hashlib
import io
import json
import logging
import os
import random
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

import pyarrow.fs
import torch

from pipelines.errors import UserError

PATIENCE = 120.0
"""Seconds for which an operation that has failed is tried again, from its first failure on (ours: NFS servers restart,
and stores that throttle recover, in less). What a single attempt takes comes on top."""
PAUSES = (0.5, 10.0)
"""Seconds between attempts: the first pause and the longest, each twice the one before, less a random part up to half:
many workers do not come back at once (ours)."""
OBJECT_STORES = {"s3", "gcs", "abfs"}
"""`type_name` of filesystems where an upload appears whole, at its end, and a move is a copy."""
PASSING = {
    value
    for value, name in errno.errorcode.items()
    if re.fullmatch(
        "EIO|ESTALE|ETIMEDOUT|EAGAIN|EINTR|EBUSY|ENOLCK|ENODEV|EPIPE|ENOTCONN|ECONN.*|EHOST.*|ENET.*|EREMOTEIO", name
    )
}
"""Of a disk or a network that may come back."""
# Object stores' errors have no number. Those that are none of these may pass: throttling, 5xx, timeouts, no network.
FULL = re.compile("StorageFull|InsufficientStorage|QuotaExceeded")
REFUSED = re.compile("ACCESS_DENIED|ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIAL|NOT_AUTHORIZED|UNAUTHENTICATED|ExpiredToken")
WRONG = re.compile(
    r"HTTP status (?!408|429)[34]\d\d|NO_SUCH_BUCKET|INVALID_|MALFORMED|MISSING_|not found|Unable to load"
)
KEYS = re.compile(r"://[^\s?@]*:[^\s?]*@|://\S*[?&]([^\s=&]*(secret|token|passw|signature|key)[^\s=&]*|sig)=", re.I)
"""In a URI: a password before its host (an AWS key may have slashes), or a secret in its query."""
STEP = re.compile(r"step-(\d{8}|[1-9]\d{8,})\.(?:pt|json)")

log = logging.getLogger(__name__)
dice = random.SystemRandom()  # the process's own generator is left alone
T = TypeVar("T")


class Unreachable(UserError):
    """Storage that can't be read or written, `PATIENCE` or not."""


class Broken(UserError):
    """A checkpoint that is not what was saved, or no checkpoint."""


def persistent(what: str, attempt: Callable[[], T], *, absent: bool = False, end: str = "") -> T:
    """What `attempt` returns, tried again while storage is away.

    Args:
        what: "write FILE", for messages.
        attempt: may be called again after any OSError.
        absent: a file or folder that is not there is waited for too.
        end: of the remedy.

    Raises:
        Unreachable: still after `PATIENCE`, or at once where waiting is no help.
        FileNotFoundError: unless `absent`.
    """
    begun, pause = None, PAUSES[0]
    while True:
        try:
            result = attempt()
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not absent:
                raise
            cause = " ".join(str(error).split())[:300]
            if (remedy := hopeless(error)) is not None:
                raise Unreachable(f"cannot {what} ({cause}): {remedy}{end}") from error
            now = monotonic()
            if begun is None:
                begun = now
                log.warning("cannot %s (%s): trying again for up to %g seconds", what, cause, PATIENCE)
            if now + pause - begun > PATIENCE:
                mounted = error.errno is not None  # object stores' errors have no number
                look = "that the storage is mounted, on all nodes" if mounted else "address, network and keys"
                raise Unreachable(f"cannot {what} ({cause}; tried for {PATIENCE:g} s): check {look}{end}") from error
            sleep(pause * dice.uniform(0.5, 1.0))
            pause = min(2 * pause, PAUSES[1])
        else:
            if begun is not None:
                log.warning("storage is back after %.0f seconds: %s", monotonic() - begun, what)
            return result


def hopeless(error: OSError) -> str | None:
    """The remedy, where waiting does not mend it."""
    told = str(error)
    told = told[told.find("AWS Error") :] if "AWS Error" in told else told  # without the file's name
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or FULL.search(told):
        return "the storage is full: free space there"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) or REFUSED.search(told):
        return "get the right to it (for an object store, check the keys)"
    if error.errno is None:
        return "check the address" if WRONG.search(told) else None
    return None if error.errno in PASSING or error.errno == errno.ENOENT else "check the path"


def refuse_keys(uri: str) -> None:
    """Raises UserError where there are some in it."""
    if KEYS.search(uri):
        shown = re.sub("://.*@", "://...@", uri.partition("?")[0])
        raise UserError(
            f"{shown} has keys in it, which would be written into the run's files: give them in the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or by the machine's role"
        )


def open_folder(uri: str) -> "Folder":
    """A local path (made absolute) or a URI; `s3://BUCKET/PATH?endpoint_override=HOST:PORT&scheme=http&region=NAME` for
    an S3-compatible store, whose bucket must be there.

    Raises:
        UserError: no path; a URI that pyarrow does not know, or with keys in it: it is written into the run's files.
    """
    if "://" not in uri:
        try:
            path = str(Path(uri).expanduser().resolve())
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{uri!r} can be no folder ({error}): give another path") from error
        return Folder(pyarrow.fs.LocalFileSystem(), path, path)
    address, mark, query = uri.partition("?")
    refuse_keys(uri)
    shown = re.sub("://.*@", "://...@", address)
    try:
        filesystem, path = persistent(f"open {shown}", lambda: pyarrow.fs.FileSystem.from_uri(uri))
    except (ValueError, OSError) as error:
        cause = "" if shown != address else f" ({str(error).replace(uri, shown)})"
        raise UserError(f"{shown} cannot be opened{cause}: give a path, or a URI as s3://") from error
    if filesystem.type_name == "s3":
        # With growing pauses between three attempts, as any process has it that gets a folder from another; from_uri's
        # own (pyarrow 26) tries 31 times without, which takes 100 seconds where a server stalls.
        filesystem = copy.copy(filesystem)
    return Folder(filesystem, path.rstrip("/") or path, address.rstrip("/") + mark + query)


@dataclass(frozen=True)
class Folder:
    """Its operations wait for storage that is away, and raise UserError where that is no help (`persistent`)."""

    filesystem: pyarrow.fs.FileSystem
    path: str
    """Within the filesystem."""
    uri: str
    """From which `open_folder` makes it again; for a local folder its path."""

    def __truediv__(self, name: str) -> "Folder":
        query = self.uri.removeprefix(self.address)
        return Folder(self.filesystem, f"{self.path}/{name}", f"{self.address}/{name}{query}")

    @property
    def parent(self) -> "Folder":
        query = self.uri.removeprefix(self.address)
        return Folder(self.filesystem, self.path.rpartition("/")[0], self.address.rpartition("/")[0] + query)

    @property
    def address(self) -> str:
        """`uri` without its query."""
        return self.uri.partition("?")[0] if "://" in self.uri else self.uri

    @property
    def local(self) -> Path | None:
        """The path, where the folder is on this machine's disk."""
        return Path(self.path) if isinstance(self.filesystem, pyarrow.fs.LocalFileSystem) else None

    def names(self) -> list[str]:
        """Files and folders in it, sorted; none where it does not exist."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        found = persistent(f"list {self.address}", lambda: self.filesystem.get_file_info(selector))
        return sorted(info.base_name for info in found)

    def exists(self, name: str) -> bool:
        return persistent(f"reach {self.address}/{name}", lambda: self._there(name))

    def wait_for(self, name: str) -> None:
        """Returns once `name` is there: where a process starts while a mount is away, or a node sees files late.

        Raises:
            UserError: not after `PATIENCE`.
        """

        def look() -> None:
            if not self._there(name):
                raise FileNotFoundError(errno.ENOENT, "it is not there")

        persistent(f"find {self.address}/{name}", look, absent=True)

    def _there(self, name: str) -> bool:
        return self.filesystem.get_file_info(f"{self.path}/{name}").type != pyarrow.fs.FileType.NotFound

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError too."""

        def get() -> bytes:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                return stream.read()

        return persistent(f"read {self.address}/{name}", get)

    def write(self, name: str, content: bytes, *, known: bool = False) -> None:
        """Whole or not at all, also where the machine loses power: under a temporary name, synchronized with the disk,
        then moved. On an object store under its name, where it appears when all of it has arrived; what a failed upload
        has sent stays there unseen, and a rule of the bucket (abort incomplete multipart uploads) removes it.

        Args:
            known: what this folder lies in is there: where it is missing, a mount is away and is waited for, and no
                other is made in its place.

        Raises:
            UserError: the storage can't be written, or is full.
        """
        target = f"{self.path}/{name}"

        def upload(path: str) -> None:
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(content)

        def put() -> None:
            if self.filesystem.type_name in OBJECT_STORES:
                return upload(target)
            temporary = f"{self.path}/.{name}.{uuid.uuid4().hex[:8]}.tmp"  # not that of another writer
            self.filesystem.create_dir(self.path, recursive=not known)
            try:
                upload(temporary)
                if self.local:
                    synchronize(temporary)
                self.filesystem.move(temporary, target)
                if self.local:
                    synchronize(self.path)
            except BaseException:
                with suppress(OSError):
                    self.filesystem.delete_file(temporary)
                raise

        end = " or choose another --run.storage; what was written before is whole, and --run.resume goes on from it"
        persistent(f"write {self.address}/{name}", put, absent=True, end=end)

    def delete(self, name: str) -> None:
        """If it is there."""
        with suppress(FileNotFoundError):
            persistent(f"delete {self.address}/{name}", lambda: self.filesystem.delete_file(f"{self.path}/{name}"))


def synchronize(path: str) -> None:
    """Returns when the disk has the file, or the folder's names. Some mounted stores can't tell."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


def whole(names: list[str]) -> list[int]:
    """Steps of which there are both files."""
    found = {int(match[1]) for name in names if (match := STEP.fullmatch(name))}
    return sorted(step for step in found if {f"step-{step:08d}.pt", f"step-{step:08d}.json"} <= set(names))


class Checkpoints:
    """`step-<n>.pt` and, written after it, `step-<n>.json` with its SHA-256: a checkpoint without it does not count.

    One process writes. Whatever fails, and wherever it is killed, one that was good before is there and good after.

    Args:
        folder: the run's `checkpoints`.
        keep: how many are kept, the newest ones; at least 1.
    """

    def __init__(self, folder: Folder, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep
        self._known = False  # to be there: the folder

    def steps(self) -> list[int]:
        return whole(self._names())

    def _names(self) -> list[str]:
        names = self.folder.names()
        self._known = self._known or bool(names)
        return names

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Then older ones than `keep`, and what a killed writer left, are deleted; not those of later steps, which the
        run did not begin from, and will write again.

        A good one of this step is left as it is: it is the same run's, and there may be no other.

        Args:
            state: tensors, numbers, strings, lists and dicts of these.

        Raises:
            UserError: it can't be written. What can't be deleted is no error.
        """
        names = self._names()
        for name in names:
            if name.startswith(".step-") and name.endswith(".tmp"):  # before, as the disk may be full of them
                self._prune(name)
        if step in whole(names):
            try:
                self._content(step)
                return
            except (Broken, FileNotFoundError):
                self.folder.delete(f"step-{step:08d}.json")
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        manifest = {"step": step, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self.folder.write(f"step-{step:08d}.pt", content, known=self._known)
        self._known = True
        self.folder.write(f"step-{step:08d}.json", json.dumps(manifest).encode(), known=True)
        oldest = [step, *(other for other in reversed(whole(names)) if other < step)][: self.keep][-1]
        for name in names:  # sorted: the manifest before what it vouches for
            if (match := STEP.fullmatch(name)) and int(match[1]) < oldest:
                self._prune(name)

    def _prune(self, name: str) -> None:
        try:
            self.folder.delete(name)
        except UserError as error:
            log.warning("%s; tried again at the next checkpoint", error)

    def _content(self, step: int) -> bytes:
        """Raises Broken: other bytes than were written."""
        try:
            manifest = json.loads(self.folder.read(f"step-{step:08d}.json"))
            digest, size = manifest["sha256"], manifest["bytes"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Broken(f"checkpoint step-{step:08d}.json is broken") from error
        content = self.folder.read(f"step-{step:08d}.pt")
        if hashlib.sha256(content).hexdigest() != digest:
            raise Broken(
                f"checkpoint step-{step:08d}.pt is broken: {len(content)} bytes of {size}, "
                "or other ones than were written"
            )
        return content

    def load(self, step: int, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Read with `weights_only=True`: no code in it is ever run.

        Raises:
            Broken: the files are broken, or hold what could run code.
            UserError: the storage can't be read.
            FileNotFoundError: no such checkpoint.
        """
        content = self._content(step)
        try:
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a file that was made to do harm may raise any
            raise Broken(f"checkpoint step-{step:08d}.pt holds other things than tensors and numbers") from error
        if not isinstance(state, dict):
            raise Broken(f"checkpoint step-{step:08d}.pt holds other things than a run's state")
        return state

    def newest(self, device: torch.device | str = "cpu") -> tuple[dict[str, Any] | None, list[str]]:
        """The newest good checkpoint, or None; and a line for each newer one that is broken.

        Raises:
            UserError: the storage can't be read: what lies there may be good.
        """
        broken: list[str] = []
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(step, device), broken
            except Broken as error:
                broken.append(f"{error}; the one before is used")
            except FileNotFoundError:  # whoever writes has deleted it meanwhile, and written a newer one
                continue
        return (None, broken) if self.steps() == steps else self.newest(device)
