"""What people have on a MODEL beside nodes of this pack: the host's own caches, patches, guidance, and several GPUs."""

import pytest
import torch
from safetensors.torch import load_file

from .prompts import keep_latent, loaded, node, sample, sampled

IMAGE = "shapes-image.safetensors"
MOTION = "shapes-harivo.safetensors"
CACHE = dict(reuse_threshold=3.0, start_percent=0.0, end_percent=1.0)  # answers nearly every step


def cached(model, kind="EasyCache"):
    return node(kind, model=[model, 0], verbose=False, **CACHE)


@pytest.fixture
def nodes():
    """The shipped image model (1), prompts (2, 3), four frames of noise (4), one picture for all of them (5), white (6)."""
    return loaded("a large red circle over a dark blue background", IMAGE) | {
        "4": node("EmptyLatentImage", width=32, height=32, batch_size=4),
        "5": node("VAEEncode", pixels=["6", 0], vae=["1", 2]),
        "6": node("EmptyImage", width=32, height=32, batch_size=4, color=0xFFFFFF),
    }


@pytest.fixture
def folder(emptied):
    """The host's folder of tuned clips."""
    return emptied("tuned_video")


def tuned(model, name, **how):
    """A few steps of Tune-A-Video on the white picture."""
    values = dict(steps=3, learning_rate=1e-3, seed=5, preview_every=0, name=name) | how
    return node("TuneAVideo", model=[model, 0], vae=["1", 2], frames=["6", 0], positive=["2", 0], **values)


@pytest.mark.parametrize("name, size, frames", [("shapes-vdm", 32, 8), ("shapes-snap", 16, 8), ("shapes-image", 32, 1)])
def test_easycache_spares_our_networks_steps(latents, server, name, size, frames):
    """What it answers is not what the network would have said; and the host counts what it spared."""
    prompt = loaded(model=f"{name}.safetensors", width=size, height=size, frames=frames)
    if name == "shapes-image":
        prompt["4"] = node("EmptyLatentImage", width=size, height=size, batch_size=4)
    found = latents(sampled(prompt | {"20": cached("1")}, ["1", "20"], steps=8))
    assert torch.isfinite(found["20k"]).all() and not torch.allclose(found["1k"], found["20k"], atol=1e-2)
    told = [line for line in server.log.read_text().splitlines() if "EasyCache - skipped" in line]
    assert int(told[-1].split("skipped ")[1].split("/")[0]) >= 3


def test_easycache_spares_a_moved_image_model_steps(nodes, latents):
    """The mapping network stands in front of the cache or behind it; the clip is whole in both."""
    nodes |= {
        "20": node("LoadMotionModule", model=["1", 0], motion_name=MOTION), "21": cached("20"), "22": cached("1"),
        "23": node("LoadMotionModule", model=["22", 0], motion_name=MOTION),
    }  # fmt: skip
    found = latents(sampled(nodes, ["20", "21", "23"], steps=8))
    assert all(found[k].shape == (4, 3, 32, 32) and torch.isfinite(found[k]).all() for k in ("20k", "21k", "23k"))
    assert not torch.allclose(found["20k"], found["21k"], atol=1e-2)


