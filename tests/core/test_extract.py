"""The extractors have the published layouts, files are converted safely, and folders become features by a protocol."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vidcore import weights
from vidcore.data.shapes import Thing
from vidcore.metrics import protocol as protocols
from vidcore.metrics.clips import Cut, captions_from, clips_of, videos_in
from vidcore.metrics.extract import KINDS, Extractor, load_extractor
from vidcore.metrics.extract.c3d import C3D
from vidcore.metrics.extract.i3d import I3D
from vidcore.metrics.extract.inception import InceptionV3
from vidcore.metrics.frechet import Moments, frechet_distance, inception_score
from vidcore.metrics.make import Sampling, batches
from vidcore.metrics.protocol import Protocol, Score, prompts_of, read_protocol, run, words_of
from vidcore.metrics.warp import flow, moved, visible, warp_error
from vidcore.systems.vdm import UNet3D, VDMConfig
from vidcore.text import TextConfig, TextEncoder

from ..clips import encode

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("convert_extractor", ROOT / "benchmarks" / "convert_extractor.py")
_script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_script)
convert = _script.convert


def random_state(net, seed=0):
    """Weights that keep the signal's size through all layers."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, value in net.state_dict().items():
        if name.endswith("running_var") or name.endswith("bn.weight"):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        elif value.is_floating_point():
            spread = (1.6 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.05
            state[name] = spread * torch.randn(value.shape, generator=generator)
        else:
            state[name] = value
    return state


def noise(*shape, seed=1):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- networks


def test_networks_have_the_published_sizes():
    with torch.device("meta"):
        count = {net: sum(p.numel() for p in net().parameters()) for net in (I3D, InceptionV3, C3D)}
        names = set(I3D().state_dict()) | set(InceptionV3().state_dict()) | set(C3D().state_dict())
    # I3D with 400 classes and its 1x1x1 class layer; Inception without its auxiliary head, with 1008 classes; C3D with 101.
    assert count == {I3D: 12_697_264, InceptionV3: 23_850_960, C3D: 78_409_573}
    assert {"Mixed_4e.b2a.bn.running_var", "Mixed_7c.branch3x3dbl_3b.conv.weight", "fc6.bias", "logits.conv3d.bias"} <= names


def test_inception_is_torchvision_s_but_for_the_pools_that_fid_has():
    from torchvision.models.inception import Inception3

    ours = InceptionV3()
    ours.load_state_dict(random_state(ours))
    theirs = Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    theirs.load_state_dict(ours.state_dict())
    x = InceptionV3.prepare(noise(1, 1, 40, 50, 3))
    assert x.shape == (1, 3, 299, 299) and x.min() >= -1 and x.max() <= 1
    with torch.no_grad():
        ours.eval(), theirs.eval()
        h = x
        for name, part in ours.named_children():  # up to the first block that has a pool of its own
            if name == "Mixed_5b":
                break
            h = torch.nn.functional.max_pool2d(h, 3, 2) if name == "Conv2d_3b_1x1" else h
            h = part(h)
        h = torch.nn.functional.max_pool2d(h, 3, 2)
        made, expected = ours.Mixed_5b(h), theirs.Mixed_5b(h)
        torch.testing.assert_close(made[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])  # inside, zeros do not count
        assert (made - expected)[:, -32:].abs().max() > 1e-3  # at the border they do, in the pool's channels
        torch.testing.assert_close(made[:, :-32], expected[:, :-32])
        features, scores = ours(x)
    assert features.shape == (1, 2048) and scores.shape == (1, 1008) and features.std() > 0.01


def test_i3d_is_padded_as_tensorflow_pads_and_averages_the_scores_over_time():
    net = I3D()
    net.load_state_dict(random_state(net))
    net.eval()
    x = I3D.prepare(noise(1, 9, 16, 16, 3))
    assert x.shape == (1, 3, 9, 224, 224)
    with torch.no_grad():
        made, again = net(x)
        # "Same" zeros by hand for a 7-wide kernel in steps of 2: (9, 224) need 6 and 5 zeros, the odd one at the end.
        padded = torch.nn.functional.pad(x, (2, 3, 2, 3, 3, 3))
        first = net.Conv3d_1a_7x7
        by_hand = torch.relu(first.bn(torch.nn.functional.conv3d(padded, first.conv3d.weight, stride=2)))
        torch.testing.assert_close(first(x), by_hand)
    assert made.shape == (1, 400) and made is again and first(x).shape[2:] == (5, 112, 112)


def test_c3d_reads_blue_first_less_the_mean_and_refuses_other_lengths():
    with torch.device("meta"):
        net = C3D()
    with pytest.raises(ValueError, match="clips of 16 frames, got 8"):
        net(torch.empty(1, 3, 8, 112, 112, device="meta"))
    assert net(torch.empty(2, 3, 16, 112, 112, device="meta"))[0].shape == (2, 4096)
    clip = noise(1, 16, 64, 64, 3)
    x = C3D.prepare(clip)
    torch.testing.assert_close(x[0, :, 3, 0, 0], clip[0, 3, 0, 0].flip(0).float())  # corners stay where they are
    assert x.shape == (1, 3, 16, 112, 112)


# ------------------------------------------------------------------------------------------------------------ conversion


def test_published_files_become_safetensors_and_nothing_runs_on_the_way(tmp_path):
    net = I3D()
    torch.save(net.state_dict(), tmp_path / "i3d.pt")
    convert("i3d", [tmp_path / "i3d.pt"], tmp_path / "i3d.safetensors")
    state = load_file(tmp_path / "i3d.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    extractor = load_extractor("i3d", tmp_path / "i3d.safetensors")
    assert len(weights.read_info(tmp_path / "i3d.safetensors")["from"]["i3d.pt"]) == 64 and len(extractor.digest) == 64
    ran = tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return (ran.write_text, ("x",))

    torch.save({"weight": Harmful()}, tmp_path / "harmful.pt")
    (tmp_path / "broken.pt").write_bytes(b"nothing of the kind")
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    for name, message in (("harmful", "cannot be read"), ("broken", "cannot be read"), ("other", "do not fit")):
        with pytest.raises(weights.WeightsError, match=message):
            convert("i3d", [tmp_path / f"{name}.pt"], tmp_path / "new.safetensors")
    assert not ran.exists() and not (tmp_path / "new.safetensors").exists()
    with pytest.raises(weights.WeightsError, match="holds 'i3d'; expected weights of 'c3d'"):
        load_extractor("c3d", tmp_path / "i3d.safetensors")
    with pytest.raises(weights.WeightsError, match="convert_extractor.py --help"):
        load_extractor("inception", tmp_path / "none.safetensors")


def test_c3d_s_arrays_are_converted(tmp_path, monkeypatch):
    small = {"conv1a": (2, 3, 3, 3, 3), "fc8": (5, 4)}
    arrays = {f"{n}/W": np.random.default_rng(0).normal(size=s).astype(np.float32) for n, s in small.items()}
    arrays |= {f"{n}/b": np.ones(s[0], np.float32) for n, s in small.items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    mean = np.random.default_rng(1).normal(size=(1, 3, 16, 128, 171)).astype(np.float32)
    np.savez(tmp_path / "mean.npz", mean=mean)

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1a, self.fc8 = torch.nn.Conv3d(3, 2, 3), torch.nn.Linear(4, 5)
            self.register_buffer("mean", torch.zeros(3, 16, 112, 112))

    monkeypatch.setitem(KINDS, "c3d", Small)
    convert("c3d", [tmp_path / "weights.npz", tmp_path / "mean.npz"], tmp_path / "c3d.safetensors")
    state = load_file(tmp_path / "c3d.safetensors")
    assert np.array_equal(state["conv1a.weight"].numpy(), arrays["conv1a/W"]) and state["fc8.bias"].eq(1).all()
    assert np.array_equal(state["mean"].numpy(), mean[0, :, :, 8:120, 8:120])
    with pytest.raises(weights.WeightsError, match="takes 2 files"):
        convert("c3d", [tmp_path / "weights.npz"], tmp_path / "c3d.safetensors")


def test_clip_loads_from_a_folder_as_its_page_has_it_and_equals_the_library(tmp_path):
    from PIL import Image
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tiny = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=16)
    text = dict(**tiny, vocab_size=520, max_position_embeddings=12, eos_token_id=519, bos_token_id=518, pad_token_id=519)
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=dict(**tiny, image_size=32, patch_size=8), projection_dim=16)
    )
    model.eval().save_pretrained(tmp_path, safe_serialization=True)
    letters = [chr(i) for i in range(ord("!"), ord("~") + 1)]
    vocabulary = {token: i for i, token in enumerate([*letters, *(f"{c}</w>" for c in letters)])}
    vocabulary |= {"<|startoftext|>": 518, "<|endoftext|>": 519}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    extractor = load_extractor("clip", tmp_path)
    clips = noise(2, 3, 40, 50, 3)
    features, scores = extractor(clips)
    assert features.shape == (6, 16) and scores is None and extractor.net.width == 16 and extractor.of_pictures
    read = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pictures = [Image.fromarray(frame.numpy()) for frame in clips.flatten(0, 1)]
    with torch.no_grad():
        pixels = read(pictures, return_tensors="pt").pixel_values
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    similar = torch.nn.functional.cosine_similarity(features, expected)
    assert similar.min() > 0.999  # Pillow rounds to whole numbers after scaling
    texts = extractor.net.texts(["a cat", "a dog that runs for a very long time indeed"])
    assert texts.shape == (2, 16) and (texts[0] - texts[1]).abs().max() > 1e-3
    (tmp_path / "config.json").unlink()
    with pytest.raises(weights.WeightsError, match="no folder of a CLIP model: it has no config.json"):
        load_extractor("clip", tmp_path)


