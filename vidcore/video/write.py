"""Encode frames to an H.264 mp4, or one picture to a PNG."""

import os
from fractions import Fraction
from pathlib import Path

import av
from torch import Tensor


def write_video(path: str | os.PathLike, frames: Tensor, rate: Fraction | float, quality: int = 16) -> None:
    """Write an mp4; readers see the old file or the whole new one.

    Args:
        path: ends in ``.mp4``.
        frames: uint8 T H W 3, RGB, with even height and width.
        rate: frames per second, above 0.
        quality: H.264's constant rate factor: 0 is lossless, 51 the worst.

    Raises:
        ValueError: if the frames' shape or type, or the rate, does not fit.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or str(frames.dtype) != "torch.uint8" or not len(frames):
        raise ValueError(f"expected uint8 frames T H W 3, got {frames.dtype} {tuple(frames.shape)}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"H.264 needs an even height and width, got {frames.shape[1]}x{frames.shape[2]}")
    if not rate > 0:
        raise ValueError(f"rate must be above 0, got {rate}")
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with av.open(os.fspath(partial), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": str(quality)}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.cpu().numpy(), format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_picture(path: str | os.PathLike, picture: Tensor) -> None:
    """Write a PNG; readers see the old file or the whole new one.

    Args:
        path: ends in ``.png``.
        picture: uint8 H W 3, RGB.

    Raises:
        ValueError: if the picture's shape or type does not fit.
    """
    if picture.ndim != 3 or picture.shape[-1] != 3 or str(picture.dtype) != "torch.uint8":
        raise ValueError(f"expected a uint8 picture H W 3, got {picture.dtype} {tuple(picture.shape)}")
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width, encoder.pix_fmt = picture.shape[0], picture.shape[1], "rgb24"
    encoder.time_base = Fraction(1)
    packets = encoder.encode(av.VideoFrame.from_ndarray(picture.cpu().contiguous().numpy(), format="rgb24"))
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(b"".join(bytes(packet) for packet in (*packets, *encoder.encode())))
    os.replace(partial, path)
