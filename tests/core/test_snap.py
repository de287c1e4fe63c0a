"""Snap Video's FIT and objective."""

from dataclasses import replace

import pytest
import torch

from vidcore.layers.attention import attention
from vidcore.layers.fit import CrossAttention, FITBlock
from vidcore.sample.heun import heun_sample
from vidcore.systems.snap import CONFIGS, FIT, SnapConfig, images_as_clips, snap_loss
from vidcore.systems.snap.net import number_features
from vidcore.systems.snap.sample import make_clips
from vidcore.systems.snap.stages import corrupt, enlarge, second_stage, shrink
from vidcore.systems.snap.start import turn, waves
from vidcore.weights import WeightsError

TINY = SnapConfig.tiny()


def make(seed=0, **changes):
    """A tiny network with every weight random."""
    torch.manual_seed(seed)
    net = FIT(replace(TINY, **changes)).init_weights()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def batch(count=2, seed=1, config=TINY):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 3, config.frames, config.height, config.width, generator=g)
    given = dict(interval=torch.full((count,), 0.125), size=torch.full((count,), 256.0))
    return z, torch.zeros(count), torch.randn(count, 5, 20, generator=g), given


@pytest.mark.parametrize("name, millions", [("500m", 500), ("3.9b", 3900), ("3.9b_upsampler", 3900)])
def test_paper_sizes(name, millions):
    """Parameters, patch tokens and groups. The table leaves widths inside cross-attention open: within 8 %."""
    config = CONFIGS[name]
    net = FIT(config, device="meta")
    count = sum(p.numel() for p in net.parameters()) / 1e6
    assert abs(count / millions - 1) < 0.08
    assert round(count) == {"500m": 501, "3.9b": 4050, "3.9b_upsampler": 4200}[name]
    tokens = config.frames * config.patches[0] * config.patches[1]
    assert tokens == (147_456 if config.low_resolution else 2_560)
    assert config.groups == ((4, 8) if config.low_resolution else (2, 4))
    assert (
        net.place.shape[:3].numel() == tokens
        and config.groups[0] * config.groups[1] * config.group[0] * config.group[1] * config.frames == tokens
    )
    assert config.sigma_in == (32.0 if config.low_resolution else 4.0)


@torch.no_grad()
def test_shapes_and_all_that_is_given_matters():
    net = make()
    z, c_noise, context, given = batch()
    out, latents = net(z, c_noise, context, **given)
    assert out.shape == z.shape and latents.shape == (2, 8, 24)
    others = [
        net(z, c_noise + 1, context, **given),
        net(z, c_noise, context.flip(0), **given),
        net(z, c_noise, None, **given),
        net(z, c_noise, context, **{**given, "interval": torch.zeros(2)}),
        net(z, c_noise, context, **{**given, "size": torch.full((2,), 64.0)}),
        net(z, c_noise, context, **given, previous=latents),
    ]
    assert all((other - out).abs().max() > 1e-4 for other, _ in others)
    assert torch.equal(net(z, c_noise, context, **given)[0], out)


@torch.no_grad()
def test_padding_is_rows_of_zeros_below_that_do_not_come_out():
    net, padded = make(), make(height=12, padding=4)
    padded.load_state_dict(net.state_dict())
    z, c_noise, context, given = batch()
    z[..., 12:, :] = 0
    out, latents = padded(z[..., :12, :], c_noise, context, **given)
    expected = net(z, c_noise, context, **given)
    assert torch.equal(out, expected[0][..., :12, :]) and torch.equal(latents, expected[1])
    with pytest.raises(ValueError, match="16x14 pixels in patches of 4"):
        replace(TINY, height=12, padding=2)


@torch.no_grad()
def test_every_group_reaches_every_other_and_clips_stay_apart():
    """A change in one corner of one frame is seen everywhere, through the latents; in another clip it is not."""
    net = make()
    z, c_noise, context, given = batch()
    out, _ = net(z, c_noise, context, **given)
    changed = z.clone()
    changed[0, :, 0, 0, 0] += 10
    difference = (net(changed, c_noise, context, **given)[0] - out).abs()
    assert (difference[0].amax(dim=0) > 0).all() and difference[1].max() == 0


