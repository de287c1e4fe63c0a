"""LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2), with which Snap Video trains (arXiv 2402.14797)."""

import torch
from torch import Tensor


class LAMB(torch.optim.Optimizer):
    """Adam's direction, with decoupled weight decay, scaled to the length of each tensor of weights.

    With m and v Adam's moments after correction for their zero start::

        r = m / (sqrt(v) + eps) + weight_decay w
        w <- w - lr (||w|| / ||r||) r

    The ratio is 1 where either norm is 0, and for tensors of one axis (biases, gains of norms), which get no weight decay
    either. It has no upper bound. Implementations differ in both.

    Args:
        params: parameters or groups of them.
        lr: learning rate; 5e-3 in Snap Video.
        betas: of the moments.
        eps: added to sqrt(v).
        weight_decay: 0.01 in Snap Video.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, params, lr: float = 5e-3, betas=(0.9, 0.99), eps: float = 1e-6, weight_decay: float = 0.01):
        if lr < 0 or eps <= 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"LAMB got lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}: out of range")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        """One step; ``closure``, if given, computes the loss anew and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict) -> None:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        count = int(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        m, v = state["exp_avg"] / (1 - beta1**count), state["exp_avg_sq"] / (1 - beta2**count)
        direction = m / (v.sqrt() + group["eps"])
        ratio = 1.0
        if weight.ndim > 1:
            direction = direction + group["weight_decay"] * weight
            own, its = weight.norm(), direction.norm()
            ratio = torch.where((own > 0) & (its > 0), own / its, torch.ones_like(own))
        weight.sub_(group["lr"] * ratio * direction)
