"""Rival loaders doing the stream's work on the stream's files: decode, antialiased resize, flip, normalise.

All shuffle, none stops at an epoch's end, and every batch ends on the device as float32 [n, 3, S, S]
in [-1, 1] with its labels.
"""

import importlib.util
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, default_collate
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]
from torchvision.io import ImageReadMode, decode_image  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from data_pipeline.catalog import Dataset
from tests.benchmarks.timing import Contender, Setting

DECODERS = ("torchvision", "pillow", *(["simplejpeg"] if importlib.util.find_spec("simplejpeg") else []))
# The module that a rival needs -> its name. torch's own is always there.
PEERS = {
    "webdataset": "webdataset",
    "streaming": "MosaicML Streaming",
    "litdata": "litData",
    # In threads, with the decoders of the others: its own needs FFmpeg's libraries, which its wheel does not bring.
    "spdl": "SPDL pipeline",
}
# More than any measurement reads.
_ENDLESS = 1_000_000
_SHUFFLE_BUFFER = 1000

Open = Callable[[Setting], Iterator[int]]


@dataclass(frozen=True)
class Copies:
    """One data set's images for the rivals: the same encoded bytes in the layout each of them reads.

    shards: the data set's own tars, which webdataset opens. folder: a folder per class. mds: MosaicML's shards.
    chunks: litData's, written when it opens them for the first time.
    """

    shards: tuple[Path, ...]
    folder: Path
    mds: Path
    chunks: Path


def installed_peers() -> dict[str, bool]:
    """Which rivals can take part; torch's own always can."""
    return {module: importlib.util.find_spec(module) is not None for module in PEERS}


def write_copies(dataset: Dataset, target: Path) -> Copies:
    """Lay the stored bytes out for every rival that is installed."""
    samples = dataset.samples()
    labels = {name: number for number, name in enumerate(sorted(set(samples["cell_type"])))}
    extension = {"jpeg": "jpg", "png": "png"}[dataset.metadata["settings"]["codec"]]
    shards = tuple(sorted(dataset.shard_path(name) for name in set(samples["shard"])))
    copies = Copies(shards, target / "folder", target / "mds", target / "chunks")
    writer = None
    if installed_peers()["streaming"]:
        from streaming import MDSWriter

        writer = MDSWriter(out=str(copies.mds), columns={"image": "bytes", "label": "int"})
    for row in samples.sample(frac=1.0, random_state=0).itertuples():
        encoded = dataset.read_encoded(row)
        path = copies.folder / str(row.cell_type) / f"{row.id}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
        if writer is not None:
            writer.write({"image": encoded, "label": labels[str(row.cell_type)]})
    if writer is not None:
        writer.finish()
    return copies


def peer_contenders(copies: Copies, image_size: int, device: torch.device) -> list[Contender]:
    """The rivals that are installed."""
    openers = {
        "webdataset": _webdataset(copies.shards, image_size, device),
        "streaming": _mosaic(copies.mds, image_size, device),
        "litdata": _litdata(copies.folder, copies.chunks, image_size, device),
        "spdl": _spdl(copies.folder, image_size, device),
    }
    contenders = [Contender("torch ImageFolder", _image_folder(copies.folder, image_size, device))]
    present = [module for module, installed in installed_peers().items() if installed]
    return contenders + [Contender(PEERS[module], openers[module]) for module in present]


class Prepare:
    """Encoded bytes to float32 [3, S, S] in [-1, 1], with one of the decoders that torch users take."""

    def __init__(self, image_size: int, decoder: str) -> None:
        size = [image_size, image_size]
        before = [v2.Resize(size, antialias=True), v2.RandomHorizontalFlip()]
        after = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
        self._decode: Callable[[bytes], Any] = _DECODE[decoder]
        # On Pillow's images the resize is Pillow's own and the tensor is made from the small image.
        self._transform = v2.Compose([*before, v2.ToImage(), *after] if decoder == "pillow" else [*before, *after])

    def __call__(self, encoded: bytes) -> torch.Tensor:
        image: torch.Tensor = self._transform(self._decode(encoded))
        return image.as_subclass(torch.Tensor)


def _by_pillow(encoded: bytes) -> Any:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def _by_torchvision(encoded: bytes) -> Any:
    return decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)


def _by_simplejpeg(encoded: bytes) -> Any:
    import simplejpeg

    return torch.from_numpy(simplejpeg.decode_jpeg(encoded, "RGB")).permute(2, 0, 1)


_DECODE: dict[str, Callable[[bytes], Any]] = {
    "torchvision": _by_torchvision,
    "pillow": _by_pillow,
    "simplejpeg": _by_simplejpeg,
}


def _read_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


