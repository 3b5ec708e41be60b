"""Whole fields of view with their boxes, for detectors: a field is an image, its label lists the boxes."""

import json
from collections.abc import Sequence

from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.sources.annotations import Box, image_size, names_of, read_annotations
from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, raw_layout
from data_pipeline.sources.fields import field_of, kind_of
from data_pipeline.sources.labels import refuse_unknown


@raw_layout("whole_fields", "whole fields with boxes, for train_detector.py", group_of=field_of, annotated=True)
def survey(declaration: SourceDeclaration) -> Survey:
    """Every annotated field, without a cell type. Group: the field, as for the cells of `fields`.

    Its label in the catalogue is the text of its boxes (`boxes_as_text`). It is part of the shard, so other boxes are
    another data set. UserError for a box of an unknown name, and for an annotation of a picture of another size.
    """
    fields, warnings = read_annotations(declaration.root, declaration.annotations)
    unknown = [name for name in names_of(fields) if kind_of(name, declaration.labels) is None]
    refuse_unknown(unknown, declaration.root, "call boxes WBC, RBC, Platelets or a cell type", declaration.labels)
    images = []
    for field in fields:
        width, height = image_size(on_disk(declaration.root, field.path))
        if width and (width, height) != (field.width, field.height):
            raise UserError(
                f"{declaration.root}: {field.path} has {width}x{height} pixels, its annotation says "
                f"{field.width}x{field.height}: bring back the picture that was annotated, or annotate this one"
            )
        label = boxes_as_text([(str(kind_of(box.name, declaration.labels)), box) for box in field.boxes])
        images.append(RawImage(field.path, label, "", field.path, declaration.domain, None))
    return Survey(images, [f"{declaration.name}: {warning}" for warning in warnings])


def boxes_as_text(boxes: Sequence[tuple[str, Box]]) -> str:
    """Boxes and their kinds as JSON: [[kind, left, top, right, bottom], ...], sorted."""
    return json.dumps(sorted([kind, box.left, box.top, box.right, box.bottom] for kind, box in boxes))


def boxes_from_text(text: str) -> list[Box]:
    """The boxes of a field, named by their kinds. ValueError for the label of an image that is no field."""
    try:
        return [Box(kind, *edges) for kind, *edges in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"no field with boxes: {error}") from None
