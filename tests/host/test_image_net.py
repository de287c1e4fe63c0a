"""The core's image network gives what the host's own class gives, to the bit, from the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
print("equal")
"""


def test_the_core_s_network_is_the_host_s():
    tree = os.environ.get("VIDCORE_HOST_TREE")
    if not tree:
        pytest.skip("needs ComfyUI: run `python3 start.py test`")
    run = subprocess.run([sys.executable, "-c", CODE, tree, str(ROOT)], capture_output=True, text=True)
    assert run.stdout.strip().endswith("equal"), run.stderr[-2000:]
