"""A job on a Ray cluster: its command, its submission, its log until it ends, and Ctrl-C.

Ray's own client does the talking, over the dashboard's http(s). A token goes with it where RAY_AUTH_MODE=token says so,
from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, as Ray reads them; it is in nothing that is sent besides.
"""

import asyncio
import itertools
import logging
import os
import re
import secrets
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster import UserError
from cluster.package import Package

CONNECT, ANSWER, UPLOAD = 5.0, 30.0, 600.0
"""Seconds for a connection, for an answer, and for a package to be sent (50 MB at 0.7 Mbit/s)."""
SILENCE = 60.0
"""Seconds without a word after which the log is asked for anew: its connection may have been lost without a trace."""
PATIENCE = 600.0
"""Seconds for which a cluster that does not answer is asked again."""
PAUSES = 1.0, 10.0
"""Seconds between two tries, at first and at most."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that a token may go to unencrypted."""

# ------------------------------------------------------------------------------------------ the command

COMMANDS = {
    "pipelines": ("list", "data", "pretrain", "evaluate", "export", "generate", "bench"),
    "tuning": ("sweep", "search", "report"),
}
"""What can be submitted, by the package whose command it is."""
STORING = ("pretrain", "sweep", "search")
"""Write runs under --run.storage, whose default is relative."""
NAMING = ("evaluate", "export", "generate", "report")
"""Name a run's folder first."""
PATHS = (
    *("--run.storage", "--data.train", "--data.test", "--data.noise-file", "--labelled", "--labelled-test"),
    *("--start-from", "--source", "--to"),
)
"""Options that hold a path, of data or of results; code (--space) may be relative, as it is sent."""
RESULTS = ("--run.storage", "--to")
"""Of these, those that name a place even where empty; an empty path of data means that there are none."""
KEYS = re.compile(r"://[^\s?@]*:[^\s?]*@|://\S*[?&]([^\s=&]*(secret|token|passw|signature|key)[^\s=&]*|sig)=", re.I)
"""A password or a secret in a URI, as the storage refuses it."""
REMEDY = "give an absolute path on a volume that all nodes share, or a URI as s3://bucket/folder"


def entrypoint(words: Sequence[str]) -> str:
    """The shell command of `words`, a command line of the project without `python -m PACKAGE`.

    Raises:
        UserError: no such command; a relative path, which would be a folder of one node that vanishes with the job; an
            address or a password in it.
    """
    package = next((package for package, names in COMMANDS.items() if words and words[0] in names), None)
    if package is None:
        known = ", ".join(itertools.chain(*COMMANDS.values()))
        raise UserError(f"no command {words[0] if words else ''} to submit: write one of {known} behind --")
    for word in words:
        if KEYS.search(word):
            raise UserError(
                "a URI with a password or a key would stand in logs: leave it out, and let the nodes have it"
            )
    given = _options(words)
    if "--run.address" in given or "--address" in given:
        raise UserError("a job runs on the cluster that it is submitted to: leave out the address behind --")
    if words[0] in STORING and "--run.storage" not in given:
        raise UserError(f"{words[0]} writes to the relative --run.storage runs unless told: {REMEDY}")
    paths = [(name, given[name]) for name in PATHS if name in given and (given[name] or name in RESULTS)]
    if words[0] in NAMING and len(words) > 1 and not words[1].startswith("-"):
        paths.append((words[0], words[1]))
    for name, path in paths:
        if "://" not in path and not path.startswith("/"):
            raise UserError(f"{name} {path} is relative, and its folder is not there on the cluster: {REMEDY}")
    return shlex.join(["python", "-m", package, *words])


def _options(words: Sequence[str]) -> dict[str, str]:
    """The last value of each option, by its name with hyphens; empty where none follows."""
    given = {}
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            given[name.replace("_", "-")] = value if equals else following
    return given


def pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of an option that may be given several times."""
    for word in words:
        if not re.match(r"[A-Za-z_][\w./-]*=", word, re.ASCII):
            raise UserError(f"{option} takes NAME=VALUE, not {word.partition('=')[0]}")
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}


def environment(words: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of --env. Raises UserError for a secret: whoever sees the dashboard sees it too."""
    variables = pairs("--env", words)
    for name, value in variables.items():
        named = re.search(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|KEY)S?(_|$)|^RAY_AUTH_", name.upper())
        if named or KEYS.search(value):
            raise UserError(
                f"--env {name} would show a secret to all who see the cluster's jobs: set it on the nodes "
                "(a Kubernetes secret, the machine's role)"
            )
        if name == "RAY_ADDRESS":
            raise UserError("--env RAY_ADDRESS is Ray's own in a job: leave it out")
    return variables


