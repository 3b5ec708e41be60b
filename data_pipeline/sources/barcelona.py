"""The Barcelona set (Acevedo et al. 2020): the folder is the class, the file name's prefix a finer label."""

from pathlib import PurePosixPath

from data_pipeline.cell_types import BARCELONA_FOLDERS, BARCELONA_PROMYELOCYTE
from data_pipeline.sources.declaration import SourceDeclaration, Survey, raw_layout
from data_pipeline.sources.labels import survey_images


@raw_layout(
    "barcelona",
    "PBC_dataset_normal_DIB as downloaded",
    public=True,
    licence="CC BY 4.0. Acevedo et al. 2020, Data in Brief 30:105474, doi:10.17632/snkd93bnjr.1",
)
def survey(declaration: SourceDeclaration) -> Survey:
    """The set names no patients, so each image is a group of its own.

    The label mapping's entry for a prefix (PMY, say) goes before the folder's type.
    """

    def read(path: str) -> tuple[str, str | None, str]:
        prefix = PurePosixPath(path).name.rpartition(".")[0].split("_")[0]
        folder = path.rpartition("/")[0].partition("/")[0]
        cell_type = BARCELONA_FOLDERS.get(folder)
        if prefix == BARCELONA_PROMYELOCYTE and cell_type is not None:
            cell_type = declaration.promyelocytes
        cell_type = declaration.labels.get(prefix, cell_type)
        return (folder if cell_type is None else prefix), cell_type, ""

    expected = f"the Barcelona set has the folders {', '.join(BARCELONA_FOLDERS)}"
    return survey_images(declaration, read, lambda _: expected)
