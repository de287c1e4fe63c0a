"""``python -m vidcore.train CONFIG``: run a training recipe; run it again to resume."""

import argparse
from pathlib import Path

from .. import weights
from .config import ConfigError, read_config
from .loop import train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vidcore.train", description=__doc__)
    parser.add_argument("config", type=Path, help="a recipe, such as models/shapes-vdm.toml")
    parser.add_argument("--root", type=Path, default=Path("."), help="folder that the recipe's paths are relative to")
    parser.add_argument("--stop-after", type=int, help="stop and save once this many steps are done in total")
    arguments = parser.parse_args()
    try:
        train(read_config(arguments.config), arguments.root, arguments.stop_after)
    except (ConfigError, weights.WeightsError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; run the same command again to go on from the last save") from None


if __name__ == "__main__":
    main()
