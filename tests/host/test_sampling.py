"""Sampling in a real ComfyUI, through its API."""

import asyncio
import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from launch.prompt import RunError, output_files
from vidcore.video import probe

from .prompts import TEXT, keep_latent, loaded, node, sample, to_video


def test_a_prompt_becomes_an_mp4(run, output):
    history = run({**loaded(), "5": sample(), **to_video("5", rate=12)})
    (item,) = output_files(history)
    info = probe(output(item))
    assert (info.frames, info.height, info.width, float(info.rate)) == (8, 32, 32, 12.0)


def test_stock_samplers_take_our_model_and_agree_with_ours(latents):
    """Euler on the host's sgm_uniform grid is DDIM on the paper's grid: three routes, one clip."""
    stock = dict(seed=1, steps=6, cfg=3.0, sampler_name="euler", scheduler="sgm_uniform", denoise=1.0)
    found = latents(
        {
            **loaded(),
            "5": sample(steps=6),
            "6": keep_latent("5"),
            "7": node("KSampler", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], **stock),
            "8": keep_latent("7"),
            "9": node("RandomNoise", noise_seed=1),
            "10": node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=3.0),
            "11": node("KSamplerSelect", sampler_name="euler"),
            "12": node("BasicScheduler", model=["1", 0], scheduler="sgm_uniform", steps=6, denoise=1.0),
            "13": node(
                "SamplerCustomAdvanced",
                noise=["9", 0], guider=["10", 0], sampler=["11", 0], sigmas=["12", 0], latent_image=["4", 0],
            ),
            "14": keep_latent("13"),
        }
    )  # fmt: skip
    assert found["6"].shape == (1, 3, 8, 32, 32)
    # Euler subtracts numbers of the size of sigma = 2e4 in float32, which costs it two more digits than DDIM's form.
    for other in ("8", "14"):
        assert (found["6"] - found[other]).abs().max() < 1e-2 and (found["6"] - found[other]).abs().mean() < 1e-3
    assert torch.equal(found["8"], found["14"])


@pytest.mark.parametrize(
    "sampler, schedule", [("vdm_ancestral", "uniform_time"), ("dpmpp_2m", "karras"), ("uni_pc", "normal"), ("lcm", "simple")]
)
def test_other_samplers_and_schedules_give_finite_clips(latents, sampler, schedule):
    (clip,) = latents({**loaded(), "5": sample(sampler=sampler, schedule=schedule), "6": keep_latent("5")}).values()
    assert clip.shape == (1, 3, 8, 32, 32) and torch.isfinite(clip).all() and 0.05 < clip.std() < 3


def test_the_seed_decides_and_gamma_counts(latents):
    variants = [dict(seed=1), dict(seed=1, steps=5), dict(seed=2), dict(seed=1, gamma=1.0), dict(seed=1)]
    prompt = loaded()
    for i, variant in enumerate(variants):
        prompt[str(10 + i)] = sample(sampler="vdm_ancestral", **variant)
        prompt[str(20 + i)] = keep_latent(str(10 + i), f"latents/v{i}")
    found = latents(prompt)
    first, *others, again = (found[str(20 + i)] for i in range(len(variants)))
    assert torch.equal(first, again)
    assert all((first - other).abs().max() > 1e-3 for other in others)


def test_text_steers_and_no_text_is_the_zero_embedding(latents):
    found = latents(
        {
            **loaded(),
            "5": sample(),
            "6": keep_latent("5", "latents/a"),
            "7": node("ConditioningZeroOut", conditioning=["2", 0]),
            "8": sample(negative=("7", 0)),
            "9": keep_latent("8", "latents/b"),
            "10": node(
                "CLIPTextEncode", clip=["1", 1], text="a large (green:1.3) star moves left over a dark blue background"
            ),
            "11": sample(positive=("10", 0)),
            "12": keep_latent("11", "latents/c"),
        }
    )
    torch.testing.assert_close(found["6"], found["9"])
    assert (found["6"] - found["12"]).abs().max() > 1e-2


def test_a_weight_of_one_changes_nothing_and_zero_silences_a_word(latents):
    texts = ["a red star", "a (red:1.0) star", "a (red:0.0) star"]
    prompt = loaded()
    for i, text in enumerate(texts):
        prompt[str(30 + i)] = node("CLIPTextEncode", clip=["1", 1], text=text)
        prompt[str(40 + i)] = sample(positive=(str(30 + i), 0))
        prompt[str(50 + i)] = keep_latent(str(40 + i), f"latents/w{i}")
    found = latents(prompt)
    assert torch.equal(found["50"], found["51"]) and not torch.equal(found["50"], found["52"])


