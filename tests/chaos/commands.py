"""The launchers' commands that are disturbed, at tiny size, and what they start from."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import yaml

from tests.chaos.forked import Ended, Launcher, in_child
from tests.s3_server import BUCKET
from tests.trainer import test_conditional_training, test_few_shot_training, test_stain_training, test_training

Kind = Literal["data set", "run", "bank", "export", "predictions", "sweep", "audit"]
TYPES = ("basophil", "eosinophil", "lymphocyte")
_TRAINING = ("train.epochs=2", "train.checkpoint_every=2", "train.keep_checkpoints=2")


def _changed(given: tuple[str, ...], *changes: str) -> tuple[str, ...]:
    """Arguments, with others in the place of those of the same key."""
    keys = {text.partition("=")[0] for text in changes}
    return (*(text for text in given if text.partition("=")[0] not in keys), *changes)


CLASSIFIER = _changed(test_training.TINY, "model=senet_tiny_ge", *_TRAINING)
_STAIN = _changed(test_stain_training.TINY, test_stain_training.DEPTH, *_TRAINING)
_CONDITIONAL = _changed(test_conditional_training.TINY, "train.iterations_per_epoch=3", *_TRAINING)
_FEW_SHOT = _changed(
    (*test_few_shot_training.TINY, *test_few_shot_training.SHORT), *_TRAINING[:1], "train.checkpoint_every=1"
)


@dataclass(frozen=True)
class Command:
    """One launcher's command.

    name: of its row in the table, and of its folder. place: a folder of its own that holds `out`, so that a small
    disk can be mounted there; in a store `out` is not on a disk at all. before: a copy of what `out` holds before it
    begins; None for nothing. reads: files and folders that may not change.
    """

    name: str
    launcher: str
    kind: Kind
    arguments: tuple[str, ...]
    place: Path
    logs: Path
    before: Path | None = None
    reads: tuple[Path, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    url: str | None = None

    @property
    def out(self) -> Path:
        return self.place / "out"

    @property
    def calm(self) -> Path:
        """What an undisturbed command has left."""
        return self.logs / "undisturbed"

    @property
    def process(self) -> Launcher:
        own = {"XDG_CACHE_HOME": str(self.place.parent / "cache"), "TMPDIR": str(self.place.parent / "temporary")}
        return Launcher(self.launcher, self.arguments, self.logs, self.place.parent, {**own, **self.environment})

    def start_over(self) -> None:
        """Put what the command begins with in its place."""
        for name in ("place", "cache", "temporary"):
            folder = self.place.with_name(name)
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.before is not None and self.url is None:
            shutil.copytree(self.before, self.out)


class Materials:
    """A folder with raw images, a data set, and what each launcher has made from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raw, self.data = folder / "raw", folder / "data"
        self.old_data = folder / "data-of-one-source"
        self.classifier, self.bank = folder / "classifier", folder / "bank"
        self.unscored = folder / "classifier-unscored"
        self.stain, self.conditional = folder / "stain", folder / "conditional"
        self.nothing = folder / "nothing"
        self.of_cluster: dict[str, str] = {}  # by which ablate.py joins a Ray cluster
        self.export, self.sweep = folder / "export", folder / "sweep.yaml"

    def make(self, wanted: set[str], tell: Callable[[str], None]) -> None:
        """Make what the launchers of these names begin with."""
        self.nothing.mkdir(parents=True, exist_ok=True)
        in_child(self._render)
        first = f"shards={self.old_data}", *self.source("first"), "max_samples=8", "ratio=[0.5,0.25,0.25]"
        self._run("build_shards", *first, "workers=1")
        shutil.copytree(self.old_data, self.data)
        self._run("build_shards", f"shards={self.data}", *self.source("second"), "workers=1")
        data = f"shards={self.data}"
        steps = {
            "stain": ("train_stain_gan", data, f"run={self.stain}", *_STAIN),
            "conditional": ("train_conditional_gan", data, f"run={self.conditional}", *_CONDITIONAL),
            "classifier": ("train_classifier", data, f"run={self.classifier}", *CLASSIFIER),
            "bank": ("synthesize", f"run={self.conditional}", f"bank={self.bank}", "count=70"),
            "export": ("export", f"run={self.classifier}", "format=onnx", f"out={self.export}"),
        }
        for name, step in steps.items():
            if name in wanted:
                tell(f"preparing: {step[0]}")
                self._run(*step)
        if "classifier" in wanted:
            scores = shutil.ignore_patterns("evaluation", "report.html", "model_card.md")
            shutil.copytree(self.classifier, self.unscored, ignore=scores)
        space = {"optimizer.learning_rate": {"grid_search": [0.004, 0.001]}}
        fixed = [text for text in CLASSIFIER if not text.startswith("train.epochs")] + ["train.epochs=1"]
        self.sweep.write_text(yaml.safe_dump({"kind": "search", "seeds": [0], "fixed": fixed, "space": space}))

    def source(self, name: str) -> tuple[str, ...]:
        """The arguments that declare a source of raw images."""
        return f"table={self.raw / name / 'images.csv'}", f"name={name}", "domain=phantom"

    def _render(self) -> None:
        from data_pipeline.phantoms.folders import render_phantoms

        for seed, name in enumerate(("first", "second")):
            render_phantoms(
                self.raw / name, 10, slides=8, size=32, seed=seed, workers=1, cell_types=TYPES, progress=False
            )

    def _run(self, name: str, *arguments: str) -> Ended:
        done = Launcher(name, arguments, self.folder / "log", self.folder).run()
        if done.code != 0:
            raise RuntimeError(f"{name} {' '.join(arguments)}: ended with {done.code}\n{done.stderr}")
        return done

    def commands(self, part: str) -> dict[str, Command]:
        """Every command on a disk, by name, in a folder for this part of the test."""
        data, run = f"shards={self.data}", f"run={self.classifier}"
        first_images = self.raw / "first" / "giemsa"
        specified: dict[str, tuple[str, Kind, str, tuple[str, ...], Path | None, tuple[Path, ...]]] = {
            "build_shards": (
                "build_shards",
                "data set",
                "shards",
                (*self.source("second"), "workers=1"),
                self.old_data,
                (self.raw,),
            ),
            "train_classifier": ("train_classifier", "run", "run", (data, *CLASSIFIER), None, (self.data,)),
            "train_stain_gan": ("train_stain_gan", "run", "run", (data, *_STAIN), None, (self.data,)),
            "train_conditional_gan": (
                "train_conditional_gan",
                "run",
                "run",
                (data, *_CONDITIONAL),
                None,
                (self.data,),
            ),
            "train_few_shot_gan": ("train_few_shot_gan", "run", "run", (data, *_FEW_SHOT), None, (self.data,)),
            "normalize_stains": (
                "normalize_stains",
                "data set",
                "out",
                (data, f"run={self.stain}"),
                None,
                (self.data, self.stain),
            ),
            "synthesize": (
                "synthesize",
                "bank",
                "bank",
                (f"run={self.conditional}", "count=70"),
                None,
                (self.conditional,),
            ),
            "balance": (
                "balance",
                "data set",
                "out",
                (data, f"banks=[{self.bank}]", "per_type=40"),
                None,
                (self.data, self.bank),
            ),
            "export": ("export", "export", "out", (run, "format=torch_export"), None, (self.classifier, self.data)),
            "evaluate": ("evaluate", "run", "run", (), self.unscored, (self.data,)),
            "evaluate a bank": (
                "evaluate",
                "bank",
                "bank",
                (data, f"classifier={self.classifier}"),
                self.bank,
                (self.data, self.classifier),
            ),
            "predict": (
                "predict",
                "predictions",
                "out",
                (run, f"images={first_images}", "heatmaps=true"),
                None,
                (self.raw, self.classifier),
            ),
            "audit": ("audit", "audit", "out", (data, run, "workers=1"), None, (self.data, self.classifier)),
            "ablate": ("ablate", "sweep", "out", (f"sweep={self.sweep}", data), None, (self.data,)),
        }
        return {
            name: self._command(part, name, launcher, kind, key, given, before, reads)
            for name, (launcher, kind, key, given, before, reads) in specified.items()
        }

    def _command(
        self,
        part: str,
        name: str,
        launcher: str,
        kind: Kind,
        key: str,
        given: tuple[str, ...],
        before: Path | None,
        reads: tuple[Path, ...],
    ) -> Command:
        folder = self.folder.parent / part / name.replace(" ", "_")
        place = folder / "place"
        out = place / "out" / "audit.json" if kind == "audit" else place / "out"
        before = self.nothing if kind == "audit" else before
        environment = self.of_cluster if launcher == "ablate" else {}
        given = (f"{key}={out}", *given)
        return Command(name, launcher, kind, given, place, folder / "logs", before, reads, environment)


def from_store(command: Command, data: Path, environment: dict[str, str]) -> Command | None:
    """The same command, its data set in a store; None where it has none."""
    name = f"{command.name}, S3"
    folder = command.place.parent.with_name(name.replace(", ", "_").replace(" ", "_"))
    place, url = folder / "place", f"s3://{BUCKET}/{folder.name}"
    moved = tuple(text.replace(str(command.place), str(place)) for text in command.arguments)
    same = replace(
        command, name=name, place=place, logs=folder / "logs", environment={**command.environment, **environment}
    )
    if command.launcher == "build_shards":
        return replace(same, arguments=(f"shards={url}", *moved[1:]), url=url)
    if f"shards={data}" not in moved:
        return None
    read = tuple(f"shards=s3://{BUCKET}/{data.name}" if text == f"shards={data}" else text for text in moved)
    return replace(same, arguments=read)
