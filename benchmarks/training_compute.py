"""How much arithmetic recipes take: operations of matrices in the forward and backward passes of all their steps.

No speed. Of each kind of batch that a recipe has a few are computed and counted; the optimiser is left out. With several
recipes, such as the parts of one training, the last line is their sum.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vidcore.text import Vocabulary  # noqa: E402
from vidcore.train.config import read_config  # noqa: E402
from vidcore.train.data import shapes_batch  # noqa: E402
from vidcore.train.systems import SYSTEMS, with_words  # noqa: E402


def operations(path: Path, root: Path, draws: int) -> dict:
    """Clips, pictures and 1e12 operations of a recipe that trains on shapes, from ``draws`` batches of each kind."""
    config = with_words(replace(read_config(path), start_from=""), root)
    system, vocabulary = SYSTEMS[config.system], Vocabulary(config.words, config.text_length)
    module, found = system.build(config, root), Counter()
    for kind, steps in Counter(config.at(step)[0] for step in range(config.steps)).items():
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # whose parts all are counted
            for draw in range(draws):
                batch = shapes_batch(kind, vocabulary, config.seed, draw)
                system.loss(module, batch, config, kind, torch.Generator().manual_seed(draw)).backward()
        found["1e12_operations"] += counter.get_total_flops() / 1e12 / draws * steps
        found["clips"] += steps * kind.batch * (kind.frames > 1)
        found["pictures"] += steps * kind.batch * (kind.images + (kind.frames == 1))
    return {key: round(value) for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that the recipes' paths are relative to")
    parser.add_argument("--draws", type=int, default=2)
    given = parser.parse_args()
    parts = []
    for path in given.recipes:
        torch.manual_seed(0)
        parts.append(operations(path, given.root, given.draws))
        print(json.dumps({"recipe": path.name, **parts[-1]}), flush=True)
    if len(parts) > 1:
        print(json.dumps({"recipe": "all", **{key: sum(part[key] for part in parts) for key in parts[0]}}))


if __name__ == "__main__":
    main()
