"""What the page shows of our nodes: tooltips, help pages, translations, and names that are ours alone."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ours(server):
    return {k: v for k, v in server.get("/object_info").items() if v["python_module"].endswith("ComfyUI-VidCore")}


def inputs_of(info):
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def test_every_node_is_there_and_no_stock_node_has_its_name(ours):
    """The host keeps its own node where a pack brings one of the same name, so ours would be missing here."""
    assert set(ours) == {
        "LoadVideoModel", "EmptyVideoLatent", "SampleVideo", "SamplerVDM",
        "ReconstructionGuide", "TemporalUpsample", "ExtendVideo", "SpatialUpsample", "OscillatingGuidance",
        "DDIMInvert", "SparseCausalAttention", "TuneAVideo", "LoadTunedVideo",
        "EncodeContentMotion", "DecodeContentMotion", "AttachContentFrame", "SamplerEDMHeun", "SetFrameRate",
        "MitigatingGradientSampling", "UpsampleVideoCascade", "DynamicThresholding",
        "ScoreVideo",
        "TrainMotionModule", "LoadMotionModule",
    }  # fmt: skip


def test_every_input_and_output_explains_itself(ours):
    for name, info in ours.items():
        assert info["description"] and info["category"].startswith("video/") and info["search_aliases"], name
        for key, spec in inputs_of(info).items():
            assert spec[1].get("tooltip"), f"{name}.{key}"
        assert all(info["output_tooltips"]), name


def test_every_node_has_a_help_page_that_names_each_input(ours, server):
    for name, info in ours.items():
        text = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        missing = [key for key in inputs_of(info) if f"`{key}`" not in text]
        assert not missing, f"{name}: {missing}"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_text_is_translated(ours, server, language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(texts) == set(ours)
    for name, info in ours.items():
        entry = texts[name]
        assert entry["display_name"] and entry["description"]
        assert set(entry["inputs"]) == set(inputs_of(info)), name
        assert all(v["name"] and v["tooltip"] for v in entry["inputs"].values()), name
        assert len(entry["outputs"]) == len(info["output"]), name
    served = server.get("/i18n")[language]["nodeDefs"]
    assert served["SampleVideo"] == texts["SampleVideo"]


def test_english_texts_are_those_of_the_nodes(ours):
    """Names too, as help pages, notes and messages have them."""
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    for name, info in ours.items():
        assert texts[name]["display_name"] == info["display_name"] and texts[name]["description"] == info["description"]
        for key, spec in inputs_of(info).items():
            assert texts[name]["inputs"][key] == {"name": key, "tooltip": spec[1]["tooltip"]}, f"{name}.{key}"
        assert [texts[name]["outputs"][str(i)]["name"] for i in range(len(info["output"]))] == info["output_name"], name


WINDOWS = ["seed", "steps", "guidance_scale", "sampler", "schedule", "weight", "window", "overlap"]


def test_input_order_is_kept_for_saved_workflows(ours):
    """Saved workflows hold widget values by position: new inputs go to the end, and these lists only grow."""
    released = {
        "LoadVideoModel": ["model_name"],
        "EmptyVideoLatent": ["width", "height", "frames", "batch_size"],
        "SampleVideo": [
            "model", "positive", "negative", "latent_image", "seed", "steps", "guidance_scale", "sampler", "schedule",
            "gamma", "denoise", "delta", "start_at_step", "add_noise",
        ],
        "SamplerVDM": ["sampler", "gamma", "delta"],
        "ReconstructionGuide": [
            "model", "kind", "weight", "latent", "image", "vae", "mask", "frames", "start_percent", "end_percent", "every",
            "measured_in", "memory_saver",
        ],
        "TemporalUpsample": ["model", "positive", "negative", "vae", "image", "factor", *WINDOWS, "memory_saver"],
        "ExtendVideo": ["model", "positive", "negative", "vae", "image", "new_frames", *WINDOWS, "memory_saver"],
        "SpatialUpsample": [
            "model", "positive", "negative", "vae", "image", "factor", *WINDOWS, "time_factor", "memory_saver",
        ],
        "OscillatingGuidance": ["model", "low", "first_steps"],
        "DDIMInvert": [
            "model", "positive", "latent_image", "steps", "schedule", "method", "iterations", "start_at_step", "end_at_step",
            "seed", "negative", "guidance_scale", "round_trip",
        ],
        "SparseCausalAttention": ["model"],
        "TuneAVideo": [
            "model", "vae", "frames", "positive", "steps", "learning_rate", "seed", "name", "norm", "preview_every",
            "memory_saver", "continue_from", "keep_state", "frame_order", "attention_loss",
        ],
        "LoadTunedVideo": ["model", "tuned_name", "strength", "other_base"],
        "EncodeContentMotion": ["codec", "frames", "vae"],
        "DecodeContentMotion": ["codec", "content", "motion", "vae"],
        "AttachContentFrame": ["model", "codec", "content", "vae"],
        "SamplerEDMHeun": ["s_churn", "s_tmin", "s_tmax", "s_noise"],
        "SetFrameRate": ["conditioning", "frame_rate", "original_height", "still"],
        "MitigatingGradientSampling": ["model", "strength", "start_percent", "end_percent", "every", "memory_saver"],
        "UpsampleVideoCascade": [
            "model", "positive", "negative", "image", "seed", "steps", "guidance_scale", "sampler", "schedule", "corruption",
            "overlap", "weight", "memory_saver",
        ],
        "DynamicThresholding": ["model", "percentile", "limit"],
        "ScoreVideo": ["images", "reference", "clip_vision", "clip", "prompt", "warp_error"],
        "TrainMotionModule": [
            "model", "vae", "folder", "caption", "length", "every", "steps", "learning_rate", "seed", "name", "clip",
            "positive", "frames", "width", "height", "contrast", "attention_loss", "frame_tokens", "mapping",
            "preview_every", "memory_saver", "continue_from", "keep_state", "max_frames", "convolution",
            "start_from",
        ],
        "LoadMotionModule": ["model", "motion_name", "strength", "other_base"],
    }  # fmt: skip
    for name, order in released.items():
        now = ours[name]["input_order"]
        assert (now.get("required", []) + now.get("optional", []))[: len(order)] == order
