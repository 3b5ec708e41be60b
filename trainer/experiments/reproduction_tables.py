"""Tables 6-24 of the thesis with a reproduction's numbers: ours large, the thesis's small below."""

from collections.abc import Callable, Mapping
from typing import Any

from trainer.experiments.reproduction_results import ModelResult, ReproductionSummary, SiteResult
from trainer.experiments.sweep_sections import duration
from trainer.metrics.bootstrap import Estimate
from trainer.metrics.generation import SetScore
from trainer.reports.page import Block, Cell, Table, Text, estimate_cell
from trainer.reports.thesis_tables import Column, beside_thesis, printed, sweep_number, thesis_name
from trainer.tasks.generation.records import BankEvaluation
from trainer.tasks.generation.thesis import (
    agreement_columns,
    distance_columns,
    kernel_column,
    score_cell,
    set_columns,
    type_agreement,
)


def counts_table(summary: ReproductionSummary) -> Table:
    """Table 6: images of each type, and its role."""
    to, of = summary.stains
    roles, counts = summary.roles, summary.counts

    def stain(name: str) -> Callable[[str], str]:
        return lambda cell_type: str(sum(counts[cell_type][name].values()))

    def split(name: str) -> Callable[[str], str]:
        return lambda cell_type: str(sum(each[name] for each in counts[cell_type].values()))

    def role(cell_type: str) -> str:
        return next((kind for kind in ("rare", "moderate", "rich") if cell_type in getattr(roles, kind)), "-")

    columns: list[Column[str]] = [
        *(Column(name, stain(name)) for name in (to, of)),
        *(Column(head, split(name)) for head, name in (("training", "train"), ("validation",) * 2, ("test",) * 2)),
        Column("role", role),
        Column("generated", lambda cell_type: str(roles.lacking.get(cell_type, 0))),
        Column("thesis: images", lambda cell_type: printed("6", cell_type, "images")),
    ]
    caption = (
        "Table 6: real images of each type by stain and split, who makes more of them (moderate: C-WGAN-GP, rare: "
        f"few-shot generation), and how many it makes to bring the type to {roles.per_type}."
    )
    return beside_thesis(caption, columns, [(name, None, name) for name in counts], first="type")


def stain_tables(summary: ReproductionSummary) -> list[Block]:
    """Tables 13-16."""
    to, of = summary.stains
    models = summary.models["stain"]

    def scores(model: ModelResult, stain: str) -> Mapping[str, Any]:
        """Of the direction that ends in A or B."""
        name = f"{of}_as_{to}" if stain == "A" else f"{to}_as_{of}"
        return dict(model.directions[name])

    def set_score(pair: Mapping[str, Any], place: int, digits: int = 2) -> Cell:
        name, score = list(pair["scores"].items())[place]
        return score_cell(name, SetScore(**score), digits)

    def frechet(pair: str, direction: str) -> Callable[[ModelResult], str]:
        return lambda model: set_score(scores(model, direction)[pair], 0).text

    def ssim(direction: str) -> Callable[[ModelResult], str]:
        return lambda model: f"{scores(model, direction)['reconstruction_ssim']['mean']:.4f}"

    def colours(model: ModelResult) -> Cell:
        distance = scores(model, "A")["colour_distance"]
        return Cell(f"{distance['after']:.1f}", f"{distance['before']:.1f} before")

    columns = [
        _training("13"),
        Column("A generated (14)", frechet("generated", "A"), "14", "A generated"),
        Column("A reconstructed (14)", frechet("reconstructed", "B"), "14", "A reconstructed"),
        Column("B generated (14)", frechet("generated", "B"), "14", "B generated"),
        Column("B reconstructed (14)", frechet("reconstructed", "A"), "14", "B reconstructed"),
        Column("SSIM A (15)", ssim("B"), "15", "SSIM A"),
        Column("SSIM B (15)", ssim("A"), "15", "SSIM B"),
        Column(
            "inception score (16)",
            lambda model: set_score(scores(model, "A")["generated"], 2).text,
            "16",
            "inception score",
        ),
        Column("kernel distance", lambda model: set_score(scores(model, "A")["generated"], 1, 4)),
        Column("structure kept", lambda model: f"{scores(model, 'A')['structure']['mean']:.3f}"),
        Column("colour distance", colours),
    ]
    space = _space(models)
    caption = (
        f"Tables 13-16: A is {to}, B {of}, on their test images. (14): Fréchet distances in {space}; the last "
        "four columns are of B given A's stain."
    )
    return [_table(caption, columns, models), *_not_fid(space)]


def conditional_tables(summary: ReproductionSummary) -> list[Block]:
    """Tables 17-20."""
    models = summary.models["conditional"]
    columns = [
        _training("17"),
        *map(_of_record, agreement_columns(" (18)")),
        *map(_of_record, set_columns("19", ("Fréchet (19)", "inception (19)", "perceptual (19)"))),
        _of_record(kernel_column()),
        *map(_of_record, distance_columns(" (20)")),
    ]
    space = _space(models)
    caption = (
        f"Tables 17-20: {next(iter(models.values())).evaluation.bank.count} generated images of each model, types "
        f"{', '.join(summary.roles.moderate)}. (18): per cent, by a classifier of real images alone. (19): in {space}. "
        "(20): to the nearest real training image of the type, as generated ones have no true one."
    )
    notes = (
        "Of the thesis's table 18 an F1 above the mean of precision and recall cannot be (AC-GAN, CWGAN-GP); of table "
        "19 inception scores above 8 are out of reach of a classifier of eight types; in table 20 40 dB mean an RMSE "
        "of 1 %, which cannot go with L1 of 6.9 %."
    )
    return [_table(caption, columns, models), Text(notes, warning=True), *_not_fid(space)]


