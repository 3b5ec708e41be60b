"""The page of a bank of generated images: its scores, what they are of, samples, and the images nearest to copies."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from trainer.metrics.records import read_record
from trainer.reports.evaluation_section import seen_words
from trainer.reports.page import Block, Cell, Facts, Section, Table, Text, estimate_cell, sheet_figure, write_page
from trainer.tasks.generation.records import BankEvaluation, BankScores
from trainer.tasks.generation.thesis import thesis_section

_SIDES = {"generated": "generated", "test": "real test"}
_DISTANCES = {"psnr": ("PSNR, dB", 1, 2), "ssim": ("SSIM", 1, 4), "l1": ("L1, %", 100, 2), "l2": ("L2, %", 100, 2)}
_PAIRS = {
    "generated_to_real": "generated to real",
    "within_generated": "within generated",
    "within_real": "within real",
}
_AGREEMENT = {"precision": "precision", "sensitivity": "recall", "f1": "F1"}
_MANIFOLD = ("precision", "recall", "density", "coverage")
_NOTHING = Cell("-")


def write_generation_report(root: Path) -> Path:
    """Write ROOT/report.html from a bank's evaluations and return it. UserError where none is, or one is damaged."""
    paths = sorted((root / "evaluation").glob("*.json"))
    if not paths:
        raise UserError(f"{root}: not scored yet: launchers/evaluate.py bank=... first")
    records = [read_record(BankEvaluation, path) for path in paths]
    sections = [_section(record, path.with_suffix("")) for record, path in zip(records, paths, strict=True)]
    subtitle = "Generated images: how near they are to real ones, and whether they are copies."
    title = f"Image bank {root.resolve().name}"
    return write_page(root / "report.html", title, subtitle, [], [*sections, thesis_section(records)])


def _section(record: BankEvaluation, sheets: Path) -> Section:
    blocks: list[Block] = [_facts(record), *_warnings(record)]
    blocks += [_sets(record), _agreement(record), _perceptual(record), _nearest(record)]
    blocks += [_memorization(record, "pixels"), _memorization(record, "features"), _shortcut(record)]
    for path in sorted(sheets.glob("samples-*.png")):
        cell_type = path.stem.removeprefix("samples-").replace("_", " ")
        blocks.append(sheet_figure(path, f"{cell_type}: real test images, generated images."))
    for path in sorted(sheets.glob("nearest-*.png")):
        caption = (
            f"Generated images nearest to training images, in {path.stem.removeprefix('nearest-')}: the training image "
            "is shown as it was turned or mirrored to match; below the type their distances."
        )
        blocks.append(sheet_figure(path, caption))
    words = f"{record.bank.count} generated images against {record.all.count.test} real ones"
    intro = f"{words}: {record.dataset.name}, {record.dataset.split} split."
    return Section(f"Scores in {record.feature_space}", intro, blocks)


def _facts(record: BankEvaluation) -> Facts:
    bank, data, generator, judge = record.bank, record.dataset, record.generator, record.classifier
    count = record.all.count
    crop = ", ".join(f"{domain} {share}" for domain, share in record.crop.items()) or "none"
    made_by = record.made_by
    return Facts(
        [
            ("bank", f"{bank.path} (content {bank.content_hash[:12]}), filed under {bank.domain}"),
            ("generated images", f"{bank.count} of {bank.image_size} px"),
            ("generator", f"{generator.name}, checkpoint {record.checkpoint.sha256[:12]}, seed {generator.seed}"),
            ("data set", f"{data.path} (content {data.content_hash[:12]})"),
            ("made by", made_by if isinstance(made_by, str) else json.dumps(made_by, sort_keys=True)),
            (
                "real images",
                f"{data.split} split ({count.test}) to compare with, training split ({count.train}) to look for "
                f"copies; domains: {', '.join(data.domains)}; crop: {crop}",
            ),
            (
                "classifier",
                f"{judge.run}: {judge.name}, {judge.checkpoint.file} (SHA-256 {judge.checkpoint.sha256[:12]}), "
                f"learned from data set {judge.dataset_hash[:12]}, {judge.image_size} px",
            ),
            ("features", record.feature_space),
            ("unseen", seen_words(record.seen_images)),
            ("perceptual distance", record.perceptual_distance),
            ("size", f"real images are read at the bank's, {bank.image_size} px, cropped as its generator's were"),
        ]
    )


def _warnings(record: BankEvaluation) -> list[Block]:
    texts = []
    if not record.generator.learned_from_this_data_set:
        texts.append(
            "The generator learned from another data set: copies of images that are not in this one stay unseen, "
            "and some of this one's test images may have been shown to it."
        )
    texts += [
        f"{name}: fewer than two test images: nothing to compare with."
        for name, scores in record.rows.items()
        if scores.generation is None
    ]
    few = [name for name, scores in record.rows.items() if scores.generation is not None and scores.generation.too_few]
    if few:
        texts.append(
            f"Fewer images than features on one side ({', '.join(few)}): their Fréchet distance depends more on the "
            "number of images than on their quality; the kernel distance does not."
        )
    return [Text(text, warning=True) for text in texts]


def _table(
    record: BankEvaluation, caption: str, head: Sequence[str], cells: Callable[[str, BankScores], Iterable[Cell]]
) -> Table:
    """A row for each type and for all together."""
    rows = [[Cell(name), *cells(name, scores)] for name, scores in record.rows.items()]
    return Table(caption, ["type", *head], rows)


