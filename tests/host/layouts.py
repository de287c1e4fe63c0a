"""Writes random weights in the layout of a public model: ``layouts.py HOST_TREE KIND FILE``, run by the host's Python."""

import json
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


def sdxl(depth=(0, 0, 2, 2, 10, 10), middle=10, depth_output=(0, 0, 0, 2, 2, 2, 10, 10, 10)):
    """Stable Diffusion XL's U-Net, full size: 2567 M parameters."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4],
        num_head_channels=64, use_spatial_transformer=True, context_dim=2048, legacy=False, num_classes="sequential",
        adm_in_channels=2816, transformer_depth=list(depth), transformer_depth_middle=middle,
        transformer_depth_output=list(depth_output), use_linear_in_transformer=True, dtype=torch.float16, device="meta",
        operations=ops.disable_weight_init,
    )  # fmt: skip


def sdxl_vega():
    """Segmind Vega's U-Net, full size, 745 M parameters: SDXL's layout with fewer transformer blocks."""
    return sdxl((0, 0, 1, 1, 2, 2), -1, (0, 0, 0, 1, 1, 1, 2, 2, 2))


def wan(in_dim=16):
    """Wan 2.1's text-to-video transformer with two of its thirty layers, 256 wide."""
    from comfy.ldm.wan.model import WanModel

    return WanModel(
        model_type="t2v", in_dim=in_dim, out_dim=16, dim=256, ffn_dim=512, freq_dim=256, text_dim=4096, num_heads=2,
        num_layers=2, dtype=torch.float16, device="meta", operations=ops.disable_weight_init,
    )  # fmt: skip


def wan_i2v():
    """Wan 2.2's from images: the same with what is known of the frames, and a mask of it, beside the latents."""
    return wan(36)


LTX2_SIZES = dict(
    cross_attention_dim=64, audio_cross_attention_dim=32, attention_head_dim=32, audio_attention_head_dim=16,
    num_attention_heads=2, audio_num_attention_heads=2, caption_channels=48, num_layers=2, connector_num_attention_heads=2,
    connector_attention_head_dim=32, audio_connector_num_attention_heads=2, audio_connector_attention_head_dim=16,
)  # fmt: skip


def ltx2():
    """LTX-2's transformer of video and sound with two of its 48 layers, 64 wide; its sizes stand in the file."""
    from comfy.ldm.lightricks.av_model import LTXAVModel

    return LTXAVModel(**LTX2_SIZES, dtype=torch.float16, device="meta", operations=ops.disable_weight_init)


def minimax_h3():
    """MiniMax H3's transformer of video and sound with two of its 50 layers, 64 wide."""
    from comfy.ldm.minimax.model import MiniMaxH3Model

    return MiniMaxH3Model(
        hidden_size=64, num_layers=2, token_refiner_num_layers=1, num_attention_heads=2, attention_head_dim=32,
        ffn_hidden_size=128, text_dim=48, timestep_input_dim=32, time_embed_hidden_size=64, time_embed_dim=32,
        rope_inv_freq_len=4, dtype=torch.float16, device="meta", operations=ops.disable_weight_init,
    )  # fmt: skip


def sd15_control():
    """A ControlNet of Stable Diffusion 1.5, full size: 361 M parameters."""
    from comfy.cldm.cldm import ControlNet

    return ControlNet(
        image_size=32, in_channels=4, hint_channels=3, model_channels=320, num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4], num_heads=8, use_spatial_transformer=True, context_dim=768, legacy=False,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_middle=1, use_linear_in_transformer=False,
        dtype=torch.float16, device="meta", operations=ops.disable_weight_init,
    )  # fmt: skip


