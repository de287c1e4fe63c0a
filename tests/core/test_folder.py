"""A folder of real videos, from nothing to a checkpoint that loads: several codecs, rates and sizes, some files broken."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.clips import encode
from vidcore import weights
from vidcore.data.folder import DataError, cut, frame_numbers, in_order, scan
from vidcore.data.shapes import Thing
from vidcore.systems.vdm.checkpoint import load_vdm
from vidcore.text import Vocabulary
from vidcore.train.config import ConfigError, read_config
from vidcore.train.data import batches, open_folder
from vidcore.train.loop import train
from vidcore.train.processes import share

RECIPE = """
output = "out/mine.safetensors"
seed = 3
warmup = 2
save_every = 2
text_width = 16
text_layers = 1

[data]
folder = "videos"
rate = 8

[model]
frames = 4
size = 16
channels = 8
multipliers = [1, 2]
blocks = 1
attention_sizes = [8]
head_width = 8
embedding = 32
embedding_layers = 2
context = 16

[[phase]]
steps = 6
batch = 2
frames = 4
size = 16
images = 1
rates = [1.0, 0.5]
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The root of a run with its folder."""
    root = tmp_path_factory.mktemp("run")
    folder = root / "videos"
    (folder / "more").mkdir(parents=True)
    red = Thing("circle", "red", "large", "left")
    encode(folder / "a.mp4", "libx264", 8, 32, 32, 8, red)
    encode(folder / "b.avi", "mpeg4", 24, 48, 64, 30, Thing("ring", "green", "large", "up"))
    encode(folder / "more" / "c.webm", "libvpx-vp9", 12, 64, 36, 14, Thing("square", "blue", "large", "down"))
    encode(folder / "short.mp4", "libx264", 8, 32, 32, 2, red)
    encode(folder / "silent.mp4", "libx264", 8, 32, 32, 8, red)
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "words.mp4").write_text("not a video")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(folder / "d.png")
    (folder / "a.txt").write_text("A red circle moves left.")
    for name in ("cut", "empty", "words", "sound", "short", "d"):
        (folder / f"{name}.txt").write_text("something pale")
    (folder / "list.jsonl").write_text(json.dumps({"file": "b.avi", "caption": "A green ring, rising"}) + "\n")
    (folder / "list.csv").write_text("videoid,contentUrl,duration,page_dir,name\nc,https://x,1,p,a blue square falls\n")
    (root / "r.toml").write_text(RECIPE)
    return root


def quiet(_):
    pass


def test_what_can_serve_is_kept_and_the_rest_is_named_with_the_reason(videos, tmp_path):
    said = []
    found, pictures = scan(videos / "videos", tmp_path, ((16, 16),), 0.4, said.append)
    assert [(i.name, i.frames, round(i.rate), i.caption) for i in found] == [
        ("a.mp4", 8, 8, "A red circle moves left."), ("b.avi", 30, 24, "A green ring, rising"),
        ("c.webm", 14, 12, "a blue square falls"),
    ]  # fmt: skip
    assert [(i.name, i.frames, i.rate) for i in pictures] == [("d.png", 1, 0.0)]
    assert len(said) == 6 and all(line.startswith("left out: ") for line in said)
    for name, why in (
        ("cut.mp4", "cannot be decoded"), ("empty.mp4", "cannot be decoded"), ("words.mp4", "cannot be decoded"),
        ("sound.mp4", "no video stream"), ("short.mp4", "lasts 0.25 s"), ("silent.mp4", "no caption"),
    ):  # fmt: skip
        assert sum(name in line and why in line for line in said) == 1, (name, said)
    # Kept under what is in it: a renamed file is not decoded again.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (videos / "videos" / "b.avi").rename(videos / "videos" / "b2.avi")
    try:
        again, _ = scan(videos / "videos", tmp_path, ((16, 16),), 0.4, quiet)
    finally:
        (videos / "videos" / "b2.avi").rename(videos / "videos" / "b.avi")
    assert [i.name for i in again] == ["a.mp4", "c.webm"]  # the list has no caption for the new name
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    with pytest.raises(DataError, match="there is no folder"):
        scan(videos / "none", tmp_path, ((16, 16),), 0.4)
    with pytest.raises(DataError, match="has no usable video"):
        scan(videos / "videos" / "more", tmp_path, ((16, 16),), 60, quiet)


def test_frames_are_scaled_and_the_middle_is_cut_out():
    wide = torch.zeros(2, 8, 16, 3, dtype=torch.uint8)
    wide[:, :, 4:12] = 200
    assert torch.equal(cut(wide, (8, 8)), torch.full((2, 8, 8, 3), 200, dtype=torch.uint8))
    assert cut(torch.zeros(1, 9, 7, 3, dtype=torch.uint8), (16, 16)).shape == (1, 16, 16, 3)


def test_every_video_comes_once_in_a_round():
    draws = [i for first in range(0, 30, 3) for i in in_order(5, first, 3, seed=1)]
    assert all(sorted(draws[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 30, 5))
    assert draws[:5] != draws[5:10] and draws == in_order(5, 0, 30, seed=1)


def test_frame_numbers_keep_the_time_between_frames(videos, tmp_path):
    item = scan(videos / "videos", tmp_path, ((16, 16),), 0.4, quiet)[0][1]  # 30 frames at 24 a second
    rng = np.random.default_rng(0)
    for _ in range(20):
        numbers = frame_numbers(item, 4, 1 / 8, rng)
        assert np.diff(numbers).tolist() == [3, 3, 3] and 0 <= numbers[0] and numbers[-1] < 30
    assert np.diff(frame_numbers(item, 4, 0, rng)).tolist() == [1, 1, 1]


def test_batches_hold_the_frames_of_the_file_and_what_it_shows(videos):
    config = read_config(videos / "r.toml")
    folder = open_folder(config, videos, quiet)
    assert "ring" in folder.words and "rising" in folder.words and "pale" in folder.words
    vocabulary = Vocabulary(folder.words, config.text_length)
    seen = set()
    for number, batch in enumerate(batches(config, vocabulary, 0, 6, 0, folder)):
        assert batch.clips.shape == (2, 3, 5, 16, 16) and batch.clips.abs().max() <= 1
        for clip, tokens, interval in zip(batch.clips, batch.tokens, batch.interval):
            caption = " ".join(folder.words[t - 1] for t in tokens if t)
            seen.add(caption)
            brightest = int(clip[:, :4].amax(dim=(1, 2, 3)).argmax())
            assert ("red", "green", "blue")[brightest] in caption and float(interval) in (1 / 8, 1 / 16)
        again = list(batches(config, vocabulary, number, number + 1, 0, folder))[0]
        assert torch.equal(again.clips, batch.clips) and torch.equal(again.image_tokens, batch.image_tokens)
    assert len(seen) == 3


def test_processes_read_their_share_of_the_same_batch(videos):
    config = read_config(videos / "r.toml")
    folder, phase = open_folder(config, videos, quiet), config.phases[0]
    vocabulary = Vocabulary(folder.words, config.text_length)
    whole = folder.batch(phase, vocabulary, 3, 1, 2)
    parts = [folder.batch(phase, vocabulary, 3, 1, 2, share(phase.batch, rank, 2)) for rank in (0, 1)]
    assert [len(part.clips) for part in parts] == [1, 1] and {part.whole for part in (whole, *parts)} == {2}
    for name in ("clips", "tokens", "image_tokens", "interval"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@pytest.mark.parametrize("clips, count", [(4, 2), (5, 2), (6, 4), (3, 3)])
def test_shares_are_whole_and_apart(clips, count):
    if (count - 1) * -(-clips // count) >= clips:
        with pytest.raises(ValueError, match=f"a batch of {clips} clips does not go around {count} processes"):
            share(clips, 0, count)
    else:
        assert [i for rank in range(count) for i in range(clips)[share(clips, rank, count)]] == list(range(clips))


def test_a_folder_is_decoded_by_many_processes_once_each(videos, tmp_path):
    folder, sizes, lines = videos / "videos", ((16, 16),), []
    for rank in (0, 1, 2):
        with contextlib.suppress(DataError):
            scan(folder, tmp_path / "cache", sizes, 0.1, quiet, (rank, 3))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    videos_found, _ = scan(folder, tmp_path / "cache", sizes, 0.1, lines.append)
    assert len(videos_found) >= 3 and {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == kept


def test_two_processes_train_on_a_new_folder_as_one_does(videos, tmp_path):
    """By torchrun: each decodes a part of the folder and reads its share of each batch."""
    for name in ("one", "two"):
        shutil.copytree(videos / "videos", tmp_path / name / "videos")
        (tmp_path / name / "r.toml").write_text((videos / "r.toml").read_text())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vidcore.train"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    run = [*command, "r.toml", "--device", "cpu"]
    said = subprocess.run(run, cwd=tmp_path / "two", env=environment, check=True, capture_output=True, text=True).stdout
    config = read_config(tmp_path / "one" / "r.toml")
    train(replace(config, micro_batch=1), tmp_path / "one", report=quiet)
    one, two = (weights.load(tmp_path / name / config.output)[0] for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-4, rtol=2e-3)
    assert said.count("left out: empty.mp4") == 1 and said.count("step 6/6") == 1


def test_a_run_on_the_folder_resumes_to_the_same_bits_and_loads(videos, tmp_path):
    config, made = read_config(videos / "r.toml"), []
    for name, stops in (("whole", (None,)), ("parts", (1, 4, None))):
        run = tmp_path / name
        run.mkdir()
        (run / "videos").symlink_to(videos / "videos")
        said = []
        for stop in stops:
            train(config, run, stop_after=stop, report=said.append)
        assert sum(line.startswith("left out: ") for line in said) == 6 * len(stops)
        made.append(weights.load(run / config.output)[0])
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    _, text = load_vdm(tmp_path / "whole" / config.output)
    assert text.config.words == open_folder(config, videos, quiet).words


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("rate = 8", "speed = 8", "data has no entry 'speed'"),
        ("rate = 8", "", "rates need data.rate"),
        ("[data]", 'words = ["a"]\n[data]', "words is not for recipes"),
        ("[[phase]]", "[[phase]]\ncrop = 8", "crop is for the shapes"),
        ("[[phase]]", "[[phase]]\nsteps = 1\nbatch = 1\nframes = 4\nsize = 32\n[[phase]]", "all phases have one size"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, old, new, message):
    (tmp_path / "r.toml").write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "r.toml")


def test_captions_and_lengths_that_do_not_fit_are_named(videos, tmp_path):
    text = RECIPE.replace("rate = 8", "").replace("rates = [1.0, 0.5]", "").replace("seed = 3", "seed = 3\ntext_length = 3")
    (tmp_path / "r.toml").write_text(text.replace("frames = 4", "frames = 9"))
    (tmp_path / "videos").symlink_to(videos / "videos")
    said = []
    with pytest.raises(DataError, match="no video of 9 frames or more with a caption that fits"):
        open_folder(read_config(tmp_path / "r.toml"), tmp_path, said.append)
    assert any("a.mp4 has 8 frames, and training takes 9" in line for line in said)
    assert any("the caption of b.avi has 4 words; text_length is 3" in line for line in said)


# ---------------------------------------------------------------------------------------------------------- several sizes


def test_each_video_takes_the_size_nearest_to_its_shape_and_a_batch_has_one(videos, tmp_path):
    text = RECIPE.replace("rate = 8\n", "rate = 8\nsizes = [[16, 16], [16, 24], [24, 16]]\n")
    text = text.replace("steps = 6", "steps = 60")
    (tmp_path / "videos").symlink_to(videos / "videos")
    (tmp_path / "r.toml").write_text(text)
    config = read_config(tmp_path / "r.toml")
    folder = open_folder(config, tmp_path, quiet)
    # a is 32x32; b is 48 high and 64 wide; c is 64 high and 36 wide.
    assert {item.name: item.size for item in folder.videos} == {"a.mp4": (16, 16), "b.avi": (16, 24), "c.webm": (24, 16)}
    vocabulary = Vocabulary(folder.words, 24)
    seen = [batch.clips.shape[-2:] for batch in batches(config, vocabulary, 0, 60, 0, folder)]
    assert set(seen) == {(16, 16), (16, 24), (24, 16)} and min(seen.count(size) for size in set(seen)) > 8
    again = [batch.clips for batch in batches(config, vocabulary, 40, 42, 0, open_folder(config, tmp_path, quiet))]
    first = [batch.clips for batch in batches(config, vocabulary, 40, 42, 0, folder)]
    assert all(torch.equal(a, b) for a, b in zip(again, first))


def test_videos_of_one_size_come_in_rounds_whatever_the_turns(videos, tmp_path):
    (tmp_path / "videos").symlink_to(videos / "videos")
    text = RECIPE.replace("rate = 8\n", "rate = 8\nsizes = [[16, 16], [16, 24]]\n").replace("batch = 2", "batch = 1")
    (tmp_path / "r.toml").write_text(text.replace("steps = 6", "steps = 40").replace("images = 1", "images = 0"))
    config = read_config(tmp_path / "r.toml")
    folder = open_folder(config, tmp_path, quiet)
    square = [item.caption for item in folder.videos if item.size == (16, 16)]
    assert len(square) == 2  # a, and c that stands upright
    vocabulary = Vocabulary(folder.words, 24)
    rounds = [
        tuple(batch.tokens[0].tolist())
        for batch in batches(config, vocabulary, 0, 40, 0, folder)
        if batch.clips.shape[-1] == 16
    ]
    assert len(rounds) > 8 and all(len(set(rounds[i : i + 2])) == 2 for i in range(0, len(rounds) - 1, 2))


def test_training_on_several_sizes_resumes_to_the_same_bits(videos, tmp_path):
    text = RECIPE.replace("rate = 8\n", "rate = 8\nsizes = [[16, 16], [16, 24], [24, 16]]\n")
    for name, stops in (("whole", (None,)), ("parts", (2, None))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "videos").symlink_to(videos / "videos")
        (tmp_path / name / "r.toml").write_text(text)
        for stop in stops:
            train(read_config(tmp_path / name / "r.toml"), tmp_path / name, stop, report=quiet)
    one, two = (weights.load(tmp_path / name / "out" / "mine.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    load_vdm(tmp_path / "whole" / "out" / "mine.safetensors")


@pytest.mark.parametrize("sizes", ["[[16, 17]]", "[[16]]", "[16, 16]", "[[0, 16]]", '[["a", 16]]'])
def test_sizes_that_no_model_takes_are_refused(tmp_path, sizes):
    (tmp_path / "r.toml").write_text(RECIPE.replace("rate = 8\n", f"rate = 8\nsizes = {sizes}\n"))
    with pytest.raises(ConfigError, match="data.sizes takes pairs of height and width that are multiples of"):
        read_config(tmp_path / "r.toml")


def test_webdataset_shards_serve_as_folders_do(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    encode(tmp_path / "one.mp4", "libx264", 8, 32, 32, 8, Thing("circle", "red", "large", "left"))
    encode(tmp_path / "two.webm", "libvpx", 8, 32, 48, 6, Thing("square", "blue", "large", "up"))
    Image.new("RGB", (20, 20), "green").save(tmp_path / "three.png")
    files = {
        "a/000.txt": b"a red circle", "a/000.mp4": (tmp_path / "one.mp4").read_bytes(),
        "001.webm": (tmp_path / "two.webm").read_bytes(), "001.json": json.dumps({"caption": "a blue square"}).encode(),
        "002.png": (tmp_path / "three.png").read_bytes(), "002.txt": b"green", "003.mp4": b"nothing", "003.txt": b"x",
        "../../escape.mp4": (tmp_path / "one.mp4").read_bytes(), "../../escape.txt": b"a circle elsewhere",
        "004.json": b"[1]", "004.mp4": (tmp_path / "one.mp4").read_bytes(), "notes.md": b"no media",
    }  # fmt: skip
    for shard in ("b.tar", "c.tar"):
        with tarfile.open(folder / shard, "w") as out:
            for name, data in files.items() if shard == "b.tar" else ():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    whole = (folder / "b.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[: len(whole) // 3])
    lines = []
    found = scan(folder, tmp_path / "cache", ((16, 16),), 0.1, lines.append)
    shown = {item.name: (item.caption, item.frames) for items in found for item in items}
    assert shown["b-000.mp4"] == ("a red circle", 8) and shown["b-001.webm"] == ("a blue square", 6)
    assert shown["b-002.png"] == ("green", 1) and shown["b-escape.mp4"] == ("a circle elsewhere", 8)
    assert any("b-003.mp4 cannot be decoded" in line for line in lines)
    assert any("b-004.mp4 has no caption" in line for line in lines) and any("the rest of cut.tar" in line for line in lines)
    assert not (tmp_path / "escape.mp4").exists() and not (tmp_path.parent / "escape.mp4").exists()
    kept = sorted((tmp_path / "cache").iterdir())
    assert all(path.suffix == ".safetensors" for path in kept)  # nothing unpacked stays
    again = scan(folder, tmp_path / "cache", ((16, 16),), 0.1, lambda line: None)
    assert again == found and sorted((tmp_path / "cache").iterdir()) == kept
