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

import comfy.model_prefetch  # noqa: E402
import comfy_kitchen  # noqa: E402
import torch  # noqa: E402
from comfy import ops  # noqa: E402
from comfy.ldm.modules import attention  # noqa: E402

nodes = types.ModuleType("nodes_alone")  # without the pack's own entry, which wants a whole server
nodes.__path__ = [str(Path(__file__).resolve().parents[2] / "nodes")]
sys.modules["nodes_alone"] = nodes
from nodes_alone.checkpoint import checkpointed  # noqa: E402
from nodes_alone.gradient import Safeguards, gradients, plain  # noqa: E402

VIDEO, SIGMA = (1, 16, 3, 8, 8), torch.tensor([0.6])


def text(width, tokens=8):
    return torch.randn(1, tokens, width)


WAN = dict(in_dim=16, out_dim=16, dim=64, ffn_dim=128, freq_dim=32, text_dim=48, num_heads=2, num_layers=2)


def wan_given(**more):
    return dict(timestep=SIGMA * 1000, context=text(48), **more)


def wan(made):
    from comfy.ldm.wan.model import WanModel

    return WanModel(model_type="t2v", **WAN, **made), VIDEO, wan_given()


def wan_from_image(made):
    from comfy.ldm.wan.model import WanModel

    return WanModel(model_type="i2v", **WAN, **made), VIDEO, wan_given(clip_fea=torch.randn(1, 5, 1280))


def wan_vace(made):
    from comfy.ldm.wan.model import VaceWanModel

    control = torch.randn(1, 1, 96, 3, 8, 8)
    net = VaceWanModel(vace_layers=1, vace_in_dim=96, **WAN, **made)
    return net, VIDEO, wan_given(vace_context=control, vace_strength=[1.0])


def wan_camera(made):
    from comfy.ldm.wan.model import CameraWanModel

    return CameraWanModel(**WAN, **made), VIDEO, wan_given(camera_conditions=torch.randn(1, 24, 3, 64, 64))


def wan_animate(made):
    from comfy.ldm.wan.model_animate import AnimateWanModel

    return AnimateWanModel(**WAN, **made), VIDEO, wan_given(pose_latents=torch.randn(1, 16, 3, 8, 8))


HUNYUAN = dict(
    in_channels=16, out_channels=16, vec_in_dim=24, context_in_dim=48, hidden_size=64, mlp_ratio=4.0, num_heads=2, depth=2,
    depth_single_blocks=2, axes_dim=[8, 12, 12], theta=256, patch_size=[1, 2, 2], qkv_bias=True, guidance_embed=False,
    byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False,
)  # fmt: skip


def hunyuan_video(made):
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    return HunyuanVideo(**HUNYUAN, **made), VIDEO, dict(timestep=SIGMA, context=text(48), y=torch.randn(1, 24))


def hunyuan_video_15(made):
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    own = dict(vec_in_dim=None, depth_single_blocks=0, patch_size=[1, 1, 1], byt5=True, use_cond_type_embedding=True)
    net = HunyuanVideo(**HUNYUAN | own | {"vision_in_dim": 40}, **made)
    given = dict(timestep=SIGMA, context=text(48), txt_byt5=text(1472), clip_fea=torch.randn(1, 5, 40))
    return net, VIDEO, given


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


def cosmos(made):
    from comfy.ldm.cosmos.model import GeneralDIT

    net = GeneralDIT(
        max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
        model_channels=64, num_blocks=2, num_heads=2, crossattn_emb_channels=48, pos_emb_cls="rope3d",
        pos_emb_learnable=True, block_x_format="THWBD", affline_emb_norm=True, use_adaln_lora=True, adaln_lora_dim=16,
        extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable", **made,
    )  # fmt: skip
    return net, VIDEO, dict(timesteps=SIGMA, context=text(48), fps=torch.tensor([24.0]))


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


def stable_diffusion_3(made):
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    net = OpenAISignatureMMDITWrapper(
        input_size=None, pos_embed_max_size=16, patch_size=2, in_channels=16, depth=2, num_patches=256, adm_in_channels=24,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}}, **made,
    )  # fmt: skip
    return net, (1, 16, 8, 8), dict(timesteps=SIGMA * 1000, context=text(48), y=torch.randn(1, 24))


def chroma(made):
    from comfy.ldm.chroma.model import Chroma

    net = Chroma(
        in_channels=64, out_channels=64, context_in_dim=48, hidden_size=64, mlp_ratio=4.0, num_heads=2, depth=2,
        depth_single_blocks=2, axes_dim=[8, 12, 12], theta=10000, patch_size=2, qkv_bias=True, in_dim=64, out_dim=64,
        hidden_dim=64, n_layers=2, txt_ids_dims=[], vec_in_dim=None, **made,
    )  # fmt: skip
    return net, (1, 16, 8, 8), dict(timestep=SIGMA, context=text(48), guidance=torch.zeros(1))


