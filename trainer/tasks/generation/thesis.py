"""The thesis's tables 17-22 on generated images, with a row for each evaluation of a bank."""

from collections.abc import Callable, Sequence

from trainer.metrics.bootstrap import Estimate
from trainer.metrics.generation import SetScore
from trainer.reports.page import Block, Cell, Section, Text
from trainer.reports.thesis_tables import Column, beside_thesis, columns_of, rows_of
from trainer.tasks.generation.records import BankEvaluation

_RARE = frozenset({"monoblast", "promyelocyte", "smudge cell"})  # the types of table 21


def thesis_section(records: Sequence[BankEvaluation]) -> Section:
    """Report section with the thesis's tables 17-22: a row for each evaluation of the bank, and which of the thesis's
    numbers cannot be right."""
    rare = [record for record in records if set(record.per_type) <= _RARE]
    moderate = [record for record in records if record not in rare]
    intro = (
        "The thesis's numbers are of its own data and networks, and of a test whose images it does not name; ours "
        "stand below them, each under the name of what it was measured in."
    )
    table_18 = (
        "Table 18: precision, recall and F1 of generated images' types, in per cent; ours by the independent "
        "classifier. A mean F1 cannot exceed the mean of precision and recall."
    )
    table_20 = (
        "Table 20: PSNR in dB, SSIM, L1 and L2 in per cent. Generated images have no true image: ours are to the "
        "nearest real training image of the type. An RMSE is never below the mean absolute difference, so PSNR and L1 "
        "of the thesis cannot be of the same images on one scale."
    )
    inception_note = (
        "Inception scores here are of an unknown classifier: one of eight types gives 8 at the most, and yet six of "
        "these are above it."
    )
    proposed_note = "The proposed model's inception score, 3.16, is the lowest, though called the highest."
    blocks: list[Block] = [
        beside_thesis("Table 17: training times.", _printed("17"), [], rows_of("17")),
        beside_thesis(table_18, agreement_columns(), _ours(records), rows_of("18")),
        beside_thesis("Table 19: eight types, over all.", set_columns("19"), _ours(moderate), rows_of("19")),
        Text(inception_note, warning=True),
        beside_thesis(table_20, distance_columns(), _ours(records), rows_of("20")),
        beside_thesis("Table 21: monoblast, promyelocyte, smudge cell.", set_columns("21"), _ours(rare), rows_of("21")),
        Text(proposed_note, warning=True),
        beside_thesis("Table 22: budgets of the few-shot models.", _printed("22"), [], rows_of("22")),
    ]
    return Section("The thesis's tables 17-22", intro, blocks)


def agreement_columns(suffix: str = "") -> list[Column[BankEvaluation]]:
    """Table 18: does an independent classifier name the type asked for? suffix: of the columns' heads."""

    def of(measure: str) -> Callable[[BankEvaluation], str]:
        return lambda record: _number(type_agreement(record, measure).value, 100, 2)

    measures = (("precision", "precision"), ("recall", "sensitivity"), ("F1", "f1"))
    return [Column(f"{head}{suffix}", of(measure), "18", head) for head, measure in measures]


def type_agreement(record: BankEvaluation, measure: str) -> Estimate:
    """A classifier's score on the generated images of all types, with its interval."""
    scores = record.type_agreement["generated"]
    return Estimate(None) if scores is None else scores[measure]


def set_columns(table: str, heads: Sequence[str] = ()) -> list[Column[BankEvaluation]]:
    """Tables 19 and 21: Fréchet distance, inception score, perceptual distance. heads: default, the thesis's."""

    def perceptual(record: BankEvaluation) -> Cell:
        text = _number(record.all.perceptual["generated_to_real"].mean, 1, 4)
        return Cell(text, _bare(record.perceptual_distance))

    ours = (lambda record: _set_score(record, 0), lambda record: _set_score(record, 2), perceptual)
    return [
        Column(head, function, table, of)
        for head, function, of in zip(heads or columns_of(table), ours, columns_of(table), strict=True)
    ]


def kernel_column() -> Column[BankEvaluation]:
    """Kernel distance (KID), which is unbiased however few images there are; the thesis has none."""
    return Column("kernel distance", lambda record: _set_score(record, 1, digits=4))


def distance_columns(suffix: str = "") -> list[Column[BankEvaluation]]:
    """Table 20: distances to the nearest real training image of the type. suffix: of the columns' heads."""

    def of(measure: str, factor: float, digits: int) -> Callable[[BankEvaluation], str]:
        return lambda record: _number(record.all.nearest_real["generated"][measure].mean, factor, digits)

    measures = (("PSNR", "", 1, 2), ("SSIM", "", 1, 4), ("L1", ", %", 100, 2), ("L2", ", %", 100, 2))
    return [
        Column(f"{name}{unit}{suffix}", of(name.lower(), factor, digits), "20", name)
        for name, unit, factor, digits in measures
    ]


def score_cell(name: str, score: SetScore, digits: int = 2) -> Cell:
    """A score of two sets of images, over its name."""
    deviation = "" if score.deviation is None else f" ± {score.deviation:.{digits}f}"
    return Cell(f"{score.value:.{digits}f}{deviation}", _bare(name))


def _set_score(record: BankEvaluation, place: int, digits: int = 2) -> Cell:
    found = record.all.generation
    return Cell("-") if found is None else score_cell(*list(found.scores.items())[place], digits)


def _printed(table: str) -> list[Column[BankEvaluation]]:
    """Columns of a table that shows the thesis's numbers alone."""
    return [Column(head, lambda _: "", table) for head in columns_of(table)]


def _ours(records: Sequence[BankEvaluation]) -> list[tuple[str, None, BankEvaluation]]:
    return [(f"this bank ({each.generator.name}; {each.feature_space})", None, each) for each in records]


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _bare(score: str) -> str:
    """'Fréchet distance' of 'Fréchet distance [classifier x]': the head of the row names the features."""
    return score.partition(" [")[0]