# -------------------------------------------------------------------------------------------------------- clips, protocols


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, (name, frames) in enumerate((("RedRun", 12), ("BlueUp", 9), ("BlueUp", 30))):
        (folder / name).mkdir(exist_ok=True)
        thing = Thing("circle", ("red", "blue")[number % 2], "large", ("right", "up")[number % 2])
        encode(folder / name / f"{number}.mp4", "libx264", 10, 40, 48, frames, thing)
    (folder / "BlueUp" / "broken.mp4").write_bytes(b"\0" * 100)
    (folder / "list.txt").write_text("RedRun/0.mp4 1\nBlueUp/2.mp4 2\n")
    return folder


def test_clips_are_drawn_from_a_seed_and_useless_videos_are_named(videos):
    lines, as_asked = [], Cut(frames=8, height=16, width=24, seed=3)
    found = videos_in(videos)
    one, two = (list(clips_of(found, 7, as_asked, lines.append)) for _ in range(2))
    assert len(one) == 7 and all(clip.shape == (8, 16, 24, 3) and clip.dtype == torch.uint8 for _, clip in one)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(one, two))
    assert lines and all(line.startswith("left out: broken.mp4") for line in lines) and len(lines) == 2
    assert {path.name for path, _ in one[:3]} == {"0.mp4", "1.mp4", "2.mp4"}  # each once before any comes again
    slow = list(clips_of(found, 2, Cut(frames=8, height=16, width=16, rate=5), lines.append))
    assert {path.name for path, _ in slow} == {"2.mp4"}  # the only one with 16 frames
    with pytest.raises(ValueError, match="none of the 4 videos can be used"):
        list(clips_of(found, 1, Cut(frames=64), lines.append))
    assert [path.name for path in videos_in(videos, videos / "list.txt")] == ["0.mp4", "2.mp4"]
    (videos / "wrong.txt").write_text("RedRun/9.mp4\n")
    with pytest.raises(ValueError, match="1 videos of wrong.txt are not in"):
        videos_in(videos, videos / "wrong.txt")
    with pytest.raises(ValueError, match="no videos in"):
        videos_in(Path(__file__).parent)
    with pytest.raises(ValueError, match="at least 1"):
        Cut(frames=0)


