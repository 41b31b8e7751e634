"""Recipes of multi-view synchronization: S. Jenni's thesis, chapter 6.

Section 6.3.1: AdamW with default betas, decay 1e-4, rate 1e-4 down to 1e-7 by a cosine, batch 16 (moments, each of
which gives a pair of every kind), 200,000 iterations. The decay is read as torch's, times the rate. `ours` is what this
project measured.
"""

from typing import get_args

from methods.multiview import Config
from methods.optim import Optimizer
from methods.takes import Role, TakeView
from pipelines.recipe import Recipe
from pipelines.sources import Data


def _views(size: int) -> dict[str, TakeView]:
    return {role: TakeView(role, size, role) for role in get_args(Role)}


def multiview_h36m() -> Recipe:
    """Synchronized and flipped pairs on Human3.6M's training subjects, ResNet-18 at 224 pixels without background.

        python -m pipelines data h36m --source FOLDER --to DIR --least-motion MM
        python -m pipelines data frames --source 'DIR/*.parquet' --to FRAMES --size 512
        python -m pipelines pretrain multiview_h36m --data.train 'FRAMES/train-*.parquet' \\
            --data.test 'FRAMES/test-*.parquet'
        python -m pipelines data h36m --source FOLDER --split train --subjects S1 --to S1
        python -m pipelines evaluate RUN pose --posing.every 64 --data.train 'S1/train-*.parquet'

    Table 6.1 (d), labels of subject S1 alone, the paper: MPJPE 104.9, NMPJPE 91.7, PMPJPE 78.4; ours: not measured.
    Epochs: 200,000 iterations are 11 epochs of 290,000 moments, which are left of some 390,000 once every fourth frame,
    on average, is skipped: MM is the least motion, in mm, that leaves so many, which the text does not name (the start
    of pretraining tells how many there are). The gap of a pair is counted in frames that are left. They are stored at
    512 of some 1,000 pixels (ours), of which a subject has 200 to 300. Backgrounds are substituted for half of the
    images with `--views.anchor.background mixed`, and so of the two other views: as for the row of Table 6.2 with
    background, which `pose` then has to be told too (its option background: keep).
    """
    return Recipe(
        method=Config(),
        backbone="resnet18",
        data=Data(media="take", size=512),
        views=dict(_views(224)),
        optimizers={"model": Optimizer("adamw", lr=1e-4, scaling="none", weight_decay=1e-4, final_lr=1e-7)},
        epochs=11,
        batch_size=16,
    )


def multiview_poses() -> Recipe:
    """On synthetic takes of an articulated body, ResNet-18 with its usual stem at 48 pixels; for a laptop.

        python -m pipelines data poses --to data/poses
        python -m pipelines pretrain multiview_poses --data.train data/poses/train-00000.parquet \\
            --data.test data/poses/test-00000.parquet --run.workers 2
        python -m pipelines evaluate RUN pose --data.limit 200

    The last line learns from 200 moments. Sizes, the rate and epochs are this project's. MPJPE, NMPJPE and PMPJPE in
    mm, ours: 149.9, 143.3 and 101.1; random initialization 172.6, 163.5 and 109.4.
    """
    return multiview_h36m().with_(
        backbone="resnet18:large",
        data={"size": 128},
        views={role: view for role, view in _views(48).items()},
        optimizers={"model": {"lr": 2e-4, "final_lr": 2e-7}},
        epochs=12,
        batch_size=32,
    )
