"""A batch of an image MODEL as one clip."""

import comfy.patcher_extension

from ..vidcore.systems.wire import FRAMES

KEY = "vidcore_one_clip"


def one_clip(model) -> None:
    """Tell the layers of a cloned MODEL how many frames the clip has that is sampled, for `frames_per_clip`."""

    def predict(executor, x, timestep, model_options=None, seed=None):
        options = model_options or {}
        told = {**options.get("transformer_options", {}), FRAMES: len(x)}
        return executor(x, timestep, {**options, "transformer_options": told}, seed)

    kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    model.remove_wrappers_with_key(kind, KEY)
    model.add_wrapper_with_key(kind, KEY, predict)
