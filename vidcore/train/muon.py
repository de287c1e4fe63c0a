"""Muon (Jordan et al. 2024) for the matrices of a network's blocks, AdamW for all else."""

import torch

# Steps of matrices beside the others' at one learning rate; tried on small FITs alone.
MATRIX_RATE = 2.0


class Muon(torch.optim.Optimizer):
    """Matrices of blocks take steps whose singular values are all alike, by `torch.optim.Muon`; the rest those of AdamW.

    Adam's steps of a matrix have few large singular values, so that what a batch says rarely is learned late. Both share one
    state, so that it is saved and resumed like any other.

    Args:
        params: all parameters.
        matrices: those of them that are matrices inside a network: neither embeddings nor what reads input or makes output.
        lr, betas, weight_decay: AdamW's; matrices take `MATRIX_RATE` times the rate, scaled so that their steps are then
            twice as long as AdamW's.

    Raises:
        ValueError: if one of ``matrices`` has not two axes, or PyTorch is older than 2.9.
    """

    def __init__(self, params, matrices, lr: float = 1e-3, betas=(0.9, 0.99), weight_decay: float = 0.0):
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"muon needs PyTorch 2.9 or newer, this is {torch.__version__}; please take another optimiser")
        params, matrices = list(params), list(matrices)
        super().__init__(params, dict(lr=lr, fused=True))
        inside = {id(weight) for weight in matrices}
        rest = [weight for weight in params if id(weight) not in inside]
        self._parts = [
            (torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"), MATRIX_RATE),
            (torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay, fused=True), 1.0),
        ]

    def step(self, closure=None):
        """One step; ``closure``, if given, computes the loss anew and returns it."""
        for part, rate in self._parts:
            part.state = self.state  # anew, since loading replaces it
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"] * rate
        (matrices, _), (rest, _) = self._parts
        loss = matrices.step(closure)
        rest.step()
        return loss