def few_shot_tables(summary: ReproductionSummary) -> list[Block]:
    """The thesis's tables 21 and 22: quality and cost of the few-shot models."""
    models = summary.models["few_shot"]

    def named(model: ModelResult) -> Cell:
        return estimate_cell(type_agreement(model.evaluation, "accuracy"))

    columns = [
        *map(_of_record, set_columns("21", ("Fréchet (21)", "inception (21)", "perceptual (21)"))),
        _of_record(kernel_column()),
        Column("of the type asked for, %", named),
        Column("training (22)", _duration, "22", "time"),
        Column("steps before adapting (22)", lambda model: str(model.steps), "22", "episodes"),
        Column(
            "parameters, millions (22)",
            lambda model: f"{sum(model.parameters.values()) / 1e6:.2f}",
            "22",
            "parameters, millions",
        ),
        Column("of the generator", lambda model: f"{model.parameters.get('generator', 0) / 1e6:.2f}"),
    ]
    space = _space(models)
    rare = ", ".join(next(iter(models.values())).evaluation.per_type)
    caption = f"Tables 21 and 22: {rare}; distances in {space}, over all these types. Times include the adaptation."
    notes = (
        "The thesis calls its own inception score in table 21, 3.16, the highest; it is the lowest. With so few real "
        "images a Fréchet distance says more of their number than of quality: each bank's own report has the kernel "
        "distance, diversity and copies for each type."
    )
    return [_table(caption, columns, models), Text(notes, warning=True), *_not_fid(space)]


def environment_table(machine: Mapping[str, Any]) -> Table:
    """The thesis's table 23: the machine and the versions of the packages, beside the thesis's."""
    gpu = machine["gpu"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    ours = {
        "operating system": machine["system"],
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "graphics": gpu["name"] if gpu else "none",
        "memory": f"{machine['memory_gib']} GiB",
        "language": f"Python {machine['python']}",
        "packages": packages,
    }
    rows = [
        [Cell(name), Cell(text), Cell(printed("23", name, "thesis") or "not stated")] for name, text in ours.items()
    ]
    return Table("Table 23: the machine that put this report together.", ["", "here", "thesis"], rows)


def site_table(summary: ReproductionSummary) -> Table:
    """Balanced accuracy between the two stains, with and without each part."""
    to, of = summary.stains
    found = {(each.arm, each.trained_on, each.tested_on): each for each in summary.sites}
    arms = {each.arm: each.title for each in summary.sites}

    def column(site: str, stain: str) -> Column[str]:
        any_arm: SiteResult = next(each for each in summary.sites if (each.trained_on, each.tested_on) == (site, stain))
        head = f"{site}, tested on {stain} ({len(any_arm.sensitivity)} types, n={any_arm.count})"
        return Column(head, lambda arm: estimate_cell(score(found.get((arm, site, stain)))))

    def score(result: SiteResult | None) -> Estimate | None:
        return result.balanced_accuracy if result else None

    columns = [column(site, stain) for site in (to, of, "both") for stain in (to, of)]
    caption = (
        "Balanced accuracy in per cent over the types that the classifier knows and the test images have, by what it "
        "learned from; 95 % intervals over groups below."
    )
    return beside_thesis(caption, columns, [(title, None, arm) for arm, title in arms.items()])


def control_table(summary: ReproductionSummary) -> Table:
    """The thesis's protocol beside this project's: what splitting after balancing alone does to the accuracy."""
    arms = {arm.arm: arm for arm in summary.ablation.arms}
    rows = []
    for control in summary.controls:
        record = control.record
        apart = arms[control.arm].scores.overall["accuracy"] if control.arm in arms else None
        generators = "" if control.generator_seed is None else f"generator seed {control.generator_seed}, "
        rows.append(
            [
                Cell(
                    arms[control.arm].title if control.arm in arms else control.arm, f"{generators}seed {control.seed}"
                ),
                estimate_cell(record.scores["accuracy"]),
                Cell(str(record.dataset.count), record.origin_words),
                Cell(f"{100 * record.known_groups / record.dataset.count:.0f} %"),
                estimate_cell(apart),
                Cell(sweep_number("ablation", control.arm, "accuracy") if summary.ablation.of_thesis else "-"),
            ]
        )
    head = ["", "CONTROL: accuracy", "its test images", "of groups trained on", "accuracy, split first", "thesis"]
    caption = "In per cent, intervals below. Split first: real test images apart from the training images, all seeds."
    return Table(caption, head, rows)


def _table(caption: str, columns: list[Column[ModelResult]], models: Mapping[str, ModelResult]) -> Table:
    return beside_thesis(caption, columns, [(name, thesis_name(name), model) for name, model in models.items()])


def _of_record(column: Column[BankEvaluation]) -> Column[ModelResult]:
    """A column of a bank's evaluation as one of the model whose bank it is; the text alone."""

    def text(model: ModelResult) -> str:
        cell = column.ours(model.evaluation)
        return cell if isinstance(cell, str) else cell.text

    return Column(column.head, text, column.table, column.of)


def _training(table: str) -> Column[ModelResult]:
    return Column(f"training ({table})", _duration, table, "training")


def _duration(model: ModelResult) -> str:
    return duration(model.seconds or None)


def _space(models: Mapping[str, ModelResult]) -> str:
    """The space of features that distances are measured in."""
    return next(iter(models.values())).feature_space


def _not_fid(space: str) -> list[Block]:
    """Distances in other features than Inception's are on another scale."""
    if "inception" in space.lower():
        return []
    words = (
        f"Distances and inception scores here are in the features of {space}: of another scale than the thesis's FID."
    )
    return [Text(words, warning=True)]
