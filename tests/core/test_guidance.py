"""Reconstruction guidance and replacement against Gaussian clips, whose conditional means are known exactly."""

import pytest
import torch

from vidcore.guide.extend import extension, interpolation, stream
from vidcore.guide.measure import (
    Decoded,
    FrameDifferences,
    Known,
    LowResolution,
    Packed,
    TemporalAverage,
    downsample,
    known_frames,
)  # fmt: skip
from vidcore.guide.reconstruction import GuidanceDiverged, reconstruct, with_reconstruction
from vidcore.guide.replace import with_marginal_replacement, with_posterior_replacement
from vidcore.sample import ancestral_step, ddim_step, sample_clip
from vidcore.schedule import CosineSchedule, alpha_sigma

SCHEDULE = CosineSchedule()
FRAMES, GIVEN = 6, [0, 1]
ASKED = [i for i in range(FRAMES) if i not in GIVEN]
# A clip of one pixel whose frames are alike the nearer they are; N clips side by side.
COVARIANCE = torch.tensor([[0.9 ** abs(i - j) for j in range(FRAMES)] for i in range(FRAMES)], dtype=torch.float64)
EYE = torch.eye(FRAMES, dtype=torch.float64)


def levels(t):
    return tuple(float(s) for s in alpha_sigma(SCHEDULE.log_snr(torch.tensor(t, dtype=torch.float64))))


def ideal(z, t):
    """x-hat(z_t) of the Gaussian clips, B 1 T 1 1."""
    alpha, sigma = levels(float(t.flatten()[0]) if isinstance(t, torch.Tensor) else t)
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE)
    return torch.einsum("ij,bcjhw->bcihw", gain.to(z.dtype), z)


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.linalg.cholesky(COVARIANCE)
    return (torch.randn(count, FRAMES, dtype=torch.float64, generator=generator) @ factor.T)[:, None, :, None, None]


def conditional(x):
    """E[x^b | x^a] and its covariance."""
    reach = COVARIANCE[ASKED][:, GIVEN] @ torch.linalg.inv(COVARIANCE[GIVEN][:, GIVEN])
    return x[:, 0, GIVEN, 0, 0] @ reach.T, COVARIANCE[ASKED][:, ASKED] - reach @ COVARIANCE[GIVEN][:, ASKED]


def exact(x, z, t):
    """E[x^b | z_t, x^a]."""
    alpha, sigma = levels(t)
    mean, rest = conditional(x)
    gain = alpha * rest @ torch.linalg.inv(alpha**2 * rest + sigma**2 * torch.eye(len(ASKED), dtype=torch.float64))
    return mean + (z[:, 0, ASKED, 0, 0] - alpha * mean) @ gain.T


def error(t, weight):
    """Root mean square distance of x~^b from the exact conditional mean."""
    x = draw(2000)
    alpha, sigma = levels(t)
    z = alpha * x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    known = known_frames(x[:, :, GIVEN], GIVEN, FRAMES)
    guided = reconstruct(lambda z: ideal(z, t), z, alpha, [known], weight)
    assert torch.equal(guided[:, :, GIVEN], x[:, :, GIVEN])
    return float((guided[:, 0, ASKED, 0, 0] - exact(x, z, t)).square().mean().sqrt())


def test_guidance_approaches_the_conditional_mean_as_noise_fades():
    errors = [error(t, 1.0) for t in (0.3, 0.2, 0.1, 0.05)]
    assert all(a > 2 * b for a, b in zip(errors, errors[1:])), errors
    # It is of a higher order in sigma than replacement, which stays behind by more and more.
    ratios = [error(t, 0.0) / error(t, 1.0) for t in (0.3, 0.2, 0.1, 0.05)]
    assert ratios[0] > 1.8 and all(b > a for a, b in zip(ratios, ratios[1:])), ratios


@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_guidance_beats_replacement_at_every_noise_level(t, weight):
    assert error(t, weight) < error(t, 0.0)


