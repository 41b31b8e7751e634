"""Recipes of SCE (Denize et al., WACV 2023)."""

from methods.optim import Optimizer
from methods.sce import Config
from methods.views import strong, weak
from pipelines.recipe import Recipe
from pipelines.sources import Data


def sce_cifar10() -> Recipe:
    """CIFAR-10, ResNet-18, 200 epochs (Table 5)."""
    return Recipe(
        method=Config(hidden=512, dim=128, queue=4096, momentum=0.99, momentum_end=0.99),
        backbone="resnet18",
        data=Data(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
        views={"online": strong("online", 32), "target": weak("target", 32)},
        optimizers={"model": Optimizer(lr=0.06, weight_decay=5e-4, warmup_epochs=5)},
        epochs=200,
        batch_size=256,
    )
