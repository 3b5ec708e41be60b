"""Reading of generated and real images: real ones as the generator read them, generated ones as if stored."""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.dlpack import from_dlpack

from data_pipeline.banks.balance import stored_side
from data_pipeline.banks.image_bank import ImageBank
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.shards.writer import ShardSettings, encode_pixels
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.pipeline import GraphConfig, GraphInputs, build_graph
from data_pipeline.stream.stream import Stream, Topology

Integers = npt.NDArray[np.int64]

_BATCH = 64


@dataclass(frozen=True)
class ImageReader:
    """Reads a bank's images and the real images of a data set: uint8 [n, 3, size, size] on the CPU.

    Real images are read as the bank's generator read them: its domains, its crop.
    """

    bank: ImageBank
    dataset: Dataset
    topology: Topology
    left_out: Collection[str] = ()  # ids of real images to skip

    @cached_property
    def config(self) -> StreamConfig:
        """How the generator read its images, at the bank's size. UserError when none of its domains is here."""
        data = self.bank.made_by.get("config", {}).get("data", {})
        here = set(self.dataset.samples(columns=["domain"])["domain"])
        domains = data.get("domains")
        if domains is not None and not here & set(domains):
            raise UserError(
                f"{self.dataset.root}: no image of {', '.join(domains)}, which the bank's generator learned from: give "
                "shards= the data set that it learned from"
            )
        return StreamConfig(
            image_size=self.bank.image_size,
            domains=None if domains is None else [domain for domain in domains if domain in here],
            crop={domain: share for domain, share in data.get("crop", {}).items() if domain in here},
            threads=data.get("threads"),
        )

    def real_samples(self, split: str, cell_type: str) -> pd.DataFrame:
        """Rows of the images of a type that are not synthetic ("id", "group"), ordered by id."""
        rows = self.dataset.samples(
            splits=[split],
            domains=self.config.domains,
            cell_types=[cell_type],
            columns=["id", "group", "origin"],
        )
        return rows[(rows["origin"] != "synthetic") & ~rows["id"].isin(list(self.left_out))].reset_index(drop=True)

    def read_real(self, samples: pd.DataFrame, size: int | None = None) -> torch.Tensor:
        """The images of rows of `real_samples`, in their order."""
        size = size or self.config.image_size
        if len(samples) == 0:
            return torch.empty((0, 3, size, size), dtype=torch.uint8)
        config = self.config
        stream = Stream(
            self.dataset,
            StreamConfig(image_size=size, domains=config.domains, crop=config.crop, threads=config.threads),
            splits=None,
            cell_types=sorted(set(self.dataset.samples(columns=["cell_type"])["cell_type"])),
            ids=samples["id"].tolist(),
            global_batch=_BATCH,
            training=False,
            topology=Topology(device=self.topology.device),
        )
        images = torch.cat([_to_bytes(batch.images) for batch in stream.read()])
        place = {name: number for number, name in enumerate(stream.samples["id"])}
        return images[[place[name] for name in samples["id"]]]

    def read_generated(self, rows: Integers) -> torch.Tensor:
        """The bank's images of these rows, as they are."""
        return torch.from_numpy(self.bank.images(rows)).permute(0, 3, 1, 2)

    def store_and_read(self, images: torch.Tensor, size: int) -> torch.Tensor:
        """Images uint8 [n, 3, S, S] as the data set would store them (its codec and size), read at another size."""
        graph = GraphConfig(dataclasses.replace(self.config, image_size=size, deterministic=True), _BATCH)
        encoded = self._encoded(images)
        pipeline = build_graph(graph, lambda: next(encoded), self.topology.gpu)
        parts: list[torch.Tensor] = []
        while True:
            try:
                (output,) = pipeline.run()
            except StopIteration:
                return torch.cat(parts)
            parts.append(_to_bytes(from_dlpack(output.as_tensor())))

    def _encoded(self, images: torch.Tensor) -> Iterator[GraphInputs]:
        for some in images.permute(0, 2, 3, 1).split(_BATCH):
            yield GraphInputs([np.frombuffer(encode_pixels(each.numpy(), self._storage), np.uint8) for each in some])

    @cached_property
    def _storage(self) -> ShardSettings:
        """As balance.py stores the bank's images: the data set's, at the size that its images of that domain have."""
        settings = ShardSettings(**self.dataset.metadata["settings"])
        if settings.stored_size is not None:
            return settings
        return dataclasses.replace(settings, stored_size=stored_side(self.dataset, self.bank.domain))


def to_intensity(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as a network sees them: float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _to_bytes(images: torch.Tensor) -> torch.Tensor:
    """The opposite of `to_intensity`, on the CPU."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
