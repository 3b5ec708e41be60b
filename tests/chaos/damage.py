"""Files whose bytes have changed are noticed by whoever reads them, or do no harm; nothing is silently wrong."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.commands import Materials
from tests.chaos.forked import Ended, Launcher, in_child
from tests.chaos.outcome import contents
from tests.chaos.table import Row

Damage = Callable[[Path, random.Random], None]
_BLOCK = 512


def _flip_bit(path: Path, numbers: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
    path.write_bytes(content)


def _change_byte(path: Path, numbers: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[numbers.randrange(len(content))] ^= numbers.randint(1, 255)
    path.write_bytes(content)


def _cut(path: Path, numbers: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: numbers.randrange(len(content))])


def _zero_block(path: Path, numbers: random.Random) -> None:
    content = bytearray(path.read_bytes())
    size = min(_BLOCK, max(1, len(content) // 2))
    start = numbers.randrange(len(content) - size + 1)
    content[start : start + size] = bytes(size)
    path.write_bytes(content)


def _empty(path: Path, numbers: random.Random) -> None:
    path.write_bytes(b"")


def _delete(path: Path, numbers: random.Random) -> None:
    path.unlink()


DAMAGES: dict[str, Damage] = {
    "one bit": _flip_bit,
    "one byte": _change_byte,
    "cut": _cut,
    "a block of zeros": _zero_block,
    "emptied": _empty,
    "deleted": _delete,
}


@dataclass(frozen=True)
class Reader:
    """A command that reads a copy of a folder, of which one file is damaged.

    arguments: IN stands for the copy, OUT for what it writes. files: patterns of those that are damaged, in turn.
    users: patterns of files that are the user's own words, or a log: nothing can tell a changed digit from a meant
    one, so they may be taken as they are written, but for tracebacks.
    """

    name: str
    launcher: str
    source: Path
    arguments: tuple[str, ...]
    files: tuple[str, ...]
    users: tuple[str, ...] = ()


def readers(materials: Materials) -> list[Reader]:
    """Who reads what."""
    from tests.chaos.commands import CLASSIFIER

    data, run, bank = materials.data, materials.classifier, materials.bank
    of_data = ("shards/*.tar", "shards/*.idx", "catalog.parquet", "catalog/*.parquet", "dataset.json")
    of_run = ("checkpoints/best*", "config.yaml", "calibration.json", "uncertainty.safetensors")
    of_bank = (
        "bank.json",
        "zarr.json",
        "*/zarr.json",
        "images/c/**/*",
        "latents/c/**/*",
        "labels/c/*",
        "sha256/c/**/*",
    )
    images = f"images={materials.raw / 'first' / 'giemsa' / 'basophil'}"
    own = ("run=IN", f"shards={data}")
    return [
        Reader("verify", "build_shards", data, ("shards=IN", "verify=true"), of_data),
        Reader("build again", "build_shards", data, ("shards=IN", "workers=1"), of_data),
        Reader("train", "train_classifier", data, ("shards=IN", "run=OUT", *CLASSIFIER), of_data),
        Reader("audit", "audit", data, ("shards=IN", "out=OUT.json", "workers=1"), of_data),
        Reader("balance", "balance", data, ("shards=IN", "out=OUT", f"banks=[{bank}]", "per_type=40"), of_data),
        Reader("normalize", "normalize_stains", data, ("shards=IN", "out=OUT", f"run={materials.stain}"), of_data),
        Reader(
            "train on",
            "train_classifier",
            run,
            (*own, *CLASSIFIER),
            (*of_run, "checkpoints/step*6-*", "metrics.jsonl", "training_data.json", "evaluation/*"),
            ("metrics.jsonl",),
        ),
        Reader(
            "evaluate",
            "evaluate",
            run,
            own,
            (*of_run, "training_data.json", "evaluation/metrics.json"),
            ("training_data.json",),  # where it is gone, the model card says that nothing was recorded
        ),
        Reader("predict", "predict", run, ("run=IN", images, "out=OUT"), of_run),
        Reader("export", "export", run, (*own, "format=torch_export", "out=OUT"), of_run),
        Reader("audit a run", "audit", run, (*own, "out=OUT.json", "workers=1"), (*of_run, "evaluation/*")),
        Reader(
            "synthesize from",
            "synthesize",
            materials.conditional,
            ("run=IN", "bank=OUT", "count=3"),
            ("config.yaml", "checkpoints/*"),
        ),
        Reader("balance with", "balance", bank, (f"shards={data}", "out=OUT", "banks=[IN]", "per_type=40"), of_bank),
        Reader("synthesize on", "synthesize", bank, (f"run={materials.conditional}", "bank=IN", "count=72"), of_bank),
        Reader(
            "predict with", "predict", materials.export, ("run=IN", images, "out=OUT"), ("model.onnx", "model.json")
        ),
        Reader(
            "build from",
            "build_shards",
            materials.raw / "second",
            ("shards=OUT", "table=IN/images.csv", "name=second", "domain=phantom", "workers=1"),
            ("images.csv", "giemsa/**/*.png"),
            ("images.csv", "giemsa/**/*.png"),
        ),
    ]


def damage_each(reader: Reader, folder: Path, tries: int, seed: int) -> Row:
    """Damage every kind of file in every way, so many times each, and have it read."""
    began, numbers = time.monotonic(), random.Random(f"{seed} {reader.name}")
    row = Row(f"{reader.launcher} ({reader.name})", "damaged files")
    place, calm = folder / "place", folder / "undisturbed"
    copied = place / "in"
    done = _read(reader, folder)
    if done.code not in (0, 1 if reader.launcher == "audit" else 0):
        raise RuntimeError(f"undisturbed it ended with {done.code}: {done.stderr}")
    shutil.copytree(place, calm)
    for pattern in reader.files:
        for name, damage in DAMAGES.items():
            for _ in range(tries):
                path = numbers.choice([path for path in sorted(reader.source.glob(pattern)) if path.is_file()])
                hit = copied / path.relative_to(reader.source)
                seen = _read(reader, folder, lambda hit=hit, damage=damage: damage(hit, numbers))  # type: ignore[misc]
                row.tries += 1
                at_fault = _judge(reader, row, seen, done, hit, taken=pattern in reader.users)
                if at_fault:
                    row.lost.append(f"{hit.relative_to(copied)}, {name}: {at_fault}")
    row.seconds = time.monotonic() - began
    return row


def _read(reader: Reader, folder: Path, damage: Callable[[], None] = lambda: None) -> Ended:
    place = folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(reader.source, place / "in")
    damage()
    words = {"IN": str(place / "in"), "OUT": str(place / "out")}
    arguments = []
    for argument in reader.arguments:
        for word, path in words.items():
            argument = argument.replace(word, path)
        arguments.append(argument)
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    return Launcher(reader.launcher, arguments, folder / "logs", folder, {"TMPDIR": str(temporary)}).run()


def _judge(reader: Reader, row: Row, seen: Ended, undisturbed: Ended, hit: Path, *, taken: bool) -> str | None:
    """What went wrong, or None; counted in the row. hit: the damaged file, in the copy that was read."""
    place = next(folder for folder in hit.parents if folder.name == "in").parent
    if seen.code == 2:
        lines = [line for line in seen.stderr.splitlines() if line.startswith(f"{reader.launcher}.py: ")]
        if len(lines) != 1 or "Traceback" in seen.stderr:
            return f"not one line: {seen.stderr[-300:]}"
        if str(place / "in") not in lines[0]:
            return f"does not name the file, nor its folder: {lines[0]}"
        row.noticed += 1
    elif seen.code not in (0, undisturbed.code) and (seen.code, reader.launcher) != (1, "audit"):
        return f"a traceback, code {seen.code}: {seen.line}"
    elif seen.code != undisturbed.code:  # an audit that has found something
        row.noticed += 1
    else:
        other = _other(place, place.with_name("undisturbed"), hit.relative_to(place).as_posix())
        if not other:
            row.harmless += 1
        elif hit.name in seen.stderr + seen.stdout:  # a warning, and the result tells of it too
            row.noticed += 1
        elif taken:
            row.as_written += 1
        else:
            return f"silently other: {', '.join(other)}"
    return None


def _other(place: Path, calm: Path, damaged: str) -> list[str]:
    """Files whose contents are not the undisturbed ones, but for the damaged one."""
    found, expected = (in_child(lambda root=root: contents(root)) for root in (place, calm))  # type: ignore[misc]
    names = (found.keys() | expected.keys()) - {damaged}
    return sorted(name for name in names if found.get(name) != expected.get(name))
