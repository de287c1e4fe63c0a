"""The core's image network gives what the host's own class gives, to the bit, from the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .random_weights import weights

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
tree, root = sys.argv[1:]
del sys.argv[1:]
sys.path[:0] = [tree, root]
from comfy.cli_args import args
args.cpu = True
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from vidcore.systems.image import ImageConfig, ImageUNet, UNetConfig, unet_arguments
import comfy.ops

stable = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[2] * 4, num_heads=8,
    channel_mult=[1, 2, 4, 4], transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1,
    transformer_depth_output=[1] * 9 + [0] * 3, use_spatial_transformer=True, context_dim=24, legacy=False,
)
for arguments, config in (
    (unet_arguments(ImageConfig()), ImageConfig().unet), (stable, UNetConfig(channels=32, context=24))
):
    host, ours = UNetModel(**arguments, operations=comfy.ops.disable_weight_init).eval(), ImageUNet(config).eval()
    torch.manual_seed(0)
    for parameter in host.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    ours.load_state_dict(host.state_dict(), strict=True)
    x, t = torch.randn(3, config.in_channels, 16, 24), torch.tensor([1.5, 400.0, 999.0])
    context = torch.randn(3, 7, config.context)
    with torch.no_grad():
        one, two = host(x, t, context), ours(x, t, context)
    assert one.std() > 1e-3
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
from comfy.ldm.models.autoencoder import AutoencoderKL
from vidcore.codec.kl import KLAutoencoder, KLConfig

sizes = dict(
    double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 2, 4, 4], num_res_blocks=2,
    attn_resolutions=[], dropout=0.0,
)
host, ours = AutoencoderKL(ddconfig=sizes, embed_dim=4).eval(), KLAutoencoder(KLConfig(channels=32)).eval()
for parameter in host.parameters():
    torch.nn.init.normal_(parameter, std=0.05)
ours.load_state_dict(host.state_dict(), strict=True)
x, z = torch.rand(2, 3, 32, 48) * 2 - 1, torch.randn(2, 4, 4, 6)
with torch.no_grad():
    mean, log_variance = host.quant_conv(host.encoder(x)).chunk(2, dim=1)
    one, two = ours.encode(x)
    torch.testing.assert_close(one / 0.18215, mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(two / 0.18215, torch.exp(0.5 * log_variance), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.decode(0.18215 * z), host.decoder(host.post_quant_conv(z)), atol=1e-5, rtol=1e-4)
assert mean.std() > 1e-3
print("equal")
"""
CHECKPOINT = """
import sys
from pathlib import Path
tree, root, path = sys.argv[1:]
del sys.argv[1:]
sys.path[:0] = [tree, root]
from comfy.cli_args import args
args.cpu = True
import torch
import comfy.sd
from vidcore.systems.image.stable_diffusion import is_checkpoint, load_autoencoder, load_clip_text, load_net

assert is_checkpoint(path)
text = "a (red) circle, moving left over a dark blue background " * 6
clip = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=True, output_model=False)[1]
clip.cond_stage_model.float()
host = clip.encode_from_tokens(clip.tokenize("a red circle, moving left"))
ours = load_clip_text(path, Path(tree) / "comfy" / "sd1_tokenizer")(["a red circle, moving left", text])
assert ours.shape == (2, 77, 768) and ours.std() > 0.1
torch.testing.assert_close(ours[:1], host.float().cpu(), atol=2e-2, rtol=2e-2)
with torch.no_grad():
    mean, deviation = load_autoencoder(path).encode(torch.rand(1, 3, 64, 64))
    assert mean.shape == (1, 4, 8, 8) and torch.isfinite(mean).all()
    made = load_net(path)(mean, torch.tensor([0.5]), ours[:1])
assert made.shape == mean.shape and torch.isfinite(made).all()
print("equal")
"""


def run(code: str, *arguments) -> None:
    tree = os.environ.get("VIDCORE_HOST_TREE")
    if not tree:
        pytest.skip("needs ComfyUI: run `python3 start.py test`")
    command = [sys.executable, "-c", code, tree, str(ROOT), *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.stdout.strip().endswith("equal"), answer.stderr[-2000:]


def test_the_core_s_networks_are_the_host_s():
    run(CODE)


def test_a_whole_checkpoint_loads_without_the_host_and_reads_texts_as_the_host_does(server):
    with weights(server, "sd15_checkpoint", "checkpoints", "CheckpointLoaderSimple") as name:
        run(CHECKPOINT, server.base / "models" / "checkpoints" / name)
