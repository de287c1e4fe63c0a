"""A node pack for the tests alone: conditioning of any width, so that a model can run without its text encoder; and more."""

import hashlib

import torch


class RandomConditioning:
    CATEGORY, RETURN_TYPES, FUNCTION = "tests", ("CONDITIONING",), "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"tokens": ("INT", {"default": 8}), "width": ("INT", {"default": 768}), "seed": ("INT", {})}}

    def make(self, tokens, width, seed):
        generator = torch.Generator().manual_seed(seed)
        words = torch.randn(1, tokens, width, generator=generator)
        return ([[words, {"pooled_output": torch.randn(1, 1280, generator=generator)}]],)


class HashWeights:
    """The SHA-256 of a MODEL's own weights, without its patches, whether or not they are applied just now."""

    CATEGORY, RETURN_TYPES, FUNCTION, OUTPUT_NODE = "tests", (), "hash", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "after": ("LATENT",)}}

    def hash(self, model, after):
        found = hashlib.sha256()
        for key, weight in model.model.state_dict().items():
            weight = model.backup[key].weight if key in model.backup else weight
            found.update(weight.contiguous().cpu().view(torch.uint8).numpy())
        return {"ui": {"text": [found.hexdigest()]}}


class ChangeSkips:
    """A tenth more of each skip connection of a U-Net, written over it, as a ControlNet is added, or beside it."""

    CATEGORY, RETURN_TYPES, FUNCTION = "tests", ("MODEL",), "change"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "in_place": ("BOOLEAN", {"default": True})}}

    def change(self, model, in_place):
        model = model.clone()
        model.set_model_output_block_patch(lambda h, skip, options: (h, skip.mul_(1.1) if in_place else skip * 1.1))
        return (model,)


NODE_CLASS_MAPPINGS = {"RandomConditioning": RandomConditioning, "HashWeights": HashWeights, "ChangeSkips": ChangeSkips}
