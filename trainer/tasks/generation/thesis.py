"""The thesis's tables 17-22 on generated images, with the scores of a bank in a row of their own."""

from collections.abc import Mapping, Sequence

from trainer.reports.page import Block, Cell, Section, Table, Text
from trainer.tasks.generation.records import BankEvaluation

# Table 17, by the model's name in the thesis.
TIMES = {
    "AC-GAN": "11 h 12 min",
    "CWGAN-GP": "13 h 10 min",
    "InfoGAN": "12 h 33 min",
    "DCGAN": "16 h 3 min",
    "CGAN": "14 h 2 min",
    "C-WGAN-GP": "9 h 13 min",
}
AGREEMENT = {  # table 18: precision, recall, F1
    "AC-GAN": (93.98, 92.16, 93.55),
    "CWGAN-GP": (87.23, 87.46, 88.74),
    "InfoGAN": (91.66, 87.11, 87.46),
    "DCGAN": (88.62, 88.90, 88.33),
    "CGAN": (94.78, 92.33, 93.60),
    "C-WGAN-GP": (97.93, 97.60, 97.15),
}
SETS = {  # table 19: FID, inception score, LPIPS
    "AC-GAN": ("62.66", "13.32 ± 0.59", "0.28"),
    "CWGAN-GP": ("72.48", "9.83 ± 0.25", "0.36"),
    "InfoGAN": ("70.32", "9.91 ± 0.10", "0.33"),
    "DCGAN": ("77.91", "8.44 ± 0.32", "0.43"),
    "CGAN": ("71.33", "11.59 ± 0.62", "0.32"),
    "C-WGAN-GP": ("57.82", "17.73 ± 0.11", "0.21"),
}
DISTANCES = {  # table 20: PSNR in dB, SSIM, L1 and L2 in per cent
    "AC-GAN": (35.62, 0.9134, 12.94, 8.92),
    "CWGAN-GP": (33.46, 0.8762, 13.26, 9.11),
    "InfoGAN": (29.04, 0.9316, 10.91, 7.47),
    "DCGAN": (30.83, 0.9232, 11.63, 8.32),
    "CGAN": (29.99, 0.9461, 13.22, 8.11),
    "C-WGAN-GP": (40.18, 0.9862, 6.91, 3.26),
}
FEW_SHOT = {  # table 21: FID, inception score, LPIPS
    "FIGR": ("98.83", "15.77 ± 0.23", "0.6721"),
    "FastGAN": ("67.33", "9.91 ± 0.10", "0.4517"),
    "DiffAugment": ("102.27", "19.52 ± 0.58", "0.7783"),
    "MineGAN": ("88.90", "12.32 ± 0.44", "0.6013"),
    "C-WGAN-GP": ("70.36", "10.03 ± 0.27", "0.5934"),
    "proposed": ("51.62", "3.16 ± 0.28", "0.2956"),
}
BUDGETS = {  # table 22: time, episodes, millions of parameters
    "FIGR": ("19 h", "80,000", "11.5"),
    "FastGAN": ("7 h 30 min", "45,000", "7.6"),
    "DiffAugment": ("21 h 12 min", "850,000", "13.4"),
    "MineGAN": ("17 h 13 min", "42,000", "10.2"),
    "C-WGAN-GP": ("8 h 23 min", "40,000", "9.7"),
    "proposed": ("5 h 11 min", "20,000", "5.8"),
}
_RARE = frozenset({"monoblast", "promyelocyte", "smudge cell"})  # the types of table 21


