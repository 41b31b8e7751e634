"""The command line. Each command is a function of its arguments; those that take long show a progress bar."""

import json
import sys
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from pipelines.command_line import chosen, parsed, run
from pipelines.recipe import Recipe, Run, find_recipe, method_modules, recipes


@dataclass(frozen=True)
class Pretrain:
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    run: Run = field(default_factory=Run)


def list_(arguments: list[str]) -> None:
    """Methods, recipes, backbones and protocols."""
    from methods import backbones
    from pipelines.evaluate import PROTOCOLS
    from pipelines.generate import PROTOCOLS as GENERATIVE

    tyro.cli(lambda: None, args=arguments, prog="python -m pipelines list", description=list_.__doc__)
    table = Table("kind", "name", "what", title=None)

    def first_line(thing: object) -> str:
        return (thing.__doc__ or "").strip().split("\n")[0]

    for name, module in method_modules().items():
        table.add_row("method", name, first_line(module))
    for name, recipe in recipes().items():
        table.add_row("recipe", name, first_line(recipe))
    for name in backbones.NAMES:
        table.add_row("backbone", name, "")
    for name, protocol in PROTOCOLS.items():
        table.add_row("protocol", name, first_line(protocol))
    for name, what in GENERATIVE.items():
        table.add_row("protocol", name, what)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def data(arguments: list[str]) -> None:
    """Fetches a dataset with torchvision, or takes it from a folder, or synthesises it; writes Parquet."""
    from pipelines import datasets, frames

    name, rest = chosen("pipelines data", "dataset", arguments, (*datasets.NAMES, "frames"))
    if name == "frames":
        frames.write_frames(parsed(frames.FrameOptions, None, rest, "python -m pipelines data frames", frames.__doc__))
        return
    options = parsed(datasets.DatasetOptions, None, rest, f"python -m pipelines data {name}")
    datasets.write(name, options)


def pretrain(arguments: list[str]) -> None:
    """Runs a recipe: python -m pipelines pretrain RECIPE [--FIELD VALUE ...] [--run.FIELD VALUE ...]"""
    from pipelines.pretrain import pretrain as run_recipe

    name, rest = chosen("pipelines pretrain", "recipe", arguments, recipes())
    default = Pretrain(find_recipe(name))
    options = parsed(Pretrain, default, rest, f"python -m pipelines pretrain {name}", recipes()[name].__doc__)
    folder = run_recipe(options.recipe, options.run, name)
    protocols = {"image": "knn linear", "video": "linear retrieval task", "take": "pose task"}[
        options.recipe.data.media
    ]
    Console(stderr=True).print(
        f"curves: tensorboard --logdir {folder.path}/tensorboard\n"
        f"next:   python -m pipelines evaluate {folder.path} {protocols}"
    )


def evaluate(arguments: list[str]) -> None:
    """Runs protocols on a run, or an exported backbone: python -m pipelines evaluate RUN knn linear"""
    from pipelines import evaluate as evaluation
    from pipelines import generate

    words = list(takewhile(lambda word: not word.startswith("-"), arguments))
    if len(words) < 2:
        print("usage: python -m pipelines evaluate RUN PROTOCOL [PROTOCOL ...] [OPTIONS]\n")
        for name, protocol in evaluation.PROTOCOLS.items():
            print(f"  {name:15} {(protocol.__doc__ or '').splitlines()[0]}")
        for name, what in generate.PROTOCOLS.items():
            print(f"  {name:15} {what}")
        raise SystemExit(0 if "--help" in arguments else 2)
    options = parsed(
        evaluation.Options,
        evaluation.defaults(words[0]),
        arguments[len(words) :],
        f"python -m pipelines evaluate {words[0]} {' '.join(words[1:])}",
    )
    evaluation.evaluate(words[0], words[1:], options)


def export(arguments: list[str]) -> None:
    """Writes a run's backbone: python -m pipelines export RUN --to FILE (.safetensors, .pt or .onnx)"""
    from pipelines import export as exporting

    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m pipelines export RUN --to FILE\n\nFILE ends in .safetensors, .pt or .onnx")
        raise SystemExit(0 if "--help" in arguments else 2)
    program = f"python -m pipelines export {arguments[0]}"
    options = parsed(exporting.ExportOptions, None, arguments[1:], program)
    exporting.export(arguments[0], options.to)


def generate(arguments: list[str]) -> None:
    """Writes a grid of a run's generated images: python -m pipelines generate RUN --n 64 --to FILE.png"""
    from pipelines import generate as generation

    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m pipelines generate RUN --to FILE.png [--n 64] [--seed 0] [--step STEP]")
        raise SystemExit(0 if "--help" in arguments else 2)
    program = f"python -m pipelines generate {arguments[0]}"
    options = parsed(generation.GridOptions, None, arguments[1:], program)
    generation.generate(arguments[0], options)


def bench(arguments: list[str]) -> None:
    """Measures feeds, steps and the search for neighbours: bench feed|video|step|recipe|neighbours; JSON."""
    from pipelines import bench as benchmarks
    from pipelines import bench_neighbours, bench_video

    what, rest = chosen("pipelines bench", "benchmark", arguments, ("feed", "video", "step", "recipe", "neighbours"))
    program = f"python -m pipelines bench {what}"
    if what == "recipe":
        name, rest = chosen("pipelines bench recipe", "recipe", rest, recipes())
        default = benchmarks.BenchRecipe(find_recipe(name))
        options = parsed(benchmarks.BenchRecipe, default, rest, f"{program} {name}")
        figures = benchmarks.recipe_step(options)
    elif what == "feed":
        figures = benchmarks.feed(parsed(benchmarks.BenchFeed, None, rest, program))
    elif what == "video":
        figures = bench_video.video(parsed(bench_video.BenchVideo, None, rest, program))
    elif what == "neighbours":
        figures = bench_neighbours.search(parsed(bench_neighbours.BenchNeighbours, None, rest, program))
    else:
        figures = benchmarks.step(parsed(benchmarks.BenchStep, None, rest, program))
    print(json.dumps(figures, indent=2))


COMMANDS = {
    "list": list_,
    "data": data,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "export": export,
    "generate": generate,
    "bench": bench,
}


def main(arguments: list[str] | None = None) -> int:
    return run("pipelines", COMMANDS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
