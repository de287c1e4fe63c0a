"""What the measuring commands share: protocols on the command line, and the JSON record they print."""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path


def add_protocol(parser: argparse.ArgumentParser, defaults) -> None:
    """One option for each entry of a dataclass instance that has a default there."""
    for field in dataclasses.fields(defaults):
        value = getattr(defaults, field.name)
        if field.default is not dataclasses.MISSING:
            kind = (lambda text: text.lower() in ("1", "true", "yes")) if isinstance(value, bool) else type(value)
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=value)


def print_record(model: Path, protocol, **scores) -> None:
    """The model's name and hash, the whole protocol, and the scores, as one line of JSON."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    print(json.dumps({"model": model.name, "sha256": digest, **dataclasses.asdict(protocol), **scores}))
