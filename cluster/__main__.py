"""The command line of clusters. The job's log goes to stdout, everything else to stderr; the exit code is the job's."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cluster import UserError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ray.job_submission import JobDetails

    from cluster.submit import Client

STOP_SECONDS = 60.0
"""How long `stop` waits for a job's end. Ray kills its driver 3 s after it has asked it to end."""


@dataclass(frozen=True)
class Cluster:
    address: str = field(default_factory=lambda: os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"))
    """URL of the dashboard on the cluster's head: http://HOST:8265, or https://HOST behind a proxy. A cluster that asks
    for a token gets the one of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, where RAY_AUTH_MODE=token."""
    any_version: bool = False
    """Also where the cluster's version of Ray is another than this one's."""
    ca: str = ""
    """File or folder of certificates that https is checked against. Empty: the system's."""


AtCluster = Annotated[Cluster, tyro.conf.arg(name="")]
Job = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True)
class Submit:
    cluster: AtCluster = field(default_factory=Cluster)
    working_dir: str = "."
    """The project's folder. Its code is sent; data, environments, runs, media, secrets, and what .gitignore or
    .rayignore name, are not; symbolic links are not followed."""
    submission_id: str = ""
    """The job's, to come back to it; a cluster takes each only once. Empty: the command, the recipe and a number."""
    wait: bool = True
    """Print the log, and exit with the job's code, when it ends. --no-wait: exit once it is submitted."""
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an environment variable of the job and its workers; once for each. Secrets are refused, as all who
    see the cluster's jobs would see them."""
    entrypoint_cpus: float = 0.0
    """CPUs reserved for the job's driver. 0: none, and it runs on the head."""
    entrypoint_label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, a label of the node that the driver runs on, as ray.io/market-type=on-demand; once for each."""
    dry_run: bool = False
    """Show each file and the command, and submit nothing."""


@dataclass(frozen=True)
class Status:
    job: Job = ""
    """Its ID. Empty: all jobs of the cluster."""
    cluster: AtCluster = field(default_factory=Cluster)


@dataclass(frozen=True)
class Logs:
    job: Job
    """Its ID, as `status` shows it."""
    cluster: AtCluster = field(default_factory=Cluster)
    follow: bool = False
    """Until the job ends, whose code is then the exit code; Ctrl-C ends this command, not the job."""


@dataclass(frozen=True)
class Stop:
    job: Job
    """Its ID, as `status` shows it."""
    cluster: AtCluster = field(default_factory=Cluster)


def submit(arguments: list[str]) -> int:
    """Submits a command of the project: submit --address URL -- pretrain RECIPE --run.storage /shared/runs ...

    Behind -- stands what follows `python -m pipelines` (pretrain, evaluate, generate, ...) or `python -m tuning`
    (sweep, search, report). Paths are absolute, on a volume that all nodes share, or URIs. The log is shown until the
    job ends. The first Ctrl-C tells how to come back to the job, a second one stops it.
    """
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, words = arguments[:cut], arguments[cut + 1 :]
    options = tyro.cli(Submit, args=own, prog="python -m cluster submit", description=cleandoc(submit.__doc__ or ""))

    from cluster import package as packing
    from cluster import submit as jobs

    command = jobs.entrypoint(words)
    variables = jobs.environment(options.env)
    labels = jobs.pairs("--entrypoint-label", options.entrypoint_label)
    job = jobs.check_id(options.submission_id or jobs.new_id(words))
    package = packing.found(Path(options.working_dir))
    Console(stderr=True).print(package.table(each=options.dry_run))
    if package.links:
        jobs.say(f"not sent, as links are not followed: {', '.join(package.links)}")
    module = command.split()[2]
    if f"{module}/__main__.py" not in package.sizes:
        jobs.say(f"no {module}/ among them: the job runs the one that the cluster has, if it has one")
    jobs.say(command)
    if options.dry_run:
        return 0
    with connected(options.cluster) as client:
        back = f"{job} --address {options.cluster.address}"
        try:
            jobs.send(client, job, command, package, variables=variables, cpus=options.entrypoint_cpus, labels=labels)
        except (OSError, KeyboardInterrupt):
            jobs.say(f"whether the job was submitted tells python -m cluster status {back}")
            raise
        jobs.say(f"submitted: {job}")
        if not options.wait:
            jobs.say(f"python -m cluster status|logs|stop {back}")
            return 0
        return ended(job, asyncio.run(jobs.attend(client, job, back)))


def status(arguments: list[str]) -> int:
    """Shows the cluster's jobs, or one: status [ID] --address URL"""
    options = tyro.cli(Status, args=arguments, prog="python -m cluster status", description=status.__doc__)

    from cluster.submit import check_id

    with connected(options.cluster) as client:
        found = [client.get_job_info(check_id(options.job))] if options.job else client.list_jobs()
    table = Table(Column("id", no_wrap=True), "status", "started", "ended", "command")
    for details in sorted(found, key=lambda details: details.start_time or 0):
        table.add_row(
            Text(details.submission_id or details.job_id or ""),
            details.status.value,
            moment(details.start_time),
            moment(details.end_time),
            Text(details.entrypoint),
        )
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    if options.job and found[0].message:
        console.print(Text(found[0].message))
    return 0