def _image_folder(folder: Path, image_size: int, device: torch.device) -> Open:
    def open_loader(setting: Setting) -> Iterator[int]:
        prepare = Prepare(image_size, setting.decoder)
        dataset = ImageFolder(str(folder), transform=prepare, loader=_read_bytes)  # type: ignore[arg-type]
        loader = DataLoader(
            dataset,
            batch_size=setting.batch,
            sampler=RandomSampler(dataset, num_samples=_ENDLESS),
            num_workers=setting.workers,
            pin_memory=device.type == "cuda",
        )
        return _batches(loader, device)

    return open_loader


def _webdataset(shards: tuple[Path, ...], image_size: int, device: torch.device) -> Open:
    def open_loader(setting: Setting) -> Iterator[int]:
        import webdataset

        # Resampled shards have no end and give every worker work however few shards there are.
        dataset = (
            webdataset.WebDataset(
                [str(path) for path in shards], resampled=True, shardshuffle=False, select_files=_image_or_label
            )
            .shuffle(_SHUFFLE_BUFFER)
            .to_tuple("jpg;png", "cls")
            .map_tuple(Prepare(image_size, setting.decoder), int)
            .batched(setting.batch)
        )
        loader: Any = webdataset.WebLoader(
            dataset, batch_size=None, num_workers=setting.workers, pin_memory=device.type == "cuda"
        )
        return _batches(loader, device)

    return open_loader


def _image_or_label(name: str) -> bool:
    return not name.endswith(".json")


def _mosaic(folder: Path, image_size: int, device: torch.device) -> Open:
    def open_loader(setting: Setting) -> Iterator[int]:
        from streaming import StreamingDataset

        class Images(StreamingDataset):  # type: ignore[misc]
            def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
                sample = super().__getitem__(index)
                return prepare(sample["image"]), sample["label"]

        prepare = Prepare(image_size, setting.decoder)
        with _temporary_files_in(folder.parent):
            dataset = Images(local=str(folder), shuffle=True, batch_size=setting.batch, epoch_size=_ENDLESS)
        loader: Any = DataLoader(
            dataset, batch_size=setting.batch, num_workers=setting.workers, pin_memory=device.type == "cuda"
        )
        return _batches(loader, device)

    return open_loader


def _litdata(folder: Path, chunks: Path, image_size: int, device: torch.device) -> Open:
    def open_loader(setting: Setting) -> Iterator[int]:
        from litdata import ParallelStreamingDataset, StreamingDataLoader, StreamingDataset

        if not (chunks / "index.json").exists():
            _write_chunks(ImageFolder(str(folder)).samples, chunks)
        prepare = Prepare(image_size, setting.decoder)
        dataset = StreamingDataset(
            str(chunks), shuffle=True, transform=lambda sample: (prepare(sample["image"]), sample["label"])
        )
        # Of one data set: this is how litData goes on after an epoch's end.
        endless = ParallelStreamingDataset([dataset], length=_ENDLESS, transform=lambda samples: samples[0])
        loader: Any = StreamingDataLoader(
            endless, batch_size=setting.batch, num_workers=setting.workers, pin_memory=device.type == "cuda"
        )
        return _batches(loader, device)

    return open_loader


def _write_chunks(images: list[tuple[str, int]], target: Path) -> None:
    """As litData's `optimize` writes them, which besides would empty folders in /tmp and take over SIGINT."""
    from litdata.streaming import Cache

    chunks = Cache(str(target), chunk_bytes="64MB")
    for number, (path, label) in enumerate(images):
        chunks[number] = {"image": _read_bytes(path), "label": label}
    chunks.done()
    chunks.merge()


def _spdl(folder: Path, image_size: int, device: torch.device) -> Open:
    def open_loader(setting: Setting) -> Iterator[int]:
        from spdl.pipeline import PipelineBuilder

        prepare = Prepare(image_size, setting.decoder)
        dataset = ImageFolder(str(folder), transform=prepare, loader=_read_bytes)  # type: ignore[arg-type]
        threads = max(1, setting.workers)

        # A thread makes a batch, as a worker process of the others does.
        def load(indices: list[int]) -> list[torch.Tensor]:
            batch: list[torch.Tensor] = default_collate([dataset[index] for index in indices])
            return [tensor.pin_memory() for tensor in batch] if device.type == "cuda" else batch

        sampler = BatchSampler(RandomSampler(dataset, num_samples=_ENDLESS), setting.batch, drop_last=True)
        pipeline = (
            PipelineBuilder().add_source(sampler).pipe(load, concurrency=threads).add_sink().build(num_threads=threads)
        )
        with pipeline.auto_stop():
            yield from _batches(pipeline, device)

    return open_loader


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """MosaicML leaves lock files in the temporary folder for every loader opened: there they go with the rest."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _batches(loader: Any, device: torch.device) -> Iterator[int]:
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), torch.as_tensor(labels).to(device, non_blocking=True)
        yield len(images)
