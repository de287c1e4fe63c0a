"""HARIVO's motion module in a real ComfyUI, on the shipped image model."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.prompt import RunError
from vidcore import weights
from vidcore.data.shapes import Scene, Thing, render
from vidcore.systems.harivo.checkpoint import from_info, load_motion
from vidcore.video import read_frames, write_video

from .prompts import keep_latent, node, sample
from .random_weights import weights as random_weights
from .test_layouts import model_and_clips
from .test_tune import peak_memory

MODEL = "shapes-image.safetensors"
SHIPPED = Path(__file__).resolve().parents[2] / "models" / "shapes-harivo.safetensors"
SCENES = {
    "a large red circle moves left over a black background": Thing("circle", "red", "large", "left"),
    "a large green square moves up over a black background": Thing("square", "green", "large", "up"),
    "a large blue ring orbits the center over a black background": Thing("ring", "blue", "large", "orbit"),
}


@pytest.fixture
def nodes(server):
    """The shipped image model (1), prompts (2, 3), an empty clip of 4 frames (4)."""
    return {
        "1": node("LoadVideoModel", model_name=MODEL),
        "2": node("CLIPTextEncode", clip=["1", 1], text=next(iter(SCENES))),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyLatentImage", width=32, height=32, batch_size=4),
        "5": node("VAEEncode", pixels=["6", 0], vae=["1", 2]),
        "6": node("EmptyImage", width=32, height=32, batch_size=4, color=0),
    }


@pytest.fixture
def folder(emptied):
    """The host's folder of motion modules."""
    return emptied("video_motion")


@pytest.fixture
def videos(server):
    """Three real mp4 files with captions in the host's input folder."""
    folder = server.base / "input" / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    for i, (text, thing) in enumerate(SCENES.items()):
        write_video(folder / f"{i}.mp4", (255 * torch.from_numpy(render(Scene((thing,), "black"), 8, 32))).byte(), 8)
        (folder / f"{i}.txt").write_text(text)
    yield folder
    shutil.rmtree(folder)


def train(**inputs):
    how = dict(
        model=["1", 0], vae=["1", 2], clip=["1", 1], folder="clips", caption="", length=4, every=1, steps=4,
        learning_rate=1e-3, seed=5, name="m", preview_every=0,
    )  # fmt: skip
    return node("TrainMotionModule", **how | inputs)


def sampled(nodes, model, number, **inputs):
    nodes[number] = sample(model=(model, 0), latent=("5", 0), steps=3, **inputs)
    nodes[f"{number}k"] = keep_latent(number, f"latents/{number}")


def shown(nodes):
    return {**nodes, "99": node("PreviewAny", source=["9", 1])}


def apart(a, b):
    return (a - b).abs().max()


def test_a_module_is_trained_saved_and_loads_to_the_same_clip(nodes, latents, folder, videos, server):
    nodes["9"] = train()
    sampled(nodes, "1", "10")
    sampled(nodes, "9", "11")
    one = latents(nodes)
    server.get("/object_info/LoadMotionModule")
    for number, strength in (("7", 1.0), ("8", 0.0)):
        nodes[number] = node("LoadMotionModule", model=["1", 0], motion_name="m_00001.safetensors", strength=strength)
        sampled(nodes, number, f"2{number}")
    del nodes["9"], nodes["11"], nodes["11k"]
    two = latents(nodes)
    names = sorted(one), sorted(two)
    base, trained, loaded, none = one["10k"], one["11k"], two["27k"], two["28k"]
    assert names and apart(trained, base) > 1e-2 and torch.equal(loaded, trained)
    assert torch.equal(none, base)
    module, _, info = load_motion(folder / "m_00001.safetensors")
    assert info["steps"] == 4 and info["clips"] == ["0.mp4", "1.mp4", "2.mp4"] and from_info(info) == module.config
    assert not any(key.startswith(("head", "queue")) for key in weights.load(folder / "m_00001.safetensors")[0])
    # Every part has learned: what started at zero does not stand there any more.
    for layer in module.temporal:
        assert layer.attention.to_out.weight.any() and layer.out.weight.any()
    assert module.mapping.out.weight.any()


