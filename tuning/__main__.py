"""The command line of ablations."""

import sys
from dataclasses import fields
from typing import Any

import tyro
from rich.console import Console
from rich.table import Column, Table

from pipelines.command_line import chosen, parsed, run
from pipelines.recipe import find_recipe, recipes
from pipelines.sources import Data
from pipelines.storage import open_folder
from tuning.grid import PROFILES, find_grid, grids


def list_(arguments: list[str]) -> None:
    """Every grid with its paper, table, cells and cost."""
    from tuning.cost import MACHINE, STARTS, hours, shown

    tyro.cli(lambda: None, args=arguments, prog="python -m tuning list", description=list_.__doc__)
    table = Table(Column("grid", no_wrap=True), "paper", "table", "cells", "what varies", *PROFILES)
    for grid in grids().values():
        table.add_row(
            grid.name,
            grid.paper,
            grid.table,
            str(len(grid.figures)),
            grid.title,
            *(shown(hours(grid, profile)) for profile in PROFILES),
        )
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(f"Cost of all cells, one seed, on {MACHINE}: pretraining, and {STARTS:.0f} s a trial besides.")


def sweep(arguments: list[str]) -> None:
    """Pretrains and evaluates a grid's cells: python -m tuning sweep GRID --profile smoke|small|paper"""
    from tuning.sweep import Options
    from tuning.sweep import sweep as run_grid

    name, rest = chosen("tuning sweep", "grid", arguments, grids())
    grid = find_grid(name)
    base = grid.recipe(next(iter(grid.figures)), "small").data  # the default profile
    program = f"python -m tuning sweep {name}"
    told = f"{grid.paper}, {grid.table}: {grid.title}. A cell is {'/'.join(grid.axes)}."
    options = parsed(Options, Options(data=base), rest, program, told)
    run_grid(name, options, given(options.data, rest))


def report(arguments: list[str]) -> None:
    """Makes the reports of a sweep anew, also of one that has not ended: python -m tuning report DIR"""
    from tuning.report import report as rebuild

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m tuning report DIR\n\nDIR is a sweep's folder: <storage>/<name>")
        raise SystemExit(0 if "--help" in arguments else 2)
    print(rebuild(open_folder(arguments[0])))


def search(arguments: list[str]) -> None:
    """Draws trials from a space, stops the weak ones early: python -m tuning search RECIPE --space NAME --trials N"""
    from tuning.search import Options
    from tuning.search import search as run_search

    name, rest = chosen("tuning search", "recipe", arguments, recipes())
    program = f"python -m tuning search {name}"
    run_search(name, parsed(Options, Options(find_recipe(name)), rest, program, recipes()[name].__doc__))


def given(data: Data, arguments: list[str]) -> dict[str, Any]:
    """The fields of `data` that the command line names."""
    words = {word.split("=")[0].replace("_", "-") for word in arguments}
    return {
        field.name: getattr(data, field.name)
        for field in fields(Data)
        if {f"--data.{no}{field.name.replace('_', '-')}" for no in ("", "no-")} & words
    }


COMMANDS = {"list": list_, "sweep": sweep, "report": report, "search": search}


def main(arguments: list[str] | None = None) -> int:
    return run("tuning", COMMANDS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
