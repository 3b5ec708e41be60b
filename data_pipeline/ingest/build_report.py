"""The report of a build, as JSON (build_report.json) and as text, and its warnings."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from data_pipeline.catalog import SPLITS, Sample
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest.curate import Exclusion
from data_pipeline.ingest.label_counts import count_labels
from data_pipeline.ingest.review import REVIEWED, Review
from data_pipeline.names import Names, difference, plain, shown

UNLABELLED = "unlabelled"
# No example is named where the reason is the same for all or the user's own.
_NOT_NAMED = ("duplicate", "near duplicate", "hidden file", "expert's list", REVIEWED)
_NAMED = 3  # examples of each other reason
_DISAGREEMENTS = 20  # printed at most


def reason_kind(row: Sample) -> str:
    """The kind of the reason for which a sample is excluded, or its label was corrected; '' for neither."""
    return row.reason.partition(": ")[0]


def count_samples(samples: Iterable[Sample]) -> dict[str, dict[str, dict[str, int]]]:
    """Counts of kept samples: {domain: {cell type or UNLABELLED: {split: count}}}."""
    counted = Counter((row.domain, row.cell_type or UNLABELLED, row.split) for row in samples if row.kept)
    domains = sorted({domain for domain, _, _ in counted})
    present = {(domain, cell_type) for domain, cell_type, _ in counted}
    return {
        domain: {
            cell_type: {split: counted[domain, cell_type, split] for split in SPLITS}
            for cell_type in (*CELL_TYPES, UNLABELLED)
            if (domain, cell_type) in present
        }
        for domain in domains
    }


def make_report(
    samples: Sequence[Sample],
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
    reasons = Counter(reason_kind(row) for row in samples if not row.kept)
    return {
        "shards_written": written,
        "shards_kept": kept,
        "shards_removed": removed,
        "samples": sum(row.kept for row in samples),
        "excluded": reasons.total(),
        "excluded_by_reason": dict(sorted(reasons.items())),
        "excluded_first": _first_of_each_reason(samples),
        "corrected_labels": sum(row.kept and bool(row.reason) for row in samples),
        "agreements": list(map(asdict, review.agreements)),
        "disagreements": list(map(asdict, review.disagreements)),
        "counts": count_samples(samples),
        "labels": count_labels(samples),
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


def unmatched_exclusions(unmatched: Sequence[Exclusion], samples: Sequence[Sample]) -> list[str]:
    """A warning for the lines of the expert's list that match no sample, with a hint for the first."""
    if not unmatched:
        return []
    examples = ", ".join(shown(exclusion.path or exclusion.id) for exclusion in unmatched[:3])
    hint = _where_is(unmatched[0].path, samples) if unmatched[0].path else ""
    return [f"{len(unmatched)} line(s) of the exclusion list match no image (the first: {examples}){hint}"]


def _where_is(path: str, samples: Sequence[Sample]) -> str:
    """' (...)' on a file of that name in another folder, or of a similar name; '' for none."""
    name = path.replace("\\", "/").rpartition("/")[2]
    elsewhere = sorted(row.path for row in samples if row.path.rpartition("/")[2] == name)
    if elsewhere:
        return f" (there is '{shown(elsewhere[0])}': paths count from the source's folder)"
    return Names(row.path.rpartition("/")[2] for row in samples).hint(name)


def names_alike(samples: Sequence[Sample]) -> list[str]:
    """A warning for two sources, or two domains, whose names differ in case, blanks or the like."""
    warnings = []
    for what in ("source", "domain"):
        by_form: dict[str, str] = {}
        for name in sorted({getattr(row, what) for row in samples}):
            other = by_form.setdefault(plain(name), name)
            if other != name:
                warnings.append(
                    f"{what}s '{other}' and '{name}' differ only in {difference(other, name)} and count as two; "
                    "declare them under one name if they are one"
                )
    return warnings


def _first_of_each_reason(samples: Iterable[Sample]) -> dict[str, list[str]]:
    """The first excluded images of each kind of reason, with the reason."""
    named: dict[str, list[str]] = {}
    for row in samples:
        kind = reason_kind(row)
        if not row.kept and kind not in _NOT_NAMED and len(named.setdefault(kind, [])) < _NAMED:
            named[kind].append(f"{row.source}:{row.path}{row.reason.removeprefix(kind)}")
    return dict(sorted(named.items()))


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
