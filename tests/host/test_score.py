"""Score Video on real frames: numbers that are known beforehand, and a plot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch.prompt import RunError
from vidcore.metrics.extract.clip import DEVIATION, MEAN
from vidcore.metrics.pixels import flicker, psnr, ssim

from .prompts import node
from .random_weights import weights


def shown(*more):
    """A clip of eight frames, of a moving gradient, and what is asked of it."""
    return {
        "1": node("LoadImage", image="score_frames.png"),
        "2": node("ImageCrop", image=["1", 0], width=32, height=32, x=0, y=0),
        "3": node("ImageCrop", image=["1", 0], width=32, height=32, x=8, y=0),
        "4": node("ImageBatch", image1=["2", 0], image2=["3", 0]),
        "5": node("ImageBlur", image=["4", 0], blur_radius=1, sigma=1.0),
        **dict(more),
    }


@pytest.fixture
def picture(server):
    pixels = np.random.default_rng(3).integers(0, 256, (32, 40, 3), np.uint8)
    path = server.base / "input" / "score_frames.png"
    Image.fromarray(pixels).save(path)
    yield torch.from_numpy(pixels).float() / 255
    path.unlink()


def scores(run, **inputs):
    prompt = shown(("9", node("ScoreVideo", **inputs)), ("10", node("PreviewAny", source=["9", 0])))
    history = run(prompt)
    return json.loads(history["outputs"]["10"]["text"][0]), history["outputs"]["9"]["images"][0]


def test_scores_are_those_of_the_core_and_the_plot_shows_them(run, server, picture):
    clip = torch.stack([picture[:, :32], picture[:, 8:40]])
    found, image = scores(run, images=["4", 0], reference=["5", 0])
    assert found["clip"] == "2 frames of 32x32" and found["flicker"] == pytest.approx(flicker(clip), rel=1e-4)
    assert 5 < found["psnr"] < 30 and 0 < found["ssim"] < 1 and found["flicker_of_reference"] < found["flicker"]
    assert found["sha256"] != found["reference_sha256"]
    plot = np.asarray(Image.open(server.base / "temp" / image["filename"]))
    blue = (plot[..., 2].astype(int) - plot[..., 0]) > 80
    assert plot.shape == (600, 768, 3) and all(part.sum() > 20 for part in np.split(blue, 3))


def test_a_clip_beside_itself_is_perfect(run, picture):
    found, _ = scores(run, images=["4", 0], reference=["4", 0])
    clip = torch.stack([picture[:, :32], picture[:, 8:40]])
    assert found["psnr"] is None and psnr(clip, clip) == float("inf") and found["ssim"] == pytest.approx(ssim(clip, clip))


def test_bad_clips_are_refused_with_what_to_do(run, picture):
    with pytest.raises(RunError, match="two frames or more, got 1"):
        scores(run, images=["2", 0])
    with pytest.raises(RunError, match="2 frames of 32x32 and reference 1 frames of 40x32; please scale"):
        scores(run, images=["4", 0], reference=["1", 0])


def test_likeness_to_a_prompt_is_that_of_the_clip_library(run, server, picture, tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    text, texts = "a red circle moves", server.base / "models" / "text_encoders"
    with (
        weights(server, "clip_l", "text_encoders", "CLIPLoader") as text_name,
        weights(server, "clip_vision_l", "clip_vision", "CLIPVisionLoader") as vision_name,
    ):
        state = {**load_file(texts / text_name), **load_file(server.base / "models" / "clip_vision" / vision_name)}

        def score(name, **more):
            prompt = shown(
                ("6", node("CLIPLoader", clip_name=name, type="stable_diffusion")),
                ("7", node("CLIPVisionLoader", clip_name=vision_name)),
                ("9", node("ScoreVideo", images=["4", 0], clip_vision=["7", 0], clip=["6", 0], **more)),
                ("10", node("PreviewAny", source=["9", 0])),
            )
            return json.loads(run(prompt)["outputs"]["10"]["text"][0])

        found = score(text_name, prompt=text, warp_error=True)
        zeros = {k: v * 0 if "text_projection" in k else v for k, v in load_file(texts / text_name).items()}
        save_file(zeros, texts / "clip_l_bare.safetensors")
        try:
            server.get("/object_info/CLIPLoader")  # the host lists folders anew
            with pytest.raises(RunError, match="came without the projection"):
                score("clip_l_bare.safetensors", prompt=text)
        finally:
            (texts / "clip_l_bare.safetensors").unlink()
    assert found["prompt"] == text and found["warp_error"] >= 0 and 0 < found["frame_consistency"] <= 100
    config = CLIPConfig(
        text_config=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
        vision_config=dict(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
        ),
        projection_dim=768,
    )
    with torch.device("meta"):
        model = CLIPModel(config)
    model.to_empty(device="cpu").eval()
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    for part in (model.text_model, model.vision_model):  # positions are no part of the state
        length = part.embeddings.position_embedding.weight.shape[0]
        part.embeddings.position_ids = torch.arange(length)[None]
    folder = next(Path(server.host.tree).rglob("sd1_tokenizer"))
    tokens = CLIPTokenizerFast.from_pretrained(folder)(text, padding="max_length", max_length=77, return_tensors="pt")
    clip = torch.stack([picture[:, :32], picture[:, 8:40]]).movedim(-1, 1)
    x = torch.nn.functional.interpolate(clip, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    with torch.no_grad():
        pictures = model.visual_projection(model.vision_model(pixel_values=(x - mean) / deviation).pooler_output)
        words = model.text_projection(model.text_model(input_ids=tokens.input_ids).pooler_output)
    expected = torch.cosine_similarity(pictures, words).mean()
    assert found["clip_similarity"] == pytest.approx(float(expected), abs=2e-3)


def test_a_prompt_without_encoders_is_refused(run, picture):
    with pytest.raises(RunError, match="takes both encoders of one CLIP. Please connect clip and clip_vision"):
        scores(run, images=["4", 0], prompt="a circle")
