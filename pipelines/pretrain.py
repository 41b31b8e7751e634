"""Pretraining on Ray Train: the driver checks, surveys the data and starts the workers; each worker runs the loop.

Checkpoints are the run's own (`pipelines.storage`), not Ray's: whichever way a run stopped, a worker that starts
takes the newest good one, so that a restart by Ray and `--run.resume` are the same thing.
"""

import dataclasses
import json
import time
from typing import Any

import numpy as np
import torch
from rich.markup import escape

import pipelines.recipe as recipes
from methods.method import Facts
from methods.parts import set_batch_norm
from pipelines import labels
from pipelines.board import console, shown
from pipelines.errors import UserError
from pipelines.feed import Survey, survey
from pipelines.group import Follow, awaited, fit, has_collapsed
from pipelines.loop import Training
from pipelines.place import check_labels, cluster, for_workers, placed, selector
from pipelines.recipe import Recipe, Run
from pipelines.sources import NOUNS, Source, fingerprint, open_source, selected
from pipelines.storage import Checkpoints, Folder, open_folder
from pipelines.summary import spent, told
from pipelines.worker import Task, start_from


def pretrain(recipe: Recipe, run: Run, name: str, follow: Follow = shown) -> Folder:
    """Runs `recipe` at the place `run`; `name` is the recipe's. Returns the run's folder.

    A run that has collapsed (`Run.collapse_std`) leaves `collapsed.json` there, and does not go on.

    Raises:
        UserError: whatever the user can mend, before anything is started where that is possible.
    """
    folder = open_folder(run.storage) / (run.name or name)
    source = open_source(recipe.data.train, recipe.data)
    claim(folder, recipe, run)
    wanted = selected(source, recipe.data.limit)
    import ray

    with cluster(run.address) as resources:
        if run.wait:
            spare = 1.0 if run.data_on else 0.0
            awaited(run, "cuda" if run.device == "cuda" else "cpu", spare, run.wait, console.print)
            resources = ray.cluster_resources()
        check_labels(run, ray.nodes())
        place = placed(recipe, run, len(wanted), resources)
        found = survey(
            source,
            wanted,
            recipe.data,
            keep=place.feed == "resident",
            what=recipe.data.train,
            views=recipe.views_used,
            nodes=selector(run.data_on),
        )
        noun = NOUNS[source.media]
        if len(found.usable) < recipe.batch_size:
            raise UserError(
                f"a batch of {recipe.batch_size} is larger than the dataset of {len(found.usable)} {noun}: "
                f"give --batch-size {1 << (len(found.usable).bit_length() - 1)} or less, or more data"
            )
        facts = recipe.facts(source.rows, source.classes)
        taken = check_build(recipe, facts, folder)
        for bad in found.bad[:10]:
            console.print(f"[yellow]skipped[/] {escape(f'{bad.where}: {bad.reason}')}")
        claim_data(folder, fingerprint(source), found)
        noisy = labels.learned(recipe.data, source, found.usable, found.label, recipe.seed)
        learned = labels.read(folder)
        if noisy is not None and learned is not None and not torch.equal(learned, noisy[: found.usable[-1] + 1]):
            raise UserError(
                f"the run at {folder.path} learned other labels than these ({labels.FILE} in it has them): the data "
                "or --data.noise-file have changed; give another --run.name"
            )
        steps, used = steps_of_an_epoch(recipe, found, noisy)
        console.print(
            f"[bold]{folder.path}[/]: {recipe.method_name} on {len(found.usable):,} {noun}"
            f"{f' ({len(found.bad)} broken, skipped)' if found.bad else ''}, {recipe.epochs} epochs of {steps} steps "
            f"of {recipe.batch_size} ({len(found.usable) - used} {noun} an epoch left over), "
            f"{run.workers} {place.device} worker(s), {place.feed} feed, views on {place.views_on}"
        )
        if rare := labels.too_rare(recipe.balance, found.label, found.usable, noisy):
            console.print(
                f"[yellow]classes that are never learned, as --method.parts takes {recipe.method.parts} at a time and "
                f"they have fewer: {', '.join(map(str, rare[:10]))}{', ...' if len(rare) > 10 else ''}[/]"
            )
        if recipe.batch_norm == "shuffle" and run.least == 1:
            console.print("[yellow]one worker has no other to shuffle batch norm with: give --batch-norm split:8[/]")
        for turn, spec in recipe.optimizers.items():
            if spec.warmup_epochs > recipe.epochs:
                console.print(
                    f"[yellow]{turn}'s warm-up of {spec.warmup_epochs:g} epochs is longer than the run: "
                    "the learning rate only rises[/]"
                )
        write_settings(folder, recipe, run, name, facts, source, found, taken)
        if noisy is not None:
            changed = int((noisy[torch.from_numpy(found.usable)].numpy() != found.label).sum())
            console.print(f"{changed:,} of the labels are not the true ones: {folder.path}/{labels.FILE}")
            labels.write(folder, found.usable, found.label, noisy)
        probe = probe_blocks(recipe, run, found)
        if not has_collapsed(folder, run):
            since = Checkpoints(folder / "checkpoints").steps()
            start = time.monotonic()
            task = Task(recipe, run, place, folder, facts, source, found.usable, found.blocks, noisy, probe)
            place = fit(task, lambda n: for_workers(place, run, n, ray.cluster_resources()), steps, follow)
            lines = map(json.loads, folder.read("metrics.jsonl").decode().splitlines())
            it = spent(lines, since[-1] if since else 0, recipe.batch_size, time.monotonic() - start)
            for line in told(it, place, noun):
                console.print(line)
        if has_collapsed(folder, run):
            found_at = json.loads(folder.read("collapsed.json"))
            console.print(
                f"[yellow]features have collapsed at step {found_at['step']}: feature_std "
                f"{found_at['feature_std']:.3g} is below --run.collapse-std {run.collapse_std:g}; stopped[/]"
            )
    return folder


