"""Fréchet distance between two sets of features, and the inception score: FVD and FID without SciPy.

FID: Heusel et al. 2017, arXiv 1706.08500, eq. 6; FVD: Unterthiner et al. 2018, arXiv 1812.01717; inception score: Salimans
et al. 2016, arXiv 1606.03498, section 4. What they mean depends on the network that makes the features, on how clips are
resized and chosen, and on how many there are: only numbers of one protocol can be compared.
"""

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of features that come in parts, in float64.

    Args:
        width: of a feature.
    """

    def __init__(self, width: int):
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)  # sum of (x - mean) (x - mean)^T

    def add(self, features: Tensor) -> None:
        """More features N D. Raises ValueError if their shape does not fit or they are not all numbers."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"expected features of shape N x {len(self.mean)}, got {tuple(features.shape)}")
        if not torch.isfinite(features).all():
            raise ValueError("the features hold NaN or infinite values; please check the clips and the extractor")
        x = features.detach().to("cpu", torch.float64)
        if not len(x):
            return
        mean, total = x.mean(dim=0), self.count + len(x)
        apart = mean - self.mean
        x = x - mean
        # Chan, Golub, LeVeque 1979: two parts' scatters, and what their means are apart.
        self.scatter += x.T @ x + torch.outer(apart, apart) * (self.count * len(x) / total)
        self.mean += apart * (len(x) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased, D D."""
        return self.scatter / (self.count - 1)


def frechet_distance(one: Moments, two: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The root's trace is that of (S1^(1/2) S2 S1^(1/2))^(1/2), which is symmetric, so eigenvalues suffice.

    Raises:
        ValueError: if a set has no more samples than a feature has entries: its covariance is then not one of full rank, and
            the distance says more about their number than about them.
    """
    for moments in (one, two):
        if moments.count <= len(moments.mean):
            raise ValueError(
                f"{moments.count} clips are too few for features of {len(moments.mean)} entries; please give more than "
                f"{len(moments.mean)}, and better {10 * len(moments.mean)}"
            )
    values, vectors = torch.linalg.eigh(one.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ two.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (one.mean - two.mean).square().sum()
    return float(apart + one.covariance.trace() + two.covariance.trace() - 2 * shared)


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence of p(y | x) from p(y): mean and standard deviation over ``splits`` parts.

    Args:
        logits: of a classifier, N classes.
        splits: parts that are scored apart; 10 is usual.

    Raises:
        ValueError: if there are fewer than two samples for each part.
    """
    if splits < 1 or len(logits) < 2 * splits:
        raise ValueError(f"{len(logits)} samples are too few for {splits} parts; please give {2 * max(1, splits)} or more")
    scores = []
    for part in logits.double().chunk(splits):
        log = part.log_softmax(dim=1)
        log_mean = log.logsumexp(dim=0) - torch.tensor(len(part), dtype=torch.float64).log()
        scores.append((log.exp() * (log - log_mean)).sum(dim=1).mean().exp())
    scores = torch.stack(scores)
    return float(scores.mean()), float(scores.std(unbiased=False))
