import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vidcore import weights
from vidcore.codec.content_motion import ContentMotionCodec, load_codec, reconstruction_loss
from vidcore.data.shapes import VOCABULARY, random_scene, render
from vidcore.systems.cmd.checkpoint import load_cmd
from vidcore.systems.snap.checkpoint import load_snap
from vidcore.systems.vdm import vdm_loss
from vidcore.systems.vdm.checkpoint import load_vdm
from vidcore.text import Vocabulary
from vidcore.train.apply import blocks_in, prepare
from vidcore.train.config import ConfigError, read_config
from vidcore.train.data import batches, shapes_batch
from vidcore.train.loop import train
from vidcore.train.state import saved_state
from vidcore.train.systems import SYSTEMS
from vidcore.video import read_frames

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
output = "out/tiny.safetensors"
seed = 5
warmup = 2
save_every = 2
text_width = 16
text_layers = 1

[model]
frames = 4
size = 16
channels = 8
multipliers = [1, 2]
blocks = 1
attention_sizes = [8]
head_width = 8
embedding = 32
embedding_layers = 2
context = 16
dropout = 0.1
prediction = "v"

[[phase]]
steps = 3
batch = 2
frames = 1
size = 16

[[phase]]
steps = 5
batch = 2
frames = 4
size = 16
images = 2
two = 0.5
lr = 2e-3
lr_end = 1e-4
"""


def recipe(folder, text=RECIPE):
    folder.mkdir(exist_ok=True)
    (folder / "r.toml").write_text(text)
    return read_config(folder / "r.toml")


def quiet(_):
    pass


def test_a_run_cut_in_three_ends_in_the_same_bits(tmp_path):
    config = recipe(tmp_path)
    train(config, tmp_path / "whole", report=quiet)
    for stop in (2, 5, None):
        torch.manual_seed(123)  # whatever happened before must not matter
        train(config, tmp_path / "parts", stop_after=stop, report=quiet)
    for name in ("tiny.safetensors", "tiny.state"):
        one, two = (weights.load(tmp_path / part / "out" / name)[0] for part in ("whole", "parts"))
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path):
    """kill -9 at moments of no choosing, in a step or in a save: nothing is lost, and nothing half-written is loaded."""
    text = RECIPE.replace("steps = 5", "steps = 60").replace("lr = 2e-3", "lr = 5e-4")
    killed = 0
    for name in ("killed", "whole"):
        recipe(tmp_path / name, text)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", "-m", "vidcore.train", "r.toml", "--device", "cpu"]
    state, moments = tmp_path / "killed" / "out" / "tiny.state", random.Random(4)
    while True:
        process = subprocess.Popen(command, cwd=tmp_path / "killed", env=environment, stdout=subprocess.DEVNULL)
        before = state.stat().st_mtime_ns if state.exists() else 0
        deadline = time.monotonic() + 60  # once it has saved something new, any moment will do
        while process.poll() is None and time.monotonic() < deadline and killed < 4:
            if state.exists() and state.stat().st_mtime_ns != before:
                time.sleep(moments.uniform(0, 0.3))
                process.kill()
                killed += 1
                break
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command, cwd=tmp_path / "whole", env=environment, check=True, stdout=subprocess.DEVNULL)
    one, two = (weights.load(tmp_path / name / "out" / "tiny.safetensors")[0] for name in ("whole", "killed"))
    assert killed >= 2 and all(torch.equal(one[key], two[key]) for key in one)


def test_training_lowers_the_loss_and_exports_a_model_that_loads(tmp_path):
    """On clips it never saw, with the same times and noise before and after."""
    losses = []
    for steps in (1, 120):
        folder = tmp_path / str(steps)
        config = recipe(folder, RECIPE.replace("steps = 5", f"steps = {steps}").replace("lr_end = 1e-4", ""))
        train(config, folder, report=quiet)
        net, encoder = load_vdm(folder / "out" / "tiny.safetensors")
        phase = dataclasses.replace(config.phases[1], batch=16, images=0)
        batch = shapes_batch(phase, Vocabulary(VOCABULARY, 24), 999, 0)
        with torch.no_grad():
            context = encoder(batch.tokens)
            losses.append(float(vdm_loss(net.eval(), batch.clips, torch.Generator().manual_seed(0), context)))
    assert losses[1] < 0.9 * losses[0]
    curve = [json.loads(line) for line in (tmp_path / "120" / "out" / "tiny.curve.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in curve] == [50, 100, 123]


def test_exported_weights_are_the_average_not_the_last(tmp_path):
    train(recipe(tmp_path), tmp_path, report=quiet)
    state, _ = weights.load(tmp_path / "out" / "tiny.state")
    export, info = weights.load(tmp_path / "out" / "tiny.safetensors")
    assert info["steps"] == 8
    assert all(torch.equal(export[k], state[f"ema.{k}"]) for k in export)
    assert not all(torch.equal(export[k], state[f"module.{k}"]) for k in export)


def test_starting_from_a_model_takes_its_weights(tmp_path):
    train(recipe(tmp_path), tmp_path, report=quiet)
    again = RECIPE.replace('"out/tiny', '"out/more').replace("seed = 5", 'seed = 6\nstart_from = "out/tiny.safetensors"')
    train(recipe(tmp_path, again), tmp_path, stop_after=1, report=quiet)
    old, _ = weights.load(tmp_path / "out" / "tiny.safetensors")
    new, _ = weights.load(tmp_path / "out" / "more.safetensors")
    far = max(float((new[k] - old[k]).abs().max()) for k in old)
    assert 0 < far < 5e-3  # one small step away


@pytest.mark.parametrize("losses", ["contrast = 0.5", "attention_loss = 5.0", "contrast = 0.5\nattention_loss = 5.0"])
def test_harivo_s_losses_join_in_and_resume_to_the_same_bits(tmp_path, losses):
    """Their head and queue are in the state and not in the model file; pictures in the batch take no part."""
    config = recipe(tmp_path, losses + "\nqueue = 3\n" + RECIPE)
    train(config, tmp_path / "whole", report=quiet)
    for stop in (4, None):
        train(config, tmp_path / "parts", stop_after=stop, report=quiet)
    for name in ("tiny.safetensors", "tiny.state"):
        one, two = (weights.load(tmp_path / part / "out" / name)[0] for part in ("whole", "parts"))
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert one["module.losses.queue.features"].any()
    made = load_vdm(tmp_path / "whole" / config.output)[0].state_dict()
    train(recipe(tmp_path), tmp_path / "without", report=quiet)
    plain = load_vdm(tmp_path / "without" / config.output)[0].state_dict()
    assert made.keys() == plain.keys() and any((made[key] - plain[key]).abs().max() > 1e-5 for key in made)


def test_a_deeper_network_starts_from_a_model_as_the_same_function(tmp_path):
    train(recipe(tmp_path), tmp_path, report=quiet)
    again = RECIPE.replace('"out/tiny', '"out/more').replace("seed = 5", 'seed = 6\nstart_from = "out/tiny.safetensors"')
    deeper = again.replace("blocks = 1", "blocks = 2").replace("steps = 3\n", "steps = 3\nlr = 1e-9\n")
    train(recipe(tmp_path, deeper), tmp_path, stop_after=1, report=quiet)
    (old, _), (new, _) = (load_vdm(tmp_path / "out" / f"{name}.safetensors") for name in ("tiny", "more"))
    assert new.config.blocks == 2 and old.config.blocks == 1
    z, log_snr = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(1)
    with torch.no_grad():
        torch.testing.assert_close(new(z, log_snr), old(z, log_snr), rtol=0, atol=1e-5)


def test_clips_without_their_captions_teach_the_text_encoder_nothing(tmp_path):
    train(recipe(tmp_path), tmp_path, report=quiet)
    again = RECIPE.replace('"out/tiny', '"out/more').replace("seed = 5", 'seed = 6\nstart_from = "out/tiny.safetensors"')
    dropped = again.replace("[[phase]]", "[[phase]]\ndrop_context = 1.0")
    old, _ = weights.load(tmp_path / "out" / "tiny.safetensors", "text.")
    for text, same in ((dropped, True), (again.replace("out/more", "out/other"), False)):
        config = recipe(tmp_path, text)
        train(config, tmp_path, stop_after=2, report=quiet)
        new, _ = weights.load(tmp_path / config.output, "text.")
        assert all(torch.equal(new[k], old[k]) for k in old) == same


def test_batches_repeat_by_step_and_have_their_images_behind_the_clip(tmp_path):
    phase = recipe(tmp_path).phases[1]
    vocabulary = Vocabulary(VOCABULARY, 24)
    one, two, other = (shapes_batch(phase, vocabulary, 5, step) for step in (7, 7, 8))
    assert one.clips.shape == (2, 3, 6, 16, 16) and one.tokens.shape == (2, 24) and one.image_tokens.shape == (2, 2, 24)
    assert torch.equal(one.clips, two.clips) and not torch.equal(one.clips, other.clips)
    assert one.clips.min() >= -1 and one.clips.max() <= 1
    assert not torch.equal(shapes_batch(phase, vocabulary, 5, 7, rank=1).clips, one.clips)


def test_batches_drawn_ahead_by_other_processes_are_the_same(tmp_path):
    config, vocabulary = recipe(tmp_path), Vocabulary(VOCABULARY, 24)
    here, there = (list(batches(config, vocabulary, 2, 6, workers)) for workers in (0, 2))
    assert [b.clips.shape[2] for b in here] == [1, 6, 6, 6]
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.clips, b.clips) and torch.equal(a.tokens, b.tokens)
        assert (a.image_tokens is None) == (b.image_tokens is None)


def test_steps_take_turns(tmp_path):
    config = recipe(tmp_path, RECIPE.replace("two = 0.5", "turns = [{}, {frames = 2, batch = 3}]"))
    kinds = [config.at(step)[0] for step in range(config.steps)]
    assert [(k.frames, k.batch) for k in kinds] == [(1, 2)] * 3 + [(4, 2), (2, 3)] * 2 + [(4, 2)]
    assert kinds[3].images == kinds[4].images == 2


def test_a_motion_that_repeats_may_start_anywhere(tmp_path):
    """Only repeating motions may: the same scene, a batch of one, begins as usual or elsewhere."""
    phase = dataclasses.replace(recipe(tmp_path).phases[1], batch=1, images=0, two=0.0)
    vocabulary, moved = Vocabulary(VOCABULARY, 24), []
    for step in range(40):
        a, b = (shapes_batch(dataclasses.replace(phase, anywhere=p), vocabulary, 5, step) for p in (0.0, 1.0))
        words = " ".join(VOCABULARY[i - 1] for i in a.tokens[0].tolist() if i)
        repeats = any(verb in words for verb in ("bounc", "orbit", "rotat", "spin"))
        assert repeats or torch.equal(a.clips, b.clips)
        moved += [not torch.equal(a.clips, b.clips)] if repeats else []
    assert len(moved) > 3 and sum(moved) > len(moved) / 2  # a turned circle stays as it is


RECIPES = sorted((ROOT / "models").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_tree_are_right(path):
    """They are read, write beside themselves, and begin from files that are there or that another recipe writes."""
    config, written = read_config(path), {read_config(other).output for other in RECIPES}
    assert config.output.startswith("models/")
    for start in (config.start_from, config.text_from, config.codec_from, config.image_from):
        assert not start or start in written or (ROOT / start).exists()


def test_a_crop_keeps_the_thing_whole(tmp_path):
    """As many pixels of it as the whole frame shows, wherever it is; another draw takes another part."""
    phase = dataclasses.replace(
        recipe(tmp_path).phases[1], batch=1, images=0, two=0.0, size=32, crop=20, motions=("rotate",), sizes=("small", "")
    )
    vocabulary, starts = Vocabulary(VOCABULARY, 24), set()
    for step in range(20):
        crop = shapes_batch(phase, vocabulary, 5, step).clips[0]
        scene = random_scene(
            np.random.default_rng((5, 0, step)), 0.0, False, phase.sizes, phase.backgrounds, phase.motions, phase.shapes
        )
        whole = torch.from_numpy(render(scene, phase.frames, 32)).movedim(-1, 0) * 2 - 1
        assert crop.shape[-2:] == (20, 20)
        ground = whole[:, 0, 0, 0]
        ink = lambda clip: (clip - ground[:, None, None, None]).abs().sum()  # noqa: E731
        assert torch.isclose(ink(crop), ink(whole), rtol=1e-5)
        windows = whole.unfold(2, 20, 1).unfold(3, 20, 1)  # C T y x 20 20
        found = (windows.permute(2, 3, 0, 1, 4, 5) == crop).flatten(2).all(2).nonzero().tolist()
        assert found
        starts.add(tuple(found[0]))
    assert len(starts) > 10
    for crop, message in ((40, "at most the size, 16"), (3, "multiple of")):
        with pytest.raises(ConfigError, match=message):
            recipe(tmp_path, RECIPE.replace("two = 0.5", f"two = 0.5\ncrop = {crop}"))


def test_a_crop_that_is_too_small_shows_a_part(tmp_path):
    """Of a thing that is larger, or that travels out of it, there is something to see in some frame."""
    phase = dataclasses.replace(recipe(tmp_path).phases[1], batch=8, images=0, two=0.0, size=32, crop=8, shapes=("circle",))
    clips = shapes_batch(phase, Vocabulary(VOCABULARY, 24), 5, 0).clips
    assert clips.shape[-2:] == (8, 8)
    assert (clips.flatten(2).std(dim=2).amax(dim=1) > 0.01).all()


def test_a_part_of_a_batch_is_what_the_whole_has(tmp_path):
    """Of several processes each draws its own clips alone."""
    phase = dataclasses.replace(recipe(tmp_path).phases[1], batch=4, crop=8)
    whole, own = (shapes_batch(phase, Vocabulary(VOCABULARY, 24), 5, 3, own=s) for s in (slice(None), slice(1, 3)))
    assert own.whole == whole.whole == 4 and len(own.clips) == 2
    for name in ("clips", "tokens", "image_tokens", "interval"):
        assert torch.equal(getattr(own, name), getattr(whole, name)[1:3])


def test_scenes_of_which_none_is_left_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="please allow more"):
        random_scene(rng, held_out=True, backgrounds=("black",), motions=("rotate",), shapes=("square",))


def test_learning_rate_warms_up_and_falls(tmp_path):
    config = recipe(tmp_path)
    rates = [config.at(step)[1] for step in range(config.steps)]
    assert rates[0] == pytest.approx(5e-4) and rates[1] == rates[2] == pytest.approx(1e-3)
    assert rates[3] == pytest.approx(2e-3) and rates[7] == pytest.approx(2e-3 - 1.9e-3 * 4 / 5)
    with pytest.raises(IndexError):
        config.at(8)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("seed = 5", "sed = 5", "no entry 'sed'"),
        ("batch = 2", 'batch = "2"', "phase 1.batch must be of type int"),
        ("size = 16\n\n[[", "size = 15\n\n[[", "phase 1.size must be a multiple of 2"),
        ("frames = 4\nsize = 16\nimages", "frames = 9\nsize = 16\nimages", "phase 2.frames must be at most"),
        ("steps = 3", "steps = 0", "at least 1"),
        ("lr = 2e-3", "lr = -1.0", "must not be negative"),
        ("two = 0.5", 'sizes = ["huge"]', "phase 2.sizes must be some of"),
        ("two = 0.5", 'motions = ["jump"]', "phase 2.motions must be some of"),
        ("two = 0.5", 'shapes = ["blob"]', "phase 2.shapes must be some of"),
        ("two = 0.5", 'two = 0.5\nshapes = ["star"]', "phase 2: two things in a scene need two shapes"),
        ("two = 0.5", 'two = 0.5\nmotions = ["left"]', "phase 2: two things in a scene need two shapes that show"),
        ("two = 0.5", 'two = 0.5\nshapes = ["star", "ring"]\nmotions = ["rotate", "up left"]', "phase 2: two things"),
        ("two = 0.5", 'shapes = ["ring"]\nmotions = ["rotate"]', "phase 2: none of the shapes"),
        ("two = 0.5", "turns = [{frames = 9}]", "phase 2, turn 1.frames must be at most"),
        ("two = 0.5", "turns = 3", "phase 2.turns must be a list"),
        ("[model]", "[model", "not valid TOML"),
        ("channels = 8", "width = 8", "model has no entry 'width'"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, old, new, message):
    assert old in RECIPE
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path, RECIPE.replace(old, new, 1))


def test_two_things_need_no_more_than_two_shapes_that_show_a_motion(tmp_path):
    """The fewest that a recipe may ask for can be drawn."""
    phase = recipe(
        tmp_path, RECIPE.replace("two = 0.5", 'two = 1.0\nshapes = ["star", "cross"]\nmotions = ["rotate", "left"]')
    ).phases[1]
    words = {VOCABULARY[i - 1] for i in shapes_batch(phase, Vocabulary(VOCABULARY, 24), 5, 0).tokens.flatten().tolist() if i}
    assert {"star", "cross", "and"} <= words and "left" not in words


def test_missing_recipe_and_empty_recipe(tmp_path):
    with pytest.raises(ConfigError, match="no recipe"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="phase"):
        recipe(tmp_path, 'output = "x"')


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path):
    config = recipe(tmp_path, RECIPE.replace("warmup = 2", "warmup = 0").replace("steps = 3\n", "steps = 3\nlr = 1e30\n"))
    with pytest.raises(FloatingPointError, match="at step .*lower learning rate"):
        train(config, tmp_path, report=quiet)


# ------------------------------------------------------------------------------------------------------ another system

CODEC = """
system = "content_motion"
output = "out/codec.safetensors"
seed = 5
warmup = 2
save_every = 2

