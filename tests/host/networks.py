"""Gradients through the host's networks: ``networks.py HOST_TREE``, run by the host's Python; a line of JSON for each.

Each network is small, in float32, with random weights that are inference tensors, as the host's own are.
"""

import json
import sys
import types
from pathlib import Path

sys.path.insert(0, sys.argv[1])
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from comfy import ops  # noqa: E402

nodes = types.ModuleType("nodes_alone")  # without the pack's own entry, which wants a whole server
nodes.__path__ = [str(Path(__file__).resolve().parents[2] / "nodes")]
sys.modules["nodes_alone"] = nodes
from nodes_alone.checkpoint import checkpointed  # noqa: E402
from nodes_alone.gradient import Safeguards, gradients, plain  # noqa: E402

VIDEO, SIGMA = (1, 16, 3, 8, 8), torch.tensor([0.6])


def text(width, tokens=8):
    return torch.randn(1, tokens, width)


def wan(made):
    from comfy.ldm.wan.model import WanModel

    sizes = dict(model_type="t2v", in_dim=16, out_dim=16, dim=64, ffn_dim=128, freq_dim=32, text_dim=48, num_heads=2)
    return WanModel(**sizes, num_layers=2, **made), VIDEO, dict(timestep=SIGMA * 1000, context=text(48))


def hunyuan_video(made):
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    sizes = dict(
        in_channels=16, out_channels=16, vec_in_dim=24, context_in_dim=48, hidden_size=64, mlp_ratio=4.0, num_heads=2,
        depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12], theta=256, patch_size=[1, 2, 2], qkv_bias=True,
        guidance_embed=False, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None,
        meanflow_sum=False,
    )  # fmt: skip
    return HunyuanVideo(**sizes, **made), VIDEO, dict(timestep=SIGMA, context=text(48), y=torch.randn(1, 24))


def ltxv(made):
    from comfy.ldm.lightricks.model import LTXVModel

    sizes = dict(in_channels=16, cross_attention_dim=64, attention_head_dim=32, num_attention_heads=2, caption_channels=48)
    net = LTXVModel(**sizes, num_layers=2, **made)
    return net, VIDEO, dict(timestep=SIGMA, context=text(48), attention_mask=None)


def ltx2(made):
    from comfy.ldm.lightricks.av_model import LTXAVModel

    sizes = dict(
        in_channels=16, cross_attention_dim=64, audio_cross_attention_dim=32, attention_head_dim=32, num_layers=2,
        audio_attention_head_dim=16, num_attention_heads=2, audio_num_attention_heads=2, caption_channels=48,
        connector_num_attention_heads=2, connector_attention_head_dim=32, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16,
    )  # fmt: skip
    return LTXAVModel(**sizes, **made), [VIDEO, (1, 8, 5, 16)], dict(timestep=SIGMA, context=text(96))


def minimax_h3(made):
    from comfy.ldm.minimax.model import MiniMaxH3Model

    net = MiniMaxH3Model(
        hidden_size=64, num_layers=2, token_refiner_num_layers=1, num_attention_heads=2, attention_head_dim=32,
        ffn_hidden_size=128, latents_dim=16, text_dim=48, timestep_input_dim=32, time_embed_hidden_size=64,
        time_embed_dim=32, rope_inv_freq_len=4, **made,
    )  # fmt: skip
    return net, [VIDEO, (1, 32, 2, 8)], dict(timestep=SIGMA * 1000, context=text(64))


def cosmos_predict2(made):
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT

    net = MiniTrainDIT(
        max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
        model_channels=64, num_blocks=2, num_heads=2, crossattn_emb_channels=48, pos_emb_cls="rope3d", use_adaln_lora=True,
        adaln_lora_dim=16, **made,
    )  # fmt: skip
    return net, VIDEO, dict(timesteps=SIGMA, context=text(48))


def mochi(made):
    from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint

    net = AsymmDiTJoint(
        in_channels=16, hidden_size_x=64, hidden_size_y=32, depth=2, num_heads=2, mlp_ratio_x=192.0, mlp_ratio_y=192.0,
        use_t5=True, t5_feat_dim=48, t5_token_length=8, learn_sigma=False, qkv_bias=False, qk_norm=True, out_bias=True,
        attn_drop=0.0, posenc_preserve_area=True, timestep_scale=1000.0, **made,
    )  # fmt: skip
    mask = torch.ones(1, 8)
    return net, VIDEO, dict(timestep=SIGMA, context=text(48), attention_mask=mask, num_tokens=8)


