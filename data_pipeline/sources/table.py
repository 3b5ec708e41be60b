"""A CSV table of images: image,label and, where they are known, patient, slide and domain."""

from __future__ import annotations

import os
import posixpath

from data_pipeline.errors import UserError
from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, check_domain
from data_pipeline.sources.labels import cell_type_of, read_csv, refuse_unknown

_OPTIONAL = ("patient", "slide", "domain")


def survey(declaration: SourceDeclaration) -> Survey:
    """The images a table lists. Paths count from the table's folder; an empty label means unlabelled.

    Group: the patient, else the slide, else the image itself; names of patients and slides belong to
    this source, so `7` here and `7` in another table are two people. A domain in a row goes before
    the declared one. UserError names the line that is wrong.
    """
    rows = read_csv(declaration.root, required=("image", "label"))
    if not rows:
        raise UserError(f"{declaration.root}: no image in this table; give it a line for each image")
    images: list[RawImage] = []
    unknown: list[str] = []
    missing: list[tuple[int, str]] = []
    folder = str(declaration.folder)
    for line, row in rows:
        if not row["image"]:
            raise UserError(f"{declaration.root}, line {line}: no image named; fill the column image")
        path = posixpath.normpath(row["image"])
        if not os.path.isfile(os.path.join(folder, path)):
            missing.append((line, path))
        patient, slide, domain = (row.get(column, "") for column in _OPTIONAL)
        if domain:
            check_domain(domain, f"{declaration.root}, line {line}")
        group = f"patient {patient}" if patient else f"slide {slide}" if slide else ""
        cell_type = cell_type_of(row["label"], declaration.labels)
        image = RawImage(path, row["label"], cell_type or "", group, domain or declaration.domain, None)
        if cell_type is None and not image.hidden:
            unknown.append(row["label"])
        images.append(image)
    if missing:
        line, path = missing[0]
        raise UserError(
            f"{declaration.root}, line {line}: no such image {path} ({len(missing)} of {len(rows)} missing); "
            f"paths count from {folder}"
        )
    refuse_unknown(unknown, declaration.root, "write cell types in the column label")
    ignored = [column for column in rows[0][1] if column not in ("image", "label", *_OPTIONAL)]
    warnings = [f"{declaration.name}: column(s) not used: {', '.join(ignored)}"] if ignored else []
    return Survey(sorted(images, key=lambda image: (image.path, image.source_label)), warnings)