[model]
frames = 4
size = [16, 16]
width = 24
latent = 3
depth = 1
heads = 2
head_width = 8
patch = 4

[[phase]]
steps = 40
batch = 4
frames = 4
size = 16
lr = 5e-3
"""


def test_the_autoencoder_trains_resumes_and_loads(tmp_path):
    config = recipe(tmp_path, CODEC)
    train(config, tmp_path, stop_after=20, report=quiet)
    train(config, tmp_path, report=quiet)
    once, other = weights.load(tmp_path / "out" / "codec.safetensors")[0], tmp_path / "other"
    train(recipe(other, CODEC), other, report=quiet)
    whole, info = weights.load(other / "out" / "codec.safetensors")
    assert all(torch.equal(once[k], whole[k]) for k in whole) and info["steps"] == 40 and info["system"] == "content_motion"

    codec, fresh = load_codec(other / "out" / "codec.safetensors"), ContentMotionCodec(config.model).init_weights()
    clips = shapes_batch(config.phases[0], Vocabulary(VOCABULARY, 24), 6, 0).clips
    with torch.no_grad():
        assert reconstruction_loss(codec, clips) < 0.5 * reconstruction_loss(fresh, clips)


MOTION = """
system = "cmd"
output = "out/cmd.safetensors"
codec_from = "out/codec.safetensors"
seed = 5
warmup = 2
text_width = 16
text_layers = 1

