"""LAMB against its algorithm written out with numpy, and against timm's where that is installed."""

import copy

import numpy as np
import pytest
import torch

from vidcore.train.lamb import LAMB


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3)).double()


def gradients(net, steps=6):
    g = torch.Generator().manual_seed(1)
    shapes = [p.shape for p in net.parameters()]
    return [[torch.randn(s, generator=g, dtype=torch.float64) * 0.3 for s in shapes] for _ in range(steps)]


def walk(net, optimiser, steps):
    for step in steps:
        for parameter, gradient in zip(net.parameters(), step):
            parameter.grad = gradient.clone()
        optimiser.step()
    return [p.detach().clone() for p in net.parameters()]


def test_it_is_the_algorithm():
    net, lr, (b1, b2), eps, decay = network(), 0.02, (0.9, 0.99), 1e-6, 0.1
    steps = gradients(net)
    weights = [p.detach().numpy().copy() for p in net.parameters()]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    for t, step in enumerate(steps, 1):
        for i, gradient in enumerate(g.numpy() for g in step):
            m, v = moments[i]
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
            moments[i] = m, v
            r = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
            ratio = 1.0
            if weights[i].ndim > 1:
                r = r + decay * weights[i]
                ratio = np.linalg.norm(weights[i]) / np.linalg.norm(r)
            weights[i] = weights[i] - lr * ratio * r
    made = walk(net, LAMB(net.parameters(), lr, (b1, b2), eps, decay), steps)
    for ours, expected in zip(made, weights):
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-10)


def test_it_agrees_with_timm():
    timm = pytest.importorskip("timm.optim", reason="timm is not installed")
    net = network()
    steps, other = gradients(net), copy.deepcopy(net)
    groups = [
        {"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in other.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    theirs = timm.Lamb(groups, lr=0.02, betas=(0.9, 0.99), eps=1e-6, max_grad_norm=None)
    for ours, expected in zip(walk(net, LAMB(net.parameters(), 0.02, weight_decay=0.1), steps), walk(other, theirs, steps)):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_steps_have_the_length_of_the_weights_and_zeros_can_leave_zero():
    weight = torch.nn.Parameter(torch.full((4, 4), 3.0))
    zero = torch.nn.Parameter(torch.zeros(4, 4))
    optimiser = LAMB([weight, zero], lr=0.01, weight_decay=0.0)
    for scale in (1e-3, 1e3):  # the gradient's size does not matter
        before = weight.detach().clone()
        weight.grad, zero.grad = torch.full((4, 4), scale), torch.full((4, 4), scale)
        optimiser.state.clear()
        optimiser.step()
        torch.testing.assert_close((weight - before).norm(), 0.01 * before.norm(), rtol=1e-3, atol=0)
    assert (zero != 0).all()


def test_it_saves_and_resumes_to_the_same_bits():
    whole, half = network(), network()
    steps = gradients(whole)
    expected = walk(whole, LAMB(whole.parameters()), steps)
    first = LAMB(half.parameters())
    walk(half, first, steps[:3])
    second = LAMB(half.parameters())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(walk(half, second, steps[3:]), expected))


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="out of range"):
        LAMB(network().parameters(), lr=-1.0)
