"""Signs of collapse in the features of two views of the same samples: cheap enough for every logged step."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def monitors(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Scalars of L2-normalized features, float32, on the features' device.

    - `feature_std`: standard deviation of each dimension over both views, its mean over dimensions times sqrt(D)
      (Chen & He, SimSiam, 2021, Fig. 2): 1 isotropic, 0 collapsed.
    - `effective_rank`: exp of the entropy of the singular values divided by their sum (Roy & Vetterli, 2007), of
      view `a`, not centred: 1 collapsed to a line, at most min(B, D).
    - `alignment`: mean squared distance of the two views (Wang & Isola, 2020, alpha = 2), 0 to 4, lower is closer.
    - `uniformity`: log of the mean of exp(-2 squared distance) over the pairs of different samples, averaged over
      the two views (Wang & Isola, 2020, t = 2), -8 to 0: 0 collapsed.

    Args:
        a, b: (B, D), any float type, B at least 2; a row is the same sample in both.
    """
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    values = torch.linalg.svdvals(a.nan_to_num())  # LAPACK refuses NaN; the other monitors show it
    share = values / values.sum().clamp_min(torch.finfo(torch.float32).tiny)
    spread = torch.stack([torch.pdist(x).square().mul(-2).exp().mean().log() for x in (a, b)])
    return {
        "feature_std": torch.cat([a, b]).std(0, correction=0).mean() * math.sqrt(a.shape[1]),
        "effective_rank": torch.special.entr(share).sum().exp(),
        "alignment": (a - b).square().sum(1).mean(),
        "uniformity": spread.mean(),
    }
