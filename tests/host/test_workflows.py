"""The workflows that ship, in the form that people share, through the converter and a real run."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch.prompt import RunError, apply_settings, output_files, run_prompt, to_api
from vidcore.data.shapes import Scene, Thing
from vidcore.metrics.tracker import agreement, observe
from vidcore.video import probe, read_frames, write_video
from vidcore.weights import read_info

from .prompts import keep_latent, node
from .random_weights import weights

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_every_workflow_has_a_picture_notes_and_known_nodes(path, server):
    assert path.with_suffix(".jpg").stat().st_size > 2000
    workflow, known = json.loads(path.read_text(encoding="utf-8")), server.get("/object_info")
    kinds = [node["type"] for node in workflow["nodes"]]
    assert "MarkdownNote" in kinds
    assert [k for k in kinds if k not in known and k != "MarkdownNote"] == []


def test_a_workflow_of_which_a_part_cannot_run_is_refused(server):
    """ComfyUI would run the rest, and the person would miss a result without a word."""
    latent = node("EmptyVideoLatent", width=32, height=32, frames=2, batch_size=1)
    with pytest.raises(RunError, match=r"a part of the workflow cannot run\n  SaveLatent \(3\): Required input is missing"):
        run_prompt(server, {"1": latent, "2": keep_latent("1"), "3": node("SaveLatent", samples=["1", 0])})
    until = time.monotonic() + 30
    while server.get("/prompt")["exec_info"]["queue_remaining"] and time.monotonic() < until:
        time.sleep(0.1)
    assert not server.get("/prompt")["exec_info"]["queue_remaining"]  # nothing goes on behind the person's back


def render_all(server, tools, output, name, *settings):
    """Paths of all videos that a workflow saves, by the prefix of their names."""
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = to_api(tools, workflow, server.get("/object_info"))
    apply_settings(prompt, list(settings))
    items = output_files(run_prompt(server, prompt))
    return {item["filename"].rsplit("_0", 1)[0]: output(item) for item in items}


def render(server, tools, output, name, *settings):
    (path,) = render_all(server, tools, output, name, *settings).values()
    return path


def clip_of(path):
    """T 32 32 3 in [0, 1], the model's own pixels of an enlarged clip."""
    return read_frames(path)[:, 8::16, 8::16].numpy() / 255


def test_text_to_video_shows_what_its_prompt_says(server, tools, output):
    """For the prompt that ships; how often any other agrees is a figure of the model's card."""
    path = render(server, tools, output, "text_to_video")
    info = probe(path)
    assert (info.frames, info.height, info.width, float(info.rate)) == (8, 512, 512, 8.0)
    clip = clip_of(path)
    found = agreement(clip, Scene((Thing("circle", "red", "large", "left"),), "dark blue"))
    assert all(found.values()), f"{found}: {observe(clip)}"


def test_settings_change_the_video(server, tools, output):
    path = render(
        server,
        tools,
        output,
        "text_to_video",
        "Prompt.text=a large green square over a black background",
        "Sample Video.steps=20",
    )
    seen = observe(clip_of(path))
    assert seen.background == "black" and {t.colour for t in seen.things} == {"green"}


def test_extend_video_goes_on_with_the_same_thing(server, tools, output):
    path = render(server, tools, output, "extend_video", "Extend Video.steps=10", "Extend Video.guidance_scale=1")
    clip = clip_of(path)
    assert len(clip) == 48
    for part in (clip[:16], clip[32:]):
        seen = observe(part)
        assert seen.background == "dark blue" and [t.colour for t in seen.things] == ["red"]
    assert np.ptp(observe(clip[16:]).things[0].path, axis=0).max() > 0.15  # it still moves


def test_inbetween_frames_ends_where_it_should_and_moves_on_the_way(server, tools, output):
    clip = clip_of(render(server, tools, output, "inbetween_frames"))
    (thing,) = observe(clip).things
    assert len(clip) == 16 and thing.colour == "green" and thing.motion == "right"
    assert (np.diff(thing.path[:, 0]) > -0.03).all()  # no frame jumps back


def test_temporal_upsample_keeps_the_given_frames(server, tools, output):
    made = render_all(server, tools, output, "temporal_upsample", "Temporal Upsample.steps=12")
    given, smooth = clip_of(made["smooth_given"]), clip_of(made["smooth"])
    assert (len(given), len(smooth)) == (8, 15)
    assert np.abs(smooth[::2] - given).mean() < 0.02  # the video codec's own loss
    a, b = (observe(clip).things[0].path for clip in (given, smooth))
    between = np.abs(b[1::2, 1] - (a[:-1, 1] + a[1:, 1]) / 2)
    # Two pixels. Where the ring turns round, as it often does, the mean of two frames is not where it should be.
    assert np.median(between) < 2 / 32 and between.max() < 0.2 < np.ptp(a[:, 1])


