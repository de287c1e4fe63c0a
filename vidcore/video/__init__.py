"""Video files in and out, by frame index. The only folder that imports PyAV."""

from .read import VideoError, VideoInfo, probe, read_blocks, read_frames
from .write import write_picture, write_video

__all__ = ["VideoError", "VideoInfo", "probe", "read_blocks", "read_frames", "write_picture", "write_video"]