[model]
latent = 3
frames = 4
entries = 8
width = 32
depth = 1
heads = 2
context = 16
prediction = "x0"

[[phase]]
steps = 3
batch = 2
frames = 4
size = 16
"""


def test_the_motion_model_trains_on_the_autoencoder_and_leaves_it_as_it_is(tmp_path):
    train(recipe(tmp_path, CODEC), tmp_path, stop_after=2, report=quiet)
    train(recipe(tmp_path, MOTION), tmp_path, report=quiet)
    net, text, codec = load_cmd(tmp_path / "out" / "cmd.safetensors")
    before = load_codec(tmp_path / "out" / "codec.safetensors").state_dict()
    assert all(torch.equal(before[k], v) for k, v in codec.state_dict().items())
    assert net.out.weight.any() and text.config.width == 16
    with pytest.raises(weights.WeightsError, match="motion of 3 channels .* the recipe's model is for 8"):
        train(recipe(tmp_path, MOTION.replace("latent = 3", "latent = 8")), tmp_path, report=quiet)


def test_the_motion_model_may_take_a_text_encoder_as_it_is(tmp_path):
    train(recipe(tmp_path), tmp_path, stop_after=1, report=quiet)
    train(recipe(tmp_path, CODEC), tmp_path, stop_after=2, report=quiet)
    train(
        recipe(tmp_path, MOTION.replace("seed = 5", 'seed = 5\ntext_from = "out/tiny.safetensors"')), tmp_path, report=quiet
    )
    _, text, _ = load_cmd(tmp_path / "out" / "cmd.safetensors")
    _, given = load_vdm(tmp_path / "out" / "tiny.safetensors")
    assert all(torch.equal(given.state_dict()[k], v) for k, v in text.state_dict().items())


def test_a_model_of_another_system_is_not_started_from(tmp_path):
    train(recipe(tmp_path), tmp_path, report=quiet)
    text = CODEC.replace("seed = 5", 'seed = 5\nstart_from = "out/tiny.safetensors"')
    with pytest.raises(weights.WeightsError, match="content-motion autoencoder, this file holds 'vdm'"):
        train(recipe(tmp_path, text), tmp_path, report=quiet)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"content_motion"', '"motion"', "recipe.system must be one of vdm, content_motion, cmd, snap, .*; got 'motion'"),
        ("size = 16", "size = 18", "size must be a multiple of 4"),
        ("frames = 4\nsize = 16", "frames = 5\nsize = 16", "must be at most 4 for this model"),
        ("batch = 4", "batch = 4\nimages = 2", "does not train on images beside clips"),
    ],
)
def test_a_wrong_recipe_of_another_system_is_refused(tmp_path, old, new, message):
    assert old in CODEC
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path, CODEC.replace(old, new, 1))


SNAP = """
system = "snap"
optimiser = "lamb"
output = "out/snap.safetensors"
seed = 5
warmup = 2
save_every = 2
weight_decay = 0.01
text_width = 20
text_layers = 1