@torch.no_grad()
def test_exchanging_groups_with_their_places_and_latents_exchanges_the_output():
    net = make()
    z, c_noise, context, given = batch()

    def exchange(x, rows, columns):
        """The left half of the picture for the right half: groups 0, 2 for 1, 3."""
        return x.roll(columns, dims=-1) if x.ndim == 5 else x.roll(columns, dims=2)

    out, _ = net(z, c_noise, context, **given)
    net.place.copy_(exchange(net.place, 4, 2))
    net.latents.copy_(net.latents.unflatten(0, (2, 2, 2)).flip(1).flatten(0, 2))
    moved, _ = net(exchange(z, 16, 8), c_noise, context, **given)
    torch.testing.assert_close(moved, exchange(out, 16, 8), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_one_group_reads_and_writes_by_plain_cross_attention():
    torch.manual_seed(0)
    block = FITBlock(16, 24, 12, 0, 8, 8)
    patches, latents, conditions = torch.randn(2, 1, 10, 16), torch.randn(2, 1, 3, 24), torch.randn(2, 4, 12)
    wrote, read = block(patches, latents, conditions)
    expected = block.read(block.read_conditions(latents[:, 0], conditions), patches[:, 0])
    torch.testing.assert_close(read[:, 0], expected)
    torch.testing.assert_close(wrote[:, 0], block.write(patches[:, 0], expected))


@torch.no_grad()
def test_a_read_by_hand():
    torch.manual_seed(0)
    layer = CrossAttention(16, 12, 8)
    x, other = torch.randn(2, 3, 16), torch.randn(2, 5, 12)
    q, (k, v) = layer.to_q(layer.norm(x)), layer.to_kv(layer.norm_other(other)).chunk(2, dim=-1)
    heads = [torch.softmax(q[..., h : h + 8] @ k[..., h : h + 8].mT / 8**0.5, dim=-1) @ v[..., h : h + 8] for h in (0, 8)]
    torch.testing.assert_close(attention(q, k, v, 2), torch.cat(heads, dim=-1))
    read = x + layer.out(torch.cat(heads, dim=-1))
    forward = layer.feed_forward
    expected = read + forward.back(torch.nn.functional.gelu(forward.into(forward.norm(read))))
    torch.testing.assert_close(layer(x, other), expected)


def test_places_tell_frames_apart_and_nothing_else_does():
    net = make()
    z, c_noise, context, given = batch()
    still = images_as_clips(z[:, :, 0], 4)
    assert still.shape == z.shape
    with torch.no_grad():
        apart = net(still, c_noise, context, **given)[0]
        net.place.copy_(net.place[:1].expand_as(net.place))
        alike = net(still, c_noise, context, **given)[0]
    assert (apart - apart[:, :, :1]).abs().max() > 1e-3 and (alike - alike[:, :, :1]).abs().max() < 1e-5


def test_self_conditioning_starts_as_nothing_and_carries_no_gradient():
    net = FIT(TINY).init_weights().train()
    with torch.no_grad():
        net.patch_out.weight.normal_()
    z, c_noise, context, given = batch()
    latents = torch.randn(2, 8, 24, requires_grad=True)
    net.eval()
    torch.testing.assert_close(net(z, c_noise, context, **given, previous=latents)[0], net(z, c_noise, context, **given)[0])
    net(z, c_noise, context, **given, previous=latents)[0].sum().backward()
    assert latents.grad is None and net.previous_norm.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_some_clips_are_given_the_latents_of_an_evaluation_before_theirs():
    net, calls = make(low_height=8), []
    net.register_forward_pre_hook(lambda _, args, named: calls.append((args, named)), with_kwargs=True)
    x, _, context, given = batch(16)
    snap_loss(net, x, torch.Generator().manual_seed(0), **given, context=context, low_resolution=x, self_conditioning=0.5)
    (some, _), (every, named) = calls
    chosen = named["previous"].flatten(1).any(dim=1)
    assert len(some[0]) == chosen.sum() and 2 < chosen.sum() < 14 and torch.equal(some[0], every[0][chosen])
    expected = net(*every, **{**named, "previous": None})[1]
    torch.testing.assert_close(named["previous"][chosen], expected[chosen])


def test_gradients_reach_every_parameter_and_the_loss_repeats():
    net = make(low_height=8).train()
    z, _, context, given = batch()
    losses = []
    for _ in range(2):
        torch.manual_seed(0)  # of dropout
        generator = torch.Generator().manual_seed(3)
        losses.append(snap_loss(net, z, generator, **given, context=context, low_resolution=z * 0.5))
    losses[0].backward()
    assert torch.equal(*losses)
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


@pytest.mark.parametrize("k", [1.0, 4.0])
def test_the_loss_of_a_network_that_says_nothing(k):
    """With F = 0 the loss is the mean of the weight, since the target's variance is 1."""

    class Silent(torch.nn.Module):
        config = replace(TINY, sigma_in=k)

        def forward(self, z, c_noise, context=None, **given):
            return torch.zeros_like(z), torch.zeros(len(z), 8, 24)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 3, 4, 16, 16, generator=generator)
    given = dict(interval=torch.zeros(512), size=torch.ones(512))
    found = snap_loss(Silent(), x, generator, **given)
    edm = Silent.config.edm
    levels = edm.training_sigma(512, torch.Generator().manual_seed(0))  # other draws of the same distribution
    spread = edm.network_weight(levels).std() / 512**0.5
    assert abs(float(found - edm.network_weight(levels).mean())) < 5 * float(spread) + 0.02