def test_batches_and_other_lengths(latents):
    found = latents(
        {
            **loaded(batch=2),
            "5": sample(),
            "6": keep_latent("5"),
            "14": node("EmptyVideoLatent", width=48, height=32, frames=12, batch_size=1),
            "15": sample(latent=("14", 0)),
            "16": keep_latent("15"),
            "24": node("EmptyVideoLatent", width=32, height=32, frames=1, batch_size=1),
            "25": sample(latent=("24", 0)),
            "26": keep_latent("25"),
        }
    )
    assert found["6"].shape == (2, 3, 8, 32, 32) and (found["6"][0] - found["6"][1]).abs().max() > 1e-2
    assert found["16"].shape == (1, 3, 12, 32, 48) and found["26"].shape == (1, 3, 1, 32, 32)


def test_vae_decode_and_encode_keep_every_frame(latents):
    found = latents(
        {
            **loaded(),
            "5": sample(),
            "6": keep_latent("5", "latents/a"),
            "7": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
            "8": node("VAEEncode", pixels=["7", 0], vae=["1", 2]),
            "9": keep_latent("8", "latents/b"),
        }
    )
    torch.testing.assert_close(found["9"], found["6"].clamp(-1, 1), atol=1e-5, rtol=0)


def test_tiles_of_a_clip_are_put_together_again(latents):
    tiles = dict(vae=["1", 2], tile_size=64, overlap=32, temporal_size=8, temporal_overlap=4)
    found = latents(
        {
            **loaded(frames=12),
            "5": sample(steps=2),
            "6": node("LatentUpscaleBy", samples=["5", 0], upscale_method="bilinear", scale_by=3.0),
            "7": keep_latent("6", "latents/a"),
            "8": node("VAEDecodeTiled", samples=["6", 0], **tiles),
            "9": node("VAEEncodeTiled", pixels=["8", 0], **tiles),
            "10": keep_latent("9", "latents/b"),
        }
    )
    torch.testing.assert_close(found["10"], found["7"].clamp(-1, 1), atol=1e-5, rtol=0)


def test_a_little_denoising_stays_near_the_given_clip(latents):
    found = latents(
        {
            **loaded(),
            "5": sample(steps=10),
            "6": keep_latent("5", "latents/a"),
            "7": sample(latent=("5", 0), steps=5, denoise=0.1, seed=9),
            "8": keep_latent("7", "latents/b"),
            "9": sample(latent=("5", 0), steps=5, denoise=0.95, seed=9),
            "10": keep_latent("9", "latents/c"),
        }
    )
    near, far = ((found[n] - found["6"]).abs().mean() for n in ("8", "10"))
    assert near < 0.1 and near < 0.5 * far


def test_cancel_stops_at_once_and_the_next_run_works(interrupted, run):
    assert "execution_interrupted" in interrupted({**loaded(), "5": sample(steps=5000), "6": keep_latent("5")})
    run({**loaded(), "5": sample(), "6": keep_latent("5")})


def test_progress_counts_steps_and_previews_show_the_whole_clip(server):
    aiohttp = pytest.importorskip("aiohttp", reason="comes with ComfyUI")
    steps, previews = [], []

    async def watch():
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId=watcher") as socket:
            prompt = {**loaded(), "5": sample(steps=7, seed=77), "6": keep_latent("5")}
            await session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": "watcher"})
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY and message.data[:4] == (1).to_bytes(4, "big"):
                    previews.append(Image.open(io.BytesIO(message.data[8:])))
                elif message.type == aiohttp.WSMsgType.TEXT:
                    event = message.json()
                    if event["type"] == "progress":
                        steps.append((event["data"]["value"], event["data"]["max"]))
                    if event["type"] in ("execution_success", "execution_error"):
                        return event["type"]

    assert asyncio.run(asyncio.wait_for(watch(), 120)) == "execution_success"
    assert [s for s in steps if s[1] == 7][-1] == (7, 7) and len({s for s in steps if s[1] == 7}) == 7
    # Eight frames on a 3 x 3 sheet, which the host enlarges.
    width, height = previews[-1].size
    assert width == height >= 192
    last = np.asarray(previews[-1].convert("RGB").resize((192, 192)), float)
    frames = last.reshape(3, 64, 3, 64, 3).swapaxes(1, 2).reshape(9, 64, 64, 3)
    assert (frames[:8].mean((1, 2, 3)) > 20).all() and frames[8].mean() < 3  # the ninth place is blank


def put_latent(server, name, tensor):
    save_file({"latent_tensor": tensor, "latent_format_version_0": torch.zeros(1)}, server.base / "input" / name)


