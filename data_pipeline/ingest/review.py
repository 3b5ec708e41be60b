"""Experts' decisions about images: read from CSV files, compared with each other, applied to the rows of a catalogue.

`launchers/review.py` writes the page on which they are made.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from data_pipeline.catalog import Sample
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.names import Names, shown
from data_pipeline.sources.csv_files import read_csv
from data_pipeline.sources.labels import cell_type_of

# The columns that the page writes.
REQUIRED = ("id", "label", "decision", "cell_type", "reason")
OPTIONAL = ("source", "path", "reviewer")
EXCLUDED = "excluded"
REVIEWED = "expert's review"  # kind of the reason of an excluded row
CORRECTED = "corrected label"  # kind of the reason of a kept row
_WORDS = ("right", "wrong", "exclude")


@dataclass(frozen=True)
class Decision:
    """What an expert decided about one image."""

    id: str  # of the image, as in the catalogue
    label: str  # cell type that it had; '' for none, or several
    cell_type: str  # what it is; '' for an excluded image
    reason: str = ""  # why it is excluded
    reviewer: str = ""
    image: str = ""  # source:path, for messages

    @property
    def verdict(self) -> str:
        """The cell type, or EXCLUDED."""
        return self.cell_type or EXCLUDED

    @property
    def words(self) -> str:
        """'monocyte', 'excluded (out of focus)'."""
        return f"{self.verdict} ({self.reason})" if self.reason else self.verdict

    @property
    def by(self) -> str:
        """The reviewer in brackets, ' (AB)', to follow a reason; '' if unknown."""
        return f" ({self.reviewer})" if self.reviewer else ""


@dataclass(frozen=True)
class Disagreement:
    """An image that experts decided differently; none of the decisions is applied."""

    image: str  # source:path
    decisions: tuple[str, ...]  # 'A.csv: monocyte', one for each expert


@dataclass(frozen=True)
class Agreement:
    """How far two experts agree."""

    experts: tuple[str, str]  # names of their files
    images: int  # that both decided
    same: int  # that both decided alike
    kappa: float | None  # Cohen's; None where it is not defined: fewer than two different verdicts


@dataclass(frozen=True)
class Review:
    """The decisions of one expert, or those on which several agree."""

    decisions: tuple[Decision, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()


def read_review(paths: Sequence[Path]) -> Review:
    """Read one CSV of decisions for each expert. UserError names the wrong line.

    Cohen's kappa is of two experts' verdicts (cell type, or excluded) on the images that both decided. An image on
    which experts differ is a disagreement; one that a single expert decided is decided.
    """
    if len(paths) == 1:
        return Review(tuple(read_decisions(paths[0])))
    # By name alone where that tells the files apart.
    names = [path.name for path in paths]
    names = names if len(set(names)) == len(names) else list(map(str, paths))
    experts = {name: {each.id: each for each in read_decisions(path)} for name, path in zip(names, paths, strict=True)}
    by_image: dict[str, dict[str, Decision]] = defaultdict(dict)
    for name, decisions in experts.items():
        for decision in decisions.values():
            by_image[decision.id][name] = decision
    agreed, disagreements = [], []
    for each in by_image.values():
        first = next(iter(each.values()))
        if len({decision.verdict for decision in each.values()}) == 1:
            agreed.append(_joined(list(each.values())))
        else:
            verdicts = tuple(f"{name}: {decision.words}" for name, decision in each.items())
            disagreements.append(Disagreement(first.image or first.id, verdicts))
    agreements = tuple(_agreement(pair, experts) for pair in combinations(names, 2))
    return Review(tuple(agreed), agreements, tuple(disagreements))


def read_decisions(path: Path) -> list[Decision]:
    """Read the CSV of one expert: columns REQUIRED and, as far as there, OPTIONAL. UserError names the wrong line."""
    decisions: dict[str, Decision] = {}
    for line, row in read_csv(path, REQUIRED, OPTIONAL).rows:
        where = f"{path}, line {line}"
        identity, word = row["id"].lower(), row["decision"].lower()
        if not re.fullmatch(r"[0-9a-f]{64}", identity):
            raise UserError(
                f"{where}: '{shown(identity)}' is no id of an image (64 hex digits); save the page's CSV again"
            )
        if word not in _WORDS:
            raise UserError(f"{where}: the decision '{shown(word)}' is none of {', '.join(_WORDS)}")
        label, cell_type = (_cell_type(row[column], where) for column in ("label", "cell_type"))
        if word == "exclude" and not row["reason"]:
            raise UserError(f"{where}: excluded without a reason; fill the column reason")
        if word == "wrong" and cell_type in ("", label):
            raise UserError(f"{where}: a wrong label, but the column cell_type does not say what it is; fill it")
        if word == "right" and (not label or cell_type not in ("", label)):
            raise UserError(f"{where}: right, but label and cell_type do not name one type; correct one of them")
        decision = Decision(
            identity,
            label,
            {"right": label, "wrong": cell_type, "exclude": ""}[word],
            row["reason"] if word == "exclude" else "",
            row.get("reviewer", ""),
            f"{row.get('source', '')}:{row.get('path', '')}".strip(":"),
        )
        if decisions.setdefault(identity, decision).verdict != decision.verdict:
            raise UserError(f"{where}: this image has another decision further up; keep one of them")
    if not decisions:
        raise UserError(f"{path}: no decision in it; save the page's CSV again")
    return list(decisions.values())


def with_decisions(remembered: Iterable[Decision], new: Iterable[Decision]) -> tuple[Decision, ...]:
    """All decisions, sorted by id; a new one replaces an earlier one about the same image."""
    decisions = {decision.id: decision for decision in remembered}
    for decision in new:
        before = decisions.get(decision.id)
        if before is not None and before.cell_type == decision.label:
            decision = dataclasses.replace(decision, label=before.label)  # seen as corrected; the source says this
        decisions[decision.id] = decision
    return tuple(sorted(decisions.values(), key=lambda decision: decision.id))


def apply_decisions(
    samples: Sequence[Sample], decisions: Iterable[Decision]
) -> tuple[list[Decision], list[tuple[Decision, Sample]]]:
    """Exclude images and correct labels; every row of the same file is concerned.

    A corrected row stays kept and has the old label in its reason. Returns the decisions about no image here, and
    those about a label that the source no longer gives, which are not applied.
    """
    rows: dict[str, list[Sample]] = defaultdict(list)
    for row in samples:
        rows[row.id].append(row)
    unmatched, outdated = [], []
    for decision in decisions:
        if decision.id not in rows:
            unmatched.append(decision)
        for row in rows.get(decision.id, []):
            if not decision.cell_type:
                if row.kept:
                    row.exclude(REVIEWED, decision.reason + decision.by)
            elif row.cell_type not in (decision.label or row.cell_type, decision.cell_type):
                outdated.append((decision, row))
            elif row.cell_type != decision.cell_type:
                if row.kept:
                    row.reason = f"{CORRECTED}: was {row.cell_type or 'unlabelled'}{decision.by}"
                row.cell_type = decision.cell_type
    return unmatched, outdated


def check_applied(
    review: Review, unmatched: Sequence[Decision], outdated: Sequence[tuple[Decision, Sample]]
) -> list[str]:
    """Warnings about decisions that could not be applied. UserError where none of a new CSV belongs to this data set,
    and where a new one is about another label than the data set's.
    """
    new = {decision.id for decision in review.decisions}
    unknown = [decision for decision in unmatched if decision.id in new]
    if new and len(unknown) == len(new):
        raise UserError(
            f"review=: none of the {len(new)} decisions is about an image of this data set (the first: "
            f"{shown(unknown[0].image or unknown[0].id)}): they are of another one; nothing was changed"
        )
    for decision, row in outdated:
        if decision.id in new:
            raise UserError(
                f"review=: {row.source}:{row.path} was shown as {decision.label}, but is "
                f"{row.cell_type or 'unlabelled'} here: the page is of another data "
                "set, or labels were changed since; write it again"
            )
    warnings = []
    if unmatched:
        first = shown(unmatched[0].image or unmatched[0].id)
        warnings.append(f"{len(unmatched)} decision(s) of experts are about no image here (the first: {first})")
    if outdated:
        decision, row = outdated[0]
        warnings.append(
            f"{len(outdated)} decision(s) of experts are not applied, as the labels were changed since (the first: "
            f"{row.source}:{row.path}, then {decision.label}, now {row.cell_type or 'unlabelled'}); review them again"
        )
    return warnings


def _cell_type(written: str, where: str) -> str:
    cell_type = cell_type_of(written, {})
    if cell_type is None:
        known = Names(CELL_TYPES)
        raise UserError(
            f"{where}: '{shown(written)}' is no cell type{known.hint(written)}; use one of {', '.join(CELL_TYPES)}"
        )
    return cell_type


def _joined(alike: Sequence[Decision]) -> Decision:
    """Decisions with one verdict as one, with all reasons and reviewers."""
    reasons, reviewers = (
        ", ".join(dict.fromkeys(filter(None, values)))
        for values in zip(*((decision.reason, decision.reviewer) for decision in alike), strict=True)
    )
    return dataclasses.replace(alike[0], reason=reasons, reviewer=reviewers)


def _agreement(pair: tuple[str, str], experts: Mapping[str, Mapping[str, Decision]]) -> Agreement:
    from sklearn.metrics import cohen_kappa_score  # here: slow to import

    one, other = (experts[name] for name in pair)
    both = sorted(one.keys() & other.keys())
    verdicts = [[expert[image].verdict for image in both] for expert in (one, other)]
    same = sum(first == second for first, second in zip(*verdicts, strict=True))
    several = len({verdict for each in verdicts for verdict in each}) > 1
    return Agreement(pair, len(both), same, float(cohen_kappa_score(*verdicts)) if several else None)
