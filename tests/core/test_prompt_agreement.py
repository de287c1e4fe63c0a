"""The score is right on clips that are right or wrong by construction, and repeats."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vidcore import weights
from vidcore.codec.content_motion import ContentMotionCodec, ContentMotionConfig
from vidcore.data.shapes import VOCABULARY, is_held_out, render
from vidcore.metrics.make import load
from vidcore.metrics.prompt_agreement import Protocol, clips, scenes, score
from vidcore.systems import image
from vidcore.systems.cmd import MotionConfig, MotionDiT
from vidcore.systems.cmd import checkpoint as cmd
from vidcore.systems.image import ImageConfig, PixelUNet
from vidcore.systems.snap import FIT, SnapConfig
from vidcore.systems.vdm import UNet3D, VDMConfig
from vidcore.text import TextConfig, TextEncoder


def test_perfect_clips_score_one_and_shuffled_ones_do_not():
    asked = scenes(Protocol(prompts=40))
    made = np.stack([render(scene, 8, 32) for scene in asked])
    perfect = score(made, asked)
    assert perfect.pop("by_shape") == dict.fromkeys({s.things[0].shape for s in asked}, 1.0)
    assert perfect == dict.fromkeys(("background", "count", "shape", "colour", "motion", "all"), 1.0)
    shuffled = score(np.roll(made, 1, 0), asked)
    shares = [shuffled["by_shape"][scene.things[0].shape] for scene in asked]
    assert np.isclose(np.mean(shares), shuffled["shape"]) and len({*shares}) > 1
    assert shuffled["count"] == 1.0 and shuffled["all"] < 0.1 and shuffled["shape"] < 0.5


def test_prompts_are_held_out_and_follow_from_the_seed():
    asked = scenes(Protocol(prompts=50))
    assert asked == scenes(Protocol(prompts=50)) != scenes(Protocol(prompts=50, prompt_seed=1))
    assert all(is_held_out(t.shape, t.colour, t.motion, s.background) for s in asked for t in s.things)
    assert {s.things[0].size for s in scenes(Protocol(prompts=30, sizes="large"))} == {"large"}
    assert {s.background for s in scenes(Protocol(prompts=30, backgrounds="black,dark blue"))} == {"black", "dark blue"}


def test_sampled_clips_repeat_and_have_the_protocol_s_shape():
    torch.manual_seed(0)
    protocol = Protocol(prompts=3, frames=4, size=16, steps=2, batch=2)
    net, text = UNet3D(VDMConfig.tiny()).eval(), TextEncoder(TextConfig(VOCABULARY, 24, 16, 1, 2)).eval()
    one, two = (clips(net, text, scenes(protocol), protocol) for _ in range(2))
    assert one.shape == (3, 4, 16, 16, 3) and np.array_equal(one, two) and one.min() >= 0 and one.max() <= 1


def test_a_cascade_s_clips_have_the_second_stage_s_size():
    torch.manual_seed(0)
    protocol = Protocol(prompts=3, steps=2, batch=2, second_steps=2, guidance_scale=2.0)
    config = replace(SnapConfig.tiny(), context=16)
    larger = replace(config, height=32, width=32, group=(4, 4), low_height=16)
    text = TextEncoder(TextConfig(VOCABULARY, 24, 16, 1, 2)).eval()
    nets = [FIT(c).init_weights().eval() for c in (config, larger)]
    assert clips(nets[0], text, scenes(protocol), protocol).shape == (3, 4, 16, 16, 3)
    one, two = (clips(nets[0], text, scenes(protocol), protocol, (nets[1], text)) for _ in range(2))
    assert one.shape == (3, 4, 32, 32, 3) and np.array_equal(one, two)


def cmd_files(folder, words=VOCABULARY, channels=3):
    """Tiny random files: CMD's motion model with its autoencoder, and a model of content frames that knows ``words``."""
    torch.manual_seed(0)
    codec = replace(ContentMotionConfig.tiny(), channels=channels)
    motion = replace(MotionConfig.tiny(), content_channels=channels)
    own, other = (TextConfig(known, 24, 16, 1, 2) for known in (VOCABULARY, words))
    picture = ImageConfig(channels=32, multipliers=(1, 2), context=16)
    parts = {"net": MotionDiT(motion), "text": TextEncoder(own), "codec": ContentMotionCodec(codec)}
    for parameter in parts["net"].parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)  # so that no zero hides a path
    files = (
        ("cmd.safetensors", parts, cmd.to_info(motion, own, codec)),
        ("content.safetensors", {"net": PixelUNet(picture), "text": TextEncoder(other)}, image.to_info(picture, other)),
    )
    for name, nets, info in files:
        weights.save(folder / name, dict(torch.nn.ModuleDict(nets).state_dict()), info)
    return folder / "cmd.safetensors", folder / "content.safetensors"


def test_cmd_makes_clips_with_the_model_of_content_frames(tmp_path):
    net, text = load(*cmd_files(tmp_path))
    protocol = Protocol(prompts=3, frames=4, size=8, steps=2, batch=2)
    asked = scenes(protocol)
    one, two = (clips(net, text, asked, protocol) for _ in range(2))
    assert one.shape == (3, 4, 8, 8, 3) and np.array_equal(one, two)
    # A clip has the content frame, and the motion, of its own prompt.
    another = clips(net, text, [asked[0], asked[2], asked[2]], protocol)
    assert np.array_equal(another[0], one[0]) and np.abs(another[1] - one[1]).max() > 1e-4
    # Each guidance acts on its own part.
    for change in ({"motion_guidance_scale": 5.0}, {"guidance_scale": 1.0}):
        assert np.abs(clips(net, text, asked, replace(protocol, **change)) - one).max() > 1e-4
    with torch.no_grad():
        net.codec.from_x.weight.zero_(), net.codec.from_y.weight.zero_()
    still = clips(net, text, asked, protocol)  # now motion has no say
    assert np.array_equal(clips(net, text, asked, replace(protocol, motion_guidance_scale=5.0)), still)


@pytest.mark.parametrize(
    "asked, message",
    [(dict(frames=8), "at most 4 frames, a multiple of 2; asked for 8"), (dict(frames=3), "multiple of 2; asked for 3")],
)
def test_cmd_refuses_clips_longer_than_its_window(tmp_path, asked, message):
    net, text = load(*cmd_files(tmp_path))
    protocol = Protocol(prompts=1, size=8, steps=1, **asked)
    with pytest.raises(ValueError, match=message):
        clips(net, text, scenes(protocol), protocol)


@pytest.mark.parametrize(
    "files, message",
    [(dict(words=VOCABULARY[:-1]), "different words"), (dict(channels=4), "latents of 4 channels")],
)
def test_cmd_files_that_do_not_make_clips_are_refused(tmp_path, files, message):
    with pytest.raises(weights.WeightsError, match=message):
        load(*cmd_files(tmp_path, **files))


def test_what_needs_an_image_model_says_so(tmp_path):
    path, _ = cmd_files(tmp_path)
    with pytest.raises(weights.WeightsError, match="a CMD model makes clips with its image model"):
        load(path)
