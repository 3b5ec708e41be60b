"""The thesis's numbers as printed (A. Hazra, 2022), and the one renderer that shows ours beside them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from trainer.reports.page import Cell, Table

Record = TypeVar("Record")


@dataclass(frozen=True)
class ThesisTable:
    """A table or figure of the thesis, cells as text."""

    number: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]  # by the thesis's name of each row; empty text: nothing printed
    remarks: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (row, column) -> what cannot be right

    def value(self, row: str | None, column: str) -> str:
        """The text of a cell; empty where the thesis prints nothing."""
        values = self.rows.get(row or "")
        return values[self.columns.index(column)] if values else ""


@dataclass(frozen=True)
class Column(Generic[Record]):
    """A column of a table that shows ours beside the thesis's."""

    head: str
    ours: Callable[[Record], Cell | str]
    table: ThesisTable | None = None
    of: str = ""  # its column there; default: head


def beside_thesis(
    caption: str,
    columns: Sequence[Column[Record]],
    ours: Sequence[tuple[str, str | None, Record]],
    theirs: Sequence[str] = (),
    first: str = "",
) -> Table:
    """A table with the rows `theirs` of the thesis, then ours: the thesis's number in small type below each of ours.

    ours: name of the row, the thesis's name of it or None, and its record. first: head of the names' column.
    """

    def printed(column: Column[Record], row: str | None) -> str:
        return column.table.value(row, column.of or column.head) if column.table else ""

    def published(column: Column[Record], row: str) -> Cell:
        remark = column.table.remarks.get((row, column.of or column.head), "") if column.table else ""
        return Cell(printed(column, row) or "-", remark)

    def found(column: Column[Record], row: str | None, record: Record) -> Cell:
        cell, number = column.ours(record), printed(column, row)
        if isinstance(cell, str):
            cell = Cell(cell)
        small = "; ".join(filter(None, (cell.small, f"thesis {number}" if number else "")))
        return Cell(cell.text, small)

    rows = [[Cell(row), *(published(column, row) for column in columns)] for row in theirs]
    rows += [[Cell(name), *(found(column, row, record) for column in columns)] for name, row, record in ours]
    return Table(caption, [first, *(column.head for column in columns)], rows)


# Model of configs/model -> the thesis's name of it.
NAMES = {
    "cyclegan": "CycleGAN",
    "pix2pix": "pix2pix",
    "w_cyclegan_gp": "W-CycleGAN-GP",
    "ac_gan": "AC-GAN",
    "cwgan_gp": "CWGAN-GP",
    "info_gan": "InfoGAN",
    "dcgan": "DCGAN",
    "cgan": "CGAN",
    "c_wgan_gp": "C-WGAN-GP",
    "figr": "FIGR",
    "fast_gan": "FastGAN",
    "diff_augment": "DiffAugment",
    "mine_gan": "MineGAN",
    "few_shot_meta": "proposed",
}

