"""Make a data set of shards from raw images, add to it, take away from it, or check it.

usage:
  python launchers/build_shards.py shards=DIR [source ...] [option=value ...]
      shards=DIR           the data set: a folder, or a URL in a store, s3://bucket/prefix (credentials and endpoint
                           are those of ~/.aws and the environment: AWS_ENDPOINT_URL, AWS_PROFILE, ...)
    sources (remembered by the data set; run again with one more to add it)
      {layouts}
    options
      labels=MAPPING       a CSV label,cell_type for other label names (sources with name=)
      group=auto|folder|none   of {group_by_folder}: whether sub-folders (TYPE/PATIENT/image) name patients or
                           slides, whose images then stay on one side of the split. auto, for a new source: yes, unless
                           the name is that of something else (train, images, a cell type, ...), and it says so;
                           folder: the first sub-folder, whatever its name; none: each image by itself. Remembered
      annotations=voc|coco|csv   of {annotated}: how boxes are written; default voc
                           voc: an XML file for each image, of its name; coco: a JSON file; csv: lines of
                           image,label,xmin,ymin,xmax,ymax. An annotation without boxes says that a field has no cells
      side_microns=N       of fields=: cells are cut in squares of this side; default: twice as wide as their boxes
      microns_per_pixel=N  of fields=: their scale; a column of this name in csv annotations is a field's own
      promyelocytes='immature granulocyte'   the type of Barcelona's PMY images (default), or promyelocyte
      exclude=FILE         an expert's CSV: id or path[, source][, reason]
      review=FILE          an expert's decisions, the CSV that the page of review.py saves: labels are corrected, images
                           left out. Remembered, and added to earlier ones. [A.csv,B.csv]: of two experts, whose
                           agreement is printed; images on which they disagree stay as they are. none: forget all
      remove=N             take a source away again
      verify=true          read every byte of every shard and compare with the catalogue
      expect=thesis        compare a build of both public sets as downloaded with the thesis's tables 2 to 6, row by
                           row: images of each folder, images left out, images of each type. Exit code 1: they differ
      ratio=[0.63,0.07,0.3]  shares of groups (patients, slides) for train, validation and test; where few groups fall
                           badly, the build says which ratio would do
      codec=jpeg  quality=95   how images are stored (defaults): jpeg of this quality, 1 to 100; or png
      stored_size=256      side in pixels at which images are stored, as squares; default: as they are
      max_samples=1024     images in a shard, at most (default)
      workers=N            processes that read and write; without it as many as OMP_NUM_THREADS and this process's
                           share of the cores allow, and never more
      cluster=true         read and write on all nodes of the Ray cluster that RAY_ADDRESS names or `ray start` made
                           this machine part of (configs/ray); raw images and data set must be at the same path on
                           all of them, on a shared file system; the data set is the same, byte for byte
  With no source, the remembered ones are looked through again; only shards that change are written. Writes the shards,
  the catalogue, and build_report.json (counts of all that was left out, and warnings) into shards=.

example:
  python launchers/build_shards.py shards=data/blood barcelona=raw/PBC_dataset_normal_DIB \\
      munich=raw/AML-Cytomorphology_LMU
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.catalog import Dataset, from_table
from data_pipeline.cell_types import PromyelocyteReading
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.build_report import aligned, format_report
from data_pipeline.ingest.label_counts import compare_with_thesis
from data_pipeline.parallel import TaskMap
from data_pipeline.shards.build_files import REPORT_FILE
from data_pipeline.shards.store import Root, Store, root_of
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration, layouts
from data_pipeline.sources.declaration import AnnotationFormat, GroupRule, check_scale
from data_pipeline.sources.labels import read_label_mapping
from data_pipeline.threads import usable_workers
from launchers.console import launch, read_config
from trainer.runs.arguments import one_or_more


@dataclass(frozen=True)
class BuildOptions:
    """The arguments of build_shards.py but for the keywords of raw layouts; null for what is not given."""

    shards: str | None = None
    name: str | None = None
    domain: str | None = None
    labels: str | None = None
    promyelocytes: PromyelocyteReading = "immature granulocyte"
    group: GroupRule = "auto"
    annotations: AnnotationFormat | None = None
    side_microns: float | None = None
    microns_per_pixel: float | None = None
    exclude: str | None = None
    review: str | None = None  # a file, or [A,B]: several; none: forget all
    remove: str | None = None
    verify: bool = False
    expect: Literal["thesis"] | None = None
    codec: str | None = None
    quality: int | None = None
    stored_size: int | None = None
    max_samples: int | None = None
    ratio: list[float] | None = None
    workers: int | None = None
    cluster: bool = False

    def __post_init__(self) -> None:
        check_scale(self.side_microns, self.microns_per_pixel)


BuildConfig: type[BuildOptions] = make_dataclass(
    "BuildConfig", [(keyword, str | None, None) for keyword in layouts()], bases=(BuildOptions,), frozen=True
)


def main(arguments: Sequence[str]) -> None:
    config = read_config(BuildConfig, "build_shards", arguments)
    if not config.shards:
        raise UserError("no shards=DIR given: say where the data set is, or is to be")
    root = root_of(config.shards)
    if config.verify:
        note = verify_dataset(root)
        print(f"{root}: every shard, index and image is as it was written")
        if note:
            print(note)
        _compare(config, root)
        return
    sources, settings = _declarations(config), _settings(config, root)
    with _who_works(config, root) as map_tasks:
        report = build_dataset(
            root,
            sources,
            remove=[config.remove] if config.remove else [],
            exclude=Path(config.exclude) if config.exclude else None,
            review=_review(config.review),
            settings=settings,
            ratio=config.ratio,
            workers=usable_workers(config.workers),
            map_tasks=map_tasks,
        )
    print(format_report(report))
    print(f"{root if isinstance(root, Store) else root.resolve()}/{REPORT_FILE}")
    _compare(config, root)


def _compare(config: BuildOptions, root: Root) -> None:
    """Print the comparison that expect= asks for; exit code 1 where a row differs."""
    if config.expect is None:
        return
    rows, differ = compare_with_thesis(from_table(Dataset.read_catalog(root).table))
    last = ["", "", "", "rows that differ", str(differ)]
    print(aligned([["table", "label or type", "thesis", "here", "difference"], *rows, last]))
    if differ:
        sys.exit(1)


@contextmanager
def _who_works(config: BuildOptions, root: Root) -> Iterator[TaskMap | None]:
    """Runs the build's tasks on a Ray cluster; None where this machine's processes do."""
    if not config.cluster:
        yield None
        return
    if config.workers is not None:
        raise UserError(
            "workers= is for this machine alone, cluster=true takes all cores of the cluster: leave one out"
        )
    # Here, for importing Ray takes a while.
    from trainer.experiments.ray_cluster import joined_cluster
    from trainer.experiments.ray_map import RayMap

    with joined_cluster():
        yield RayMap(root if isinstance(root, Store) else Path(os.path.abspath(root)))


def _declarations(config: BuildOptions) -> list[SourceDeclaration]:
    mapping = read_label_mapping(Path(config.labels)) if config.labels else {}
    asked = [(layout, str(root)) for keyword, layout in layouts().items() if (root := getattr(config, keyword))]
    sources = [
        SourceDeclaration(layout.keyword, layout.keyword, Path(root), layout.keyword, {}, config.promyelocytes)
        for layout, root in asked
        if layout.public
    ]
    own = [(layout, root) for layout, root in asked if not layout.public]
    if len(own) > 1:
        both = " and ".join(f"{layout.keyword}=" for layout, _ in own[:2])
        raise UserError(f"{both} in one command share one name=: give each in a command of its own")
    if not own and (config.name or config.domain or config.labels or config.group != "auto"):
        usages = " or ".join(layout.usage for layout in layouts().values() if not layout.public)
        raise UserError(f"name=, domain=, labels= and group= go with {usages}")
    if config.annotations and not any(layout.annotated for layout, _ in own):
        usages = " or ".join(layout.usage for layout in layouts().values() if layout.annotated)
        raise UserError(f"annotations= goes with {usages}")
    if (config.side_microns or config.microns_per_pixel) and "fields" not in [layout.keyword for layout, _ in own]:
        raise UserError("side_microns= and microns_per_pixel= go with fields=RAW")
    for layout, root in own:
        if not (config.name and config.domain):
            raise UserError(f"{layout.keyword}={root} needs name=N (of the source) and domain=D (of its stain)")
        declared = SourceDeclaration(
            layout.keyword,
            config.name,
            Path(root),
            config.domain,
            mapping,
            group=config.group,
            annotations=config.annotations or "voc",
            side_microns=config.side_microns,
            microns_per_pixel=config.microns_per_pixel,
        )
        sources.append(declared)
    return sources


def _review(given: str | None) -> list[Path] | None:
    if given is None:
        return None
    return [] if given == "none" else list(map(Path, one_or_more(given, "review")))


def _settings(config: BuildOptions, root: Root) -> ShardSettings | None:
    """The data set's settings of storage, changed by the command's; None if it gives none."""
    asked = {name: getattr(config, name) for name in ("codec", "quality", "stored_size", "max_samples")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return None
    remembered = Dataset.read_catalog(root).metadata["settings"] if Dataset.is_at(root) else {}
    return ShardSettings(**{**remembered, **asked})


if __name__ == "__main__":
    launch(main, __doc__)
