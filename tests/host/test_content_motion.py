"""A clip as one picture and its motion, in a real ComfyUI; random weights, in the shipped file's layout."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from launch.prompt import RunError, run_prompt
from vidcore import weights
from vidcore.codec import content_motion
from vidcore.codec.content_motion import ContentMotionCodec, ContentMotionConfig
from vidcore.data.shapes import VOCABULARY, random_scene, render
from vidcore.systems.cmd import MotionConfig, MotionDiT, checkpoint
from vidcore.text import TextConfig, TextEncoder

from .prompts import keep_latent, node, sample

CODEC = ContentMotionConfig(frames=8, size=(32, 32), width=24, latent=4, depth=1, heads=2, head_width=8, patch=4)
MODEL = MotionConfig(latent=4, frames=8, entries=16, content_patch=4, width=32, depth=2, heads=2, context=16, prediction="v")
TEXT = TextConfig(VOCABULARY, 24, 16, 1)


def random_parts(seed=0):
    torch.manual_seed(seed)
    parts = {"codec": ContentMotionCodec(CODEC), "net": MotionDiT(MODEL), "text": TextEncoder(TEXT)}
    return {name: part.eval() for name, part in parts.items()}


def file_of(tmp_path, parts, info):
    tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    weights.save(tmp_path / "model.safetensors", tensors, info)
    return (tmp_path / "model.safetensors").read_bytes()


@pytest.fixture
def parts():
    return random_parts()


@pytest.fixture
def cmd_file(parts, tmp_path, model_file):
    return model_file(file_of(tmp_path, parts, checkpoint.to_info(MODEL, TEXT, CODEC)), "cmd.safetensors")


@pytest.fixture
def clip_file(server):
    """A procedural clip as a LATENT of pixels in the host's input folder, and its tensor 1 C T H W."""
    kept = []

    def make(frames=8, size=32, seed=3):
        clip = torch.from_numpy(render(random_scene(np.random.default_rng(seed)), frames, size)).permute(3, 0, 1, 2)[None]
        path = server.base / "input" / f"clip{len(kept)}.latent"
        path.parent.mkdir(exist_ok=True)
        tensors = {"latent_tensor": (clip * 2 - 1).contiguous(), "latent_format_version_0": torch.zeros(1)}
        save_file(tensors, path)
        server.get("/object_info/LoadLatent")
        kept.append(path)
        return path.name, clip * 2 - 1

    yield make
    for path in kept:
        path.unlink()


def loaded(name, clip):
    """Model, its clip as frames, and both parts of it: nodes 1, 5 and 6."""
    return {
        "1": node("LoadVideoModel", model_name=name),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a red star rotates over a black background"),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("LoadLatent", latent=clip),
        "40": node("LoadVideoModel", model_name="shapes-vdm.safetensors"),
        "5": node("VAEDecode", samples=["4", 0], vae=["40", 2]),
        "6": node("EncodeContentMotion", codec=["1", 3], frames=["5", 0]),
    }


def pictures(output, entry):
    return np.stack([np.array(Image.open(output(item)).convert("RGB")) for item in entry["images"]]) / 255.0


