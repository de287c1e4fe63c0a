"""Tune-A-Video's layers, loss, tuning and files, on a transformer block small enough to check by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vidcore import weights
from vidcore.denoise import target, to_x0, x0_weight
from vidcore.layers.attention import attention
from vidcore.layers.clip_norm import norm_over_clip
from vidcore.layers.embed import grid_positions
from vidcore.layers.frame_attention import FrameAttention
from vidcore.sample import Level, ddim_step, sample
from vidcore.systems.harivo import ClipLosses
from vidcore.systems.harivo.wire import WithMotion
from vidcore.systems.tune_a_video import (
    Block,
    TuneConfig,
    TunedLayers,
    Tuning,
    added_query,
    edit,
    load_tuned,
    read_loss,
    to_info,
    tune_loss,
)
from vidcore.systems.tune_a_video.checkpoint import same_base
from vidcore.systems.tune_a_video.config import stable_diffusion_blocks
from vidcore.systems.tune_a_video.wire import WithTemporal

TINY = TuneConfig((Block("input_blocks.0", 8, 2), Block("middle_block", 16, 4)))
LEVELS = [Level(math.cos(a), math.sin(a)) for a in (0.2, 0.7, 1.2)]


def frame_attention(width=8, heads=2):
    layer = FrameAttention(width, heads)
    layer.init_weights(torch.Generator().manual_seed(0))
    return layer


# ------------------------------------------------------------------------------------------------------------- layers


def test_frame_attention_starts_as_nothing_and_gradients_reach_its_output():
    layer, x = frame_attention(), torch.randn(6, 5, 8)
    assert torch.equal(layer(x, 3), x)
    layer(x, 3).square().sum().backward()
    assert layer.to_out.weight.grad.abs().sum() > 0 and layer.to_out.bias.grad.abs().sum() > 0


def test_frame_attention_is_attention_over_frames_at_each_place():
    layer, x = frame_attention(), torch.randn(2 * 3, 5, 8, dtype=torch.float64)
    layer.double()
    nn.init.normal_(layer.to_out.weight)
    made = layer(x, 3)
    for clip in range(2):
        for place in range(5):
            tokens = x[3 * clip : 3 * clip + 3, place]  # T C
            normed = nn.functional.layer_norm(tokens, (8,))
            q, k, v = (layer(normed) for layer in (layer.to_q, layer.to_k, layer.to_v))
            heads = [((q[:, h] @ k[:, h].T) / math.sqrt(4)).softmax(-1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
            expected = tokens + layer.to_out(torch.cat(heads, -1))
            torch.testing.assert_close(made[3 * clip : 3 * clip + 3, place], expected)


def test_frame_attention_has_no_order():
    layer, x = frame_attention(), torch.randn(4, 5, 8)
    nn.init.normal_(layer.to_out.weight)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(layer(x[order], 4), layer(x, 4)[order])
    assert not torch.allclose(layer(x, 4), x)
    torch.testing.assert_close(layer(x, 4, strength=0.0), x)


def test_frame_attention_with_order_is_that_of_tokens_with_their_frame_s_sinusoids():
    layer, x = frame_attention(), torch.randn(4, 5, 8)
    nn.init.normal_(layer.to_out.weight)
    ordered = FrameAttention(8, 2, order=True)
    ordered.load_state_dict(layer.state_dict())
    order = [2, 0, 3, 1]
    assert not torch.allclose(ordered(x[order], 4), ordered(x, 4)[order], atol=1e-3)
    tokens = nn.functional.layer_norm(x, (8,)) + grid_positions((4,), 8)[0][:, None]
    q, k, v = (layer(tokens.movedim(0, 1)) for layer in (layer.to_q, layer.to_k, layer.to_v))
    torch.testing.assert_close(ordered(x, 4), x + layer.to_out(attention(q, k, v, 2)).movedim(0, 1))


def test_gradients_go_through_a_block_in_the_order_of_its_tokens():
    seen = []

    def block(x, **_):
        x.register_hook(lambda gradient: seen.append(gradient.is_contiguous()))
        return x

    def layer(x, *_):
        return x + 1

    for wired in (WithTemporal(block, layer), WithMotion(block, layer, "tokens")):
        x = torch.randn(4, 6, 8, requires_grad=True)
        pictures = wired(x * 2, transformer_options={"activations_shape": (4, 8, 2, 3)}).transpose(1, 2)
        torch.testing.assert_close(pictures.transpose(1, 2), 2 * x + 1)
        pictures.contiguous().square().sum().backward()
        torch.testing.assert_close(x.grad, 4 * (2 * x + 1))
    assert seen == [True, True]


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads do not divide 8 channels"):
        FrameAttention(8, 3)


def test_norm_over_a_clip_has_one_mean_and_deviation_per_clip():
    norm, x = nn.GroupNorm(2, 4).double(), torch.randn(2 * 3, 4, 5, 6, dtype=torch.float64) * 3 + 1
    made = norm_over_clip(norm, x, 3)
    for clip in range(2):
        for group in (slice(0, 2), slice(2, 4)):
            part = x[3 * clip : 3 * clip + 3, group]
            expected = (part - part.mean()) / (part.var(unbiased=False) + norm.eps).sqrt()
            torch.testing.assert_close(made[3 * clip : 3 * clip + 3, group], expected)
    torch.testing.assert_close(norm_over_clip(norm, x, 1), norm(x))


def test_a_changed_query_is_that_of_the_summed_weight_and_survives_half_precision():
    project, change, x = nn.Linear(8, 8, bias=False), torch.randn(8, 8), torch.randn(3, 5, 8)
    with torch.no_grad():
        expected = x @ (project.weight + change).T
    torch.testing.assert_close(added_query(project, change, x), expected)
    half, small = project.half(), torch.full((8, 8), 1e-5)
    assert ((half.weight + small.half()) == half.weight).float().mean() > 0.5  # the sum would be lost in rounding
    x = torch.ones(1, 1, 8).half()
    added = added_query(lambda x: torch.zeros_like(x), small, x)
    torch.testing.assert_close(added, torch.full_like(added, 8e-5), rtol=1e-2, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- what trains


def test_counts_on_stable_diffusion_are_the_papers():
    layers = TunedLayers(TuneConfig(stable_diffusion_blocks()), device="meta")
    count = lambda name: sum(p.numel() for n, p in layers.named_parameters() if name in n)  # noqa: E731
    assert count("self_query") == count("text_query") == 12_390_400
    assert count("temporal") == 49_574_080
    assert count("") == 74_354_880
    assert len(layers.blocks) == 16


def test_the_start_is_a_function_of_the_seed_alone():
    a, b, c = (TunedLayers(TINY).init_weights(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["blocks.0.temporal.to_q.weight"], c["blocks.0.temporal.to_q.weight"])
    assert not any(a[k].any() for k in a if "query" in k or "to_out" in k)


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match="norm must be one of frame, clip; got 'video'"):
        TuneConfig(TINY.blocks, "video")
    with pytest.raises(ValueError, match="needs transformer blocks"):
        TuneConfig(())


# --------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_loss_is_the_error_of_the_networks_own_output(prediction, level):
    x, eps, output = (torch.randn(3, 4, 5, 5, dtype=torch.float64) for _ in range(3))
    alpha, sigma = (torch.tensor(s, dtype=torch.float64) for s in level)
    loss = tune_loss(lambda z: to_x0(prediction, output, z, alpha, sigma), prediction, x, eps, level)
    expected = (output - target(prediction, x, eps, alpha, sigma)).square().mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_the_loss_of_a_flow_is_the_error_in_velocity():
    x, eps, output = (torch.randn(3, 4, 5, 5) for _ in range(3))
    loss = tune_loss(lambda z: z - 0.3 * output, "v", x, eps, Level(0.7, 0.3))
    torch.testing.assert_close(loss, (output - (eps - x)).square().mean())


def test_x0_models_are_weighted_as_v_up_to_a_bound():
    assert x0_weight("x0", 0.6, 0.8) == pytest.approx(1 / 0.64)
    assert x0_weight("x0", 1.0, 1e-3) == 10
    with pytest.raises(ValueError, match="prediction must be one of"):
        x0_weight("noise", 0.6, 0.8)


# ------------------------------------------------------------------------------------------------------------- tuning


class Inflated(nn.Module):
    """A frozen "image model" of two blocks, inflated: x-hat = frames through both blocks' parts."""

    def __init__(self, layers):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.layers = layers
        self.frozen = nn.ModuleList(nn.Linear(b.width, b.width, bias=False) for b in layers.config.blocks)
        for layer in self.frozen:
            layer.weight = nn.Parameter(torch.randn(layer.weight.shape, generator=generator) / 4, requires_grad=False)

    def forward(self, z, i=0):
        x = z.flatten(2).transpose(1, 2)  # T L 8
        for tuned, project in zip(self.layers.blocks, self.frozen):
            x = x if x.shape[-1] == project.in_features else torch.cat([x, x.square()], -1)
            x = x + added_query(project, tuned.self_query, x) + added_query(project, tuned.text_query, x.tanh())
            x = tuned.temporal(x, z.shape[0])
        return x[..., :8].transpose(1, 2).reshape(z.shape)


