"""A run's folder on any of pyarrow's filesystems, and checkpoints that are written whole or not at all."""

import hashlib
import io
import json
import pickle
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch

from pipelines.errors import UserError


def open_folder(uri: str) -> "Folder":
    """A local path (made absolute) or a URI.

    Raises:
        UserError: a URI that pyarrow does not know.
    """
    if "://" not in uri:
        path = str(Path(uri).expanduser().resolve())
        return Folder(pyarrow.fs.LocalFileSystem(), path, path)
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    except (ValueError, OSError) as error:
        raise UserError(f"{uri} cannot be opened ({error}): give a path, or a URI as s3://") from error
    return Folder(filesystem, path, uri.rstrip("/"))


@dataclass(frozen=True)
class Folder:
    filesystem: pyarrow.fs.FileSystem
    path: str
    """Within the filesystem."""
    uri: str
    """From which `open_folder` makes it again; for a local folder its path."""

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.filesystem, f"{self.path}/{name}", f"{self.uri}/{name}")

    @property
    def parent(self) -> "Folder":
        return Folder(self.filesystem, self.path.rpartition("/")[0], self.uri.rpartition("/")[0])

    @property
    def local(self) -> Path | None:
        """The path, where the folder is on this machine's disk."""
        return Path(self.path) if isinstance(self.filesystem, pyarrow.fs.LocalFileSystem) else None

    def names(self) -> list[str]:
        """Files and folders in it, sorted; none where it does not exist."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def exists(self, name: str) -> bool:
        """Raises UserError where the storage can't be reached."""
        try:
            kind = self.filesystem.get_file_info(f"{self.path}/{name}").type
        except OSError as error:
            raise UserError(
                f"cannot reach {self.uri} ({error}): check the address, the network and the keys"
            ) from error
        return kind != pyarrow.fs.FileType.NotFound

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all: under a temporary name first.

        Raises:
            UserError: the storage can't be written, or is full.
        """
        part = f".{name}.{uuid.uuid4().hex[:8]}.tmp"  # not that of another writer
        target, temporary = f"{self.path}/{name}", f"{self.path}/{part}"
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            with self.filesystem.open_output_stream(temporary) as stream:
                stream.write(content)
            self.filesystem.move(temporary, target)
        except OSError as error:
            self.delete(part)
            raise UserError(
                f"cannot write {target} ({error}): free space there or choose another --run.storage; "
                "what was written before is whole, and --run.resume goes on from it"
            ) from error

    def delete(self, name: str) -> None:
        try:
            self.filesystem.delete_file(f"{self.path}/{name}")
        except OSError:
            return


class Checkpoints:
    """`step-<n>.pt` and, written after it, `step-<n>.json` with its SHA-256: a checkpoint without it does not count.

    Args:
        folder: the run's `checkpoints`.
        keep: how many are kept, the newest ones; at least 1.
    """

    def __init__(self, folder: Folder, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        names = set(self.folder.names())
        whole = [n for n in names if n.startswith("step-") and n.endswith(".json") and n[:-5] + ".pt" in names]
        return sorted(int(name[5:-5]) for name in whole)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """`state`: tensors, numbers, strings, lists and dicts of these. Then older ones than `keep` are deleted."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        manifest = {"step": step, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self.folder.delete(f"step-{step:08d}.json")
        self.folder.write(f"step-{step:08d}.pt", content)
        self.folder.write(f"step-{step:08d}.json", json.dumps(manifest).encode())
        for old in self.steps()[: -self.keep]:
            self.folder.delete(f"step-{old:08d}.json")
            self.folder.delete(f"step-{old:08d}.pt")

    def load(self, step: int, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Read with `weights_only=True`: no code in it is ever run.

        Raises:
            UserError: the file is broken, or holds what could run code.
        """
        manifest = json.loads(self.folder.read(f"step-{step:08d}.json"))
        content = self.folder.read(f"step-{step:08d}.pt")
        if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
            raise UserError(
                f"checkpoint step-{step:08d}.pt is broken: {len(content)} bytes of {manifest['bytes']}, "
                "or other ones than were written"
            )
        try:
            return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise UserError(f"checkpoint step-{step:08d}.pt holds other things than tensors and numbers") from error

    def newest(self, device: torch.device | str = "cpu") -> tuple[dict[str, Any] | None, list[str]]:
        """The newest good checkpoint, or None; and a line for each newer one that is broken."""
        broken: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.load(step, device), broken
            except (UserError, ValueError, OSError) as error:
                broken.append(f"{error}; the one before is used")
        return None, broken