def eight_bit(clip):
    """A clip 1 C T H W in [-1, 1] as a PNG would hold it."""
    return ((clip[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1).numpy()


def test_both_parts_are_the_cores_and_make_the_clip_again(parts, cmd_file, clip_file, run, output):
    name, clip = clip_file(frames=11)  # two windows, the second one short
    prompt = loaded(cmd_file, name) | {
        "7": node("DecodeContentMotion", codec=["1", 3], content=["6", 0], motion=["6", 1]),
        "8": node("SaveImage", images=["7", 0], filename_prefix="cm/made"),
        "9": node("SaveImage", images=["6", 0], filename_prefix="cm/content"),
        "10": node("SaveImage", images=["6", 2], filename_prefix="cm/importance"),
        "11": keep_latent("6", "latents/motion"),
    }
    prompt["11"]["inputs"]["samples"] = ["6", 1]
    outputs = run(prompt)["outputs"]
    with torch.no_grad():
        encoded = parts["codec"].encode(clip)
        again = parts["codec"].decode(encoded.content, encoded.motion)
    motion = load_file(output(outputs["11"]["latents"][0]))["latent_tensor"]
    torch.testing.assert_close(motion, encoded.motion, atol=1e-4, rtol=1e-4)
    content = pictures(output, outputs["9"])
    assert content.shape == (2, 32, 32, 3)
    assert np.abs(content - eight_bit(encoded.content[0].movedim(0, 1)[None])).max() < 0.006
    made = pictures(output, outputs["8"])
    assert made.shape == (11, 32, 32, 3) and np.abs(made - eight_bit(again)).max() < 0.006
    importance = pictures(output, outputs["10"])
    assert importance.shape == (11, 32, 32, 3) and importance.min() > 0 and importance.max() == 1


def test_a_video_goes_in_and_an_edited_frame_changes_the_clip(cmd_file, clip_file, run, output):
    prompt = loaded(cmd_file, clip_file()[0]) | {
        "50": node("CreateVideo", images=["5", 0], fps=8),
        "6": node("EncodeContentMotion", codec=["1", 3], frames=["50", 0]),
        "7": node("ImageInvert", image=["6", 0]),
        "8": node("DecodeContentMotion", codec=["1", 3], content=["6", 0], motion=["6", 1]),
        "9": node("DecodeContentMotion", codec=["1", 3], content=["7", 0], motion=["6", 1]),
        "10": node("SaveImage", images=["8", 0], filename_prefix="cm/as_is"),
        "11": node("SaveImage", images=["9", 0], filename_prefix="cm/edited"),
    }
    outputs = run(prompt)["outputs"]
    as_is, edited = pictures(output, outputs["10"]), pictures(output, outputs["11"])
    assert as_is.shape == edited.shape == (8, 32, 32, 3) and np.abs(as_is - edited).mean() > 0.01


def test_the_motion_model_samples_by_any_sampler(cmd_file, clip_file, latents):
    prompt = loaded(cmd_file, clip_file(frames=16)[0]) | {
        "7": node("AttachContentFrame", model=["1", 0], codec=["1", 3], content=["6", 0]),
        "8": sample(model=("7", 0), latent=("7", 1)),
        "9": node(
            "KSampler", model=["7", 0], positive=["2", 0], negative=["3", 0], latent_image=["7", 1],
            seed=1, steps=4, cfg=3.0, sampler_name="euler", scheduler="sgm_uniform", denoise=1.0,
        ),
        "10": node("ImageFromBatch", image=["6", 0], batch_index=1, length=1),
        "11": node("AttachContentFrame", model=["1", 0], codec=["1", 3], content=["10", 0]),
        "12": node("LatentFromBatch", samples=["7", 1], batch_index=1, length=1),
        "13": sample(model=("11", 0), latent=("12", 0)),
        "20": keep_latent("8", "latents/ours"),
        "21": keep_latent("9", "latents/stock"),
        "22": keep_latent("13", "latents/second"),
    }  # fmt: skip
    found = latents(prompt)
    assert found["20"].shape == (2, 4, 8, 16) and torch.isfinite(found["20"]).all()
    assert (found["20"] - found["21"]).abs().max() < 1e-2
    torch.testing.assert_close(found["22"][0], found["20"][1], atol=1e-4, rtol=1e-4)  # each has its own content frame


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for CPUs with g++, which is not here")
def test_the_motion_model_may_be_compiled(cmd_file, clip_file, latents):
    """By the host's own node; another content frame must not meet the graph of the first."""
    prompt = loaded(cmd_file, clip_file(frames=16)[0]) | {
        "7": node("TorchCompileModel", model=["1", 0], backend="inductor"),
        "60": node("ImageInvert", image=["6", 0]),
    }
    for number, (model, content) in enumerate([("1", "6"), ("7", "6"), ("1", "60"), ("7", "60")], 70):
        prompt |= {
            f"{number}": node("AttachContentFrame", model=[model, 0], codec=["1", 3], content=[content, 0]),
            f"{number + 10}": sample(model=(f"{number}", 0), latent=(f"{number}", 1)),
            f"{number + 20}": keep_latent(f"{number + 10}", f"latents/compiled{number}"),
        }
    found = latents(prompt)
    for plain, compiled in (("90", "91"), ("92", "93")):
        torch.testing.assert_close(found[compiled], found[plain], atol=1e-3, rtol=1e-3)
    assert (found["90"] - found["92"]).abs().max() > 1e-2


def test_sampled_motion_decodes_and_inverts(cmd_file, clip_file, run, output):
    """One content frame, a motion that was sampled, inverted and sampled again, saved, loaded and decoded."""
    prompt = loaded(cmd_file, clip_file()[0]) | {
        "7": node("AttachContentFrame", model=["1", 0], codec=["1", 3], content=["6", 0]),
        "8": node(
            "DDIMInvert", model=["7", 0], positive=["2", 0], latent_image=["6", 1], steps=6, schedule="uniform_time",
            method="fixed_point", start_at_step=1,
        ),
        "9": sample(
            model=("7", 0), latent=("8", 0), steps=6, guidance_scale=1.0, add_noise=False, start_at_step=1,
        ),
        "10": node("DecodeContentMotion", codec=["1", 3], content=["6", 0], motion=["9", 0]),
        "11": node("DecodeContentMotion", codec=["1", 3], content=["6", 0], motion=["6", 1]),
        "12": node("SaveImage", images=["10", 0], filename_prefix="cm/round"),
        "13": node("SaveImage", images=["11", 0], filename_prefix="cm/straight"),
    }  # fmt: skip
    outputs = run(prompt)["outputs"]
    assert np.abs(pictures(output, outputs["12"]) - pictures(output, outputs["13"])).max() < 0.01


def test_known_motion_steers_the_rest(cmd_file, clip_file, latents):
    """The first and last frames' motion given: those rows come out as they went in, and the others change."""
    prompt = loaded(cmd_file, clip_file()[0]) | {
        "7": node("AttachContentFrame", model=["1", 0], codec=["1", 3], content=["6", 0]),
        "8": node("LatentCut", samples=["6", 1], dim="y", index=0, amount=3),
        "9": node("ReconstructionGuide", model=["7", 0], kind="frames", weight=2.0, latent=["8", 0], frames="0, 1, -1"),
        "10": sample(model=("9", 0), latent=("7", 1)),
        "11": sample(model=("7", 0), latent=("7", 1)),
        "20": keep_latent("10", "latents/steered"),
        "21": keep_latent("11", "latents/free"),
        "22": keep_latent("8", "latents/known"),
    }
    found = latents(prompt)
    torch.testing.assert_close(found["20"][:, :, [0, 1, 7]], found["22"], atol=1e-4, rtol=1e-4)
    assert (found["20"][:, :, 2:7] - found["21"][:, :, 2:7]).abs().max() > 1e-4


def test_a_content_frame_of_another_size_is_resized_and_says_so(cmd_file, clip_file, run, output):
    prompt = loaded(cmd_file, clip_file()[0]) | {
        "7": node("ImageScale", image=["6", 0], upscale_method="nearest-exact", width=64, height=64, crop="disabled"),
        "8": node("DecodeContentMotion", codec=["1", 3], content=["7", 0], motion=["6", 1]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="cm/resized"),
    }
    outputs = run(prompt)["outputs"]
    assert pictures(output, outputs["9"]).shape == (8, 32, 32, 3)
    assert outputs["8"]["text"] == ["The content frame was resized from 64x64 to 32x32."]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"7": node("ImageScale", image=["6", 0], upscale_method="area", width=64, height=32, crop="disabled")},
            "content frame of 32x32; got one of 64x32",
        ),
        ({"6": node("EncodeContentMotion", codec=["1", 3], frames=["60", 0])}, "multiples of 4; got 30x32"),
        ({"8": node("DecodeContentMotion", codec=["1", 3], content=["5", 0], motion=["6", 1])}, "need 1 content frame"),
        ({"8": node("DecodeContentMotion", codec=["1", 3], content=["6", 0], motion=["4", 0])}, "batch x 4 x frames x"),
        (
            {"8": node("DecodeContentMotion", codec=["40", 3], content=["6", 0], motion=["6", 1])},
            "no content-motion autoenc",
        ),
        ({"8": node("VAEDecode", vae=["1", 2], samples=["6", 1])}, "decoded by Decode Content Motion"),
        ({"8": node("AttachContentFrame", model=["40", 0], codec=["1", 3], content=["6", 0])}, "works on motion models"),
    ],
)
def test_what_does_not_fit_is_refused(cmd_file, clip_file, run, change, message):
    prompt = loaded(cmd_file, clip_file()[0]) | {
        "60": node("EmptyImage", width=30, height=32, batch_size=4, color=0),
        "7": node("ImageInvert", image=["6", 0]),
        "8": node("DecodeContentMotion", codec=["1", 3], content=["7", 0], motion=["6", 1]),
        "9": node("PreviewImage", images=["8", 0]),
    }
    prompt |= change
    if prompt["8"]["class_type"] == "AttachContentFrame":
        prompt["9"] = keep_latent("8")
        prompt["9"]["inputs"]["samples"] = ["8", 1]
    with pytest.raises(RunError, match=message):
        run(prompt)


