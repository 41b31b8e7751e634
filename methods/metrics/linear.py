"""Linear evaluation by SGD: a linear classifier on frozen features.

Legend: N training samples, M test samples, D features.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.method import Clock
from methods.optim import Optimizer, build, set_learning_rate
from methods.parts import draw

SGD_STEPS = Optimizer(lr=30.0, scaling="none", weight_decay=0.0, schedule="steps", milestones=(60.0, 80.0))


@dataclass(frozen=True)
class Linear:
    """The protocol. Defaults: SCE's on CIFAR, STL-10, Tiny-ImageNet and ImageNet-100 (section 4.1), and SimSiam's in
    Prelax; rate 30 whatever the batch, SGD 0.9, no weight decay, 100 epochs, x0.1 at 60 and 80.

    Others: `RESSL` (ReSSL's small sets: rate 10), `IMAGENET` (SCE's ImageNet), `RESSL_IMAGENET` (with Nesterov).
    """

    optimizer: Optimizer = SGD_STEPS
    batch_size: int = 256
    """SCE's code and SimSiam's; the last partial batch of an epoch is dropped."""
    epochs: int = 100
    augment: Literal["crop_flip", "none"] = "crop_flip"
    """Random crop and flip, as the papers do: each epoch passes the backbone. `none`: features are extracted once."""
    scale: Literal["unit", "none"] = "unit"
    """With `augment` none: "unit" divides all features by one number, the root mean squared norm of the training
    features, so that one rate suits a small network, a large one and raw pixels; "none" takes them as they are, as
    the papers do with the features that their rates were chosen for. It is the same as the rate divided by that
    number's square."""
    search: tuple[float, ...] = ()
    """With `augment` none: factors of the rate, of which the best on a held-out tenth of the training samples is
    taken, then trained with on all. Empty: the papers' fixed rate. Raw pixels of a few thousand images overfit at 30
    and lose some eight points to .3, a learned network's features hardly one: a fair baseline is searched."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError("linear.batch_size and linear.epochs are at least 1")
        if any(factor <= 0 for factor in self.search):
            raise ValueError("linear.search holds factors above 0")


RESSL = Linear(Optimizer(lr=10.0, scaling="none", weight_decay=0.0, schedule="steps", milestones=(60.0, 80.0)))
"""ReSSL, section 4: CIFAR, STL-10, Tiny-ImageNet. It gives no batch size."""
IMAGENET = Linear(Optimizer(lr=0.1, weight_decay=0.0), batch_size=1024, epochs=90)
"""SCE, section 4.3: rate .1 * batch / 256, cosine."""
RESSL_IMAGENET = Linear(Optimizer(lr=0.1, weight_decay=0.0, nesterov=True), batch_size=1024, epochs=90)
"""ReSSL, section 5, after SimCLR: as SCE's, with Nesterov; it gives no batch size."""
SIMSIAM_IMAGENET = Linear(Optimizer("lars", lr=0.02, weight_decay=0.0), batch_size=4096, epochs=90)
"""SimSiam, appendix A: LARS, rate .02 * batch / 256, cosine."""


def _fit(x: Tensor, labels: Tensor, classes: int, config: Linear, seed: int) -> nn.Linear:
    if config.batch_size > len(x):
        raise ValueError(f"linear.batch_size {config.batch_size} is above the {len(x)} training samples: lower it")
    classifier = nn.utils.skip_init(nn.Linear, x.shape[1], classes)  # leaves the process's generator alone
    nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(classifier.bias)
    classifier.to(x.device)
    optimizer = build(config.optimizer, classifier.parameters(), config.batch_size)
    positions = torch.arange(len(x), device=x.device)
    steps = len(x) // config.batch_size
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        for epoch in range(config.epochs):
            order = draw(seed, epoch, positions, "linear", 1)[:, 0].argsort(stable=True)
            for step, rows in enumerate(order.split(config.batch_size)[:steps], start=epoch * steps):
                clock = Clock(step, config.epochs * steps, steps, epoch, seed)
                set_learning_rate(optimizer, config.optimizer, config.batch_size, clock)
                optimizer.zero_grad()
                F.cross_entropy(classifier(x[rows]), labels[rows]).backward()
                optimizer.step()
    return classifier.requires_grad_(False)


