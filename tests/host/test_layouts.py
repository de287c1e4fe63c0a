"""Guidance on models in the layouts of public ones, with random weights: an image model on frames, a 5-D video model."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from launch.prompt import RunError

from .prompts import keep_latent, node
from .random_weights import weights

pytestmark = pytest.mark.large
SHAPES = {"sd15": (3, 4, 8, 8), "wan": (1, 16, 3, 8, 8), "sdxl": (3, 4, 8, 8), "sdxl_vega": (3, 4, 8, 8)}
WIDTHS = {"sd15": 768, "wan": 4096, "sdxl": 2048, "sdxl_vega": 2048}  # of a text token


@pytest.fixture(scope="module", params=["sd15", "wan"])
def layout(request, server):
    """(kind, the file's name among the host's diffusion models)."""
    with weights(server, request.param, "diffusion_models", "UNETLoader") as name:
        yield request.param, name


@pytest.fixture
def prompt(layout, server):
    """(kind, known clip, nodes): see `model_and_clips`."""
    kind, name = layout
    return kind, *model_and_clips(kind, name, server)


def model_and_clips(kind, name, server):
    """A known clip, and nodes: model, conditioning, an empty latent (1 to 4), the known clip (5), a mask of its left (8)."""
    known = torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(3))
    for file, tensor in (("known.latent", known), ("empty.latent", torch.zeros(SHAPES[kind]))):
        tensors = {"latent_tensor": tensor, "latent_format_version_0": torch.zeros(1)}
        save_file(tensors, server.base / "input" / f"{kind}_{file}")
    return known, {
        "1": node("UNETLoader", unet_name=name, weight_dtype="default"),
        "2": node("RandomConditioning", tokens=8, width=WIDTHS[kind], seed=1),
        "3": node("RandomConditioning", tokens=8, width=WIDTHS[kind], seed=2),
        "4": node("LoadLatent", latent=f"{kind}_empty.latent"),
        "5": node("LoadLatent", latent=f"{kind}_known.latent"),
        "6": node("SolidMask", value=1.0, width=8, height=8),
        "7": node("SolidMask", value=0.0, width=4, height=8),
        "8": node("MaskComposite", destination=["6", 0], source=["7", 0], x=0, y=0, operation="multiply"),
    }


def ksampler(model, denoise=1.0):
    return node(
        "KSampler", model=[model, 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
        seed=1, steps=3, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=denoise,
    )  # fmt: skip


def test_a_mask_guides_and_saving_memory_changes_nothing(prompt, latents):
    kind, known, nodes = prompt
    guide = dict(model=["1", 0], kind="mask", latent=["5", 0], mask=["8", 0])
    nodes |= {"9": ksampler("1"), "10": keep_latent("9", "latents/plain")}
    for i, how in enumerate((dict(weight=0.0), dict(weight=0.01), dict(weight=0.01, memory_saver=True))):
        nodes[f"2{i}"] = node("ReconstructionGuide", **guide, **how)
        nodes[f"3{i}"] = ksampler(f"2{i}")
        nodes[f"4{i}"] = keep_latent(f"3{i}", f"latents/{i}")
    found = latents(nodes, timeout=600)
    for kept in ("40", "41", "42"):
        torch.testing.assert_close(found[kept][..., :4], known[..., :4], atol=2e-2, rtol=2e-2)
        assert torch.isfinite(found[kept]).all()
    assert (found["41"] - found["40"])[..., 4:].abs().max() > 1e-4  # the gradient reaches the unknown half
    torch.testing.assert_close(found["42"], found["41"], atol=2e-2, rtol=2e-2)
    # Far below what guidance itself changes, or a saver that lost the gradient would pass.
    assert (found["42"] - found["41"]).abs().max() < 0.1 * (found["41"] - found["40"])[..., 4:].abs().max()
    # The model is as it was: without a guide it gives the same bits again. (0.99995 means 1, and that the node runs anew.)
    again = latents({**nodes, "9": ksampler("1", 0.99995), "10": keep_latent("9", "latents/again")}, timeout=600)
    assert torch.equal(again["10"], found["10"])


def guided_by_a_mask(nodes, model, number, **how):
    """Nodes that guide ``model`` by the known left half, sample, and keep the latent under ``number``."""
    nodes[f"7{number}"] = node("ReconstructionGuide", model=[model, 0], kind="mask", latent=["5", 0], mask=["8", 0], **how)
    nodes[f"8{number}"] = ksampler(f"7{number}")
    nodes[number] = keep_latent(f"8{number}", f"latents/{number}")


def test_sdxl_is_guided(server, latents):
    """SDXL is conditioned on a pooled text and on sizes too."""
    with weights(server, "sdxl_vega", "diffusion_models", "UNETLoader") as name:
        known, nodes = model_and_clips("sdxl_vega", name, server)
        guided_by_a_mask(nodes, "1", "10", weight=0.01)
        guided_by_a_mask(nodes, "1", "11", weight=0.0)
        found = latents(nodes, timeout=600)
    assert (found["10"] - found["11"])[..., 4:].abs().max() > 1e-4
    torch.testing.assert_close(found["10"][..., :4], known[..., :4], atol=2e-2, rtol=2e-2)


def test_a_model_in_scaled_fp8_is_guided(server, latents):
    with weights(server, "wan_fp8", "diffusion_models", "UNETLoader") as name:
        known, nodes = model_and_clips("wan", name, server)
        for number, how in (
            ("10", dict(weight=0.0)),
            ("11", dict(weight=0.01)),
            ("12", dict(weight=0.01, memory_saver=True)),
        ):
            guided_by_a_mask(nodes, "1", number, **how)
        found = latents(nodes, timeout=600)
    assert (found["11"] - found["10"])[..., 4:].abs().max() > 1e-4
    assert torch.equal(found["12"], found["11"])
    torch.testing.assert_close(found["11"][..., :4], known[..., :4], atol=2e-2, rtol=2e-2)


def test_a_lora_is_guided_with_its_model(prompt, server, latents):
    kind, known, nodes = prompt
    with weights(server, f"{kind}_lora", "loras", "LoraLoaderModelOnly") as name:
        for number, strength, weight in (("10", 0.0, 0.01), ("11", 1.0, 0.01), ("12", 1.0, 0.0)):
            nodes[f"2{number}"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name=name, strength_model=strength)
            guided_by_a_mask(nodes, f"2{number}", number, weight=weight)
        guided_by_a_mask(nodes, "1", "13", weight=0.01)
        found = latents(nodes, timeout=600)
    assert torch.equal(found["10"], found["13"])  # at strength 0 there is no LoRA
    right = lambda a, b: (found[a] - found[b])[..., 4:].abs().max()  # noqa: E731
    assert right("11", "13") > 1e-4 and right("11", "12") > 1e-4  # the LoRA acts, and guidance through it
    torch.testing.assert_close(found["11"][..., :4], known[..., :4], atol=2e-2, rtol=2e-2)


def test_a_controlnet_is_guided_with_its_model(prompt, server, latents):
    kind, known, nodes = prompt
    if kind != "sd15":
        pytest.skip("ControlNets are Stable Diffusion's")
    with weights(server, "sd15_control", "controlnet", "ControlNetLoader") as name:
        nodes |= {
            "9": node("ControlNetLoader", control_net_name=name),
            "14": node("EmptyImage", width=64, height=64, batch_size=3, color=0x8040C0),
            "15": node(
                "ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], control_net=["9", 0], image=["14", 0],
                strength=1.0, start_percent=0.0, end_percent=1.0,
            ),
        }  # fmt: skip
        for number, weight in (("10", 0.01), ("11", 0.0)):
            guided_by_a_mask(nodes, "1", number, weight=weight)
            nodes[f"8{number}"]["inputs"] |= {"positive": ["15", 0], "negative": ["15", 1]}
        guided_by_a_mask(nodes, "1", "12", weight=0.01)
        found = latents(nodes, timeout=600)
    right = lambda a, b: (found[a] - found[b])[..., 4:].abs().max()  # noqa: E731
    assert right("10", "12") > 1e-4 and right("10", "11") > 1e-4  # the ControlNet acts, and guidance through it
    torch.testing.assert_close(found["10"][..., :4], known[..., :4], atol=2e-2, rtol=2e-2)


def test_the_hosts_context_windows_are_guided(prompt, latents):
    kind, known, nodes = prompt
    nodes["9"] = node(
        "ContextWindowsManual", model=["1", 0], context_length=2, context_overlap=1, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="pyramid", dim=0 if kind == "sd15" else 2, freenoise=False,
        cond_retain_index_list="", split_conds_to_windows=False, latent_retain_index_list="", causal_window_fix=False,
    )  # fmt: skip
    for number, weight in (("10", 0.01), ("11", 0.0)):
        guided_by_a_mask(nodes, "9", number, weight=weight)
    guided_by_a_mask(nodes, "1", "12", weight=0.01)
    found = latents(nodes, timeout=600)
    right = lambda a, b: (found[a] - found[b])[..., 4:].abs().max()  # noqa: E731
    assert right("10", "11") > 1e-4
    assert kind == "sd15" or right("10", "12") > 1e-4  # an image model's frames do not see one another anyhow
    torch.testing.assert_close(found["10"][..., :4], known[..., :4], atol=2e-2, rtol=2e-2)


WINDOWS = dict(
    seed=1, steps=2, guidance_scale=1.0, sampler="ddim", schedule="uniform_time", weight=0.01, window=9, overlap=5
)


def on_frames(kind, image, number, **inputs):
    """Nodes that run a window node and keep its frames without loss, under ``number``."""
    how = dict(model=["1", 0], positive=["2", 0], negative=["3", 0], vae=["9", 0], image=[image, 0]) | WINDOWS | inputs
    return {f"9{number}": node(kind, **how), number: node("SaveImage", images=[f"9{number}", 0], filename_prefix="windows")}


def test_measuring_in_pixels_reaches_the_latent_through_an_image_vae(prompt, server, run, output):
    kind, _, nodes = prompt
    if kind != "sd15":
        pytest.skip("one VAE is enough")
    with weights(server, "sd_vae", "vae", "VAELoader") as name:
        nodes |= {
            "9": node("VAELoader", vae_name=name),
            "14": node("EmptyImage", width=16, height=16, batch_size=3, color=0x8040C0),
        }
        for i, weight in enumerate((0.0, 0.001)):
            nodes[f"2{i}"] = node(
                "ReconstructionGuide", model=["1", 0], kind="low_resolution", image=["14", 0], vae=["9", 0],
                measured_in="pixels", weight=weight, memory_saver=bool(i),
            )  # fmt: skip
            nodes[f"3{i}"] = ksampler(f"2{i}")
            nodes[f"4{i}"] = keep_latent(f"3{i}", f"latents/{i}")
        how = dict(window=2, overlap=1, weight=0.001, memory_saver=True)
        nodes |= on_frames("SpatialUpsample", "14", "50", factor=2, **how)
        history = run(nodes, timeout=600)
    found = {n: load_file(output(o["latents"][0]))["latent_tensor"] for n, o in history["outputs"].items() if "latents" in o}
    assert torch.isfinite(found["41"]).all() and (found["41"] - found["40"]).abs().max() > 1e-4
    large = [np.asarray(Image.open(output(item))) for item in history["outputs"]["50"]["images"]]
    assert [picture.shape for picture in large] == [(32, 32, 3)] * 3 and len({picture.tobytes() for picture in large}) == 3


@pytest.fixture
def packed(prompt, server):
    """For a model whose VAE packs four frames into a latent: the VAE (node 9), clips of 32x32 (20) and 64x64 pixels (21)."""
    kind, _, nodes = prompt
    if kind != "wan":
        pytest.skip("this model has a latent for every frame")
    with weights(server, "wan_vae", "vae", "VAELoader") as name:
        nodes["9"] = node("VAELoader", vae_name=name)
        for number, size in (("20", 32), ("21", 64)):
            pictures = torch.rand(5, size, size, 3, generator=torch.Generator().manual_seed(size))
            for i, picture in enumerate((pictures * 255).round().byte().numpy()):
                Image.fromarray(picture).save(server.base / "input" / f"packed_{size}_{i}.png")
                nodes[f"{number}{i}"] = node("LoadImage", image=f"packed_{size}_{i}.png")
            nodes[number] = node("BatchImagesNode", **{f"images.image{i}": [f"{number}{i}", 0] for i in range(5)})
        yield nodes


def test_window_nodes_on_a_model_that_packs_frames(packed, run, output):
    nodes = {
        **packed,
        **on_frames("TemporalUpsample", "21", "30", factor=2),
        **on_frames("TemporalUpsample", "21", "31", factor=2, weight=0.0),
        **on_frames("ExtendVideo", "21", "32", new_frames=6),
        **on_frames("SpatialUpsample", "20", "33", factor=2),
        **on_frames("SpatialUpsample", "20", "34", factor=2, weight=0.0),
        "40": node("SaveImage", images=["21", 0], filename_prefix="packed"),
    }
    found = run(nodes, timeout=600)["outputs"]
    made = {
        number: np.stack([np.asarray(Image.open(output(item)), float) / 255 for item in found[number]["images"]])
        for number in ("30", "31", "32", "33", "34", "40")
    }
    given = made["40"]
    assert made["30"].shape == made["31"].shape == (9, 64, 64, 3)
    assert np.array_equal(made["30"][::2], given) and not np.array_equal(made["30"][1::2], made["31"][1::2])
    assert made["32"].shape == (11, 64, 64, 3) and np.array_equal(made["32"][:5], given)
    assert all(frame.std() > 0.01 for frame in made["32"][5:])
    assert made["33"].shape == made["34"].shape == (5, 64, 64, 3) and not np.array_equal(made["33"], made["34"])


def test_windows_that_do_not_fit_a_packed_model_are_refused(packed, run):
    packed["10"] = node("LoadVideoModel", model_name="shapes-vdm.safetensors")
    cases = [
        (dict(window=4, overlap=1), "at least 5"),
        (dict(vae=["10", 2]), "latents have 16 channels and the VAE's 3"),
    ]
    for how, message in cases:
        with pytest.raises(RunError, match=message):
            run({**packed, **on_frames("ExtendVideo", "21", "30", new_frames=6, **how)})
