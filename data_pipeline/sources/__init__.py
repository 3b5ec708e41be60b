"""Raw images in the layouts they come in: one module for each layout, one form (`Survey`) for all that follows.

How to add a raw layout
-----------------------
A layout is one module in this folder. Nothing else is edited: `build_shards.py` takes the new keyword, its `--help`,
its messages and the audit know it. A data set with one folder for each slide, say, is `clinic.py`:

    from data_pipeline.sources.declaration import SourceDeclaration, Survey, raw_layout
    from data_pipeline.sources.labels import cell_type_of, survey_images

    @raw_layout("clinic", "SLIDE/TYPE_NUMBER.png, as the clinic's scanner names them", public=True)
    def survey(declaration: SourceDeclaration) -> Survey:
        def read(path: str) -> tuple[str, str | None, str]:
            slide, _, name = path.partition("/")
            label = name.partition("_")[0]
            return label, cell_type_of(label, declaration.labels), slide

        return survey_images(declaration, read, lambda paths: "name the images TYPE_NUMBER.png")

and is built by `python launchers/build_shards.py shards=DIR clinic=RAW`. `read` gives an image's label in the source's
own words, its cell type ('' for unlabelled, None for an unknown label, which the user is told) and its group: the
patient, slide or original, whose images all go to one split; '' for a group of its own. A layout that is not a folder
with one label for each image returns its `Survey` itself, as `table.py` does. `RawLayout` explains the options of
`raw_layout`. A module is imported by every start of `build_shards.py`: import nothing heavy at its top.

Begin to read with `declaration.py` (what a source is, what it returns, the registry), then `munich.py`.
"""

from data_pipeline.sources.declaration import (
    RawImage,
    SourceDeclaration,
    Survey,
    check_declaration,
    layouts,
)
from data_pipeline.sources.labels import read_label_mapping

__all__ = ["RawImage", "SourceDeclaration", "Survey", "discover", "layouts", "read_label_mapping", "survey"]


def survey(declaration: SourceDeclaration) -> Survey:
    """Find every image of a source. UserError: no such folder or table, no image in it, an unknown label."""
    check_declaration(declaration)
    return layouts()[declaration.kind].survey(declaration)


def discover(declaration: SourceDeclaration) -> list[RawImage]:
    """Every image of a source, sorted by path; raises as `survey` does."""
    return list(survey(declaration).images)
