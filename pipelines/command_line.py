"""What the command lines share: a package's commands, a command's first word, options, errors and exit codes."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import tyro

from pipelines.errors import UserError
from pipelines.place import quiet
from pipelines.recipe import nearest

T = TypeVar("T")


def parsed(kind: type[T], default: T | None, arguments: list[str], program: str, description: str | None = None) -> T:
    """Options from the command line; a value that a dataclass refuses is a clear error."""
    try:
        known = tyro.MISSING_NONPROP if default is None else default
        return tyro.cli(kind, default=known, args=arguments, prog=program, description=description)
    except ValueError as error:
        raise UserError(str(error)) from error


def chosen(command: str, what: str, arguments: list[str], known: Iterable[str]) -> tuple[str, list[str]]:
    """The first argument, which is one of `known`, and the rest. `command`: the package and its command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m {command} {what.upper()} [OPTIONS]\n\n{what}s: {', '.join(known)}\n")
        print(f"python -m {command} {what.upper()} --help shows its options")
        raise SystemExit(0 if arguments else 2)
    name = arguments[0]
    if name not in known:
        raise UserError(f"no {what} {name}{nearest(name, known)} (there are {', '.join(known)})")
    return name, arguments[1:]


def run(package: str, commands: Mapping[str, Callable[[list[str]], None]], arguments: list[str]) -> int:
    """The command that the first argument names. Returns the exit code: 1 for a UserError, 2 for a wrong command."""
    if not arguments or arguments[0] not in commands:
        asked = not arguments or arguments[0] in ("-h", "--help")
        if not asked:
            print(f"no command {arguments[0]}{nearest(arguments[0], commands)}", file=sys.stderr)
        print(f"usage: python -m {package} COMMAND [OPTIONS]\n", file=sys.stdout if asked else sys.stderr)
        for name, command in commands.items():
            print(f"  {name:10} {(command.__doc__ or '').splitlines()[0]}", file=sys.stdout if asked else sys.stderr)
        return 0 if arguments and asked else 2
    quiet()
    try:
        commands[arguments[0]](arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