def test_the_gradient_is_the_paper_s():
    """Against eq. 7 by hand: x-hat = G z, so grad = -2 G_a^T (x_a - G_a z)."""
    t, weight = 0.4, 3.0
    alpha, sigma = levels(t)
    x = draw(3)
    z = alpha * x + sigma * draw(3, seed=5)
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE)
    flat = z[:, 0, :, 0, 0]
    gradient = -2 * (x[:, 0, GIVEN, 0, 0] - flat @ gain[GIVEN].T) @ gain[GIVEN]
    expected = (flat @ gain.T - weight * alpha / 2 * gradient)[:, ASKED]
    guided = reconstruct(lambda z: ideal(z, t), z, alpha, [known_frames(x[:, :, GIVEN], GIVEN, FRAMES)], weight)
    torch.testing.assert_close(guided[:, 0, ASKED, 0, 0], expected)


def test_a_rescaled_state_gives_the_same_estimate():
    """Hosts hold z / alpha; the gradient with respect to that, with a signal scale of 1, is the same x~."""
    t, alpha = 0.4, levels(0.4)[0]
    x, z = draw(3), draw(3, seed=5)
    known = [known_frames(x[:, :, GIVEN], GIVEN, FRAMES)]
    plain = reconstruct(lambda z: ideal(z, t), z, alpha, known, 2.0)
    torch.testing.assert_close(reconstruct(lambda s: ideal(s * alpha, t), z / alpha, 1.0, known, 2.0), plain)


def test_weight_zero_is_no_guidance_bit_for_bit():
    z = draw(3)
    low = LowResolution(torch.zeros(3, 1, FRAMES, 1, 1))
    assert torch.equal(reconstruct(lambda z: ideal(z, 0.4), z, 0.8, [low], 0.0), ideal(z, 0.4))
    known = known_frames(z[:, :, GIVEN] + 1, GIVEN, FRAMES)
    denoise = with_reconstruction(ideal, SCHEDULE, [known], 0.0)
    t = torch.full((3,), 0.4)
    assert torch.equal(denoise(z, t), with_posterior_replacement(ideal, known)(z, t))


def sampled(method, step, steps=64, weight=3.0):
    """Root mean square distance of the mean of sampled x^b, over many noises, from E[x^b | x^a]."""
    x = draw(1).expand(3000, -1, -1, -1, -1).float()
    known = known_frames(x[:, :, GIVEN], GIVEN, FRAMES)
    noise = torch.Generator().manual_seed(7)
    denoiser = {
        "guidance": lambda: with_reconstruction(ideal, SCHEDULE, [known], weight),
        "posterior": lambda: with_posterior_replacement(ideal, known),
        "marginal": lambda: with_marginal_replacement(ideal, SCHEDULE, known, lambda: torch.randn(x.shape, generator=noise)),
    }[method]()
    made = sample_clip(denoiser, SCHEDULE, x.shape, steps, step, seed=3)
    torch.testing.assert_close(made[:, :, GIVEN], x[:, :, GIVEN], atol=1e-4, rtol=1e-4)
    mean, _ = conditional(x[:1].double())
    return float((made[:, 0, ASKED, 0, 0].double().mean(0) - mean[0]).square().mean().sqrt())


@pytest.mark.parametrize("step", [ddim_step, ancestral_step])
def test_sampled_frames_fit_the_given_ones_better_than_by_replacement(step):
    ours = sampled("guidance", step)
    assert ours < 0.5 * sampled("posterior", step), ours
    assert ours < 0.5 * sampled("marginal", step), ours


def test_measurements_against_their_definitions():
    x = torch.randn(2, 3, 4, 8, 8)
    assert LowResolution(downsample(x, (4, 4))).residual(x).abs().max() == 0
    blocks = x.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3))
    for mode in ("area", "bilinear"):  # equal for a factor of 2
        torch.testing.assert_close(downsample(x, (4, 4), mode), blocks)
    torch.testing.assert_close(LowResolution(blocks[:, :, [3, 1]] + 1, frames=(3, 1)).residual(x), torch.ones(2, 3, 2, 4, 4))
    pairs = (x[:, :, ::2] + x[:, :, 1::2]) / 2
    torch.testing.assert_close(TemporalAverage(pairs).residual(x), torch.zeros_like(pairs), atol=1e-6, rtol=0)
    mask = (torch.rand(1, 1, 4, 8, 8) > 0.5).float()
    painted = Known(x, mask).put(torch.zeros_like(x))
    assert torch.equal(painted, x * mask)
    assert Known(x, mask).residual(painted).abs().max() == 0
    assert Decoded(lambda z: 2 * z, LowResolution(2 * blocks)).residual(x).abs().max() < 1e-6