def test_freeu_finds_the_shipped_image_models_layers(nodes, latents):
    """It compares the channels of skip connections with four and two times the network's own width."""
    nodes["20"] = node("FreeU_V2", model=["1", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    found = latents(sampled(nodes, ["1", "20"]))
    assert torch.isfinite(found["20k"]).all() and not torch.allclose(found["1k"], found["20k"], atol=1e-3)


@pytest.mark.parametrize("tiles_first", [True, False])
def test_hypertile_leaves_sparse_causal_attention_whole(nodes, latents, tiles_first):
    """It cuts queries into tiles, and each query sees all of both frames in any case."""
    chain = ["HyperTile", "SparseCausalAttention"] if tiles_first else ["SparseCausalAttention", "HyperTile"]
    how = {"HyperTile": dict(tile_size=32, swap_size=1, max_depth=2, scale_depth=False)}
    nodes |= {
        "10": node("SparseCausalAttention", model=["1", 0]),
        "20": node(chain[0], model=["1", 0], **how.get(chain[0], {})),
        "21": node(chain[1], model=["20", 0], **how.get(chain[1], {})),
        "22": node("HyperTile", model=["1", 0], **how["HyperTile"]),
    }
    found = latents(sampled(nodes, ["1", "10", "21", "22"]))
    torch.testing.assert_close(found["21k"], found["10k"])
    assert not torch.allclose(found["22k"], found["1k"], atol=1e-3)  # it does act here


GUIDANCE = {
    "guide": node("ReconstructionGuide", model=["1", 0], kind="frames", weight=1.0, latent=["5", 0], frames=""),
    "steadied": node("MitigatingGradientSampling", model=["1", 0], strength=1.0),
    "threshold": node("DynamicThresholding", model=["1", 0], percentile=0.5, limit=0.5),
    "perturbed": node("PerturbedAttentionGuidance", model=["1", 0], scale=3.0),
    "EasyCache": cached("1"),
    "LazyCache": cached("1", "LazyCache"),
}  # fmt: skip


def test_training_sees_the_network_alone(nodes, run, folder):
    """Guidance and caches on the MODEL are for sampling; the layers learn the same with them and without."""

    def learned(model):
        prompt = {
            **nodes, "20": GUIDANCE.get(model), "9": node("PreviewAny", source=["8", 1]),
            "8": tuned("20" if model else "1", model or "alone", steps=4, preview_every=2),
        }  # fmt: skip
        run({number: n for number, n in prompt.items() if n})
        return load_file(folder / f"{model or 'alone'}_00001.safetensors")

    alone = learned(None)
    for model in GUIDANCE:
        found = learned(model)
        assert all(torch.equal(found[key], alone[key]) for key in alone), model


def test_inversion_asks_the_network_at_every_step(nodes, latents):
    """Caches answer in its place, with what was said at another noise level; and some guidance needs a negative prompt."""
    for number, model in enumerate([None, "EasyCache", "LazyCache"], start=20):
        if model:
            nodes[f"1{number}"] = GUIDANCE[model]
        nodes[f"{number}"] = node(
            "DDIMInvert", model=[f"1{number}" if model else "1", 0], positive=["2", 0], latent_image=["5", 0], steps=6,
            schedule="uniform_time", method="fixed_point", end_at_step=5,
        )  # fmt: skip
        nodes[f"{number}k"] = keep_latent(f"{number}", f"latents/{number}")
    nodes["19"] = node("SelfAttentionGuidance", model=["1", 0], scale=0.0, blur_sigma=2.0)
    nodes["23"] = {**nodes["20"], "inputs": {**nodes["20"]["inputs"], "model": ["19", 0]}}
    nodes["23k"] = keep_latent("23", "latents/23")
    found = latents(nodes)
    assert torch.equal(found["21k"], found["20k"]) and torch.equal(found["22k"], found["20k"])
    assert torch.isfinite(found["23k"]).all()


@pytest.mark.parametrize("ours", ["LoadMotionModule", "SparseCausalAttention"])
def test_the_hosts_context_windows_make_clips_of_their_own(nodes, latents, ours):
    """What is far from a frame does not reach it in one step; a window as long as the clip changes nothing."""
    files = {"LoadMotionModule": {"motion_name": MOTION}}
    nodes["20"] = node(ours, model=["1", 0], **files.get(ours, {}))
    for number, length in (("21", 2), ("22", 4)):
        nodes[number] = node(
            "ContextWindowsManual", model=["20", 0], context_length=length, context_overlap=0, dim=0, fuse_method="flat",
            context_schedule="standard_static", context_stride=1, closed_loop=False, freenoise=False,
            causal_window_fix=False, cond_retain_index_list="", latent_retain_index_list="", split_conds_to_windows=False,
        )  # fmt: skip
    nodes["23"] = node("LatentFromBatch", samples=["4", 0], batch_index=0, length=2)
    nodes["24"] = sample(model=("20", 0), latent=("23", 0), steps=1)
    nodes["25"] = keep_latent("24", "latents/first")
    found = latents(sampled(nodes, ["20", "21", "22"], steps=1))
    assert torch.equal(found["22k"], found["20k"])
    assert not torch.allclose(found["21k"], found["20k"], atol=1e-3)
    torch.testing.assert_close(found["21k"][:2], found["25"])


SPLIT = {
    "sparse": (node("SparseCausalAttention"), 0),
    "guide": (node("ReconstructionGuide", kind="frames", weight=1.0, image=["7", 0], vae=["1", 2], frames="0"), 2),
    "pixels": (
        node(
            "ReconstructionGuide", kind="frames", weight=1.0, image=["6", 0], vae=["1", 2], frames="", measured_in="pixels"
        ), 2,
    ),
    "motion": (node("LoadMotionModule", motion_name=MOTION), 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPLIT)
def test_a_split_over_two_gpus_changes_no_clip(nodes, latents, server, kind):
    """MultiGPU CFG Split stands before our node or behind it. Where it cannot work it is left out, and the log says why."""

    def told(text):
        return server.log.read_text().count(text)

    ours, left_out = SPLIT[kind]
    texts = ("MultiGPU CFG Split is left out", "a split's part runs on cpu:0")
    before = [told(text) for text in texts]
    nodes |= {
        "7": node("ImageFromBatch", image=["6", 0], batch_index=0, length=1),
        "30": node("SplitOverTwo", model=["1", 0]),
        "31": {**ours, "inputs": {**ours["inputs"], "model": ["1", 0]}},
        "32": {**ours, "inputs": {**ours["inputs"], "model": ["30", 0]}},
        "33": node("SplitOverTwo", model=["31", 0]),
    }
    seed = 10 + list(SPLIT).index(kind)  # its own, or the host has kept what came of "1" and "30"
    found = latents(sampled(nodes, ["1", "30", "31", "32", "33"], seed=seed))
    # The second GPU has one of the two prompts in each of four steps, of three clips less those that are not split.
    assert [told(text) - b for text, b in zip(texts, before)] == [left_out, 4 * (3 - left_out)]
    torch.testing.assert_close(found["30k"], found["1k"])
    torch.testing.assert_close(found["32k"], found["31k"])
    torch.testing.assert_close(found["33k"], found["31k"])


def test_tuning_runs_on_one_gpu_of_a_split(nodes, run, folder):
    nodes["30"] = node("SplitOverTwo", model=["1", 0])
    for name, model in (("one", "1"), ("two", "30")):
        nodes |= {f"{name}t": tuned(model, name), f"{name}s": node("PreviewAny", source=[f"{name}t", 1])}
    run(nodes)
    one, two = (load_file(folder / f"{name}_00001.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def guided(model, **how):
    """Towards a small clip, all white."""
    values = dict(kind="low_resolution", weight=50.0, image=["small", 0], vae=["1", 2]) | how
    return node("ReconstructionGuide", model=[model, 0], **values)


SMALL = {"small": node("EmptyImage", width=16, height=16, batch_size=4, color=0xFFFFFF)}


@pytest.mark.parametrize("registered", [False, True])
def test_attention_without_a_way_back(nodes, latents, folder, registered):
    """Guidance and tuning go through the attention that it stands for."""
    names = [f"{name}_{registered}" for name in ("plain", "cut_off", "saver")]  # the host runs no node twice
    nodes |= SMALL | {
        "10": node("CutOffAttention", model=["1", 0], registered=registered),
        "20": guided("1"), "21": guided("10"), "22": guided("10", memory_saver=True),
        "11": node("NoAttention", model=["1", 0]), "26": guided("11", weight=1e-9),
        "23": tuned("1", names[0]), "24": tuned("10", names[1]), "25": tuned("10", names[2], memory_saver=True),
    }  # fmt: skip
    found = latents(sampled(nodes, ["1", "11", "20", "21", "22", "23", "24", "25", "26"]))
    assert not torch.allclose(found["20k"], found["1k"], atol=1e-2)
    # One that computes something else, and has no gradient, is left as it is.
    for plain, other in (("11", "26"), ("20", "21"), ("20", "22"), ("23", "24"), ("23", "25")):
        torch.testing.assert_close(found[f"{other}k"], found[f"{plain}k"], atol=1e-4, rtol=1e-3)
    plain, *others = (load_file(folder / f"{name}_00001.safetensors") for name in names)
    for other in others:
        for name, value in plain.items():
            torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["SparseCausalAttention", "TuneAVideo", "LoadMotionModule"])
def test_frames_of_tiles_in_one_batch_see_their_own_clip(nodes, latents, folder, kind):
    """TiledDiffusion gives the network several tiles of all frames, with and without the caption, at once."""
    how = {"SparseCausalAttention": {}, "LoadMotionModule": dict(motion_name=MOTION)}
    nodes["10"] = tuned("1", "tiles") if kind == "TuneAVideo" else node(kind, model=["1", 0], **how[kind])
    nodes |= {
        "20": node("Tiles", model=["10", 0], batch=True, inference=True),
        "21": node("Tiles", model=["10", 0], batch=False, inference=True),
    }
    found = latents(sampled(nodes, ["10", "20", "21"]))
    torch.testing.assert_close(found["20k"], found["21k"], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found["20k"], found["10k"], atol=1e-2)


def test_guidance_through_tiles(nodes, latents, folder):
    """Steps with guidance and without take turns on one canvas; tuning leaves the tiles out."""
    nodes |= SMALL | {
        "20": node("Tiles", model=["1", 0], batch=True, inference=False), "22": guided("20", every=2),
        "21": node("Tiles", model=["1", 0], batch=True, inference=True), "23": guided("21", every=2),
        "24": tuned("1", "whole"), "25": tuned("21", "in_tiles"),
    }  # fmt: skip
    found = latents(sampled(nodes, ["21", "22", "23", "24", "25"]))
    torch.testing.assert_close(found["23k"], found["22k"], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found["23k"], found["21k"], atol=1e-2)
    whole, tiles = (load_file(folder / f"{name}_00001.safetensors") for name in ("whole", "in_tiles"))
    assert all(torch.equal(value, tiles[name]) for name, value in whole.items())
