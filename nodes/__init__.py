"""The host side: thin nodes over `vidcore`, one file per stage. The only folder that imports ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from . import folders
from .cascade import UpsampleVideoCascade
from .content_motion import AttachContentFrame, DecodeContentMotion, EncodeContentMotion
from .extend import ExtendVideo, SpatialUpsample, TemporalUpsample
from .frame_rate import SetFrameRate
from .guide import ReconstructionGuide
from .invert import DDIMInvert
from .latent import EmptyVideoLatent
from .load import LoadVideoModel
from .mitigate import MitigatingGradientSampling
from .oscillate import OscillatingGuidance
from .sample import SampleVideo
from .samplers import SamplerEDMHeun, SamplerVDM
from .score import ScoreVideo
from .sparse_causal import SparseCausalAttention
from .threshold import DynamicThresholding
from .train_motion import LoadMotionModule, TrainMotionModule
from .tune import LoadTunedVideo, TuneAVideo


class VidCore(ComfyExtension):
    async def on_load(self) -> None:
        folders.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadVideoModel, EmptyVideoLatent, SampleVideo, SamplerVDM,
            ReconstructionGuide, TemporalUpsample, ExtendVideo, SpatialUpsample, OscillatingGuidance,
            DDIMInvert, SparseCausalAttention, TuneAVideo, LoadTunedVideo,
            EncodeContentMotion, DecodeContentMotion, AttachContentFrame,
            SamplerEDMHeun, SetFrameRate, MitigatingGradientSampling, UpsampleVideoCascade,
            DynamicThresholding, TrainMotionModule, LoadMotionModule, ScoreVideo,
        ]  # fmt: skip
