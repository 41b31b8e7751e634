"""Submission without a cluster: what is sent, what is refused, and a dashboard's answers, which are made up here."""

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
import ray
from aiohttp import web
from ray._private.runtime_env.packaging import create_package, unzip_package
from ray.dashboard.modules import dashboard_sdk

import pipelines.__main__
import tuning.__main__
from cluster import UserError, package, submit
from cluster.__main__ import main

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"
LIST = ["--", "list"]

# ------------------------------------------------------------------------------------------- what is sent


def tree(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


SENT = {
    ".gitignore": "ignored/\n*.txt\n/local.py\n",
    "pipelines/__main__.py": "print('here')\n",
    "pipelines/data/source.py": "a package named data, which is code",
    "pipelines/tokens.py": "code that is about tokens",
    "pipelines/local.py": "of the same name as what the ignore file names at its top",
    "notes/.gitignore": "!kept.txt\n",
    "notes/kept.txt": "named by the nearer ignore file",
    "Räder und Wege.md": "a name with spaces and accents",
}
KEPT_BACK = {
    "ignored/a.py": "",
    "b.txt": "",
    "notes/c.txt": "",
    "local.py": "",
    ".git/config": "",
    ".venv/lib/x.py": "",
    "own_environment/pyvenv.cfg": "",
    "own_environment/lib/y.py": "",
    "experiments/first/run.json": "{}",
    "experiments/first/metrics.jsonl": "",
    "runs/z.json": "",
    "data/labels.csv": "",
    "pipelines/__pycache__/m.pyc": "",
    ".mypy_cache/x.json": "",
    "some.egg-info/PKG-INFO": "",
    "deep/train.parquet": "",
    "deep/clip.MP4": "",
    "deep/photo.jpg": "",
    "deep/weights.safetensors": "",
    "deep/checkpoints/step.json": "",
    "deep/job.log": "",
    ".env": "",
    ".env.local": "",
    "prod.env": "",
    "deep/server.pem": "",
    "deep/server.KEY": "",
    "deep/ID_RSA.bak": "",
    "id_ed25519": "",
    "credentials.json": "",
    "deep/Credentials": "",
    ".aws/config": "",
    "token": "",
    "ray_token": "",
    "auth_token.txt": "",
    "secrets.yaml": "",
    "secrets/a.py": "",
    ".netrc": "",
}


def test_code_is_sent_and_nothing_else(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", {"private.py": "", "folder/inner.py": ""})
    folder = tree(tmp_path / "project", SENT | KEPT_BACK)
    (folder / "out.py").symlink_to(outside / "private.py")
    (folder / "out").symlink_to(outside / "folder")
    (folder / "harmless.py").symlink_to(folder / ".env")
    os.mkfifo(folder / "pipe.py")
    found = package.found(folder)
    assert set(found.sizes) == set(SENT)
    assert found.size == sum(len(content.encode()) for content in SENT.values())
    assert set(found.links) == {"out.py", "out", "harmless.py"}


def test_an_ignore_file_cannot_ask_for_a_secret(tmp_path: Path) -> None:
    folder = tree(
        tmp_path, {"a.py": "", ".env": "", ".gitignore": "!.env\n", ".rayignore": "!.env\n!*.pem\n", "k.pem": ""}
    )
    assert set(package.found(folder).sizes) == {"a.py", ".gitignore", ".rayignore"}


def test_ignore_files_hold_as_rays_own_packaging_reads_them(tmp_path: Path) -> None:
    names = [
        "a.py",
        "a.tmp2",
        "x/a.tmp2",
        "x/y/b.py",
        "x/y/only/c.py",
        "only/d.py",
        "z/q1.py",
        "z/q2.py",
        "deep/e/f.py",
    ]
    ignore = {
        ".gitignore": "*.tmp2\n/only\n# a comment\nz/q?.py\n!z/q2.py\ndeep/**/f.py\n",
        "x/.gitignore": "y/only/\n",
    }
    folder = tree(tmp_path / "tree", dict.fromkeys(names, "") | ignore)
    create_package(str(folder), tmp_path / "ray.zip", include_gitignore=True, excludes=[])
    with ZipFile(tmp_path / "ray.zip") as archive:
        theirs = {name for name in archive.namelist() if not name.endswith("/")}
    assert "z/q2.py" in theirs and "x/y/only/c.py" not in theirs and "only/d.py" not in theirs
    assert set(package.found(folder).sizes) == theirs


def test_the_same_files_are_the_same_bytes_and_ray_unpacks_them(tmp_path: Path) -> None:
    folder = tree(tmp_path / "project", SENT)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    one = package.found(folder).write(tmp_path / "one.zip")
    os.utime(folder / "run.sh", (0, 0))
    two = package.found(folder).write(tmp_path / "two.zip")
    assert one.read_bytes() == two.read_bytes()
    unpacked = tmp_path / "unpacked"
    unzip_package(str(one), str(unpacked), remove_top_level_directory=False, unlink_zip=False)
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert files == {*SENT, "run.sh"}
    assert all((unpacked / name).read_bytes() == (folder / name).read_bytes() for name in files)
    assert os.access(unpacked / "run.sh", os.X_OK) and not os.access(unpacked / "pipelines/__main__.py", os.X_OK)


def test_more_than_50_mb_are_refused_with_the_largest_named(tmp_path: Path) -> None:
    folder = tree(tmp_path, {f"{i}.py": "." * (1000 + i) for i in range(20)})
    for name, megabytes in (("big.bin", 30), ("bigger.bin", 21)):
        with (folder / name).open("wb") as file:
            file.truncate(megabytes * 1_000_000)  # a hole: takes no space
    with pytest.raises(UserError, match=r"51\.0 MB to send, more than 50 MB") as refused:
        package.found(folder)
    lines = str(refused.value).splitlines()[1:]
    assert [line.split()[-1] for line in lines[:3]] == ["big.bin", "bigger.bin", "19.py"]
    assert len(lines) == package.LARGEST
    (folder / ".rayignore").write_text("bigger.bin\n")
    assert "big.bin" in package.found(folder).sizes


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (f"token = '{TOKEN}'\n", "the cluster's token"),
        ("-----BEGIN " + "OPENSSH PRIVATE KEY-----\n", "a private key"),
        ('{"private_key": "-----BEGIN ' + 'PRIVATE KEY-----"}', "a private key"),
    ],
)
def test_a_file_that_holds_a_secret_is_named(tmp_path: Path, content: str, what: str) -> None:
    folder = tree(tmp_path / "project", {"a.py": "", "harmless.py": content})
    with pytest.raises(UserError, match=rf"harmless\.py holds {what}"):
        package.found(folder).write(tmp_path / "x.zip", TOKEN)


