"""``python -m vidcore.train CONFIG``: run a training recipe; run it again to resume. Under ``torchrun -m`` on many GPUs."""

import argparse
import os
from pathlib import Path

import torch

from .. import weights
from .config import ConfigError, read_config
from .loop import train
from .processes import joined


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vidcore.train", description=__doc__)
    parser.add_argument("config", type=Path, help="a recipe, such as models/shapes-vdm.toml")
    parser.add_argument("--root", type=Path, default=Path("."), help="folder that the recipe's paths are relative to")
    parser.add_argument("--stop-after", type=int, help="stop and save once this many steps are done in total")
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if gpu else "cpu", help="default: the GPU where there is one")
    ahead = min(8, max(1, (os.cpu_count() or 1) - 1)) if gpu else 0
    parser.add_argument("--workers", type=int, default=ahead, help=f"processes that draw batches ahead (default {ahead})")
    arguments = parser.parse_args()
    try:
        config = read_config(arguments.config)
        with joined(arguments.device) as device:
            train(config, arguments.root, arguments.stop_after, device=device, workers=arguments.workers)
    except (ConfigError, weights.WeightsError, FloatingPointError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; run the same command again to go on from the last save") from None


if __name__ == "__main__":
    main()
