"""Recipes of Prelax (Wang et al., NeurIPS 2021). "BYOL's code" is google-deepmind/deepmind-research, byol, whose README
has the setting on ImageNette that the paper follows. There is no released code of Prelax.

Everywhere Prelax-all (Eq. 20), the best: alpha 1, beta 1, gamma .1 (section 5). That "SimSiam + Prelax" of Table 1a is
Prelax-all follows from Table 2a. The other variants of any of these recipes:

- std, Eq. 16: `--method.r2s-weight 1 --method.pl-weight 0.1 --method.r3s-weight 0 --method.rotation-pl-weight 0`;
- rot, Eq. 19: `--method.r3s-weight 1 --method.rotation-pl-weight 0.1 --method.r2s-weight 0 --method.pl-weight 0`;
- the base alone, Eq. 13: `--method.forward-similarity-weight 1 --method.r2s-weight 0 --method.r3s-weight 0
  --method.pl-weight 0 --method.rotation-pl-weight 0`;
- the reverse residual, "sometimes slightly better": `--method.reverse-residual`.

Rows of Tables 3a and 3b are sweeps: `prelax_table3a`, `prelax_table3b`.

Where the text is silent or has two readings, on SimSiam, ours: the whole loss is a quarter of the printed sum
(`--method.scale 1`), so that the base alone is SimSiam as its own paper trains it, from which the rate is taken; that
rate, .03, is of a batch of 256 as in SimSiam (.06 at 512; `--optimizers.model.scaling none`); the predictor's rate does
not decay (`--method.simsiam.no-fix-predictor-lr`). Heads H and normalization: see methods/prelax.py.
"""

from methods import byol, simsiam, views
from methods.optim import Optimizer
from methods.prelax import Config
from pipelines.recipe import Recipe
from pipelines.recipes import data
from pipelines.sources import Data


def prelax_cifar10() -> Recipe:
    """Prelax-all with SimSiam on CIFAR-10, ResNet-18, 800 epochs.

        python -m pipelines pretrain prelax_cifar10 --data.train 'DIR/train-*.parquet' --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN linear
        python -m pipelines evaluate RUN task

    Tables 1a and 2a, linear (rate 30, 100 epochs, x.1 at 60 and 80), the paper: 93.4; ours: not measured. Its others:
    std, `--method.r2s-weight 1 --method.pl-weight 0.1 --method.r3s-weight 0 --method.rotation-pl-weight 0`, the paper:
    92.5; rot, `--method.r3s-weight 1 --method.rotation-pl-weight 0.1 --method.r2s-weight 0 --method.pl-weight 0`, the
    paper: 92.4; SimSiam, `--method.forward-similarity-weight 1 --method.r2s-weight 0 --method.r3s-weight 0
    --method.pl-weight 0 --method.rotation-pl-weight 0`, the paper: 91.8. `task` says how well the residuals tell each
    augmentation parameter. On two CPU cores: `--backbone resnet20 --data.limit 10000 --epochs 10`.

    Section 5: rate .03 * batch / 256, no warm-up; the projector has 3 layers (SimSiam's own on CIFAR-10 has 2,
    `--method.simsiam.layers 2`). "The same data augmentations as SimSiam", that is without blur on CIFAR-10.
    """
    return Recipe(
        method=Config(simsiam=simsiam.Config(layers=3, hidden=2048, dim=2048, predictor_hidden=512), scale=0.25),
        backbone="resnet18",
        data=data.CIFAR10,
        views={name: views.simsiam(name, 32) for name in ("online", "target")},
        optimizers={"model": Optimizer(lr=0.03, weight_decay=5e-4)},
        epochs=800,
        batch_size=512,
    )


def prelax_cifar100() -> Recipe:
    """Prelax-all with SimSiam on CIFAR-100, ResNet-18, 800 epochs.

        python -m pipelines pretrain prelax_cifar100 --data.train 'DIR/train-*.parquet' --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN linear
        python -m pipelines evaluate RUN linear --data.train 'CIFAR10/train-*.parquet' \\
            --data.test 'CIFAR10/test-*.parquet'

    Table 2a, linear (rate 30, 100 epochs, x.1 at 60 and 80), the paper: 70.0; ours: not measured. Its others: std 67.5,
    rot 67.3, SimSiam 66.9, by the options of `prelax_cifar10`. Table 2b, on CIFAR-10, the paper: 44.9; std 45.0,
    rot 45.0, SimSiam 44.1.

    "The same hyper-parameters" (Table 2): those of `prelax_cifar10`.
    """
    return prelax_cifar10().with_(data=data.CIFAR100)