class Mean(torch.nn.Module):
    """A network with few features: the mean colour of a clip, and class scores from it."""

    width = 3

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def prepare(self, clips):
        return clips.float() / 255

    def forward(self, x):
        features = self.scale * x.mean(dim=(1, 2, 3))
        return features, 3 * features

    def texts(self, captions):
        return torch.tensor([[1.0, 0.0, 0.0] if "red" in text else [0.0, 0.0, 1.0] for text in captions])


def small_protocol(**changes):
    scores = (Score("frechet", "i3d"), Score("frechet", "inception", pictures=2), Score("inception_score", "c3d", splits=2))
    return Protocol(**{
        "about": "a small one", "cut": Cut(8, 16, 16), "true_clips": 9, "made_clips": 6, "scores": scores,
        "sampling": Sampling(frames=4, size=16, steps=2, batch=4, guidance_scale=1.0), **changes,
    })  # fmt: skip


def extractors():
    return {kind: Extractor(kind, Mean().eval(), kind * 3) for kind in ("i3d", "c3d", "inception", "clip")}


def test_a_folder_is_scored_as_its_features_say(videos, tmp_path):
    protocol, lines = small_protocol(), []
    for number in range(6):
        encode(
            tmp_path / f"{number}.mp4",
            "libx264",
            10,
            16,
            16,
            8,
            Thing("square", "green", "large", "left", x=0.3 + number / 20),
        )
    record = run(protocol, extractors(), videos, tmp_path, report=lines.append)
    sets = []
    for folder, count in ((videos, 9), (tmp_path, 6)):
        clips = torch.stack([clip for _, clip in clips_of(videos_in(folder), count, protocol.cut, lines.append)])
        sets.append(clips.float() / 255)
    moments = [Moments(3), Moments(3)]
    for clips, one in zip(sets, moments):
        one.add(2 * clips.mean(dim=(1, 2, 3)))
    assert record["scores"]["frechet_i3d"] == pytest.approx(frechet_distance(*moments), rel=1e-4, abs=1e-7)
    pictures = [Moments(3), Moments(3)]
    for clips, one in zip(sets, pictures):
        one.add(2 * clips[:, [0, 7]].mean(dim=(2, 3)).flatten(0, 1))
    assert record["scores"]["frechet_inception"] == pytest.approx(frechet_distance(*pictures), rel=1e-4, abs=1e-7)
    expected = inception_score(6 * sets[1].mean(dim=(1, 2, 3)), 2)[0]
    assert record["scores"]["inception_score_c3d"] == pytest.approx(expected, rel=1e-5)
    assert record["extractors"]["i3d"] == "i3di3di3d" and record["protocol"]["cut"]["seed"] == 0
    assert any("made: 6 of 6 clips" in line for line in lines) and json.dumps(record)


