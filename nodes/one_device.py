"""Keeping a MODEL off the host's split over several GPUs (MultiGPU CFG Split), where it cannot work."""

import logging

import comfy.model_management as management
import comfy.patcher_extension

KEY = "vidcore_one_device"
SPLIT = "multigpu"  # the host's name for copies of a MODEL on other devices


def on_one_device(model, why: str) -> None:
    """Let a cloned MODEL run on its own device alone, whether the split's node stands before or behind ours.

    Args:
        model: the MODEL.
        why: what the split cannot do, for the log.
    """

    def prepare(executor, model, *arguments, **named):
        copies = model.get_additional_models_with_key(SPLIT)
        if copies:
            logging.warning("VidCore: MultiGPU CFG Split is left out, for %s", why)
            model.remove_additional_models(SPLIT)
            others = [m for m in management.current_loaded_models if m.model and not any(map(m.model.is_clone, copies))]
            for copy in copies:
                management.free_memory(1e30, copy.load_device, others)
        return executor(model, *arguments, **named)

    kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    model.remove_wrappers_with_key(kind, KEY)
    model.add_wrapper_with_key(kind, KEY, prepare)