def start_tuning(seed=3, device="cpu", half=False):
    layers = TunedLayers(TINY).init_weights(0).to(device)
    return Tuning(layers, 3e-3, seed, half), Inflated(layers).to(device)


CLIP = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(1)).tanh()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"))]


def advance(tuning, net, steps):
    clip = CLIP.to(next(net.parameters()).device)
    return [float(tuning.advance(net, "v", clip, 0.1, LEVELS)) for _ in range(steps)]


def test_tuning_lowers_the_loss_and_changes_only_what_trains():
    tuning, net = start_tuning()
    frozen = [layer.weight.clone() for layer in net.frozen]
    before = {k: v.clone() for k, v in tuning.layers.state_dict().items()}
    losses = advance(tuning, net, 120)
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    assert all(torch.equal(a, b.weight) and b.weight.grad is None for a, b in zip(frozen, net.frozen))
    assert all(not torch.equal(before[k], v) for k, v in tuning.layers.state_dict().items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", [False, True])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, device, half):
    whole, net = start_tuning(device=device, half=half)
    advance(whole, net, 9)
    first, net = start_tuning(device=device, half=half)
    advance(first, net, 4)
    first.save(tmp_path / "run.state.safetensors", {"note": 1})
    second, net = start_tuning(device=device, half=half)
    assert second.resume(tmp_path / "run.state.safetensors")["note"] == 1 and second.step == 4
    advance(second, net, 5)
    a, b = whole.layers.state_dict(), second.layers.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_state_of_other_blocks_is_refused(tmp_path):
    tuning, net = start_tuning()
    advance(tuning, net, 1)
    tuning.save(tmp_path / "run.state.safetensors", {})
    other = Tuning(TunedLayers(TuneConfig((Block("a", 8, 2),))), 1e-3, 0)
    with pytest.raises(weights.WeightsError, match="do not fit"):
        other.resume(tmp_path / "run.state.safetensors")


def test_another_seed_gives_another_run_and_the_same_one_the_same():
    runs = []
    for seed in (3, 3, 4):
        tuning, net = start_tuning(seed)
        runs.append(advance(tuning, net, 3))
    assert runs[0] == runs[1] != runs[2]


def test_a_loss_that_is_no_number_says_what_to_do():
    tuning, net = start_tuning()
    loss = tuning.advance(lambda z, i: net(z) * math.nan, "v", CLIP, 0.1, LEVELS)
    with pytest.raises(FloatingPointError, match="loss is nan at step 1; please lower the learning rate"):
        read_loss(loss, tuning.step)


def test_a_step_asks_for_no_number():
    """Each would wait for a GPU. PyTorch's meta device has none to give; what is drawn lies in the computer's memory."""
    tuning, net = start_tuning(device="meta")
    losses, own, watched = ClipLosses(8, 0.5, 0.0, queue=4).to("meta"), torch.full((1,), 1, device="meta"), SimpleNamespace()
    draw = torch.Generator().manual_seed(0)

    def denoise(z, i):
        watched.features = z.mean((-2, -1))
        return net(z)

    for _ in range(2):
        loss = tuning.advance(denoise, "v", CLIP.to("meta"), 0.1, LEVELS, lambda: losses(watched, 4, draw, clips=own))
    assert tuning.step == 2 and loss.device.type == "meta"


def test_a_model_that_keeps_no_way_back_is_refused():
    tuning, net = start_tuning()
    with pytest.raises(ValueError, match="the loss has no gradient"):
        tuning.advance(torch.no_grad()(lambda z, i: net(z)), "v", CLIP, 0.1, LEVELS)


@pytest.mark.parametrize("device", DEVICES)
def test_float16_gradients_that_overflow_are_left_out_and_the_scale_falls(device):
    tuning, net = start_tuning(device=device, half=True)
    layers = tuning.layers
    before, scale = {k: v.clone() for k, v in layers.state_dict().items()}, tuning.scaler.get_scale()

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, g):
            return g * math.inf

    clip = CLIP.to(device)
    tuning.advance(lambda z, i: Overflow.apply(net(z)), "v", clip, 0.0, LEVELS)
    assert all(torch.equal(before[k], v) for k, v in layers.state_dict().items())
    assert tuning.scaler.get_scale() < scale
    tuning.advance(net, "v", clip, 0.0, LEVELS)
    assert not torch.equal(before["blocks.0.temporal.to_out.weight"], layers.state_dict()["blocks.0.temporal.to_out.weight"])


