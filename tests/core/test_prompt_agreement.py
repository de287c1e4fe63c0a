"""The score is right on clips that are right or wrong by construction, and repeats."""

from dataclasses import replace

import numpy as np
import torch

from vidcore.data.shapes import VOCABULARY, is_held_out, render
from vidcore.metrics.prompt_agreement import Protocol, clips, scenes, score
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