@pytest.mark.parametrize(("files", "message"), [({}, "nothing to send"), ({"a\udcff.py": ""}, "rename it")])
def test_what_cannot_be_sent_is_told(tmp_path: Path, files: Mapping[str, str | bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        package.found(tree(tmp_path, files))
    with pytest.raises(UserError, match="is not a folder"):
        package.found(tmp_path / "none")


def test_this_project_is_small_enough_and_whole() -> None:
    found = package.found(ROOT)
    assert {"pipelines/__main__.py", "tuning/__main__.py", "methods/sce.py", "pyproject.toml"} <= set(found.sizes)
    assert found.size < 10_000_000


# -------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["pretrain", "demo", "--run.storage", "/mnt/runs", "--run.name", "a b'c\"; rm -rf $HOME `x` *"],
        ["pretrain", "demo", "--run.storage=s3://bucket/runs", "--data.train", "s3://bucket/{dataset}/*.parquet"],
        ["pretrain", "demo", "--run.storage", "/mnt/runs", "--data.test", "", "--data.noise-file="],
        ["sweep", "sce_table1", "--run.storage", "gs://b/r"],
        ["search", "sce_cifar10", "--run.storage", "/mnt/runs", "--space", "my.py:function"],
        ["evaluate", "/mnt/runs/first", "knn"],
        ["generate", "s3://bucket/runs/first", "--to", "/mnt/x.png"],
        ["report", "/mnt/runs/t"],
    ],
)
def test_the_shell_gives_the_command_its_words_unchanged(words: list[str]) -> None:
    line = submit.entrypoint(words)
    assert shlex.split(line) == [
        "python",
        "-m",
        "tuning" if words[0] in ("sweep", "search", "report") else "pipelines",
        *words,
    ]


