import math

import pytest
import torch
from torch.nn.functional import conv3d

import vidcore.layers.attention as module
from vidcore.layers.attention import SpatialAttention, TemporalAttention, attention, attention_over_frames, head_count
from vidcore.layers.embed import AttentionPooling, log_snr_features
from vidcore.layers.resnet import ResBlock


def randomise(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return layer


def test_heads_that_do_not_fit_are_refused():
    assert head_count(48, 24) == 2 and head_count(16, 64) == 1
    for layer in (SpatialAttention, lambda *sizes: TemporalAttention(*sizes, 4)):
        with pytest.raises(ValueError, match="heads of width 32 do not fit into 176 channels"):
            layer(176, 32)


def test_attention_against_the_definition():
    q, k, v = (torch.randn(3, n, 8, dtype=torch.float64) for n in (4, 6, 6))
    bias = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    out = attention(q, k, v, heads=2, bias=bias)
    for n in range(3):
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            weights = (q[n, :, part] @ k[n, :, part].T / 2 + bias[n, h]).softmax(-1)
            torch.testing.assert_close(out[n, :, part], weights @ v[n, :, part])


def test_a_batch_above_the_limit_is_split_without_a_trace(monkeypatch):
    q, k, v = (torch.randn(7, 3, 8) for _ in range(3))
    bias = torch.randn(7, 2, 3, 3)
    whole = attention(q, k, v, 2, bias)
    monkeypatch.setattr(module, "MAX_BATCH", 3)
    torch.testing.assert_close(attention(q, k, v, 2, bias), whole)


@pytest.mark.parametrize("clips", [1, 2, 5])
@pytest.mark.parametrize("frames", [3, 4, 5], ids=["fewer than a head is wide", "as many", "more"])
def test_attention_over_frames_is_attention_at_each_place(frames, clips):
    places, heads = 5, 2
    q, k, v = (torch.randn(clips * frames, places, 8, dtype=torch.float64) for _ in range(3))
    out = attention_over_frames(q, k, v, frames, heads)
    for clip in range(clips):
        part = slice(clip * frames, (clip + 1) * frames)
        each = (x[part].transpose(0, 1) for x in (q, k, v))  # places are the batch
        torch.testing.assert_close(out[part], attention(*each, heads).transpose(0, 1))


@torch.no_grad()
def test_temporal_attention_against_shaw():
    """Keys and values are shifted by vectors per offset j - i as seen from query i (Shaw et al. 2018, eqs. 3 and 4)."""
    layer = randomise(TemporalAttention(8, 4, max_frames=3)).double()
    x = torch.randn(2 * 5, 8, 2, 3, dtype=torch.float64)
    out = layer(x, frames=5)
    tokens = layer.norm(x)
    for b in range(2):
        for row in range(2):
            for column in range(3):
                t = tokens.unflatten(0, (2, 5))[b, :, :, row, column]
                q, k, v = layer.qkv(t).chunk(3, -1)
                mixed = torch.zeros_like(v)
                for h in range(2):
                    part = slice(4 * h, 4 * h + 4)
                    for i in range(5):
                        offsets = [max(-2, min(2, j - i)) + 2 for j in range(5)]
                        keys = k[:, part] + layer.key_offset.weight[offsets]
                        values = v[:, part] + layer.value_offset.weight[offsets]
                        mixed[i, part] = (keys @ q[i, part] / 2).softmax(0) @ values
                expected = x.unflatten(0, (2, 5))[b, :, :, row, column] + layer.out(mixed)
                torch.testing.assert_close(out.unflatten(0, (2, 5))[b, :, :, row, column], expected)


@torch.no_grad()
def test_appended_images_see_only_themselves_bit_for_bit():
    layer = randomise(TemporalAttention(8, 4, max_frames=4))
    x = torch.randn(2 * 6, 8, 2, 2)
    out = layer(x, frames=6, images=2).unflatten(0, (2, 6))
    other = x.unflatten(0, (2, 6)).clone()
    other[:, 4:] = torch.randn(2, 2, 8, 2, 2)
    changed = layer(other.flatten(0, 1), frames=6, images=2).unflatten(0, (2, 6))
    assert torch.equal(out[:, :4], changed[:, :4])
    # Each image is what a clip of that one frame would give.
    alone = layer(x.unflatten(0, (2, 6))[:, 5], frames=1)
    torch.testing.assert_close(out[:, 5], alone, atol=1e-6, rtol=1e-6)
    # And the clip is what it would be without them.
    torch.testing.assert_close(out[:, :4].flatten(0, 1), layer(x.unflatten(0, (2, 6))[:, :4].flatten(0, 1), 4))


@torch.no_grad()
def test_order_of_frames_matters_only_through_the_offsets():
    layer = randomise(TemporalAttention(8, 4, max_frames=4))
    x = torch.randn(4, 8, 2, 2)
    assert not torch.allclose(layer(x.flip(0), 4).flip(0), layer(x, 4), atol=1e-3)
    layer.key_offset.weight.zero_()
    assert not torch.allclose(layer(x.flip(0), 4).flip(0), layer(x, 4), atol=1e-3)
    layer.value_offset.weight.zero_()
    torch.testing.assert_close(layer(x.flip(0), 4).flip(0), layer(x, 4), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_frames_that_look_alike_still_know_their_place():
    layer = randomise(TemporalAttention(8, 4, max_frames=4))
    out = layer(torch.randn(1, 8, 2, 2).expand(4, -1, -1, -1), 4)
    assert torch.cdist(out.flatten(1), out.flatten(1)).fill_diagonal_(9).min() > 0.01


@torch.no_grad()
def test_spatial_attention_keeps_frames_apart():
    layer = randomise(SpatialAttention(8, 4))
    x = torch.randn(3, 8, 4, 4)
    other = x.clone()
    other[1] = 0
    assert torch.equal(layer(x)[[0, 2]], layer(other)[[0, 2]])


@torch.no_grad()
def test_frames_as_batch_is_the_paper_s_1x3x3_convolution():
    block = randomise(ResBlock(4, 8, 16, 0.0))
    clip = torch.randn(2, 4, 3, 6, 6)
    flat = block.conv1(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(flat, conv3d(clip, block.conv1.weight[:, :, None], block.conv1.bias, padding=(0, 1, 1)))


def test_noise_level_features_tell_levels_apart():
    features = log_snr_features(torch.linspace(-20, 20, 81), 16)
    assert features.shape == (81, 16) and torch.isfinite(features).all()
    distances = torch.cdist(features, features) + torch.eye(81) * 9
    assert distances.min() > 1e-4


@torch.no_grad()
def test_pooling_of_zero_tokens_is_zero_and_repeats_do_not_count():
    pool = randomise(AttentionPooling(8, 12, heads=4))
    assert torch.equal(pool(torch.zeros(2, 5, 8)), torch.zeros(2, 12))
    tokens = torch.randn(2, 5, 8)
    torch.testing.assert_close(pool(tokens.repeat(1, 3, 1)), pool(tokens))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_uniform_attention_averages(heads):
    v = torch.randn(2, 5, 8)
    out = attention(torch.zeros(2, 1, 8), torch.randn(2, 5, 8), v, heads)
    torch.testing.assert_close(out, v.mean(1, keepdim=True))
    assert math.isfinite(float(out.sum()))