# Images of each type after the thesis's removals, all splits together.
TABLE_6 = ThesisTable(
    "6",
    ("images",),
    {
        "basophil": ("1224",),
        "eosinophil": ("3538",),
        "erythroblast": ("1547",),
        "immature granulocyte": ("2933",),
        "lymphocyte": ("5038",),
        "monoblast": ("26",),
        "monocyte": ("2583",),
        "myeloblast": ("3104",),
        "neutrophil": ("10744",),
        "platelet": ("2339",),
        "promyelocyte": ("87",),
        "smudge cell": ("15",),
    },
)
# Stain models; A is Barcelona, B Munich.
TABLE_13 = ThesisTable(
    "13",
    ("training",),
    {"CycleGAN": ("12 h 6 min",), "pix2pix": ("13 h 4 min",), "W-CycleGAN-GP": ("10 h 36 min",)},
)
TABLE_14 = ThesisTable(  # FID
    "14",
    ("A generated", "A reconstructed", "B generated", "B reconstructed"),
    {
        "CycleGAN": ("9.9732", "5.6637", "11.7466", "6.4624"),
        "pix2pix": ("14.5771", "9.8405", "13.5682", "8.3391"),
        "W-CycleGAN-GP": ("4.9834", "3.7155", "4.2130", "3.7126"),
    },
)
TABLE_15 = ThesisTable(  # between a real image and its reconstruction
    "15",
    ("SSIM A", "SSIM B"),
    {"CycleGAN": ("0.9535", "0.9662"), "pix2pix": ("0.9122", "0.9256"), "W-CycleGAN-GP": ("0.9834", "0.9869")},
)
TABLE_16 = ThesisTable(
    "16", ("inception score",), {"CycleGAN": ("88.34",), "pix2pix": ("85.67",), "W-CycleGAN-GP": ("96.26",)}
)
# Conditional models.
TABLE_17 = ThesisTable(
    "17",
    ("training",),
    {
        "AC-GAN": ("11 h 12 min",),
        "CWGAN-GP": ("13 h 10 min",),
        "InfoGAN": ("12 h 33 min",),
        "DCGAN": ("16 h 3 min",),
        "CGAN": ("14 h 2 min",),
        "C-WGAN-GP": ("9 h 13 min",),
    },
)
TABLE_18 = ThesisTable(  # per cent
    "18",
    ("precision", "recall", "F1"),
    {
        "AC-GAN": ("93.98", "92.16", "93.55"),
        "CWGAN-GP": ("87.23", "87.46", "88.74"),
        "InfoGAN": ("91.66", "87.11", "87.46"),
        "DCGAN": ("88.62", "88.90", "88.33"),
        "CGAN": ("94.78", "92.33", "93.60"),
        "C-WGAN-GP": ("97.93", "97.60", "97.15"),
    },
    {("AC-GAN", "F1"): "above the mean of both", ("CWGAN-GP", "F1"): "above the mean of both"},
)
TABLE_19 = ThesisTable(
    "19",
    ("FID", "inception score", "LPIPS"),
    {
        "AC-GAN": ("62.66", "13.32 ± 0.59", "0.28"),
        "CWGAN-GP": ("72.48", "9.83 ± 0.25", "0.36"),
        "InfoGAN": ("70.32", "9.91 ± 0.10", "0.33"),
        "DCGAN": ("77.91", "8.44 ± 0.32", "0.43"),
        "CGAN": ("71.33", "11.59 ± 0.62", "0.32"),
        "C-WGAN-GP": ("57.82", "17.73 ± 0.11", "0.21"),
    },
)
_DISTANCES = {
    "AC-GAN": ("35.62", "0.9134", "12.94", "8.92"),
    "CWGAN-GP": ("33.46", "0.8762", "13.26", "9.11"),
    "InfoGAN": ("29.04", "0.9316", "10.91", "7.47"),
    "DCGAN": ("30.83", "0.9232", "11.63", "8.32"),
    "CGAN": ("29.99", "0.9461", "13.22", "8.11"),
    "C-WGAN-GP": ("40.18", "0.9862", "6.91", "3.26"),
}
TABLE_20 = ThesisTable(  # PSNR in dB, L1 and L2 in per cent
    "20",
    ("PSNR", "SSIM", "L1", "L2"),
    _DISTANCES,
    {(row, "PSNR"): f"RMSE {100 * 10 ** (-float(values[0]) / 20):.1f} %" for row, values in _DISTANCES.items()},
)
# Few-shot models: monoblast, promyelocyte, smudge cell.
TABLE_21 = ThesisTable(
    "21",
    ("FID", "inception score", "LPIPS"),
    {
        "FIGR": ("98.83", "15.77 ± 0.23", "0.6721"),
        "FastGAN": ("67.33", "9.91 ± 0.10", "0.4517"),
        "DiffAugment": ("102.27", "19.52 ± 0.58", "0.7783"),
        "MineGAN": ("88.90", "12.32 ± 0.44", "0.6013"),
        "C-WGAN-GP": ("70.36", "10.03 ± 0.27", "0.5934"),
        "proposed": ("51.62", "3.16 ± 0.28", "0.2956"),
    },
)
TABLE_22 = ThesisTable(
    "22",
    ("time", "episodes", "parameters, millions"),
    {
        "FIGR": ("19 h", "80,000", "11.5"),
        "FastGAN": ("7 h 30 min", "45,000", "7.6"),
        "DiffAugment": ("21 h 12 min", "850,000", "13.4"),
        "MineGAN": ("17 h 13 min", "42,000", "10.2"),
        "C-WGAN-GP": ("8 h 23 min", "40,000", "9.7"),
        "proposed": ("5 h 11 min", "20,000", "5.8"),
    },
)
TABLE_23 = ThesisTable(
    "23",
    ("thesis",),
    {
        "operating system": ("Ubuntu 20.04.2 LTS",),
        "processor": ("Intel Core i7-8700, 3.20 GHz, 12 threads",),
        "graphics": ("GeForce RTX 2080 SUPER",),
        "memory": ("32 GB",),
        "language": ("Python 3.6",),
    },
)
# Arms of the ablation, per cent. Sensitivity and specificity stand in the text beside figures 53 and 54; types: the
# figure with the scores of single types.
FIGURE_58 = ThesisTable(
    "58",
    ("accuracy", "sensitivity", "specificity", "types"),
    {
        "full": ("98.4", "98.58", "98.21", "figure 54"),
        "without_ge": ("96.9", "", "", "figure 60"),
        "without_normalization": ("95.8", "", "", "figure 59"),
        "few_shot_only": ("95.0", "", "", "figure 62"),
        "conditional_only": ("94.3", "", "", "figure 61"),
        "original": ("92.41", "92.66", "92.16", "figure 53"),
    },
)
# Classifiers, by the start of a model's name without its underscores; accuracy of figure 52, training time of table 24.
FIGURE_52 = ThesisTable(
    "52",
    ("accuracy", "sensitivity", "specificity", "training time"),
    {
        "vgg19": ("83.6", "", "", "16 h 22 min"),
        "resnet50": ("85.38", "", "", ""),
        "inceptionv3": ("90.19", "", "", "13 h 11 min"),
        "xception": ("84.2", "", "", ""),
        "efficientnet": ("92.44", "", "", "12 h 47 min"),
        "resnext101": ("93.32", "", "", "10 h 55 min"),
        "naivebayes": ("81.85", "", "", ""),
        "seresnext50": ("95.9", "", "", "9 h 6 min"),
        "sequentialcnn": ("96.83", "", "", ""),
        "senet154ge": ("98.4", "98.58", "98.21", "8 h 3 min"),
    },
)

