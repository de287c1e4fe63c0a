import pytest
import torch

from vidcore.denoise import Denoiser, target, to_eps, to_x0
from vidcore.schedule import CosineSchedule, alpha_sigma


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 5.0])
def test_a_perfect_network_gives_back_the_clip(prediction, log_snr):
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(2, 3, 4, 5, 5, generator=generator) for _ in range(2))
    alpha, sigma = alpha_sigma(torch.tensor(log_snr))
    z = alpha * x + sigma * eps
    x0 = to_x0(prediction, target(prediction, x, eps, alpha, sigma), z, alpha, sigma)
    torch.testing.assert_close(x0, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(to_eps(x0, z, alpha, sigma), eps, atol=2e-4, rtol=1e-4)


def test_v_is_the_derivative_along_the_circle():
    """v = dz/dphi at alpha = cos phi, sigma = sin phi (Salimans & Ho 2022, section 4)."""
    x, eps = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    phi = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(torch.cos(phi) * x + torch.sin(phi) * eps, phi)
    phi = phi.detach()
    torch.testing.assert_close(target("v", x, eps, torch.cos(phi), torch.sin(phi)), derivative)


def test_conversion_is_float32_even_for_half_inputs():
    alpha, sigma = alpha_sigma(torch.tensor(-20.0))  # 1 / alpha is 2.2e4
    z = torch.randn(4).half()
    assert to_x0("eps", z * 0.999, z, alpha, sigma).dtype == torch.float32


def test_denoiser_asks_the_network_at_the_right_log_snr():
    asked = []

    def net(z, log_snr):
        asked.append(log_snr)
        return torch.zeros_like(z)

    z, t = torch.ones(2, 3, 1, 4, 4), torch.tensor([0.25, 0.75])
    x0 = Denoiser(net, "v", CosineSchedule())(z, t)
    torch.testing.assert_close(asked[0], torch.tensor([1.762618, -1.762618]), atol=1e-5, rtol=0)
    alpha, _ = alpha_sigma(asked[0])
    torch.testing.assert_close(x0[:, 0, 0, 0, 0], alpha)


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="eps, v, x0"):
        Denoiser(lambda z, log_snr: z, "score", CosineSchedule())
