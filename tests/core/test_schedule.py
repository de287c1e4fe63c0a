import math

import pytest
import torch

from vidcore.schedule import CosineSchedule, alpha_sigma


def test_known_values_of_the_clipped_cosine():
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    expected = torch.tensor([20, 1.762618, 0, -1.762618, -20], dtype=torch.float64)
    torch.testing.assert_close(CosineSchedule().log_snr(t), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", [CosineSchedule(), CosineSchedule(-9, 13)])
def test_time_inverts_log_snr(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, atol=1e-9, rtol=0)
    assert (schedule.log_snr(t).diff() < 0).all()


def test_variance_preserving_and_its_conditional_variance():
    """sigma_{t|s}^2 = (1 - e^(lambda_t - lambda_s)) sigma_t^2 is sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2."""
    schedule = CosineSchedule()
    s, t = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64), torch.tensor([0.3, 0.7, 0.95], dtype=torch.float64)
    lambda_s, lambda_t = schedule.log_snr(s), schedule.log_snr(t)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(lambda_s), alpha_sigma(lambda_t)
    torch.testing.assert_close(alpha_s**2 + sigma_s**2, torch.ones_like(s))
    left = (1 - torch.exp(lambda_t - lambda_s)) * sigma_t**2
    torch.testing.assert_close(left, sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)
    torch.testing.assert_close(torch.log(alpha_t**2 / sigma_t**2), lambda_t)


def test_unclipped_limit_is_the_cosine():
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    alpha, _ = alpha_sigma(CosineSchedule(-60, 60).log_snr(t))
    torch.testing.assert_close(alpha, torch.cos(t * math.pi / 2))


def test_range_must_be_ordered():
    with pytest.raises(ValueError, match="log_snr_min must be below"):
        CosineSchedule(3, 3)
