"""The images of the GPU benchmark, made where there is no GPU: small enough to be carried.

usage: python -m tests.benchmarks.gpu.data barcelona=RAW munich=RAW out=DIR [cells=1220] [loaded=272] [size=224]
  out=DIR     cells/: `cells` images of Barcelona's and all of Munich's types, both stored at size=224;
              original/ and stored-256/: `loaded` of Barcelona's images as they are, and stored at 256 px
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources.declaration import SourceDeclaration
from launchers.console import launch
from tests.benchmarks.loader import choose_images
from trainer.runs.configuration import typed

CELLS = "cells"
# Data set that loaders read -> the side in pixels that its images are stored at; None: as they are, 360 px.
LOADED = {"original": None, "stored-256": 256}
# Evenly from its types: the other stain, and rare types.
_MUNICH_IMAGES = 150


@dataclass(frozen=True)
class Options:
    """See the usage above."""

    barcelona: str = ""
    munich: str = ""
    out: str = ""
    cells: int = 1220
    loaded: int = 272
    size: int = 224


def main(arguments: Sequence[str]) -> None:
    options = typed(Options, dict(argument.split("=", 1) for argument in arguments), "arguments")
    if not options.barcelona or not options.munich or not options.out:
        raise UserError("give barcelona=RAW munich=RAW out=DIR")
    out = Path(options.out)
    with tempfile.TemporaryDirectory() as temporary:
        chosen = Path(temporary)
        cells = [
            SourceDeclaration(
                "barcelona",
                "barcelona",
                choose_images(Path(options.barcelona), options.cells, chosen / "b"),
                "barcelona",
            ),
            SourceDeclaration(
                "munich", "munich", choose_images(Path(options.munich), _MUNICH_IMAGES, chosen / "m"), "munich"
            ),
        ]
        build_dataset(out / CELLS, cells, settings=ShardSettings(stored_size=options.size), workers=2)
        raw = choose_images(Path(options.barcelona), options.loaded, chosen / "loaded")
        for name, stored_size in LOADED.items():
            source = SourceDeclaration("barcelona", "barcelona", raw, "barcelona")
            build_dataset(out / name, [source], settings=ShardSettings(stored_size=stored_size), workers=2)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB in {out.resolve()}")


if __name__ == "__main__":
    launch(main, __doc__)