[model]
frames = 4
height = 16
width = 16
group = [2, 2]
token = 16
latents = 8
latent_width = 24
blocks = 1
layers = 1
head_width = 8
latent_head_width = 8
condition = 12
context = 20
sigma_in = 2.0

[[phase]]
steps = 5
batch = 2
frames = 4
size = 16
images = 1
rates = [1.0, 0.5, 0.25]
lr = 5e-3
lr_end = 1e-4
cosine = true
"""


@pytest.mark.parametrize("optimiser", ["lamb", "muon"])
def test_snap_trains_resumes_to_the_same_bits_and_loads(tmp_path, optimiser):
    config = recipe(tmp_path, SNAP.replace('"lamb"', f'"{optimiser}"'))
    train(config, tmp_path / "whole", report=quiet)
    for stop in (1, 4, None):
        train(config, tmp_path / "parts", stop, report=quiet)
    whole, parts = (weights.load(tmp_path / name / config.output)[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    net, text = load_snap(tmp_path / "whole" / config.output)
    assert net.config == config.model and text.config.width == 20
    fresh = SYSTEMS["snap"].build(config, tmp_path)["net"].state_dict()
    assert all(not torch.equal(value, fresh[key]) for key, value in net.state_dict().items() if value.ndim > 1)
    again = dataclasses.replace(config, start_from=f"whole/{config.output}")
    assert torch.equal(SYSTEMS["snap"].build(again, tmp_path)["net"].place, net.place)


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_in_parts_teaches_the_same(tmp_path, size):
    """In float64, for a loss without randomness; 3 leaves a part of one clip at the end of a batch of four."""
    config = recipe(tmp_path, CODEC)

    class Double(SYSTEMS["content_motion"]):
        @staticmethod
        def build(config, root):
            return SYSTEMS["content_motion"].build(config, root).double()

        @staticmethod
        def loss(module, batch, *rest):
            return reconstruction_loss(module["codec"], batch.clips.double())

    ends = [dataclasses.replace(config, micro_batch=n, output=f"out/{n}.safetensors") for n in (0, size)]
    losses = [train(end, tmp_path, stop_after=3, report=quiet, system=Double) for end in ends]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    whole, parts = (weights.load(tmp_path / end.output)[0] for end in ends)
    for key, value in whole.items():
        torch.testing.assert_close(value, parts[key], atol=1e-5, rtol=1e-5)


def torchrun(folder, *more, check=True):
    """Two processes that train ``r.toml`` of a folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vidcore.train"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    run = [*command, "r.toml", "--device", "cpu", *more]
    return subprocess.run(run, cwd=folder, env=environment, check=check, capture_output=True)


