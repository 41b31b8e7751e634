"""The board between workers and driver, without Ray: which failures end a run."""

from pipelines.board import Board


def test_the_same_crash_twice_is_a_failure_unless_the_run_came_further() -> None:
    board = Board()
    board.say({"step": 40})
    board.crash("ValueError on rank 0: odd")
    board.say({"step": 30})  # after a restart, on the same way again
    assert board.failure() is None
    board.crash("OSError on rank 1: gone")
    board.crash("ValueError on rank 0: odd")
    assert board.failure() == "training failed twice alike: ValueError on rank 0: odd"

    board = Board()
    for step in (40, 60, 80):
        board.say({"step": step})
        board.crash("RuntimeError on rank 1: connection closed by peer")
    assert board.failure() is None


def test_the_first_failure_stays_and_lines_are_read_once() -> None:
    board = Board()
    board.fail("first")
    board.fail("second")
    board.note("a line")
    assert board.failure() == "first"
    assert board.read() == ({}, ["a line"])
    assert board.read() == ({}, [])


def test_what_was_known_at_the_end_of_each_epoch() -> None:
    board = Board()
    board.say({"step": 8, "loss": 2.0})
    board.say({"step": 10, "epoch": 1, "features/feature_std": 0.5})
    board.say({"step": 15, "loss": 1.0})
    assert board.epochs() == [{"step": 10, "loss": 2.0, "epoch": 1, "features/feature_std": 0.5}]
    assert board.epochs() == []
    board.say({"step": 20, "epoch": 2})
    assert [(line["epoch"], line["loss"]) for line in board.epochs()] == [(2, 1.0)]