def test_several_measurements_act_together():
    """Low resolution and known frames at once: both are met at the end of a walk on white noise data."""
    x = torch.randn(1, 3, 4, 8, 8)
    white = lambda z, t: z * alpha_sigma(SCHEDULE.log_snr(t.double()))[0].float()[:, None, None, None, None]  # noqa: E731
    known = known_frames(x[:, :, [2]], [2], 4)
    guided = with_reconstruction(white, SCHEDULE, [known, LowResolution(downsample(x, (4, 4)))], 4.0)
    made = sample_clip(guided, SCHEDULE, x.shape, 50, ddim_step, seed=0)
    assert torch.equal(made[:, :, 2], x[:, :, 2])
    assert (downsample(made, (4, 4)) - downsample(x, (4, 4))).abs().max() < 0.05
    plain = sample_clip(white, SCHEDULE, x.shape, 50, ddim_step, seed=0)
    assert (downsample(plain, (4, 4)) - downsample(x, (4, 4))).abs().max() > 0.5


def test_a_packed_video_is_guided_and_what_is_packed_with_it_follows():
    weight, t, reach = 2.0, 0.5, 0.3
    x = draw(4)
    alpha, sigma = levels(t)
    z = alpha * x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    sound = torch.randn(4, 1, 5, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    known = known_frames(x[:, :, GIVEN], GIVEN, FRAMES)

    def video_of(state):
        return state[:, 0, :FRAMES].reshape(z.shape)

    def denoise(state):  # the video hears the first value of the sound
        video = ideal(video_of(state), t) + reach * state[:, :, FRAMES : FRAMES + 1, None, None]
        return torch.cat([video.flatten(1)[:, None], 0.9 * state[..., FRAMES:]], dim=2)

    state = torch.cat([z.flatten(1)[:, None], sound], dim=2)
    made = reconstruct(denoise, state, alpha, [Packed(known, z.shape)], weight)
    alone = reconstruct(lambda z: ideal(z, t) + reach * sound[:, :, :1, None, None], z, alpha, [known], weight)
    torch.testing.assert_close(video_of(made), alone)
    residual = known.residual(video_of(denoise(state))).sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(made[:, 0, FRAMES], 0.9 * sound[:, 0, 0] + weight * alpha * reach * residual)
    assert torch.equal(made[..., FRAMES + 1 :], 0.9 * sound[..., 1:])
    steadied = reconstruct(denoise, state, alpha, [Packed(FrameDifferences(), z.shape)], 0.1)
    assert not torch.equal(video_of(steadied)[:, :, GIVEN], x[:, :, GIVEN])  # nothing of it is known


def test_wrong_frames_are_refused():
    frames = torch.zeros(1, 3, 2, 4, 4)
    for index, words in (([0, 6], "outside a clip of 6"), ([0, -6], "twice"), ([0], "1 frame numbers")):
        with pytest.raises(ValueError, match=words):
            known_frames(frames, index, 6)
    with pytest.raises(ValueError, match="NaN"):
        known_frames(frames * float("nan"), [0, 1], 6)
    with pytest.raises(ValueError, match="equal groups"):
        TemporalAverage(torch.zeros(1, 3, 4, 4, 4)).residual(torch.zeros(1, 3, 6, 4, 4))


def test_a_weight_that_runs_away_is_said():
    z = draw(2)
    with pytest.raises(GuidanceDiverged, match="lower its weight"):
        reconstruct(lambda z: ideal(z, 0.4), z, 0.8, [known_frames(z[:, :, GIVEN] + 1, GIVEN, FRAMES)], 1e6)


def test_a_model_that_keeps_no_way_back_is_refused():
    z = draw(2)
    with pytest.raises(ValueError, match="estimate has no gradient"):
        reconstruct(torch.no_grad()(lambda z: ideal(z, 0.4)), z, 0.8, [known_frames(z[:, :, GIVEN], GIVEN, FRAMES)], 1.0)


@pytest.mark.parametrize(("length", "window", "overlap"), [(6, 6, 2), (20, 6, 2), (21, 6, 1), (23, 6, 5), (12, 6, 0)])
def test_windows_stream_a_clip_of_any_length(length, window, overlap):
    """Every window gets the frames that it shares with the last one, so a counter that adds to them counts on."""
    alive = []

    def make(measurements, start):
        alive.append(start)
        block = torch.arange(start, start + window, dtype=torch.float32)[None, None, :, None, None]
        for known in measurements:
            assert torch.equal(known.put(block), block)  # what is shared is what was made
            assert known.mask.sum() >= overlap
        assert bool(measurements) == (start > 0 and overlap > 0)
        return block

    made = torch.cat(list(stream(make, length, window, overlap)), dim=2)
    assert torch.equal(made.flatten(), torch.arange(length, dtype=torch.float32))
    assert alive[-1] == length - window


def test_what_windows_share_may_be_told_in_another_way():
    """As for models whose latents hold several frames each, where shared frames are encoded anew."""
    told = []

    def remember(frames, window):
        told.append((frames.flatten().tolist(), window))
        return known_frames(frames[:, :, :1], [0], 2)

    def make(measurements, start):
        assert [m.target.shape[2] for m in measurements] == ([2] if start else [])
        return torch.arange(start, start + 5, dtype=torch.float32)[None, None, :, None, None]

    made = torch.cat(list(stream(make, 11, 5, 2, remember=remember)), dim=2)
    assert torch.equal(made.flatten(), torch.arange(11, dtype=torch.float32))
    assert told == [([3, 4], 5), ([6, 7], 5)]


def test_evidence_puts_given_frames_where_they_belong():
    given = torch.arange(1.0, 6.0)[None, None, :, None, None]
    (known,) = extension(given)(3, 9)
    assert known.mask.flatten().tolist() == [1, 1, 0, 0, 0, 0] and known.target.flatten().tolist()[:2] == [4, 5]
    assert not extension(given)(5, 9)
    for start in range(10):
        (known,) = interpolation(given, 3)(start, start + 4)
        for place in range(4):
            at, inside = divmod(start + place, 3)
            assert known.mask.flatten()[place] == (inside == 0 and at < 5)
            if inside == 0 and at < 5:
                assert known.target.flatten()[place] == at + 1


def test_wrong_windows_are_refused():
    for numbers, words in (((4, 6, 1), "at least the window"), ((9, 6, 6), "overlap"), ((9, 6, -1), "overlap")):
        with pytest.raises(ValueError, match=words):
            next(stream(lambda *_: None, *numbers))


def test_mitigating_gradient_by_hand():
    """x-hat = G z and E = ||D x-hat||^2, so x~ = G z - w alpha G^T D^T D G z."""
    t, weight = 0.4, 0.7
    alpha, sigma = levels(t)
    z = draw(3) + sigma * draw(3, seed=2)
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE)
    difference = EYE[1:] - EYE[:-1]
    made = reconstruct(lambda z: ideal(z, t), z, alpha, [FrameDifferences()], weight)[:, 0, :, 0, 0]
    x0 = z[:, 0, :, 0, 0] @ gain.T
    torch.testing.assert_close(made, x0 - weight * alpha * x0 @ difference.T @ difference @ gain)


def test_mitigating_gradient_steadies_clips_the_more_the_stronger():
    shape = (500, 1, FRAMES, 1, 1)

    def roughness(weight):
        denoiser = lambda z, t: ideal(z, t)  # noqa: E731
        steady = with_reconstruction(denoiser, SCHEDULE, [FrameDifferences()], weight)
        clip = sample_clip(steady, SCHEDULE, shape, 30, ddim_step, 0)
        return clip, float(clip.diff(dim=2).square().mean())

    found = [roughness(weight) for weight in (0.0, 0.1, 0.3, 0.5)]
    assert all(a > 1.1 * b for (_, a), (_, b) in zip(found, found[1:]))
    assert torch.equal(found[0][0], sample_clip(lambda z, t: ideal(z, t), SCHEDULE, shape, 30, ddim_step, 0))
