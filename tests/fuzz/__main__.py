"""Changed images, videos, Parquet files, checkpoints and command lines against the project's own readers.

    python tests/fuzz --cases 2000 --seed 0
    python tests/fuzz --repeat runs/fuzz/image-0.17-plain.png

An input may be accepted, have broken rows, or be refused in words. Anything else is a failure, whose input is kept:
another exception, a crash, no end, much memory, a file outside its folder, a program started. Exit code 1 for those.
"""

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import tyro
from child import FAILURE, Child
from mutation import KINDS, Seeds, mutated
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from targets import ACCEPTED, BROKEN, REFUSED, TARGETS

console = Console()
PRELOAD = ["ray", "pipelines.evaluate", "pipelines.bench", "pipelines.bench_video", "pipelines.bench_neighbours"]
PRELOAD += ["pipelines.datasets", "pipelines.frames", "pipelines.__main__", "tuning.__main__", "tuning.sweep"]
"""Modules that children find imported; Python 3.11's fork server knows installed ones alone."""


@dataclass(frozen=True)
class Options:
    cases: int = 2000
    """Inputs, of all kinds together."""
    seed: int = 0
    keep: Path = Path("runs/fuzz")
    """Folder for the inputs that fail, and what happened."""
    kinds: tuple[str, ...] = tuple(KINDS)
    repeat: Path | None = None
    """A kept input, to be tried again."""
    seconds: float = 20.0
    """Of computing for an input, and tenfold by the clock."""
    memory: int = 1536
    """MiB for an input."""


def made(case: int, seed: int, seeds: dict[str, Seeds], kinds: tuple[str, ...]) -> tuple[str, str, bytes]:
    """Input number `case` -> (kind, the seed's name, content): a function of its arguments."""
    shares = [kind for kind in kinds for _ in range(KINDS[kind][0])]
    kind, random = shares[case % len(shares)], Random(f"{seed}/{case}")
    name = random.choice(sorted(seeds[kind]))
    return kind, name, mutated(name, seeds[kind][name], seeds[kind], random)


def fuzz(options: Options) -> Counter[tuple[str, str]]:
    """Tries all -> the number of each (kind, outcome)."""
    counts: Counter[tuple[str, str]] = Counter()
    seeds = {kind: KINDS[kind][1]() for kind in options.kinds}
    with (
        tempfile.TemporaryDirectory() as scratch,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress,
    ):
        child = Child(Path(scratch).resolve(), options.seconds, options.memory, PRELOAD)
        try:
            for case in progress.track(range(options.cases), description="trying"):
                kind, name, content = made(case, options.seed, seeds, options.kinds)
                outcome = child.attempt(TARGETS[kind], name, content)
                counts[kind, outcome.ended] += 1
                if outcome.ended == FAILURE:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    kept = options.keep / f"{kind.replace(' ', '_')}-{options.seed}.{case}-{name}"
                    kept.write_bytes(content)
                    kept.with_name(f"{kept.name}.txt").write_text(outcome.why)
                    progress.console.print(f"[red]{kept}[/]: {outcome.why.splitlines()[0]}", highlight=False)
        finally:
            child.stop()
    return counts


def repeat(options: Options, path: Path) -> int:
    kind, _, name = path.name.split("-", 2)
    with tempfile.TemporaryDirectory() as scratch:
        child = Child(Path(scratch).resolve(), options.seconds, options.memory, PRELOAD)
        outcome = child.attempt(TARGETS[kind.replace("_", " ")], name, path.read_bytes())
        child.stop()
    console.print(f"{outcome.ended}: {outcome.why}", highlight=False, markup=False)
    return int(outcome.ended == FAILURE)


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    if options.repeat is not None:
        return repeat(options, options.repeat)
    counts = fuzz(options)
    table = Table("kind", *(ended := (ACCEPTED, BROKEN, REFUSED, FAILURE)), "all", title=f"seed {options.seed}")
    for kind in (*options.kinds, "all"):
        row = [sum(n for (of, how), n in counts.items() if kind in (of, "all") and how == end) for end in ended]
        table.add_row(kind, *map(str, row), str(sum(row)))
    console.print(table)
    return int(any(how == FAILURE for _, how in counts))


if __name__ == "__main__":
    sys.exit(main())
