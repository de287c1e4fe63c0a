"""Where models are looked for: the host's folders for ours, then what ships with this pack."""

import os
from pathlib import Path

import folder_paths

FOLDER = "video_diffusion"
TUNED = "tuned_video"
MOTION = "video_motion"


def register() -> None:
    """Add our folders to the host's list. Ones that the person set in extra_model_paths.yaml stay, and come first."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    folder_paths.add_model_folder_path(FOLDER, str(Path(__file__).resolve().parent.parent / "models"))
    folder_paths.folder_names_and_paths[FOLDER][1].add(".safetensors")
    for kind in (TUNED, MOTION):
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
        folder_paths.folder_names_and_paths[kind][1].add(".safetensors")
    folder_paths.add_model_folder_path(MOTION, str(Path(__file__).resolve().parent.parent / "models"))