def test_a_continued_run_equals_one_that_never_stopped(nodes, run, server, folder, videos):
    """Module, head and queue: all of them count from the first step on that the second run does alone."""
    run(shown({**nodes, "9": train(steps=6, name="whole", contrast=0.5)}))
    run(shown({**nodes, "9": train(steps=3, name="part", contrast=0.5, keep_state=True)}))
    state = "part_00001.state.safetensors"
    more = dict(steps=6, name="part", continue_from=state, seed=77, contrast=0.5)  # the state's own seed counts
    run(shown({**nodes, "9": train(**more)}))
    whole, part = (load_file(folder / f"{name}.safetensors") for name in ("whole_00001", "part_00002"))
    assert all(torch.equal(whole[k], part[k]) for k in whole)
    kept = load_file(folder / state)
    assert kept["module.losses.queue.features"].any() and kept["module.losses.queue.clips"].max() >= 0
    with pytest.raises(RunError, match="has 3 steps already"):
        run(shown({**nodes, "9": train(**more | {"steps": 3})}))
    with pytest.raises(RunError, match="begun with another model or sizes"):
        run(shown({**nodes, "9": train(**more | {"mapping": 8})}))
    (videos / "2.mp4").rename(videos / "3.mp4")
    with pytest.raises(RunError, match="begun with another list of clips"):
        run(shown({**nodes, "9": train(**more | {"caption": "a"})}))


def test_each_loss_and_each_part_counts(nodes, latents, folder, videos):
    """A run without it ends elsewhere; without tokens and mapping there are none in the file."""
    runs = {
        "all": {}, "contrast": dict(contrast=0.0), "attention": dict(attention_loss=0.0), "tokens": dict(frame_tokens=0),
        "mapping": dict(mapping=0),
    }  # fmt: skip
    made = {}
    for name, how in runs.items():
        nodes["9"] = train(name=name, **dict(contrast=1.0, attention_loss=1.0) | how)
        sampled(nodes, "9", "10")
        made[name] = latents(nodes)["10k"]
    files = {name: load_file(folder / f"{name}_00001.safetensors") for name in runs}
    for name in list(runs)[1:]:
        assert apart(made["all"], made[name]) > 1e-5, name
    for name, part in (("tokens", "frame_tokens"), ("mapping", "mapping")):
        assert not any(f"module.{part}." in key for key in files[name])


def test_training_starts_from_a_module_that_ships_or_was_trained(nodes, latents, run, folder, videos):
    """Almost nothing learned is almost the module itself; its sizes count, and its file stays as it is."""
    before = SHIPPED.read_bytes()
    nodes["7"] = node("LoadMotionModule", model=["1", 0], motion_name="shapes-harivo.safetensors")
    nodes["9"] = train(steps=2, learning_rate=1e-7, start_from="shapes-harivo.safetensors", frame_tokens=7, mapping=8)
    for number in ("1", "7", "9"):
        sampled(nodes, number, f"1{number}")
    made = latents(nodes)
    base, module, on = (made[f"1{number}k"] for number in ("1", "7", "9"))
    assert apart(module, base) > 0.1 and 0 < apart(on, module) < 0.01
    started, _, _ = load_motion(SHIPPED)
    learned, _, info = load_motion(folder / "m_00001.safetensors")
    assert info["start_from"] == "shapes-harivo.safetensors" and info["steps"] == 2
    assert learned.config == replace(started.config, frames=4)
    assert SHIPPED.read_bytes() == before
    run(shown({**nodes, "9": train(steps=1, name="on", start_from="m_00001.safetensors")}))
    assert weights.read_info(folder / "on_00001.safetensors")["start_from"] == "m_00001.safetensors"


def test_a_run_that_started_from_a_module_continues_exactly(nodes, run, folder, videos):
    begun = dict(start_from="shapes-harivo.safetensors", contrast=0.5)
    run(shown({**nodes, "9": train(steps=4, name="whole", **begun)}))
    run(shown({**nodes, "9": train(steps=2, name="part", keep_state=True, **begun)}))
    run(shown({**nodes, "9": train(steps=4, name="part", continue_from="part_00001.state.safetensors", **begun)}))
    whole, part = (load_file(folder / f"{name}.safetensors") for name in ("whole_00001", "part_00002"))
    assert all(torch.equal(whole[k], part[k]) for k in whole)


def test_cancelling_keeps_what_was_reached(nodes, interrupted, run, folder, videos):
    stopped = interrupted(shown({**nodes, "9": train(steps=100000, preview_every=5)}), seconds=10)
    assert "execution_interrupted" in stopped
    step = weights.read_info(folder / "m_00001.state.safetensors")["step"]
    assert step > 0
    run(shown({**nodes, "9": train(steps=step + 2, continue_from="m_00001.state.safetensors")}))
    assert weights.read_info(folder / "m_00002.safetensors")["steps"] == step + 2


def test_connected_frames_and_a_conditioning_serve_as_well(nodes, run, folder, server, videos):
    nodes["9"] = train(folder="", frames=["6", 0], positive=["2", 0])
    del nodes["9"]["inputs"]["clip"]
    run(shown(nodes))
    assert weights.read_info(folder / "m_00001.safetensors")["clips"] == ["the frames"]
    with pytest.raises(RunError, match=r"0\.txt is text, and there is nothing to encode it"):
        nodes["9"]["inputs"]["folder"] = "clips"
        run(shown(nodes))


