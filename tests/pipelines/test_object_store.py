"""Checkpoints on an S3-compatible server (moto's) behind a proxy that refuses, stalls and cuts what it is told to.

moto needs an older python-dateutil than the rest of the project, and so has an environment of its own, the folder
`moto` in this one.
"""

import http.client
import itertools
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pyarrow.fs
import pytest
import torch
from heads import free_ports, listens, until

from pipelines import storage
from pipelines.errors import UserError
from pipelines.storage import PATIENCE, Checkpoints, Folder, open_folder

SERVER = shutil.which("moto_server", path=f"{sys.prefix}/moto/bin")  # others may be too old for pyarrow
pytestmark = pytest.mark.skipif(SERVER is None, reason="no moto: make .venv/moto/.installed")

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAOFTHETESTS", "AWS_SECRET_ACCESS_KEY": "hunter2"}
SLOW = "503 SlowDown"
WEIGHTS = torch.arange(1000.0)


class Proxy(ThreadingHTTPServer):
    """Before the server at `port`. `fault` is asked for each request, with its number, method and path: "" passes it
    on, "503 CODE" answers so, "stall" never answers, "drop" closes the connection, "half" cuts the answer.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.behind = port
        self.seen = list[str]()
        self.fault: Callable[[int, str, str], str] = lambda number, method, path: ""
        self.done = threading.Event()

    def heal(self) -> None:
        self.seen.clear()
        self.fault = lambda number, method, path: ""

    def handle_error(self, *_: object) -> None:
        """A client that does not wait for its answer."""


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self) -> None:
        proxy, body = cast(Proxy, self.server), self.body()
        proxy.seen.append(f"{self.command} {self.path}")
        fault = proxy.fault(len(proxy.seen), self.command, self.path)
        if fault in ("stall", "drop"):
            if fault == "stall":
                proxy.done.wait(60)
            return self.hang_up()
        if fault and fault != "half":
            status, _, code = fault.partition(" ")
            content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
            answer: list[tuple[str, str]] = [("Content-Type", "application/xml")]
            length = len(content)
        else:
            onward = http.client.HTTPConnection("127.0.0.1", proxy.behind)
            left_out = ("transfer-encoding", "content-length", "connection", "expect")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            onward.request(self.command, self.path, body, headers)
            found = onward.getresponse()
            content = found.read()
            onward.close()
            status = str(found.status)
            answer = [(name, value) for name, value in found.getheaders() if name.lower() not in left_out]
            length = int(found.headers.get("Content-Length", 0)) if self.command == "HEAD" else len(content)
        self.send_response_only(int(status))
        for name, value in [*answer, ("Content-Length", str(length))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: length // 2] if fault == "half" else content)
        if fault == "half":
            self.wfile.flush()
            self.hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("moto") / "log.txt"
    with log.open("w") as output:
        command = [str(SERVER), "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until(lambda: listens(port), process, log)
        yield port
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in {**KEYS, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "PAUSES", (0.02, 0.1))
    proxy = Proxy(server)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield proxy
    proxy.done.set()
    proxy.shutdown()
    proxy.server_close()
    thread.join(10)


@pytest.fixture
def folder(proxy: Proxy, request: pytest.FixtureRequest) -> Folder:
    """A run's checkpoints, as a worker gets them."""
    query = f"endpoint_override=127.0.0.1:{proxy.server_port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    run = open_folder(f"s3://bucket/{request.node.name.partition('[')[0]}?{query}")
    run.filesystem.create_dir("bucket")
    return pickle.loads(pickle.dumps(run / "checkpoints"))


def hasty(folder: Folder, proxy: Proxy, wait: float = 60) -> Folder:
    """The same, where pyarrow tries once and waits so many seconds for an answer: what is above sees each fault."""
    filesystem = pyarrow.fs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{proxy.server_port}",
        scheme="http",
        region="us-east-1",
        request_timeout=wait,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    return Folder(filesystem, folder.path, folder.uri)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": WEIGHTS * step}


def newest(folder: Folder) -> int:
    found, broken = Checkpoints(folder).newest()
    assert found is not None and broken == []
    assert torch.equal(found["weights"], WEIGHTS * found["step"])
    return found["step"]


def test_what_is_saved_through_refusals_is_good(folder: Folder, proxy: Proxy) -> None:
    """Each of a save's requests may be among those that fail."""
    checkpoints = Checkpoints(folder, keep=2)
    for step, fault in ((1, SLOW), (2, "500 InternalError"), (3, "drop")):
        proxy.heal()
        proxy.fault = lambda number, method, path, begin=2 * step, fault=fault: (  # type: ignore[misc]
            fault if begin <= number < begin + 4 else ""
        )
        checkpoints.save(step, state(step))
        assert len(proxy.seen) > 2 * step + 4
    proxy.heal()
    assert newest(folder) == 3 and checkpoints.steps() == [2, 3]
    assert folder.names() == [f"step-0000000{n}.{suffix}" for n in (2, 3) for suffix in ("json", "pt")]
    again = open_folder(folder.uri)
    assert newest(again) == 3 and again.exists("step-00000003.pt") and not again.exists("step-00000001.pt")


