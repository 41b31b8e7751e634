"""What the driver shows of the workers: an actor between them, and a progress bar.

Imports little: the actor's process has nothing else to load.
"""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


class Board:
    """An actor between workers and driver: what rank 0 last said, and the first failure that needs the user."""

    def __init__(self) -> None:
        self._now: dict[str, Any] = {}
        self._failure: str | None = None
        self._crashes: set[str] = set()
        self._furthest = 0
        self._nodes: set[str] = set()
        self._why: str | None = None
        self._left = False
        self._lines: list[str] = []
        self._epochs: list[dict[str, Any]] = []

    def say(self, now: dict[str, Any]) -> None:
        """`step`, and whatever else is new: `loss` and `images_per_second`, or what an epoch's end has shown."""
        self._now = self._now | now
        if now["step"] > self._furthest:
            self._furthest = now["step"]
            self._crashes.clear()
        if "epoch" in now:
            self._epochs.append(self._now)

    def note(self, line: str) -> None:
        self._lines.append(line)

    def read(self) -> tuple[dict[str, Any], list[str]]:
        lines, self._lines = self._lines, []
        return self._now, lines

    def epochs(self) -> list[dict[str, Any]]:
        """What was known at the end of each epoch since the last call."""
        epochs, self._epochs = self._epochs, []
        return epochs

    def furthest(self) -> int:
        """The last step that was ever told of."""
        return self._furthest

    def on(self, node: str) -> None:
        """A worker is on that node."""
        self._nodes.add(node)

    def nodes(self) -> set[str]:
        """Those of the workers."""
        return self._nodes

    def ask(self, why: str) -> None:
        """The workers are to save and leave, for others to go on."""
        self._why = why

    def asked(self) -> bool:
        return self._why is not None

    def leave(self) -> None:
        """They do."""
        self._left = True

    def left(self) -> str | None:
        """Why the group before has left; None where it had not. The next one begins."""
        why = self._why if self._left else None
        self._why, self._left, self._nodes = None, False, set()
        return why

    def fail(self, text: str) -> None:
        self._failure = self._failure or text

    def failure(self) -> str | None:
        return self._failure

    def crash(self, text: str) -> None:
        """An exception that is no one's fault yet. The same one twice, and no step further, is a failure."""
        if text in self._crashes:
            self.fail(f"training failed twice alike: {text}")
        self._crashes.add(text)


@contextmanager
def shown(board: Any, epochs: int, steps: int) -> Iterator[None]:
    """A progress bar of what rank 0 says, while the body runs: epoch, step, loss, images/s, time left. Where nobody
    looks on, as in a job's log, a line of JSON an epoch instead."""
    import ray

    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s"),
        TimeRemainingColumn(),
    )
    done = threading.Event()
    with Progress(*columns, console=console, transient=False) as progress:
        bar = progress.add_task("", total=epochs * steps, epoch=0, epochs=epochs, loss="-", speed="-")

        def follow() -> None:
            last, asked = False, None
            while not last:
                last = done.wait(0.5)
                try:
                    asked = asked or [board.read.remote(), board.epochs.remote()]
                    (now, lines), epochs_done = ray.get(asked, timeout=5)
                    asked = None
                except ray.exceptions.GetTimeoutError:
                    continue
                except ray.exceptions.RayError:  # the cluster is going away: the main thread says why
                    return
                for line in lines:
                    progress.console.print(line)
                if not console.is_terminal:
                    for epoch in epochs_done:
                        print(json.dumps(epoch), file=sys.stderr, flush=True)
                if now:
                    progress.update(
                        bar,
                        completed=now["step"],
                        epoch=min(now["step"] // steps + 1, epochs),
                        loss=f"{now['loss']:.4f}",
                        speed=f"{now['images_per_second']:,.0f}",
                    )

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=10)