@pytest.mark.parametrize("kind", ["ExtendVideo", "TemporalUpsample", "SpatialUpsample"])
def test_window_nodes_refuse_a_motion_model(cmd_file, clip_file, run, kind):
    """They make frames, which this model does not; Reconstruction Guide is for it."""
    own = {"ExtendVideo": {"new_frames": 4}, "TemporalUpsample": {"factor": 2}, "SpatialUpsample": {"factor": 2}}[kind]
    prompt = loaded(cmd_file, clip_file()[0]) | {
        "7": node("AttachContentFrame", model=["1", 0], codec=["1", 3], content=["6", 0]),
        "8": node(
            kind, model=["7", 0], positive=["2", 0], negative=["3", 0], vae=["1", 2], image=["5", 0], seed=1, steps=2,
            guidance_scale=1.0, sampler="ddim", schedule="uniform_time", weight=1.0, window=4, overlap=1, **own,
        ),
        "9": node("PreviewImage", images=["8", 0]),
    }  # fmt: skip
    with pytest.raises(RunError, match="makes motion latents"):
        run(prompt)


def test_motion_of_another_autoencoder_is_refused(cmd_file, clip_file, tmp_path, model_file, run):
    codec = ContentMotionCodec(CODEC)
    other = model_file(file_of(tmp_path, {"codec": codec}, content_motion.to_info(CODEC)), "codec.safetensors")
    prompt = loaded(cmd_file, clip_file()[0]) | {
        "7": node("LoadVideoModel", model_name=other),  # an autoencoder alone
        "8": node("DecodeContentMotion", codec=["7", 3], content=["6", 0], motion=["6", 1]),
        "9": node("PreviewImage", images=["8", 0]),
    }
    with pytest.raises(RunError, match="of another autoencoder"):
        run(prompt)


