"""Recipe of a plain classifier: the network on whose features and classes `fid` and `inception_score` can stand."""

from methods.optim import Optimizer
from methods.supervised import Config
from methods.views import View
from pipelines.recipe import Recipe
from pipelines.recipes import data


def supervised_cifar10() -> Recipe:
    """A classifier on CIFAR-10, ResNet-18, 30 epochs: the extractor of FID where Inception's weights are absent.

        python -m pipelines pretrain supervised_cifar10 --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN knn

    Of no paper; ours: not measured. With `--backbone resnet20 --epochs 5` two CPU cores make a usable one.

    Crops of at least .6 of the area, nearly square, and flips, in place of the usual shifts by 4 pixels; SGD at .1,
    cosine, batch 128, weight decay 5e-4.
    """
    return Recipe(
        method=Config(freeze_backbone=False),
        backbone="resnet18",
        data=data.CIFAR10,
        views={"image": View("image", 32, crop_scale=(0.6, 1.0), crop_ratio=(0.9, 1.1))},
        optimizers={"model": Optimizer(lr=0.1, scaling="none", weight_decay=5e-4)},
        epochs=30,
        batch_size=128,
    )