def test_two_processes_train_as_one_does_that_takes_their_parts_in_turn(tmp_path):
    """By torchrun, through Gloo, with dropout and images; and after a stop in between."""
    config = recipe(tmp_path / "two", RECIPE.replace("batch = 2", "batch = 4"))
    for more in (["--stop-after", "5"], []):
        torchrun(tmp_path / "two", *more)
    train(dataclasses.replace(config, micro_batch=2), tmp_path / "one", report=quiet)
    two, one = (weights.load(tmp_path / name / config.output) for name in ("two", "one"))
    assert one[1]["steps"] == two[1]["steps"] == 8 and one[0].keys() == two[0].keys()
    for key, value in one[0].items():
        torch.testing.assert_close(two[0][key], value, atol=2e-4, rtol=2e-3)
    curve = (tmp_path / "two" / "out" / "tiny.curve.jsonl").read_text().splitlines()
    assert len(curve) == 2  # one process writes it, at both ends
    small = recipe(tmp_path / "small", RECIPE.replace("batch = 2", "batch = 1"))
    found = torchrun(tmp_path / "small", check=False)
    assert small and found.returncode and b"a batch of 1 clips does not go around 2 processes" in found.stderr


def test_sharded_processes_train_as_others_do_and_go_on_from_their_parts(tmp_path):
    """FSDP2 through Gloo, stopped and resumed, beside DDP. Dropout draws by memory layout: both are contiguous."""
    text = "channels_last = false\n" + RECIPE.replace("batch = 2", "batch = 4")
    recipe(tmp_path / "shared", text)
    config = recipe(tmp_path / "sharded", "shard = true\n" + text)
    for name, stops in (("shared", (None,)), ("sharded", (5, None))):
        for stop in stops:
            torchrun(tmp_path / name, *(["--stop-after", str(stop)] if stop else []))
    one, two = (weights.load(tmp_path / name / config.output) for name in ("shared", "sharded"))
    assert one[1] == two[1] and one[0].keys() == two[0].keys()
    for key, value in one[0].items():
        torch.testing.assert_close(two[0][key], value, atol=1e-5, rtol=1e-4)
    state = tmp_path / "sharded" / "out" / "tiny.state"
    assert len(list(state.glob("*.safetensors"))) == 2 and {f.suffix for f in state.iterdir()} == {".safetensors", ".json"}
    load_vdm(tmp_path / "sharded" / config.output)
    with pytest.raises(ValueError, match="'shard' is for several processes"):
        train(config, tmp_path / "alone", report=quiet)
    recipe(tmp_path / "sharded", text)  # without shard, the folder is not a state that one can go on from
    with pytest.raises(weights.WeightsError, match="tiny.state"):
        train(recipe(tmp_path / "sharded", text), tmp_path / "sharded", report=quiet)


