"""Which real images a run was trained or chosen on: a table stored with the run and with everything made from it.

A score compares its images with this table and needs neither the old data set nor the old run. Images are matched by
the hash of their file, by their parent image, by a perceptual hash (other files, sizes and formats, mirrored and
quarter-turned copies) and by patient or slide.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.catalog import Dataset
from data_pipeline.dataset_config import SeenChoice
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from data_pipeline.ingest.duplicates import nearest_learned
from data_pipeline.ingest.images import HASH_BYTES

FILE = "learned.parquet"
JUDGE_FOLDER = "evaluation"  # of a bank: about the classifier that scored its images
Role = Literal["trained", "chosen"]

_FORMAT_VERSION = 1
_METADATA_KEY = b"hemaforge"
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of the catalogue
        pa.field("parent", pa.string(), nullable=False),
        pa.field("perceptual_hash", pa.binary(HASH_BYTES)),  # of the raw file; null where the catalogue has none
        pa.field("group", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("cell_type", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),  # trained, chosen
        pa.field("through", pa.string(), nullable=False),  # which ancestor, '' for what holds the table itself
    ]
)
_FACTS = ("id", "parent", "perceptual_hash", "group", "source", "cell_type", "origin")


@dataclass(frozen=True)
class LearnedImages:
    """The images that a model was trained or chosen on."""

    # Columns of _SCHEMA; no image twice under one group.
    table: pd.DataFrame = field(default_factory=lambda: _SCHEMA.empty_table().to_pandas())
    unknown: tuple[str, ...] = ()  # what else it learned from that cannot be known, and why; one line each
    synthetic: Mapping[str, int] = field(default_factory=dict)  # counts of generated images, by `through`

    @classmethod
    def of(cls, dataset: Dataset, selections: Mapping[Role, Sequence[str]]) -> LearnedImages:
        """From a data set. selections: role -> ids of images."""
        facts = dataset.samples(columns=list(_FACTS)).set_index("id", drop=False)
        parts, synthetic = [], 0
        for role, ids in selections.items():
            rows = facts.loc[list(ids)]
            generated = rows["origin"] == "synthetic"
            synthetic += int(generated.sum())
            parts.append(rows[~generated].drop(columns="origin").assign(role=role, through=""))
        unknown: tuple[str, ...] = ()
        table = pd.concat(parts, ignore_index=True)
        if missing := int(table["perceptual_hash"].isna().sum()):
            unknown = (f"copies of {missing} images of {dataset.root}, whose catalogue has no perceptual hash of them",)
        return cls.joined([cls(table, unknown, {"": synthetic} if synthetic else {})])

    @classmethod
    def unknown_because(cls, reason: str) -> LearnedImages:
        """For a model whose training images are not recorded."""
        return cls(unknown=(reason,))

    @classmethod
    def joined(cls, parts: Iterable[LearnedImages]) -> LearnedImages:
        """The union; of an image that is in several parts, the first row with the role `trained`, else the first."""
        parts = list(parts)
        table = pd.concat([part.table for part in parts if len(part)] or [parts[0].table], ignore_index=True)
        table = table.sort_values("role", ascending=False, kind="stable")
        table = table.drop_duplicates(["id", "group"]).sort_values(["through", "role", "id"], ignore_index=True)
        unknown = tuple(dict.fromkeys(line for part in parts for line in part.unknown))
        synthetic = {name: count for part in parts for name, count in part.synthetic.items()}
        return cls(table, unknown, synthetic)

    def through(self, ancestor: str) -> LearnedImages:
        """The same table, for a model or data set made from `ancestor` (its name, for messages)."""

        def name(inner: str) -> str:
            return f"{ancestor}, from {inner}" if inner else ancestor

        return LearnedImages(
            self.table.assign(through=self.table["through"].map(name)),
            tuple(f"{ancestor}: {line}" for line in self.unknown),
            {name(inner): count for inner, count in self.synthetic.items()},
        )

    def to_bytes(self) -> bytes:
        """Content of the file; the same for equal tables."""
        told = {"format_version": _FORMAT_VERSION, "unknown": self.unknown, "synthetic": dict(self.synthetic)}
        table = pa.Table.from_pandas(self.table, _SCHEMA, preserve_index=False)
        content = io.BytesIO()
        metadata = {_METADATA_KEY: json.dumps(told, sort_keys=True).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), content, compression="zstd", write_page_checksum=True)
        return content.getvalue()

    def save(self, folder: Path) -> None:
        """Write the table into a run, a bank or another folder, atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        replace_through(folder / FILE, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> LearnedImages:
        """Read what `save` wrote, or an attachment of a data set. UserError when it is damaged."""
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
            told = json.loads((table.schema.metadata or {})[_METADATA_KEY])
            if told["format_version"] != _FORMAT_VERSION or table.column_names != _SCHEMA.names:
                raise ValueError("another format")
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: damaged ({reason}): bring back the file that was written there") from None
        return cls(table.replace_schema_metadata(None).to_pandas(), tuple(told["unknown"]), told["synthetic"])

    def of_role(self, role: Role) -> LearnedImages:
        """Only the images of one role."""
        return replace(self, table=self.table[self.table["role"] == role].reset_index(drop=True))

    def only_through(self, ancestor: str) -> LearnedImages:
        """Only what was learned through this ancestor."""
        through = self.table["through"]
        chosen = (through == ancestor) | through.str.startswith(f"{ancestor}, from ")
        unknown = tuple(line for line in self.unknown if line.startswith(f"{ancestor}: "))
        return LearnedImages(self.table[chosen].reset_index(drop=True), unknown)

    def __len__(self) -> int:
        return len(self.table)

    def ids_among(self, rows: pd.DataFrame) -> list[str]:
        """Ids of `rows` (id, parent) whose file or parent is in the table; needs no catalogue."""
        return list(rows["id"][self._matching_file(rows).notna()])

    def seen_among(self, dataset: Dataset, ids: Iterable[str]) -> SeenImages:
        """Which images of a data set are in the table, are nearly equal to one there, or share its group.

        If one image of a patient or slide is found, all its images in this data set count as seen. Group names of a
        source are compared only if some image of the source has the same group name in table and data set.
        """
        everything = dataset.samples(columns=list(_FACTS))
        everything = everything[everything["origin"] != "synthetic"].reset_index(drop=True)
        asked = everything["id"].isin(list(ids))
        match = self._matching_file(everything)
        comparable = everything["group"] == match.map(self.table["group"])
        sources = set(everything["source"][comparable])
        concerned = everything["group"].isin(everything["group"][asked])
        unmatched = everything.index[concerned & match.isna()]
        match[unmatched] = self._matching_picture(everything.loc[unmatched])
        of_source = self.table[self.table["source"].isin(sources)]
        by_group = pd.Series(of_source.index, of_source["group"])
        found = match.groupby(everything["group"]).transform("first")
        found = match.fillna(found).fillna(everything["group"].map(by_group[~by_group.index.duplicated()]))
        seen = everything[asked].assign(through=found[asked].map(self.table["through"])).dropna(subset=["through"])
        unchecked = self.unknown
        if without := int(everything.loc[asked, "perceptual_hash"].isna().sum()):
            unchecked += (f"{without} images of {dataset.root} have no perceptual hash: copies of other files",)
        return SeenImages(
            int(asked.sum()), len(self.table), dict(zip(seen["id"], seen["through"], strict=True)), unchecked
        )

    def _matching_file(self, rows: pd.DataFrame) -> pd.Series[Any]:
        """Row in the table of the same file, or of one with the same parent; NaN for none."""
        made = self.table[self.table["parent"] != ""]
        position = pd.concat([pd.Series(self.table.index, self.table["id"]), pd.Series(made.index, made["parent"])])
        position = position[~position.index.duplicated()].astype(float)
        return rows["id"].map(position).fillna(rows["parent"].map(position))

    def _matching_picture(self, rows: pd.DataFrame) -> pd.Series[Any]:
        """Row in the table of a nearly equal picture; NaN for none."""
        here, known = rows["perceptual_hash"].dropna(), self.table["perceptual_hash"].dropna()
        nearest = nearest_learned(_hashes(here), _hashes(known))
        positions = np.append(known.index.to_numpy(float), np.nan)[nearest]  # -1 takes the NaN
        return pd.Series(positions, here.index).reindex(rows.index)


@dataclass(frozen=True)
class SeenImages:
    """Images to be scored, compared with those that a model learned from."""

    count: int  # images compared
    learned: int  # images they were compared with
    through: Mapping[str, str]  # id of each seen image -> ancestor, '' for the model itself
    unchecked: tuple[str, ...]  # what could not be compared, and why; one line each

    @property
    def words(self) -> str:
        """'20 directly, 8 through runs/lab (model.weights=)'."""
        counts = pd.Series(list(self.through.values()), dtype=str).value_counts()
        return ", ".join(f"{count} {f'through {name}' if name else 'directly'}" for name, count in counts.items())

    def require_unseen(self, choice: SeenChoice, place: str, remedy: str) -> None:
        """UserError if images were seen, unless they may be left out of the score and some remain.

        place: where the images are, in words: "split test of data/blood". remedy: what to do instead.
        """
        if not self.through or (choice == "leave_out" and len(self.through) < self.count):
            return
        left_out = ", or give seen_images=leave_out to score without them"
        raise UserError(
            f"{len(self.through)} of the {self.count} images of {place} were used to train or choose the network, or "
            f"are copies of such images or of their patients or slides ({self.words}): "
            f"{remedy}{left_out if len(self.through) < self.count else ''}"
        )


def _hashes(hashes: pd.Series[Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES)


def learned_by_makers(dataset: Dataset) -> LearnedImages:
    """What the normaliser and the generators that made images of a data set learned from."""
    if FILE in dataset.metadata.get("attachments", {}):
        return LearnedImages.load(dataset.attachment_path(FILE))
    made_by = dataset.metadata["made_by"]
    tool = made_by.get("tool") if isinstance(made_by, dict) else None
    if tool not in ("normalize_stains", "balance"):
        return LearnedImages()
    return LearnedImages.unknown_because(
        f"{dataset.root} does not say what the networks that made its images learned from: derive it again with "
        f"{tool}.py"
    )


def learned_by_bank(bank: Path) -> LearnedImages:
    """What the generator of a bank learned from."""
    return _of_bank(bank / FILE, "its generator learned from: give its synthesize.py command again")


def learned_by_bank_judge(bank: Path) -> LearnedImages:
    """What the classifier that scored a bank's images learned from."""
    return _of_bank(
        bank / JUDGE_FOLDER / FILE,
        "the classifier that scored its images learned from: score it again with evaluate.py",
    )


def _of_bank(path: Path, remedy: str) -> LearnedImages:
    if path.exists():
        return LearnedImages.load(path)
    return LearnedImages.unknown_because(f"the bank does not say what {remedy}")
