"""Dynamic thresholding against its definition."""

import pytest
import torch

from vidcore.guide.threshold import dynamic_threshold


def test_each_sample_is_scaled_by_its_own_percentile():
    x = torch.linspace(-1, 1, 1001)[1:].reshape(1, 1, 10, 10, 10)
    both = torch.cat([0.5 * x, 4.0 * x])
    made = dynamic_threshold(both, 0.9)
    assert torch.equal(made[0], both[0])  # inside the range: untouched
    s = both[1].abs().flatten().sort().values[899]  # of 1000 values, 900 are at most s
    torch.testing.assert_close(made[1], both[1].clamp(-s, s) / s)
    assert made[1].abs().max() == 1 and (made[1].abs() == 1).float().mean() == pytest.approx(0.1, abs=0.01)


def test_what_lies_just_outside_is_clipped_like_a_static_threshold():
    """s below the limit counts as the limit: a few values out of range change nothing else."""
    x = torch.zeros(1, 1000)
    x[0, :2] = torch.tensor([3.0, -2.0])
    made = dynamic_threshold(x, 0.995)
    assert made[0, :2].tolist() == [1.0, -1.0] and not made[0, 2:].any()


def test_limit_is_the_unit_and_all_is_kept_at_percentile_one():
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(dynamic_threshold(4 * x, 0.9, 4.0), 4 * dynamic_threshold(x, 0.9))
    torch.testing.assert_close(dynamic_threshold(x, 1.0), x / x.abs().flatten(1).amax(1)[:, None, None, None])
    half = dynamic_threshold(x.bfloat16(), 0.9)
    assert half.dtype == torch.bfloat16 and (half.float() - dynamic_threshold(x, 0.9)).abs().max() < 0.03


@pytest.mark.parametrize("wrong", [dict(percentile=0.0), dict(percentile=1.1), dict(limit=0.0), dict(limit=float("nan"))])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"percentile must lie in \(0, 1\] and limit above 0"):
        dynamic_threshold(torch.zeros(1, 2), **wrong)