def test_a_long_video_is_read_in_parts_and_is_what_its_frames_are(nodes, run, folder, videos, server):
    """The loss of the first step says which frames were seen; those of the node before come as they are decoded."""
    (videos / "long").mkdir(exist_ok=True)
    file = videos / "long" / "a.mp4"
    write_video(file, (255 * torch.from_numpy(render(Scene((SCENES[next(iter(SCENES))],), "black"), 80, 32))).byte(), 8)
    pixels = read_frames(file).movedim(-1, 1).contiguous() / 127.5 - 1
    save_file({"latent_tensor": pixels, "latent_format_version_0": torch.zeros(1)}, server.base / "input" / "a.latent")
    nodes |= {"l": node("LoadLatent", latent="a.latent"), "f": node("VAEDecode", samples=["l", 0], vae=["1", 2])}
    losses = {}
    for name, given, how in (
        ("file", dict(folder="clips/long"), dict(every=2, max_frames=38)),
        ("frames", dict(folder="", frames=["f", 0]), dict(every=2, max_frames=38)),
        ("others", dict(folder="clips/long"), dict(every=2, max_frames=39)),
    ):
        run(shown({**nodes, "9": train(caption="a circle", steps=1, name=name, **given, **how)}))
        losses[name] = weights.read_info(folder / f"{name}_00001.safetensors")["loss"]
    assert losses["file"] == pytest.approx(losses["frames"], rel=1e-5)
    assert losses["file"] != pytest.approx(losses["others"], rel=1e-3)


def test_guidance_in_one_batch_equals_one_after_the_other_and_other_samplers_do(nodes, latents, folder, videos):
    nodes["9"] = train(steps=2)
    sampled(nodes, "9", "10", guidance_scale=3.0)
    nodes["k"] = node(
        "KSampler", model=["9", 0], positive=["2", 0], negative=["3", 0], latent_image=["5", 0],
        seed=1, steps=3, cfg=3.0, sampler_name="euler", scheduler="sgm_uniform", denoise=1.0,
    )  # fmt: skip
    nodes["kk"] = keep_latent("k", "latents/stock")
    for number, positive in (("11", "2"), ("12", "3")):
        sampled(nodes, "9", number, guidance_scale=1.0, positive=(positive, 0))
        nodes[number]["inputs"]["steps"] = 1
    sampled(nodes, "9", "13", guidance_scale=3.0)
    nodes["13"]["inputs"]["steps"] = 1
    found = latents(nodes)
    assert apart(found["10k"], found["kk"]) < 0.01
    torch.testing.assert_close(
        found["13k"], found["12k"] + 3 * (found["11k"] - found["12k"]), atol=2e-3, rtol=1e-3
    )  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(folder="none"), "there is no folder 'none'"),
        (dict(folder="../models"), "does not lie inside ComfyUI's input folder"),
        (dict(folder=""), "nothing to train on"),
        (dict(length=9), "0.mp4 has 8 frames .every 1., and a step takes 9"),
        (dict(every=3), "0.mp4 has 3 frames .every 3., and a step takes 4"),
        (dict(width=30, height=30), "takes multiples of 2|this VAE takes multiples|multiples of 8"),
        (dict(name="../../out"), "does not lie inside models/video_motion"),
        ("other size", r"different sizes .*0.mp4 32x32.*4.mp4 64x32"),
        ("cut short", "4.mp4 cannot be decoded"),
        ("empty", "has no videos"),
        ("video", "works on image models with a U-Net"),
    ],
)
def test_bad_input_is_refused_before_any_work(nodes, run, folder, videos, change, message):
    inputs = change if isinstance(change, dict) else {}
    if change == "other size":
        write_video(videos / "4.mp4", torch.zeros(8, 32, 64, 3, dtype=torch.uint8), 8)
    if change == "cut short":
        (videos / "4.mp4").write_bytes((videos / "0.mp4").read_bytes()[:400])
    if change == "empty":
        (videos / "none").mkdir(exist_ok=True)
        inputs = dict(folder="clips/none")
    if change == "video":
        nodes["1"]["inputs"]["model_name"] = "shapes-vdm.safetensors"
    before = set(folder.parent.rglob("*"))
    try:
        with pytest.raises(RunError, match=message):
            run(shown({**nodes, "9": train(**inputs)}))
    finally:
        if change == "empty":
            (videos / "none").rmdir()
    assert {p for p in set(folder.parent.rglob("*")) - before if p.is_file()} == set()