@torch.no_grad()
def test_shapes_that_do_not_fit_are_refused():
    net = make()
    z, c_noise, context, given = batch()
    with pytest.raises(ValueError, match="makes 4 frames of 16x16 in 3 channels"):
        net(z[..., :8], c_noise, context, **given)
    with pytest.raises(ValueError, match="takes no clip to enlarge"):
        net(z, c_noise, context, **given, low_resolution=z)
    with pytest.raises(ValueError, match="needs the clip of the first stage"):
        make(low_height=8)(z, c_noise, context, **given)
    with pytest.raises(ValueError, match="must divide into groups"):
        replace(TINY, height=20)


def test_waves_of_a_place_turn_into_those_of_another():
    for count, pairs in ((8, 5), (4, 1), (3, 3)):
        all_waves = waves(count, pairs).double()
        for step in range(1 - count, count):
            moved = all_waves @ turn(count, pairs, step).T.double()
            kept = slice(max(0, -step), count - max(0, step))
            expected = all_waves[max(0, step) : count - max(0, -step)]
            torch.testing.assert_close(moved[kept], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_fresh_latents_read_patches_around_their_own_places():
    """Of one group of all patches: what a latent reads most is near it, where any two are 3.6 patches apart."""
    heads = dict(head_width=32, latent_head_width=32)
    config = replace(TINY, frames=8, group=(4, 4), latents=64, token=64, latent_width=96, **heads)
    torch.manual_seed(0)
    net = FIT(config).init_weights()
    layer, seen = net.blocks[0].read, net.place.flatten(0, 2)
    queries = layer.to_q(layer.norm(net.latents)).chunk(layer.heads, dim=-1)
    keys = layer.to_kv(layer.norm_other(seen)).chunk(2, dim=-1)[0].chunk(layer.heads, dim=-1)
    where = torch.cartesian_prod(torch.arange(8.0), torch.arange(4.0), torch.arange(4.0))
    apart = torch.cdist(where[1::2], where)
    most = torch.cat([apart.gather(1, (query @ key.T).argmax(-1, keepdim=True)) for query, key in zip(queries, keys)])
    assert most.mean() < 2.2 < 3.5 < apart.mean()


def test_features_tell_no_interval_from_small_ones():
    features = number_features(torch.tensor([0.0, 1 / 60, 1 / 24, 1 / 8, 1.0]))
    assert torch.cdist(features, features).add(100 * torch.eye(5)).min() > 0.5


# ------------------------------------------------------------------------------------------------------ the second stage

SECOND = replace(TINY, height=32, width=32, group=(4, 4), low_height=16, sigma_in=4.0)


def test_the_papers_second_stage_enlarges_what_its_first_makes():
    first, second = CONFIGS["3.9b"], CONFIGS["3.9b_upsampler"]
    assert second.low_size == (36, 64) == (first.height, first.width) and first.padding == 4 and not second.padding
    with pytest.raises(ValueError, match="a whole number of times the first stage's clip of 12 rows"):
        replace(TINY, low_height=12)


def test_enlarging_what_was_shrunk_keeps_what_is_smooth():
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 4, 32, 32)
    low = shrink(ramp, SECOND)
    assert low.shape == (1, 3, 4, 16, 16)
    torch.testing.assert_close(enlarge(low, (32, 32))[..., 1:-1], ramp[..., 1:-1])