def prelax_tinyimagenet() -> Recipe:
    """Prelax-all with SimSiam on Tiny ImageNet at 32 pixels, ResNet-18, 800 epochs.

        python -m pipelines pretrain prelax_tinyimagenet --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/val-*.parquet'
        python -m pipelines evaluate RUN linear
        python -m pipelines evaluate RUN linear --data.train 'CIFAR10/train-*.parquet' \\
            --data.test 'CIFAR10/test-*.parquet'

    Table 2a, linear (rate 30, 100 epochs, x.1 at 60 and 80), the paper: 49.2; ours: not measured. Its others: std 47.9,
    rot 47.1, SimSiam 47.7, by the options of `prelax_cifar10`. Table 2b, on CIFAR-10, the paper: 44.6; std 45.1,
    rot 45.1, SimSiam 43.9; on CIFAR-100, the paper: 22.1; std 21.8, rot 22.0, SimSiam 21.8.

    As `prelax_cifar100`; images are resized to 32 pixels (section 5).
    """
    return prelax_cifar10().with_(data=data.TINYIMAGENET).with_(data={"size": 32})


def prelax_imagenette() -> Recipe:
    """Prelax-all with BYOL on ImageNette at 128 pixels, ResNet-18, 1000 epochs.

        python -m pipelines pretrain prelax_imagenette --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/val-*.parquet'
        python -m pipelines evaluate RUN linear --linear.optimizer.lr 0.5 --linear.optimizer.nesterov \\
            --linear.optimizer.schedule cosine --linear.optimizer.milestones --linear.batch-size 25 --linear.epochs 80

    Table 1b, linear (Nesterov, rate .5, batch 25, 80 epochs), the paper: 92.6; ours: not measured. BYOL,
    `--method.forward-similarity-weight 1 --method.r2s-weight 0 --method.r3s-weight 0 --method.pl-weight 0
    --method.rotation-pl-weight 0`, the paper: 91.9.

    Section 5, "the default hyper-parameters" of BYOL's code: LARS, rate 2 at batch 256, weight decay 1e-6 without
    biases and norms, tau .996 to 1. Printed are heads of "256 and 4096" for hidden and output, which that code has the
    other way round, as here; as printed: `--method.byol.hidden 256 --method.byol.dim 4096
    --method.byol.predictor-hidden 256`. "Batch size 25" of the linear classifier is, in the README, that of testing.

    Not in the paper but in that code: 10 epochs of warm-up, images of 160 pixels (`python -m pipelines data
    imagenette_160`), of which evaluation sees the central 128, and the classifier's cosine. Ours: which variant Table
    1b's Prelax is (all); x1, whose parameters are predicted, is of BYOL's first distribution of views, x2 of its
    second.
    """
    return Recipe(
        method=Config(base="byol", byol=byol.Config(hidden=4096, dim=256, predictor_hidden=4096, momentum=0.996)),
        backbone="resnet18",
        data=Data(size=160),
        views={"online": views.byol_online("online", 128), "target": views.byol_target("target", 128)},
        optimizers={"model": Optimizer("lars", lr=2.0, weight_decay=1e-6, exclude=True, warmup_epochs=10)},
        epochs=1000,
        batch_size=256,
    )


def prelax_imagenet() -> Recipe:
    """Prelax-all with SimSiam on ImageNet, ResNet-50, 100 epochs.

        python -m pipelines pretrain prelax_imagenet --data.train 'DIR/train-*.parquet' --data.test 'DIR/val-*.parquet'
        python -m pipelines evaluate RUN linear

    The paper's setting and figures are in its appendix D, which is not at hand; ours: not measured.

    So all is ours: pretraining is SimSiam's own on ImageNet, as in `simsiam_imagenet`; the linear classifier is that of
    section 5 for SimSiam and its Prelax variants (rate 30, 100 epochs, x.1 at 60 and 80).
    """
    return Recipe(
        method=Config(scale=0.25),
        backbone="resnet50",
        data=data.IMAGENET,
        views={name: views.strong(name, 224) for name in ("online", "target")},
        optimizers={"model": Optimizer(lr=0.05, weight_decay=1e-4)},
        epochs=100,
        batch_size=512,
    )
