import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange

from vidcore.codec.content_motion import (
    CONFIGS,
    ContentMotionCodec,
    ContentMotionConfig,
    load_codec,
    reconstruction_loss,
)
from vidcore.data.shapes import random_scene, render
from vidcore.layers.embed import grid_positions
from vidcore.layers.timesformer import TimeSformerBlock


def make(seed=0, **changes):
    """A tiny codec with every weight random."""
    torch.manual_seed(seed)
    codec = ContentMotionCodec(replace(ContentMotionConfig.tiny(), **changes))
    with torch.no_grad():
        for parameter in codec.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 2 / math.sqrt(parameter[0].numel()))
    return codec.eval()


def clip(frames=4, height=8, width=12, seed=1):
    return torch.randn(2, 3, frames, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize(
    "frames, height, width, windows", [(4, 8, 12, 1), (4, 12, 8, 1), (3, 8, 8, 1), (9, 8, 12, 3), (1, 2, 2, 1)]
)
def test_shapes(frames, height, width, windows):
    codec, x = make(), clip(frames, height, width)
    encoded = codec.encode(x)
    assert encoded.content.shape == (2, windows, 3, height, width)
    assert encoded.motion.shape == (2, 3, frames, height // 2 + width // 2)
    assert encoded.importance.shape == x.shape
    assert codec.decode(encoded.content, encoded.motion).shape == x.shape


@torch.no_grad()
def test_a_clip_that_stands_still_is_its_content_frame():
    still = clip(1).expand(-1, -1, 4, -1, -1)
    encoded = make().encode(still)
    torch.testing.assert_close(encoded.content[:, 0], still[:, :, 0])


@torch.no_grad()
def test_the_content_frame_is_a_mean_with_weights_of_each_pixel_and_channel():
    codec, x = make(), clip()
    encoded = codec.encode(x)
    torch.testing.assert_close(encoded.importance.sum(dim=2), torch.ones(2, 3, 8, 12))
    torch.testing.assert_close((encoded.importance * x).sum(dim=2), encoded.content[:, 0])
    assert (encoded.content[:, 0] <= x.amax(dim=2)).all() and (encoded.content[:, 0] >= x.amin(dim=2)).all()
    assert encoded.importance.std(dim=1).min() > 0  # channels differ
    torch.testing.assert_close(codec.init_weights().encode(x).content[:, 0], x.mean(dim=2))


@torch.no_grad()
def test_the_motion_latent_is_bounded_where_the_config_says_so():
    x = 20 * clip()
    bounded, free = make().encode(x).motion, make(bounded=False).encode(x).motion
    assert bounded.abs().max() <= 1
    torch.testing.assert_close(free.tanh(), bounded)


@torch.no_grad()
def test_motion_is_pooled_over_columns_and_then_over_rows():
    """Turning the clip's picture about its diagonal swaps the two parts, if the net treats both axes alike."""
    codec, x = make(size=(8, 8)), clip(height=8, width=8)
    seen = []
    codec.encoder.register_forward_hook(lambda _, inputs, tokens: seen.append(tokens))
    motion = rearrange(codec.encode(x).motion, "b d t s -> b t s d")
    torch.testing.assert_close(motion[:, :, :4], codec.motion_x(seen[0].mean(dim=3)).tanh())
    torch.testing.assert_close(motion[:, :, 4:], codec.motion_y(seen[0].mean(dim=2)).tanh())


@torch.no_grad()
def test_the_decoder_adds_the_three_embeddings():
    codec, x = make(), clip()
    encoded, seen = codec.encode(x), []
    codec.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    codec.decode(encoded.content, encoded.motion)
    still = codec.content_in(rearrange(encoded.content[:, 0], "b c (h p) (w q) -> b h w (c p q)", p=2, q=2))
    rows, columns = encoded.motion[..., :4], encoded.motion[..., 4:]
    for t, h, w in ((0, 0, 0), (3, 1, 5), (2, 3, 0)):
        one = still[:, h, w] + codec.from_x(rows[:, :, t, h]) + codec.from_y(columns[:, :, t, w])
        torch.testing.assert_close(seen[0][:, t, h, w], one)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(chunk):
    codec, x = make().double(), clip(6).double()
    whole, parts = codec.encode(x), codec.encode(x, chunk)
    torch.testing.assert_close(whole.content, parts.content)
    torch.testing.assert_close(whole.motion, parts.motion)
    torch.testing.assert_close(codec.decode(whole.content, whole.motion), codec.decode(whole.content, whole.motion, chunk))


@torch.no_grad()
def test_windows_are_clips_of_their_own():
    codec, x = make(), clip(10)
    whole = codec.encode(x)
    for i, part in enumerate(x.split(4, dim=2)):
        alone = codec.encode(part)
        torch.testing.assert_close(whole.content[:, i], alone.content[:, 0])
        torch.testing.assert_close(whole.motion[:, :, 4 * i : 4 * i + part.shape[2]], alone.motion)


@torch.no_grad()
def test_frames_in_another_order_are_another_motion():
    """Without positions, reversing a clip would leave its content frame as it is and reverse the latent."""
    codec, x = make(), clip()
    there, back = codec.encode(x), codec.encode(x.flip(2))
    assert (there.content - back.content).abs().max() > 1e-2
    assert (there.motion - back.motion.flip(2)).abs().max() > 1e-2


def test_gradients_reach_every_parameter():
    codec = make()
    reconstruction_loss(codec, clip()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in codec.parameters())


@torch.no_grad()
def test_half_precision_stays_near_float32():
    codec, x = make(), clip()
    exact = codec.encode(x)
    half = make().to(torch.bfloat16).encode(x.bfloat16())
    assert (half.content - exact.content).abs().mean() < 0.05 * exact.content.abs().mean()
    assert (half.motion - exact.motion).abs().mean() < 0.1 * exact.motion.abs().mean()


def test_paper_sizes():
    """Table 5: the shapes of the latents, and the compression at 512x1024 that the paper's numbers give."""
    for name, entries in (("ucf101", 64), ("webvid_sd15", 64), ("webvid_sd21", 96)):
        config = CONFIGS[name]
        with torch.device("meta"):
            encoded = ContentMotionCodec(config).encode(torch.empty(1, config.channels, 16, *config.size))
        assert encoded.motion.shape == (1, 8, 16, entries)
    assert encoded.content.numel() + encoded.motion.numel() == 32_768 + 12_288


def test_shapes_that_do_not_fit_are_refused():
    codec = make()
    for wrong in (clip(height=7), clip()[:, :2], clip()[:, :, 0], clip(0)):
        with pytest.raises(ValueError, match="this model takes a clip of 3 channels"):
            codec.encode(wrong)
    encoded = codec.encode(clip(6))
    with pytest.raises(ValueError, match="needs 2 content frames, one for each 4 frames; got 1"):
        codec.decode(encoded.content[:, :1], encoded.motion)
    with pytest.raises(ValueError, match=r"needs a motion latent of 3 channels and 4 \+ 4 entries"):
        codec.decode(encoded.content[..., :8], encoded.motion)


# ---------------------------------------------------------------------------------------------------------- its blocks


def test_positions_tell_every_place_of_a_grid_apart():
    t, y, x = grid_positions((5, 6, 7), 24)
    tokens = (t[:, None, None] + y[:, None] + x).flatten(0, 2)
    apart = torch.cdist(tokens, tokens) + 10 * torch.eye(len(tokens))
    assert apart.min() > 0.1


@torch.no_grad()
def test_attention_is_over_time_at_each_place_and_then_within_each_frame():
    torch.manual_seed(0)
    block = TimeSformerBlock(12, 2, 6)
    x = torch.randn(1, 3, 2, 2, 12)
    moved = x.clone()
    moved[0, 1, 0, 1] += 1

    def reached(layer, pattern):
        rows = lambda v: rearrange(v, pattern)  # noqa: E731
        return (layer(rows(moved)) - layer(rows(x))).abs().amax(dim=(1, 2)) > 1e-6

    assert reached(block.time, "b t h w c -> (b h w) t c").tolist() == [False, True, False, False]
    assert reached(block.space, "b t h w c -> (b t) (h w) c").tolist() == [False, True, False]


def test_recolouring_asks_the_decoder_for_the_clip_in_the_content_frames_colours():
    """A decoder that copies the content frame makes no error on a still clip, in any colours."""
    codec = make()

    class Copy(torch.nn.Module):
        encode = codec.encode

        def decode(self, content, motion):
            self.content = content
            return content[:, 0, :, None].expand(-1, -1, 4, -1, -1)

    still = clip(1).clamp(-1, 1).expand(-1, -1, 4, -1, -1)
    copy, generator = Copy(), torch.Generator().manual_seed(0)
    for _ in range(5):
        assert reconstruction_loss(copy, still, generator, recolour=1.0) < 1e-12
        assert (copy.content[:, 0] - still[:, :, 0]).abs().mean() > 0.05 and copy.content.abs().max() <= 1 + 1e-6
    reconstruction_loss(copy, still, generator, recolour=0.0)
    torch.testing.assert_close(copy.content[:, 0], still[:, :, 0])
    changed = [(reconstruction_loss(copy, still, generator, 0.5), copy.content)[1] for _ in range(40)]
    kept = torch.stack([(content[:, 0] - still[:, :, 0]).abs().amax(dim=(1, 2, 3)) < 1e-6 for content in changed])
    assert 20 <= kept.sum() <= 60


@torch.no_grad()
def test_the_shipped_autoencoder_makes_clips_again_that_it_was_not_trained_on():
    """Its card has the figure over 100 clips, 30 dB at least; here are others."""
    codec = load_codec(Path(__file__).resolve().parents[2] / "models" / "shapes-cmd.safetensors")
    rng = np.random.default_rng(2)
    clips = np.stack([render(random_scene(rng, held_out=True), 8, 32) for _ in range(24)])
    x = rearrange(torch.from_numpy(clips), "n t h w c -> n c t h w").float() * 2 - 1
    encoded = codec.encode(x)
    errors = (codec.decode(encoded.content, encoded.motion).clamp(-1, 1) - x).square().mean(dim=(1, 2, 3, 4)) / 4
    assert (-10 * errors.log10()).mean() > 30
