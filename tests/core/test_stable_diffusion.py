"""Training beside a checkpoint of Stable Diffusion: its parts, what is kept of a folder, a run that resumes to the bit."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.clips import encode
from vidcore import weights
from vidcore.codec.kl import KLAutoencoder, KLConfig
from vidcore.data.shapes import Thing
from vidcore.schedule import alpha_sigma
from vidcore.systems.beside_image import fingerprint
from vidcore.systems.harivo.checkpoint import load_motion
from vidcore.systems.image import LatentUNet, UNetConfig, stable_diffusion
from vidcore.systems.image.stable_diffusion import (
    AUTOENCODER,
    NET,
    TEXT,
    ScaledLinearSchedule,
    is_checkpoint,
    load_autoencoder,
    load_clip_text,
    load_net,
)
from vidcore.systems.tune_a_video import load_tuned
from vidcore.train import features
from vidcore.train.config import ConfigError, read_config
from vidcore.train.data import open_folder
from vidcore.train.features import CaptionTable, caption_table, with_latents
from vidcore.train.image_systems import context_of
from vidcore.train.loop import train
from vidcore.video import read_frames

SMALL_NET = UNetConfig(channels=32, multipliers=(1, 2), attention=(True, True), blocks=1, context=768, heads=2)
SMALL_KL = KLConfig(channels=32, multipliers=(1, 1), blocks=1)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
WORDS = {"<|startoftext|>": 2, "<|endoftext|>": 3, "a</w>": 0, "b</w>": 1}


def quiet(*_):
    pass


# --------------------------------------------------------------------------------------------------------------- its parts


def test_the_parts_have_the_published_sizes():
    with torch.device("meta"):
        net, autoencoder = LatentUNet(), KLAutoencoder()
    assert sum(p.numel() for p in net.parameters()) == 859_520_964
    assert sum(p.numel() for p in autoencoder.parameters()) == 83_653_863
    names = set(autoencoder.state_dict())
    assert {
        "encoder.down.1.block.0.nin_shortcut.weight",
        "decoder.up.3.upsample.conv.bias",
        "encoder.mid.attn_1.q.bias",
    } <= names


def test_the_schedule_is_the_published_one_and_falls():
    schedule = ScaledLinearSchedule()
    alpha, sigma = alpha_sigma(schedule.log_snr(torch.tensor([0.0, 1.0])))
    # Known ends of Stable Diffusion's sigmas: 0.0292 and 14.6146.
    np.testing.assert_allclose((sigma / alpha).numpy(), [0.0292, 14.6146], rtol=2e-3)
    levels = schedule.log_snr(torch.linspace(0, 1, 4001))
    assert (levels.diff() < 0).all() and levels.dtype == torch.float64
    torch.testing.assert_close(schedule.log_snr(torch.tensor(500 / 999)), schedule.table[500], atol=1e-5, rtol=0)


def test_an_estimate_undoes_what_the_network_calls_noise():
    torch.manual_seed(0)
    net = LatentUNet(SMALL_NET).init_weights()
    x, eps, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9])
    alpha, sigma = (s.float()[:, None, None, None] for s in alpha_sigma(net.schedule.log_snr(t)))
    torch.testing.assert_close(net.estimate(alpha * x + sigma * eps, eps, t), x, atol=1e-4, rtol=1e-4)
    z, context = alpha * x + sigma * eps, torch.randn(2, 3, 768)
    assert torch.equal(net(z, t, context), z / alpha)  # an untrained network's noise is zero


def test_the_autoencoder_halves_by_its_levels_and_refuses_odd_sizes():
    torch.manual_seed(0)
    autoencoder = KLAutoencoder(KLConfig(channels=32, multipliers=(1, 1, 2), blocks=1))
    mean, deviation = autoencoder.encode(torch.rand(2, 3, 16, 24))
    assert mean.shape == deviation.shape == (2, 4, 4, 6) and (deviation > 0).all()
    assert autoencoder.decode(mean).shape == (2, 3, 16, 24)
    with pytest.raises(ValueError, match="multiples of 4, got"):
        autoencoder.encode(torch.rand(1, 3, 18, 24))


# -------------------------------------------------------------------------------------------------------------- a folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of videos, and a checkpoint in the layout of Stable Diffusion 1.x, but small."""
    from transformers import CLIPTextConfig, CLIPTextModel

    root = tmp_path_factory.mktemp("run")
    (root / "videos").mkdir()
    for name, caption in (("one", "a b"), ("two", "a  strange, LONG caption " * 20), ("three", "a b")):
        encode(root / "videos" / f"{name}.mp4", "libx264", 8, 32, 32, 6, Thing("circle", "red", "large", "left"))
        (root / "videos" / f"{name}.txt").write_text(caption)
    shutil.copy(root / "videos" / "one.mp4", root / "videos" / "copy.mp4")
    (root / "videos" / "copy.txt").write_text("b")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.json").write_text(json.dumps(WORDS))
    (root / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    text = CLIPTextModel(CLIPTextConfig(**CLIP_L))
    parts = {NET: LatentUNet(SMALL_NET), AUTOENCODER: KLAutoencoder(SMALL_KL), TEXT: text}
    tensors = {}
    for prefix, part in parts.items():
        for name, value in part.state_dict().items():
            inside = name if prefix != TEXT or name.startswith("text_model.") else f"text_model.{name}"
            tensors[prefix + inside] = value.clone() + (0.02 * torch.randn_like(value) if prefix == NET else 0)
    save_file(tensors, root / "sd.safetensors")
    return root


@pytest.fixture
def small(monkeypatch):
    """The checkpoint's parts are built small, as the file has them; nothing else differs from the real ones."""
    monkeypatch.setattr(stable_diffusion.LatentUNet.__init__, "__defaults__", (SMALL_NET,))
    monkeypatch.setattr(KLAutoencoder.__init__, "__defaults__", (SMALL_KL,))

    def tokenizer(path, folder):  # the tiny vocabulary is not CLIP's, which is checked below
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

        made = CLIPTextModel(CLIPTextConfig(**CLIP_L, eos_token_id=3))
        state = weights.part(load_file(path), TEXT)
        bare = not any(name.startswith("text_model.") for name in made.state_dict())
        made.load_state_dict({k.removeprefix("text_model.") if bare else k: v for k, v in state.items()})
        return stable_diffusion.ClipText(made.eval(), CLIPTokenizerFast.from_pretrained(folder, pad_token="<|endoftext|>"))

    monkeypatch.setattr(features, "load_clip_text", tokenizer)


RECIPE = """
output = "out/{system}.safetensors"
system = "{system}"
image_from = "sd.safetensors"
tokenizer = "tokenizer"
seed = 1
ema = 0.5
warmup = 2
channels_last = false
samples_every = 4
[data]
folder = "{folder}"
rate = 8
{data}
[model]
frames = 3
{model}
[[phase]]
steps = 4
batch = 2
frames = 3
size = 32
lr = 3e-3
"""


def recipe(root, system="harivo", name="recipe", folder="videos", data="", model="mapping = 8\nframe_tokens = 2"):
    path = root / f"{name}.toml"
    path.write_text(RECIPE.format(system=system, folder=folder, data=data, model=model))
    return read_config(path)


def test_latents_and_captions_are_kept_by_what_they_are_made_from(root, small, tmp_path, monkeypatch):
    config = recipe(root)
    assert is_checkpoint(root / "sd.safetensors") and not is_checkpoint(root / "recipe.toml")
    folder = open_folder(config, root, quiet, any_caption=True)
    assert len(folder.videos) == 4 and len(folder.captions) == 4 and folder.captions[0] == ""
    lines = []
    made = with_latents(folder, root / "sd.safetensors", tmp_path, torch.device("cpu"), lines.append)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == len({item.kept for item in folder.videos}) < 4 and lines  # videos of one content share a file
    item = made.videos[0]
    autoencoder = load_autoencoder(root / "sd.safetensors")
    with torch.no_grad():
        pixels = item.read([1, 4]).movedim(-1, 1).float() / 127.5 - 1
        mean, deviation = autoencoder.encode(pixels)
    draws = torch.stack([item.read_latents([1, 4], np.random.default_rng(i)) for i in range(400)]).movedim(-1, 2)
    assert draws.shape == (400, 2, 4, 16, 16)
    torch.testing.assert_close(draws.mean(dim=0), mean, atol=5 * float(deviation.max()) / 20, rtol=1e-2)
    torch.testing.assert_close(draws.std(dim=0).mean(), deviation.mean(), rtol=0.02, atol=0)
    assert torch.equal(item.read_latents([1], np.random.default_rng(7)), item.read_latents([1], np.random.default_rng(7)))

    def never(*_):
        raise AssertionError("what is kept is not made again")

    monkeypatch.setattr(features, "load_autoencoder", never)
    again = with_latents(folder, root / "sd.safetensors", tmp_path, torch.device("cpu"), quiet)
    assert again == made and sorted(tmp_path.iterdir()) == kept
    table = caption_table(folder.captions, root / "sd.safetensors", root / "tokenizer", tmp_path / "text")
    assert table.table.shape == (4, 77, 768)
    monkeypatch.setattr(features, "load_clip_text", never)
    assert torch.equal(caption_table(folder.captions, root / "sd.safetensors", root, tmp_path / "text").table, table.table)
    other = load_file(root / "sd.safetensors")
    other[f"{AUTOENCODER}quant_conv.bias"] += 1
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(AssertionError, match="not made again"):  # another autoencoder's are other files
        with_latents(folder, tmp_path / "other.safetensors", tmp_path, torch.device("cpu"), quiet)


def test_a_clip_without_text_has_the_features_of_the_empty_caption():
    table = CaptionTable(torch.randn(3, 4, 5))
    tokens = torch.tensor([[1], [2], [1], [2]])
    assert torch.equal(context_of(table, tokens, 0.0, torch.Generator()), table.table[[1, 2, 1, 2]])
    assert torch.equal(context_of(table, tokens, 1.0, torch.Generator()), table.table[[0, 0, 0, 0]])


@pytest.mark.parametrize("system", ["harivo", "tune_a_video"])
def test_training_beside_a_checkpoint_resumes_to_the_same_bits(root, small, system):
    if system == "tune_a_video":
        (root / "one").mkdir(exist_ok=True)
        for ending in ("mp4", "txt"):
            shutil.copy(root / "videos" / f"one.{ending}", root / "one")
    given = dict(folder="videos", model="mapping = 8\nframe_tokens = 2\nconvolution = true")
    given = given if system == "harivo" else dict(folder="one", data="from_start = true", model="")
    config, made = recipe(root, system, system, **given), []
    before = load_file(root / "sd.safetensors")
    for stop in (None, 2):
        for path in (root / "out").glob(f"{system}*") if (root / "out").exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        train(config, root, stop, report=quiet)
        if stop:
            train(config, root, report=quiet)
        made.append(load_file(root / "out" / f"{system}.safetensors"))
    assert made[0].keys() == made[1].keys() and all(torch.equal(v, made[1][k]) for k, v in made[0].items())
    after = load_file(root / "sd.safetensors")
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    load = load_motion if system == "harivo" else load_tuned
    module, base, info = load(root / "out" / f"{system}.safetensors")
    assert torch.equal(base, fingerprint(load_net(root / "sd.safetensors"))) and info["base"] == "BaseModel"
    assert any(p.abs().max() > 0 for n, p in module.named_parameters() if n.endswith("to_out.weight"))
    grid = read_frames(root / "out" / f"{system}.samples" / "4.png")[0]
    assert grid.shape == (64, 96, 3) and grid.float().std() > 1


# ----------------------------------------------------------------------------------------------------------- what is wrong


def test_wrong_files_are_named(root, small, tmp_path):
    save_file({f"{NET}x": torch.zeros(1)}, tmp_path / "xl.safetensors")
    with pytest.raises(weights.WeightsError, match="xl.safetensors is no Stable Diffusion 1.x checkpoint"):
        load_net(tmp_path / "xl.safetensors")
    with pytest.raises(weights.WeightsError, match="autoencoder weights do not fit"):
        load_autoencoder(tmp_path / "xl.safetensors")
    with pytest.raises(weights.WeightsError, match="no vocab.json and no merges.txt; recipe.tokenizer names it"):
        load_clip_text(root / "sd.safetensors", tmp_path)
    with pytest.raises(weights.WeightsError, match="has 4 tokens; CLIP's tokenizer has 49408"):
        load_clip_text(root / "sd.safetensors", root / "tokenizer")
    config = recipe(root)
    text = (root / "recipe.toml").read_text()
    (root / "shapes.toml").write_text(text.replace('[data]\nfolder = "videos"\nrate = 8\n', ""))
    with pytest.raises(ConfigError, match="takes a folder of videos"):
        train(read_config(root / "shapes.toml"), root, report=quiet)
    assert config.tokenizer == "tokenizer"
