"""Writes random weights in the layout of a public model: ``layouts.py HOST_TREE KIND FILE``, run by the host's Python."""

import sys

sys.path.insert(0, sys.argv[1])
kind, path = sys.argv[2:]
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from comfy import ops  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def sd15():
    """Stable Diffusion 1.5's U-Net, full size: 859.5 M parameters."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4], num_heads=8, use_spatial_transformer=True, context_dim=768, legacy=False,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], use_linear_in_transformer=False,
        dtype=torch.float16, device="meta", operations=ops.disable_weight_init,
    )  # fmt: skip


def wan():
    """Wan 2.1's text-to-video transformer with two of its thirty layers, 256 wide."""
    from comfy.ldm.wan.model import WanModel

    return WanModel(
        model_type="t2v", in_dim=16, out_dim=16, dim=256, ffn_dim=512, freq_dim=256, text_dim=4096, num_heads=2,
        num_layers=2, dtype=torch.float16, device="meta", operations=ops.disable_weight_init,
    )  # fmt: skip


torch.manual_seed(0)
model = {"sd15": sd15, "wan": wan}[kind]()
tensors = {}
for name, value in model.state_dict().items():
    if value.ndim > 1:
        tensors[name] = (torch.randn(value.shape) * value[0].numel() ** -0.5).half()
    else:
        tensors[name] = torch.full(value.shape, float(name.endswith("weight"))).half()
save_file(tensors, path)