def test_super_resolution_shrinks_to_what_was_given(server, tools, output):
    made = render_all(server, tools, output, "super_resolution", "Spatial Upsample.steps=12")
    given, large = clip_of(made["larger_given"]), read_frames(made["larger"])[:, 4::8, 4::8].numpy() / 255
    assert large.shape[1:3] == (64, 64)
    small = large.reshape(8, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(small - given).mean() < 0.05


def test_inpaint_video_changes_the_middle_alone(server, tools, output):
    made = render_all(server, tools, output, "inpaint_video")
    before, after = clip_of(made["inpainted_given"]), clip_of(made["inpainted"])
    edge = np.ones((32, 32), bool)
    edge[2:30, 2:30] = False
    assert np.abs(before - after)[:, edge].mean() < 0.04 and np.abs(before - after)[:, ~edge].mean() > 0.1
    seen = observe(after)
    assert seen.background == "dark blue" and [t.colour for t in seen.things] == ["yellow"]


def test_edit_with_inversion_changes_the_colour_and_keeps_the_path(server, tools, output):
    made = render_all(server, tools, output, "edit_with_inversion")
    before, after = (observe(clip_of(made[name])).things for name in ("edited_given", "edited"))
    assert [t.colour for t in before] == ["yellow"] and [t.colour for t in after] == ["cyan"]
    assert np.linalg.norm(before[0].path - after[0].path, axis=1).max() < 0.05


def test_sd15_enlarge_video_runs_on_that_layout(server, tools, output):
    """Random weights make no picture, but every wire and shape is real; at a quarter of the sizes."""
    write_video(server.base / "input" / "small.mp4", torch.randint(0, 255, (3, 48, 64, 3), dtype=torch.uint8), 8)
    with weights(server, "sd15_checkpoint", "checkpoints", "CheckpointLoaderSimple") as name:
        path = render(
            server, tools, output, "sd15_enlarge_video", f"Load Checkpoint.ckpt_name={name}", "KSampler.steps=2",
            "The first 8 frames.length=2", "Small.width=32", "Small.height=32",
            "Start from the enlarged frames.width=64", "Start from the enlarged frames.height=64",
        )  # fmt: skip
    info = probe(path)
    assert (info.frames, info.height, info.width) == (2, 64, 64)


def test_tune_a_video_gives_another_thing_the_same_motion(server, tools, output):
    made = render_all(server, tools, output, "tune_a_video")
    before, after = (observe(clip_of(made[name])).things for name in ("tuned_given", "tuned"))
    assert [t.colour for t in before] == ["red"] and [t.colour for t in after] == ["green"]
    assert before[0].motion == after[0].motion == "left"
    assert np.linalg.norm(before[0].path - after[0].path, axis=1).mean() < 0.06
    server.get("/object_info/LoadTunedVideo")
    (path,) = (server.base / "models" / "tuned_video").glob("moves_left_*.safetensors")
    path.unlink()


def test_a_recolored_content_frame_recolors_every_frame_and_keeps_the_motion(server, tools, output):
    made = render_all(server, tools, output, "content_motion_edit")
    given, edited = (clip_of(made[name]) for name in ("recolored_given", "recolored"))
    (before,), (after,) = observe(given).things, observe(edited).things
    assert (before.colour, after.colour) == ("red", "green") and observe(edited).background == "dark blue"
    for frame in edited:
        assert [thing.colour for thing in observe(np.repeat(frame[None], 3, axis=0)).things] == ["green"]
    assert before.motion == after.motion == "left"
    assert np.linalg.norm(before.path - after.path, axis=1).mean() < 2 / 32


def test_the_motion_of_one_clip_moves_the_content_of_another(server, tools, output):
    made = render_all(server, tools, output, "motion_transfer")
    (given,), (moved,) = (observe(clip_of(made[name])).things for name in ("transferred_given", "transferred"))
    assert (given.colour, moved.colour) == ("red", "yellow") and given.motion == moved.motion == "left"
    assert np.linalg.norm(given.path - moved.path, axis=1).mean() < 2 / 32


def test_text_becomes_a_content_frame_and_then_a_clip(server, tools, output):
    clip = clip_of(render(server, tools, output, "content_motion_text_to_video"))
    found = agreement(clip, Scene((Thing("square", "green", "large", "bounce"),), "black"))
    assert all(found.values()), f"{found}: {observe(clip)}"


def test_a_motion_module_learns_from_the_clip_before_it(server, tools, output):
    made = render_all(server, tools, output, "harivo_train", "Train Motion Module.steps=20")
    given, moved = (clip_of(made[name]) for name in ("my_motion_given", "my_motion"))
    assert given.shape == moved.shape == (8, 32, 32, 3) and observe(given).things[0].colour == "red"
    # It started from the module that ships, and still knows how another thing moves.
    assert all(agreement(moved, Scene((Thing("ring", "green", "large", "left"),), "dark blue")).values())
    server.get("/object_info/LoadMotionModule")
    (path,) = (server.base / "models" / "video_motion").glob("my_motion_*.safetensors")
    assert read_info(path)["steps"] == 20
    path.unlink()


def test_harivo_text_to_video_is_of_one_piece_and_moves_and_strength_counts(server, tools, output):
    """For the prompt that ships. How often a clip follows its word for motion is a figure of the module's card."""
    clip = clip_of(render(server, tools, output, "harivo_text_to_video"))
    found = agreement(clip, Scene((Thing("circle", "red", "large", "left"),), "dark blue"))
    assert all(found[key] for key in ("background", "count", "colour", "shape")), f"{found}: {observe(clip)}"
    (thing,) = observe(clip).things
    assert np.ptp(thing.path, axis=0).max() > 0.1  # of the frame's width: it moves
    alone = clip_of(render(server, tools, output, "harivo_text_to_video", "How it moves.strength=0"))
    change = [np.abs(np.diff(c, axis=0)).mean() for c in (clip, alone)]
    assert change[0] < 0.7 * change[1], change  # without the module, eight pictures that have nothing to do with each other


def test_snap_text_to_video_follows_its_prompt_through_both_stages(server, tools, output):
    """For the prompt that ships. How often any other agrees, and shapes, are figures of the model's card."""
    made = render_all(server, tools, output, "snap_text_to_video")
    small, large = (read_frames(made[name]).numpy() / 255 for name in ("snap_small", "snap"))
    small, large = small[:, 16::32, 16::32], large[:, 4::8, 4::8]
    assert small.shape == (8, 16, 16, 3) and large.shape == (8, 64, 64, 3)
    found = agreement(large, Scene((Thing("circle", "red", "large", "left"),), "dark blue"))
    assert all(found[key] for key in ("background", "count", "colour", "motion")), f"{found}: {observe(large)}"
    assert np.abs(large.reshape(8, 16, 4, 16, 4, 3).mean((2, 4)) - small).mean() < 0.05


def test_snap_upsample_any_clip_keeps_what_it_was_given(server, tools, output):
    """A clip of 16 frames, longer than the second stage makes at once, by a model that is no Snap Video."""
    made = render_all(server, tools, output, "snap_upsample_any_clip")
    given, large = clip_of(made["cascade_given"]), read_frames(made["cascade"])[:, 4::8, 4::8].numpy() / 255
    assert given.shape == (16, 32, 32, 3) and large.shape == (16, 64, 64, 3)
    assert np.abs(large.reshape(16, 32, 2, 32, 2, 3).mean((2, 4)) - given).mean() < 0.05
    before, after = (observe(clip) for clip in (given, large))
    assert before.background == after.background and before.things[0].colour == after.things[0].colour
    assert np.linalg.norm(before.things[0].path - after.things[0].path, axis=1).max() < 2 / 32


def test_workflows_for_stable_diffusion_run_on_that_layout(server, tools, output):
    """Random weights make no picture, but every wire and shape is real; at small sizes."""
    write_video(server.base / "input" / "clip.mp4", torch.randint(0, 255, (3, 48, 64, 3), dtype=torch.uint8), 8)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(
        server.base / "input" / "example.png"
    )
    with weights(server, "sd15_checkpoint", "checkpoints", "CheckpointLoaderSimple") as name:
        made = render_all(
            server, tools, output, "tune_a_video_sd15", f"Load Checkpoint.ckpt_name={name}", "16 frames.length=2",
            "Upscale Image.width=64", "Upscale Image.height=64", "Tune-A-Video.steps=1", "Tune-A-Video.preview_every=0",
            "DDIM Invert.steps=2", "DDIM Invert.method=ddim", "The edit.steps=2",
        )  # fmt: skip
        info = probe(made["tuned_sd15"])
        assert (info.frames, info.height, info.width) == (2, 64, 64)
        (path,) = (server.base / "models" / "tuned_video").glob("skiing_*.safetensors")
        path.unlink()
        made = render_all(
            server, tools, output, "invert_any_model", f"Any model.ckpt_name={name}", "Upscale Image.width=64",
            "Upscale Image.height=64", "DDIM Invert.steps=3", "DDIM Invert.start_at_step=1", "The edit.steps=3",
            "The edit.start_at_step=1",
        )  # fmt: skip
    assert Image.open(made["inverted"]).size == (64, 64)
