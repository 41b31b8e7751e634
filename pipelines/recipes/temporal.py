"""Recipes of recognizing temporal transformations: S. Jenni's thesis, chapter 5. "Code" is sjenni/temporal-ssl.

Everywhere: AdamW, betas .9 and .99, rate 3e-4, a cosine down to a thousandth of it (section 5.2.3). The decay of 1e-4
is what weights lose a step at the peak, as in AdamW's paper and the code; torch multiplies by the rate besides, hence
1e-4 / 3e-4; biases and batch norm have none (code). Inputs lie in [-1, 1] (code).
The batch counts videos, each of which gives four clips: the text's 28 examples are 7 videos. `ours` is what this
project measured. Which transformations take part is `--method.transformations speed warp`.
"""

from typing import get_args

from methods.clips import ClipView
from methods.optim import Optimizer
from methods.temporal import Config, Kind
from pipelines.recipe import Recipe
from pipelines.sources import Data

CENTRED = (0.5, 0.5, 0.5)


def _views(size: int, frames: int = 16) -> dict[str, ClipView]:
    return {kind: ClipView(kind, kind, size=size, frames=frames) for kind in get_args(Kind)}


def temporal_ucf101() -> Recipe:
    """Speed, random, periodic and warp on UCF101 (train split 1), C3D at 112 of 128 x 171 pixels, 100 epochs.

        python -m pipelines data ucf101 --source FOLDER --to DIR
        python -m pipelines pretrain temporal_ucf101 --data.train 'DIR/train-*.parquet' --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN finetune --clips.count 32

    Table 5.2, fine-tuned on UCF101 and HMDB51, means of three splits, the paper: 68.3 and 38.4; ours: not measured.
    With `--backbone resnet3d18 --epochs 200` 77.3 and 47.5, with `--backbone r2plus1d18 --epochs 200` 81.6 and 46.4. Of
    these the code sees crops of 128 of 256 x 256 pixels (`--data.size 256 --data.width 256`), gray with probability .2
    and otherwise of changed brightness and saturation, drawn for each frame: of each of the four views as of
    `--views.warp.size 128 --views.warp.grayscale .2 --views.warp.jitter 1 --views.warp.brightness .125
    --views.warp.saturation .5 --views.warp.contrast 0 --views.warp.hue 0` (its brightness is a shift by up to 32
    levels, here it is a factor).
    """
    return Recipe(
        method=Config(),
        backbone="c3d",
        data=Data(media="video", size=128, width=171, mean=CENTRED, std=CENTRED),
        views=dict(_views(112)),
        optimizers={
            "model": Optimizer(
                "adamw",
                lr=3e-4,
                scaling="none",
                betas=(0.9, 0.99),
                weight_decay=1e-4 / 3e-4,
                exclude=True,
                final_lr=3e-7,
            )
        },
        epochs=100,
        batch_size=7,
    )


def temporal_kinetics() -> Recipe:
    """The same on Kinetics' training videos, 15 epochs.

        python -m pipelines data kinetics --source FOLDER --to DIR
        python -m pipelines pretrain temporal_kinetics --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/val-*.parquet'
        python -m pipelines evaluate RUN retrieval --data.train 'UCF/train-*.parquet' --data.test 'UCF/test-*.parquet'

    Table 5.2, the paper: 69.9 and 39.6; with `--backbone resnet3d18` 79.3 and 49.8, whose features at 10 clips a video
    retrieve videos of UCF101 with 26.1 (top-1, Table 5.4); ours: not measured.
    """
    return temporal_ucf101().with_(epochs=15)


def temporal_small() -> Recipe:
    """For a laptop and one's own clips: a quarter of C3D's widths at 48 of 56 x 72 pixels, 60 epochs.

        python -m pipelines pretrain temporal_small --data.train clips/ --data.test clips/ --run.workers 2
        python -m pipelines evaluate RUN retrieval
        python -m pipelines evaluate RUN task

    Sizes and epochs are this project's. From UT-Interaction's first set (60 clips), tested on its second by `task
    --task.draws 4`, ours: .617 of the kinds and .693 of the speeds, balanced, where lengths alone tell .250 and .474.
    Its six actions by `linear --groups sequence` on the first set, ours: 61.7, random initialization 48.3.
    """
    return temporal_ucf101().with_(
        backbone="c3d:small",
        data={"size": 56, "width": 72},
        views={kind: view for kind, view in _views(48).items()},
        epochs=60,
        batch_size=8,
    )


def temporal_motions() -> Recipe:
    """On synthetic clips, whose class is the motion and never one frame, at 32 pixels.

        python -m pipelines data motions --to data/motions
        python -m pipelines pretrain temporal_motions --data.train data/motions/train-00000.parquet \\
            --data.test data/motions/test-00000.parquet --run.workers 2
        python -m pipelines evaluate RUN linear
        python -m pipelines evaluate RUN linear --clips.still --clips.count 1

    The last line sees one frame of each video, and stays at chance, one in eight. Sizes and epochs are this project's.
    Linear on 100 test videos, ours: 49.0, random initialization 27.0; of one frame 7.0 and 16.0.
    """
    return temporal_small().with_(
        data={"size": 32, "width": None},
        views={kind: view for kind, view in _views(32).items()},
        epochs=20,
        batch_size=16,
    )
