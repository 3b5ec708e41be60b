"""The report of a build, as JSON (build_report.json) and as text, and its warnings."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.catalog import SPLITS
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest.curate import Exclusion
from data_pipeline.ingest.review import REVIEWED, Review
from data_pipeline.names import COMPARED, Names, difference, plain, shown

UNLABELLED = "unlabelled"
# No example is named where the reason is the same for all or the user's own.
_NOT_NAMED = ("duplicate", "near duplicate", "hidden file", "expert's list", REVIEWED)
_NAMED = 3  # examples of each other reason
_DISAGREEMENTS = 20  # printed at most


class Tally:
    """Counts of a data set's rows, taken in parts."""

    def __init__(self, parts: Iterable[pa.Table] = ()) -> None:
        self._kept: Counter[tuple[str, str, str]] = Counter()  # by domain, cell type and split
        self._labels: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self._first: dict[str, list[str]] = {}  # kind of reason -> its first images
        self.reasons: Counter[str] = Counter()  # of excluded images, by kind
        self.corrected = 0  # kept images with a corrected label
        for part in parts:
            self.add(part)

    @property
    def kept(self) -> int:
        return self._kept.total()

    def add(self, rows: pa.Table) -> None:
        """Count these rows, which have the columns of a catalogue."""
        kept = rows.filter(pc.equal(rows["status"], "kept"))
        for *kind, count in _grouped(kept, ["domain", "cell_type", "split"]):
            self._kept[kind[0], kind[1] or UNLABELLED, kind[2]] += count
        for source, label, count in _grouped(kept, ["source", "source_label"]):
            self._labels[source][label].update({"images": count, "kept": count})
        self.corrected += pc.sum(pc.not_equal(kept["reason"], "")).as_py() or 0
        columns = ["source", "source_label", "path", "reason"]
        excluded = rows.filter(pc.not_equal(rows["status"], "kept")).select(columns)
        for source, label, path, reason in zip(*(column.to_pylist() for column in excluded.columns), strict=True):
            kind = reason.partition(": ")[0]
            self.reasons[kind] += 1
            self._labels[source][label].update(("images", kind))
            if kind not in _NOT_NAMED and len(self._first.setdefault(kind, [])) < _NAMED:
                self._first[kind].append(f"{source}:{path}{reason.removeprefix(kind)}")

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Counts of kept samples: {domain: {cell type or UNLABELLED: {split: count}}}."""
        present = {(domain, cell_type) for domain, cell_type, _ in self._kept}
        return {
            domain: {
                cell_type: {split: self._kept[domain, cell_type, split] for split in SPLITS}
                for cell_type in (*CELL_TYPES, UNLABELLED)
                if (domain, cell_type) in present
            }
            for domain in sorted({domain for domain, _ in present})
        }

    def labels(self) -> dict[str, dict[str, dict[str, int]]]:
        """{source: {source label: {"images": all, "kept": kept, reason of exclusion: images, ...}}}."""
        return {
            source: {
                label: {"images": 0, "kept": 0} | dict(sorted(found.items())) for label, found in sorted(labels.items())
            }
            for source, labels in sorted(self._labels.items())
        }

    def first_of_each_reason(self) -> dict[str, list[str]]:
        """The first excluded images of each kind of reason, with the reason."""
        return dict(sorted(self._first.items()))


def _grouped(rows: pa.Table, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Each combination of values, and the number of its rows."""
    found = rows.group_by(columns).aggregate([([], "count_all")])
    return zip(*(found[name].to_pylist() for name in (*columns, "count_all")), strict=True)


def make_report(
    tally: Tally,
    *,
    written: int,
    kept: int,
    removed: int,
    content_hash: str,
    warnings: Sequence[str],
    seconds: float,
    review: Review = Review(),
) -> dict[str, Any]:
    """The report of a build. written, kept, removed: numbers of shards. review: experts' new decisions."""
    return {
        "shards_written": written,
        "shards_kept": kept,
        "shards_removed": removed,
        "samples": tally.kept,
        "excluded": tally.reasons.total(),
        "excluded_by_reason": dict(sorted(tally.reasons.items())),
        "excluded_first": tally.first_of_each_reason(),
        "corrected_labels": tally.corrected,
        "agreements": list(map(asdict, review.agreements)),
        "disagreements": list(map(asdict, review.disagreements)),
        "counts": tally.counts(),
        "labels": tally.labels(),
        "content_hash": content_hash,
        "warnings": list(warnings),
        "seconds": round(seconds, 2),
    }


def several_ranges(source: str, paths: Mapping[int, Sequence[str]]) -> str:
    """A warning for a source whose images have several ranges of pixel values, as one camera's never have.

    paths: bits of the range -> images. Very dark images may have been read in too small a range.
    """
    named = ", ".join(f"{len(those)} of {bits} bits, as {those[0]}" for bits, those in sorted(paths.items()))
    return (
        f"{source}: pixel values of several ranges among the new images ({named}): if one camera made them all, the "
        "images of fewer bits are darker than they are stored: look at them, and leave them out with exclude="
    )