# --------------------------------------------------------------------------------------------------------------- edit


def test_an_edit_towards_the_same_text_gives_the_clip_back_and_another_mean_moves_it():
    """Gaussian data N(m, s^2): the ideal denoiser is linear, and editing from mean a to mean b moves the clip by b - a."""
    spread = 0.5

    def ideal(mean, levels):
        def denoise(z, i):
            alpha, sigma = levels[i]
            return mean + alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * (z - alpha * mean)

        return denoise

    angles = torch.linspace(math.pi / 2 - 1e-3, 1e-3, 400)
    levels = [Level(math.cos(a), math.sin(a)) for a in angles]
    clip = 1 + spread * torch.randn(3, 4, 5, 5, dtype=torch.float64)
    same = edit(ideal(1.0, levels), ideal(1.0, levels), clip, levels, iterations=4)
    torch.testing.assert_close(same, clip, rtol=0, atol=1e-6)
    moved = edit(ideal(1.0, levels), ideal(-2.0, levels), clip, levels, iterations=4)
    torch.testing.assert_close(moved, clip - 3, rtol=0, atol=0.02)


def test_sampling_from_other_noise_does_not_give_the_clip_back():
    levels = [Level(math.cos(a), math.sin(a)) for a in torch.linspace(1.5, 1e-3, 50)]
    clip = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    ideal = lambda z, i: levels[i].alpha * z  # noqa: E731  data N(0, 1)
    again = sample(ideal, torch.randn_like(clip), levels, ddim_step)
    assert (again - clip).abs().mean() > 0.3


