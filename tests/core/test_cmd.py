import math

import pytest
import torch

from vidcore.codec.content_motion import CONFIGS as CODECS
from vidcore.layers.dit import DiTBlock
from vidcore.systems.cmd import CONFIGS, MotionConfig, MotionDiT


def make(seed=0):
    """A tiny network with every weight random, so that no zero hides a path."""
    torch.manual_seed(seed)
    net = MotionDiT(MotionConfig.tiny())
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))
    return net.eval()


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return draw(2, 3, 4, 10), torch.tensor([1.5, -2.0]), draw(2, 5, 16), draw(2, 3, 8, 12)


@torch.no_grad()
def test_shape_is_kept_and_all_that_is_given_matters():
    net, (z, log_snr, context, content) = make(), batch()
    out = net(z, log_snr, context, content=content)
    assert out.shape == z.shape
    others = (
        net(z + 0.1, log_snr, context, content=content),
        net(z, log_snr + 1, context, content=content),
        net(z, log_snr, context * 2, content=content),
        net(z, log_snr, None, content=content),
        net(z, log_snr, context, content=content.flip(0)),
        net(z, log_snr, context, content=content.flip(3)),
    )
    assert all((other - out).abs().max() > 1e-3 for other in others)


@torch.no_grad()
def test_no_text_and_zero_tokens_are_alike():
    net, (z, log_snr, context, content) = make(), batch()
    none, zeros = (net(z, log_snr, text, content=content) for text in (None, torch.zeros_like(context)))
    torch.testing.assert_close(none, zeros)


@torch.no_grad()
def test_other_lengths_and_sizes_run():
    net, (_, log_snr, context, _) = make(), batch()
    assert net(torch.randn(2, 3, 6, 8), log_snr, context, content=torch.randn(2, 3, 4, 12)).shape == (2, 3, 6, 8)


def test_fresh_network_predicts_zero_and_its_blocks_are_the_identity():
    net, (z, log_snr, context, content) = MotionDiT(MotionConfig.tiny()).init_weights(), batch()
    assert not net(z, log_snr, context, content=content).any()
    x, c = torch.randn(2, 7, 32), torch.randn(2, 32)
    assert torch.equal(net.blocks[0](x, c), x)


def test_gradients_reach_every_parameter():
    net, (z, log_snr, context, content) = make(), batch()
    net(z, log_snr, context, content=content).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize(
    "name, tokens, millions", [("ucf101", 512, 453), ("webvid_sd15", 512, 669), ("webvid_sd21", 512, 669)]
)
def test_paper_sizes(name, tokens, millions):
    """Section 3.2: DiT-L/2 and XL/2; 256 + 256 tokens, or 384 + 128 at 512x1024."""
    config, codec, seen = CONFIGS[name], CODECS[name], []
    with torch.device("meta"):
        net = MotionDiT(config)
        net.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        z = torch.empty(1, config.latent, config.frames, config.entries)
        content = torch.empty(1, codec.channels, *codec.size)
        assert net(z, torch.empty(1), torch.empty(1, 77, 1024), content=content).shape == z.shape
    assert seen == [tokens]
    assert round(sum(p.numel() for p in net.blocks.parameters()) / 1e6) == millions


def test_the_motion_models_fit_their_codecs():
    for name, config in CONFIGS.items():
        codec = CODECS[name]
        entries = sum(side // codec.patch for side in codec.size)
        assert (config.latent, config.frames, config.entries) == (codec.latent, codec.frames, entries)
        assert config.content_channels == codec.channels and not any(side % config.content_patch for side in codec.size)


def test_shapes_that_do_not_fit_are_refused():
    net, (z, log_snr, context, content) = make(), batch()
    for wrong in (z[:, :2], z[:, :, :3], z[..., :9], z[0]):
        with pytest.raises(ValueError, match="this model takes motion latents of 3 channels"):
            net(wrong, log_snr, context, content=content)
    for wrong in (content[:1], content[:, :2], content[..., :10]):
        with pytest.raises(ValueError, match="this model takes 2 content frames of 3 channels"):
            net(z, log_snr, context, content=wrong)


@torch.no_grad()
def test_a_dit_block_by_hand():
    """adaLN-Zero: x + gate Attention(norm(x) (1 + scale) + shift), then the same with the feed-forward layer."""
    torch.manual_seed(0)
    block = DiTBlock(8, 1)
    x, c = torch.randn(2, 3, 8), torch.randn(2, 8)
    a, b, gate, d, e, gate2 = block.condition(torch.nn.functional.silu(c))[:, None].chunk(6, dim=-1)
    norm = lambda v: (v - v.mean(-1, keepdim=True)) / (v.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    q, k, v = block.qkv(norm(x) * (1 + b) + a).chunk(3, dim=-1)
    h = x + gate * block.out((q @ k.mT / math.sqrt(8)).softmax(-1) @ v)
    hidden = torch.nn.functional.gelu(block.into(norm(h) * (1 + e) + d), approximate="tanh")
    torch.testing.assert_close(block(x, c), h + gate2 * block.back(hidden))
