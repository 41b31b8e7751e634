"""Recipes of RCL (Tang et al., ECCV 2022), which trains on ImageNet alone. There is no code of its training.

Everywhere: three criteria, each with its predictor, tau .1, the symmetric loss (section 5.1). No recipe has multi-crop:
"our RCL does not use multi-crop augmentation" (section 5.2), and the method takes two views.

On small images nothing is the paper's but that: the setting is that of ReSSL and SCE there (`ressl_cifar10`), and the
rest ours. Both views are their student's, as both are queries. DBSCAN's radii are shares of the samples that become
cores, .3 at level 2 and .5 at level 3 (`--method.radius-is quantile`), as the paper's distances are of its features;
InfoNCE warms up for 5 epochs, where the paper has 10. A run of no more epochs than that never has clusters. Clusters
merge above a cosine of .9 at level 2 and .85 at level 3: of what was tried on the features of a short run, .8 and .7
let half of the samples grow into one cluster, .97 and .95 mostly split. How pure clusters are, by level:
`python -m pipelines evaluate RUN clusters`. `ours` is what this project measured.
"""

from methods import views
from methods.optim import Optimizer
from methods.rcl import Config
from pipelines.recipe import Recipe
from pipelines.recipes import data


def rcl_cifar10() -> Recipe:
    """RCL on CIFAR-10, ResNet-18, 200 epochs.

        python -m pipelines pretrain rcl_cifar10 --data.train 'DIR/train-*.parquet' --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN linear

    Linear (rate 30, 100 epochs, x.1 at 60 and 80): the paper has no figure; ours: not measured. InfoNCE beside it:
    `--method.levels 1`; NNCLR: `--method.levels 1 --method.clustering nearest`. On two CPU cores:
    `--backbone resnet20 --data.limit 10000 --epochs 10 --method.warmup-epochs 2`.

    Ours, as the paper has no recipe for CIFAR: heads, queue, optimizer, batch and the teacher's constant momentum .99
    are those of `ressl_cifar10`, the rate's 5 epochs of warm-up those of `sce_cifar10`; predictors are as wide as the
    projector; clusters as the head of this file says.
    """
    return Recipe(
        method=Config(
            queue=4096,
            hidden=512,
            dim=128,
            predictor_hidden=512,
            momentum=0.99,
            momentum_end=0.99,
            warmup_epochs=5,
            radius_is="quantile",
            radius=0.3,
            radius_step=0.2,
            min_samples=4,
            sigma=0.9,
            sigma_step=0.05,
        ),
        backbone="resnet18",
        data=data.CIFAR10,
        views={name: views.strong(name, 32) for name in ("online", "target")},
        optimizers={"model": Optimizer(lr=0.06, weight_decay=5e-4, warmup_epochs=5)},
        epochs=200,
        batch_size=256,
    )


def rcl_cifar100() -> Recipe:
    """RCL on CIFAR-100, ResNet-18, 200 epochs.

        python -m pipelines pretrain rcl_cifar100 --data.train 'DIR/train-*.parquet' --data.test 'DIR/test-*.parquet'
        python -m pipelines evaluate RUN linear

    Linear (rate 30, 100 epochs, x.1 at 60 and 80): the paper has no figure; ours: not measured. As `rcl_cifar10`.
    """
    return rcl_cifar10().with_(data=data.CIFAR100)


def rcl_tinyimagenet() -> Recipe:
    """RCL on Tiny ImageNet, ResNet-18, 200 epochs.

        python -m pipelines pretrain rcl_tinyimagenet --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/val-*.parquet'
        python -m pipelines evaluate RUN linear

    Linear (rate 30, 100 epochs, x.1 at 60 and 80): the paper has no figure; ours: not measured. As `rcl_cifar10`, but
    for 64 pixels and queue 16384, as ReSSL has them (journal, section 4).
    """
    return rcl_cifar10().with_(
        method={"queue": 16384},
        data=data.TINYIMAGENET,
        views={"online": {"size": 64}, "target": {"size": 64}},
    )


def rcl_imagenet() -> Recipe:
    """RCL on ImageNet, ResNet-50, 200 epochs.

        python -m pipelines pretrain rcl_imagenet --data.train 'DIR/train-*.parquet' --data.test 'DIR/val-*.parquet'
        python -m pipelines evaluate RUN linear --linear.optimizer.name lars --linear.optimizer.lr 1 \\
            --linear.optimizer.nesterov --linear.optimizer.schedule cosine --linear.optimizer.milestones \\
            --linear.batch-size 4096 --linear.epochs 90

    Tables 1, 3 and 4, linear (LARS with Nesterov, rate 1, cosine, batch 4096, 90 epochs), top-1, the paper: 72.6;
    top-5: 90.8; ours: not measured. 800 epochs, `--epochs 800`, the paper: 75.8; top-5: 92.6. Of Figure 5a's 400
    epochs the text prints nothing. Table 2, `evaluate RUN semi_supervised` after unsaid epochs, top-1 with 1% of the
    labels, the paper: 57.2; with 10%: 70.3.

    Sections 5.1 and 5.3: LARS, base rate .3, 10 epochs of warm-up, weight decay 1e-6 but of biases, batch 4096, BYOL's
    augmentations, queue 98304. Readings and choices of ours: the rate is times batch / 256 and batch norms are left
    out of decay and LARS too, since "the training settings above are the same as BYOL"; the classifier's rate is 1
    whatever the batch, without decay; a queue entry is one view's key, so a step's symmetric loss enters 8192.
    """
    return Recipe(
        method=Config(),
        backbone="resnet50",
        data=data.IMAGENET,
        views={"online": views.byol_online("online", 224), "target": views.byol_target("target", 224)},
        optimizers={"model": Optimizer("lars", lr=0.3, weight_decay=1e-6, exclude=True, warmup_epochs=10)},
        epochs=200,
        batch_size=4096,
    )