def new_id(words: Sequence[str]) -> str:
    """Of a job, unlike any other: pretrain-sce_cifar10-1f2e3d4c."""
    named = words[: 2 if words[0] in STORING else 1]
    return re.sub(r"[^\w.-]", "", "-".join([*named, secrets.token_hex(4)]), flags=re.ASCII)


def check_id(job: str) -> str:
    """`job`. Raises UserError where it can't stand in a URL and in a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,127}", job, re.ASCII):
        raise UserError(f"{job!a} is not a job's ID: letters, digits, '_', '-' and '.', as `status` shows them")
    return job


# -------------------------------------------------------------------------------------------- the cluster


class Client(JobSubmissionClient):
    """Ray's client, with limits of time: its requests have none."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        # a limit for the connection holds for sending too, hence one of its own for packages
        limits = UPLOAD if method == "PUT" else (CONNECT, ANSWER)
        return super()._do_request(method, endpoint, timeout=limits, **options)

    @property
    def ray_version(self) -> str:
        """The cluster's."""
        return str(self._server_ray_version)


@contextmanager
def connected(address: str, *, any_version: bool = False, ca: str = "") -> Iterator[Client]:
    """A client of the cluster at `address`.

    Args:
        address: URL of the dashboard.
        any_version: also where the cluster's version of Ray is another than this one's.
        ca: file or folder of certificates that https is checked against. Empty: the system's.

    Raises:
        UserError: also for what the client raises inside: no connection, no dashboard, a missing or a wrong token, a
            job that is not there.
    """
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(f"--address {address} is not a dashboard's URL: write http://HOST:8265 or https://HOST")
    if url.username is not None:
        raise UserError("--address holds a user's name: leave it out, Ray takes its token from RAY_AUTH_TOKEN_PATH")
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)  # the client would take them in place of the address
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    if os.environ.get("RAY_AUTH_MODE") == "token" and url.scheme == "http" and url.hostname not in LOOPBACK:
        say(f"the token goes to {url.hostname} unencrypted: use https, or a tunnel (ssh -L, kubectl port-forward)")
    try:
        try:
            client = Client(address, verify=ca or True)
        except FileNotFoundError as error:
            raise UserError(f"--ca {ca} is not there") from error
        except (KeyError, TypeError, ValueError) as error:  # what answers is not JSON, or has no version
            raise UserError(f"what answers at {address} is not a Ray dashboard: check the port") from error
        if client.ray_version != ray.__version__ and not any_version:
            raise UserError(
                f"the cluster runs Ray {client.ray_version}, and here is {ray.__version__}: install that one here "
                f"(ray[default]=={client.ray_version}), or give --any-version"
            )
        yield client
    except BrokenPipeError:
        raise  # of what reads the log here
    except AuthenticationError as error:
        raise UserError(_unauthorized(address, error.message)) from error
    except (ConnectionError, requests.RequestException) as error:
        raise UserError(
            f"cannot reach {address} ({_reason(error)}): check the address, and that the head runs"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if text.startswith("Version check"):
            raise UserError(f"what answers at {address} is not a Ray dashboard: check the port") from error
        if not text.startswith("Request failed"):
            raise
        lines = [line for line in text.splitlines() if re.search(r"\w", line)]  # the last one is a full stop
        line = lines[-1 if "Traceback" in text else 0]  # the server's traceback ends with the error
        raise UserError(f"the cluster refuses: {line.rpartition('status code ')[2]}") from error


def _unauthorized(address: str, message: str) -> str:
    where = "RAY_AUTH_TOKEN, or a file that RAY_AUTH_TOKEN_PATH names"
    if message.startswith("Authentication required"):
        return f"{address} asks for a token and got none: set RAY_AUTH_MODE=token, and the token in {where}"
    if message.startswith("Authentication failed"):
        return f"the token is not that of {address}: check {where} (the first goes before the second)"
    return f"no token ({message.partition(chr(10))[0]}): set {where}"


def _reason(error: Exception) -> str:
    """In few words, why there is no connection."""
    cause = error.__context__ if isinstance(error.__context__, requests.RequestException) else error
    if isinstance(cause, requests.exceptions.SSLError):
        return "its certificate is not trusted; --ca names those that are"
    if isinstance(cause, requests.Timeout):
        return "no answer in time"
    known = re.search(r"\[Errno -?\d+\] ([^'\"()]+)", str(cause))
    return known[1].strip() if known else str(cause).partition("\n")[0][:200]


def token() -> str:
    """The cluster's, as Ray finds it, to see that nothing sent holds it. Empty: none, or one too short to be one."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    try:
        value = os.environ.get("RAY_AUTH_TOKEN") or Path(path).expanduser().read_text()
    except (OSError, ValueError):
        return ""
    return value.strip() if len(value.strip()) >= 8 else ""


def say(message: str) -> None:
    """To the user, apart from the job's log."""
    print(message, file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------------------- a job


def send(
    client: Client,
    job: str,
    command: str,
    package: Package,
    *,
    variables: Mapping[str, str],
    cpus: float = 0.0,
    labels: Mapping[str, str],
) -> None:
    """Sends the package and submits the job.

    Args:
        cpus: reserved for the driver. 0: none, it runs on the head.
        labels: of the node that the driver runs on.
    """
    secret = token()
    if secret and any(secret in text for text in (command, job, *variables.values(), *labels.values())):
        raise UserError("the command holds the cluster's token: leave it out, nodes have it already")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            archive = package.write(Path(scratch) / "working_dir.zip", secret)
        except OSError as error:
            raise UserError(f"cannot write to {scratch} ({error.strerror}): free space there, or set TMPDIR") from error
        client.submit_job(
            entrypoint=command,
            submission_id=job,
            runtime_env={"working_dir": str(archive)} | ({"env_vars": dict(variables)} if variables else {}),
            entrypoint_num_cpus=cpus or None,
            entrypoint_label_selector=dict(labels) or None,
        )


async def follow(client: Client, job: str) -> JobDetails:
    """Prints the log until the job has ended. A stream that breaks, ends early or falls silent is opened anew.

    A stream begins with the log's first character, so that what was printed can be left out.

    Raises:
        UserError: the cluster did not answer for PATIENCE seconds, or no longer knows the job.
    """
    loop = asyncio.get_running_loop()
    printed, pause, answered, lost, ended, told = 0, PAUSES[0], time.monotonic(), False, False, ""
    while True:
        came, whole, stream = 0, False, cast(AsyncGenerator[str], client.tail_job_logs(job))
        try:
            async with asyncio.timeout(SILENCE) as limit, aclosing(stream):
                async for text in stream:
                    came, answered = came + len(text), time.monotonic()
                    if came > printed:
                        print(text[len(text) - (came - printed) :], end="", flush=True)
                        printed, pause = came, PAUSES[0]
                    limit.reschedule(loop.time() + SILENCE)
            whole = True
        except (aiohttp.ClientError, RuntimeError, TimeoutError):
            pass  # what has become of the job is asked next
        try:
            details = await asyncio.to_thread(client.get_job_info, job)
        except (ConnectionError, requests.RequestException, RuntimeError) as error:
            if f"Job {job} does not exist" in str(error):
                raise UserError(
                    f"the cluster knows no job {job}: its head was started anew, or the ID is wrong"
                ) from error
            if time.monotonic() - answered > PATIENCE:
                raise
            if not lost:
                say(f"no answer from the cluster ({_reason(error)}): trying again for {PATIENCE / 60:g} minutes")
            lost = True
        else:
            if lost:
                say("the cluster answers again")
            answered, lost = time.monotonic(), False
            if details.status.is_terminal():
                if whole or ended:
                    return details
                ended = True  # once more, for the end of the log
            elif details.status == JobStatus.PENDING and details.message not in (None, told):
                told = details.message
                say(told)
        await asyncio.sleep(pause)
        pause = min(2 * pause, PAUSES[1])


async def attend(client: Client, job: str, back: str) -> JobDetails:
    """Follows a job. The first Ctrl-C only tells how to come `back`, the second stops the job, the third leaves."""
    loop = asyncio.get_running_loop()
    following = asyncio.create_task(follow(client, job))
    presses = itertools.count(1)

    async def stop() -> None:
        try:
            await asyncio.to_thread(client.stop_job, job)
        except (AuthenticationError, ConnectionError, requests.RequestException, RuntimeError) as error:
            say(f"could not stop it ({_reason(error)}): python -m cluster stop {back}")

    def interrupted() -> None:
        match next(presses):
            case 1:
                say(
                    "\nThe job goes on, also when this terminal is closed. To come back to it:\n"
                    f"  python -m cluster logs {back} --follow\nA second Ctrl-C stops the job."
                )
            case 2:
                say("\nstopping the job; a third Ctrl-C does not wait for its end")
                stops.append(asyncio.create_task(stop()))
            case _:
                following.cancel()

    stops: list[asyncio.Task[None]] = []
    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        return await following
    except asyncio.CancelledError:
        say(f"left before the job has ended: python -m cluster status {back}")
        raise SystemExit(130) from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def exit_code(details: JobDetails) -> int:
    """Of the job's driver, as a shell has it; 130 for a job that was stopped, 1 for one that did not start."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return 130
    code = details.driver_exit_code or 1
    return code if code > 0 else 128 - code
