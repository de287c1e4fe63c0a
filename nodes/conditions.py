"""Conditions that belong to single frames of a clip, cut for the windows in which the clip is made."""

import torch

# By the host's names: what lies beside the latents, or the pixels, of a clip. Its third axis is time; with models of
# pictures the first is.
BESIDE_FRAMES = {
    "concat_latent_image", "concat_mask", "concat_image", "control_video", "vace_frames", "vace_mask", "camera_conditions",
    "pose_video_latent", "face_video_pixels", "driving_mask_28ch", "lq_latent",
}  # fmt: skip
# What takes the place of the first latents of a clip.
AT_THE_START = {"time_dim_replace"}
# What points at latents that the host's own nodes have put into a latent.
INTO_A_LATENT = {"keyframe_idxs", "guide_attention_entries"}
# Of models of pictures alone, whose batch is the clip.
OF_PICTURES = {"pooled_output", "mask"}


class FrameConditions:
    """Conditionings for a clip that is made in windows: what belongs to its frames, one for each, is cut for each window.

    Args:
        conditionings: CONDITIONINGs, as the host's nodes hand them on.
        frames: of the clip that comes out, given ones at its beginning too.
        first: the frame at which the first window begins.
        pack: frames in one latent.
        pictures: the model makes pictures, and a clip is a batch of them.

    Raises:
        ValueError: if something belongs to the frames of another clip, or cannot be cut.
    """

    def __init__(self, conditionings: tuple, frames: int, first: int, pack: int, pictures: bool):
        self.conditionings, self.frames, self.first, self.pack, self.pictures = conditionings, frames, first, pack, pictures
        self.latents = (frames - 1) // pack + 1
        self.of(0, 1)

    def of(self, start: int, count: int) -> list:
        """Conditionings for ``count`` frames from the ``start``-th of the windows on; past the end, as for the last one."""
        start += self.first
        places = {
            self.frames: [min(start + i, self.frames - 1) for i in range(count)],
            self.latents: [min(start // self.pack + i, self.latents - 1) for i in range((count - 1) // self.pack + 1)],
        }
        controls: dict[int, object] = {}  # shared by prompts, as before, so that the host can run them together

        def of_window(text, options: dict):
            made = {}
            for name, value in options.items():
                if name in INTO_A_LATENT and value is not None:
                    raise ValueError(
                        "the conditioning points at pictures inside a latent (as LTXV's guide nodes do), and this node "
                        "makes latents of its own. Please give the pictures as frames, or sample with Reconstruction Guide."
                    )
                if name in AT_THE_START and start > 0:
                    continue
                if name == "control":
                    value = self._control(value, places, controls)
                elif name in BESIDE_FRAMES or (self.pictures and name in OF_PICTURES):
                    value = self._tensors(name, value, places)
                made[name] = value
            return [self._tensors("text", text, places) if self.pictures else text, made]

        return [[of_window(part[0], part[1]) for part in conditioning] for conditioning in self.conditionings]

    def _tensors(self, name: str, value, places: dict):
        if isinstance(value, (list, tuple)):
            return type(value)(self._tensors(name, item, places) for item in value)
        axis = 0 if self.pictures else 2
        if not isinstance(value, torch.Tensor) or value.ndim <= axis or (value.ndim < 5 and not self.pictures):
            return value
        return self._select(value, axis, places, f"the conditioning's {name}")

    def _control(self, control, places: dict, made: dict):
        """A ControlNet and those before it, with the window's pictures."""
        if control is None:
            return None
        if id(control) not in made:
            pictures = {self.frames: places[self.frames]}
            before, hint, masks = control.previous_controlnet, control.cond_hint_original, control.extra_concat_orig
            new_before = self._control(before, places, made)
            new_hint = self._select(hint, 0, pictures, "a ControlNet") if isinstance(hint, torch.Tensor) else hint
            new_masks = [self._select(mask, 0, pictures, "a ControlNet's mask") for mask in masks]
            if new_before is before and new_hint is hint and all(a is b for a, b in zip(new_masks, masks, strict=True)):
                made[id(control)] = control
            else:
                made[id(control)] = cut = control.copy().set_previous_controlnet(new_before)
                cut.cond_hint_original, cut.extra_concat_orig = new_hint, new_masks
        return made[id(control)]

    def _select(self, value: torch.Tensor, axis: int, places: dict, what: str) -> torch.Tensor:
        count = value.shape[axis]
        if count == 1:
            return value
        if count not in places:
            latents = f", in {self.latents} latents" if len(places) > 1 else ""
            raise ValueError(
                f"{what} is made for {count} frames or latents, and the clip that comes out has {self.frames} frames"
                f"{latents}. Please give it one for all frames, or one for each, given frames too."
            )
        if self.first % self.pack:
            raise ValueError(
                f"{what} is made for each frame, and this model packs {self.pack} of them into a latent. Please leave out "
                f"{self.first % self.pack} of the given frames, so that whole latents are cut."
            )
        return value.index_select(axis, torch.tensor(places[count], device=value.device))