def test_bad_latents_and_prompts_get_one_clear_message_each(server, run):
    put_latent(server, "four.latent", torch.randn(1, 4, 8, 8))
    put_latent(server, "nan.latent", torch.full((1, 3, 2, 8, 8), float("nan")))
    put_latent(server, "odd.latent", torch.randn(1, 3, 2, 9, 8))
    from_file = lambda name: {"4": node("LoadLatent", latent=name)}  # noqa: E731
    cases = [
        ({**loaded(text="a zebra wearing a hat"), "5": sample()}, "does not know: hat, wearing, zebra"),
        ({**loaded(text="a red " + "star " * 30), "5": sample()}, "at most 24 words"),
        ({**loaded(), **from_file("four.latent"), "5": sample()}, "takes latents of batch x 3 x frames x height x width"),
        ({**loaded(), **from_file("nan.latent"), "5": sample()}, "NaN or infinite"),
        ({**loaded(), **from_file("odd.latent"), "5": sample()}, "multiples of 8"),
        ({**loaded(frames=0), "5": sample()}, "smaller than min"),
        ({**loaded(width=100000), "5": sample()}, "bigger than max"),
        (
            {**loaded(width=4096, height=4096, frames=1024, batch=64), "5": sample()},
            "lower width, height, frames or batch_size",
        ),
        ({**loaded(), "5": sample(steps=0)}, "smaller than min"),
        ({**loaded(), "5": sample(sampler="magic")}, "not in list"),
        ({**loaded(model="none.safetensors"), "5": sample()}, "no video model 'none.safetensors'"),
    ]
    for prompt, message in cases:
        prompt["6"] = keep_latent("5")
        with pytest.raises(RunError, match=message):
            run(prompt)
    run({**loaded(), "5": sample(steps=1), "6": keep_latent("5")})


def test_a_model_that_makes_no_numbers_is_stopped(run):
    """Patched for another kind of model here; one that overflows in half precision does the same."""
    prompt = loaded() | {
        "6": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "9": node("ModelSamplingDiscrete", model=["1", 0], sampling="v_prediction", zsnr=False),
    }
    how = dict(model=["9", 0], positive=["2", 0], steps=2, schedule="uniform_time")
    extend = node(
        "ExtendVideo", **how, negative=["3", 0], vae=["1", 2], image=["6", 0], new_frames=8, seed=1, guidance_scale=1.0,
        sampler="ddim", weight=0.0, window=8, overlap=4,
    )  # fmt: skip
    invert = node("DDIMInvert", **how, latent_image=["4", 0], method="ddim")
    for stopped in (sample(model=("9", 0)), extend, invert):
        shown = node("PreviewImage", images=["5", 0]) if stopped is extend else keep_latent("5")
        with pytest.raises(RunError, match="became NaN or infinite"):
            run({**prompt, "5": stopped, "7": shown})


def test_files_that_are_no_model_are_refused_before_anything_runs(run, model_file, shipped, tmp_path):
    save_file({"model.diffusion_model.weight": torch.ones(2)}, tmp_path / "sd.safetensors", {"format": "pt"})
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle")
    cases = [
        (shipped[: len(shipped) // 2], "cut.safetensors", "not a readable safetensors file"),
        (b"", "empty.safetensors", "not a readable safetensors file"),
        (b"\0" * 4096, "zeros.safetensors", "not a readable safetensors file"),
        ((tmp_path / "pickle").read_bytes(), "pickle.safetensors", "not a readable safetensors file"),
        ((tmp_path / "sd.safetensors").read_bytes(), "sd.safetensors", "not a vidcore model.*Load Checkpoint"),
    ]
    for content, name, message in cases:
        with pytest.raises(RunError, match=message):
            run({**loaded(model=model_file(content, name)), "5": sample(), "6": keep_latent("5")})


def test_weights_that_do_not_fit_their_description_are_named(run, model_file, shipped, tmp_path):
    from vidcore import weights

    (tmp_path / "m.safetensors").write_bytes(shipped)
    tensors, info = weights.load(tmp_path / "m.safetensors")
    del tensors["net.head.weight"]
    weights.save(tmp_path / "less.safetensors", tensors, info)
    name = model_file((tmp_path / "less.safetensors").read_bytes(), "less.safetensors")
    with pytest.raises(RunError, match="network weights do not fit.*missing head.weight"):
        run({**loaded(model=name), "5": sample(), "6": keep_latent("5")})


def test_extra_model_paths_are_respected(server, run, shipped):
    (server.base / "elsewhere" / "mine.safetensors").write_bytes(shipped)
    listed = server.get("/object_info/LoadVideoModel")["LoadVideoModel"]["input"]["required"]["model_name"]
    assert {"mine.safetensors", "shapes-vdm.safetensors"} <= set(listed[1]["options"])
    run({**loaded(model="mine.safetensors"), "5": sample(steps=1), "6": keep_latent("5")})


def test_a_model_in_the_host_s_folder_loads_like_the_shipped_one(latents, model_file, shipped):
    name = model_file(shipped, "copy.safetensors")
    one, two = (
        latents({**loaded(text=TEXT, model=m), "5": sample(), "6": keep_latent("5")})["6"]
        for m in (name, "shapes-vdm.safetensors")
    )
    assert torch.equal(one, two)
