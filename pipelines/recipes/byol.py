"""Recipe of BYOL (Grill et al., NeurIPS 2020)."""

from dataclasses import replace

from methods import views
from methods.byol import Config
from methods.optim import Optimizer
from pipelines.recipe import Recipe
from pipelines.recipes import data


def byol_cifar10() -> Recipe:
    """BYOL on CIFAR-10, ResNet-18, 200 epochs: the setting of lightly's benchmark.

        python -m pipelines pretrain byol_cifar10 --data.train 'DIR/train-*.parquet' --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN knn --knn.k 200 --knn.temperature 0.1

    kNN, best of all epochs, lightly (docs, cifar10_benchmark.py of February 2022): 87.2; ours: not measured.

    BYOL's paper has no recipe for CIFAR. Lightly's loss, the mean of two negative cosines, is a quarter of the paper's:
    its rate .06 at batch 128 and its weight decay 5e-4 are .015 (.03 * batch / 256) and 2e-3 here, which moves the
    weights alike. Its teacher's momentum .99 is constant; its last layer in each head has a bias, and its images
    ImageNet's mean and deviation, which ours have not.
    """
    return Recipe(
        method=Config(hidden=1024, dim=256, predictor_hidden=1024, momentum=0.99, momentum_end=0.99),
        backbone="resnet18",
        data=data.CIFAR10,
        views={name: replace(views.simsiam(name, 32), crop_scale=(0.08, 1.0)) for name in ("online", "target")},
        optimizers={"model": Optimizer(lr=0.03, weight_decay=2e-3)},
        epochs=200,
        batch_size=128,
    )
