"""What runs on each rank: Ray Train calls `work`; rank 0 also records."""

import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

import pipelines.recipe as recipes
from methods.backbones import channels_last
from methods.method import Advice, Batch, Clock, Facts, Method
from methods.metrics.knn import knn
from methods.parts import evaluating, set_batch_norm
from pipelines.errors import UserError
from pipelines.features import central
from pipelines.feed import ResidentFeed, Share, SideBySide, StreamFeed, bytes_of, gathered
from pipelines.loop import NotFinite, Training, collapse, largest_of_ranks, train
from pipelines.place import Place, selector, threads
from pipelines.recipe import Recipe, Run
from pipelines.sources import Source
from pipelines.storage import Checkpoints, Folder, open_folder

WINDOW = 4096  # rows that the stream feed mixes with one another, at most
WINDOW_BYTES = 2**28  # of their views, where they are of videos or takes


@dataclass(frozen=True)
class Task:
    """What a worker gets."""

    recipe: Recipe
    run: Run
    place: Place
    folder: Folder
    facts: Facts
    source: Source
    usable: np.ndarray
    blocks: list[Any]
    noisy: torch.Tensor | None
    """Labels by dataset index that are learned in place of the true ones."""
    probe: dict[str, Any] | None
    board: Any = None


def start_from(recipe: Recipe, method: Method) -> dict[str, Any]:
    """Loads the weights of the run `recipe.start_from`; returns what it took.

    Where the method `starts_from` another, that run is loaded whole into the part of that name; otherwise the whole
    backbone, and what else has the same name and shape.
    """
    wanted = method.starts_from
    if recipe.start_from is None:
        raise UserError(
            f"{recipe.method_name} starts from a trained {wanted}: give --start-from RUN, a run of {wanted}"
        )
    folder = open_folder(recipe.start_from)
    if not folder.exists("recipe.json"):
        raise UserError(f"--start-from {recipe.start_from}: no run lies there (it has no recipe.json)")
    before = recipes.from_json(folder.read("recipe.json").decode())
    checkpoints = Checkpoints(folder / "checkpoints")
    state, _ = checkpoints.newest()
    if state is None:
        raise UserError(f"--start-from {recipe.start_from}: that run has no checkpoint yet")
    weights = state["method"]
    if wanted and before.method_name != wanted:
        raise UserError(
            f"--start-from {recipe.start_from}: that is a run of {before.method_name}, give one of {wanted}"
        )
    if (before.batch_norm == "none") != (recipe.batch_norm == "none"):
        raise UserError(
            f"--start-from {recipe.start_from}: that run has --batch-norm {before.batch_norm}, and with "
            f"{recipe.batch_norm} its weights mean something else: give the same"
        )
    if wanted:
        weights = {f"{wanted}.{name}": value for name, value in weights.items()}
    prefix = f"{wanted or 'backbone'}."
    own = method.state_dict()
    taken = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if missing := {name for name in own if name.startswith(prefix)} - taken.keys():
        whose = f"the backbone of that {before.method_name}, {before.backbone}, does not fit {recipe.backbone}"
        remedy = f"give --backbone {before.backbone}"
        if wanted:
            whose = f"that {wanted} is another one than this recipe's"
            remedy = f"give its options as --method.{wanted}.X"
        elif method.owns_backbone:
            remedy = f"give a run of {recipe.method_name}"
        raise UserError(f"--start-from {recipe.start_from}: {whose}: {remedy} (the first to differ is {min(missing)})")
    method.load_state_dict(taken, strict=False)
    manifest = json.loads(checkpoints.folder.read(f"step-{state['step']:08d}.json"))
    return {
        "run": recipe.start_from,
        "method": before.method_name,
        "step": state["step"],
        "sha256": manifest["sha256"],
        "taken": len(taken),
        "of": len(own),
    }


