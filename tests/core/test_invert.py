"""DDIM inversion against Gaussian data x ~ N(m, c), where x-hat and the whole path of the ODE are exact, and on a model."""

from pathlib import Path

import pytest
import torch

from vidcore.data.shapes import Scene, Thing, caption, render
from vidcore.denoise import Denoiser
from vidcore.sample import Level, ddim_step, invert, round_trip_error, sample, uniform_times
from vidcore.schedule import CosineSchedule, alpha_sigma
from vidcore.systems.vdm.checkpoint import load_vdm
from vidcore.text import Vocabulary

MEAN, VARIANCE = 0.6, 0.35


def preserving(steps):
    alphas, sigmas = alpha_sigma(CosineSchedule().log_snr(uniform_times(steps)))
    levels = [Level(a, s) for a, s in zip(alphas.tolist(), sigmas.tolist())]
    return [Level(1.0, 0.0), *levels[-2::-1]]


def flow(steps):
    return [Level(1 - s, s) for s in torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()]


def ideal(levels):
    def denoise(z, i):
        alpha, sigma = levels[i]
        return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (z - alpha * MEAN)

    return denoise


def clip(shape=(64,)):
    return MEAN + VARIANCE**0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("grid", [preserving, flow])
def test_enough_iterations_make_the_round_trip_exact(grid):
    levels, x = grid(12), clip()
    noise = invert(ideal(levels), x, levels, iterations=400)
    assert round_trip_error(ideal(levels), x, noise, levels) < 1e-9
    down = levels[::-1]
    again = sample(lambda z, i: ideal(down)(z, i), noise, down, ddim_step)
    torch.testing.assert_close(again, x, atol=1e-9, rtol=0)


@pytest.mark.parametrize("grid", [preserving, flow])
def test_each_iteration_brings_the_round_trip_nearer(grid):
    levels, x = grid(25), clip()
    errors = [
        round_trip_error(ideal(levels), x, invert(ideal(levels), x, levels, iterations=n), levels) for n in (0, 1, 3, 9)
    ]
    assert errors[0] > 1.5 * errors[1] > 1.5 * errors[2] > 1.5 * errors[3]


@pytest.mark.parametrize("grid", [preserving, flow])
def test_the_noise_is_the_one_of_the_probability_flow(grid):
    """Along the ODE, z = alpha m + (x - m) sqrt(alpha^2 + sigma^2 / c) for Gaussian data, so noise is (x - m) / sqrt(c)."""
    x = clip()
    wrong = [
        float((invert(ideal(levels), x, levels, 30) - (x - MEAN) / VARIANCE**0.5).abs().max())
        for levels in (grid(100), grid(200), grid(400))
    ]
    assert wrong[2] < 0.03
    assert all(1.7 < coarse / fine < 2.4 for coarse, fine in zip(wrong, wrong[1:]))


def test_no_iterations_are_tune_a_videos_inversion():
    """Its formula, in its own terms: x0 = (z - sqrt(1 - a) eps) / sqrt(a), z <- sqrt(a') x0 + sqrt(1 - a') eps,
    with eps taken at the target time from the current latent."""
    levels, z = preserving(7), clip((5,))
    eps = lambda z, i: torch.sin(3 * z + i)  # noqa: E731
    by_hand = z
    for i in range(1, len(levels)):
        noise, (a, a_next) = eps(by_hand, i), (levels[i - 1].alpha ** 2, levels[i].alpha ** 2)
        x0 = (by_hand - (1 - a) ** 0.5 * noise) / a**0.5
        by_hand = a_next**0.5 * x0 + (1 - a_next) ** 0.5 * noise

    def denoise(z, i):
        # to_x0 works in float32; here the same formula in double.
        return (z - levels[i].sigma * eps(z, i)) / levels[i].alpha

    torch.testing.assert_close(invert(denoise, z, levels, iterations=0), by_hand, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_shipped_model_is_inverted():
    """From a clip with a little noise: the walk up keeps that noise, ends in unit noise, and is walked back."""
    net, text = load_vdm(Path(__file__).resolve().parents[2] / "models" / "shapes-vdm.safetensors")
    denoiser = Denoiser(net.eval(), net.config.prediction, net.config.schedule)
    scene = Scene((Thing("circle", "red", "large", "left"),), "dark blue")
    words = Vocabulary(text.config.words, text.config.length).encode(caption(scene))
    context = text.eval()(torch.tensor([words]))
    x = torch.from_numpy(render(scene, 8, 32)).permute(3, 0, 1, 2)[None] * 2 - 1
    levels, times = preserving(25)[2:], uniform_times(25).flip(0)[2:]
    denoise = lambda z, i: denoiser(z, times[i : i + 1], context=context)  # noqa: E731
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    z = levels[0].alpha * x + levels[0].sigma * noise
    rough, fine = (invert(denoise, z, levels, iterations) for iterations in (0, 4))
    assert round_trip_error(denoise, z, fine, levels) < 0.02 < 0.05 < round_trip_error(denoise, z, rough, levels)
    assert 0.9 < fine.std() < 1.1 and rough.std() < 0.85
    assert (fine * noise).mean() > 0.95


def test_progress_counts_evaluations_and_levels_must_rise():
    levels, seen = preserving(4), []
    invert(ideal(levels), clip(), levels, 2, lambda done, x0, z: seen.append(done))
    assert seen == list(range(1, 13))
    with pytest.raises(ValueError, match="rise"):
        invert(ideal(levels), clip(), levels[::-1])