def cogvideo(made):
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

    sizes = dict(num_attention_heads=2, attention_head_dim=32, time_embed_dim=64, text_embed_dim=48, num_layers=2)
    net = CogVideoXTransformer3DModel(**sizes, use_rotary_positional_embeddings=True, max_text_seq_length=8, **made)
    return net, VIDEO, dict(timestep=SIGMA * 1000, context=text(48))


def kandinsky5(made):
    from comfy.ldm.kandinsky5.model import Kandinsky5

    net = Kandinsky5(
        in_text_dim=48, in_text_dim2=24, time_dim=64, model_dim=64, ff_dim=128, visual_embed_dim=64, num_text_blocks=1,
        num_visual_blocks=2, axes_dims=(8, 12, 12), **made,
    )  # fmt: skip
    return net, VIDEO, dict(timestep=SIGMA, context=text(48), y=torch.randn(1, 24))


def qwen_image(made):
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    sizes = dict(num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=48)
    net = QwenImageTransformer2DModel(**sizes, axes_dims_rope=(8, 12, 12), **made)
    return net, (1, 16, 1, 8, 8), dict(timestep=SIGMA, context=text(48))


def flux(made):
    from comfy.ldm.flux.model import Flux

    sizes = dict(
        in_channels=16, out_channels=16, vec_in_dim=24, context_in_dim=48, hidden_size=64, mlp_ratio=4.0, num_heads=2,
        depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12], theta=10000, patch_size=2, qkv_bias=True, guidance_embed=False,
        txt_ids_dims=[],
    )  # fmt: skip
    return Flux(**sizes, **made), (1, 16, 8, 8), dict(timestep=SIGMA, context=text(48), y=torch.randn(1, 24))


def unet(made):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    net = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
        num_heads=2, use_spatial_transformer=True, context_dim=48, legacy=False, transformer_depth=[1, 1],
        transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1], use_linear_in_transformer=False, **made,
    )  # fmt: skip
    return net, (2, 4, 8, 8), dict(timesteps=SIGMA.expand(2) * 1000, context=text(48).expand(2, -1, -1))


NETWORKS = [wan, hunyuan_video, ltxv, ltx2, minimax_h3, cosmos_predict2, mochi, cogvideo, kandinsky5, qwen_image, flux, unet]


def measured(make) -> dict:
    """How far gradients lie apart, relative to the plain one's norm: the memory saver's from it, and its part along a random
    direction from finite differences.
    """
    torch.manual_seed(0)
    with torch.inference_mode():
        net, shapes, given = make(dict(dtype=torch.float32, device="cpu", operations=ops.disable_weight_init))
        for name, value in (*net.named_parameters(), *net.named_buffers()):
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape) * value[0].numel() ** -0.5)
            elif name.endswith("inv_freq"):
                value.copy_(torch.linspace(1, 0.1, len(value)))
            else:
                value.copy_(torch.full(value.shape, float(name.endswith("weight"))))
    shapes = shapes if isinstance(shapes, list) else [shapes]
    x, weight, way = ([torch.randn(shape) for shape in shapes] for _ in range(3))

    def score(x):
        made = net(x[0] if len(x) == 1 else x, **given, transformer_options={})
        made = [made] if torch.is_tensor(made) else made
        return sum((part.float() * w).sum() for part, w in zip(made, weight, strict=True))

    def go():
        leaves = [part.clone().requires_grad_() for part in x]
        return torch.cat([part.flatten() for part in torch.autograd.grad(score(leaves), leaves)])

    with gradients([net]):
        given = {k: plain(v) if torch.is_tensor(v) else v for k, v in given.items()}
        found = Safeguards()(go)
        with checkpointed(net):
            saved = Safeguards()(go)
        step = 3e-3
        with torch.no_grad():
            ends = [score([part + sign * step * w for part, w in zip(x, way)]) for sign in (1, -1)]
    along = torch.dot(found, torch.cat([part.flatten() for part in way]))
    difference = (ends[0] - ends[1]) / (2 * step)
    return {
        "saver": float((saved - found).norm() / found.norm()),
        "difference": float((along - difference).abs() / found.norm()),
    }


for make in NETWORKS:
    print(json.dumps({"network": make.__name__, **measured(make)}), flush=True)
