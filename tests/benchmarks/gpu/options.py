"""The command line of the GPU benchmark."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Where things lie, and how long the command may take, are no part of what is measured.
_FREE = ("out", "data", "work", "minutes", "parts")


@dataclass(frozen=True)
class Options:
    """See the usage in __main__.py."""

    out: str = ""
    data: str = ""
    work: str = ""
    minutes: float = 9.0
    parts: str = "right,loader,classifier,gans,result"
    image_size: int = 224
    seconds: float = 2.0
    repeats: int = 2
    loader_batch: int = 256
    workers: int = 0
    models: str = "senet154_ge,resnet50"
    batch: int = 64
    precision: str = "auto"
    compile: bool = True
    memory_cap: float = 8.0
    capped_micro_batch: int = 16
    gans: str = (
        "w_cyclegan_gp,c_wgan_gp,few_shot_meta,cyclegan,pix2pix,ac_gan,cwgan_gp,cgan,dcgan,info_gan,figr,mine_gan"
    )
    gan_steps: int = 5
    gan_settings: str = ""
    result_model: str = "senet154_ge"
    result_domain: str = "barcelona"
    result_steps: int = 0
    result_settings: str = ""
    weights: str = ""

    @property
    def work_folder(self) -> Path:
        """Runs, copies of images, folders of the contenders: nothing that anybody keeps."""
        return Path(self.work) if self.work else Path(self.out).with_suffix(".work")

    @property
    def loader_workers(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def gan_overrides(self) -> list[str]:
        return self.gan_settings.split(",") if self.gan_settings else []

    @property
    def result_overrides(self) -> list[str]:
        return self.result_settings.split(",") if self.result_settings else []

    def measured(self) -> dict[str, Any]:
        """What a result follows from: equal for every start that goes on with it."""
        measured = {name: value for name, value in asdict(self).items() if name not in _FREE}
        return measured | {"weights": Path(self.weights).name}
