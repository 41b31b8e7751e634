"""On a real head, in processes of its own: token authentication, the job's log, exit codes, a token that is wrong."""

from collections.abc import Iterator
from pathlib import Path

import heads
import pytest
from heads import TOKEN, Head


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with heads.head(tmp_path_factory.mktemp("head")) as it:
        yield it


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_jobs_on_a_head_that_asks_for_a_token(head: Head, tmp_path: Path) -> None:
    done = head.cluster("submit", "--submission-id", "lists", "--", "list")
    assert done.returncode == 0, done.stderr
    assert "sce_cifar10" in done.stdout and "protocol" in done.stdout and "lists succeeded" in done.stderr

    asked = head.cluster("submit", "--submission-id", "asks", "--", "bench")  # without a benchmark: usage, exit code 2
    assert asked.returncode == 2, asked.stderr
    assert "python -m pipelines bench" in asked.stdout

    storage = str(tmp_path / "a folder")  # with a space, through the shell
    failed = head.cluster("submit", "--submission-id", "fails", "--", "pretrain", "no_such", "--run.storage", storage)
    assert failed.returncode == 1, failed.stderr
    assert "no recipe no_such" in failed.stdout and "fails failed, exit code 1" in failed.stderr

    twice = head.cluster("submit", "--submission-id", "lists", "--", "list")
    assert twice.returncode == 1 and "already exists" in twice.stderr and "Traceback" not in twice.stderr

    shown = head.cluster("status")
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in ("lists", "asks", "fails", "SUCCEEDED", "FAILED"))
    logs = head.cluster("logs", "lists")
    assert logs.stdout == done.stdout
    stopped = head.cluster("stop", "lists")
    assert stopped.returncode == 0 and "lists succeeded" in stopped.stderr, stopped.stderr

    (tmp_path / "wrong").write_text(TOKEN[::-1])
    wrong = head.cluster("submit", "--", "list", RAY_AUTH_TOKEN_PATH=str(tmp_path / "wrong"))
    assert wrong.returncode == 1 and "the token is not that of" in wrong.stderr, wrong.stderr
    none = head.cluster("submit", "--", "list", RAY_AUTH_MODE="")
    assert none.returncode == 1 and "asks for a token and got none" in none.stderr, none.stderr
    lost = head.cluster("status", RAY_AUTH_TOKEN_PATH=str(tmp_path / "nowhere"))
    assert lost.returncode == 1 and "nowhere" in lost.stderr and "Traceback" not in lost.stderr, lost.stderr

    everything = [done, asked, failed, twice, shown, logs, stopped, wrong, none, lost]
    assert not any(token in one.stdout + one.stderr for one in everything for token in (TOKEN, TOKEN[::-1]))
    written = [path for path in head.folder.rglob("job-driver-*.log") if path.is_file()]
    assert len({path.name for path in written}) == 3
    assert not any(TOKEN in path.read_text() for path in written)
