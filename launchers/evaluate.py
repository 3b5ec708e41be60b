"""Score a run on real images of a data set, or a bank of generated images against them, and renew its report.

usage:
  accelerate launch launchers/evaluate.py run=DIR [shards=DIR] [split=test] [domain=NAME]
      run=DIR       a run of train_classifier.py, whose best checkpoint is scored, of train_stain_gan.py or
                    train_detector.py.
                    run=[A,B]: runs of train_classifier.py that answer together, see predict.py; run=shipped: the
                    classifier that comes with the installation
      out=DIR       receives the scores and report.html; several runs and run=shipped need it; default: the run
      views=1       or 2, 4, 8 views of each image, see predict.py
      shards=DIR    the data set, a folder or a URL (cache=DIR cache_size=GB); default: the one of the run's training
      split=test    or validation, train, all
      domain=NAME   only the images of this stain
      seen_images=leave_out   leave out images that the run, or what it began with, was trained on or chosen by, their
                    copies (other files, sizes, mirrored) and images of their patients or slides; the record says
                    so; default: refuse
      folds=[0,1]   only the images of these folds, of five
      corruptions=true  score the images of a classifier blurred, noisy, compressed, coarse, brighter, darker, paler
                    and with other stains, too; takes 34 times as long
      features=RUN  for a stain run: a run of train_classifier.py whose features are compared, or
                    features=inception, the network of FID, with inception_weights=FILE, torch-fidelity's file
                    (default: the one in torch's cache; nothing is downloaded)
  python launchers/evaluate.py bank=DIR shards=DIR classifier=RUN [features=inception] [lpips_weights=FILE]
      bank=DIR        images of synthesize.py, of the types that the data set has real images of
      classifier=RUN  the independent judge: a run of train_classifier.py that has seen real images alone
      features=RUN    what sets of images are compared in: another run, or inception; default: the classifier's
      lpips_weights=FILE  torchvision's AlexNet, for LPIPS; default: the one in torch's cache, else a perceptual
                      distance in the classifier's feature maps takes its place, under a name of its own
  A classifier's probabilities are calibrated by the temperature in RUN/calibration.json for this number of views.
  Writes RUN/evaluation/metrics.json for the run's own test split, RUN/evaluation/<data set>-<split>-<domain>.json
  for anything else (with -views8 at its end for eight views), RUN/model_card.md and RUN/report.html; for a bank
  BANK/evaluation, BANK/report.html and scores of each image into the bank, which balance.py can choose by.

example:
  accelerate launch launchers/evaluate.py run=runs/barcelona shards=data/blood split=all domain=munich
  python launchers/evaluate.py run=runs/stain features=runs/barcelona
  python launchers/evaluate.py bank=banks/moderate shards=data/blood classifier=runs/barcelona features=inception
"""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from launchers.console import launch, read_config
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.run_directory import read_run_config


def main(arguments: Sequence[str]) -> None:
    config = read_config(EvaluateConfig, "evaluate", arguments)
    if bool(config.run) == bool(config.bank):
        raise UserError(
            "evaluate.py needs run=DIR, a run of train_classifier.py, train_stain_gan.py or train_detector.py, or "
            "bank=DIR of synthesize.py, but not both"
        )
    if config.bank:
        _refuse_other_than_test(config)
    else:
        _refuse_other_than_classifiers(config)
    _require_folders(config)
    # Here, for neither --help nor a mistake need wait for torch.
    from trainer.learners.topology import join_processes
    from trainer.runs import registry

    if config.bank:
        from trainer.tasks.generation.scoring import score_bank

        score_bank(Path(config.bank), config, join_processes())
        return
    run = config.runs[0]
    registry.task(str(read_run_config(run).get("kind")), str(run)).evaluate(run, config, join_processes())


def _refuse_other_than_classifiers(config: EvaluateConfig) -> None:
    """UserError for an ensemble, views or out= of what is no classifier, and for out= that is missing."""
    if not config.out and (len(config.runs) > 1 or config.run == "shipped"):
        raise UserError("evaluate.py of several runs, or of run=shipped, needs out=DIR, where the scores are written")
    for run in config.runs:
        kind = read_run_config(run).get("kind")
        if kind != "classification" and (len(config.runs) > 1 or config.views > 1 or config.out):
            raise UserError(f"{run}: only runs of train_classifier.py are scored together, by views= or into out=")


def _refuse_other_than_test(config: EvaluateConfig) -> None:
    """UserError for missing arguments of a bank's evaluation, and for those it does not take."""
    if not config.shards or not config.classifier:
        raise UserError(
            f"{config.bank}: give shards=DIR, real images, and classifier=RUN, trained on real images alone"
        )
    if config.split != "test" or config.domain is not None or config.folds is not None:
        raise UserError(
            f"{config.bank}: a bank is scored against its types' test images: leave out split=, domain= and folds="
        )
    if config.views > 1 or config.out:
        raise UserError(f"{config.bank}: views= and out= are for runs of train_classifier.py: leave them out")


def _require_folders(config: EvaluateConfig) -> None:
    """UserError for a folder of the wrong kind."""
    if config.bank and not Path(config.bank).is_dir():
        raise UserError(f"{config.bank}: no image bank here; make one with launchers/synthesize.py")
    config.require_dataset()
    for run in (config.classifier, config.features):
        if run and run != "inception":
            read_run_config(Path(run))


if __name__ == "__main__":
    launch(main, __doc__)
