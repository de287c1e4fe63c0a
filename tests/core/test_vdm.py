import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pixel_unshuffle

from vidcore import weights
from vidcore.layers.attention import TemporalAttention
from vidcore.schedule import alpha_sigma, expand_as
from vidcore.systems.vdm import CONFIGS, UNet3D, VDMConfig, vdm_loss
from vidcore.systems.vdm.checkpoint import from_info, load_vdm, to_info, to_tensors
from vidcore.systems.vdm.grow import grow
from vidcore.text import TextConfig, TextEncoder


def make(seed=0, **changes):
    """A tiny network with every weight random, so that no zero hides a path."""
    torch.manual_seed(seed)
    net = UNet3D(VDMConfig(**{**vars(VDMConfig.tiny()), **changes}))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))
    return net.eval()


def batch(frames=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, frames, 16, 16, generator=generator), torch.tensor([1.5, -2.0])


@torch.no_grad()
@pytest.mark.parametrize("frames, height, width", [(4, 16, 16), (1, 16, 16), (7, 8, 24)])
def test_shape_is_kept_for_any_clip(frames, height, width):
    z = torch.randn(2, 3, frames, height, width)
    assert make()(z, torch.zeros(2), torch.randn(2, 5, 16)).shape == z.shape


@torch.no_grad()
def test_images_in_a_joint_batch_do_not_touch_the_video_nor_it_them():
    net, (z, log_snr) = make(), batch(6)
    text, image_text = torch.randn(2, 5, 16), torch.randn(2, 2, 5, 16)
    out = net(z, log_snr, text, 2, image_text)
    other = z.clone()
    other[:, :, 4:] = torch.randn(2, 3, 2, 16, 16)
    assert torch.equal(net(other, log_snr, text, 2, torch.randn(2, 2, 5, 16))[:, :, :4], out[:, :, :4])
    other = z.clone()
    other[:, :, :4] = torch.randn(2, 3, 4, 16, 16)
    assert torch.equal(net(other, log_snr, torch.randn(2, 5, 16), 2, image_text)[:, :, 4:], out[:, :, 4:])