def test_a_module_of_another_base_is_refused(nodes, run, server, folder, videos):
    run(shown({**nodes, "9": train(steps=1)}))
    tensors, info = weights.load(folder / "m_00001.safetensors")
    noise = torch.randn(tensors["base"].shape, generator=torch.Generator().manual_seed(0)) * tensors["base"].std()
    weights.save(folder / "other.safetensors", tensors | {"base": noise}, info)
    weights.save(folder / "relative.safetensors", tensors | {"base": tensors["base"] + 0.3 * noise}, info)
    blocks = [{**block, "width": 64} for block in info["model"]["blocks"]]
    small = {**info, "model": {**info["model"], "blocks": blocks[:1]}}
    weights.save(folder / "small.safetensors", {k: v for k, v in tensors.items() if "temporal" not in k}, small)
    server.get("/object_info/LoadMotionModule")

    def load(name, **inputs):
        nodes["7"] = node("LoadMotionModule", model=["1", 0], motion_name=name, **inputs)
        nodes["8"] = sample(model=("7", 0), latent=("5", 0), steps=1)
        nodes["8k"] = keep_latent("8")
        run(nodes)

    load("relative.safetensors")
    load("other.safetensors", other_base=True)
    refused = {
        "other": r"Please load a model of the base that it was trained on\.$",
        "small": "the motion weights do not fit",
    }
    for name, message in refused.items():
        with pytest.raises(RunError, match=message):
            run(shown({**nodes, "9": train(start_from=f"{name}.safetensors")}))
    with pytest.raises(RunError, match="was trained on another ImageModel than this one, and they are no relatives"):
        load("other.safetensors")
    with pytest.raises(RunError, match=refused["small"]):
        load("small.safetensors")
    nodes["1"]["inputs"]["model_name"] = "shapes-vdm.safetensors"
    with pytest.raises(RunError, match="works on image models with a U-Net"):
        load("relative.safetensors")


def test_a_file_that_is_no_motion_module_is_refused(nodes, run, server, shipped):
    nodes["7"] = node("LoadMotionModule", model=["1", 0], motion_name="shapes-vdm.safetensors")
    nodes["8"] = sample(model=("7", 0), latent=("5", 0), steps=1)
    nodes["8k"] = keep_latent("8")
    assert (
        "shapes-vdm.safetensors"
        not in server.get("/object_info/LoadMotionModule")["LoadMotionModule"]["input"]["required"]["motion_name"][1][
            "options"
        ]
    )
    with pytest.raises(RunError, match="expected a motion module|not in"):
        run(nodes)


@pytest.mark.large
def test_stable_diffusion_1_5_in_its_full_layout_learns_to_move(server, run, output, folder, capsys):
    """Two training steps and a clip: the image model's weights keep their bits; a LoRA and a ControlNet are taken."""
    with (
        random_weights(server, "sd15", "diffusion_models", "UNETLoader") as name,
        random_weights(server, "sd_vae", "vae", "VAELoader") as vae,
        random_weights(server, "sd15_lora", "loras", "LoraLoaderModelOnly") as lora,
        random_weights(server, "sd15_control", "controlnet", "ControlNetLoader") as control,
    ):
        _, nodes = model_and_clips("sd15", name, server)
        nodes |= {
            "v": node("VAELoader", vae_name=vae),
            "f": node("EmptyImage", width=64, height=64, batch_size=3, color=0x8040C0),
            "h0": node("HashWeights", model=["1", 0], after=["4", 0]),
            "9": train(vae=["v", 0], folder="", frames=["f", 0], positive=["2", 0], steps=2, length=3, memory_saver=True),
            "s": sample(model=("9", 0), steps=2),
            "10": keep_latent("s", "latents/moving"),
            "h1": node("HashWeights", model=["9", 0], after=["s", 0]),
            "l": node("LoraLoaderModelOnly", model=["9", 0], lora_name=lora, strength_model=1.0),
            "n": node("ControlNetLoader", control_net_name=control),
            "a": node(
                "ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], control_net=["n", 0], image=["f", 0],
                strength=1.0, start_percent=0.0, end_percent=1.0,
            ),
            "s2": sample(model=("l", 0), positive=("a", 0), negative=("a", 1), steps=2),
            "12": keep_latent("s2", "latents/dressed"),
        }  # fmt: skip
        del nodes["9"]["inputs"]["clip"]
        history = run(nodes, timeout=900)
        hashes = [history["outputs"][h]["text"][0] for h in ("h0", "h1")]
        assert hashes[0] == hashes[1]
        moving, dressed = (load_file(output(history["outputs"][n]["latents"][0]))["latent_tensor"] for n in ("10", "12"))
        assert moving.isfinite().all() and dressed.isfinite().all() and apart(moving, dressed) > 1e-3
        (path,) = folder.glob("*.safetensors")
        module, _, info = load_motion(path)
        assert len(module.config.blocks) == 16 and module.config.context == 768 and info["steps"] == 2
        count = sum(p.numel() for p in module.parameters())
        with capsys.disabled():
            held = peak_memory(server.process)
            print(f"\na motion module for Stable Diffusion 1.5 has {count / 1e6:.1f} M parameters; at most {held} so far")
