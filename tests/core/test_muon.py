"""Muon beside AdamW: which weights take whose steps, and that both resume."""

import copy

import pytest
import torch

from vidcore.train.muon import MATRIX_RATE, Muon

if not hasattr(torch.optim, "Muon"):
    pytest.skip("this PyTorch has no Muon", allow_module_level=True)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 12), torch.nn.Linear(12, 3))


def made(net, **how):
    return Muon(net.parameters(), [net[2].weight], **how)


def walk(net, optimiser, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()
    return [p.detach().clone() for p in net.parameters()]


def test_matrices_take_steps_of_like_singular_values_and_the_rest_those_of_adamw():
    net, other = network(), network()
    before = net[2].weight.detach().clone()
    walk(net, made(net, lr=0.01), 0, 1)
    walk(other, torch.optim.AdamW(other.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.0), 0, 1)
    values = torch.linalg.svdvals(net[2].weight.detach() - before)
    assert values.min() > 0.4 * values.max()
    own = torch.linalg.svdvals(other[2].weight.detach() - before)
    assert own.min() < 0.3 * own.max()  # Adam's first step is the gradient's sign
    for (name, ours), theirs in zip(net.named_parameters(), other.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-7) == (name != "2.weight")


def test_a_matrix_moves_as_far_as_torchs_muon_says():
    net, other = network(), network()
    walk(net, made(net, lr=0.01), 0, 3)
    alone = torch.optim.Muon([other[2].weight], lr=0.01 * MATRIX_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    walk(other, alone, 0, 3)
    assert torch.equal(net[2].weight, other[2].weight)


def test_the_learning_rate_of_a_group_reaches_both():
    net = network()
    optimiser = made(net, lr=1.0)
    before = [p.detach().clone() for p in net.parameters()]
    optimiser.param_groups[0]["lr"] = 0.0
    assert all(torch.equal(a, b) for a, b in zip(walk(net, optimiser, 0, 2), before))


def test_a_closure_is_called_once_and_both_kinds_of_weights_take_its_gradients():
    net, calls = network(), []

    def closure():
        calls.append(None)
        loss = net(torch.ones(2, 6)).square().sum()
        loss.backward()
        return loss

    before = [net[i].weight.detach().clone() for i in (2, 3)]
    assert made(net, lr=0.01).step(closure) > 0 and len(calls) == 1
    assert not any(torch.equal(old, net[i].weight) for old, i in zip(before, (2, 3)))


def test_it_saves_and_resumes_to_the_same_bits():
    whole, half = network(), network()
    expected = walk(whole, made(whole), 0, 6)
    first, second = made(half), made(half)
    walk(half, first, 0, 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(walk(half, second, 3, 6), expected))


def test_what_is_not_a_matrix_is_refused():
    net = network()
    with pytest.raises(ValueError):
        Muon(net.parameters(), [net[1].weight])
