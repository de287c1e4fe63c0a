"""A node pack for the tests alone: conditioning of any width, so that a model can run without its text encoder."""

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


NODE_CLASS_MAPPINGS = {"RandomConditioning": RandomConditioning}
