"""The training script of all tasks: from a configuration to a run directory with its report."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from data_pipeline.randomness import derive_key
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.stream import Topology
from trainer.learners.learner import Setting
from trainer.learners.topology import resolve_engine
from trainer.loop.fit import AfterEpoch, Plan, fit
from trainer.loop.progress import resume, saved_state
from trainer.runs import registry
from trainer.runs.config import RunConfig, fingerprint
from trainer.runs.record import RunRecord
from trainer.runs.stored_size import propose_stored_size
from trainer.runs.task import Session


def train(config: RunConfig, topology: Topology, after_epoch: AfterEpoch | None = None) -> Path:
    """Train to the end and report; returns the run directory.

    An interrupted run resumes from its newest checkpoint; a finished one is scored and reported again. after_epoch:
    see Plan. UserError where the run directory holds a run of other settings.
    """
    run, dataset = Path(str(config.run)), config.open_dataset()
    task = registry.task(config.kind)
    session = task.open(config, dataset, topology)
    config = session.config
    for stream in session.streams.values():
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, order=stream.config.order))
    made_with = fingerprint(config, session.facts)
    state = saved_state(run, made_with, "another run=DIR to begin anew")
    setting = Setting(
        precision=session.precision,
        total_steps=config.train.epochs * session.epoch_steps,
        global_batch=config.train.global_batch,
        seed=config.seed,
        engine=resolve_engine(config.train.engine),
        topology=topology,
    )
    torch.manual_seed(derive_key(config.seed, "weights"))
    algorithm = session.build(setting, fresh=state is None)
    progress = None if algorithm is None else resume(algorithm, state)
    if topology.rank == 0:
        if not task.whole_fields and (proposal := propose_stored_size(dataset, config.data)) is not None:
            print(proposal, file=sys.stderr, flush=True)
        session.begin()
        _record(config, session).write(run)
        session.learned.save(run)
    if algorithm is None or progress is None:
        session.fit_at_once(made_with, after_epoch)
    else:

        def epoch_ended(last: bool) -> None:
            if topology.rank == 0 and task.makes_images and not last:  # the last is reported below
                task.write_report(run)
            if after_epoch is not None:
                after_epoch(last)

        plan = Plan(
            run=run,
            config=config.train,
            setting=setting,
            epoch_steps=session.epoch_steps,
            fingerprint=made_with,
            score_epoch=session.score_epoch,
            selection=session.selection,
            after_epoch=epoch_ended,
            expectation=session.expectation(),
        )
        fit(algorithm, session.streams, plan, progress)
    session.finish()
    if topology.rank == 0:
        task.write_report(run)
    return run


def _record(config: RunConfig, session: Session[Any]) -> RunRecord[RunConfig]:
    dataset = session.dataset
    place = config.location(dataset)
    return RunRecord(
        config=dataclasses.replace(config, shards=place["shards"], cache=place["cache"]),
        kind=config.kind,
        cell_types=session.cell_types,
        dataset_hash=dataset.content_hash,
        storage=ShardSettings(**dataset.metadata["settings"]),
        domain=session.domain,
        normalizer=session.normalizer,
    )