def steps_of_an_epoch(recipe: Recipe, found: Survey, noisy: torch.Tensor | None) -> tuple[int, int]:
    """And how many of the samples are in them."""
    if recipe.balance is None:
        steps = len(found.usable) // recipe.batch_size
        return steps, steps * recipe.batch_size
    index = torch.from_numpy(found.usable)
    label = torch.from_numpy(found.label) if noisy is None else noisy[index]
    rows = labels.balanced(label, index, recipe.balance, recipe.batch_size, recipe.seed, 0)
    return len(rows) // recipe.batch_size, len(rows.unique())


def claim(folder: Folder, recipe: Recipe, run: Run) -> None:
    """Refuses a run's name that is taken, another recipe's checkpoints, and storage that can't be written."""
    if folder.exists("recipe.json"):
        if not run.resume:
            raise UserError(
                f"a run lies at {folder.path}: give --run.resume to go on from its last checkpoint, "
                "or another --run.name"
            )
        before = recipes.from_json(folder.read("recipe.json").decode())
        others = different(dataclasses.asdict(before), dataclasses.asdict(recipe))
        if type(before.method) is not type(recipe.method):
            others = ["method", *others]
        if others := [field for field in others if field != "epochs"]:
            raise UserError(
                f"the run at {folder.path} is of another recipe (it differs in {', '.join(others[:5])}): "
                "resume it with the same options, or give another --run.name"
            )
    if recipe.batch_size % run.most:
        raise UserError(
            f"a batch of {recipe.batch_size} can't be shared equally by {run.most} workers: "
            f"give --batch-size {recipe.batch_size // run.most * run.most or run.most}"
        )
    folder.write("writable", b"")
    folder.delete("writable")


def claim_data(folder: Folder, files: str, found: Survey) -> None:
    """Refuses to go on with other data under the same name: what is kept by sample would be of others."""
    if not folder.exists("run.json"):
        return
    before = json.loads(folder.read("run.json"))["found"]
    for name, now in (("fingerprint", files), ("labels", labels.digest(found.usable, found.label))):
        if before.get(name, now) != now:
            what = "files" if name == "fingerprint" else "labels or broken rows"
            raise UserError(
                f"the run at {folder.path} began with other data: the {what} under the same path have changed; give "
                "the data it began with, or another --run.name"
            )


def different(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names at which two nested dicts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in sorted({*a, *b}) for d in different(a.get(k), b.get(k), f"{prefix}.{k}" if prefix else k)]
    return [] if a == b else [prefix]


def check_build(recipe: Recipe, facts: Facts, folder: Folder) -> dict[str, Any] | None:
    """Builds method and optimizers once on the driver, so that a wrong option is an error and not a lost worker.

    Returns what `start_from` took, if the recipe has one.
    """
    try:
        method = set_batch_norm(recipe.build(facts), recipe.batch_norm)
        training = Training(method, method, recipe.optimizers, recipe.batch_size, recipe.epochs, 1, recipe.seed)
        method.turns_at(training.clock())  # what the first step would refuse
    except ValueError as error:
        raise UserError(str(error)) from error
    state, broken = Checkpoints(folder / "checkpoints").newest()
    for line in broken:
        console.print(f"[yellow]{escape(line)}[/]")
    if state is not None:
        training.load_state({**state, "steps_per_epoch": 1})
        done = state["step"] // state["steps_per_epoch"]
        if done > recipe.epochs:
            raise UserError(
                f"the run at {folder.path} has {done} epochs behind it, more than --epochs {recipe.epochs}: "
                "give as many or more, or another --run.name"
            )
        return None
    return start_from(recipe, method) if recipe.start_from or method.starts_from else None


def write_settings(
    folder: Folder,
    recipe: Recipe,
    run: Run,
    name: str,
    facts: Facts,
    source: Source,
    found: Survey,
    taken: dict[str, Any] | None,
) -> None:
    data = {
        "samples": len(found.usable),
        "broken": [dataclasses.asdict(bad) for bad in found.bad],
        "rows": facts.samples,
        "classes": facts.classes,
        "fingerprint": fingerprint(source),
        "labels": labels.digest(found.usable, found.label),
    }
    if taken is None:  # a run that goes on began from what it took then
        taken = json.loads(folder.read("run.json")).get("started_from") if folder.exists("run.json") else None
    folder.write("recipe.json", recipe.to_json().encode())
    settings = {"recipe": name, **dataclasses.asdict(run), "found": data, "started_from": taken}
    settings["torch"] = torch.__version__
    folder.write("run.json", json.dumps(settings, indent=2).encode())


def probe_blocks(recipe: Recipe, run: Run, found: Survey) -> dict[str, Any] | None:
    """Images for the online kNN: at most 5,000 for training and 2,000 for the test, evenly spaced."""
    if not run.knn_epochs:
        return None
    if recipe.data.media != "image":
        raise UserError("the online kNN is for images: leave out --run.knn-epochs, and evaluate the run")
    labelled = found.usable[found.label >= 0]
    if not recipe.data.test or len(labelled) < 20:
        raise UserError(
            f"--run.knn-epochs needs --data.test and 20 labelled images, of which there are {len(labelled)}: "
            "give both, or leave it out"
        )
    parts = {}
    for part, pattern, most in (("train", recipe.data.train, 5000), ("test", recipe.data.test, 2000)):
        source = open_source(pattern, recipe.data)
        rows = labelled if part == "train" else selected(source, None)
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        nodes = selector(run.data_on)
        parts[part] = survey(source, rows, recipe.data, keep=True, what=pattern, nodes=nodes).blocks
    return parts
