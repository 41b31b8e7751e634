"""What ranks decide together, in processes of their own without Ray."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipelines import storage
from pipelines.storage import Checkpoints, open_folder
from pipelines.worker import newest_of_all


def begins(rank: int, folder: str) -> None:
    """Rank 1's mount comes late, and shows the newest checkpoint later still: one file each time that it waits."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for case in ("new", "resumed"):
        first, mine = Path(folder, case, "0"), Path(folder, case, str(rank))
        late = iter(["recipe.json", "checkpoints/step-00000008.pt", "checkpoints/step-00000008.json"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                storage, "sleep", lambda _, a=first, b=mine, left=late: shutil.copy(a / (name := next(left)), b / name)
            )
            run = open_folder(str(mine))
            state, broken = newest_of_all(run, Checkpoints(run / "checkpoints"), rank, torch.device("cpu"))
        torch.save((state, broken, len(list(late))), f"{folder}/{case}/{rank}.pt")
    dist.destroy_process_group()


def test_all_ranks_begin_from_the_same_checkpoint(tmp_path: Path) -> None:
    for case, ranks in (("new", ((), ())), ("resumed", ((4, 8), (4,)))):
        for rank, steps in enumerate(ranks):
            folder = tmp_path / case / str(rank)
            (folder / "checkpoints").mkdir(parents=True)
            for step in steps:
                Checkpoints(open_folder(str(folder / "checkpoints"))).save(step, {"step": step})
        (tmp_path / case / "0" / "recipe.json").touch()
    mp.spawn(begins, args=(str(tmp_path),), nprocs=2)
    found = {case: [torch.load(tmp_path / case / f"{rank}.pt") for rank in range(2)] for case in ("new", "resumed")}
    assert found["new"] == [(None, [], 3), (None, [], 2)]  # with what had not come by then
    assert found["resumed"] == [({"step": 8}, [], 3), ({"step": 8}, [], 0)]