_SPECIFICITY = (
    "A mean specificity of 98.21 cannot go with 98.4 % accuracy: over twelve types with as many images each it is "
    "1 - 1.6 % / 11 = 99.85."
)
# What cannot be right of the thesis's numbers, by kind of sweep.
SWEEP_REMARKS = {
    "ablation": (
        "The thesis gives 95.0 for few-shot generation alone and 94.3 for C-WGAN-GP alone, and below figure 62 a loss "
        "of 4.1 points for the former, which is that of the latter: one of the two is swapped. The numbers here are "
        "those of the text that goes with figure 58.",
        _SPECIFICITY,
        "It does not say whether generated images were kept out of the test images. Here they are: real ones are "
        "scored.",
    ),
    "comparison": (
        "The training of SENet-154-GE took 8 h 3 min by table 24, 1 h 20 min by the text beside figure 51. Table 24 "
        "makes it the fastest; a step of it is about five times as many multiply-accumulates as one of SE-ResNeXt-50.",
        "VGG-19 at 83.6 and ResNet-50 at 85.38 are far below what such networks reach on one of the two sources alone "
        "(ResNet-18: 98.9 on BloodMNIST at 224 px).",
        _SPECIFICITY,
    ),
}


def sweep_number(kind: str, arm: str, column: str) -> str:
    """What the thesis prints of an arm of a sweep of this kind; empty where it prints nothing."""
    if kind == "ablation":
        return FIGURE_58.value(arm, column) if column in FIGURE_58.columns else ""
    bare = re.sub(r"[^a-z0-9]", "", arm.lower())
    row = next((name for name in FIGURE_52.rows if bare.startswith(name)), None)
    return FIGURE_52.value(row, column) if kind == "comparison" and column in FIGURE_52.columns else ""
