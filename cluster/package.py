"""What of a working directory goes to a cluster: its code, and neither data, environments, runs nor secrets.

Ray packs a directory by its own `.gitignore` rule, while files in it may change. Here the files are chosen first and
then read once, into a zip file, which Ray takes as a working directory too: what is shown is what is sent, a file that
changes meanwhile (a log) breaks nothing, and the same files give the same bytes, which are not sent twice.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pathspec import GitIgnoreSpec
from rich.table import Column, Table
from rich.text import Text

from cluster import UserError

LIMIT = 50_000_000
"""Bytes of all files together, before they are compressed."""
LARGEST = 10
"""Files that a refusal names."""

NEVER = """
.git .hg .svn
.venv venv .tox .nox node_modules
__pycache__ .*_cache .cache .hypothesis .ipynb_checkpoints *.egg-info *.pyc .idea .vscode .DS_Store
/runs/ /data/ /build/ /dist/ checkpoints/ events.out.tfevents.*
*.log *.out *.tmp *.swp core.[0-9]*
*.parquet *.arrow *.feather *.h5 *.hdf5 *.npy *.npz *.pkl *.pickle *.lmdb *.tfrecord *.db *.sqlite
*.tar *.tgz *.gz *.bz2 *.xz *.zst *.zip *.7z *.whl
*.jpg *.jpeg *.png *.gif *.webp *.bmp *.tif *.tiff
*.mp4 *.m4v *.avi *.webm *.mkv *.mov *.mpg *.mpeg *.wav *.mp3 *.flac
*.pt *.pth *.ckpt *.safetensors *.onnx
.env* *.env *.pem *.key *.p12 *.pfx *.jks *.keystore *.kdbx *.token
id_rsa* id_dsa* id_ecdsa* id_ed25519* credentials* *credentials.json kubeconfig*
token tokens token.txt token.json tokens.txt tokens.json *_token *_token.txt *-token *-token.txt auth_token*
secret secrets secret.* secrets.* !secret.py !secrets.py service[-_]account*.json
.ssh .aws .azure .gcloud .gnupg .kube .docker .ray .netrc .pypirc .npmrc .git-credentials
"""
"""Never sent, whatever an ignore file says, in whose language it is written; upper and lower case are alike."""
EXCLUDED = GitIgnoreSpec.from_lines(NEVER.split())
MARKERS = ("pyvenv.cfg", "conda-meta", "run.json")
"""A folder that holds one of these is a virtual environment, a conda environment or a run."""
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


@dataclass(frozen=True)
class Package:
    folder: Path
    sizes: dict[str, int]
    """Bytes of each file, by its path under `folder`, in the order of paths."""
    links: tuple[str, ...]
    """Symbolic links, which are not followed: they may lead out of the folder, or to what is excluded."""

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    def table(self, *, each: bool = False) -> Table:
        """Number and size of the files by top folder, or each file."""
        table = Table(
            Column("sent", "total"),
            Column("files", f"{len(self.sizes):,}", justify="right"),
            Column("kB", f"{self.size / 1e3:,.1f}", justify="right"),
            title=f"from {self.folder}",
            show_footer=True,
        )
        files, sizes = Counter[str](), Counter[str]()
        for name, size in self.sizes.items():
            top, slash, _ = name.partition("/")
            files[name if each else top + slash] += 1
            sizes[name if each else top + slash] += size
        for name, count in files.items():
            table.add_row(Text(name), f"{count:,}", f"{sizes[name] / 1e3:,.1f}")
        return table

    def write(self, target: Path, token: str = "") -> Path:
        """The zip file. The same files give the same bytes.

        Raises:
            UserError: a file holds `token` or a private key, or can't be read.
        """
        with ZipFile(target, "w", ZIP_DEFLATED) as archive:
            for name in self.sizes:
                path = self.folder / name
                try:
                    content = path.read_bytes()
                    executable = path.stat().st_mode & stat.S_IXUSR
                except OSError as error:
                    raise UserError(
                        f"cannot send {path} ({error.strerror}): mend it, or exclude it by .gitignore"
                    ) from None
                if token and token.encode() in content:
                    raise UserError(f"{path} holds the cluster's token: move it elsewhere, or exclude it by .gitignore")
                if PRIVATE_KEY.search(content):
                    raise UserError(f"{path} holds a private key: move it elsewhere, or exclude it by .gitignore")
                entry = ZipInfo(name)
                entry.external_attr = (0o755 if executable else 0o644) << 16
                archive.writestr(entry, content, ZIP_DEFLATED)
        return target


def found(folder: Path) -> Package:
    """What of `folder` would be sent.

    `.gitignore` and `.rayignore` hold as git reads them: the nearest one that has a word on a path decides. Those above
    `folder` and git's own settings are not read (nor does Ray).

    Raises:
        UserError: no such folder, nothing in it to send, more than LIMIT bytes, a name that a zip file can't hold.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder} is not a folder")
    links: list[str] = []
    package = Package(folder, dict(_files(folder, "", [], links)), tuple(links))
    if not package.sizes:
        raise UserError(f"--working-dir {folder} has nothing to send: give the project's folder")
    for name in package.sizes:
        if "\\" in name or not name.isprintable():
            raise UserError(f"{name!a} cannot be sent: rename it, or exclude it by .gitignore")
    if package.size > LIMIT:
        largest = sorted(package.sizes.items(), key=lambda item: -item[1])[:LARGEST]
        raise UserError(
            f"{folder} has {package.size / 1e6:,.1f} MB to send, more than {LIMIT / 1e6:g} MB: exclude what a job does "
            "not need by .gitignore or .rayignore, and keep data on a shared volume. The largest:\n"
            + "\n".join(f"  {size / 1e6:9,.1f} MB  {name}" for name, size in largest)
        )
    return package


def _files(
    folder: Path, prefix: str, rules: list[tuple[int, GitIgnoreSpec]], links: list[str]
) -> Iterator[tuple[str, int]]:
    """Path and size of each file to send. `rules`: each ignore file, and where a path relative to it begins."""
    rules = rules + [
        (len(prefix), GitIgnoreSpec.from_lines(file.read_text(errors="replace").splitlines()))
        for file in (folder / ".gitignore", folder / ".rayignore")
        if file.is_file()
    ]
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read {folder} ({error.strerror}): exclude it by .gitignore") from None
    for entry in entries:
        inner = entry.is_dir(follow_symlinks=False)
        name = f"{prefix}{entry.name}{'/' * inner}"
        if EXCLUDED.match_file(name.lower()) or _ignored(name, rules):
            continue
        if entry.is_symlink():
            links.append(name)
        elif inner:
            if not any(os.path.lexists(f"{entry.path}/{marker}") for marker in MARKERS):
                yield from _files(Path(entry.path), name, rules, links)
        elif entry.is_file(follow_symlinks=False):  # neither socket nor pipe
            yield name, entry.stat(follow_symlinks=False).st_size


def _ignored(name: str, rules: list[tuple[int, GitIgnoreSpec]]) -> bool:
    for start, spec in reversed(rules):
        decided = spec.check_file(name[start:]).include
        if decided is not None:
            return decided
    return False
