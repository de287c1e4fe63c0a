"""Editing with a tuned model (arXiv 2212.11565, section 3.3): invert with the source's text, sample with another."""

from collections.abc import Callable

from torch import Tensor

from ...sample import Level, ddim_step, invert, sample


def edit(
    source: Callable[[Tensor, int], Tensor],
    target: Callable[[Tensor, int], Tensor],
    clip: Tensor,
    levels: list[Level],
    iterations: int = 3,
) -> Tensor:
    """DDIM inversion as structure guidance: z_T = inversion of the clip, then DDIM from z_T towards another text.

    Args:
        source: (z, i) -> x-hat at ``levels[i]`` for inverting. Tune-A-Video gives no text and no guidance here.
        target: the same for sampling: with the edited text, and classifier-free guidance.
        clip: in the model's space.
        levels: from high noise to low; the last may have sigma 0.
        iterations: as in `invert`; 0 is Tune-A-Video's own.

    Returns:
        The edited clip.
    """
    last = len(levels) - 1
    noise = invert(lambda z, i: source(z, last - i), clip, levels[::-1], iterations)
    return sample(target, noise, levels, ddim_step)