def _accuracy(classifier: nn.Linear, x: Tensor, labels: Tensor) -> dict[str, float]:
    logits = classifier(x)  # (M, classes)
    if not logits.isfinite().all():
        raise ValueError("the linear classifier diverged: lower linear.optimizer.lr, or set linear.scale unit")
    classes = logits.shape[1]
    right = logits.topk(min(5, classes), dim=1).indices == labels[:, None]
    return {f"top{n}": right[:, :n].any(1).double().mean().item() for n in (1, 5) if n == 1 or classes > n}


def _scaled(train: Tensor, test: Tensor, config: Linear) -> tuple[Tensor, Tensor, float]:
    scale = 1.0
    if config.scale == "unit":
        scale = train.float().square().sum(1).mean().sqrt().item() or 1.0  # features that are all zero stay so
    return train.float() / scale, test.float() / scale, scale


def predicted(
    train: Tensor, labels: Tensor, test: Tensor, config: Linear, *, seed: int = 0, classes: int | None = None
) -> Tensor:
    """The classes int64 (M,) of `test` (M, D) by the classifier that `linear` would train; of few samples a batch is no
    larger than nine tenths of them."""
    x, x_test, _ = _scaled(train, test, config)
    classes = int(labels.max()) + 1 if classes is None else classes
    config = replace(config, batch_size=min(config.batch_size, len(x) - len(x) // 10))
    config = _searched(config, x, labels, classes, seed)
    return _fit(x, labels, classes, config, seed)(x_test).argmax(1)


def _searched(config: Linear, x: Tensor, labels: Tensor, classes: int, seed: int) -> Linear:
    """`config` with the best of the rates to search, by a held-out tenth of the training samples."""
    if not config.search:
        return config
    rows = draw(seed, 0, torch.arange(len(x), device=x.device), "held out", 1)[:, 0].argsort(stable=True)
    held, kept = rows.tensor_split([len(x) // 10])
    candidates = [
        replace(config, optimizer=replace(config.optimizer, lr=config.optimizer.lr * factor))
        for factor in config.search
    ]
    found = [
        _accuracy(_fit(x[kept], labels[kept], classes, c, seed), x[held], labels[held])["top1"] for c in candidates
    ]
    return candidates[found.index(max(found))]


def linear(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    config: Linear,
    *,
    seed: int = 0,
    classes: int | None = None,
) -> dict[str, float]:
    """Trains the classifier of `config` on features that are ready, in float32 on their device.

    The weights start at N(0, .01), the bias at 0, as in MoCo's code. The order of the samples is a function of
    (seed, epoch, position) alone. `config.augment` does not matter here.

    Args:
        train: (N, D).
        train_labels: int64 (N,).
        test: (M, D).
        test_labels: int64 (M,).
        config: the protocol.
        seed: of the first weights, of the order and of the held-out samples.
        classes: labels are below it; None: the highest label and one.

    Returns:
        Fractions "top1", and "top5" where there are more than 5 classes, after the last epoch; what was used: "scale",
        the number that the features were divided by, and "lr", the base rate.

    Raises:
        ValueError: a batch larger than N, labels out of range, features that are not finite, or a classifier that
            diverged.
    """
    if not (train.isfinite().all() and test.isfinite().all()):
        raise ValueError("the features hold values that are not finite")
    highest = int(max(train_labels.max(), test_labels.max()))
    classes = highest + 1 if classes is None else classes
    if highest >= classes or min(train_labels.min(), test_labels.min()) < 0:
        raise ValueError(f"labels lie in 0 to {classes - 1}: a linear evaluation needs one for each sample")
    x, x_test, scale = _scaled(train, test, config)
    config = _searched(config, x, train_labels, classes, seed)
    classifier = _fit(x, train_labels, classes, config, seed)
    return {**_accuracy(classifier, x_test, test_labels), "scale": scale, "lr": config.optimizer.lr}
