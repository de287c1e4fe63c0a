"""The script that trains the shipped motion module, for a few steps; and its clips in the host are those of the script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vidcore import weights
from vidcore.systems.harivo.checkpoint import load_motion

from .prompts import keep_latent, node, sample

ROOT = Path(__file__).resolve().parents[2]
TEXT = "a large red circle moves left over a black background"
RECIPE = """
output = "models/motion.safetensors"
system = "harivo"
text_from = "models/shapes-image.safetensors"
seed = 1
ema = 0.5
warmup = 2
channels_last = false
[model]
frames = 3
frame_tokens = 2
mapping = 8
contrast = 0.1
attention_loss = 0.1
queue = 5
[[phase]]
steps = 4
batch = 2
frames = 3
size = 32
lr = 3e-3
"""
CLIP = """
import sys
sys.path.insert(0, sys.argv[2])
tree, file = sys.argv[1], sys.argv[3]
del sys.argv[1:]
from pathlib import Path
import torch
from safetensors.torch import save_file
from train_shapes_harivo import Base, Sizes
from vidcore import weights
from vidcore.guide.cfg import with_cfg
from vidcore.sample import ddim_step, sample_clip
from vidcore.systems.harivo.checkpoint import load_motion
from vidcore.text import Vocabulary
base, module = Base(Path(tree), Path("models/shapes-image.safetensors")), load_motion("models/motion.safetensors")[0]
weights.load_into(base.wire(Sizes(3, 2, 8), 0), module.state_dict(), "motion")
words = base.text.config
with torch.no_grad():
    context = base.text(torch.tensor([Vocabulary(words.words, words.length).encode("%s")]))
    guided = with_cfg(base.denoise, 2.0)

    def frames(z, t, context):  # T C H W, as the host has them
        return guided(z.movedim(0, 1)[None], t[:1], context)[0].movedim(1, 0)

    made = sample_clip(frames, base.config.schedule, (3, 3, 32, 32), 3, ddim_step, 1, context=context)
    save_file({"clip": made.contiguous()}, file)
"""


def run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command], cwd=folder, check=True, env=environment, capture_output=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders with a module trained in one go and in two, and the host's tree."""
    tree = os.environ.get("VIDCORE_HOST_TREE")
    if not tree:
        pytest.skip("needs ComfyUI: run `python3 start.py test`")
    made = []
    for stops in ((4,), (1, 4)):
        folder = tmp_path_factory.mktemp("motion")
        (folder / "models").mkdir(parents=True)
        os.link(ROOT / "models" / "shapes-image.safetensors", folder / "models" / "shapes-image.safetensors")
        (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
        for stop in stops:
            run(folder, ROOT / "models" / "train_shapes_harivo.py", tree, "recipe.toml", "--stop-after", str(stop))
        made.append(folder)
    return (*made, tree)


def test_the_recipe_runs_resumes_and_gives_a_module(trained):
    whole, halves, _ = trained
    one, two = (weights.load(folder / "models" / "motion.safetensors") for folder in (whole, halves))
    assert one[0].keys() == two[0].keys() and all(torch.equal(one[0][key], two[0][key]) for key in one[0])
    module, _, info = load_motion(whole / "models" / "motion.safetensors")
    assert info["steps"] == 4 and module.config.channels == 12 and len(module.config.blocks) == len(module.temporal)
    assert all(layer.attention.to_out.weight.any() for layer in module.temporal) and module.mapping.out.weight.any()
    state = load_file(whole / "models" / "motion.whole.state")
    assert (state["module.losses.queue.clips"] == 0).all() and int(state["module.losses.queue.next"]) == 8 % 5


def test_the_host_s_clip_is_the_script_s(trained, server, latents):
    whole, _, tree = trained
    run(whole, "-c", CLIP % TEXT, tree, ROOT / "models", "clip.safetensors")
    expected = load_file(whole / "clip.safetensors")["clip"]
    folder = server.base / "models" / "video_motion"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "from_script.safetensors"
    file.write_bytes((whole / "models" / "motion.safetensors").read_bytes())
    server.get("/object_info/LoadMotionModule")
    try:
        nodes = {
            "1": node("LoadVideoModel", model_name="shapes-image.safetensors"),
            "2": node("CLIPTextEncode", clip=["1", 1], text=TEXT),
            "3": node("CLIPTextEncode", clip=["1", 1], text=""),
            "4": node("EmptyImage", width=32, height=32, batch_size=3, color=0),
            "7": node("LoadMotionModule", model=["1", 0], motion_name=file.name),
            "5": node("VAEEncode", pixels=["4", 0], vae=["1", 2]),
            "6": sample(model=("7", 0), latent=("5", 0), steps=3, guidance_scale=2.0),
            "8": keep_latent("6"),
        }
        found = latents(nodes)["8"]
    finally:
        file.unlink()
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
    assert (found[0] - found[2]).abs().max() > 0.01