def test_a_motion_model_without_a_content_frame_says_what_to_do(cmd_file, clip_file, run):
    prompt = loaded(cmd_file, clip_file()[0]) | {"8": sample(latent=("6", 1)), "9": keep_latent("8")}
    with pytest.raises(RunError, match="put Attach Content Frame"):
        run(prompt)


def test_a_content_model_is_a_lora_that_stock_nodes_train_save_and_load(request, server, cmd_file, clip_file, latents):
    """Content frames are pictures, so the host's own LoRA training makes an image model a content model."""
    shipped = node("LoadVideoModel", model_name="shapes-image.safetensors")
    prompt = loaded(cmd_file, clip_file(frames=24)[0]) | {
        "1": node("LoadVideoModel", model_name=cmd_file),
        "30": shipped,
        "31": node("VAEEncode", pixels=["6", 0], vae=["30", 2]),
        "32": node("CLIPTextEncode", clip=["30", 1], text="a red star rotates over a black background"),
        "33": node(
            "TrainLoraNode", model=["30", 0], latents=["31", 0], positive=["32", 0], batch_size=2, grad_accumulation_steps=1,
            steps=3, learning_rate=0.01, rank=4, optimizer="AdamW", loss_function="MSE", seed=0, training_dtype="fp32",
            lora_dtype="fp32", quantized_backward=False, algorithm="LoRA", gradient_checkpointing=False, checkpoint_depth=1,
            offloading=False, existing_lora="[None]", bucket_mode=False, bypass_mode=False,
        ),
        "34": node("SaveLoRA", lora=["33", 0], prefix="loras/content", steps=["33", 2]),
    }  # fmt: skip
    run_prompt(server, prompt, 300)
    (file,) = (server.base / "output" / "loras").glob("content*.safetensors")
    (server.base / "models" / "loras").mkdir(exist_ok=True)
    request.addfinalizer(file.rename(server.base / "models" / "loras" / file.name).unlink)
    server.get("/object_info/LoraLoaderModelOnly")
    found = latents(
        {
            "1": shipped,
            "2": node("CLIPTextEncode", clip=["1", 1], text="a red star rotates over a black background"),
            "3": node("CLIPTextEncode", clip=["1", 1], text=""),
            "4": node("EmptyLatentImage", width=32, height=32, batch_size=1),
            "5": node("LoraLoaderModelOnly", model=["1", 0], lora_name=file.name, strength_model=1.0),
            "6": sample(model=("5", 0)),
            "7": sample(),
            "8": keep_latent("6", "latents/lora"),
            "9": keep_latent("7", "latents/plain"),
        }
    )
    assert torch.isfinite(found["8"]).all() and (found["8"] - found["9"]).abs().max() > 1e-3