def test_a_state_that_was_being_replaced_is_found(tmp_path):
    assert saved_state(tmp_path / "a.state") is None
    (tmp_path / "a.state.old").mkdir()
    assert saved_state(tmp_path / "a.state") == tmp_path / "a.state.old"
    (tmp_path / "a.state").mkdir()
    assert saved_state(tmp_path / "a.state") == tmp_path / "a.state"


@pytest.mark.parametrize("more", ["recompute = true", 'compile = "aot_eager"'])
def test_recomputed_and_compiled_blocks_teach_the_same(tmp_path, more):
    text = RECIPE.replace("dropout = 0.1", "dropout = 0.0")
    head, _, clips = text.split("[[phase]]")  # on clips alone: to compile for both kinds of batch takes twice as long
    text = f"{head}[[phase]]{clips}"
    plain, other = recipe(tmp_path / "plain", text), recipe(tmp_path / "other", more + "\n" + text)
    for config, name in ((plain, "plain"), (other, "other")):
        train(config, tmp_path / name, 2, report=quiet)
    one, two = (weights.load(tmp_path / name / plain.output)[0] for name in ("plain", "other"))
    assert one.keys() == two.keys()  # no wrapper has changed a name
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-5, rtol=1e-3)


def test_no_compiled_block_falls_back(tmp_path, monkeypatch):
    """However many share a class, on pictures and on clips: more than the versions of one function that torch compiles."""
    torch._dynamo.reset()  # other tests may have compiled, and raised the limits
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        monkeypatch.setattr(torch._dynamo.config, limit, 8)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    config = recipe(tmp_path, 'compile = "eager"\n' + RECIPE.replace("multipliers = [1, 2]", "multipliers = [1, 2, 3, 4]"))
    assert len(blocks_in(SYSTEMS["vdm"].build(config, tmp_path))) > 8
    train(config, tmp_path, config.phases[0].steps + 1, report=quiet)


