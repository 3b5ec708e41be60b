"""The Barcelona set (Acevedo et al. 2020): the folder is the class, the file name's prefix a finer label."""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipeline.cell_types import BARCELONA_FOLDERS, BARCELONA_PROMYELOCYTE
from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, list_images, passed_over
from data_pipeline.sources.labels import refuse_unknown


def survey(declaration: SourceDeclaration) -> Survey:
    """Images below the set's folders. No patients are named, so each image is a group of its own.

    An entry of the label mapping for a prefix (PMY, say) goes before the folder's type.
    """
    paths, others = list_images(declaration.root)
    images: list[RawImage] = []
    unknown: list[str] = []
    for path in paths:
        folder = PurePosixPath(path).parts[0] if "/" in path else ""
        prefix = PurePosixPath(path).name.rpartition(".")[0].split("_")[0]
        cell_type = BARCELONA_FOLDERS.get(folder)
        if prefix == BARCELONA_PROMYELOCYTE and cell_type is not None:
            cell_type = declaration.promyelocytes
        cell_type = declaration.labels.get(prefix, cell_type)
        image = RawImage(path, prefix, cell_type or "", "", declaration.domain, None)
        if cell_type is None and not image.hidden:
            unknown.append(folder)
        images.append(image)
    folders = ", ".join(BARCELONA_FOLDERS)
    refuse_unknown(unknown, declaration.root, f"the Barcelona set has the folders {folders}")
    return Survey(images, passed_over(others, declaration.name))
