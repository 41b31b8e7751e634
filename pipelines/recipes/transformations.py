"""Recipes of recognizing image transformations: S. Jenni's thesis, chapter 4. "Code" is sjenni/LCI, the author's.

Everywhere: AdamW for the classifier, Adam for the inpainter and its critic (section 4.4; Adam's second beta is
torch's). AdamW's decay of 1e-4 is what weights lose a step at the peak, as in its paper and the code; torch multiplies
by the rate besides, hence 1e-4 / 3e-4. The code gives the critic four times the inpainter's rate:
`--optimizers.critic.lr 8e-4`. `layerwise` trains a linear classifier on each convolution's output, as Tables 4.2, 4.3,
4.5 and 4.6 do. `ours` is what this project measured.

From the code: images of 96 pixels give views of 80, of which the classifier sees 64. Recipes of other sizes keep these
proportions and that of the patch, 48 to 64, where the chapter names the classifier's pixels alone.
"""

from dataclasses import replace

from methods.optim import Optimizer
from methods.transformations import Config
from methods.views import View
from pipelines.recipe import Recipe
from pipelines.recipes import data
from pipelines.sources import Data


def _crop(size: int, of: int) -> View:
    """A random square of `size` pixels from images of `of`, mirrored or not: nothing is resized."""
    return View("image", size, crop_scale=((size / of) ** 2,) * 2, crop_ratio=(1.0, 1.0))


def _optimizers() -> dict[str, Optimizer]:
    adam = Optimizer("adam", lr=2e-4, scaling="none", betas=(0.5, 0.999), weight_decay=0.0, schedule="constant")
    adamw = Optimizer(
        "adamw", lr=3e-4, scaling="none", betas=(0.5, 0.99), weight_decay=1e-4 / 3e-4, exclude=True, final_lr=3e-7
    )
    return {"critic": adam, "inpainter": adam, "model": adamw}


def transformations_stl10() -> Recipe:
    """Rotation, warp and inpainting on STL-10 at 64 of 96 pixels, AlexNet, 200 epochs.

        python -m pipelines pretrain transformations_stl10 --data.train 'DIR/unlabeled-*.parquet' \\
            --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN layerwise --data.train 'DIR/train-*.parquet'

    Table 4.2, linear on conv5, the paper: 73.7; ours: not measured. Its other rows:
    `--method.transformations rotation` 70.1, `--method.transformations inpainting` 68.0,
    `--method.transformations warp` 55.3, `--method.transformations rotation inpainting` 72.3,
    `--method.transformations rotation warp` 70.6, `--method.transformations warp inpainting` 67.2.

    Table 4.1, inpainting alone, another linear protocol (500 epochs on crops of 96 pixels), the paper: 76.2. Its other
    rows, each with `--method.transformations inpainting`: `--method.patch 32` 61.2, `--method.patch 40` 70.6,
    `--method.patch 56` 75.1, pre-trained and frozen F (`--method.inpainter-epochs 100 --epochs 300`, our numbers) 63.7,
    `--method.no-adversarial` 68.0, `--method.no-autoencoded-patches` 69.5.
    """
    return Recipe(
        method=Config(),
        backbone="alexnet",
        data=replace(data.STL10, size=96),
        views={"image": _crop(80, of=96)},
        optimizers=_optimizers(),
        epochs=200,
        batch_size=64,
    )


def transformations_stl10_resnet34() -> Recipe:
    """Rotation, warp and inpainting on STL-10 at 64 of 96 pixels, ResNet-34, 200 epochs.

        python -m pipelines pretrain transformations_stl10_resnet34 --data.train 'DIR/unlabeled-*.parquet' \\
            --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN finetune --data.train 'DIR/train-*.parquet'

    Table 4.7, fine-tuned for 300 epochs and evaluated on several crops, the paper: 91.8; ours: not measured.

    Not in the paper: the head, one linear layer on the pooled features; the stem, the small one as elsewhere for 64
    pixels.
    """
    return transformations_stl10().with_(method={"head": ()}, backbone="resnet34:small")


def transformations_celeba() -> Recipe:
    """Rotation, warp and inpainting on CelebA at 96 pixels, AlexNet, 100 epochs.

        python -m pipelines pretrain transformations_celeba --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN layerwise

    Table 4.3, average precision of 40 attributes, linear on conv5, the paper: 69.2; ours: not measured. On conv2, the
    best layer, 74.0. Protocols here take one label an image: an attribute is named by data.label.

    Not in the paper, but in proportion to STL-10: images of 144 pixels, views of 120, patches of 72. Its batch of 64.
    """
    return transformations_stl10().with_(
        method={"crop": 96, "patch": 72}, data=Data(size=144), views={"image": _crop(120, of=144)}, epochs=100
    )


def transformations_imagenet() -> Recipe:
    """Rotation, warp and inpainting on ImageNet at 128 pixels, AlexNet, 200 epochs.

        python -m pipelines pretrain transformations_imagenet --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/val-*.parquet' --run.workers 4
        python -m pipelines evaluate RUN layerwise

    Table 4.5, linear on conv4, single crop, the paper: 43.1; ours: not measured. On conv1 to conv5: 20.8, 34.5, 40.2,
    43.1, 41.4. Table 4.6, on Places, conv4, the paper: 39.5. Table 4.4, fine-tuned on PASCAL VOC, classification, the
    paper: 74.5; detection 56.8 and segmentation 44.4 need frameworks of their own.

    Not in the paper, but in proportion to STL-10: images of 192 pixels, views of 160, patches of 96; and a layer more
    in the inpainter and the critic, as patches are twice as large. Our AlexNet has SAME padding at all sizes, so that
    the head sees 8 x 8 places; original padding, which the chapter may have kept here, gives 6 x 6.
    """
    return transformations_stl10().with_(
        method={"crop": 128, "patch": 96, "border": 4, "inpainter_layers": 5, "critic_layers": 4},
        data=Data(size=192),
        views={"image": _crop(160, of=192)},
        batch_size=96,
    )


def transformations_cifar10() -> Recipe:
    """Rotation, warp and inpainting on CIFAR-10 at 28 of 32 pixels, ResNet-18, 200 epochs.

        python -m pipelines pretrain transformations_cifar10 --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN layerwise

    Of no table; ours: not measured. On two CPU cores: `--backbone resnet20 --data.limit 10000 --epochs 3`. Beside
    `layerwise`, `task` says which transformation is taken for which.

    As `transformations_stl10`, but for patches of 20 pixels, an inpainter of two halvings in place of three, half the
    widths of inpainter and critic, and one linear layer on the pooled features.
    """
    return transformations_stl10().with_(
        method={
            "crop": 28,
            "patch": 20,
            "inpainter_layers": 3,
            "inpainter_width": 24,
            "critic_width": 32,
            "head": (),
        },
        backbone="resnet18",
        data=data.CIFAR10,
        views={"image": _crop(32, of=32)},
    )


def rotation_cifar10() -> Recipe:
    """Rotation alone (RotNet) on CIFAR-10 at 28 of 32 pixels, ResNet-18, 200 epochs.

        python -m pipelines pretrain rotation_cifar10 --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN layerwise

    Of no table; ours: not measured. On two CPU cores: `--backbone resnet20 --data.limit 10000 --epochs 3`.

    As `transformations_cifar10`, to stand beside it; not RotNet's own network and schedule.
    """
    recipe = transformations_cifar10().with_(method={"transformations": ("rotation",)})
    return replace(recipe, optimizers={"model": recipe.optimizers["model"]})
