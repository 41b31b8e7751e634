"""Recipe of SimSiam (Chen and He, CVPR 2021)."""

from methods import views
from methods.optim import Optimizer
from methods.simsiam import Config
from pipelines.recipe import Recipe
from pipelines.recipes import data


def simsiam_cifar10() -> Recipe:
    """SimSiam on CIFAR-10, ResNet-18, 800 epochs.

        python -m pipelines pretrain simsiam_cifar10 --data.train 'DIR/train-*.parquet' --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN linear

    Appendix D, linear, the paper: 91.8; ours: not measured. The protocol (rate 30, 100 epochs, x.1 at 60 and 80) is
    that of Prelax, which has the same figure for it.

    Appendix D: rate .03 * batch / 256, no warm-up, no blur. It does not say whether the predictor's rate decays:
    it does not here, as in the paper's later studies (Table 1).
    """
    return Recipe(
        method=Config(layers=2, hidden=2048, dim=2048, predictor_hidden=512),
        backbone="resnet18",
        data=data.CIFAR10,
        views={name: views.simsiam(name, 32) for name in ("online", "target")},
        optimizers={"model": Optimizer(lr=0.03, weight_decay=5e-4)},
        epochs=800,
        batch_size=512,
    )


def simsiam_imagenet() -> Recipe:
    """SimSiam on ImageNet, ResNet-50, 100 epochs.

        python -m pipelines pretrain simsiam_imagenet --data.train 'DIR/train-*.parquet' --data.test 'DIR/val-*.parquet'
        python -m pipelines evaluate RUN linear --linear.optimizer.name lars --linear.optimizer.lr 0.02 \\
            --linear.optimizer.scaling linear --linear.optimizer.schedule cosine --linear.optimizer.milestones \\
            --linear.batch-size 4096 --linear.epochs 90

    Table 1, linear (LARS, appendix A), with the predictor's rate fixed as here, the paper: 68.1; ours: not measured.
    Figure 2, where it decays, the paper: 67.7; with `--method.no-stop-gradient` 0.1.
    """
    return Recipe(
        method=Config(),
        backbone="resnet50",
        data=data.IMAGENET,
        views={name: views.strong(name, 224) for name in ("online", "target")},
        optimizers={"model": Optimizer(lr=0.05, weight_decay=1e-4)},
        epochs=100,
        batch_size=512,
    )
