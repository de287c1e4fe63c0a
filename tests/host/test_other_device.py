"""On a device whose memory is not the computer's, the nodes make what they make on the CPU; see `other_device.device`.

It cannot say how fast a GPU is or how it rounds, but tensors that are on the wrong side meet here as they would there. And
weights come and go here as the host pages them on NVIDIA's GPUs, see `paging.pages`, or find no place there, see `streams`.
"""

import contextlib

import pytest
import torch

from launch.prompt import run_prompt

from .prompts import keep_latent, loaded, node, sampled
from .test_hooks import IMAGE, prompts

CLIP = {
    "flat": node("EmptyImage", width=32, height=32, batch_size=4, color=0x3080C0),
    "clip": node("ImageAddNoise", image=["flat", 0], seed=7, strength=0.3),
    "flat_small": node("EmptyImage", width=16, height=16, batch_size=4, color=0x3080C0),
    "small": node("ImageAddNoise", image=["flat_small", 0], seed=7, strength=0.3),
    "clip_latent": node("VAEEncode", pixels=["clip", 0], vae=["1", 2]),
}
WEIGHT = 0.5  # rounding grows with it
PROMPTS = dict(positive=["2", 0], negative=["3", 0])
WINDOWS = dict(seed=1, steps=2, guidance_scale=3.0, sampler="ddim", schedule="uniform_time", vae=["1", 2], **PROMPTS)


def kept(number, images):
    """The frames that a node makes, as the latent that it keeps under a number."""
    return {
        f"{number}e": node("VAEEncode", pixels=[images, 0], vae=["1", 2]),
        f"{number}k": keep_latent(f"{number}e", f"latents/{number}"),
    }


def a_video_model():
    guide = dict(image=["clip", 0], vae=["1", 2])
    prompt = CLIP | loaded() | {
        "11": node("ReconstructionGuide", model=["1", 0], kind="frames", weight=WEIGHT, frames="0-3", **guide),
        "12": node("ReconstructionGuide", model=["1", 0], kind="low_resolution", weight=WEIGHT, image=["small", 0],
                   vae=["1", 2], frames="0-3", measured_in="pixels", memory_saver=True),
        "13": node("MitigatingGradientSampling", model=["1", 0], strength=0.5),
        "14": node("DynamicThresholding", model=["1", 0], percentile=0.9, limit=0.5),
        "15": node("OscillatingGuidance", model=["14", 0], low=1.0, first_steps=1),
        "20": node("DDIMInvert", model=["1", 0], positive=["2", 0], latent_image=["4", 0], steps=2,
                   method="fixed_point", schedule="uniform_time"),
        "20k": keep_latent("20", "latents/20"),
        "30": node("TemporalUpsample", model=["1", 0], image=["clip", 0], factor=2, weight=WEIGHT, window=6, overlap=1,
                   **WINDOWS),
        "31": node("ExtendVideo", model=["1", 0], image=["clip", 0], new_frames=4, weight=WEIGHT, window=6, overlap=2,
                   **WINDOWS),
        "32": node("SpatialUpsample", model=["1", 0], image=["small", 0], factor=2, weight=WEIGHT, window=4, overlap=1,
                   **WINDOWS),
        "40": node("SamplerVDM", sampler="vdm_predictor_corrector", gamma=0.3, delta=0.1),
        "41": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=2, denoise=1.0),
        "42": node("SamplerCustom", model=["1", 0], add_noise=True, noise_seed=1, cfg=3.0, sampler=["40", 0],
                   sigmas=["41", 0], latent_image=["4", 0], **PROMPTS),
        "42k": keep_latent("42", "latents/42"),
    }  # fmt: skip
    return sampled(prompt, ["1", "11", "12", "13", "15"], steps=2) | kept("30", "30") | kept("31", "31") | kept("32", "32")


def snap_video():
    prompt = CLIP | loaded(model="shapes-snap.safetensors", width=16, height=16, frames=8)
    prompt |= {"50": node("LoadVideoModel", model_name="shapes-snap-upsampler.safetensors")} | {
        "51": node("UpsampleVideoCascade", model=["50", 0], image=["small", 0], seed=1, steps=3, guidance_scale=2.0,
                   weight=1.0, window=4, overlap=1, corruption=0.1, schedule="uniform_time", sampler="ddim",
                   **PROMPTS),
        "52": node("SetFrameRate", conditioning=["2", 0], frame_rate=8.0),
    }  # fmt: skip
    return sampled(prompt, ["1"], steps=2, positive=("52", 0)) | kept("51", "51")


def content_and_motion():
    prompt = loaded(model="shapes-cmd.safetensors") | {
        "flat": node("EmptyImage", width=32, height=32, batch_size=8, color=0x3080C0),
        "long": node("ImageAddNoise", image=["flat", 0], seed=7, strength=0.3),
        "6": node("EncodeContentMotion", codec=["1", 3], frames=["long", 0]),
        "7": node("DecodeContentMotion", codec=["1", 3], content=["6", 0], motion=["6", 1]),
        "8": node("AttachContentFrame", model=["1", 0], codec=["1", 3], content=["6", 0]),
        "9": node("ReconstructionGuide", model=["8", 0], kind="frames", weight=1.0, latent=["6", 1], frames="0-7"),
        "10": node("ScoreVideo", images=["7", 0], reference=["long", 0]),
    }  # fmt: skip
    return sampled(prompt, ["8", "9"], steps=2, latent=("6", 1)) | kept("7", "7")


