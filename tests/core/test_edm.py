"""EDM with an input scale, and its sampler, against what is known in closed form for Gaussian data."""

import math
from functools import partial

import pytest
import torch

from vidcore.edm import EDM, sigma_in
from vidcore.sample.heun import Churn, heun_sample, snap_sample

SIGMAS = torch.tensor([0.002, 0.05, 0.1, 0.25, 1.0, 4.0, 80.0], dtype=torch.float64)
SCALES = [1.0, 2.0, 4.0, 32.0]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", SCALES)
@pytest.mark.parametrize("d", [0.5, 1.0])
def test_the_target_gives_the_clip_back_at_every_level(k, d):
    edm, x, eps = EDM(k, d), draw(7, 1000), draw(7, 1000, seed=1)
    target = edm.target(x, eps, SIGMAS)
    made = edm.denoise(lambda z, c: target.clone(), edm.add_noise(x, eps, SIGMAS), SIGMAS)
    torch.testing.assert_close(made, x, atol=3e-5, rtol=1e-5)  # the network's output is rounded to float32


@pytest.mark.parametrize("k", SCALES)
def test_input_and_target_have_variance_one(k):
    edm, x, eps = EDM(k, 0.7), 0.7 * draw(7, 200_000), draw(7, 200_000, seed=1)
    scaled = edm.c_in(SIGMAS)[:, None] * edm.add_noise(x, eps, SIGMAS)
    for values in (scaled, edm.target(x, eps, SIGMAS)):
        torch.testing.assert_close(values.var(dim=1), torch.ones(7, dtype=torch.float64), atol=0.02, rtol=0)


@pytest.mark.parametrize("k", SCALES)
def test_both_forms_of_the_loss_weight_agree(k):
    edm = EDM(k, 0.5)
    torch.testing.assert_close(edm.weight(SIGMAS) * edm.c_out(SIGMAS) ** 2, edm.network_weight(SIGMAS), rtol=1e-12, atol=0)


def test_without_a_scale_it_is_edm_with_the_sign_of_the_network_turned():
    """Table 1 of EDM, written out."""
    d, edm, x, net = 0.5, EDM(1.0, 0.5), draw(7, 50), partial(torch.mul, other=0.3)
    s = SIGMAS[:, None]
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    expected = c_skip * x + c_out * net(x / (s**2 + d**2).sqrt()).float()
    torch.testing.assert_close(edm.denoise(lambda z, c: -net(z), x, SIGMAS), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(edm.c_noise(SIGMAS), SIGMAS.log() / 4)


def ideal(edm, deviation):
    """The posterior mean for data N(0, deviation^2), k d^2 / (d^2 + k^2 s^2) x_sigma, as the network that gives it."""

    def net(scaled, c_noise):
        s = (4 * c_noise).exp().reshape(-1, *[1] * (scaled.ndim - 1)).to(scaled)
        x_sigma, k, d = scaled / edm.c_in(s), edm.sigma_in, deviation
        return (k * d**2 / (d**2 + k**2 * s**2) * x_sigma - edm.c_skip(s) * x_sigma) / edm.c_out(s)

    return net


def test_the_ideal_networks_slope_is_the_papers():
    edm, s = EDM(4.0, 1.0), torch.tensor([0.1, 0.25, 1.0, 4.0], dtype=torch.float64)
    slope = ideal(edm, 1.0)(torch.ones(4, dtype=torch.float64), edm.c_noise(s))
    torch.testing.assert_close(slope, torch.tensor([0.2772, 0.5145, 0.5145, 0.1815], dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("k", SCALES)
def test_the_ideal_denoiser_minimises_the_loss(k):
    """Training the slope of a linear network by its loss finds the posterior mean's."""
    edm, sigma = EDM(k), torch.full((100_000,), 0.5, dtype=torch.float64)
    x, eps = draw(100_000), draw(100_000, seed=1)
    scaled = edm.c_in(sigma) * edm.add_noise(x, eps, sigma)
    best = (scaled * edm.target(x, eps, sigma)).mean() / scaled.square().mean()
    expected = ideal(edm, 1.0)(torch.ones(1, dtype=torch.float64), edm.c_noise(sigma[:1]))
    assert abs(float(best - expected)) < 0.02


@pytest.mark.parametrize("k", SCALES)
@pytest.mark.parametrize("churn", [Churn(), Churn(10.0, 0.05, 50.0, 1.0)])
def test_the_sampler_returns_the_data(k, churn):
    """The mean and deviation of what the ideal denoiser samples; without D / k or the last k they are off by a factor k."""
    edm = EDM(k, 1.0)
    made = snap_sample(edm, ideal(edm, 0.6), (1, 1, 4, 100, 100), 60, 0, churn)
    assert abs(float(made.std()) - 0.6) < 0.02 and abs(float(made.mean())) < 0.02


def test_heun_is_exact_to_second_order_and_euler_to_first():
    """For N(0, d^2) the flow's solution is y_0 = y_max d / sqrt(d^2 + s_max^2)."""
    edm, d = EDM(1.0), 0.5

    def error(steps, second_order):
        sigmas = edm.sigmas(steps)[:-1]
        y = torch.ones(1, dtype=torch.float64)
        made = heun_sample(lambda y, s: d**2 / (d**2 + s**2) * y, y, sigmas, second_order=second_order)
        exact = math.sqrt((d**2 + float(sigmas[-1]) ** 2) / (d**2 + float(sigmas[0]) ** 2))
        return abs(float(made) / exact - 1)

    assert 3.3 < error(40, True) / error(80, True) < 4.7
    assert 1.7 < error(40, False) / error(80, False) < 2.3


def test_the_grid_and_the_count_of_evaluations():
    edm, seen = EDM(), []
    sigmas = edm.sigmas(18)
    assert len(sigmas) == 19 and sigmas[0] == pytest.approx(80) and sigmas[-2] == pytest.approx(0.002) and sigmas[-1] == 0
    assert sigmas[9] == pytest.approx((80 ** (1 / 7) + 9 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    snap_sample(edm, lambda z, c: seen.append(1) or torch.zeros_like(z), (1, 1, 1, 1, 1), 18, 0)
    assert len(seen) == 2 * 18 - 1


def test_a_clips_mean_has_the_signal_to_noise_of_a_picture():
    """With sigma_in = sqrt(T), the mean of T like frames of x_sigma is as clear as one frame at sigma_in = 1."""
    frames, x, sigma = 16, draw(1000), torch.tensor(0.8, dtype=torch.float64)
    assert sigma_in(frames, 64) == 4.0 and sigma_in(16, 512) == 32.0
    clip = EDM(sigma_in(frames, 64)).add_noise(x.expand(frames, -1), draw(frames, 1000, seed=1), sigma)
    mean, signal = clip.mean(dim=0), x / 4
    one = EDM().add_noise(x, draw(1000, seed=2), sigma)
    ratio = (signal.var() / (mean - signal).var()) / (x.var() / (one - x).var())
    assert 0.85 < ratio < 1.15


@pytest.mark.parametrize("wrong", [dict(sigma_in=0.0), dict(sigma_min=90.0), dict(rho=-1.0)])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must be above 0"):
        EDM(**wrong)
    with pytest.raises(ValueError, match="at least 1"):
        EDM().sigmas(0)