def _sets(record: BankEvaluation) -> Table:
    names = next((list(scores.generation.scores) for scores in record.rows.values() if scores.generation), [])
    caption = (
        "Sets of generated images against real test images of the type. Over all: as many of each type on either side. "
        f"Precision, recall, density and coverage with k = {record.neighbours}; ± over subsets (of half the smaller "
        "side) or splits."
    )

    def cells(name: str, scores: BankScores) -> Iterable[Cell]:
        yield from (Cell(str(scores.count.generated)), Cell(str(scores.count.test)))
        for each in names:
            found = scores.generation.scores[each] if scores.generation else None
            spread = "" if found is None or found.deviation is None else f"± {found.deviation:.2g}"
            yield _NOTHING if found is None else Cell(f"{found.value:.4g}", spread)
        yield from (_number(getattr(scores.manifold, each, None), 3) for each in _MANIFOLD)

    return _table(record, caption, ["generated", "real", *names, *_MANIFOLD], cells)


def _agreement(record: BankEvaluation) -> Table:
    caption = (
        "How an independent classifier, trained on real images alone, names the images (table 18), in per cent with "
        "95 % intervals; label: the type asked for. Beside it its answers to real test images. Over all: the mean "
        "over the types."
    )

    def cells(name: str, _: BankScores) -> Iterable[Cell]:
        for side in _SIDES:
            scores = record.type_agreement[side]
            found = scores if scores is None or name == "all" else scores.per_type[name]
            yield _NOTHING if found is None else Cell(str(found.count))
            yield from (estimate_cell(None if found is None else found[measure]) for measure in _AGREEMENT)

    return _table(record, caption, _by_side(["images", *_AGREEMENT.values()]), cells)


def _perceptual(record: BankEvaluation) -> Table:
    caption = (
        f"Mean {record.perceptual_distance} of pairs within a type. Generated images as diverse as real ones are as "
        "far from each other as those; nearer means collapsed. Over all: the mean over the types."
    )

    def cells(_: str, scores: BankScores) -> Iterable[Cell]:
        for found in (scores.perceptual[key] for key in _PAIRS):
            yield Cell("-" if found.mean is None else f"{found.mean:.4f}", f"{found.count} pairs")

    return _table(record, caption, list(_PAIRS.values()), cells)


def _nearest(record: BankEvaluation) -> Table:
    caption = (
        "To the nearest real training image of the type (table 20), mirrors and quarter turns included, nearest by the "
        "root mean square difference at 32 px. There is no true image to compare with: being nearer than real test "
        "images are is no merit but a sign of copies."
    )

    def cells(_: str, scores: BankScores) -> Iterable[Cell]:
        for found in (scores.nearest_real.get(side) for side in _SIDES):
            for key, (_title, factor, digits) in _DISTANCES.items():
                yield _number(None if found is None else found[key].mean, digits, factor)

    return _table(record, caption, _by_side([title for title, _, _ in _DISTANCES.values()]), cells)


def _memorization(record: BankEvaluation, space: str) -> Table:
    share = 100 * record.quantile
    caption = (
        f"Copies, in {space}: generated images nearer to a training image of their type than {100 - share:g} % of the "
        f"real test images are; of an honest generator about {share:g} %. z: Mann-Whitney, below -3 the generated "
        "images lie nearer as a whole. Mirrors and quarter turns count as the same image. Test images come from other "
        "patients than training images: a share somewhat above is no proof, the pairs below show."
    )
    head = ["suspiciously near", "threshold", "held-out images", "median, generated", "median, held-out", "z"]

    def cells(_: str, scores: BankScores) -> Iterable[Cell]:
        found = scores.memorization[space]
        if found is None:
            return [_NOTHING] * len(head)
        threshold, *medians = (
            Cell("" if value is None else f"{value:.4g}")
            for value in (found.threshold, found.generated_median, found.held_out_median)
        )
        return [
            Cell(f"{100 * found.suspicious:.1f} %", f"of {found.generated}"),
            threshold,
            Cell(str(found.held_out), "too few" if found.too_few else ""),
            *medians,
            Cell("" if found.z is None else f"{found.z:.1f}"),
        ]

    return _table(record, caption, head, cells)


def _shortcut(record: BankEvaluation) -> Table:
    head = [
        f"{each.image_size} px, {way}: {measure}"
        for each in record.all.shortcut
        for way in ("as stored", "same way")
        for measure in ("balanced accuracy", "AUROC")
    ]
    caption = (
        "Whether gradient boosting on colours, spectrum and block steps tells generated from real training images, in "
        "per cent with 95 % intervals, cross-validated over groups; 50: it cannot; '-': too few images. As stored: as "
        "a classifier sees them that learns from both; near 100 it can learn what is generated instead of the cell. "
        "Same way: the real images too were brought to the bank's size first, which leaves what the generator does; "
        "where only the first is high, build the data set with stored_size at the bank's size."
    )

    def cells(_: str, scores: BankScores) -> Iterable[Cell]:
        for found in (way for each in scores.shortcut for way in (each.as_stored, each.same_way)):
            yield from (estimate_cell(getattr(found, measure, None)) for measure in ("balanced_accuracy", "auroc"))

    return _table(record, caption, head, cells)


def _by_side(columns: Sequence[str]) -> list[str]:
    return [f"{side}: {column}" for side in _SIDES.values() for column in columns]


def _number(value: float | None, digits: int, factor: float = 1) -> Cell:
    return _NOTHING if value is None else Cell(f"{factor * value:.{digits}f}")
