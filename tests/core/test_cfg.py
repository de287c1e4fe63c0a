import pytest
import torch

from vidcore.denoise import Denoiser, to_x0
from vidcore.guide.cfg import guided, oscillating, with_cfg, within
from vidcore.schedule import alpha_sigma
from vidcore.systems.vdm import UNet3D, VDMConfig


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(0)
    config = VDMConfig.tiny()
    return Denoiser(UNet3D(config).eval(), config.prediction, config.schedule)


def inputs():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 3, 4, 16, 16, generator=generator),
        torch.tensor([0.3, 0.8]),
        torch.randn(2, 5, 16, generator=generator),
        torch.randn(2, 5, 16, generator=generator),
    )


@torch.no_grad()
@pytest.mark.parametrize("given", [False, True])
def test_batched_equals_sequential(denoiser, given):
    z, t, context, negative = inputs()
    extra = {"negative": negative} if given else {}
    one = with_cfg(denoiser, 4.0, batched=True)(z, t, context, **extra)
    two = with_cfg(denoiser, 4.0, batched=False)(z, t, context, **extra)
    torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_scale_one_is_the_conditional_alone_and_zero_context_is_no_context(denoiser):
    z, t, context, _ = inputs()
    assert torch.equal(with_cfg(denoiser, 1.0)(z, t, context), denoiser(z, t, context=context))
    assert torch.equal(denoiser(z, t, context=torch.zeros_like(context)), denoiser(z, t))


@torch.no_grad()
def test_a_scale_may_follow_time(denoiser):
    z, _, context, _ = inputs()
    scheduled = with_cfg(denoiser, within(4.0, 0.3, 0.7))
    for t, scale in ((0.2, 1.0), (0.3, 4.0), (0.5, 4.0), (0.71, 1.0)):
        t = torch.full((2,), t, dtype=torch.float64)
        assert torch.equal(scheduled(z, t, context), with_cfg(denoiser, scale)(z, t, context))


def test_oscillating_guidance_by_steps():
    times = torch.linspace(1, 0, 9, dtype=torch.float64)[:-1]
    scale = oscillating(8.0, 1.0, times, first=3)
    assert [scale(float(t)) for t in times] == [8, 8, 8, 1, 8, 1, 8, 1]


def test_guiding_eps_or_v_or_x0_is_the_same():
    alpha, sigma = alpha_sigma(torch.tensor(0.7, dtype=torch.float64))
    z, c, u = torch.tensor([0.5, -0.2, 1.4], dtype=torch.float64)
    for prediction in ("eps", "v"):
        x = [to_x0(prediction, out, z, alpha, sigma) for out in (c, u)]
        torch.testing.assert_close(guided(*x, 3.5), to_x0(prediction, guided(c, u, 3.5), z, alpha, sigma), check_dtype=False)


def test_scale_is_one_plus_the_paper_s_weight():
    c, u, w = torch.tensor(2.0), torch.tensor(0.5), 1.5
    assert float(guided(c, u, 1 + w)) == pytest.approx(float((1 + w) * c - w * u))
