"""Samplers against Gaussian data x ~ N(m, c), where x-hat is exact: m + alpha c (z - alpha m) / (alpha^2 c + sigma^2).

Every step is affine in z and in its noise, so the mean and variance of the sampler's output are found exactly, by
following them through the real steps, with no Monte Carlo."""

import math
from functools import partial

import pytest
import torch

from vidcore.denoise import to_eps, to_x0
from vidcore.sample import Level, ancestral_step, ddim_step, langevin_step, sample, sample_clip, uniform_times
from vidcore.schedule import CosineSchedule, alpha_sigma

MEAN, VARIANCE = 0.6, 0.35


def ideal(z, level):
    gain = level.alpha * VARIANCE / (level.alpha**2 * VARIANCE + level.sigma**2)
    return MEAN + gain * (z - level.alpha * MEAN)


def grid(steps):
    alphas, sigmas = alpha_sigma(CosineSchedule().log_snr(uniform_times(steps)))
    return [Level(a, s) for a, s in zip(alphas.tolist(), sigmas.tolist())]


def outcome(step, steps, corrector=None):
    """(mean, variance) of the sampler's output when it starts from N(0, 1)."""
    mean, variance = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for now, then in zip(grid(steps), grid(steps)[1:]):
        moves = [lambda z, noise: step(z, ideal(z, now), now, then, noise)]  # noqa: B023
        if corrector is not None:
            moves.append(lambda z, noise: corrector(z, ideal(z, then), then, noise))  # noqa: B023
        for take in moves:
            constant = take(zero, zero)
            mean, variance = (
                take(mean, zero),
                (take(one, zero) - constant) ** 2 * variance + (take(zero, one) - constant) ** 2,
            )
    return float(mean), float(variance)


SAMPLERS = {"ddim": ddim_step, **{f"gamma {g}": partial(ancestral_step, gamma=g) for g in (0.0, 0.3, 1.0)}}


