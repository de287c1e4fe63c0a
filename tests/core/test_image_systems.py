"""Image models without the host, and what trains beside one: identities, gradients, recipes from nothing to a file."""

import pytest
import torch

from tests.clips import encode
from vidcore import weights
from vidcore.codec import content_motion
from vidcore.codec.content_motion import ContentMotionCodec, ContentMotionConfig
from vidcore.data.shapes import VOCABULARY, Thing
from vidcore.layers.attention import attention
from vidcore.systems import harivo, image, tune_a_video
from vidcore.systems.beside_image import InflatedImage, MovingImage, fingerprint, motion_config, tune_config
from vidcore.systems.harivo import MotionModule
from vidcore.systems.harivo.checkpoint import load_motion
from vidcore.systems.image import STABLE_DIFFUSION, ImageConfig, ImageUNet, PixelUNet, load_image
from vidcore.systems.tune_a_video import TunedLayers, load_tuned
from vidcore.systems.tune_a_video.config import stable_diffusion_blocks
from vidcore.text import TextConfig, TextEncoder
from vidcore.train.config import ConfigError, read_config
from vidcore.train.loop import train

SMALL = ImageConfig(channels=32, multipliers=(1, 2), context=16)


def small_net(seed=0):
    torch.manual_seed(seed)
    net = PixelUNet(SMALL)
    return net.eval()


def inputs(clips=2, frames=3):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(clips, 3, frames, 16, 16, generator=generator)
    return z, torch.tensor([0.3, 0.8])[:clips], torch.randn(clips, 5, 16, generator=generator)


def frame_by_frame(net, z, t, context):
    return torch.stack([net(z[:, :, i], t, context) for i in range(z.shape[2])], dim=2)


# ------------------------------------------------------------------------------------------------------------ networks


def test_stable_diffusion_s_size_and_blocks():
    with torch.device("meta"):
        net = ImageUNet(STABLE_DIFFUSION)
    assert sum(p.numel() for p in net.parameters()) == 859_520_964
    found = [(name, part.attn1.to_q.in_features, part.n_heads) for name, part in net.transformers()]
    assert found == [(b.name, b.width, b.heads) for b in stable_diffusion_blocks()]


