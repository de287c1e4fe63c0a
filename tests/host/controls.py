"""ControlNets of the host's own class, cut for a window: ``controls.py HOST_TREE``, run by the host's Python; one JSON."""

import importlib.util
import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from comfy.controlnet import T2IAdapter  # noqa: E402

spec = importlib.util.spec_from_file_location("conditions_alone", Path(__file__).parents[2] / "nodes" / "conditions.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def control(frames):
    """One whose pictures hold the numbers of their frames."""
    hint = torch.arange(frames).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return T2IAdapter(None, 3, 8, "nearest-exact").set_cond_hint(hint)


first, second = control(6), control(1)
second.set_previous_controlnet(first)
texts = tuple([[torch.zeros(1, 8, 4), {"control": second}]] for _ in range(2))
positive, negative = module.FrameConditions(texts, 6, 0, 1, True).of(3, 2)
made = positive[0][1]["control"]
found = {
    "shared": made is negative[0][1]["control"],
    "copied": made is not second and second.previous_controlnet is first,
    "hint": len(made.cond_hint_original),
    "before": made.previous_controlnet.cond_hint_original[:, 0, 0, 0].tolist(),
    "original": len(first.cond_hint_original),
}
first.cond_hint_original = first.cond_hint_original[:1]  # nothing belongs to single frames: they stay themselves
found["kept"] = module.FrameConditions(texts, 6, 0, 1, True).of(3, 2)[0][0][1]["control"] is second
print(json.dumps(found))