def logs(arguments: list[str]) -> int:
    """Prints a job's log: logs ID [--follow] --address URL"""
    options = tyro.cli(Logs, args=arguments, prog="python -m cluster logs", description=logs.__doc__)

    from cluster import submit as jobs

    job = jobs.check_id(options.job)
    with connected(options.cluster) as client:
        if options.follow:
            return ended(job, asyncio.run(jobs.follow(client, job)))
        print(client.get_job_logs(job), end="")
    return 0


def stop(arguments: list[str]) -> int:
    """Stops a job, and waits for its end: stop ID --address URL"""
    options = tyro.cli(Stop, args=arguments, prog="python -m cluster stop", description=stop.__doc__)

    from cluster.submit import check_id

    job = check_id(options.job)
    with connected(options.cluster) as client:
        client.stop_job(job)
        deadline = time.monotonic() + STOP_SECONDS
        while not (details := client.get_job_info(job)).status.is_terminal():
            if time.monotonic() > deadline:
                raise UserError(f"{job} has not ended in {STOP_SECONDS:g} s: python -m cluster status {job} tells when")
            time.sleep(0.5)
    ended(job, details)
    return 0


def connected(cluster: Cluster) -> "AbstractContextManager[Client]":
    """See `cluster.submit.connected`. Ray is imported by what needs it alone: `--help` is prompt."""
    from cluster import submit as jobs

    return jobs.connected(cluster.address, any_version=cluster.any_version, ca=cluster.ca)


def ended(job: str, details: "JobDetails") -> int:
    """Tells how a job ended. Returns its exit code."""
    from cluster import submit as jobs

    code = jobs.exit_code(details)
    why = f": {details.message}" if code and details.driver_exit_code is None and details.message else ""
    jobs.say(f"{job} {details.status.value.lower()}{f', exit code {code}' if code else ''}{why}")
    return code


def moment(milliseconds: int | None) -> str:
    """Local time of a Unix timestamp; empty for none."""
    return f"{datetime.fromtimestamp(milliseconds / 1e3):%Y-%m-%d %H:%M:%S}" if milliseconds else ""


COMMANDS: dict[str, Callable[[list[str]], int]] = {"submit": submit, "status": status, "logs": logs, "stop": stop}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in COMMANDS:
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        out = sys.stdout if asked else sys.stderr
        print("usage: python -m cluster COMMAND [OPTIONS]\n", file=out)
        for name, command in COMMANDS.items():
            print(f"  {name:7} {(command.__doc__ or '').splitlines()[0]}", file=out)
        return 0 if asked else 2
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("left; a job that was submitted goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as of `logs ID | head`; what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