@torch.no_grad()
def test_image_frames_equal_the_image_path_and_the_clip_the_video_path():
    net, (z, log_snr) = make(), batch(6)
    text, image_text = torch.randn(2, 5, 16), torch.randn(2, 2, 5, 16)
    out = net(z, log_snr, text, 2, image_text)
    for k in range(2):
        alone = net(z[:, :, 4 + k : 5 + k], log_snr, image_text[:, k])
        torch.testing.assert_close(out[:, :, 4 + k : 5 + k], alone, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(out[:, :, :4], net(z[:, :, :4], log_snr, text), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_frames_of_a_clip_do_exchange_information():
    net, (z, log_snr) = make(), batch()
    other = z.clone()
    other[:, :, 3] += 1
    assert (net(other, log_snr) - net(z, log_snr))[:, :, 0].abs().max() > 1e-4


def test_gradients_reach_every_parameter():
    net, (z, log_snr) = make().train(), batch()
    net(z, log_snr, torch.randn(2, 5, 16)).square().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


@torch.no_grad()
def test_fresh_network_predicts_zero():
    net = UNet3D(VDMConfig.tiny()).init_weights()
    assert torch.equal(net(*batch()), torch.zeros(2, 3, 4, 16, 16))


@torch.no_grad()
@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_half_precision_stays_near_float32(dtype, bound):
    net, (z, log_snr) = make(), batch()
    text = torch.randn(2, 5, 16)
    full = net(z, log_snr, text)
    half = net.to(dtype)(z.to(dtype), log_snr, text.to(dtype)).float()
    assert (half - full).norm() / full.norm() < bound


def test_loss_of_known_outputs():
    """With a zero network the v-loss is the mean of v^2, and E v^2 = alpha^2 + sigma^2 x^2 for unit noise."""
    net = UNet3D(VDMConfig.tiny()).init_weights()
    x = torch.full((64, 3, 4, 16, 16), 0.5)
    loss = float(vdm_loss(net, x, torch.Generator().manual_seed(0)).detach())
    assert loss == pytest.approx(0.5 + 0.5 * 0.25, rel=0.03)  # t is uniform and alpha^2 averages one half


def test_the_x0_loss_is_the_v_loss_of_the_same_estimate():
    """At noise above the cap: |x - x-hat|^2 (SNR + 1) = |v - v-hat|^2 with v-hat = (alpha z - x-hat) / sigma."""
    guess = torch.rand(8, 3, 2, 4, 4) * 2 - 1

    class Fixed(torch.nn.Module):
        def __init__(self, prediction):
            super().__init__()
            self.config = replace(VDMConfig.tiny(), prediction=prediction)

        def forward(self, z, log_snr, *_):
            alpha, sigma = (expand_as(s, z) for s in alpha_sigma(log_snr))
            return guess if self.config.prediction == "x0" else (alpha * z - guess) / sigma

    x = torch.rand(8, 3, 2, 4, 4) * 2 - 1
    in_x, in_v = (
        float(vdm_loss(Fixed(p), x, torch.Generator().manual_seed(0), time_power=0.1)) for p in ("x0", "v")
    )  # t = u^0.1 stays above 0.7
    assert in_x == pytest.approx(in_v, rel=1e-4)
    # Faint noise: every weight is the cap.
    capped = float(vdm_loss(Fixed("x0"), x, torch.Generator().manual_seed(0), time_power=20.0))
    assert capped == pytest.approx(10 * float((x - guess).square().mean()), rel=0.15)


@torch.no_grad()
def test_patches_are_folded_into_channels():
    folded, plain = make(patch=2, size=32), make(size=16, in_channels=12)
    plain.load_state_dict(folded.state_dict())
    z, log_snr = torch.randn(2, 3, 4, 32, 32), torch.zeros(2)
    fold = lambda x: pixel_unshuffle(x.transpose(1, 2), 2).transpose(1, 2)  # noqa: E731
    assert torch.equal(fold(folded(z, log_snr)), plain(fold(z), log_snr))
    assert folded.config.stride == 4


@torch.no_grad()
def test_places_tell_frames_apart_and_pictures_have_none():
    net = make(places=4)
    z = torch.randn(1, 3, 1, 16, 16).expand(-1, -1, 5, -1, -1)  # the same frame five times
    for part in net.modules():  # leave relative positions out of it
        if isinstance(part, TemporalAttention):
            part.key_offset.weight.zero_()
            part.value_offset.weight.zero_()
    log_snr = torch.zeros(1)
    clip = net(z, log_snr)
    assert torch.cdist(clip[0].transpose(0, 1).flatten(1), clip[0].transpose(0, 1).flatten(1)).fill_diagonal_(9).min() > 1e-3
    joint = net(z, log_snr, images=2)
    alone = net(z[:, :, :1], log_snr)
    torch.testing.assert_close(joint[:, :, 3:], alone.expand(-1, -1, 2, -1, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joint[:, :, :3], net(z[:, :, :3], log_snr), atol=1e-5, rtol=1e-5)


def test_loss_repeats_with_its_generator_and_drops_captions():
    net = make()
    x, text = batch()[0].clamp(-1, 1), torch.randn(2, 5, 16)

    def loss(seed, drop):
        return float(vdm_loss(net, x, torch.Generator().manual_seed(seed), text, drop_context=drop).detach())

    assert loss(3, 0.1) == loss(3, 0.1)
    assert loss(3, 0.0) != loss(4, 0.0)
    without = float(vdm_loss(net, x, torch.Generator().manual_seed(3), torch.zeros_like(text), drop_context=0.0).detach())
    assert loss(3, 1.0) == without != loss(3, 0.0)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "tiny"])
def test_paper_sizes_build_with_attention_where_the_paper_has_it(name):
    config = CONFIGS[name]
    net = UNet3D(config, device="meta")
    temporal = sum("temporal.out.weight" in key for key in net.state_dict())
    levels = sum(config.size // 2**i in (8, 16, 32) for i in range(len(config.multipliers)))
    assert temporal == levels * (2 * config.blocks + 1) + 1  # down, up (one more), and the middle
    heads = {m.heads * config.head_width for m in net.modules() if type(m).__name__ == "TemporalAttention"}
    assert heads <= {config.channels * m for m in config.multipliers}


def test_wrong_shapes_are_refused():
    net = make()
    with pytest.raises(ValueError, match="multiples of 2; got 3 channels of 15x16"):
        net(torch.zeros(1, 3, 4, 15, 16), torch.zeros(1))
    with pytest.raises(ValueError, match="3 channels"):
        net(torch.zeros(1, 4, 4, 16, 16), torch.zeros(1))
    with pytest.raises(ValueError, match="images must lie between 0 and the 4"):
        net(torch.zeros(1, 3, 4, 16, 16), torch.zeros(1), images=5)


@torch.no_grad()
def test_save_and_load_give_the_same_numbers(tmp_path):
    net, text = make(), TextEncoder(TextConfig(("a", "red", "star"), 5, 16, 1, 2)).eval()
    info = to_info(net.config, text.config, seed=0)
    weights.save(tmp_path / "m.safetensors", to_tensors(net, text), info)
    net2, text2 = load_vdm(tmp_path / "m.safetensors")
    assert net2.config == net.config and text2.config == text.config
    tokens = torch.tensor([[1, 2, 3, 0, 0]] * 2)
    assert torch.equal(net2(*batch(), text2(tokens)), net(*batch(), text(tokens)))


def test_descriptions_that_do_not_fit_are_refused():
    good = to_info(VDMConfig.tiny(), TextConfig(("a",)))
    with pytest.raises(weights.WeightsError, match="'vdm', this file holds 'cmd'"):
        from_info({**good, "system": "cmd"})
    with pytest.raises(weights.WeightsError, match="does not fit this version"):
        from_info({**good, "model": {"width": 3}})


def test_time_power_moves_draws_from_low_noise_to_high():
    """t = u^p has the mean 1 / (1 + p); the network is asked at those times and no others."""
    asked = []

    class Spy(torch.nn.Module):
        config = VDMConfig.tiny()

        def forward(self, z, log_snr, *_):
            asked.append(self.config.schedule.time(log_snr))
            return torch.zeros_like(z)

    for power in (1.0, 0.5):
        asked.clear()
        vdm_loss(Spy(), torch.zeros(4096, 3, 1, 2, 2), torch.Generator().manual_seed(0), time_power=power)
        assert float(asked[0].mean()) == pytest.approx(1 / (1 + power), abs=2e-3)
        assert float((asked[0] < 0.1).float().mean()) == pytest.approx(0.1 ** (1 / power), abs=2e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    "larger", [{"blocks": 2}, {"blocks": 3}, {"attention_sizes": (8, 16)}, {"blocks": 2, "attention_sizes": (8, 16)}]
)
def test_a_grown_network_computes_the_same(larger):
    net = make(multipliers=(1, 2, 2))
    grown = grow(net, replace(net.config, **larger))
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in net.parameters())
    z, log_snr = batch()
    context = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(grown(z, log_snr, context, images=1), net(z, log_snr, context, images=1), rtol=0, atol=1e-6)


def test_what_was_grown_trains():
    net = make()
    grown = grow(net, replace(net.config, blocks=2, attention_sizes=(8, 16)))
    optimiser = torch.optim.SGD(grown.parameters(), lr=0.1)
    for step in range(2):  # the first moves the zeros, the second what lies before them
        optimiser.zero_grad()
        vdm_loss(grown, batch()[0], torch.Generator().manual_seed(step), torch.randn(2, 5, 16)).backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in grown.parameters() if p.ndim > 1)


@pytest.mark.parametrize("other", [{"channels": 16}, {"blocks": 0}, {"attention_sizes": (16,)}])
def test_a_network_grows_by_blocks_and_attention_alone(other):
    net = make()
    with pytest.raises(ValueError, match="grows by blocks and attention_sizes"):
        grow(net, replace(net.config, **other))