def unmatched_exclusions(unmatched: Sequence[Exclusion], paths: Callable[[], Iterable[str]]) -> list[str]:
    """A warning for the lines of the expert's list that match no sample, with a hint for the first."""
    if not unmatched:
        return []
    examples = ", ".join(shown(exclusion.path or exclusion.id) for exclusion in unmatched[:3])
    hint = _where_is(unmatched[0].path, paths) if unmatched[0].path else ""
    return [f"{len(unmatched)} line(s) of the exclusion list match no image (the first: {examples}){hint}"]


def _where_is(path: str, paths: Callable[[], Iterable[str]]) -> str:
    """' (...)' on a file of that name in another folder, or of a similar name; '' for none."""
    name = path.replace("\\", "/").rpartition("/")[2]
    elsewhere = min((there for there in paths() if there.rpartition("/")[2] == name), default="")
    if elsewhere:
        return f" (there is '{shown(elsewhere)}': paths count from the source's folder)"
    return Names(there.rpartition("/")[2] for there in islice(paths(), COMPARED)).hint(name)


def names_alike(names: Mapping[str, Iterable[str]]) -> list[str]:
    """A warning for two names of one kind that differ in case, blanks or the like. names: source, domain -> names."""
    warnings = []
    for what, those in names.items():
        by_form: dict[str, str] = {}
        for name in sorted(set(those)):
            other = by_form.setdefault(plain(name), name)
            if other != name:
                warnings.append(
                    f"{what}s '{other}' and '{name}' differ only in {difference(other, name)} and count as two; "
                    "declare them under one name if they are one"
                )
    return warnings


def format_report(report: dict[str, Any]) -> str:
    """The report as text: for each domain a table of cell types by split, then exclusions and warnings."""
    blocks = []
    for domain, by_type in report["counts"].items():
        rows = [[domain, *SPLITS, "all"]]
        for cell_type, by_split in by_type.items():
            rows.append([cell_type, *(str(by_split[split]) for split in SPLITS), str(sum(by_split.values()))])
        totals = [sum(by_split[split] for by_split in by_type.values()) for split in SPLITS]
        rows.append(["all", *map(str, totals), str(sum(totals))])
        blocks.append(aligned(rows))
    if report["excluded"]:
        reasons = [[kind, str(count)] for kind, count in report["excluded_by_reason"].items()]
        blocks.append(aligned([["excluded", ""], *reasons, ["all", str(report["excluded"])]]))
        for kind, images in report["excluded_first"].items():
            more = ", ..." if report["excluded_by_reason"][kind] > len(images) else ""
            blocks.append("\n".join([f"{kind}:", *(f"  {image}" for image in images)]) + more)
        blocks.append(aligned(_label_rows(report["labels"])))
    if report["corrected_labels"]:
        blocks.append(f"{report['corrected_labels']} labels corrected by experts")
    if report["agreements"]:
        blocks.append("\n".join(_agreement_lines(report)))
    if report["warnings"]:
        blocks.append("\n".join(f"warning: {warning}" for warning in report["warnings"]))
    blocks.append(
        f"{report['samples']} samples; shards: {report['shards_written']} written, "
        f"{report['shards_kept']} kept, {report['shards_removed']} removed; {report['seconds']} s"
    )
    return "\n\n".join(blocks)


def _agreement_lines(report: dict[str, Any]) -> list[str]:
    """How far experts agree, and the first images on which they do not."""
    lines = []
    for each in report["agreements"]:
        kappa = "not defined" if each["kappa"] is None else f"{each['kappa']:.2f}"
        both = f"{' and '.join(each['experts'])}: {each['images']} images decided by both"
        lines.append(f"{both}, {each['same']} of them alike; Cohen's kappa {kappa}")
    differ = report["disagreements"]
    if differ:
        lines.append(f"{len(differ)} images stay as they are, for the experts disagree:")
        lines += [f"  {each['image']}: {', '.join(each['decisions'])}" for each in differ[:_DISAGREEMENTS]]
        if len(differ) > _DISAGREEMENTS:
            lines.append("  ... (all are in build_report.json)")
    return lines


def _label_rows(labels: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[list[str]]:
    """Source labels with excluded images: their images before and after, and each reason with its number."""
    reasons = sorted({name for of in labels.values() for counts in of.values() for name in counts})
    reasons = [name for name in reasons if name not in ("images", "kept")]
    columns = ["images", *reasons, "kept"]
    lacking = [
        [f"{source}: {label}", *(str(counts.get(name, 0)) for name in columns)]
        for source, of in labels.items()
        for label, counts in of.items()
        if counts["kept"] < counts["images"]
    ]
    totals = [sum(counts.get(name, 0) for of in labels.values() for counts in of.values()) for name in columns]
    return [["label", *columns], *lacking, ["all labels", *map(str, totals)]]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as text, its last row apart; numbers right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        numbers = [value.rjust(width) for value, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *numbers]).rstrip())
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
