"""What a classifier knows of its own limits, as blocks of a page."""

from trainer.metrics.uncertainty import UncertaintyRecord
from trainer.reports.page import Block, Cell, Table, Text, estimate_cell


def uncertainty_blocks(found: UncertaintyRecord | None, words: str) -> list[Block]:
    """Coverage of the sets of types, and how far unknown types are from the training images. words: of the data."""
    if found is None:
        return [Text("No sets of types and no unfamiliarity: the run keeps no uncertainty.safetensors.", warning=True)]
    rows = [
        [
            Cell(f"{100 * each.coverage:g} %"),
            estimate_cell(each.covered),
            estimate_cell(each.size, factor=1, digits=2),
            estimate_cell(each.empty),
        ]
        for each in found.sets
    ]
    caption = (
        f"Sets of types that an image may be (predict.py coverage=), calibrated on validation images ({words}). Where "
        "the classifier is right more often than the coverage asks, the sets of its least sure answers are empty."
    )
    head = ["coverage asked for", "sets with the true type, %", "mean types in a set", "empty sets, %"]
    blocks: list[Block] = [Table(caption, head, rows)]
    share = f"{found.unfamiliar.format()} % ({found.unfamiliar.interval()})"
    caption = (
        f"Unfamiliarity, the distance from the training images: {share} of the scored images are marked out of "
        "distribution, further than 99 % of the validation images"
    )
    rows = [
        [Cell(name), Cell(str(each.count)), Cell(f"{100 * each.unfamiliar:.1f}"), estimate_cell(each.auroc)]
        for name, each in found.unknown.items()
    ]
    caption += f"; below, images of types that the classifier does not know ({words}), and scikit-image's pictures."
    return [*blocks, Table(caption, ["unknown", "images", "marked, %", "AUROC, %"], rows)]