def work(config: dict[str, Any]) -> None:
    """One rank. Called anew after each restart: the newest checkpoint decides where it begins."""
    import ray
    import ray.train

    task: Task = ray.get(config["task"])
    if ray.get(task.board.failure.remote()) is not None:
        return
    try:
        rank_loop(task)
    except NotFinite as error:
        steps = Checkpoints(task.folder / "checkpoints").steps()
        good = f"step {steps[-1]} in {task.folder.path}/checkpoints" if steps else "none yet"
        told = f"{error}; the last good checkpoint is {good}: lower --optimizers.TURN.lr, or lengthen its warm-up"
        ray.get(task.board.fail.remote(told))
    except UserError as error:
        ray.get(task.board.fail.remote(str(error)))
        raise
    except OSError:  # of storage or network: it may pass, `Run.retries` are for it
        raise
    except Exception as error:
        rank = ray.train.get_context().get_world_rank()
        ray.get(task.board.crash.remote(f"{type(error).__name__} on rank {rank}: {error}"))
        raise


def rank_loop(task: Task) -> None:
    import ray.train
    import ray.train.torch

    recipe, run, place = task.recipe, task.run, task.place
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(threads(run, context.get_local_world_size()))
    else:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(recipe.seed)
    method = recipe.build(task.facts)
    checkpoints = Checkpoints(task.folder / "checkpoints", run.keep)
    state, broken = newest_of_all(task.folder, checkpoints, rank, device)
    method = channels_last(method.to(device))
    method = set_batch_norm(method, recipe.batch_norm)
    if (recipe.start_from or method.starts_from) and state is None:
        start_from(recipe, method)
    if run.compile:
        for network in method.children():
            network.compile()
    wrapped = ray.train.torch.prepare_model(
        method,
        parallel_strategy_kwargs={
            "broadcast_buffers": False,
            "find_unused_parameters": len(method.turns) > 1,
            "gradient_as_bucket_view": True,
        },
    )
    feed = make_feed(task, Share(recipe.batch_size, rank, ranks), device)
    training = Training(
        method,
        wrapped,
        recipe.optimizers,
        recipe.batch_size,
        recipe.epochs,
        feed.steps,
        recipe.seed,
        place.precision,  # type: ignore[arg-type]
    )
    if state is not None:
        training.load_state(state)
    task.board.on.remote(ray.get_runtime_context().get_node_id())
    with Recorder(task, training, first=rank == 0) as recorder, warnings.catch_warnings():
        warnings.showwarning = recorder.warned(warnings.showwarning)
        warnings.simplefilter("always", Advice)
        for line in broken:
            recorder.note(f"[yellow]{escape(line)}[/]")
        if state is not None:
            recorder.resumed(ranks)

        def checkpoint(end: bool) -> None:
            epoch = training.clock().epoch
            due = not end or epoch % run.checkpoint_epochs == 0 or epoch in (recipe.epochs, run.stop_epoch)
            if due and rank == 0:
                checkpoints.save(training.step, {**training.state(), "recipe": recipe.to_json()})
                recorder.flush()

        def leaving() -> bool:
            """Where the driver asks for it, and not all is done."""
            if rank != 0 or training.clock().epoch == (run.stop_epoch or recipe.epochs):
                return False
            if asked := ray.get(task.board.asked.remote()):
                ray.get(task.board.leave.remote())
            return bool(asked)

        train(
            training,
            feed,
            log_steps=run.log_steps,
            checkpoint_steps=run.checkpoint_steps,
            stop_epoch=run.stop_epoch,
            on_log=lambda clock, values: recorder.log(clock, values, feed.made() * ranks),
            on_epoch=recorder.epoch,
            on_first=recorder.views,
            checkpoint=checkpoint,
            leaving=leaving,
        )


def newest_of_all(
    folder: Folder, checkpoints: Checkpoints, rank: int, device: torch.device
) -> tuple[dict[str, Any] | None, list[str]]:
    """`Checkpoints.newest` as rank 0 sees it, on all ranks: a node whose mount comes late, or that sees files late,
    waits for the same one, and does not begin elsewhere."""
    folder.wait_for("recipe.json")
    state, broken = checkpoints.newest() if rank == 0 else (None, [])
    step = largest_of_ranks(-1 if state is None else state["step"], device)
    if rank and step >= 0:
        checkpoints.folder.wait_for(f"step-{step:08d}.json")
        state = checkpoints.load(step)
    return state, broken


