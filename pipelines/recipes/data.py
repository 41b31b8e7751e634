"""Sizes and colour statistics of the datasets that recipes share; `train` and `test` come from the command line.

Means and standard deviations of CIFAR are those of SCE's code, of STL-10 and Tiny ImageNet those that ReSSL's author
gave in a public thread. ImageNet is decoded to the central 256 x 256 pixels, from which views of 224 are cropped: our
choice, since the papers crop the photo as it is (`--data.size` and the views' sizes change it).
"""

from pipelines.sources import Data

CIFAR10 = Data(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
CIFAR100 = Data(size=32, mean=(0.5071, 0.4865, 0.4409), std=(0.2009, 0.1984, 0.2023))
STL10 = Data(size=64, mean=(0.4408, 0.4279, 0.3867), std=(0.2682, 0.2610, 0.2686))
TINYIMAGENET = Data(size=64, mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262))
IMAGENET = Data(size=256)
