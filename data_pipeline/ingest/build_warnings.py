"""What a build says of names that are not what their writer took them for."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.catalog import Sample
from data_pipeline.ingest.curate import Exclusion
from data_pipeline.names import Names, difference, plain, shown


def unmatched_exclusions(unmatched: Sequence[Exclusion], samples: Sequence[Sample]) -> list[str]:
    """A warning for the lines of the expert's list that name no sample, with what the first may mean."""
    if not unmatched:
        return []
    examples = ", ".join(shown(exclusion.path or exclusion.id) for exclusion in unmatched[:3])
    hint = _where_is(unmatched[0].path, samples) if unmatched[0].path else ""
    return [f"{len(unmatched)} line(s) of the exclusion list match no image (the first: {examples}){hint}"]


def _where_is(path: str, samples: Sequence[Sample]) -> str:
    """' (...)' on a file of that name in another folder, or of a name that is near; '' where there is none."""
    name = path.replace("\\", "/").rpartition("/")[2]
    elsewhere = sorted(row.path for row in samples if row.path.rpartition("/")[2] == name)
    if elsewhere:
        return f" (there is '{shown(elsewhere[0])}': paths count from the source's folder)"
    return Names(row.path.rpartition("/")[2] for row in samples).hint(name)


def names_alike(samples: Sequence[Sample]) -> list[str]:
    """A warning for sources, and for domains, whose names only a machine tells apart: they are two all the same."""
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
