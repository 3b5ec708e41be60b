"""Small trainings of stain.py: stain networks, and the classifiers that judge what they make."""

from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

from data_pipeline.catalog import Dataset
from tests.benchmarks.launch import call

BATCH = 8
# Networks small enough for a CPU, alike in cost; each model keeps the weights and rates of its own configuration.
MODELS = {
    "cyclegan": ("model.generator.width=12", "model.generator.blocks=3", "model.critic.width=24"),
    "w_cyclegan_gp": ("model.generator.width=16", "model.generator.depth=4", "model.critic.width=24"),
    "w_cyclegan_gp_thesis": ("model.generator.width=16", "model.generator.depth=4", "model.critic.width=24"),
}
# For few images: as many generators' moves as can be, where the thesis says "several" of the critics' for each.
CRITIC_STEPS = {"cyclegan": 1, "w_cyclegan_gp": 1, "w_cyclegan_gp_thesis": 2}
# Passes of the classifiers over Barcelona's images, by augmentation.
EPOCHS = {"quarter_turns": 8, "stain": 16}


def train(
    model: str,
    dataset: Dataset,
    run: Path,
    a: str,
    b: str,
    images: int,
    size: int,
    folds: Iterable[int] | None = None,
    crop: dict[str, float] = {},  # noqa: B006 (read only)
) -> Path:
    """Train a stain run until it has seen `images` of each domain."""
    steps = images // (BATCH * CRITIC_STEPS[model])
    arguments = [
        f"shards={dataset.root}",
        f"run={run}",
        f"model={model}",
        f"a={a}",
        f"b={b}",
        f"data.image_size={size}",
        "data.threads=1",
        f"train.global_batch={BATCH}",
        "train.epochs=5",
        f"train.iterations_per_epoch={max(1, steps // 5)}",
        "model.critic.layers=2",
        f"model.critic_steps={CRITIC_STEPS[model]}",
        "model.generator_optimizer.average_decay=0.99",
        *MODELS[model],
        *_cropped(crop),
    ]
    if folds is not None:
        arguments.append(f"folds={{{b}: [{','.join(map(str, folds))}]}}")
    call("train_stain_gan", *arguments)
    return run


def train_judge(
    dataset: Dataset, run: Path, augment: str, size: int, crop: dict[str, float], domain: str = "barcelona"
) -> Path:
    """A classifier of one domain's images, with or without stain augmentation."""
    call(
        "train_classifier",
        f"shards={dataset.root}",
        f"run={run}",
        "model=senet_small_ge",
        f"data.domains=[{domain}]",
        f"data.image_size={size}",
        *_cropped(crop),
        "data.threads=1",
        f"data/augment={augment}",
        "train.global_batch=32",
        f"train.epochs={EPOCHS[augment]}",
        "optimizer.learning_rate=0.002",
        "optimizer.average_decay=0.99",
    )
    return run


def train_on_restained(dataset: Dataset, work: Path, stain_run: Future[Path], half: tuple[int, ...], size: int) -> Path:
    """A classifier of Barcelona's images in Munich's stain, for Munich's images as they are."""
    out = work / f"restained-{half[0]}"
    call("normalize_stains", f"shards={dataset.root}", f"run={stain_run.result()}", f"out={out}", "policy=to_b")
    run = work / f"judge-restained-{half[0]}"
    return train_judge(Dataset.open(out), run, "stain", size, {}, "barcelona_as_munich")


def _cropped(crop: dict[str, float]) -> list[str]:
    return [f"data.crop={{{', '.join(f'{domain}: {share}' for domain, share in crop.items())}}}"] if crop else []
