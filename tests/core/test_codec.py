import pytest
import torch

from vidcore.codec.pixel import PixelCodec


def test_pixel_codec_is_the_identity_on_clips():
    clip = torch.rand(1, 3, 2, 4, 4) * 2 - 1
    codec = PixelCodec()
    assert torch.equal(codec.decode(codec.encode(clip)), clip)
    assert codec.decode(clip * 9).abs().max() == 1


def test_what_is_not_a_clip_is_refused():
    with pytest.raises(ValueError, match="B 3 T H W"):
        PixelCodec().encode(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        PixelCodec().encode(torch.full((1, 3, 1, 4, 4), 2.0))
