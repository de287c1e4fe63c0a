import json

import pytest
import torch

from vidcore import weights
from vidcore.systems.vdm.checkpoint import load_vdm
from vidcore.text import Vocabulary
from vidcore.train.config import ConfigError, read_config
from vidcore.train.data import shapes_batch
from vidcore.train.loop import train

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


def test_training_lowers_the_loss_and_exports_a_model_that_loads(tmp_path):
    text = RECIPE.replace("steps = 5", "steps = 120").replace("lr_end = 1e-4", "")
    train(recipe(tmp_path, text), tmp_path, report=quiet)
    curve = [json.loads(line) for line in (tmp_path / "out" / "tiny.curve.jsonl").read_text().splitlines()]
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    net, encoder = load_vdm(tmp_path / "out" / "tiny.safetensors")
    out = net(torch.zeros(1, 3, 4, 16, 16), torch.zeros(1), encoder(torch.ones(1, 5, dtype=torch.long)))
    assert torch.isfinite(out).all() and out.abs().max() > 0


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


def test_batches_repeat_by_step_and_have_their_images_behind_the_clip(tmp_path):
    phase = recipe(tmp_path).phases[1]
    from vidcore.data.shapes import VOCABULARY

    vocabulary = Vocabulary(VOCABULARY, 24)
    one, two, other = (shapes_batch(phase, vocabulary, 5, step) for step in (7, 7, 8))
    assert one.clips.shape == (2, 3, 6, 16, 16) and one.tokens.shape == (2, 24) and one.image_tokens.shape == (2, 2, 24)
    assert torch.equal(one.clips, two.clips) and not torch.equal(one.clips, other.clips)
    assert one.clips.min() >= -1 and one.clips.max() <= 1
    assert not torch.equal(shapes_batch(phase, vocabulary, 5, 7, rank=1).clips, one.clips)


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
        ("[model]", "[model", "not valid TOML"),
        ("channels = 8", "width = 8", "model has no entry 'width'"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, old, new, message):
    assert old in RECIPE
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path, RECIPE.replace(old, new, 1))


def test_missing_recipe_and_empty_recipe(tmp_path):
    with pytest.raises(ConfigError, match="no recipe"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="phase"):
        recipe(tmp_path, 'output = "x"')


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path):
    config = recipe(tmp_path, RECIPE.replace("warmup = 2", "warmup = 0").replace("steps = 3\n", "steps = 3\nlr = 1e30\n"))
    with pytest.raises(FloatingPointError, match="at step .*lower learning rate"):
        train(config, tmp_path, report=quiet)
