"""Conditions that belong to single frames, under the nodes that make a clip in windows."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch.prompt import RunError

from .prompts import node
from .random_weights import weights
from .test_layouts import model_and_clips, on_frames

spec = importlib.util.spec_from_file_location("conditions_alone", Path(__file__).parents[2] / "nodes" / "conditions.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def pictures(number, colours, size=64):
    """Nodes of pictures of one colour each, and their batch under ``number``."""
    made = {
        f"{number}{i}": node("EmptyImage", width=size, height=size, batch_size=1, color=colour)
        for i, colour in enumerate(colours)
    }
    batch = {f"images.image{i}": [f"{number}{i}", 0] for i in range(len(colours))}
    return {**made, number: node("BatchImagesNode", **batch)}


@pytest.fixture
def frames(run, output):
    """Runs nodes; the frames that each number saved, T H W C."""

    def frames(nodes, numbers):
        found = run(nodes, timeout=600)["outputs"]
        return {
            number: np.stack([np.asarray(Image.open(output(item)), float) for item in found[number]["images"]])
            for number in numbers
        }

    return frames


def changed(made, before):
    """Frames of which more differs than a value here and there on the edge of rounding; random weights act faintly."""
    return [i for i, (a, b) in enumerate(zip(made, before, strict=True)) if (a != b).mean() > 0.01]


GREYS = [0x101010 * i for i in range(2, 8)]


def with_control(nodes, number, colours):
    """The prompts with a ControlNet of these colours, under ``number``."""
    nodes |= pictures(f"{number}0", colours)
    nodes[number] = node(
        "ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], control_net=["8", 0], image=[f"{number}0", 0],
        strength=10.0, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    return dict(positive=[number, 0], guidance_scale=50.0)  # it acts the more as it acts on one prompt alone


@pytest.fixture
def controlled(server):
    """Stable Diffusion's model, prompts, a ControlNet (node 8), a VAE (9), two frames (20)."""
    with (
        weights(server, "sd15", "diffusion_models", "UNETLoader") as model,
        weights(server, "sd15_control", "controlnet", "ControlNetLoader") as control,
        weights(server, "sd_vae", "vae", "VAELoader") as vae,
    ):
        _, nodes = model_and_clips("sd15", model, server)
        nodes |= {"8": node("ControlNetLoader", control_net_name=control), "9": node("VAELoader", vae_name=vae)}
        yield nodes | pictures("20", [0x804020, 0x208040])


def test_each_frame_has_its_own_picture_of_a_controlnet(controlled, frames):
    """Frames 2 to 5 are made after two given ones, in windows of three; the model lets no frame see another."""
    how, numbers = dict(new_frames=4, window=3, overlap=1, weight=0.0), []
    for other in (None, 0, 2, 5):
        colours = [0xF04010 if i == other else colour for i, colour in enumerate(GREYS)]
        number = f"6{len(numbers)}"
        controlled |= on_frames("ExtendVideo", "20", number, **how, **with_control(controlled, f"5{len(numbers)}", colours))
        numbers.append(number)
    made = frames(controlled, numbers)
    before = made[numbers[0]]
    assert before.shape == (6, 64, 64, 3)
    assert [changed(made[number], before) for number in numbers[1:]] == [[], [2], [5]]


def test_pictures_for_another_clip_are_refused(controlled, run):
    how = with_control(controlled, "50", GREYS[:4])
    with pytest.raises(RunError, match="a ControlNet is made for 4 frames or latents, and the clip .* has 6 frames"):
        run({**controlled, **on_frames("ExtendVideo", "20", "60", new_frames=4, window=3, overlap=1, **how)})


@pytest.fixture
def image_to_video(server):
    """Wan's model from images, prompts, its VAE (9), five frames (20)."""
    with (
        weights(server, "wan_i2v", "diffusion_models", "UNETLoader") as model,
        weights(server, "wan_vae", "vae", "VAELoader") as vae,
    ):
        _, nodes = model_and_clips("wan", model, server)
        nodes["9"] = node("VAELoader", vae_name=vae)
        yield nodes | pictures("20", GREYS[:5])


def to_end_with(nodes, number, colour, length):
    """The prompts for so many frames, of which the last is known, under ``number``."""
    nodes |= {
        f"{number}0": node("EmptyImage", width=64, height=64, batch_size=1, color=colour),
        number: node(
            "WanFirstLastFrameToVideo", positive=["2", 0], negative=["3", 0], vae=["9", 0], width=64, height=64,
            length=length, batch_size=1, end_image=[f"{number}0", 0],
        ),
    }  # fmt: skip
    return dict(positive=[number, 0], negative=[number, 1])


