"""Recipe of MoCo v2 (Chen et al., 2020)."""

from methods import views
from methods.moco import Config
from pipelines.recipe import Recipe
from pipelines.recipes.sce import sce_cifar10


def moco_cifar10() -> Recipe:
    """MoCo v2 on CIFAR-10, ResNet-18, 200 epochs: SCE's baseline.

        python -m pipelines pretrain moco_cifar10 --data.train 'DIR/train-*.parquet' --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN linear

    SCE's Table 5, linear (rate 30, 100 epochs, x.1 at 60 and 80), SCE's paper: 87.56; ours: not measured.

    MoCo's papers have no recipe for CIFAR. Temperature .2 and "the same architecture" are from SCE's paper, all else is
    that of `sce_cifar10`, shuffled batch norm in 8 parts too. Both views are strong, as in MoCo v2.
    """
    return sce_cifar10().with_(
        method=Config(temperature=0.2, queue=4096, hidden=512, head_norm=True, dim=128, momentum=0.99),
        views={"target": views.strong("target", 32)},
    )
