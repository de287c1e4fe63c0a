"""SparseCausalAttention: the frames of an image model see the first frame and the one before (Tune-A-Video, section 3.2)."""

from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_api.latest import io

from ..vidcore.layers.attention import attention
from ..vidcore.layers.sparse_causal import sparse_causal
from ..vidcore.systems.wire import frames_per_clip
from .one_clip import one_clip


def attend_across_frames(q, k, v, extra_options):
    """The host's replacement for self-attention; a batch holds the frames once for each of its conditionings."""
    shape = q.shape
    q = q.reshape(k.shape[0], -1, shape[2])  # HyperTile cuts each frame's queries into tiles, and its keys not

    def attend(q, k, v):
        # The host has an order of kernels of its own, whose first takes nearly twice as long on Hopper as PyTorch's first
        # (benchmarks/README.md).
        if optimized_attention is attention_pytorch and "optimized_attention_override" not in extra_options:
            return attention(q, k, v, extra_options["n_heads"])
        return optimized_attention(
            q,
            k,
            v,
            extra_options["n_heads"],
            attn_precision=extra_options.get("attn_precision"),
            transformer_options=extra_options,
        )

    return sparse_causal(q, k, v, frames_per_clip(len(k), extra_options), attend).reshape(shape)


def image_unet(model, node: str) -> UNetModel:
    """The network of a MODEL. Raises ValueError, naming the ``node``, if it is not an image model with a U-Net."""
    net = model.get_model_object("diffusion_model")
    if not isinstance(net, UNetModel) or model.model.model_config.unet_config.get("use_temporal_attention"):
        raise ValueError(
            f"{node} works on image models with a U-Net (Stable Diffusion 1.5, 2.1, XL and their like); "
            f"this is {type(model.model).__name__}. Video models need no such patch: their frames see one another."
        )
    return net


def add_sparse_causal(model) -> None:
    """Replace the self-attention of a cloned MODEL's blocks; its batch is one clip."""
    one_clip(model)
    net = model.get_model_object("diffusion_model")
    for name, blocks in (("input", net.input_blocks), ("middle", [net.middle_block]), ("output", net.output_blocks)):
        for number in range(len(blocks)):
            model.set_model_attn1_replace(attend_across_frames, name, number)


class SparseCausalAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SparseCausalAttention",
            display_name="Sparse-Causal Attention",
            category="video/guidance",
            description="Lets each frame that an image model makes look at the first frame and the one before, so that "
            "the frames of a batch belong together. Nothing is trained.",
            search_aliases=["tune-a-video", "consistent frames", "cross-frame attention", "flicker", "temporal consistency"],
            inputs=[
                io.Model.Input("model", tooltip="An image model with a U-Net: Stable Diffusion 1.5, 2.1, XL and the like."),
            ],
            outputs=[io.Model.Output(tooltip="The model, for a batch whose pictures are the frames of one clip.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        image_unet(model, "Sparse-Causal Attention")
        model = model.clone()
        add_sparse_causal(model)
        return io.NodeOutput(model)
