"""Where models are looked for: the host's ``models/video_diffusion``, then what ships with this pack; and tuned clips."""

import os
from pathlib import Path

import folder_paths

FOLDER = "video_diffusion"
TUNED = "tuned_video"


def register() -> None:
    """Add our folders to the host's list. Ones that the person set in extra_model_paths.yaml stay, and come first."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    folder_paths.add_model_folder_path(FOLDER, str(Path(__file__).resolve().parent.parent / "models"))
    folder_paths.folder_names_and_paths[FOLDER][1].add(".safetensors")
    folder_paths.add_model_folder_path(TUNED, os.path.join(folder_paths.models_dir, TUNED))
    folder_paths.folder_names_and_paths[TUNED][1].add(".safetensors")