def test_a_fresh_network_predicts_nothing_and_every_parameter_then_learns():
    net = small_net().init_weights()
    z, t, context = inputs()
    assert not net(z[:, :, 0], t, context).any()
    torch.manual_seed(2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    net(z[:, :, 0], t, context).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_sizes_that_do_not_halve_evenly_come_back():
    net = ImageUNet(SMALL.unet)
    assert net(torch.randn(1, 12, 7, 9), torch.tensor([500.0]), torch.randn(1, 5, 16)).shape == (1, 12, 7, 9)


def test_an_untrained_motion_module_without_tokens_is_the_image_model_frame_by_frame():
    z, t, context = inputs()
    expected = frame_by_frame(small_net(), z, t, context)
    net = small_net()
    moving = MovingImage(net, MotionModule(motion_config(net, 3, frame_tokens=0, mapping=8)).init_weights(0))
    torch.testing.assert_close(moving(z, t, context), expected, atol=1e-5, rtol=1e-5)
    torch.manual_seed(3)
    for parameter in moving.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert (moving(z, t, context) - expected).abs().max() > 1e-2
    moving.strength = 0.0
    torch.testing.assert_close(moving(z, t, context), expected, atol=1e-5, rtol=1e-5)


def test_an_untrained_inflation_is_sparse_causal_attention_and_of_one_frame_the_image_model():
    z, t, context = inputs()
    plain, net = small_net(), small_net()
    inflated = InflatedImage(net, TunedLayers(tune_config(net, order=True)).init_weights(0))
    torch.testing.assert_close(inflated(z[:, :, :1], t, context), frame_by_frame(plain, z[:, :, :1], t, context))

    def concatenated(q, k, v, heads):  # as the paper writes it: keys of the first frame and the one before
        parts = []
        for i in range(len(q)):
            first, clip_first = max(i - 1, i // 3 * 3), i // 3 * 3
            both = [torch.cat([x[clip_first], x[first]])[None] for x in (k, v)]
            parts.append(attention(q[i : i + 1], *both, heads))
        return torch.cat(parts)

    for _, part in plain.transformers():
        part.attn1.attend = concatenated
    frames, many = z.movedim(2, 1).flatten(0, 1), context.repeat_interleave(3, 0)
    expected = plain(frames, t.repeat_interleave(3), many).unflatten(0, (2, 3)).movedim(1, 2)
    torch.testing.assert_close(inflated(z, t, context), expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_layers_and_nothing_of_the_image_model():
    z, t, context = inputs()
    for kind in ("harivo", "tune"):
        net = small_net()
        if kind == "harivo":
            beside = MovingImage(net, MotionModule(motion_config(net, 3, frame_tokens=2, mapping=8)).init_weights(0))
        else:
            beside = InflatedImage(net, TunedLayers(tune_config(net, True)).init_weights(0))
        torch.manual_seed(4)
        for parameter in beside.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        assert not any(key.startswith("_beside") or "input_blocks" in key for key in beside.state_dict())
        beside(z, t, context).square().sum().backward()
        assert not [name for name, p in beside.named_parameters() if p.grad is None or not p.grad.any()]
        assert all(p.grad is None for p in net.parameters())


# ------------------------------------------------------------------------------------------------------------- recipes

RECIPE = """
output = "out/made.safetensors"
system = "{system}"
{files}
seed = 1
ema = 0.9
warmup = 2
channels_last = false
samples_every = 4
[model]
{model}
[[phase]]
steps = 4
batch = 2
frames = {frames}
size = 32
lr = 3e-3
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with an image model of random weights, as an image recipe leaves one."""
    folder = tmp_path_factory.mktemp("base")
    words, net = TextConfig(VOCABULARY, 24, 16, 1, 2), small_net()
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"text.{k}": v for k, v in TextEncoder(words).state_dict().items()}
    weights.save(folder / "image.safetensors", tensors, image.to_info(SMALL, words))
    config = ContentMotionConfig(frames=4, size=(32, 32), width=24, latent=4, depth=1, heads=2, head_width=8, patch=4)
    codec = {f"codec.{name}": value for name, value in ContentMotionCodec(config).state_dict().items()}
    weights.save(folder / "codec.safetensors", codec, content_motion.to_info(config))
    return folder


def trained(tmp_path, base, stops=((4,), (1, 4)), **what):
    """The output of a recipe run in one go and in parts, which must be equal; root and info of the first."""
    made = []
    for number, parts in enumerate(stops):
        root = tmp_path / str(number)
        root.mkdir(parents=True)
        for file in base.iterdir():
            (root / file.name).symlink_to(file)
        (root / "r.toml").write_text(RECIPE.format(**what), encoding="utf-8")
        for stop in parts:
            train(read_config(root / "r.toml"), root, stop, report=lambda _: None)
        assert (root / "out" / "made.samples" / "4.png").is_file()
        made.append(weights.load(root / "out" / "made.safetensors"))
    for tensors, _ in made[1:]:
        assert tensors.keys() == made[0][0].keys() and all(torch.equal(tensors[k], made[0][0][k]) for k in tensors)
    return tmp_path / "0" / "out" / "made.safetensors", made[0][1]


def rounded(path):
    """The file with all its numbers in float16, as people make files smaller."""
    tensors, info = weights.load(path)
    half = path.with_name("half.safetensors")
    weights.save(half, {name: value.half() for name, value in tensors.items()}, info)
    return half


SIZES = "channels = 32\nmultipliers = [1, 2]\ncontext = 16"


def test_an_image_recipe_makes_an_image_model(tmp_path, base):
    path, info = trained(
        tmp_path, base, system="image", files='text_from = "image.safetensors"', model=SIZES, frames=1
    )  # fmt: skip
    net, text = load_image(path)
    assert info["system"] == "image" and info["steps"] == 4 and text.config.words == VOCABULARY
    assert net.out[-1].weight.any()  # it has left its zero start
    before = load_image(base / "image.safetensors")[1].state_dict()
    assert all(torch.equal(value, before[key]) for key, value in text.state_dict().items())


def test_a_content_recipe_goes_on_from_an_image_model_and_leaves_the_autoencoder_out(tmp_path, base):
    files = 'text_from = "image.safetensors"\nstart_from = "image.safetensors"\ncodec_from = "codec.safetensors"'
    path, info = trained(tmp_path, base, system="content", files=files, model=SIZES, frames=4)
    tensors, old = weights.load(path)[0], weights.load(base / "image.safetensors")[0]
    assert info["system"] == "image" and tensors.keys() == old.keys()
    changed = [key for key in tensors if not torch.equal(tensors[key], old[key])]
    assert changed and all(key.startswith("net.") for key in changed)


def test_a_harivo_recipe_trains_the_module_alone(tmp_path, base):
    model = "frames = 3\nframe_tokens = 2\nmapping = 8\ncontrast = 0.1\nattention_loss = 0.1\nqueue = 5"
    path, info = trained(
        tmp_path, base, system="harivo", files='image_from = "image.safetensors"', model=model, frames=3
    )  # fmt: skip
    module, mark, _ = load_motion(path)
    net, _ = load_image(base / "image.safetensors")
    assert (
        info["steps"] == 4
        and module.config == motion_config(net, 3, frame_tokens=2, mapping=8)
        and torch.equal(mark, fingerprint(net))
    )
    assert all(layer.attention.to_out.weight.any() for layer in module.temporal) and module.mapping.out.weight.any()
    assert not [key for key in weights.load(path)[0] if not key.startswith("module.") and key != "base"]
    state = weights.load(path.with_suffix(".state"))[0]
    assert (state["module.losses.queue.clips"] == 0).all() and int(state["module.losses.queue.next"]) == 8 % 5
    assert not [key for key in state if "input_blocks" in key or "_text" in key]
    half = MovingImage(net, load_motion(rounded(path))[0]).eval()
    z, t, context = torch.randn(1, 3, 3, 32, 32), torch.tensor([0.5]), torch.randn(1, 5, 16)
    with torch.no_grad():
        whole = MovingImage(load_image(base / "image.safetensors")[0], module).eval()(z, t, context)
        torch.testing.assert_close(half(z, t, context), whole, atol=0.01, rtol=0.01)


def test_a_tuning_recipe_learns_one_clip(tmp_path, base):
    def folder(root, videos):
        (root / "clips").mkdir(parents=True)
        for name in videos:
            encode(root / "clips" / f"{name}.mp4", "libx264", 8, 32, 32, 6, Thing("circle", "red", "large", "left"))
            (root / "clips" / f"{name}.txt").write_text("a large red circle moves left", encoding="utf-8")
        return root

    data = '[data]\nfolder = "clips"\nfrom_start = true'
    what = dict(system="tune_a_video", files='image_from = "image.safetensors"', model="frames = 4\norder = true\n" + data)
    files = folder(tmp_path / "files", ["a"])
    (files / "image.safetensors").symlink_to(base / "image.safetensors")
    text = RECIPE.format(frames=4, **what).replace("batch = 2", "batch = 1")
    for number in "01":
        root = tmp_path / number
        root.mkdir()
        for file in files.iterdir():
            (root / file.name).symlink_to(file)
        (root / "r.toml").write_text(text, encoding="utf-8")
        for stop in (4,) if number == "0" else (2, 4):
            train(read_config(root / "r.toml"), root, stop, report=lambda _: None)
    assert (tmp_path / "0" / "out" / "made.samples" / "4.png").is_file()
    one, two = (load_tuned(tmp_path / n / "out" / "made.safetensors") for n in "01")
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True))
    assert torch.equal(one[1], fingerprint(load_image(base / "image.safetensors")[0]))
    halved = load_tuned(rounded(tmp_path / "0" / "out" / "made.safetensors"))[0]
    assert all(h.dtype == w.dtype for h, w in zip(halved.parameters(), one[0].parameters(), strict=True))
    assert one[0].config.order and all(block.self_query.any() and block.text_query.any() for block in one[0].blocks)

    two_clips = folder(tmp_path / "two", ["a", "b"])
    (two_clips / "image.safetensors").symlink_to(base / "image.safetensors")
    (two_clips / "r.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="learns one clip; .* has 2 videos"):
        train(read_config(two_clips / "r.toml"), two_clips, report=lambda _: None)


def test_recipes_without_what_they_need_are_refused(tmp_path):
    wanted = {"image": "text_from", "harivo": "image_from", "tune_a_video": "image_from"}
    for system, entry in wanted.items():
        model = SIZES if system == "image" else "frames = 4"
        (tmp_path / "r.toml").write_text(RECIPE.format(system=system, files="", model=model, frames=1), encoding="utf-8")
        with pytest.raises(ConfigError, match=f"'{system}' needs recipe.{entry}"):
            read_config(tmp_path / "r.toml")


def test_captions_with_words_that_a_frozen_text_encoder_does_not_know_are_left_out(tmp_path, base):
    root = tmp_path
    (root / "clips").mkdir()
    for name, text in (("good", "a red circle moves left"), ("odd", "a red xylophone")):
        encode(root / "clips" / f"{name}.mp4", "libx264", 8, 32, 32, 6, Thing("circle", "red", "large", "left"))
        (root / "clips" / f"{name}.txt").write_text(text, encoding="utf-8")
    (root / "image.safetensors").symlink_to(base / "image.safetensors")
    model = 'frames = 4\nmapping = 8\n[data]\nfolder = "clips"'
    text = RECIPE.format(system="harivo", files='image_from = "image.safetensors"', model=model, frames=4)
    (root / "r.toml").write_text(text, encoding="utf-8")
    said = []
    train(read_config(root / "r.toml"), root, 1, report=said.append)
    assert any("does not know these words of odd.mp4: xylophone" in line for line in said)


def test_systems_have_the_names_of_their_files():
    from vidcore.train.systems import SYSTEMS

    assert {image.SYSTEM, harivo.checkpoint.SYSTEM, tune_a_video.SYSTEM} <= set(SYSTEMS)