def thesis_section(records: Sequence[BankEvaluation]) -> Section:
    """Tables 17-22, each with a row for each evaluation of the bank; what cannot be right is noted."""
    rare = [record for record in records if set(record.per_type) <= _RARE]
    moderate = [record for record in records if record not in rare]
    blocks: list[Block] = [
        Table("Table 17: training times.", ["", *TIMES], [[Cell("time"), *map(Cell, TIMES.values())]]),
        _table_18(records),
        _table_of_sets("Table 19: eight types, over all.", SETS, moderate),
        Text(
            "Inception scores here are of an unknown classifier: one of eight types gives 8 at the most, and yet six "
            "of these are above it.",
            warning=True,
        ),
        _table_20(records),
        _table_of_sets("Table 21: monoblast, promyelocyte, smudge cell.", FEW_SHOT, rare),
        Text("The proposed model's inception score, 3.16, is the lowest, though called the highest.", warning=True),
        Table(
            "Table 22: budgets of the few-shot models.",
            ["", "time", "episodes", "parameters, millions"],
            [[Cell(name), *map(Cell, values)] for name, values in BUDGETS.items()],
        ),
    ]
    intro = (
        "The thesis's numbers are of its own data and networks, and of a test whose images it does not name; ours "
        "stand below them, each under the name of what it was measured in."
    )
    return Section("The thesis's tables 17-22", intro, blocks)


def _table_18(records: Sequence[BankEvaluation]) -> Table:
    rows = []
    for name, (precision, recall, f1) in AGREEMENT.items():
        impossible = f1 > (precision + recall) / 2 + 0.005
        note = "above the mean of both" if impossible else ""
        rows.append([Cell(name), Cell(f"{precision:.2f}"), Cell(f"{recall:.2f}"), Cell(f"{f1:.2f}", note)])
    for record in records:
        scores = record.type_agreement["generated"]
        values = [None if scores is None else scores[measure].value for measure in ("precision", "sensitivity", "f1")]
        rows.append([Cell(_name(record)), *(_number(value, 2, 100) for value in values)])
    caption = (
        "Table 18: precision, recall and F1 of generated images' types, in per cent; ours by the independent "
        "classifier. A mean F1 cannot exceed the mean of precision and recall."
    )
    return Table(caption, ["", "precision", "recall", "F1"], rows)


def _table_of_sets(caption: str, published: Mapping[str, tuple[str, ...]], records: Sequence[BankEvaluation]) -> Table:
    rows = [[Cell(name), *map(Cell, values)] for name, values in published.items()]
    for record in records:
        cells = [Cell("-")] * 2
        if record.all.generation is not None:
            frechet, _, inception = map(_bare, record.all.generation.scores)
            score = record.all.generation.inception
            cells = [
                Cell(f"{record.all.generation.frechet.value:.2f}", frechet),
                Cell(f"{score.value:.2f} ± {score.deviation:.2f}", inception),
            ]
        distance = record.all.perceptual["generated_to_real"].mean
        cells.append(Cell("-" if distance is None else f"{distance:.4f}", _bare(record.perceptual_distance)))
        rows.append([Cell(_name(record)), *cells])
    return Table(caption, ["", "FID", "inception score", "LPIPS"], rows)


def _table_20(records: Sequence[BankEvaluation]) -> Table:
    rows = []
    for name, (psnr, ssim, l1, l2) in DISTANCES.items():
        implied = 100 * 10 ** (-psnr / 20)
        cells = [Cell(f"{psnr:.2f}", f"RMSE {implied:.1f} %"), Cell(f"{ssim:.4f}"), _number(l1, 2), _number(l2, 2)]
        rows.append([Cell(name), *cells])
    for record in records:
        found = {name: each.mean for name, each in record.all.nearest_real["generated"].items()}
        cells = [_number(found["psnr"], 2), _number(found["ssim"], 4)]
        rows.append([Cell(_name(record)), *cells, _number(found["l1"], 2, 100), _number(found["l2"], 2, 100)])
    caption = (
        "Table 20: PSNR in dB, SSIM, L1 and L2 in per cent. Generated images have no true image: ours are to the "
        "nearest real training image of the type. An RMSE is never below the mean absolute difference, so PSNR and L1 "
        "of the thesis cannot be of the same images on one scale."
    )
    return Table(caption, ["", "PSNR", "SSIM", "L1", "L2"], rows)


def _name(record: BankEvaluation) -> str:
    return f"this bank ({record.generator.name}; {record.feature_space})"


def _bare(score: str) -> str:
    """'Fréchet distance' of 'Fréchet distance [classifier x]': the row's first cell names the space."""
    return score.partition(" [")[0]


def _number(value: float | None, digits: int, factor: float = 1) -> Cell:
    return Cell("-" if value is None else f"{factor * value:.{digits}f}")