def layers_beside_an_image_model():
    train = dict(vae=["1", 2], steps=2, learning_rate=1e-3, seed=5)
    prompt = CLIP | loaded("a large red circle", "shapes-image.safetensors") | {
        "4": node("EmptyLatentImage", width=32, height=32, batch_size=4),
        "10": node("SparseCausalAttention", model=["1", 0]),
        "11": node("LoadMotionModule", model=["1", 0], motion_name="shapes-harivo.safetensors"),
        "12": node("ReconstructionGuide", model=["11", 0], kind="low_resolution", weight=WEIGHT, image=["small", 0],
                   vae=["1", 2]),
        "13": node("TuneAVideo", model=["1", 0], frames=["clip", 0], positive=["2", 0], name="tuned", norm="clip",
                   attention_loss=0.1, preview_every=2, **train),
        "14": node("TuneAVideo", model=["1", 0], frames=["clip", 0], positive=["2", 0], name="saver", memory_saver=True,
                   preview_every=0, **train),
        "15": node("TrainMotionModule", model=["1", 0], clip=["1", 1], frames=["clip", 0], positive=["2", 0], folder="",
                   caption="", length=4, every=1, name="motion", preview_every=0, **train),
        "16": node("ReconstructionGuide", model=["13", 0], kind="low_resolution", weight=WEIGHT, image=["small", 0],
                   vae=["1", 2]),
        "20": node("DDIMInvert", model=["13", 0], positive=["2", 0], latent_image=["clip_latent", 0], steps=2,
                   method="fixed_point", schedule="uniform_time"),
        "20k": keep_latent("20", "latents/20"),
    }  # fmt: skip
    return sampled(prompt, ["1", *map(str, range(10, 17))], steps=2)


PACKS = {"paged": ["other_device", "paging"], "streams": ["other_device", "streams"], "whole": ["other_device"]}
# In the log of a kind's server, and in no other's.
SIGNS = {"paged": "prepared for dynamic VRAM loading", "streams": "loaded partially; 0.00 MB usable, 0.00 MB loaded"}
NODES = (a_video_model, snap_video, content_and_motion, layers_beside_an_image_model)


@pytest.fixture(scope="module")
def start(serve):
    """Gives a server of a kind on the other device; the one before it, if it is of another kind, ends."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("needs a PyTorch for which devices can be written in Python")
    with contextlib.ExitStack() as stack:
        now = {}

        def start(kind):
            if kind not in now:
                now.clear()
                stack.close()
                now[kind] = stack.enter_context(serve(packs=PACKS[kind]))
            return now[kind]

        yield start


@pytest.fixture
def other(start, request):
    """The other device, where weights come and go, or none fits and they come by two buffers, or all of them are there."""
    running = start(request.param)
    assert running.get("/system_stats")["devices"][0]["type"] == "other"
    yield running
    log = running.log.read_text(encoding="utf-8")
    assert [kind for kind, sign in SIGNS.items() if sign in log] == [kind for kind in SIGNS if kind == request.param]


@pytest.fixture(scope="module")
def made():
    """What each prompt made on the CPU."""
    return {}


@pytest.mark.parametrize("other", ["paged"], indirect=True)
@pytest.mark.parametrize("way", ["tuned with it", "motion module"])
def test_a_lora_on_the_prompts_of_a_model_whose_weights_come_and_go(server, other, latents, lora, emptied, way):
    """The host makes a copy of the model for it; what stands around parts of the network is there as well."""
    emptied("tuned_video")
    for on in (server, other):
        name = lora(on, IMAGE)
    _, on_prompts, on_model = prompts(way, name)
    torch.testing.assert_close(latents(on_prompts, on=other)["k"], latents(on_model)["k"], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("other", ["paged"], indirect=True)
def test_guided_models_share_one_copy_of_weights_that_stay(other):
    guide = dict(kind="low_resolution", image=["small", 0], vae=["1", 2])
    prompt = CLIP | loaded(model=IMAGE) | {
        "11": node("ReconstructionGuide", model=["1", 0], weight=0.5, **guide),
        "12": node("LoadMotionModule", model=["1", 0], motion_name="shapes-harivo.safetensors"),
        "13": node("ReconstructionGuide", model=["12", 0], weight=1.0, **guide),
        "14": node("ShareWeights", first=["11", 0], second=["13", 0]),
        "15": node("ShareWeights", first=["11", 0], second=["12", 0]),
    }  # fmt: skip
    found = run_prompt(other, prompt)["outputs"]
    assert found["14"]["text"] == ["True"] and found["15"]["text"] == ["False"]


@pytest.mark.parametrize(
    "other, prompt",
    [(kind, prompt) for kind in SIGNS for prompt in NODES] + [("whole", layers_beside_an_image_model)],
    indirect=["other"],
)
def test_nodes_make_the_same_on_another_device(latents, other, made, prompt, emptied):
    for folder in ("tuned_video", "video_motion"):
        emptied(folder)
    if prompt not in made:
        made[prompt] = latents(prompt())
    here, there = made[prompt], latents(prompt(), on=other)
    assert here.keys() == there.keys() and here
    for number, latent in here.items():
        torch.testing.assert_close(there[number], latent, atol=2e-3, rtol=2e-3, msg=lambda text: f"node {number}: {text}")