def make_feed(task: Task, share: Share, device: torch.device) -> ResidentFeed | StreamFeed | SideBySide:
    recipe, place = task.recipe, task.place
    if place.feed == "stream":
        most = WINDOW if recipe.data.media == "image" else max(1, WINDOW_BYTES // bytes_of(recipe.views_used))
        elastic = task.run.least < task.run.most
        lanes = share.lanes(task.run.most if elastic else share.ranks)
        cpus = place.data_cpus / share.ranks / len(lanes)
        feeds = [
            StreamFeed(
                task.source,
                recipe.data,
                task.usable,
                recipe.views_used,
                seed=recipe.seed,
                share=lane,
                window=min(WINDOW, most),
                views_on_data=place.views_on == "data",
                cpus=cpus,
                task_cpus=min(1.0, cpus),
                device=device,
                noisy=task.noisy,
                nodes=selector(task.run.data_on),
            )
            for lane in lanes
        ]
        return SideBySide(feeds) if elastic else feeds[0]
    columns = gathered(task.blocks)
    images, index = columns["image"], columns["index"]
    label = columns["label"] if task.source.labelled else None
    if device.type == "cuda" and images.numel() < 0.25 * torch.cuda.mem_get_info(device)[0]:
        images, index, label = images.to(device), index.to(device), None if label is None else label.to(device)
    return ResidentFeed(
        images,
        index,
        label,
        recipe.views_used,
        seed=recipe.seed,
        share=share,
        device=device,
        noisy=None if task.noisy is None else task.noisy.to(index.device),
        balance=recipe.balance,
    )


SYSTEM = {"images_per_second", "step_images_per_second", "data_images_per_second", "waiting_for_data"}
SYSTEM |= {"memory_mib", "gpu_memory_mib", "gpu_utilization"}
"""What is of the machines, and has curves of its own."""


class Recorder:
    """Rank 0's: metrics.jsonl, TensorBoard, the driver's progress bar, monitors, online kNN. Other ranks: nothing.

    On storage that is not a local folder both files are written beside, and copied at each checkpoint.
    """

    def __init__(self, task: Task, training: Training, *, first: bool) -> None:
        self.task = task
        self.training = training
        self.first = first

    def __enter__(self) -> "Recorder":
        if not self.first:
            return self
        folder = self.task.folder
        self.scratch = None if folder.local else tempfile.TemporaryDirectory()
        here = Path(self.scratch.name) if self.scratch else folder.local or Path()
        self.path = here / "metrics.jsonl"
        self.reached = 0  # steps of which anything was recorded before
        if folder.exists("metrics.jsonl"):  # lines after the checkpoint will be written again
            lines = [line for line in folder.read("metrics.jsonl").decode().splitlines() if line.endswith("}")]
            steps = [json.loads(line)["step"] for line in lines]
            self.reached = max(steps, default=0)
            kept = [line for line, step in zip(lines, steps, strict=True) if step <= self.training.step]
            content = "".join(line + "\n" for line in kept).encode()
            open_folder(str(here)).write(self.path.name, content)  # whole or not at all: there is no other
        self.file = self.path.open("a")
        self.events = here / "tensorboard"
        self.board = SummaryWriter(str(self.events), purge_step=self.training.step + 1)
        return self

    def __exit__(self, *error: object) -> None:
        if self.first:
            self.flush()
            self.file.close()
            self.board.close()
            if self.scratch:
                self.scratch.cleanup()

    def note(self, line: str) -> None:
        if self.first:
            self.task.board.note.remote(line)

    def resumed(self, workers: int) -> None:
        """Says so, and leaves a line in lineage.jsonl: from which step so many workers went on, and how many steps they
        do again."""
        import ray

        if not self.first:
            return
        step, folder = self.training.step, self.task.folder
        again = max(self.reached - step, ray.get(self.task.board.furthest.remote()) - step, 0)
        self.note(f"resumed at step {step}" + (f"; {again} steps are done again" if again else ""))
        before = folder.read("lineage.jsonl") if folder.exists("lineage.jsonl") else b""
        line = json.dumps({"step": step, "workers": workers, "again": again})
        folder.write("lineage.jsonl", before + line.encode() + b"\n")

    def warned(self, otherwise: Callable[..., None]) -> Callable[..., None]:
        """What shows a warning: a method's advice is a note, others are shown as before."""

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, Advice):
                self.note(f"[yellow]{escape(str(message))}[/]")
            else:
                otherwise(message, category, *where)

        return show

    def log(self, clock: Clock, values: dict[str, float], made: float) -> None:
        """`made`: samples a second that the data stages of all ranks make, if any."""
        if not self.first:
            return
        step = clock.step + 1
        values = values | ({"data_images_per_second": made} if made else {})
        self.file.write(json.dumps({"step": step, "epoch": clock.epoch, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{'system' if name in SYSTEM else 'train'}/{name}", value, step)
        loss = next(value for name, value in values.items() if name.startswith("loss"))
        told = {name: values[name] for name in ("images_per_second", "waiting_for_data")}
        self.task.board.say.remote({"step": step, "loss": loss, **told})

    def epoch(self, clock: Clock, batch: Batch) -> bool:
        """Monitors of the backbone, and the online kNN where it is due. True: it has collapsed, and is to stop."""
        if not self.first:
            return False
        method = self.training.method
        values = {f"features/{k}": v for k, v in collapse(method, self.task.facts, batch).items()}
        every = self.task.run.knn_epochs
        if self.task.probe and (clock.epoch % every == 0 or clock.epoch == self.training.epochs):
            values["knn/top1"] = self.knn()
        self.file.write(json.dumps({"step": clock.step, "epoch": clock.epoch - 1, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, clock.step)
        for name, images in method.pictures(batch, clock).items():
            self.board.add_image(f"pictures/{name}", make_grid(images.cpu(), nrow=8), clock.step)
        self.task.board.say.remote({"step": clock.step, "epoch": clock.epoch, **values})
        stop = values["features/feature_std"] < self.task.run.collapse_std
        if stop:
            found = {"step": clock.step, **{name.removeprefix("features/"): v for name, v in values.items()}}
            self.task.folder.write("collapsed.json", json.dumps(found, indent=2).encode())
        return stop

    @torch.no_grad()
    def knn(self) -> float:
        backbone = self.training.method.backbone
        size = self.training.method.pixels(next(iter(self.task.facts.views.values()))[0][-1])  # as in `evaluate`
        features, labels = {}, {}
        for part, blocks in (self.task.probe or {}).items():
            columns = gathered(blocks)
            images = central(columns["image"], min(size, columns["image"].shape[-1]))
            with evaluating(backbone):
                pieces = [backbone(some.to(self.training.device)) for some in images.split(500)]
            features[part], labels[part] = torch.cat(pieces), columns["label"].to(self.training.device)
        return knn(features["train"], labels["train"], features["test"], labels["test"])["top1"]

    def views(self, batch: Batch) -> None:
        """The first images' views side by side, once."""
        if self.first and self.training.step == 0:
            for name in self.task.facts.views:
                view = batch[name].cpu()  # of clips, eight frames each
                images = view[:32] if view.ndim == 4 else view[:8, :: max(1, view.shape[1] // 8)][:, :8].flatten(0, 1)
                self.board.add_image(f"views/{name}", make_grid(images, nrow=8), 0)

    def flush(self) -> None:
        self.file.flush()
        self.board.flush()
        if self.scratch:
            self.task.folder.write("metrics.jsonl", self.path.read_bytes())
            for events in self.events.iterdir():
                (self.task.folder / "tensorboard").write(events.name, events.read_bytes())