def sd_vae():
    """The VAE of Stable Diffusion 1 and 2, full size: 84 M parameters."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    sizes = dict(
        double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 4, 4],
        num_res_blocks=2, attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoencoderKL(ddconfig=sizes, embed_dim=4)


def wan_vae():
    """The VAE of Wan 2.1, which packs four frames into one latent, a quarter as wide."""
    from comfy.ldm.wan.vae import WanVAE

    with torch.device("meta"):
        return WanVAE(dim=24, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])


LTX_VAE_SIZES = dict(
    dims=3, in_channels=3, out_channels=3, latent_channels=128, norm_layer="pixel_norm", patch_size=4,
    latent_log_var="uniform",
    blocks=[["res_x", 1], ["compress_all", 1], ["res_x_y", 1], ["compress_all", 1], ["compress_all", 1], ["res_x", 1]],
    encoder_base_channels=16, decoder_base_channels=16,
)  # fmt: skip


def ltx_vae():
    """The VAE of LTX, narrow: eight frames in one latent, a thirty-second as wide; its sizes stand in the file."""
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    return VideoVAE(config=LTX_VAE_SIZES)


def lora(layers: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Rank 4, as kohya's trainer writes it; ``layers`` maps names to (out, in)."""
    tensors = {}
    for name, (out, into) in layers.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, into) * into**-0.5
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 4) * 0.5
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    return tensors


def sd15_checkpoint() -> dict[str, torch.Tensor]:
    """The layout of a whole Stable Diffusion 1.5 checkpoint: U-Net, VAE and text encoder in one file."""
    from comfy.sd1_clip import SDClipModel

    text = SDClipModel(device="cpu", dtype=torch.float16)
    parts = {"model.diffusion_model.": sd15(), "first_stage_model.": sd_vae(), "cond_stage_model.": text}
    return {prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()}


def clip_l():
    """The text half of CLIP ViT-L/14, full size, with its projection."""
    from comfy.sd1_clip import SDClipModel

    return SDClipModel(device="cpu", dtype=torch.float16).transformer


def clip_vision_l():
    """The picture half of CLIP ViT-L/14, full size."""
    import comfy.clip_vision

    return comfy.clip_vision.ClipVisionModel(comfy.clip_vision.__file__.replace(".py", "_config_vitl.json")).model


LORAS = {
    "sd15_lora": {f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{p}": (1280, 1280) for p in "qkv"},
    "wan_lora": {f"diffusion_model.blocks.{i}.self_attn.{p}": (256, 256) for i in (0, 1) for p in "qkv"},
}


def random_weights(shapes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Half-precision weights that keep activations near their size: matrices by fan-in, scales 1, biases 0."""
    tensors = {}
    for name, value in shapes.items():
        if value.ndim > 1:
            tensors[name] = (torch.randn(value.shape) * value[0].numel() ** -0.5).half()
        else:
            tensors[name] = torch.full(value.shape, float(name.endswith(("weight", "std-of-means")))).half()
    return tensors


def scaled_fp8(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As scaled fp8 files have them: matrices of blocks in 8 bits, each with a scale of its own."""
    made = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, value in tensors.items():
        if name.startswith("blocks.") and name.endswith(".weight") and value.ndim == 2:
            scale = value.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
            made[name.removesuffix("weight") + "scale_weight"] = scale
            value = (value.float() / scale).to(torch.float8_e4m3fn)
        made[name] = value
    return made


MODELS = {
    "sd15": sd15,
    "sdxl": sdxl,
    "sdxl_vega": sdxl_vega,
    "wan": wan,
    "wan_i2v": wan_i2v,
    "ltx2": ltx2,
    "minimax_h3": minimax_h3,
    "sd15_control": sd15_control,
    "sd_vae": sd_vae,
    "wan_vae": wan_vae,
    "ltx_vae": ltx_vae,
    "clip_l": clip_l,
    "clip_vision_l": clip_vision_l,
}

CONFIGS = {"ltx2": {"transformer": LTX2_SIZES}, "ltx_vae": {"vae": LTX_VAE_SIZES}}

torch.manual_seed(0)
if kind in LORAS:
    save_file(lora(LORAS[kind]), path)
else:
    if kind == "wan_fp8":
        save_file(scaled_fp8(random_weights(wan().state_dict())), path)
        sys.exit()
    tensors = random_weights(sd15_checkpoint() if kind == "sd15_checkpoint" else MODELS[kind]().state_dict())
    save_file(tensors, path, {"config": json.dumps(CONFIGS[kind])} if kind in CONFIGS else None)
