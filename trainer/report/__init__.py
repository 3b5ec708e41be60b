"""Pages that show what a run learned and how it was scored: one self-contained HTML file each."""

from trainer.report.gallery import write_prediction_gallery
from trainer.report.generation_report import write_generation_report
from trainer.report.model_card import MODEL_CARD, write_model_card
from trainer.report.run_report import write_run_report
from trainer.report.stain_report import write_stain_report

__all__ = [
    "MODEL_CARD",
    "write_generation_report",
    "write_model_card",
    "write_prediction_gallery",
    "write_run_report",
    "write_stain_report",
]
