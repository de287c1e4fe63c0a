import pytest
import torch

from vidcore.layers.attention import attention
from vidcore.layers.sparse_causal import sparse_causal
from vidcore.systems.wire import FRAMES, frames_per_clip


def tokens(frames, batch=2, length=5, width=8):
    generator = torch.Generator().manual_seed(frames)
    return [torch.randn(batch * frames, length, width, generator=generator, dtype=torch.float64) for _ in range(3)]


def attend(q, k, v):
    return attention(q, k, v, heads=2)


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_against_the_concatenation_of_the_paper(frames):
    """K = [k_1, k_{i-1}] for every frame, the first twice for frames 1 and 2."""
    q, k, v = tokens(frames)
    split = [x.unflatten(0, (-1, frames)) for x in (q, k, v)]
    expected = torch.empty_like(split[0])
    for i in range(frames):
        both = [torch.cat([x[:, 0], x[:, max(0, i - 1)]], dim=1) for x in split[1:]]
        expected[:, i] = attend(split[0][:, i], *both)
    torch.testing.assert_close(sparse_causal(q, k, v, frames, attend), expected.flatten(0, 1))


def test_one_frame_is_plain_self_attention():
    q, k, v = tokens(1)
    assert torch.equal(sparse_causal(q, k, v, 1, attend), attend(q, k, v))


def test_work_is_not_done_twice():
    """Keys per query: one frame's for frames 1 and 2, two frames' for the rest."""
    seen = []

    def counting(q, k, v):
        seen.append((len(q), k.shape[1]))
        return attend(q, k, v)

    sparse_causal(*tokens(6, batch=3), 6, counting)
    assert seen == [(6, 5), (12, 10)]


def test_later_frames_change_nothing_before_them_and_no_frame_sees_itself():
    q, k, v = tokens(5, batch=1)
    k = k.requires_grad_()
    out = sparse_causal(q, k, v, 5, attend)
    for i in range(5):
        (gradient,) = torch.autograd.grad(out[i].sum(), k, retain_graph=True)
        seen = [j for j in range(5) if gradient[j].abs().max() > 0]
        assert seen == sorted({0, max(0, i - 1)})


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_gradients_are_those_of_finite_differences(frames):
    inputs = [x.requires_grad_() for x in tokens(frames, length=2, width=4)]
    assert torch.autograd.gradcheck(lambda q, k, v: sparse_causal(q, k, v, frames, attend), inputs)


def test_a_batch_that_is_no_clips_is_refused():
    with pytest.raises(ValueError, match="10 pictures cannot be clips of 3 frames"):
        sparse_causal(*tokens(5), 3, attend)


@pytest.mark.parametrize(
    ("batch", "prompts", "known", "frames"),
    [
        (8, 2, None, 4),  # nobody says how long the clip is
        (8, 2, 4, 4),
        (24, 2, 4, 4),  # three tiles of each frame
        (12, 1, 4, 4),
        (8, 2, 16, 4),  # a window of a longer clip
        (12, 2, 4, 6),  # no clips of that length
    ],
)
def test_what_of_a_batch_is_one_clip(batch, prompts, known, frames):
    options = {"cond_or_uncond": list(range(prompts))} | ({} if known is None else {FRAMES: known})
    assert frames_per_clip(batch, options) == frames