def test_corruption_has_the_deviation_that_its_level_says():
    noise = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    found = corrupt(torch.zeros(2, 3, 4, 64, 64), torch.tensor([-2.0, 0.5]), noise).flatten(1).std(dim=1)
    torch.testing.assert_close(found, torch.tensor([-2.0, 0.5]).exp(), rtol=0.01, atol=0)


@torch.no_grad()
def test_a_second_stage_begins_from_the_first_and_does_not_see_the_clip_yet():
    first = make()
    net = second_stage(first, SECOND).eval()
    z, c_noise, context, given = batch(config=SECOND)
    levels = torch.zeros(2)
    one, other = (net(z, c_noise, context, **given, low_resolution=low, corruption=levels)[0] for low in (z, -z))
    assert torch.equal(one, other) and one.abs().max() > 0.01
    # Nothing else was touched, and at the first stage's own size every place is the first stage's.
    same = second_stage(first, replace(TINY, low_height=8)).state_dict()
    for name, value in first.state_dict().items():
        torch.testing.assert_close(same[name][:, : value.shape[1]] if name == "patch_in.weight" else same[name], value)
    with pytest.raises(WeightsError, match="of the same frames, widths, latents and blocks"):
        second_stage(first, replace(SECOND, token=24))
    with pytest.raises(WeightsError, match="begins from a first one"):
        second_stage(net, SECOND)


# -------------------------------------------------------------------------------------------------------------- sampling


def by_hand(net, contexts, steps, seed, weights, **known):
    """Guided clips with one evaluation for each of ``contexts``, each of which sees its own latents of the last."""
    config, previous = net.config, [None] * len(contexts)
    given = dict(interval=torch.full((2,), config.interval), size=torch.full((2,), float(config.height)), **known)

    def denoise(y, s):
        edm, found = config.edm, 0
        for i, (context, weight) in enumerate(zip(contexts, weights)):

            def output(scaled, c_noise, i=i, context=context):
                made, previous[i] = net(scaled, c_noise, context, **given, previous=previous[i])
                return made

            found = found + weight * edm.denoise(output, y / edm.sigma_in, torch.full((2,), s / edm.sigma_in))
        return found

    shape = (2, 3, config.frames, config.height, config.width)
    sigmas = config.edm.sigma_in * config.edm.sigmas(steps)
    return heun_sample(denoise, float(sigmas[0]) * torch.randn(shape, generator=seeded(seed)), sigmas)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_guided_clips_remember_the_latents_of_each_text():
    net, context = make(), batch()[2]
    made = make_clips(net, context, 3, 5, guidance_scale=2.5)
    expected = by_hand(net, (context, torch.zeros_like(context)), 3, 5, (2.5, -1.5))
    torch.testing.assert_close(made, expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(made, make_clips(net, context, 3, 5, guidance_scale=2.5))
    slower = make_clips(net, context, 3, 5, guidance_scale=2.5, interval=TINY.interval * 3)
    assert (slower - made).abs().max() > 1e-3


@torch.no_grad()
def test_a_second_stage_sees_the_enlarged_clip_with_noise_of_its_own():
    net, context = (
        make(**{k: getattr(SECOND, k) for k in ("height", "width", "group", "low_height", "sigma_in")}),
        batch()[2],
    )
    low = torch.randn(2, 3, 4, 16, 16, generator=seeded(1))
    level = torch.full((2,), 0.3).log()
    _, noise = torch.randn(2, 2, 3, 4, 32, 32, generator=seeded(6))
    known = dict(low_resolution=corrupt(enlarge(low, (32, 32)), level, noise), corruption=level)
    made = make_clips(net, context, 2, 6, low=low, corruption=0.3)
    torch.testing.assert_close(made, by_hand(net, (context,), 2, 6, (1.0,), **known), atol=1e-4, rtol=1e-4)
    larger = low.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)  # is shrunk first
    torch.testing.assert_close(make_clips(net, context, 2, 6, low=larger, corruption=0.3), made)
    with pytest.raises(ValueError, match="needs the clip of the first stage"):
        make_clips(net, context, 2, 6)
    with pytest.raises(ValueError, match="takes no clip to enlarge"):
        make_clips(make(), context, 2, 6, low=low)