def test_a_stall_heals(folder: Folder, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    """Longer than the time that an answer may take, and than the one repetition of pyarrow's own: twice each."""
    checkpoints = Checkpoints(hasty(folder, proxy, wait=5))
    checkpoints.save(1, state(1))
    proxy.heal()
    proxy.fault = lambda number, method, path: "stall" if number in (1, 2, 4, 5) else ""
    checkpoints.save(2, state(2))
    assert len(set(proxy.seen[:3])) == 1 and len(set(proxy.seen[3:6])) == 1
    assert "?uploads" in proxy.seen[3]
    assert newest(folder) == 2
    assert sum("trying again" in line for line in caplog.messages) == 2
    assert sum("storage is back" in line for line in caplog.messages) == 2


def test_an_answer_that_is_cut_is_read_again(folder: Folder, proxy: Proxy) -> None:
    folder = hasty(folder, proxy)
    Checkpoints(folder).save(1, state(1))
    proxy.heal()
    proxy.fault = lambda number, method, path: "half" if method == "GET" and number < 6 else ""
    assert newest(folder) == 1
    assert len(proxy.seen) > 6


def test_refusals_without_end_are_a_clear_error(
    folder: Folder, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state(1))
    monkeypatch.setattr(storage, "PATIENCE", 1.0)
    proxy.fault = lambda number, method, path: SLOW if method == "POST" else ""
    start = time.monotonic()
    with pytest.raises(UserError) as told:
        checkpoints.save(2, state(2))
    assert time.monotonic() - start < 60 < PATIENCE
    assert told.match(r"cannot write s3://bucket/\S+/step-00000002.pt \(.*SLOW_DOWN.*tried for 1 s")
    assert all(word in str(told.value) for word in ("check address, network and keys", "--run.resume"))
    proxy.fault = lambda number, method, path: SLOW
    with pytest.raises(UserError, match="cannot list"):
        checkpoints.newest()
    proxy.heal()
    assert newest(folder) == 1
    checkpoints.save(2, state(2))
    assert newest(folder) == 2
    for line in (str(told.value), *caplog.messages):
        assert not any(key in line for key in KEYS.values()) and "endpoint_override" not in line


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refused_keys_are_said_at_once_and_not_repeated(folder: Folder, proxy: Proxy, code: str) -> None:
    proxy.fault = lambda number, method, path: f"403 {code}"
    for does in (lambda: folder.write("x", b"1"), lambda: folder.exists("x"), lambda: folder.read("x"), folder.names):
        proxy.seen.clear()
        with pytest.raises(UserError, match=r"check the keys") as told:
            does()
        assert len(proxy.seen) == 1
        assert not any(key in str(told.value) for key in KEYS.values())


def test_a_bucket_that_is_not_there(folder: Folder) -> None:
    other = Folder(folder.filesystem, "nowhere/x", "s3://nowhere/x")
    with pytest.raises(UserError, match=r"s3://nowhere/x/y .*check the address"):
        other.write("y", b"1")


def test_half_an_upload_is_never_seen(folder: Folder, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second part never arrives: what had the name before has it still."""
    folder = hasty(folder, proxy)
    folder.write("large", b"before")
    monkeypatch.setattr(storage, "PATIENCE", 0.0)
    proxy.fault = lambda number, method, path: SLOW if "partNumber=2" in path else ""
    with pytest.raises(UserError, match="SLOW_DOWN"):
        folder.write("large", bytes(12_000_000))
    assert any("partNumber=1" in line for line in proxy.seen)
    proxy.heal()
    assert folder.read("large") == b"before"
    assert folder.names() == ["large"]


@pytest.mark.parametrize("how", ["one request", "from then on"])
def test_a_save_that_fails_anywhere_leaves_a_good_one(
    folder: Folder, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """At each request that a save makes."""
    folder = hasty(folder / how.partition(" ")[0], proxy)
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    step = 2
    for failing in itertools.count(1):
        proxy.heal()
        proxy.fault = lambda number, method, path, n=failing: (  # type: ignore[misc]
            SLOW if number == n or (number > n and how != "one request") else ""
        )
        saved = False
        with monkeypatch.context() as patch, suppress(UserError):
            patch.setattr(storage, "PATIENCE", 0.0)
            checkpoints.save(step + 1, state(step + 1))
            saved = True
        reached = len(proxy.seen) >= failing
        proxy.heal()
        found = newest(folder)
        assert found == step + 1 if saved else found in (step, step + 1)
        step = found
        if not reached:
            break
    assert failing > 8
    assert 2 <= len(checkpoints.steps()) <= 3
