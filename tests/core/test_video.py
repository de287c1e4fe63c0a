import tracemalloc
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from vidcore.video import VideoError, probe, read_blocks, read_frames, write_picture, write_video


def numbered(count, height=48, width=64):
    """Frames that write their own number as six black or white blocks, coarse enough to survive compression."""
    frames = torch.full((count, height, width, 3), 128, dtype=torch.uint8)
    for i in range(count):
        for bit in range(6):
            frames[i, 16:32, 8 * bit : 8 * bit + 8] = 255 * (i >> bit & 1)
    return frames


def number(frame):
    return sum(int(frame[20:28, 8 * bit + 2 : 8 * bit + 6].float().mean() > 128) << bit for bit in range(6))


@pytest.mark.parametrize("rate", [8, 30, Fraction(30000, 1001)])
def test_round_trip_by_frame_index(tmp_path, rate):
    path = tmp_path / "n.mp4"
    write_video(path, numbered(50), rate)
    info = probe(path)
    assert (info.frames, info.height, info.width) == (50, 48, 64) and float(info.rate) == pytest.approx(
        float(rate), rel=1e-3
    )
    assert probe(path, 20) == replace(info, frames=20) and probe(path, 51) == info
    assert [number(f) for f in read_frames(path)] == list(range(50))
    wanted = [49, 0, 7, 7, 31]
    assert [number(f) for f in read_frames(path, wanted)] == wanted
    assert torch.equal(read_frames(path, [31])[0], read_frames(path)[31])
    assert (read_frames(path).float() - numbered(50).float()).abs().mean() < 3


def test_files_with_b_frames_and_a_late_start_are_read_in_order(tmp_path):
    path = tmp_path / "b.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", {"bf": "3", "g": "12"}
        for i, pixels in enumerate(numbered(30).numpy()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i + 100
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert [number(f) for f in read_frames(path)] == list(range(30))


@pytest.mark.parametrize("numbers", [None, range(50), range(0, 50, 3), range(0, 10)])
def test_blocks_are_the_frames_in_order(tmp_path, numbers):
    write_video(tmp_path / "n.mp4", numbered(50), 8)
    blocks = list(read_blocks(tmp_path / "n.mp4", numbers, 8))
    assert all(len(block) == 8 for block in blocks[:-1]) and 0 < len(blocks[-1]) <= 8
    assert torch.equal(torch.cat(blocks), read_frames(tmp_path / "n.mp4", numbers))


def test_blocks_take_the_memory_of_a_block(tmp_path):
    write_video(tmp_path / "n.mp4", torch.zeros(200, 128, 128, 3, dtype=torch.uint8), 8)
    tracemalloc.start()
    count = sum(len(block) for block in read_blocks(tmp_path / "n.mp4", size=8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200 and peak < 200 * 128 * 128 * 3 / 4


def test_bad_files_and_numbers_are_refused(tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        probe(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match="cannot be decoded"):
        read_frames(tmp_path / "text.mp4")
    write_video(tmp_path / "n.mp4", numbered(6), 8)
    with pytest.raises(VideoError, match="has 6 frames; frame 6 was asked for"):
        read_frames(tmp_path / "n.mp4", [6])
    with pytest.raises(VideoError, match="has 6 frames; frame 8 was asked for"):
        list(read_blocks(tmp_path / "n.mp4", range(0, 9, 2)))
    with pytest.raises(VideoError, match="at least one"):
        list(read_blocks(tmp_path / "n.mp4", range(0)))
    with pytest.raises(VideoError, match="0 or more"):
        read_frames(tmp_path / "n.mp4", [-1])
    whole = (tmp_path / "n.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match="half.mp4"):
        read_frames(tmp_path / "half.mp4")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(VideoError, match="no video stream"):
        probe(tmp_path / "sound.wav")


def test_frames_that_cannot_be_written_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="even height and width"):
        write_video(tmp_path / "n.mp4", numbered(2, 47), 8)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "n.mp4", numbered(2).float(), 8)
    with pytest.raises(ValueError, match="rate"):
        write_video(tmp_path / "n.mp4", numbered(2), 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phone_s_video_is_turned_as_players_turn_it(tmp_path, degrees):
    """The display matrix of an mp4 is written by hand, as cameras do."""
    frames = torch.zeros(2, 16, 32, 3, dtype=torch.uint8)
    frames[:, :8, :16, 0] = 200  # red, top left
    write_video(tmp_path / "a.mp4", frames, 8)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    unit, one = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    at = content.index(unit + bytes(12) + unit + bytes(12) + one, content.index(b"tkhd"))
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]  # clockwise
    word = {0: bytes(4), 1: unit, -1: minus}
    content[at : at + 36] = word[a] + word[b] + bytes(4) + word[c] + word[d] + bytes(12) + one
    (tmp_path / "b.mp4").write_bytes(content)
    shown, stored = read_frames(tmp_path / "b.mp4"), read_frames(tmp_path / "a.mp4")
    assert torch.equal(shown, torch.rot90(stored, -degrees // 90, (1, 2)))
    info = probe(tmp_path / "b.mp4")
    assert (info.height, info.width) == tuple(shown.shape[1:3])


def test_a_picture_comes_back(tmp_path):
    picture = torch.randint(0, 256, (12, 20, 3), dtype=torch.uint8)
    write_picture(tmp_path / "a.png", picture)
    assert torch.equal(read_frames(tmp_path / "a.png")[0], picture)
    with pytest.raises(ValueError, match="uint8 picture H W 3"):
        write_picture(tmp_path / "b.png", picture.float())