def test_what_an_image_model_of_videos_knows_of_a_frame_reaches_its_window(image_to_video, frames):
    """Frames 5 to 12 are made after five given ones, in windows of nine that share five; the last frame is known."""
    for number, colour in (("60", 0x204080), ("61", 0xF0C010)):
        known = to_end_with(image_to_video, f"5{number}", colour, 13)
        image_to_video |= on_frames("ExtendVideo", "20", number, new_frames=8, window=9, overlap=5, **known)
    made = frames(image_to_video, ["60", "61"])
    assert made["60"].shape == (13, 64, 64, 3)
    assert changed(made["61"], made["60"]) == [9, 10, 11, 12]


def test_conditions_that_cannot_be_cut_are_refused(image_to_video, server, run):
    short = to_end_with(image_to_video, "51", 0x204080, 9)
    long = to_end_with(image_to_video, "52", 0x204080, 13)
    image_to_video |= pictures("21", GREYS)  # six frames
    cases = [
        ("20", 8, short, "concat_latent_image is made for 3 frames or latents, .* has 13 frames, in 4 latents"),
        ("21", 7, long, "packs 4 of them into a latent. Please leave out 1 of the given frames"),
    ]
    with weights(server, "ltx_vae", "vae", "VAELoader") as vae:
        image_to_video |= {
            "30": node("VAELoader", vae_name=vae),
            "31": node("EmptyLTXVLatentVideo", width=64, height=64, length=9, batch_size=1),
            "32": node(
                "LTXVAddGuide", positive=["2", 0], negative=["3", 0], vae=["30", 0], latent=["31", 0], image=["20", 0],
                frame_idx=0, strength=1.0,
            ),
        }  # fmt: skip
        guides = dict(positive=["32", 0], negative=["32", 1])
        cases.append(("20", 8, guides, "points at pictures inside a latent"))
        for image, count, known, message in cases:
            nodes = on_frames("ExtendVideo", image, "60", new_frames=count, window=9, overlap=5, **known)
            with pytest.raises(RunError, match=message):
                run({**image_to_video, **nodes})


# ---------------------------------------------------------------------------------------------------------- by itself


def count(frames, *rest):
    """Tensors whose values are the numbers of their frames."""
    return torch.arange(frames).reshape(-1, *(1 for _ in rest)).expand(-1, *rest)


def test_texts_and_masks_for_each_picture_are_cut_and_shared_ones_stay():
    text, pooled = count(6, 8, 4), count(1, 4)
    options = {"pooled_output": pooled, "mask": count(6, 8, 8), "strength": 0.5}
    windows = module.FrameConditions(([[text, options]],), 6, 1, 1, True)
    ((made, options),) = windows.of(2, 3)[0]
    assert made[:, 0, 0].tolist() == options["mask"][:, 0, 0].tolist() == [3, 4, 5]
    assert options["pooled_output"] is pooled and options["strength"] == 0.5
    assert windows.of(4, 3)[0][0][0][:, 0, 0].tolist() == [5, 5, 5]  # past the end


def test_videos_keep_their_texts_and_lists_are_cut_whole():
    text, beside = torch.zeros(13, 8, 4), torch.arange(4).reshape(1, 1, 4, 1, 1)
    options = {"vace_frames": [beside, beside + 10], "face_video_pixels": torch.arange(13).reshape(1, 1, 13, 1, 1)}
    ((made, options),) = module.FrameConditions(([[text, options]],), 13, 0, 4, False).of(4, 9)[0]
    assert made is text
    assert [part.flatten().tolist() for part in options["vace_frames"]] == [[1, 2, 3], [11, 12, 13]]
    assert options["face_video_pixels"].flatten().tolist() == list(range(4, 13))


def test_what_begins_the_clip_begins_the_first_window_alone():
    windows = module.FrameConditions(
        ([[torch.zeros(1, 8, 4), {"time_dim_replace": torch.zeros(1, 16, 1, 8, 8)}]],), 9, 0, 4, False
    )
    assert "time_dim_replace" in windows.of(0, 5)[0][0][1] and "time_dim_replace" not in windows.of(4, 5)[0][0][1]


def test_controlnets_are_copied_once_and_keep_their_order():
    """The host's own class, in a process of its own."""
    if not (tree := os.environ.get("VIDCORE_HOST_TREE")):
        pytest.skip("needs ComfyUI: run `python3 start.py test`")
    command = [sys.executable, Path(__file__).with_name("controls.py"), tree]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert json.loads(answer.stdout.splitlines()[-1]) == {
        "shared": True, "copied": True, "hint": 1, "before": [3, 4], "original": 6, "kept": True,
    }  # fmt: skip