def z_image(made):
    from comfy.ldm.lumina.model import NextDiT

    net = NextDiT(
        patch_size=2, in_channels=16, dim=256, n_layers=2, n_refiner_layers=1, n_heads=8, n_kv_heads=8, multiple_of=32,
        ffn_dim_multiplier=2.0, qk_norm=True, cap_feat_dim=48, axes_dims=[8, 12, 12], axes_lens=[64, 64, 64],
        z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32, **made,
    )  # fmt: skip
    return net, (1, 16, 8, 8), dict(timesteps=SIGMA, context=text(48), num_tokens=8)


def hidream(made):
    from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel

    net = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=32,
        num_attention_heads=2, caption_channels=[48, 40], text_emb_dim=24, axes_dims_rope=(16, 8, 8),
        llama_layers=[0, 1, 2, 3], **made,
    )  # fmt: skip
    given = dict(t=SIGMA * 1000, y=torch.randn(1, 24), context=text(48))
    return net, (1, 16, 8, 8), {**given, "encoder_hidden_states_llama3": torch.randn(1, 4, 8, 40)}


def unet(made):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    net = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
        num_heads=2, use_spatial_transformer=True, context_dim=48, legacy=False, transformer_depth=[1, 1],
        transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1], use_linear_in_transformer=False, **made,
    )  # fmt: skip
    return net, (2, 4, 8, 8), dict(timesteps=SIGMA.expand(2) * 1000, context=text(48).expand(2, -1, -1))


def stable_video_diffusion(made):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    net = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=64, num_res_blocks=[1, 1], channel_mult=[1, 2],
        num_head_channels=32, use_spatial_transformer=True, context_dim=48, legacy=False, transformer_depth=[1, 1],
        transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1], use_linear_in_transformer=True,
        num_classes="sequential", adm_in_channels=24, use_temporal_attention=True, use_temporal_resblock=True,
        video_kernel_size=[3, 1, 1], extra_ff_mix_layer=True, use_spatial_context=True, merge_factor=0.0,
        merge_strategy="learned_with_images", **made,
    )  # fmt: skip
    words = text(48)
    given = dict(timesteps=SIGMA.expand(4) * 1000, context=words.expand(4, -1, -1), time_context=words)
    return net, (4, 4, 8, 8), {**given, "y": torch.randn(4, 24), "num_video_frames": 4, "image_only_indicator": None}


class Marked(torch.Tensor):
    """As weights of GGUF files are in the host: of a class that cannot be made of a tensor alone, and never copied."""

    def __new__(cls, tensor, *, kind):
        return super().__new__(cls, tensor)

    def __init__(self, tensor, *, kind):
        super().__init__()
        self.kind = kind

    def clone(self, *args, **kwargs):
        return self


class Overwriting(torch.nn.Module):
    """Not the host's: writes over what the way back needs, and over the whole of what it needs a part of, again and again in
    memory that became free; beside weights of a class of their own.
    """

    def __init__(self, operations, **made):
        super().__init__()
        self.blocks = torch.nn.ModuleList([operations.Linear(16, 16, **made) for _ in range(20)])
        self.mixing = [Marked(torch.randn(16, 16) / 4, kind="Q8_0") for _ in self.blocks]

    def forward(self, x, transformer_options):
        made = torch.zeros_like(x)
        for block, mixing in zip(self.blocks, self.mixing):
            values = block(x) @ torch.Tensor(mixing)
            whole, half = values**2, values[..., 8:] ** 2
            values.mul_(0.5)
            made = made + whole + values + torch.cat([half, half], dim=-1)
            del values
        return made


def overwriting(made):
    return Overwriting(**made), (64, 16), {}


class Adapter(torch.nn.Module):
    """A block with what IP-Adapter's patches hold, out of the host's sight: a picture's tokens, and a layer for them."""

    def __init__(self, operations, **made):
        super().__init__()
        self.block, self.hidden = operations.Linear(16, 16, **made), [torch.randn(16), torch.nn.Linear(16, 16)]

    def forward(self, x):
        tokens, layer = self.hidden
        return torch.tanh(self.block(x) * tokens + layer(tokens))


class Adapted(torch.nn.Module):
    """Not the host's: what its blocks hold are inference tensors, in their second run too."""

    def __init__(self, **made):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Adapter(**made) for _ in range(3)])

    def forward(self, x, transformer_options):
        for block in self.blocks:
            x = x + block(x)
        return x


def adapted(made):
    return Adapted(**made), (64, 16), {}


class Attending(torch.nn.Module):
    """Not the host's: blocks whose attention is one of the host's functions, called as its networks call it."""

    def __init__(self, attention, operations, **made):
        super().__init__()
        self.attention, self.blocks = attention, torch.nn.ModuleList([operations.Linear(16, 48, **made) for _ in range(2)])

    def forward(self, x, transformer_options):
        for block in self.blocks:
            x = x + self.attention(*block(x).chunk(3, dim=-1), 2, transformer_options=transformer_options)
        return x