def test_recompute_runs_blocks_again_on_the_way_back(tmp_path):
    config, runs = recipe(tmp_path, "recompute = true\n" + RECIPE), []
    module = SYSTEMS["vdm"].build(config, tmp_path)
    blocks = blocks_in(module)
    assert len(blocks) == len([m for m in module.modules() if type(m).__name__ == "Block"]) > 3
    objective = prepare(module, SYSTEMS["vdm"], config, torch.device("cpu"))
    blocks[0].res.register_forward_pre_hook(lambda *_: runs.append(1))
    batch = shapes_batch(config.phases[1], Vocabulary(VOCABULARY, 24), 5, 0)
    loss = objective(batch, config.phases[1], torch.Generator().manual_seed(0))
    assert len(runs) == 1
    loss.backward()
    assert len(runs) == 2


@pytest.mark.parametrize("system", ["vdm", "content_motion", "cmd", "snap"])
def test_samples_show_the_run_and_change_no_bit_of_it(tmp_path, system):
    def make(name, more):
        root = tmp_path / name
        root.mkdir()
        if system == "cmd":
            train(recipe(root, CODEC), root, 1, report=quiet)
        text = {"vdm": RECIPE, "content_motion": CODEC, "cmd": MOTION, "snap": SNAP}[system]
        config = recipe(root, more + text)
        train(config, root, 4, report=quiet)
        return root / config.output, config.at(1)[0]

    (plain, _), (shown, phase) = make("plain", ""), make("shown", "samples_every = 2\n")
    one, two = (weights.load(path)[0] for path in (plain, shown))
    assert all(torch.equal(one[key], two[key]) for key in one)
    folder = shown.with_suffix(".samples")
    assert (folder / "2.png").is_file()
    picture = read_frames(folder / "2.png")
    rows = min(4, phase.batch) * (2 if system == "content_motion" else 1)
    assert picture.shape == (1, rows * phase.size, phase.frames * phase.size, 3) and picture.float().std() > 1


def test_float16_scales_the_loss_and_resumes_to_the_same_bits(tmp_path):
    config = recipe(tmp_path, "fp16 = true\n" + RECIPE)
    train(config, tmp_path / "whole", report=quiet)
    for stop in (3, None):
        train(config, tmp_path / "parts", stop, report=quiet)
    for name in ("tiny.safetensors", "tiny.state"):
        one, two = (weights.load(tmp_path / part / "out" / name) for part in ("whole", "parts"))
        assert all(torch.equal(one[0][k], two[0][k]) for k in one[0])
    assert one[1]["scaler"]["scale"] >= 2.0
    with pytest.raises(ConfigError, match="fp16 goes neither with bf16 nor with shard"):
        recipe(tmp_path, "fp16 = true\nbf16 = true\n" + RECIPE)


