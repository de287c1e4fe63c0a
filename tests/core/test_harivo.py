"""HARIVO's losses against their formulas on hand-made inputs, its queue, and its motion module at the start."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from vidcore import weights
from vidcore.systems.harivo import (
    ClipLosses,
    FeatureQueue,
    HarivoConfig,
    MotionModule,
    ProjectionHead,
    attention_map,
    decoupled_contrastive,
    temporal_regularised,
)
from vidcore.systems.harivo.net import Convolution, places
from vidcore.systems.harivo.wire import Watched
from vidcore.systems.tune_a_video import Block


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------------------------------ contrastive loss


def test_contrast_by_hand():
    """Unit vectors in the plane at known angles, lengths that must not matter, tau 0.5."""
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[3 * math.cos(0.3), 3 * math.sin(0.3)]])
    others = torch.tensor([[0.0, 5.0], [-1.0, 0.0]])
    expected = -math.cos(0.3) / 0.5 + math.log(math.exp(0.0) + math.exp(-1 / 0.5))
    assert float(decoupled_contrastive(first, second, others, 0.5)) == pytest.approx(expected, rel=1e-6)


def test_softplus_of_it_is_info_nce():
    first, second, others = draw(1, 8), draw(1, 8, seed=1), draw(20, 8, seed=2)
    unit = [F.normalize(z, dim=-1) for z in (first, second, others)]
    logits = torch.cat([unit[0] @ unit[1].T, unit[0] @ unit[2].T], dim=1) / 0.1
    info_nce = F.cross_entropy(logits, torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(F.softplus(decoupled_contrastive(first, second, others)), info_nce)


def test_a_negative_like_the_positive_gives_zero_and_the_range_is_the_papers():
    z = draw(1, 4)
    assert float(decoupled_contrastive(z, z, z)) == pytest.approx(0, abs=1e-6)
    for sign, bound in ((1, -20), (-1, 20)):  # all as good, and all as bad, as can be
        found = decoupled_contrastive(z, sign * z, -sign * z.expand(5, -1))
        assert float(found) == pytest.approx(bound + math.log(5), rel=1e-5)


def test_the_pull_on_the_positive_pair_does_not_depend_on_the_negatives():
    """d L / d <z1, z2> = -1 / tau: for unit z1, the gradient on a second feature moved along z1."""
    first = torch.tensor([[1.0, 0.0, 0.0]])
    for seed in range(3):
        second = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
        decoupled_contrastive(first, second, draw(7, 3, seed=seed)).backward()
        torch.testing.assert_close(second.grad, torch.tensor([[-10.0, 0.0, 0.0]]))


def test_without_negatives_there_is_nothing_to_learn():
    z = draw(2, 4).requires_grad_(True)
    empty = FeatureQueue(3, 4).negatives(torch.tensor([0, 1]))
    for none in (empty, torch.zeros(0, 4)):
        loss = decoupled_contrastive(z, draw(2, 4, seed=1), none)
        loss.backward()
        assert float(loss.detach()) == 0 and not z.grad.any()
    # A clip that has none takes no part: the mean is over the other one.
    some = torch.stack([torch.zeros(3, 4), draw(3, 4, seed=2)])
    alone = decoupled_contrastive(z[1:], draw(2, 4, seed=1)[1:], some[1:])
    torch.testing.assert_close(decoupled_contrastive(z, draw(2, 4, seed=1), some), alone)


def test_contrast_s_gradients_are_those_of_its_values():
    """Central differences; the loss computes in float32."""
    given = [draw(2, 5, seed=i).requires_grad_(True) for i in range(2)] + [draw(6, 5, seed=3).requires_grad_(True)]
    decoupled_contrastive(*given, 0.5).backward()
    for z in given:
        direction = draw(*z.shape, seed=9)
        ends = []
        for step in (1e-2, -1e-2):
            moved = [(x + step * direction).detach() if x is z else x.detach() for x in given]
            ends.append(float(decoupled_contrastive(*moved, 0.5)))
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float((z.grad * direction).sum()), rel=2e-3, abs=2e-4)


# ------------------------------------------------------------------------------------------------------------------ queue


def test_the_queue_is_first_in_first_out_and_hides_a_clip_from_itself():
    queue = FeatureQueue(3, 2)
    for i in range(4):  # clip 0 goes in first, and out again when the fourth comes
        queue.push(torch.full((1, 2), float(i + 1)), torch.tensor([i]))
    seen = queue.negatives(torch.tensor([9, 2]))
    assert sorted(seen[0, :, 0].tolist()) == [2, 3, 4]
    assert sorted(seen[1, :, 0].tolist()) == [0, 2, 4]  # the third is its own
    queue.push(draw(5, 2), torch.arange(5))  # more than it holds: the latest remain
    assert sorted(queue.clips.tolist()) == [2, 3, 4]
    given = draw(1, 2).requires_grad_(True)
    queue.push(given, torch.tensor([7]))
    assert not queue.features.requires_grad
    with pytest.raises(ValueError, match="at least one feature"):
        FeatureQueue(0, 2)


def test_the_queue_survives_a_file(tmp_path):
    queue, other = FeatureQueue(5, 3), FeatureQueue(5, 3)
    queue.push(draw(7, 3), torch.arange(7))
    weights.save(tmp_path / "q.safetensors", queue.state_dict(), {"system": "test"})
    other.load_state_dict(weights.load(tmp_path / "q.safetensors")[0])
    for each in (queue, other):
        each.push(draw(1, 3, seed=4), torch.tensor([8]))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in queue.state_dict().items())


def _rank(rank, file, kept):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    queue = FeatureQueue(5, 2)
    for step in range(2):
        queue.push(torch.full((2, 2), 10.0 * step + rank), torch.tensor([4 * step + rank, 4 * step + rank + 2]))
    save_file(queue.state_dict(), f"{kept}/{rank}.safetensors")
    dist.destroy_process_group()


def test_all_processes_keep_the_same_queue(tmp_path):
    mp.spawn(_rank, (tmp_path / "meet", str(tmp_path)), nprocs=2)
    one, two = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    alone = FeatureQueue(5, 2)  # what one process would hold that had both ranks' clips
    for step in range(2):
        features = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(-1, 2) + 10 * step
        alone.push(features, 4 * step + torch.tensor([0, 2, 1, 3]))
    assert all(torch.equal(value, one[key]) for key, value in alone.state_dict().items())


def test_an_empty_place_stays_empty_when_projected():
    head = ProjectionHead(4, 3)
    made = head(torch.cat([torch.zeros(1, 4), draw(2, 4)]))
    assert not made[0].any() and made[1:].ne(0).all()


# ------------------------------------------------------------------------------------------------------ attention maps


def test_regularised_attention_by_hand():
    """Two frames, one head, two queries: the second frame's first query moves all its weight to the other key."""
    maps = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]], [[[0.0, 1.0], [0.5, 0.5]]]])
    assert float(temporal_regularised(maps, 2)) == pytest.approx(2 / 2)
    three = torch.cat([maps, maps[1:]])  # a third frame like the second halves the mean
    assert float(temporal_regularised(three, 3)) == pytest.approx(1 / 2)
    clips = torch.cat([three, three[:1].expand(3, -1, -1, -1)])  # and a clip that stands still once more
    assert float(temporal_regularised(clips, 3)) == pytest.approx(1 / 4)
    for frames in (1, 4):
        with pytest.raises(ValueError, match="2 frames or more"):
            temporal_regularised(maps, frames)