@pytest.mark.parametrize("name", SAMPLERS)
def test_output_has_the_data_s_mean_and_variance(name):
    mean, variance = outcome(SAMPLERS[name], 4000)
    assert mean == pytest.approx(MEAN, abs=1e-3)
    assert variance == pytest.approx(VARIANCE, abs=2e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_error_falls_in_proportion_to_the_step(name):
    errors = [abs(outcome(SAMPLERS[name], n)[1] - VARIANCE) for n in (250, 500, 1000)]
    for coarse, fine in zip(errors, errors[1:]):
        assert 1.7 < coarse / fine < 2.4


def test_gammas_differ_in_the_expected_order():
    """A larger gamma adds more noise per step."""
    at = [outcome(SAMPLERS[f"gamma {g}"], 50)[1] for g in (0.0, 0.3, 1.0)]
    assert at[0] < at[1] < at[2]


@pytest.mark.parametrize("gamma, name", [(0.0, "lower"), (1.0, "upper")])
def test_one_ancestral_step_against_bayes_rule(gamma, name):
    """With x known, q(z_s | z_t, x) has the step's mean, and s~^2 as variance at gamma 0 (VDM eq. 4)."""
    s, t = (Level(*(float(v) for v in alpha_sigma(torch.tensor(lam, dtype=torch.float64)))) for lam in (1.3, -0.7))
    x, z = 0.4, torch.tensor(-0.9, dtype=torch.float64)
    transition, noise = t.alpha / s.alpha, t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
    precision = 1 / s.sigma**2 + transition**2 / noise
    mean = (s.alpha * x / s.sigma**2 + transition * float(z) / noise) / precision
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    out = ancestral_step(z, torch.tensor(x, dtype=torch.float64), t, s, zero, gamma)
    assert float(out) == pytest.approx(mean, rel=1e-9)
    deviation = float(ancestral_step(z, torch.tensor(x, dtype=torch.float64), t, s, one, gamma) - out)
    assert deviation**2 == pytest.approx({"lower": 1 / precision, "upper": noise}[name], rel=1e-9)


@pytest.mark.parametrize("lam", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("delta", [0.1, 0.02])
def test_langevin_keeps_the_noisy_data_s_distribution(lam, delta):
    """From N(alpha m, s^2), s^2 = alpha^2 c + sigma^2, one step gives the same mean and a variance of
    s^2 + delta^2 sigma^4 / (4 s^2): right to second order in delta."""
    level = Level(*(float(v) for v in alpha_sigma(torch.tensor(lam, dtype=torch.float64))))
    spread = level.alpha**2 * VARIANCE + level.sigma**2
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    move = lambda z, noise: langevin_step(z, ideal(z, level), level, noise, delta)  # noqa: E731
    centre = one * level.alpha * MEAN
    assert float(move(centre, zero)) == pytest.approx(float(centre))
    slope, push = float(move(centre + 1, zero) - centre), float(move(centre, one) - centre)
    assert slope**2 * spread + push**2 == pytest.approx(spread + delta**2 * level.sigma**4 / (4 * spread))


def test_langevin_with_step_zero_changes_nothing_and_forms_agree():
    """The step is written for x-hat; nets that predict eps or v reach it by `to_x0`, and give the paper's formula."""
    level = Level(*(float(v) for v in alpha_sigma(torch.tensor(0.4, dtype=torch.float64))))
    z, noise, eps = (torch.randn(5, dtype=torch.float64) for _ in range(3))
    paper = z - 0.05 * level.sigma * eps + 0.1**0.5 * level.sigma * noise
    x0 = (z - level.sigma * eps) / level.alpha
    v = level.alpha * eps - level.sigma * x0
    for prediction, output in (("eps", eps), ("v", v)):
        estimate = to_x0(prediction, output, z, torch.tensor(level.alpha), torch.tensor(level.sigma))
        torch.testing.assert_close(langevin_step(z, estimate, level, noise).float(), paper.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(langevin_step(z, x0, level, noise, delta=0.0), z)
    torch.testing.assert_close(to_eps(x0, z, *level), eps)


@pytest.mark.parametrize("step", [ddim_step, partial(ancestral_step, gamma=0.0)])
def test_the_corrector_repairs_what_few_steps_got_wrong(step):
    error = {c: abs(outcome(step, 12, c)[1] - VARIANCE) for c in (None, langevin_step)}
    assert error[langevin_step] < error[None], error
    mean, variance = outcome(step, 1000, langevin_step)
    assert mean == pytest.approx(MEAN, abs=2e-3) and variance == pytest.approx(VARIANCE, abs=6e-3)


def test_the_corrector_runs_between_levels_and_not_after_the_last():
    seen = []

    def corrector(z, x0, now, noise):
        seen.append(now)
        return z

    levels = grid(4)[:-1] + [Level(1.0, 0.0)]
    z = torch.zeros(2, dtype=torch.float64)
    sample(lambda z, i: ideal(z, levels[i]), z, levels, ddim_step, lambda: z, corrector=corrector)
    assert seen == levels[1:-1]


def test_ddim_does_not_care_how_the_process_is_scaled():
    """The same levels in variance-exploding form, z / alpha, give the same x."""
    levels = grid(7)[:-1] + [Level(1.0, 0.0)]
    z = torch.tensor([0.3, -1.2], dtype=torch.float64)
    one = sample(lambda z, i: ideal(z, levels[i]), z, levels, ddim_step)
    scaled = [Level(1.0, level.sigma / level.alpha) for level in levels]
    other = sample(lambda z, i: ideal(z, scaled[i]), z / levels[0].alpha, scaled, ddim_step)
    torch.testing.assert_close(one, other)


def test_ancestral_step_from_pure_noise_of_a_flow_model():
    """Flow models start at alpha = 0, sigma = 1: z_s is then drawn around alpha_s x-hat alone."""
    z, zero = torch.tensor(5.0), torch.tensor(0.0)
    assert float(ancestral_step(z, torch.tensor(0.5), Level(0.0, 1.0), Level(0.1, 0.9), zero)) == pytest.approx(0.05)


def test_last_step_returns_the_mean_and_callback_may_stop_the_walk():
    levels = [Level(0.6, 0.8), Level(1.0, 0.0)]
    z = torch.randn(3)
    assert torch.equal(sample(lambda z, i: z * 2, z, levels, ddim_step), z * 2)

    class Stop(Exception):
        pass

    def callback(i, x0, z):
        raise Stop

    with pytest.raises(Stop):
        sample(lambda z, i: z, z, levels, ddim_step, callback=callback)


def test_a_seed_is_the_only_source_of_randomness():
    def run(seed):
        step = partial(ancestral_step, gamma=0.3)
        denoiser = lambda z, t: z * 0.5  # noqa: E731
        return sample_clip(denoiser, CosineSchedule(), (1, 3, 2, 4, 4), 5, step, seed)

    first = run(1)
    torch.manual_seed(99)
    assert torch.equal(first, run(1))
    assert not torch.equal(first, run(2))


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        uniform_times(0)
    assert uniform_times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert math.isclose(float(uniform_times(3)[1]), 2 / 3)
