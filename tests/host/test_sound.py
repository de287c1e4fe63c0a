"""Models that make a video and its sound at once, in the layouts of public ones, with random weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from launch.prompt import RunError

from .prompts import keep_latent, node, sample
from .random_weights import weights

# Of the video, of the sound, and of a text token.
SIZES = {
    "ltx2": ((1, 128, 3, 4, 4), (1, 8, 5, 16), 96),
    "minimax_h3": ((1, 24, 2, 4, 4), (1, 32, 2, 8), 48),
}


@pytest.fixture(scope="module", params=SIZES)
def model(request, server):
    """(kind, the file's name among the host's diffusion models)."""
    with weights(server, request.param, "diffusion_models", "UNETLoader") as name:
        yield request.param, name


def saved(server, name, tensor):
    """A LoadLatent node of a file with these samples."""
    tensors = {"latent_tensor": tensor, "latent_format_version_0": torch.zeros(1)}
    save_file(tensors, server.base / "input" / f"{name}.latent")
    return node("LoadLatent", latent=f"{name}.latent")


@pytest.fixture
def prompt(model, server):
    """Nodes: model, conditioning, an empty latent with sound (4), one that is not empty (5), and what that holds."""
    kind, name = model
    *shapes, width = SIZES[kind]
    generator = torch.Generator().manual_seed(3)
    known = [torch.randn(shape, generator=generator) for shape in shapes]
    nodes = {
        "1": node("UNETLoader", unet_name=name, weight_dtype="default"),
        "2": node("RandomConditioning", tokens=8, width=width, seed=1),
        "3": node("RandomConditioning", tokens=8, width=width, seed=2),
    }
    for number, parts in (("4", [torch.zeros(shape) for shape in shapes]), ("5", known)):
        for letter, part in zip("va", parts):
            nodes[number + letter] = saved(server, f"{kind}_{number}{letter}", part)
        nodes[number] = node("LTXVConcatAVLatent", video_latent=[f"{number}v", 0], audio_latent=[f"{number}a", 0])
    return nodes, known


def parted(source):
    """Nodes that keep the video and the sound of node ``source``, to be read as ``source`` + "v" and "a"."""
    return {
        f"{source}s": node("LTXVSeparateAVLatent", av_latent=[source, 0]),
        f"{source}v": node("SaveLatent", samples=[f"{source}s", 0], filename_prefix="latents/video"),
        f"{source}a": node("SaveLatent", samples=[f"{source}s", 1], filename_prefix="latents/sound"),
    }


def ksampler(model="1"):
    return node(
        "KSampler", model=[model, 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
        seed=1, steps=4, cfg=3.0, sampler_name="euler", scheduler="sgm_uniform", denoise=1.0,
    )  # fmt: skip


def test_sample_video_makes_what_the_hosts_sampler_makes(prompt, latents):
    nodes, _ = prompt
    nodes |= {"10": ksampler(), "11": sample(), "12": sample(sampler="vdm_ancestral"), "13": sample(sampler="edm_heun")}
    found = latents({**nodes, **parted("10"), **parted("11"), **parted("12"), **parted("13")})
    for part in "va":
        torch.testing.assert_close(found[f"11{part}"], found[f"10{part}"], atol=2e-3, rtol=2e-3)
        for other in ("12", "13"):
            assert torch.isfinite(found[other + part]).all()
            assert (found[other + part] - found[f"11{part}"]).abs().max() > 1e-2


def test_inversion_is_walked_back_in_picture_and_sound(prompt, latents):
    nodes, known = prompt
    invert = dict(model=["1", 0], positive=["2", 0], latent_image=["5", 0], steps=20, schedule="uniform_time")
    nodes["10"] = node("DDIMInvert", method="fixed_point", iterations=8, start_at_step=2, **invert)
    nodes["11"] = sample(latent=("10", 0), steps=20, guidance_scale=1.0, start_at_step=2, add_noise=False)
    found = latents({**nodes, **parted("10"), **parted("11")})
    for part, given in zip("va", known):
        torch.testing.assert_close(found[f"11{part}"], given, atol=5e-2, rtol=5e-2)
        assert (found[f"10{part}"] - given).abs().mean() > 0.1


def test_what_is_known_of_the_video_guides_it_and_its_sound(prompt, latents):
    nodes, (video, _) = prompt
    nodes |= {
        "6": node("SolidMask", value=1.0, width=4, height=4),
        "7": node("SolidMask", value=0.0, width=2, height=4),
        "8": node("MaskComposite", destination=["6", 0], source=["7", 0], x=0, y=0, operation="multiply"),
    }
    ways = {"0": dict(weight=0.0), "1": dict(weight=2.0), "2": dict(weight=2.0, memory_saver=True)}
    for i, how in ways.items():
        nodes[f"2{i}"] = node("ReconstructionGuide", model=["1", 0], kind="mask", latent=["5", 0], mask=["8", 0], **how)
        nodes |= {f"1{i}": ksampler(f"2{i}"), **parted(f"1{i}")}
    found = latents(nodes)
    for i in ways:
        torch.testing.assert_close(found[f"1{i}v"][..., :2], video[..., :2], atol=2e-2, rtol=2e-2)
    right = (found["11v"] - found["10v"])[..., 2:].abs().max()
    sound = (found["11a"] - found["10a"]).abs().max()
    assert right > 1e-3 and sound > 1e-3  # the gradient reaches what is not known
    for part in "va":  # blocks of these models write over what the way back needs
        assert torch.equal(found[f"12{part}"], found[f"11{part}"])


def test_frames_are_steadied(prompt, latents):
    nodes, _ = prompt
    for i, strength in (("0", 0.0), ("1", 0.5)):
        nodes[f"2{i}"] = node("MitigatingGradientSampling", model=["1", 0], strength=strength)
        nodes |= {f"1{i}": ksampler(f"2{i}"), **parted(f"1{i}")}
    found = latents(nodes)
    apart = [found[f"1{i}v"].diff(dim=2).square().mean() for i in "01"]
    assert apart[1] < 0.9 * apart[0]


def test_each_part_has_a_range_of_its_own(prompt, latents):
    nodes, _ = prompt
    nodes["20"] = node("DynamicThresholding", model=["1", 0], percentile=0.9, limit=0.5)
    nodes |= {"10": ksampler("20"), **parted("10")}
    found = latents(nodes)
    for part in "va":  # the last step gives the estimate itself
        assert found[f"10{part}"].abs().max() == pytest.approx(0.5, rel=1e-3)


def test_a_video_alone(prompt, model, latents, run):
    nodes, _ = prompt
    nodes |= {"10": sample(latent=("4v", 0)), "11": keep_latent("10")}
    if model[0] == "minimax_h3":
        with pytest.raises(RunError, match="the latent has no sound"):
            run(nodes)
        nodes |= {
            "9": node("LoadVideoModel", model_name="shapes-vdm.safetensors"),
            "12": node("EmptyImage", width=32, height=32, batch_size=4, color=0),
            "13": node(
                "ExtendVideo", model=["1", 0], positive=["2", 0], negative=["3", 0], vae=["9", 2], image=["12", 0],
                new_frames=4, seed=1, steps=2, guidance_scale=1.0, sampler="ddim", schedule="uniform_time", weight=1.0,
                window=4, overlap=2,
            ),
            "14": node("PreviewImage", images=["13", 0]),
        }  # fmt: skip
        del nodes["10"], nodes["11"]
        with pytest.raises(RunError, match="video and sound at once, and this node frames alone"):
            run(nodes)
    else:
        assert torch.isfinite(latents(nodes)["11"]).all()


def test_window_nodes_make_frames_of_a_model_of_video_and_sound(prompt, model, server, run, output):
    nodes, _ = prompt
    if model[0] != "ltx2":
        pytest.skip("this model makes no video without sound")
    for number, picture in enumerate(torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(1))):
        Image.fromarray((picture * 255).byte().numpy()).save(server.base / "input" / f"sound_{number}.png")
        nodes[f"3{number}"] = node("LoadImage", image=f"sound_{number}.png")
    nodes["40"] = node("BatchImagesNode", **{f"images.image{i}": [f"3{i}", 0] for i in range(5)})
    how = dict(
        model=["1", 0], positive=["2", 0], negative=["3", 0], vae=["9", 0], image=["40", 0], seed=1, steps=2,
        guidance_scale=1.0, sampler="ddim", schedule="uniform_time", weight=0.01, window=9, overlap=1,
    )  # fmt: skip
    asked = {
        "TemporalUpsample": (dict(factor=2), 9, 64), "ExtendVideo": (dict(new_frames=6, memory_saver=True), 11, 64),
        "SpatialUpsample": (dict(factor=2), 5, 128),
    }  # fmt: skip
    with weights(server, "ltx_vae", "vae", "VAELoader") as name:
        nodes["9"] = node("VAELoader", vae_name=name)
        for number, (kind, (inputs, *_)) in enumerate(asked.items()):
            nodes[f"5{number}"] = node(kind, **how, **inputs)
            nodes[f"6{number}"] = node("SaveImage", images=[f"5{number}", 0], filename_prefix="sound")
        found = run(nodes)["outputs"]
    for number, (_, frames, size) in enumerate(asked.values()):
        pictures = [Image.open(output(item)) for item in found[f"6{number}"]["images"]]
        assert len(pictures) == frames and {picture.size for picture in pictures} == {(size, size)}
        assert all(np.asarray(picture, float).std() > 1 for picture in pictures)
        kept = {0: pictures[::2], 1: pictures[:5]}.get(number, [])  # the frames that were given
        for i, picture in enumerate(kept):
            given = Image.open(server.base / "input" / f"sound_{i}.png")
            assert np.array_equal(np.asarray(picture), np.asarray(given))


def test_a_latent_with_sound_of_another_model_is_refused(prompt, server, run):
    nodes, _ = prompt
    nodes["4v"] = saved(server, "other", torch.zeros(1, 16, 3, 4, 4))
    for kind in (sample(), node("DDIMInvert", model=["1", 0], positive=["2", 0], latent_image=["4", 0], steps=4,
                                schedule="uniform_time", method="ddim")):  # fmt: skip
        with pytest.raises(RunError, match="1 x 16 x 3 x 4 x 4 with 1 x "):
            run({**nodes, "10": kind, **parted("10")})