def exact(q, k, v, **how):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, **how)


def sage_attention(made):
    """With ``--use-sage-attention``: a kernel whose result is cut off from what it was given."""

    def sageattn(q, k, v, tensor_layout, is_causal, sm_scale, attn_mask=None, smooth_k=True):
        q, k, v = (x.detach().transpose(1, 2) for x in (q, k, v))  # the layout is NHD, as of all networks that say none
        return exact(q, k, v, scale=sm_scale).transpose(1, 2)

    attention.sageattn = sageattn
    return Attending(attention.attention_sage, **made), (1, 8, 16), {}


def flash_attention(made):
    """With ``--use-flash-attention``: the host's operator around a kernel that has a way back."""

    def flash_attn_func(q, k, v, dropout_p, causal, softmax_scale):
        return exact(*(x.transpose(1, 2) for x in (q, k, v)), scale=softmax_scale).transpose(1, 2).clone()

    attention.flash_attn_func = flash_attn_func
    return Attending(attention.attention_flash, **made), (1, 8, 16), {}


class InBits(torch.nn.Module):
    """Not the host's: attention as its ``attention_comfy_kitchen_int8`` and that one's ``container_function`` compute it.

    ComfyUI has them since 0.33, for ``--use-ck-attention``, ``ModelAttentionBackend`` and checkpoints that ask for it.
    """

    def __init__(self, operations, **made):
        super().__init__()
        self.blocks = torch.nn.ModuleList([operations.Linear(16, 48, **made) for _ in range(2)])

    def forward(self, x, transformer_options):
        q, k, v = self.heads(self.blocks[0](x))
        x = x + comfy_kitchen.int8_attention(q, k, v, scale=None, attn_mask=None).transpose(1, 2).flatten(2)
        q, k, v = self.heads(self.blocks[1](x))
        k, v = k[:, :1], v[:, :1]  # fewer heads than of queries
        packed = comfy_kitchen.prequantize_int8_attention(q, k, v, scale=0.3, attn_mask=None)
        return x + comfy_kitchen.int8_attention_from_prequantized(packed).transpose(1, 2).flatten(2)

    @staticmethod
    def heads(x):
        return (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in x.chunk(3, dim=-1))


def kitchen_attention(made):
    """With ``--use-ck-attention``: a kernel in 8 bits, as an operator that has no way back."""

    @torch.library.custom_op("vidcore_tests::int8_attention", mutates_args=())
    def int8_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
        return exact(q, k, v, scale=scale, enable_gqa=True)

    comfy_kitchen.int8_attention = lambda q, k, v, *, scale=None, attn_mask=None: int8_attention(q, k, v, scale)
    comfy_kitchen.prequantize_int8_attention = lambda q, k, v, *, scale=None, attn_mask=None: (q, k, v, scale)
    comfy_kitchen.int8_attention_from_prequantized = lambda packed: int8_attention(*packed)
    return InBits(**made), (1, 8, 16), {}


class Compiled(torch.nn.Module):
    """Not the host's: blocks as its ``prefetch_queue_pop`` runs them, replayed as CUDA graphs where its compiler is on."""

    def __init__(self, operations, **made):
        super().__init__()
        self.blocks = torch.nn.ModuleList([operations.Linear(16, 16, **made) for _ in range(2)])

    def forward(self, x, transformer_options):
        for block in self.blocks:
            made = torch.tanh(block(x))
            x = x + (made.detach() if comfy.model_prefetch.malloc_graph_enabled(x.device) else made)
        return x


def host_compiler(made):
    """On a GPU since ComfyUI 0.35: what comes out of a graph has no history."""
    comfy.model_prefetch.malloc_graph_enabled = lambda device: True
    return Compiled(**made), (1, 8, 16), {}


def fast_fp8(made):
    """With ``--fast fp8_matrix_mult``: products in 8 bits, which no gradient comes back from."""

    def fp8_linear(layer, x):
        return torch.nn.functional.linear(x.detach(), layer.weight.to(x.dtype), layer.bias.to(x.dtype))

    ops.fp8_linear = fp8_linear
    net = Attending(attention.attention_pytorch, **made | dict(operations=ops.fp8_ops))
    return net, (1, 8, 16), {}


NETWORKS = [
    wan, wan_from_image, wan_vace, wan_camera, wan_animate, hunyuan_video, hunyuan_video_15, ltxv, ltx2, minimax_h3, cosmos,
    cosmos_predict2, mochi, cogvideo, kandinsky5, stable_video_diffusion, qwen_image, flux, stable_diffusion_3, chroma,
    z_image, hidream, unet, overwriting, adapted, sage_attention, flash_attention, kitchen_attention,
    host_compiler, fast_fp8,
]  # fmt: skip


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
