"""Fréchet distance, inception score and pixel scores against closed forms and second implementations."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vidcore.metrics.frechet import Moments, frechet_distance, inception_score
from vidcore.metrics.pixels import flicker, frame_consistency, psnr, ssim
from vidcore.video import write_video


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x, parts=1):
    found = Moments(x.shape[1])
    for part in x.chunk(parts):
        found.add(part)
    return found


def test_streamed_moments_are_those_of_all_at_once():
    x = 1000 + draw(257, 5)  # far from zero, where sums of squares would lose digits
    for parts in (1, 4, 257):
        found = moments(x, parts)
        assert found.count == 257
        torch.testing.assert_close(found.mean, x.mean(dim=0), rtol=1e-13, atol=0)
        torch.testing.assert_close(found.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-12)


def test_distance_of_gaussians_with_one_eigenbasis_is_the_closed_form():
    """sum over axes of (m1 - m2)^2 + (s1 - s2)^2."""
    turn = torch.linalg.qr(draw(4, 4, seed=3))[0]
    m1, m2, s1, s2 = draw(4, seed=1), draw(4, seed=2), *torch.tensor([[1.0, 2, 3, 0.5], [2, 2, 1, 0.1]]).double()
    sets = []
    for m, s in ((m1, s1), (m2, s2)):
        made = Moments(4)
        made.count, made.mean = 1001, turn @ m
        made.scatter = 1000 * turn @ torch.diag(s.double() ** 2) @ turn.T
        sets.append(made)
    expected = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    assert frechet_distance(*sets) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(sets[0], sets[0]) == pytest.approx(0, abs=1e-10)


def test_distance_is_that_of_a_second_implementation():
    """By the eigenvalues of the product itself, which is not symmetric, as SciPy's matrix root would give it."""
    x, y = draw(300, 12, seed=1), draw(400, 12, seed=2) @ draw(12, 12, seed=3) * 0.3 + 0.5
    s1, s2 = (np.cov(z.numpy().T) for z in (x, y))
    root = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(s1) + np.trace(s2) - 2 * root
    assert frechet_distance(moments(x, 3), moments(y, 7)) == pytest.approx(expected, rel=1e-8)


def test_too_few_and_broken_features_are_refused():
    few, enough = moments(draw(8, 8)), moments(draw(40, 8))
    with pytest.raises(ValueError, match="8 clips are too few for features of 8 entries; please give more than 8"):
        frechet_distance(enough, few)
    with pytest.raises(ValueError, match="expected features of shape N x 8"):
        enough.add(draw(3, 7))
    with pytest.raises(ValueError, match="NaN"):
        enough.add(torch.full((1, 8), math.nan))


def test_inception_score_s_ends_and_a_case_by_hand():
    sure = 50.0 * torch.eye(4).repeat(10, 1)  # every class alike often, without doubt: the number of classes
    assert inception_score(sure, 5)[0] == pytest.approx(4, rel=1e-9)
    assert inception_score(torch.zeros(20, 4), 2) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    p = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
    kl = (p * (p / p.mean(0)).log()).sum(1).mean()
    assert inception_score(p.log(), 1)[0] == pytest.approx(float(kl.exp()), rel=1e-12)
    with pytest.raises(ValueError, match="3 samples are too few for 2 parts"):
        inception_score(torch.zeros(3, 2), 2)


def test_psnr_and_flicker_by_hand():
    clip = torch.zeros(3, 4, 4, 3)
    assert psnr(clip + 0.1, clip) == pytest.approx(20, rel=1e-6) and psnr(clip, clip) == math.inf
    clip[1] = 0.5
    assert flicker(clip) == 0.5
    with pytest.raises(ValueError, match="two frames"):
        flicker(clip[:1])


def test_ssim_against_its_formula_pixel_by_pixel():
    x = torch.rand(2, 14, 13, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x + 0.1 * draw(2, 14, 13, 3)).clamp(0, 1)
    ys, xs = np.mgrid[-5:6, -5:6]
    weight = np.exp(-(xs**2 + ys**2) / 4.5)
    weight /= weight.sum()
    scores = []
    for t in range(2):
        for c in range(3):
            for row in range(4):
                for column in range(3):
                    a, b = (z[t, row : row + 11, column : column + 11, c].numpy() for z in (x, y))
                    m, n = (weight * a).sum(), (weight * b).sum()
                    va, vb, vab = ((weight * p * q).sum() for p, q in ((a - m, a - m), (b - n, b - n), (a - m, b - n)))
                    scores.append((2 * m * n + 1e-4) * (2 * vab + 9e-4) / ((m**2 + n**2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim(x, y) == pytest.approx(np.mean(scores), rel=1e-10) and ssim(x, x) == pytest.approx(1)
    with pytest.raises(ValueError, match="11 pixels or more a side"):
        ssim(x[:, :8], y[:, :8])


# ------------------------------------------------------------------------------------------------------ the command line


def run(*arguments):
    command = [sys.executable, "-m", "vidcore.score", *map(str, arguments)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, capture_output=True, text=True, cwd=root)


def test_two_folders_of_videos_are_compared_by_name(tmp_path):
    noise = torch.Generator().manual_seed(0)
    for folder, spread in (("true", 0), ("made", 20)):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            clip = torch.full((4, 16, 16, 3), 120.0) + spread * torch.randn(4, 16, 16, 3, generator=noise)
            write_video(tmp_path / folder / f"{name}.mp4", clip.clamp(0, 255).byte(), 8, quality=0)
    found = json.loads(run("videos", tmp_path / "made", tmp_path / "true").stdout)
    assert found["videos"] == 2 and found["sizes"] == ["4x16x16"] and 15 < found["psnr"] < 30
    assert 0 < found["ssim"] < 0.9 and found["flicker"] > found["flicker_of_true"]
    (tmp_path / "true" / "b.mp4").unlink()
    failed = run("videos", tmp_path / "made", tmp_path / "true")
    assert failed.returncode and "b.mp4 not in" in failed.stderr and "Traceback" not in failed.stderr


def test_two_files_of_features_are_compared(tmp_path):
    x, y = draw(60, 6, seed=1), draw(50, 6, seed=2) + 1
    save_file({"features": x, "logits": draw(60, 5)}, tmp_path / "made.safetensors")
    save_file({"features": y}, tmp_path / "true.safetensors")
    found = json.loads(run("features", tmp_path / "made.safetensors", tmp_path / "true.safetensors").stdout)
    assert found["frechet_distance"] == pytest.approx(frechet_distance(moments(x), moments(y)), rel=1e-9)
    assert (found["made"], found["true"], found["entries"]) == (60, 50, 6) and found["inception_score"] > 1
    save_file({"features": y[:5]}, tmp_path / "few.safetensors")
    save_file({"other": y}, tmp_path / "other.safetensors")
    for name, message in (
        ("few", "5 clips are too few"),
        ("other", "no safetensors file with 'features'"),
        ("none", "none"),
    ):
        failed = run("features", tmp_path / "made.safetensors", tmp_path / f"{name}.safetensors")
        assert failed.returncode and message in failed.stderr and "Traceback" not in failed.stderr


def test_frame_consistency_is_the_mean_cosine_of_all_pairs():
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    pairs = [
        torch.nn.functional.cosine_similarity(features[i], features[j], dim=0) for i in range(5) for j in range(5) if i != j
    ]
    assert frame_consistency(features) == pytest.approx(100 * float(torch.stack(pairs).mean()), abs=1e-4)
    assert frame_consistency(features[:1].expand(3, -1)) == pytest.approx(100)
    with pytest.raises(ValueError, match="two frames or more"):
        frame_consistency(features[:1])
