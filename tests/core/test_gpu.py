from types import SimpleNamespace

import pytest
import torch

from tests.core.test_train import RECIPE, recipe
from vidcore.systems.harivo import ClipLosses
from vidcore.systems.tune_a_video import Tuning, read_loss
from vidcore.systems.vdm import UNet3D, VDMConfig
from vidcore.train.loop import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@torch.no_grad()
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-3), (torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_network_on_the_gpu_agrees_with_the_cpu(dtype, bound):
    torch.manual_seed(0)
    net = UNet3D(VDMConfig.tiny()).eval()
    z, log_snr, text = torch.randn(2, 3, 4, 16, 16), torch.tensor([1.5, -2.0]), torch.randn(2, 5, 16)
    expected = net(z, log_snr, text)
    there = net.to("cuda", dtype)(z.to("cuda", dtype), log_snr.cuda(), text.to("cuda", dtype)).float().cpu()
    assert (there - expected).norm() / expected.norm() < bound


@torch.no_grad()
def test_more_pixels_than_one_kernel_launch_takes():
    """Temporal attention has one batch entry per pixel; above 65535 it is split."""
    from vidcore.layers.attention import attention

    q, k, v = (torch.randn(70_000, 3, 8, device="cuda") for _ in range(3))
    torch.testing.assert_close(attention(q, k, v, 2)[-9:], attention(q[-9:], k[-9:], v[-9:], 2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_frames_of_more_places_than_one_kernel_launch_takes():
    """65536 places and heads: Stable Diffusion's finest level has them for 512x512, with and without the prompt."""
    from vidcore.layers.attention import attention_over_frames

    q, k, v = (torch.randn(48, 4096, 320, device="cuda", dtype=torch.float16) for _ in range(3))
    exact = attention_over_frames(*(x[24:, -9:].double().cpu() for x in (q, k, v)), 24, 8)
    found = attention_over_frames(q, k, v, 24, 8)[24:, -9:].double().cpu()
    assert (found - exact).norm() / exact.norm() < 2e-3


def test_training_on_the_gpu_follows_the_cpu_and_resumes(tmp_path):
    losses = {}
    for device in ("cpu", "cuda"):
        folder, quiet = tmp_path / device, lambda line: None
        text = RECIPE.replace("dropout = 0.1", "dropout = 0.0")  # whose masks each device draws itself
        train(recipe(folder, text), folder, stop_after=4, report=quiet, device=device)
        losses[device] = train(recipe(folder, text), folder, report=quiet, device=device, workers=2)
    assert abs(losses["cuda"] - losses["cpu"]) < 0.02 * losses["cpu"]


def test_tuning_on_the_gpu_follows_the_cpu():
    from tests.core.test_tune_a_video import CLIP, LEVELS, Inflated, start_tuning

    losses = {}
    for device in ("cpu", "cuda"):
        layers = start_tuning()[0].layers.to(device)
        tuning, net = Tuning(layers, 3e-3, 3), Inflated(layers).to(device)
        losses[device] = [float(tuning.advance(net, "v", CLIP.to(device), 0.1, LEVELS)) for _ in range(10)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)


@pytest.mark.parametrize("half", [False, True])
def test_a_step_of_tuning_does_not_wait_for_the_gpu(half):
    """With HARIVO's losses in it."""
    from tests.core.test_tune_a_video import CLIP, LEVELS, start_tuning

    tuning, net = start_tuning(device="cuda", half=half)
    losses, own = ClipLosses(8, 0.5, 0.0, queue=4).cuda(), torch.full((1,), 1, device="cuda")
    draw, clip = torch.Generator().manual_seed(0), CLIP.cuda()

    def denoise(z, i):
        watched.features = z.mean((-2, -1))
        return net(z)

    watched = SimpleNamespace(features=None)
    for mode in ("default", "error"):  # the first step makes what later ones use
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss = tuning.advance(denoise, "v", clip, 0.1, LEVELS, lambda: losses(watched, 4, draw, clips=own))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    read_loss(loss, tuning.step)
