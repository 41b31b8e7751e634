"""Both feeds: each sample at most once an epoch, the same steps on every rank, exact from any step, any ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_images

from methods.views import View
from pipelines.errors import UserError
from pipelines.feed import Piece, ResidentFeed, Share, SideBySide, StreamFeed, epoch_plan, gathered, survey, tasks
from pipelines.sources import Data, Source, open_source, selected

VIEWS = {"online": View("online", 16, jitter=0.8), "target": View("target", 16)}


def source_of(path: Path) -> tuple[Source, Data]:
    data = Data(train=str(path), size=16)
    return open_source(str(path), data), data


def resident(count: int = 37, rank: int = 0, ranks: int = 1, seed: int = 0) -> ResidentFeed:
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    index = torch.arange(count) * 3 + 5  # positions in a dataset of which some rows are left out
    return ResidentFeed(images, index, index % 4, VIEWS, seed=seed, share=Share(8, rank, ranks))


def test_resident_batches_are_the_same_for_any_number_of_ranks() -> None:
    whole = list(resident().batches(2))
    parts = [list(resident(rank=r, ranks=4).batches(2)) for r in range(4)]
    assert len(whole) == 4
    for step, batch in enumerate(whole):
        for name, column in batch.items():
            assert torch.equal(column, torch.cat([part[step][name] for part in parts])), name
    seen = torch.cat([batch["index"] for batch in whole])
    assert len(seen) == len(seen.unique()) == 32


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_lanes_are_the_same_batches_for_any_number_of_ranks(ranks: int) -> None:
    """Four feeds, each of its own samples, divided among the ranks."""
    together = [list(resident(rank=r, ranks=4).batches(1, start=1)) for r in range(4)]
    feeds = []
    for rank in range(ranks):
        lanes = Share(8, rank, ranks).lanes(4)
        assert {lane.size for lane in lanes} == {2} and len(lanes) == 4 // ranks
        feeds.append(SideBySide([resident(rank=lane.rank, ranks=lane.ranks) for lane in lanes]))
    assert {feed.steps for feed in feeds} == {4}
    found = [list(feed.batches(1, start=1)) for feed in feeds]
    for step in range(3):
        for name in together[0][0]:
            expected = torch.cat([lane[step][name] for lane in together])
            assert torch.equal(torch.cat([rank[step][name] for rank in found]), expected)


def test_resident_epochs_differ_and_any_step_can_be_the_first() -> None:
    feed = resident()
    first, second = (torch.cat([b["index"] for b in feed.batches(epoch)]) for epoch in (0, 1))
    assert not torch.equal(first, second)
    other = torch.cat([b["index"] for b in resident(seed=1).batches(0)])
    assert not torch.equal(first, other)
    late = list(feed.batches(1, start=2))
    assert len(late) == 2 and torch.equal(late[0]["online"], list(feed.batches(1))[2]["online"])
    assert set(late[0]) == {"index", "label", "online", "online.parameters", "target", "target.parameters"}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("missing", [(), (0, 49, 50, 51, 200)])
def test_stream_plan_gives_each_rank_the_same_number_of_samples_once(
    images: tuple[Path, Path], ranks: int, missing: tuple[int, ...]
) -> None:
    source, _ = source_of(images[0])
    usable = np.setdiff1d(np.arange(source.rows), missing)
    plans = [epoch_plan(source, usable, Share(24, rank, ranks), seed=3, epoch=1) for rank in range(ranks)]
    rows = [np.concatenate([source.groups[p.group].first + p.rows for p in plan]) for plan in plans]
    assert {len(r) for r in rows} == {len(usable) // 24 * 24 // ranks}
    together = np.concatenate(rows)
    assert len(np.unique(together)) == len(together) and np.isin(together, usable).all()
    again = epoch_plan(source, usable, Share(24, 0, ranks), seed=3, epoch=1)
    other = epoch_plan(source, usable, Share(24, 0, ranks), seed=3, epoch=2)
    assert [p.group for p in again] == [p.group for p in plans[0]] != [p.group for p in other]


def test_tasks_keep_rows_and_order() -> None:
    pieces = [Piece(0, np.arange(5)), Piece(3, np.arange(700)), Piece(1, np.arange(2))]
    cut = tasks(pieces, most=256)
    assert [sum(len(p.rows) for p in task) for task in cut] == [256, 256, 195]
    flat = [(p.group, row) for task in cut for p in task for row in p.rows.tolist()]
    assert flat == [(p.group, row) for p in pieces for row in p.rows.tolist()]


@pytest.mark.ray
@pytest.mark.parametrize("views_on_data", [True, False])
def test_stream_is_exact_from_any_step_and_agrees_with_resident(
    ray_cluster: None, images: tuple[Path, Path], views_on_data: bool
) -> None:
    import ray
    from ray.data._internal.stats import get_or_create_stats_actor

    source, data = source_of(images[0])
    usable = selected(source, None)
    found = survey(source, usable, data, keep=True, what="train")
    assert found.bad == [] and torch.equal(torch.from_numpy(found.usable), torch.arange(330))
    columns = gathered(found.blocks)
    assert torch.equal(columns["label"], torch.arange(330) % 4)

    def stream(rank: int, ranks: int) -> StreamFeed:
        return StreamFeed(
            source,
            data,
            usable,
            VIEWS,
            seed=0,
            share=Share(32, rank, ranks),
            window=96,
            views_on_data=views_on_data,
            cpus=1.0,
            task_cpus=0.5,
        )

    for rank in range(2):
        feed = stream(rank, 2)
        whole = list(feed.batches(1))
        assert len(whole) == feed.steps == 10
        assert feed.made() > 0 == feed.made()  # of what has come since it was asked
        late = list(feed.batches(1, start=7))  # 7 * 16 = 112 rows: one window whole, and a part
        for a, b in zip(late, whole[7:], strict=True):
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        # the same sample has the same views as in the resident feed, whatever its batch
        batch = whole[3]
        images_ = columns["image"][batch["index"]]
        for name, view in VIEWS.items():
            parameters = view.draw(0, 1, batch["index"])
            assert torch.equal(batch[f"{name}.parameters"], parameters)
            difference = batch[name].int() - view.apply(images_, parameters).int()
            assert difference.abs().max() <= 1
        actor: Any = get_or_create_stats_actor()
        known = ray.get(actor.get_datasets.remote())
        assert feed.name in known and len(list(feed.batches(2))) == 10
        assert ray.get(actor.get_datasets.remote()).keys() == known.keys()  # of which each is kept: no more by epoch


@pytest.mark.ray
def test_survey_names_broken_rows_and_stops_at_too_many(ray_cluster: None, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(write_images(tmp_path / "train.parquet", 200))
    rows = table["image"].to_pylist()
    rows[77] = rows[77][: len(rows[77]) // 2]
    pq.write_table(table.set_column(0, "image", pa.array(rows)), tmp_path / "one.parquet", row_group_size=50)
    source, data = source_of(tmp_path / "one.parquet")
    found = survey(source, selected(source, None), data, keep=False, what="x")
    assert len(found.usable) == 199 and 77 not in found.usable and found.blocks == []
    assert found.bad[0].index == 77 and found.bad[0].where.endswith("one.parquet:77")
    for row in range(20, 30):
        rows[row] = b"text"
    pq.write_table(table.set_column(0, "image", pa.array(rows)), tmp_path / "many.parquet", row_group_size=50)
    source, data = source_of(tmp_path / "many.parquet")
    with pytest.raises(UserError, match=r"of 200 rows are broken.*many\.parquet:"):
        survey(source, selected(source, None), data, keep=False, what="x")
    (tmp_path / "many.parquet").unlink()
    with pytest.raises(UserError, match=r"many\.parquet cannot be read \(part") as caught:
        survey(source, selected(source, None), data, keep=False, what="x")
    assert "Traceback" not in str(caught.value)
