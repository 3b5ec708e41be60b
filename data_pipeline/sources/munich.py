"""The Munich set (Matek et al. 2019): the folder is a code, the file name starts with code and number."""

import re
from pathlib import PurePosixPath

from data_pipeline.cell_types import MUNICH_CODES
from data_pipeline.sources.declaration import SourceDeclaration, Survey, raw_layout
from data_pipeline.sources.labels import survey_images

MICRONS_PER_PIXEL = 0.07  # of all images: the M8 scanner's 100x oil objective
# BAS_0053_0_6588_109.tiff is an altered copy of BAS_0053.tiff: code and first number name the original.
_ORIGINAL = re.compile(r"([A-Z]{3}_\d+)(?=[_.])")


def original_of(path: str) -> str:
    """Code and first number of the file name, which copies of one original share; '' for any other name."""
    original = _ORIGINAL.match(PurePosixPath(path).name)
    return original.group(1) if original else ""


@raw_layout(
    "munich",
    "AML-Cytomorphology_LMU as downloaded",
    public=True,
    licence="CC BY 3.0. Matek et al. 2019, The Cancer Imaging Archive, doi:10.7937/tcia.2019.36f5o9ld",
    group_of=original_of,
)
def survey(declaration: SourceDeclaration) -> Survey:
    """Group: code and first number, so that copies of one original stay together."""

    def read(path: str) -> tuple[str, str | None, str]:
        code = path.rpartition("/")[0].partition("/")[0]
        return code, declaration.labels.get(code, MUNICH_CODES.get(code)), original_of(path)

    expected = f"the Munich set has the folders {', '.join(MUNICH_CODES)}"
    return survey_images(declaration, read, lambda _: expected, MICRONS_PER_PIXEL)
