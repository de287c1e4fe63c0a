"""What Snap Video's input scale does to the signal: ``python benchmarks/sigma_in.py FILE.svg`` draws it.

A network that sees a clip may average pixels that are alike, over frames and over squares of them, and so see through noise.
For clips of T frames that are s times as large as EDM's 64 pixels this measures, with `vidcore.edm.EDM.add_noise` on clips
that are alike in that way, the signal-to-noise ratio of the average at every noise level; without the input scale and with
it (``sigma_in = s sqrt(T)``, arXiv 2402.14797). The line is EDM's own, of one picture of 64 pixels. Needs matplotlib.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib  # noqa: E402

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

from vidcore.edm import EDM, sigma_in  # noqa: E402

# Frames, side in pixels, and how it is drawn.
CLIPS = ((16, 64, "o", "16 frames of 64 pixels"), (16, 512, "s", "16 frames of 512 pixels"))
SAMPLES = 4096  # patches that are averaged, at each level


def measured(edm: EDM, sigma: torch.Tensor, alike: int, generator: torch.Generator) -> float:
    """The average's signal-to-noise ratio where ``alike`` pixels are the same, of data of deviation sigma_data."""
    x = edm.sigma_data * torch.randn(SAMPLES, 1, generator=generator)
    seen = edm.add_noise(x, torch.randn(SAMPLES, alike, generator=generator), sigma).mean(dim=1)
    signal = x[:, 0] / edm.sigma_in
    return float(signal.var() / (seen - signal).var())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    generator, levels = torch.Generator().manual_seed(0), torch.logspace(-2, 1.9, 14)
    plt.rcParams.update({"svg.hashsalt": "sigma_in", "svg.fonttype": "none", "font.size": 10})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axes, title in ((left, "without an input scale (EDM)"), (right, "with sigma_in = s sqrt(T) (Snap Video)")):
        axes.loglog(levels, 1 / levels**2, color="black", label="one picture of 64 pixels")
        for frames, side, mark, name in CLIPS:
            k = sigma_in(frames, side)
            edm = EDM(sigma_in=k if axes is right else 1.0)
            found = [measured(edm, sigma, round(k**2), generator) for sigma in levels]
            axes.loglog(levels, found, mark, markersize=5, fillstyle="none", label=name)
        axes.set_title(title)
        axes.set_xlabel("noise level sigma")
        axes.grid(alpha=0.3)
    left.set_ylabel("signal-to-noise ratio of the average")
    left.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