def test_every_command_of_the_project_can_be_submitted() -> None:
    known = {"pipelines": set(pipelines.__main__.COMMANDS), "tuning": set(tuning.__main__.COMMANDS) - {"list"}}
    assert {name: set(commands) for name, commands in submit.COMMANDS.items()} == known


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command"),
        (["python", "x.py"], "no command python"),
        (["pretrain", "demo"], "relative --run.storage runs unless told"),
        (["sweep", "sce_table1"], "s3://bucket/folder"),
        (["search", "sce_cifar10"], "absolute path"),
        (["pretrain", "demo", "--run.storage", "runs"], "--run.storage runs is relative"),
        (["pretrain", "demo", "--run.storage=./runs"], "is relative"),
        (["pretrain", "demo", "--run.storage", ""], "is relative"),
        (["pretrain", "demo", "--run.storage", "~/runs"], "is relative"),
        (["pretrain", "demo", "--run.storage", "/mnt", "--run.storage", "x"], "--run.storage x is relative"),
        (["pretrain", "demo", "--run.storage", "/mnt", "--data.train", "data/*.parquet"], "--data.train data/"),
        (["pretrain", "demo", "--run.storage", "/mnt", "--data.test=test.parquet"], "--data.test test.parquet"),
        (["pretrain", "demo", "--run.storage", "/mnt", "--data.noise_file", "l.npy"], "--data.noise-file l.npy"),
        (["pretrain", "demo", "--run.storage", "/mnt", "--start-from", "runs/a"], "--start-from runs/a"),
        (["pretrain", "demo", "--run.storage", "/mnt", "--run.address", "auto"], "leave out the address"),
        (["pretrain", "demo", "--run.storage", "s3://KEY:SECRET@bucket/x"], "a URI with a password"),
        (["pretrain", "demo", "--run.storage", "s3://KEY:SEC/RET@bucket/x"], "a URI with a password"),
        (["pretrain", "demo", "--data.train", "abfs://x/y?client_secret=SECRET"], "a URI with a password or a key"),
        (["evaluate", "runs/first", "knn"], "evaluate runs/first is relative"),
        (["generate", "runs/first", "--to", "/mnt/x.png"], "generate runs/first is relative"),
        (["generate", "/mnt/first", "--to", "x.png"], "--to x.png"),
        (["report", "runs/t"], "report runs/t is relative"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        submit.entrypoint(words)
    assert message in str(refused.value)
    assert "SECRET" not in str(refused.value)


def test_environment_takes_no_secret() -> None:
    harmless = {"NAME": "a=b c", "TOKENIZERS_PARALLELISM": "0", "KEYBOARD": "x", "RAY_DATA_LOG_LEVEL": "ERROR"}
    assert submit.environment([f"{name}={value}" for name, value in harmless.items()]) == harmless
    secrets = ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "RAY_ADDRESS")
    for name in secrets:
        with pytest.raises(UserError, match=name) as refused:
            submit.environment([f"{name}=hunter2"])
        assert "hunter2" not in str(refused.value)
    with pytest.raises(UserError, match="STORE would show a secret"):
        submit.environment(["STORE=s3://me:hunter2@bucket"])
    with pytest.raises(UserError, match="NAME=VALUE"):
        submit.environment(["NAME"])