def test_a_model_is_scored_and_too_few_clips_are_refused_before_any_is_made(videos):
    torch.manual_seed(0)
    words = ("a", "red", "run", "blue", "up")
    net, text = UNet3D(VDMConfig.tiny()).eval(), TextEncoder(TextConfig(words, 24, 16, 1, 2)).eval()
    scores = (Score("frechet", "i3d"), Score("clip_similarity", "clip"))
    protocol = small_protocol(prompts="folders", scores=scores)
    one, two = (run(protocol, extractors(), videos, (net, text, None), report=lambda line: None) for _ in range(2))
    assert one == two and one["scores"]["frechet_i3d"] > 0
    made = [x for x in batches(net, text, ["blue up", "red run"] * 3, protocol.sampling)]
    assert [len(x) for x in made] == [4, 2]
    clips = ((torch.cat(made).clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1)
    asked = torch.tensor([[0.0, 0, 1], [1.0, 0, 0]] * 3).repeat_interleave(4, dim=0)
    expected = torch.nn.functional.cosine_similarity(clips.float().flatten(0, 1).mean(dim=(1, 2)), asked).mean()
    assert one["scores"]["clip_similarity_clip"] == pytest.approx(float(expected), abs=1e-4)

    def never(*_):
        raise AssertionError("nothing may be made")

    with pytest.raises(ValueError, match="3 made clips are too few for frechet_i3d.*more than 3"):
        run(small_protocol(made_clips=3, scores=scores[:1]), extractors(), videos, (net, text, None), report=never)
    with pytest.raises(ValueError, match="does not know: cat"):
        (videos.parent / "captions.txt").write_text("a red cat\n")
        run(
            small_protocol(prompts="captions"),
            extractors(),
            videos,
            (net, text, None),
            videos.parent / "captions.txt",
            never,
        )
    with pytest.raises(ValueError, match="the protocol takes 6 made clips, and"):
        run(small_protocol(), extractors(), videos, videos / "RedRun", report=never)
    with pytest.raises(ValueError, match="beside each video; 1.mp4 has none"):
        asked = small_protocol(prompts="folders", made_clips=3, scores=scores[1:])
        run(asked, extractors(), videos, videos / "BlueUp", report=never)
    with pytest.raises(ValueError, match="--captions"):
        prompts_of(small_protocol(prompts="captions"), None, [])


def test_the_papers_protocols_are_whole():
    names = ("ucf101_vdm", "ucf101_cmd", "ucf101_zero_shot", "msrvtt_zero_shot")
    read = {name: read_protocol(name) for name in names}
    assert set(names) == {path.stem for path in protocols.FOLDER.glob("*.toml")}
    vdm = read["ucf101_vdm"]
    assert (vdm.cut.frames, vdm.cut.height, vdm.made_clips, vdm.prompts) == (16, 64, 10000, "none")
    assert [score.name for score in vdm.scores] == ["frechet_c3d", "inception_score_c3d"]
    assert read["msrvtt_zero_shot"].made_clips == 59800 and read["ucf101_cmd"].true_list == "trainlist01.txt"
    nets = {"i3d": I3D, "c3d": C3D, "inception": InceptionV3, "clip": Mean}
    for protocol in read.values():
        protocols.check_counts(protocol, {kind: Extractor(kind, net, "") for kind, net in nets.items()})
    assert words_of("ApplyEyeMakeup") == "apply eye makeup" and words_of("YoYo") == "yo yo"
    assert words_of("TaiChi") == "tai chi" and words_of("HandstandPushups") == "handstand pushups"


@pytest.mark.parametrize(
    "text, message",
    [
        ("about = 1", "true_clips"),
        ("nonsense = [", "nonsense|Invalid|Unclosed"),
        ("about='x'\ntrue_clips=1\nmade_clips=1\n[[score]]\nkind='fvd'\nextractor='i3d'", "score.kind must be one of"),
        ("about='x'\ntrue_clips=1\nmade_clips=1\n[[score]]\nkind='frechet'\nextractor='vgg'", "takes the extractor i3d or"),
        ("about='x'\ntrue_clips=1\nmade_clips=1\n[[score]]\nkind='clip_similarity'\nextractor='clip'", "needs prompts"),
        ("about='x'\ntrue_clips=0\nmade_clips=1\n[[score]]\nkind='frechet'\nextractor='i3d'", "1 or more"),
        ("about='x'\ntrue_clips=1\nmade_clips=1\n[cut]\nframe=2\n[[score]]\nkind='frechet'\nextractor='i3d'", "frame"),
    ],
)
def test_a_wrong_protocol_is_refused(tmp_path, text, message):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_protocol(str(tmp_path / "p.toml"))
    with pytest.raises(ValueError, match="ours are msrvtt_zero_shot, ucf101_cmd"):
        read_protocol("ucf")


def test_captions_come_from_all_kinds_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "a.jsonl").write_text('{"file": "x.mp4", "caption": "one"}\n{"file": "y.mp4", "caption": "two"}\n')
    (tmp_path / "a.csv").write_text("videoid,name\n1,one\n2,two\n")
    (tmp_path / "a.json").write_text(json.dumps({"sentences": [{"video_id": "v", "caption": c} for c in ("one", "two")]}))
    for kind in ("txt", "jsonl", "csv", "json"):
        assert captions_from(tmp_path / f"a.{kind}") == ["one", "two"]
    (tmp_path / "b.json").write_text("[1]")
    (tmp_path / "b.txt").write_text("\n")
    for name, message in (("b.json", "MSR-VTT"), ("b.txt", "has no captions"), ("c.txt", "there is no file")):
        with pytest.raises(ValueError, match=message):
            captions_from(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------ warp error


def texture(shift, size=64):
    """A smooth picture that is moved by ``shift`` pixels to the right, H W 3."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    waves = [0.5 + 0.25 * torch.sin((x - shift) / 5 + c) + 0.25 * torch.cos(y / 7 + (x - shift) / 11 + c) for c in range(3)]
    return torch.stack(waves, dim=-1)


def test_warp_error_sees_flicker_and_not_motion():
    moving = torch.stack([texture(2.0 * i) for i in range(4)])
    light = torch.tensor([1.0, 0.8, 1.0, 0.8])[:, None, None, None]
    still = moving[:1].expand(4, -1, -1, -1)
    assert warp_error(still) == 0
    assert warp_error(moving) < 0.05 * float((moving[1:] - moving[:-1]).square().mean())
    assert warp_error(moving * light) > 50 * warp_error(moving)
    for wrong in (moving[:1], moving[:, :8]):
        with pytest.raises(ValueError, match="two frames or more"):
            warp_error(wrong)


def test_flow_moves_pictures_back_and_knows_what_is_hidden():
    one, two = texture(0.0), texture(3.0)
    gray = [(255 * picture.mean(dim=-1)).byte().numpy() for picture in (one, two)]
    way = flow(gray[0], gray[1])
    assert abs(float(way[0, 16:48, 16:48].mean()) - 3) < 0.2 and way[1, 16:48, 16:48].abs().mean() < 0.2
    exact = torch.zeros(2, 64, 64, dtype=torch.float64)
    exact[0] = 3
    back = moved(two.double().movedim(-1, 0)[None], exact)[0]
    torch.testing.assert_close(back[:, :, :60], one.double().movedim(-1, 0)[:, :, :60])
    seen = visible(exact, -exact)
    assert seen[:, :61].all() and not seen[:, 61:].any()  # what leaves the picture on the right is not seen
    assert not visible(exact, exact).any()


# ------------------------------------------------------------------------------------------------------ the command line


def test_features_are_extracted_and_compared_on_the_command_line(videos, tmp_path):
    net = I3D()
    weights.save(tmp_path / "i3d.safetensors", random_state(net), {"system": "i3d"})

    def score(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "vidcore.score", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
        )

    how = ("--weights", tmp_path / "i3d.safetensors", "--clips", 2, "--frames", 9, "--height", 16, "--width", 16)
    made = score("extract", videos / "RedRun", tmp_path / "a.safetensors", *how)
    assert made.returncode == 0, made.stderr
    record = json.loads(made.stdout.splitlines()[-1])
    assert record["clips"] == 2 and record["extractor"] == "i3d" and len(record["sha256"]) == 64
    found = load_file(tmp_path / "a.safetensors")
    assert found["features"].shape == (2, 400) and torch.equal(found["features"], found["logits"])
    few = score("features", tmp_path / "a.safetensors", tmp_path / "a.safetensors", "--splits", 1)
    assert few.returncode and "2 clips are too few" in few.stderr
    info = weights.read_info(tmp_path / "a.safetensors")
    weights.save(tmp_path / "b.safetensors", found, {**info, "made_by": {**info["made_by"], "frames": 16}})
    unlike = score("features", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--splits", 1)
    assert unlike.returncode and "not made in one way" in unlike.stderr
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    arguments = (
        "protocol",
        "ucf101_cmd",
        "--true",
        videos,
        "--weights",
        tmp_path,
        "--model",
        tmp_path / "model.safetensors",
    )
    wrong = score(*arguments)
    assert wrong.returncode and "not a vidcore model" in wrong.stderr and "Traceback" not in wrong.stderr
    neither = score(*arguments[:-2])
    assert neither.returncode and "either --model" in neither.stderr
