"""HARIVO's temporal-regularised self-attention loss (arXiv 2410.07763). Its formula is not public; this form is ours."""

from einops import rearrange
from torch import Tensor


def attention_map(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)), written out: queries N L (heads d) and keys N M (heads d) to N heads L M, float32."""
    q, k = (rearrange(x, "n l (h d) -> n h l d", h=heads).float() for x in (q, k))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)


def temporal_regularised(maps: Tensor, frames: int) -> Tensor:
    """How much the self-attention maps A of successive frames differ: the mean of ||A_{f+1} - A_f||^2 / N.

    The squared norm is over queries and keys, N the number of queries; the mean over frames, heads and clips. 0 where all
    frames attend alike, as still frames do: so keep its weight small, and watch the motion.

    Args:
        maps: (B frames) heads N N, the frames of a clip one after another.
        frames: frames per clip, 2 or more.

    Returns:
        A scalar.

    Raises:
        ValueError: if the maps are not those of such clips.
    """
    if frames < 2 or maps.shape[0] % frames:
        raise ValueError(f"maps of {maps.shape[0]} frames cannot be clips of {frames}; it takes clips of 2 frames or more")
    maps = rearrange(maps, "(b t) h n m -> b t h n m", t=frames)
    return (maps[:, 1:] - maps[:, :-1]).square().sum(dim=(-2, -1)).mean() / maps.shape[-2]
