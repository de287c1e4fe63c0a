"""The script that trains the shipped image model, for a few steps, against the real host's U-Net class."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidcore import weights
from vidcore.codec import content_motion
from vidcore.codec.content_motion import ContentMotionCodec, ContentMotionConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
output = "models/out.safetensors"
system = "image"
text_from = "models/shapes-vdm.safetensors"
seed = 1
ema = 0.9
warmup = 2
bf16 = false
[model]
channels = 32
multipliers = [1, 2]
[[phase]]
steps = 2
batch = 2
frames = 1
size = 16
[[phase]]
steps = {last}
batch = 2
frames = 1
size = 32
lr_end = 1e-4
"""


def run_script(folder, tree, stop):
    command = [sys.executable, ROOT / "models" / "train_shapes_image.py", tree, "recipe.toml", "--stop-after", str(stop)]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)


def test_the_recipe_runs_resumes_and_gives_a_model_file(tmp_path):
    tree = os.environ.get("VIDCORE_HOST_TREE")
    if not tree:
        pytest.skip("needs ComfyUI: run `python3 start.py test`")
    made = {}
    for name, stops in (("whole", (4,)), ("halves", (2, 4))):
        folder = tmp_path / name
        (folder / "models").mkdir(parents=True)
        os.link(ROOT / "models" / "shapes-vdm.safetensors", folder / "models" / "shapes-vdm.safetensors")
        for stop in stops:
            (folder / "recipe.toml").write_text(RECIPE.format(last=2), encoding="utf-8")
            run_script(folder, tree, stop)
        made[name] = weights.load(folder / "models" / "out.safetensors")
    (whole, info), (halves, _) = made["whole"], made["halves"]
    assert info["system"] == "image" and info["steps"] == 4
    assert all(torch.equal(whole[k], halves[k]) for k in whole) and whole.keys() == halves.keys()
    assert whole["net.out.2.weight"].any()  # the output has left its zero start

    # CMD's content model goes on from there, on content frames of clips.
    config = ContentMotionConfig(frames=4, size=(32, 32), width=24, latent=4, depth=1, heads=2, head_width=8, patch=4)
    codec = {f"codec.{name}": value for name, value in ContentMotionCodec(config).state_dict().items()}
    weights.save(folder / "models" / "codec.safetensors", codec, content_motion.to_info(config))
    recipe = RECIPE.format(last=2).replace("out.safetensors", "content.safetensors").replace('"image"', '"content"')
    more = 'start_from = "models/out.safetensors"\ncodec_from = "models/codec.safetensors"\nseed = 1'
    (folder / "recipe.toml").write_text(
        recipe.replace("seed = 1", more).replace("frames = 1", "frames = 4"), encoding="utf-8"
    )
    run_script(folder, tree, 4)
    content, info = weights.load(folder / "models" / "content.safetensors")
    assert info["system"] == "image" and content.keys() == halves.keys()
    changed = [key for key in content if not torch.equal(content[key], halves[key])]
    assert changed and all(key.startswith("net.") for key in changed)