def test_maps_are_those_of_the_attention_they_stand_for():
    q, k, v = (draw(4, 6, 8, seed=i) for i in range(3))
    from vidcore.layers.attention import attention

    maps = attention_map(q, k, 2)
    mixed = (maps @ v.unflatten(-1, (2, 4)).transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, attention(q, k, v, 2))


def test_regularised_attention_s_gradient_is_that_of_its_values():
    q, k = (draw(4, 3, 4, seed=i, dtype=torch.float64) for i in range(2))

    def loss(q):
        maps = (q @ k.transpose(-1, -2)).softmax(-1)[:, None]
        return temporal_regularised(maps, 2)

    assert torch.autograd.gradcheck(loss, q.requires_grad_(True))


class _Layers(torch.nn.Module):
    """A bottleneck, and self-attention by one projection for all of queries, keys and values."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.middle = torch.nn.Linear(8, 24), torch.nn.Conv2d(8, 6, 1)

    def forward(self, x):
        self.qkv(x.flatten(2).mT)
        return self.middle(x)


@pytest.mark.parametrize("images", [0, 2])
def test_what_is_watched_is_what_the_layers_make_and_pictures_take_no_part(images):
    net, frames, x = _Layers(), 3, draw(2 * (3 + images), 8, 2, 2)
    with Watched(net.middle, [(net.qkv, None, 2)]) as watched:
        made = net(x)
    clips = x.unflatten(0, (2, -1))[:, :frames].flatten(0, 1)
    q, k, _ = net.qkv(clips.flatten(2).mT).chunk(3, -1)
    expected = temporal_regularised(attention_map(q, k, 2), frames)
    torch.testing.assert_close(watched.regularised(frames, images), expected)
    torch.testing.assert_close(watched.features, made.mean(dim=(2, 3)))
    net(x * 0)  # nobody watches any more
    torch.testing.assert_close(watched.regularised(frames, images), expected)

    losses = ClipLosses(6, 0.5, 2.0, queue=4)
    first = losses(watched, frames, torch.Generator().manual_seed(0), images)
    torch.testing.assert_close(first, 2.0 * expected)  # the queue was empty
    second = losses(watched, frames, torch.Generator().manual_seed(0), images)
    assert (second - first).abs() > 1e-3
    others = losses.queue.features[:2].clone()
    assert all((watched.features == row).all(dim=1).any() for row in others)
    with Watched(net.middle, [(net.qkv, None, 2)]) as watched:
        net(draw(2, 8, 33, 32))
    with pytest.raises(ValueError, match="no self-attention layer has 1024 tokens or fewer"):
        watched.regularised(2)


# ---------------------------------------------------------------------------------------------------------- the module

CONFIG = HarivoConfig((Block("a", 16, 2), Block("b", 24, 3)), channels=4, context=12, frame_tokens=2, mapping=8, frames=4)
WITH_CONVOLUTION = replace(CONFIG, convolution=True)


@pytest.mark.parametrize("config", [CONFIG, WITH_CONVOLUTION])
def test_the_module_starts_from_the_image_model(config):
    module = MotionModule(config).init_weights(3)
    x, z, told = draw(8, 6, 16), draw(2, 4, 4, 6, 6), draw(8, 2, 12)
    assert torch.equal(module.temporal[0](x, 4, (2, 3), told), x)
    assert torch.equal(module.mapping(z, torch.tensor([0.1, 0.9])), z)
    again = MotionModule(config).init_weights(3).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in module.state_dict().items())
    assert MotionModule(HarivoConfig(CONFIG.blocks, 4, 12, 0, 0)).mapping is None


@pytest.mark.parametrize("config", [CONFIG, WITH_CONVOLUTION])
def test_every_part_of_the_module_counts_and_learns(config):
    module = MotionModule(config).init_weights(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))))
    x, z, text = draw(8, 6, 16), draw(2, 4, 4, 6, 6), draw(2, 7, 12)
    tokens = module.frame_tokens(text, 4)
    assert tokens.shape == (8, 2, 12) and (tokens[0] - tokens[1]).abs().max() > 1e-3
    assert (module.frame_tokens(text.flip(0), 4)[:4] - tokens[4:]).abs().max() < 1e-6  # each clip's text counts
    layer = module.temporal[0]
    made = layer(x, 4, (2, 3), tokens)
    alike = layer(x, 4, (2, 3), tokens[:1].expand(8, -1, -1))
    swapped = x.unflatten(0, (2, 4)).flip(1).flatten(0, 1)
    apart = layer(swapped, 4, (2, 3), tokens[:1].expand(8, -1, -1)).unflatten(0, (2, 4)).flip(1).flatten(0, 1) - alike
    assert apart.abs().max() > 1e-2  # frames know their number
    assert (made - alike).abs().max() > 1e-2  # and their tokens
    moved = layer(x.flip(1), 4, (2, 3), tokens).flip(1)
    assert (moved - made).abs().max() > 1e-2  # and pixels where they are
    assert torch.equal(layer(x, 4, (2, 3), tokens, 0.0), x)
    low, high = (module.mapping(z, torch.full((2,), level)) for level in (0.1, 0.9))
    assert (low - high).abs().max() > 1e-3  # the level counts
    made = [made, module.temporal[1](draw(8, 6, 24), 4, (2, 3), tokens), low, tokens]
    sum(part.square().sum() for part in made).backward()
    assert all(p.grad is not None and p.grad.ne(0).any() for p in module.parameters())


def test_a_module_without_frame_tokens_has_layers_that_are_told_nothing():
    module = MotionModule(HarivoConfig(CONFIG.blocks, 4, 12, 0, 0)).init_weights(3)
    layer, x = module.temporal[0], draw(8, 6, 16)
    assert module.frame_tokens is None and layer.told is None and torch.equal(layer(x, 4, (2, 3)), x)


def test_the_convolution_can_follow_a_thing_from_frame_to_frame():
    layer = Convolution(4)
    with torch.no_grad():  # what was one pixel to the right in the frame before
        for parameter in layer.parameters():
            parameter.zero_()
        layer.pixels.weight[0, 0, 1, 2] = 1
        layer.frames.weight[0, 0] = 1
    x = draw(2 * 3, 4 * 5, 4)
    clip = x.reshape(2, 3, 4, 5, 4)[..., 0]
    made = layer(x, 3, (4, 5)).reshape(2, 3, 4, 5, 4)
    torch.testing.assert_close(made[:, 1:, :, :-1, 0], F.silu(clip[:, :-1, :, 1:]))
    assert not made[:, 0].any() and not made[..., 1:].any() and not made[:, :, :, -1].any()


def test_places_are_alike_at_all_sizes():
    small, large = places((2, 3)), places((6, 9))
    # The middle of a pixel of the small picture is that of the middle one of nine in the large one.
    torch.testing.assert_close(large.unflatten(0, (6, 9))[1::3, 1::3].flatten(0, 1), small)
    assert len({tuple(row.tolist()) for row in large}) == 54


@pytest.mark.parametrize("wrong", [dict(blocks=()), dict(channels=0), dict(frame_tokens=-1), dict(frames=1)])
def test_a_wrong_config_is_refused(wrong):
    with pytest.raises(ValueError):
        HarivoConfig(**{"blocks": CONFIG.blocks, "channels": 4, "context": 12, **wrong})
