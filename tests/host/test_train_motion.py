"""What a recipe trains beside the shipped image model works in the host, and gives the clips that the core gives."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.clips import encode
from vidcore.data.shapes import Thing
from vidcore.guide.cfg import with_cfg
from vidcore.sample import ddim_step, sample_clip
from vidcore.systems.beside_image import InflatedImage, MovingImage
from vidcore.systems.harivo.checkpoint import load_motion
from vidcore.systems.image import load_image
from vidcore.systems.tune_a_video import load_tuned
from vidcore.text import Vocabulary
from vidcore.train.config import read_config
from vidcore.train.loop import train

from .prompts import keep_latent, node, sample

IMAGE = Path(__file__).resolve().parents[2] / "models" / "shapes-image.safetensors"
TEXT = "a large red circle moves left over a black background"
RECIPE = """
output = "made.safetensors"
system = "{system}"
image_from = "{image}"
seed = 1
ema = 0.5
warmup = 2
channels_last = false
[model]
frames = 3
{more}
[[phase]]
steps = 4
batch = {batch}
frames = 3
size = 32
lr = 3e-3
"""
LOADERS = {
    "harivo": ("LoadMotionModule", "motion_name", "video_motion", lambda net, path: MovingImage(net, load_motion(path)[0])),
    "tune_a_video": (
        "LoadTunedVideo", "tuned_name", "tuned_video", lambda net, path: InflatedImage(net, load_tuned(path)[0])
    ),
}  # fmt: skip


@pytest.mark.parametrize("system", LOADERS)
def test_the_host_s_clip_is_the_core_s(system, tmp_path, server, latents):
    more, batch = "frame_tokens = 2\nmapping = 8", 2
    if system == "tune_a_video":
        (tmp_path / "clip").mkdir()
        encode(tmp_path / "clip" / "a.mp4", "libx264", 8, 32, 32, 3, Thing("circle", "red", "large", "left"))
        (tmp_path / "clip" / "a.txt").write_text(TEXT, encoding="utf-8")
        more, batch = 'order = true\n[data]\nfolder = "clip"\nfrom_start = true', 1
    (tmp_path / "r.toml").write_text(RECIPE.format(system=system, image=IMAGE, more=more, batch=batch), encoding="utf-8")
    train(read_config(tmp_path / "r.toml"), tmp_path, report=lambda _: None)

    loader, name, kind, build = LOADERS[system]
    net, text = load_image(IMAGE)
    beside, words = build(net, tmp_path / "made.safetensors").eval(), text.config
    with torch.no_grad():
        context = text(torch.tensor([Vocabulary(words.words, words.length).encode(TEXT)]))
        guided = with_cfg(beside, 2.0)

        def frames(z, t, context):  # T C H W, as the host has them
            return guided(z.movedim(0, 1)[None], t[:1], context)[0].movedim(1, 0)

        expected = sample_clip(frames, net.schedule, (3, 3, 32, 32), 3, ddim_step, 1, context=context)

    folder = server.base / "models" / kind
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "from_recipe.safetensors"
    shutil.copy(tmp_path / "made.safetensors", file)
    server.get(f"/object_info/{loader}")
    try:
        nodes = {
            "1": node("LoadVideoModel", model_name="shapes-image.safetensors"),
            "2": node("CLIPTextEncode", clip=["1", 1], text=TEXT),
            "3": node("CLIPTextEncode", clip=["1", 1], text=""),
            "4": node("EmptyImage", width=32, height=32, batch_size=3, color=0),
            "7": node(loader, model=["1", 0], **{name: file.name}),
            "5": node("VAEEncode", pixels=["4", 0], vae=["1", 2]),
            "6": sample(model=("7", 0), latent=("5", 0), steps=3, guidance_scale=2.0),
            "8": keep_latent("6"),
        }
        found = latents(nodes)["8"]
    finally:
        file.unlink()
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
    assert (found[0] - found[2]).abs().max() > 0.01