def test_images_stay_with_their_clips_in_parts(tmp_path):
    batch = shapes_batch(recipe(tmp_path, SNAP).phases[0], Vocabulary(VOCABULARY, 24), 5, 0)
    one, two = batch.split(1)
    for name in ("clips", "tokens", "image_tokens", "interval"):
        assert torch.equal(torch.cat([getattr(one, name), getattr(two, name)]), getattr(batch, name))
    assert dataclasses.replace(batch, image_tokens=None).split(2)[0].image_tokens is None


@pytest.mark.parametrize("shared", [False, True])
def test_a_second_stage_trains_from_a_first_one(tmp_path, shared):
    """With a text encoder of its own, or with the first one's as it is."""
    train(recipe(tmp_path, SNAP), tmp_path, stop_after=1, report=quiet)
    begin = 'start_from = "out/snap.safetensors"' + '\ntext_from = "out/snap.safetensors"' * shared
    changed = {
        '"out/snap.safetensors"': f'"out/second.safetensors"\n{begin}',
        "height = 16\nwidth = 16\ngroup = [2, 2]": "height = 32\nwidth = 32\ngroup = [4, 4]\nlow_height = 16",
        "size = 16": "size = 32",
    }
    text = SNAP
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    train(recipe(tmp_path, text), tmp_path, report=quiet)
    first, (net, text) = (
        load_snap(tmp_path / "out" / "snap.safetensors")[1],
        load_snap(tmp_path / "out" / "second.safetensors"),
    )
    assert net.config.low_size == (16, 16)
    pairs = zip(first.parameters(), text.parameters())
    assert all(torch.equal(a, b) for a, b in pairs) is shared
    pixels = net.config.channels * net.config.patch**2
    assert net.patch_in.weight[:, pixels:].any()  # it has begun to see the clip to enlarge


def test_clips_of_a_higher_rate_show_a_part_of_the_motion(tmp_path):
    phase = recipe(tmp_path, SNAP).phases[0]
    vocabulary = Vocabulary(VOCABULARY, 24)
    phase = dataclasses.replace(phase, batch=30, rates=(1.0, 0.125), motions=("left",))
    batch = shapes_batch(phase, vocabulary, 0, 0)
    assert set(batch.interval.tolist()) == {0.25, 0.03125}
    moved = (batch.clips[:, :, 3] - batch.clips[:, :, 0]).abs().mean(dim=(1, 2, 3))
    assert moved[batch.interval == 0.25].mean() > 2 * moved[batch.interval < 0.25].mean()
    assert shapes_batch(dataclasses.replace(phase, frames=1, images=0), vocabulary, 0, 0).interval.eq(0).all()


def test_the_cosine_meets_both_ends_and_their_middle(tmp_path):
    config = recipe(tmp_path, SNAP.replace("steps = 5", "steps = 100").replace("warmup = 2", "warmup = 1"))
    rates = [config.at(step)[1] for step in range(100)]
    assert rates[0] == 5e-3 and rates[50] == pytest.approx((5e-3 + 1e-4) / 2) and rates[-1] < 1.1e-4
    assert rates == sorted(rates, reverse=True) and rates[25] > 0.85 * 5e-3


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"lamb"', '"sgd"', "recipe.optimiser must be one of adamw, lamb"),
        ("rates = [1.0, 0.5, 0.25]", "rates = [2.0]", "rates must be parts of the whole"),
        ("rates = [1.0, 0.5, 0.25]", "rates = []", "rates must be parts of the whole"),
        ('optimiser = "lamb"', 'optimiser = "muon"\nshard = true', "muon needs whole matrices"),
        ("frames = 4\nsize", "frames = 2\nsize", "takes 4 frames of 16x16 alone"),
        ("size = 16\nimages", "size = 32\nimages", "got 4 of 32x32"),
        ("width = 16", "width = 32", "takes 4 frames of 32x16 alone"),
    ],
)
def test_a_wrong_recipe_of_snap_is_refused(tmp_path, old, new, message):
    assert old in SNAP
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path, SNAP.replace(old, new))


def test_a_line_says_how_far_a_run_is(tmp_path):
    lines = []
    train(recipe(tmp_path), tmp_path, stop_after=4, report=lines.append)
    pattern = r"step 4/8  loss \d\.\d{4}  lr [\d.e-]+  \d+\.\d\d s/step  \d:\d\d:\d\d left  \[#{10}\.{10}\]"
    assert len(lines) == 1 and re.fullmatch(pattern, lines[0]), lines
