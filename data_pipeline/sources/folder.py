"""Folders of images: one folder per class, or no classes at all."""

from __future__ import annotations

from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, list_images, passed_over
from data_pipeline.sources.labels import cell_type_of, refuse_unknown


def survey_classes(declaration: SourceDeclaration) -> Survey:
    """Images below ROOT/<label>/. Folders below the label's own carry no meaning.

    Each image is a group of its own: patients and slides are named in a table.
    """
    paths, others = list_images(declaration.root)
    images: list[RawImage] = []
    unknown: list[str] = []
    for path in paths:
        label = path.split("/")[0] if "/" in path else ""
        # An image that lies in no class folder has no label that a mapping of '' did not give it.
        cell_type = cell_type_of(label, declaration.labels) if label or "" in declaration.labels else None
        image = RawImage(path, label, cell_type or "", "", declaration.domain, None)
        if cell_type is None and not image.hidden:
            unknown.append(label)
        images.append(image)
    refuse_unknown(unknown, declaration.root, "name the class folders after the cell types")
    return Survey(images, passed_over(others, declaration.name))


def survey_unlabelled(declaration: SourceDeclaration) -> Survey:
    """Every image below ROOT, without a label; each a group of its own."""
    paths, others = list_images(declaration.root)
    images = [RawImage(path, "", "", "", declaration.domain, None) for path in paths]
    return Survey(images, passed_over(others, declaration.name))
