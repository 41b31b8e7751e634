"""Recipes of DFGAN (Jenni and Favaro, CVPR 2019; chapter 7 of Jenni's thesis on self-supervised learning).

Everywhere: Table 7.2's networks, batches of 64, Adam with rate 1e-4 and beta_1 = .5 (7.3.1), 100,000 steps of the
generator, as the number of whole epochs nearest to it, and images as they are. "Code" is the authors'. FID and IS
are of 10,000 generated and real images (7.3), mean of the last five checkpoints: in the thesis of the last 10% of
training, here the last that --run.keep keeps. `ours` is what this project measured.
"""

from methods.dfgan import Config
from methods.optim import Optimizer
from methods.views import View
from pipelines.recipe import Recipe
from pipelines.recipes import data
from pipelines.sources import Data

ADAM = Optimizer("adam", lr=1e-4, scaling="none", betas=(0.5, 0.999), weight_decay=0.0, schedule="constant")


def dfgan_cifar10() -> Recipe:
    """DFGAN on CIFAR-10, 100,000 steps of the generator: 128 epochs of 781.

        python -m pipelines pretrain dfgan_cifar10 --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/test-*.parquet' --run.keep 5
        python -m pipelines evaluate RUN fid

    Table 7.1 g, lambda 1, FID, the paper: 26.5; ours: not measured. IS: 7.49. Its others, by FID:
    `--method.noise none` 46.1; `--method.noise gaussian` (d) 29.7, with `--method.sigma-schedule learned` (e) 28.8;
    `--method.noise-penalty 0.1` (f) 27.7; `--method.noise-penalty 10` (h) 29.8; `--method.mix halves` (i) 28.7.
    Table 7.3: `--method.objective hinge` (SVM-GAN) 28.7, `--method.spectral-norm` (SNGAN) 25.9.

    The released code: `--method.terms mean --method.noise-scale 2 --method.noise-latent shared`. Not in the paper, but
    in the code: beta_2 = .999, a constant rate.
    """
    return Recipe(
        method=Config(noise_penalty=1.0),
        backbone="own",
        data=data.CIFAR10,
        views={"image": View("image", 32, crop=0.0, flip=0.0)},
        optimizers={"discriminator": ADAM, "generator": ADAM},
        epochs=128,
        batch_size=64,
    )


def dfgan_stl10() -> Recipe:
    """DFGAN on STL-10 at 64 pixels, 100,000 steps of the generator: 64 epochs of 1,562.

        python -m pipelines pretrain dfgan_stl10 --data.train 'DIR/unlabeled-*.parquet' \\
            --data.test 'DIR/test-*.parquet' --run.keep 5
        python -m pipelines evaluate RUN fid

    Table 7.1 f, lambda .1, FID, the paper: 63.9; ours: not measured. IS: 8.81. With `--method.noise-penalty 1` (g)
    64.0; `--method.noise none` 78.4. SNGAN, lambda 1 (7.3.2): `--method.spectral-norm --method.noise-penalty 1` 58.3.

    The "100K training images" of 7.3.1 are the unlabelled ones.
    """
    return dfgan_cifar10().with_(
        method={"noise_penalty": 0.1}, data=data.STL10, views={"image": {"size": 64}}, epochs=64
    )


def dfgan_celeba() -> Recipe:
    """DFGAN on CelebA at 64 pixels, 100,000 steps of the generator: 39 epochs of 2,543.

        python -m pipelines pretrain dfgan_celeba --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/test-*.parquet' --run.keep 5
        python -m pipelines evaluate RUN fid

    Table 7.3, SVM-GAN + DF, lambda 1, FID, the paper: 12.7; ours: not measured. Its others, by FID:
    `--method.noise none` 26.5; `--method.objective non_saturating --method.noise-penalty 10` (DCGAN + DF) 14.7;
    `--method.spectral-norm` (SNGAN + DF) 10.5.

    SVM-GAN, with the hinge, is the row of that table with Table 7.2's networks; the others have their own papers'
    networks and optimizers. Not in the paper: which images (the 162,770 of the training set), and how they become
    square (their central square).
    """
    return dfgan_cifar10().with_(
        method={"objective": "hinge"}, data=Data(size=64), views={"image": {"size": 64}}, epochs=39
    )


def dfgan_cifar10_small() -> Recipe:
    """DFGAN on 10,000 images of CIFAR-10, a quarter of the channels, 2,028 steps of the generator: for two CPU cores.

        python -m pipelines pretrain dfgan_cifar10_small --data.train 'DIR/train-*.parquet' \\
            --data.test 'DIR/test-*.parquet' --run.workers 2 --run.keep 5
        python -m pipelines evaluate RUN fid

    Of no paper; ours: 7.1 (deviation 3.6) in FID, by a run of `supervised_cifar10` on those images (ResNet-20, 5
    epochs); with `--method.noise none` 6.3 (4.3). So early there is nothing between them.
    """
    return dfgan_cifar10().with_(method={"width": 0.25}, data={"limit": 10_000}, epochs=13)
