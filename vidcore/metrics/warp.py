"""Warp error: how much of a clip's change is not motion (Lai et al. 2018, arXiv 1808.00449, section 4.2)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# A place is hidden in one of two frames where the ways there and back differ by more (Ruder et al. 2016, arXiv 1604.08610).
PART, SLACK = 0.01, 0.5


def warp_error(clip: Tensor) -> float:
    """Mean square difference between each frame and the next one moved back by the optical flow, where nothing is hidden.

    The flow is OpenCV's DIS (Kroeger et al. 2016, arXiv 1603.03590), the paper's FlowNet 2: compare numbers of one flow.

    Args:
        clip: T H W 3 in [0, 1], at least 2 frames of 16 pixels a side.

    Raises:
        ValueError: if the clip is too short or small, or OpenCV is not installed.
    """
    if len(clip) < 2 or min(clip.shape[1:3]) < 16:
        raise ValueError(f"warp error needs two frames or more of at least 16x16 pixels, got {tuple(clip.shape)}")
    gray = (255 * clip @ clip.new_tensor([0.299, 0.587, 0.114])).round().clamp(0, 255).byte().cpu().numpy()
    errors = []
    for i in range(len(clip) - 1):
        there, back = flow(gray[i], gray[i + 1]), flow(gray[i + 1], gray[i])
        seen = visible(there, back)
        if seen.any():
            frames = clip[i : i + 2].double().cpu().movedim(-1, 1)
            apart = (frames[:1] - moved(frames[1:], there)).square().sum(dim=1)[0] / 3
            errors.append(float(apart[seen].mean()))
    return float(np.mean(errors)) if errors else float("nan")


def flow(one: np.ndarray, two: np.ndarray) -> Tensor:
    """Where each pixel of a gray uint8 picture H W went in another, in pixels: 2 H W, columns first, float64.

    Raises:
        ValueError: if OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise ValueError("warp error needs OpenCV: pip install opencv-python-headless") from None
    found = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(one, two, None)
    return torch.from_numpy(found).double().movedim(-1, 0)


def moved(pictures: Tensor, way: Tensor) -> Tensor:
    """Pictures N C H W read at each pixel's place plus ``way`` 2 H W, bilinear; at the border the nearest pixel."""
    height, width = pictures.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = (2 * (columns + way[0]) + 1) / width - 1, (2 * (rows + way[1]) + 1) / height - 1
    grid = torch.stack([x, y], dim=-1)[None].expand(len(pictures), -1, -1, -1)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def visible(there: Tensor, back: Tensor) -> Tensor:
    """H W, true where a pixel went to inside the picture, and the way back from there leads to where it came from."""
    returned = moved(back[None], there)[0]
    apart = (there + returned).square().sum(dim=0)
    height, width = there.shape[1:]
    x, y = torch.arange(width) + there[0], torch.arange(height)[:, None] + there[1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside & (apart <= PART * (there.square() + returned.square()).sum(dim=0) + SLACK)
