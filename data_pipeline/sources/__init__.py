"""Raw images in the layouts they come in: one module for each layout, one form for all that follows."""

from __future__ import annotations

from data_pipeline.sources import barcelona, folder, munich, table
from data_pipeline.sources.declaration import (
    RawImage,
    SourceDeclaration,
    SourceKind,
    Survey,
    check_declaration,
)
from data_pipeline.sources.labels import read_label_mapping

__all__ = [
    "RawImage",
    "SourceDeclaration",
    "SourceKind",
    "Survey",
    "discover",
    "read_label_mapping",
    "survey",
]

_LAYOUTS = {
    "barcelona": barcelona.survey,
    "munich": munich.survey,
    "folder": folder.survey_classes,
    "table": table.survey,
    "unlabelled": folder.survey_unlabelled,
}


def survey(declaration: SourceDeclaration) -> Survey:
    """Find every image of a source and say what was passed over.

    UserError: no such folder or table, no image in it, a label that nobody knows.
    """
    check_declaration(declaration)
    return _LAYOUTS[declaration.kind](declaration)


def discover(declaration: SourceDeclaration) -> list[RawImage]:
    """Every image of a source, sorted by path; raises as `survey` does."""
    return survey(declaration).images