@pytest.mark.parametrize("job", ["", "../x", "a/b", "a b", "-x", "x" * 200, "ä", "a\n"])
def test_an_id_that_is_no_name_is_refused(job: str) -> None:
    with pytest.raises(UserError, match="is not a job's ID"):
        submit.check_id(job)
    assert submit.check_id(submit.new_id(["pretrain", "sce_cifar10"])).startswith("pretrain-sce_cifar10-")


# ------------------------------------------------------------------------------------------ the dashboard


class Dashboard:
    """The part of the job server that the command talks to. Its job ends by itself, or with `stop`."""

    def __init__(self) -> None:
        self.url = ""
        self.token = ""
        self.version: dict[str, str] | str = {"ray_version": ray.__version__, "version": "4", "ray_commit": ""}
        self.log = ["Running entrypoint\n", "epoch 0\nepoch 1\n", "a line that is ", "cut\n", "end\n"]
        self.status, self.exit_code, self.message = "SUCCEEDED", 0, ""
        self.endless = False
        """The job runs until it is stopped."""
        self.stubborn = False
        """It runs even then."""
        self.breaks: list[str] = []
        """How the next streams go wrong: abort, close or silence, after two pieces."""
        self.away = 0
        """How many questions about the job have no answer."""
        self.delay = 0.0
        self.sends: Callable[[], None] = lambda: None
        """Called before each piece of a stream."""
        self.streams, self.stops = 0, 0
        self.submitted: dict[str, Any] = {}
        self.package = b""

    def routes(self) -> web.Application:
        app = web.Application(client_max_size=100 * 2**20, middlewares=[self.guard])
        app.router.add_get("/api/version", self.get_version)
        app.router.add_route("*", "/api/packages/{protocol}/{name}", self.packages)
        app.router.add_post("/api/jobs/", self.post)
        app.router.add_get("/api/jobs/", self.all)
        app.router.add_get("/api/jobs/{job}", self.info)
        app.router.add_get("/api/jobs/{job}/logs", self.logs)
        app.router.add_get("/api/jobs/{job}/logs/tail", self.tail)
        app.router.add_post("/api/jobs/{job}/stop", self.stop)
        return app

    @web.middleware
    async def guard(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        sent = request.headers.get("Authorization", "")
        if self.token and sent != f"Bearer {self.token}":
            return web.Response(status=403 if sent else 401, text="Forbidden" if sent else "Unauthorized")
        await asyncio.sleep(self.delay)
        if "job" in request.match_info and request.match_info["job"] != self.submitted.get("submission_id"):
            return web.Response(status=404, text=f"Job {request.match_info['job']} does not exist")
        response: web.StreamResponse = await handler(request)
        return response

    async def get_version(self, request: web.Request) -> web.Response:
        return web.json_response(self.version) if isinstance(self.version, dict) else web.Response(text=self.version)

    async def packages(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.Response(status=200 if self.package else 404)
        self.package = await request.read()
        return web.Response()

    async def post(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["submission_id"] == self.submitted.get("submission_id"):
            text = f"Traceback (most recent call last):\nValueError: Job {asked['submission_id']} already exists.\n"
            return web.Response(status=400, text=text)
        self.submitted = asked
        return web.json_response({"job_id": asked["submission_id"], "submission_id": asked["submission_id"]})

    def details(self) -> dict[str, Any]:
        return {
            "type": "SUBMISSION",
            "submission_id": self.submitted["submission_id"],
            "entrypoint": self.submitted["entrypoint"],
            "status": "RUNNING" if self.endless else self.status,
            "message": self.message or None,
            "start_time": 1_700_000_000_000,
            "driver_exit_code": None if self.endless else self.exit_code,
        }

    async def all(self, request: web.Request) -> web.Response:
        return web.json_response([self.details()] if self.submitted else [])

    async def info(self, request: web.Request) -> web.Response:
        if self.away:
            self.away -= 1
            return web.Response(status=503, text="no")
        return web.json_response(self.details())

    async def logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": "".join(self.log)})

    async def tail(self, request: web.Request) -> web.StreamResponse:
        self.streams += 1
        broken = self.breaks.pop(0) if self.breaks else ""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        log = "".join(self.log)
        pieces = (
            self.log if self.streams % 2 else [log[i : i + 9] for i in range(0, len(log), 9)]
        )  # never the same ones
        for text in pieces[: 2 if broken else None]:
            self.sends()
            await socket.send_str(text)
        if broken == "abort" and request.transport:
            request.transport.abort()
        while (broken == "silence" or (self.endless and not broken)) and request.transport is not None:
            await asyncio.sleep(0.02)
            since = "".join(self.log)[len(log) :]
            if since and not broken:
                await socket.send_str(since)
                log += since
        return socket

    async def stop(self, request: web.Request) -> web.Response:
        self.stops += 1
        if not self.stubborn:
            self.endless, self.status, self.exit_code = False, "STOPPED", 0
        return web.json_response({"stopped": True})


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setattr(submit, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(dashboard_sdk, "get_auth_headers_if_auth_enabled", lambda headers: {})  # read once a process
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    fake, loop, ready = Dashboard(), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(fake.routes(), shutdown_timeout=0.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def serve() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(10)
    yield fake
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tree(tmp_path / "project", {"pipelines/__main__.py": "", ".env": "PASSWORD=x"})


def submitted(dashboard: Dashboard, project: Path, *options: str, words: list[str] = LIST) -> int:
    return main(["submit", "--address", dashboard.url, "--working-dir", str(project), *options, *words])


def test_a_job_is_submitted_its_log_shown_and_its_code_returned(
    dashboard: Dashboard, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--submission-id first --env A=1 --env B=2 --entrypoint-cpus 0.5 --entrypoint-label ray.io/a=on-demand"
    assert submitted(dashboard, project, *options.split()) == 0
    out, err = capsys.readouterr()
    assert out == "".join(dashboard.log)
    assert "first succeeded" in err and "pipelines/" in err and str(project)[-10:] in err.replace("\n", "")
    asked = dashboard.submitted
    assert asked["entrypoint"] == "python -m pipelines list" and asked["submission_id"] == "first"
    assert asked["runtime_env"]["env_vars"] == {"A": "1", "B": "2"}
    assert asked["runtime_env"]["working_dir"].startswith("gcs://")
    assert (asked["entrypoint_num_cpus"], asked["entrypoint_label_selector"]) == (
        0.5,
        {"ray.io/a": "on-demand"},
    )
    (tmp_path / "x.zip").write_bytes(dashboard.package)
    assert ZipFile(tmp_path / "x.zip").namelist() == ["pipelines/__main__.py"]
    assert submitted(dashboard, project, "--submission-id", "first") == 1
    assert "first already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_exit_codes_are_the_jobs(
    dashboard: Dashboard, project: Path, status: str, driver: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.status, dashboard.exit_code, dashboard.message = status, driver, "because of this"
    assert submitted(dashboard, project) == code
    assert ("because of this" in capsys.readouterr().err) == (driver is None)


@pytest.mark.parametrize("breaks", [["abort"], ["close", "abort", "close"], ["silence", "abort"]])
def test_a_broken_stream_is_taken_up_again_without_repeating_a_line(
    dashboard: Dashboard,
    project: Path,
    breaks: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit, "SILENCE", 0.3)
    dashboard.breaks, dashboard.endless, streams = list(breaks), True, len(breaks) + 1
    ending = threading.Thread(target=lambda: ended_after(dashboard, streams))
    ending.start()
    assert submitted(dashboard, project) == 0
    ending.join(10)
    assert dashboard.streams >= streams
    assert capsys.readouterr().out == "".join(dashboard.log)


def test_the_end_of_a_log_whose_stream_broke_as_the_job_ended_is_shown(
    dashboard: Dashboard, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.breaks = ["abort"]
    assert submitted(dashboard, project) == 0
    assert capsys.readouterr().out == "".join(dashboard.log)


def ended_after(dashboard: Dashboard, streams: int) -> None:
    """Lets the job end once its log has been asked for so often."""
    until(lambda: dashboard.streams >= streams)
    dashboard.endless = False


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_cluster_that_does_not_answer_for_a_while_is_asked_again(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.away = 3
    assert submitted(dashboard, project) == 0
    out, err = capsys.readouterr()
    assert out == "".join(dashboard.log)
    assert err.count("no answer from the cluster") == 1 and "the cluster answers again" in err
    monkeypatch.setattr(submit, "PATIENCE", 0.05)
    dashboard.away = 10_000
    assert submitted(dashboard, project) == 1
    assert "error: the cluster refuses: 503" in capsys.readouterr().err


def test_a_log_that_comes_is_an_answer(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log that flows for longer than a cluster is waited for, each line a while after the one before, and then a
    moment without an answer."""
    now = [0.0]

    def later() -> None:
        now[0] += 0.9 * submit.PATIENCE

    monkeypatch.setattr(submit, "time", SimpleNamespace(monotonic=lambda: now[0]))
    dashboard.sends, dashboard.away = later, 2
    assert submitted(dashboard, project) == 0
    assert now[0] > 1.5 * submit.PATIENCE
    assert "the cluster answers again" in capsys.readouterr().err


def test_a_job_that_waits_says_for_what(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "SILENCE", 0.1)
    dashboard.status, dashboard.message, dashboard.log = "PENDING", "It may be waiting for CPUs.", []

    def go() -> None:
        until(lambda: dashboard.streams >= 3)
        dashboard.status, dashboard.message = "SUCCEEDED", ""

    going = threading.Thread(target=go)
    going.start()
    assert submitted(dashboard, project) == 0
    going.join(10)
    assert capsys.readouterr().err.count("It may be waiting for CPUs.") == 1


# -------------------------------------------------------------------------------------------- clear errors


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def test_a_missing_token_and_a_wrong_one(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.token = TOKEN
    error = failure(capsys, "status", "--address", dashboard.url)
    assert "asks for a token and got none: set RAY_AUTH_MODE=token" in error
    sent = {"authorization": "Bearer another-token"}
    monkeypatch.setattr(dashboard_sdk, "get_auth_headers_if_auth_enabled", lambda headers: sent)
    error = failure(capsys, "status", "--address", dashboard.url)
    assert "the token is not that of" in error and "RAY_AUTH_TOKEN_PATH" in error
    assert "another-token" not in error and TOKEN not in error


def test_an_address_where_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert "Connection refused" in failure(capsys, "status", "--address", address)


def test_an_address_that_never_answers(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "ANSWER", 0.2)
    dashboard.delay = 1.0
    assert "no answer in time" in failure(capsys, "status", "--address", dashboard.url)


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "auto", "", "http://"])
def test_an_address_that_is_no_url(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a dashboard's URL" in failure(capsys, "status", "--address", address)


def test_an_address_keeps_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hunter2" not in failure(capsys, "status", "--address", "http://me:hunter2@127.0.0.1:8265")


@pytest.mark.parametrize("answer", ["<html>hello</html>", {"status": "fine"}])
def test_something_else_than_a_dashboard(
    dashboard: Dashboard, answer: dict[str, str] | str, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.version = answer
    assert "is not a Ray dashboard" in failure(capsys, "status", "--address", dashboard.url)
    assert "is not a Ray dashboard" in failure(capsys, "status", "--address", f"{dashboard.url}/elsewhere")


def test_another_version_of_ray(dashboard: Dashboard, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dashboard.version = {"ray_version": "2.53.0", "version": "4", "ray_commit": ""}
    assert submitted(dashboard, project) == 1
    err = capsys.readouterr().err
    assert f"the cluster runs Ray 2.53.0, and here is {ray.__version__}" in err and "--any-version" in err
    assert not dashboard.submitted and not dashboard.package
    assert submitted(dashboard, project, "--any-version") == 0


def test_what_is_refused_is_refused_before_anything_is_sent(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted(dashboard, project, words=["--", "pretrain", "demo"]) == 1
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert submitted(dashboard, project, "--env", f"NAME={TOKEN}") == 1
    assert submitted(dashboard, project, words=["--", "evaluate", f"/mnt/{TOKEN}", "knn"]) == 1
    (project / "notes.py").write_text(TOKEN)
    assert submitted(dashboard, project) == 1
    assert not dashboard.submitted and not dashboard.package


def test_the_address_given_goes_before_rays_variables(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert main(["status", "--address", dashboard.url]) == 0


# ---------------------------------------------------------------------------------- status, logs, stop, Ctrl-C


def test_status_logs_and_stop(dashboard: Dashboard, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dashboard.endless = True
    assert submitted(dashboard, project, "--no-wait", "--submission-id", "here") == 0
    assert "status|logs|stop here --address http://127.0.0.1" in capsys.readouterr().err
    at = ("--address", dashboard.url)
    assert main(["status", *at]) == 0
    out = capsys.readouterr().out
    assert "here" in out and "RUNNING" in out and "2023-11-1" in out and "python -m pipelines list" in out
    assert main(["logs", "here", *at]) == 0
    assert capsys.readouterr().out == "".join(dashboard.log)
    assert main(["stop", "here", *at]) == 0
    assert "here stopped" in capsys.readouterr().err
    assert main(["logs", "here", "--follow", *at]) == 130
    assert capsys.readouterr().out == "".join(dashboard.log)
    for command in ("status", "logs", "stop"):
        assert "Job elsewhere does not exist" in failure(capsys, command, "elsewhere", *at)
    assert "knows no job elsewhere" in failure(capsys, "logs", "elsewhere", "--follow", *at)


def test_a_dry_run_names_every_file_and_sends_nothing(
    dashboard: Dashboard, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted(dashboard, project, "--dry-run") == 0
    err = capsys.readouterr().err
    assert "pipelines/__main__.py" in err and "python -m pipelines list" in err and ".env" not in err
    assert not dashboard.submitted and not dashboard.package


def test_first_ctrl_c_tells_and_the_second_stops(dashboard: Dashboard, project: Path, tmp_path: Path) -> None:
    """In a process of its own, as it is used, with a token from a file."""
    dashboard.token, dashboard.endless = TOKEN, True
    (tmp_path / "t").write_text(f"{TOKEN}\n")
    command = ["submit", "--address", dashboard.url, "--working-dir", str(project), "--submission-id", "mine", *LIST]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster", *command],
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "t")},
            stdout=out,
            stderr=err,
        )
    try:
        until(lambda: (tmp_path / "out").read_text() == "".join(dashboard.log))
        process.send_signal(signal.SIGINT)
        until(lambda: "A second Ctrl-C stops the job" in (tmp_path / "err").read_text())
        assert f"logs mine --address {dashboard.url} --follow" in (tmp_path / "err").read_text()
        dashboard.log.append("epoch 2\n")
        until(lambda: (tmp_path / "out").read_text() == "".join(dashboard.log))  # it is still followed
        assert process.poll() is None and dashboard.stops == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
    assert dashboard.stops == 1
    told = (tmp_path / "err").read_text()
    assert "mine stopped" in told and "INFO" not in told and "Traceback" not in told
    assert (tmp_path / "out").read_text() == "".join(dashboard.log)
    assert TOKEN not in told + json.dumps(dashboard.submitted) and TOKEN.encode() not in dashboard.package


def test_third_ctrl_c_leaves_a_job_that_does_not_end(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard.endless, dashboard.stubborn, said = True, True, list[str]()
    monkeypatch.setattr(submit, "say", said.append)

    def press() -> None:
        for condition in (
            lambda: dashboard.streams > 0,
            lambda: any("goes on" in message for message in said),
            lambda: dashboard.stops > 0,
        ):
            until(condition)
            os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(SystemExit) as left:
        submitted(dashboard, project, "--submission-id", "mine")
    pressing.join(10)
    assert left.value.code == 130 and dashboard.stops == 1
    assert "python -m cluster status mine" in said[-1]