# --------------------------------------------------------------------------------------------------------------- file


def saved(tmp_path, tensors=None, **info):
    layers = TunedLayers(TINY).init_weights(3)
    kept = {f"layers.{k}": v for k, v in layers.state_dict().items()} | {"base": torch.ones(4)}
    weights.save(tmp_path / "a.safetensors", tensors or kept, to_info(TINY, prompt="a cat") | info)
    return tmp_path / "a.safetensors", layers


def test_a_saved_clip_loads_to_the_same_bits(tmp_path):
    path, layers = saved(tmp_path)
    again, base, info = load_tuned(path)
    assert again.config == TINY and info["prompt"] == "a cat" and torch.equal(base, torch.ones(4))
    a, b = layers.state_dict(), again.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not any(p.requires_grad for p in again.parameters())


def test_the_order_of_frames_is_kept_and_files_from_before_it_have_none(tmp_path):
    with_order = load_tuned(saved(tmp_path, order=True)[0])[0]
    assert with_order.config.order and all(block.temporal.order for block in with_order.blocks)
    layers = TunedLayers(TINY)
    kept = {f"layers.{k}": v for k, v in layers.state_dict().items()} | {"base": torch.ones(4)}
    info = to_info(TINY)
    del info["order"]
    weights.save(tmp_path / "old.safetensors", kept, info)
    assert not load_tuned(tmp_path / "old.safetensors")[0].config.order


def test_files_that_are_no_tuned_clip_are_refused(tmp_path):
    for info, message in (
        ({"system": "vdm"}, "expected a tuned clip"),
        ({"blocks": [{"name": "a"}]}, "does not fit this version"),
        ({"norm": "video"}, "does not fit this version"),
    ):
        with pytest.raises(weights.WeightsError, match=message):
            load_tuned(saved(tmp_path, **info)[0])
    path, layers = saved(tmp_path, {f"layers.{k}": v for k, v in TunedLayers(TINY).state_dict().items()})
    with pytest.raises(weights.WeightsError, match="which image model"):
        load_tuned(path)
    with pytest.raises(weights.WeightsError, match="missing"):
        load_tuned(saved(tmp_path, {"base": torch.ones(4)})[0])
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(weights.WeightsError, match="not a vidcore model"):
        load_tuned(tmp_path / "b.safetensors")


def test_a_base_is_known_again_after_rounding_and_others_are_not():
    base = torch.randn(256)
    for kind in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        assert same_base(base, base.to(kind).float()), kind
    assert not same_base(base, torch.randn(256))
    assert not same_base(base, base + 0.1 * torch.randn(256))
    assert not same_base(base, base[:128])
