"""Batches of one task: what an epoch covers, resuming, processes, and the library's trainer."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.curricula import TaskBatchSampler, losses_by_task
from tiny_encoder import collate, tiny_encoder, toy_rows

sizes = st.lists(st.integers(1, 23), min_size=1, max_size=4)


def tasks_of(counts):
    return [f"t{i}" for i, n in enumerate(counts) for _ in range(n)]


@given(sizes, st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_every_batch_has_one_task_and_every_example_its_turn(counts, batch_size, processes, drop_last, epoch):
    tasks = tasks_of(counts)
    step = batch_size * processes
    if drop_last and all(n < step for n in counts):
        with pytest.raises(ValueError, match="drop_last=True leaves no batch"):
            TaskBatchSampler(tasks, batch_size, drop_last, processes=processes)
        return
    sampler = TaskBatchSampler(tasks, batch_size, drop_last, processes=processes, seed=3)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert batches == list(sampler)
    seen = Counter(i for batch in batches for i in batch)
    for batch in batches:
        assert len({tasks[i] for i in batch}) == 1
        assert 1 <= len(batch) <= batch_size
    for g in range(0, len(batches), processes):
        group = batches[g : g + processes]
        assert len({tasks[i] for batch in group for i in batch}) == 1
        assert len({len(batch) for batch in group}) == 1
    start = 0
    for n in counts:
        own = [seen[i] for i in range(start, start + n)]
        start += n
        if drop_last:
            assert max(own, default=0) <= 1
            assert sum(own) == n // step * step
        else:
            assert min(own) >= 1
            assert sum(own) - n < processes


@given(sizes, st.integers(1, 5), st.integers(1, 2), st.integers(0, 40), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_it_goes_on_where_it_stopped(counts, batch_size, processes, stop, epoch):
    sampler = TaskBatchSampler(tasks_of(counts), batch_size, processes=processes)
    sampler.set_epoch(epoch)
    whole = list(sampler)
    stop = min(stop, len(whole))
    walk = iter(sampler)
    head = [next(walk) for _ in range(stop)]
    state = sampler.state_dict() if stop else {"epoch": epoch, "given": 0}
    assert state == {"epoch": epoch, "given": stop}
    other = TaskBatchSampler(tasks_of(counts), batch_size, processes=processes)
    other.load_state_dict(state)
    other.set_epoch(epoch)  # as a loader does at the start of an epoch
    assert head + list(other) == whole
    assert list(other) == whole
    with pytest.raises(ValueError, match="another data set"):
        other.load_state_dict({"epoch": 0, "given": len(whole) + 1})


def test_epochs_and_seeds_differ_and_tasks_are_mixed():
    tasks = tasks_of([40, 40])
    sampler = TaskBatchSampler(tasks, 4)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(TaskBatchSampler(tasks, 4, seed=1)) != first
    order = [tasks[batch[0]] for batch in first]
    assert sum(a != b for a, b in itertools.pairwise(order)) > 4


@pytest.mark.parametrize("smoothing", [0, 0.5, 1.0])
def test_smoothing_repeats_small_tasks_evenly(smoothing):
    tasks = tasks_of([100, 25, 4])
    sampler = TaskBatchSampler(tasks, 5, smoothing=smoothing)
    seen = Counter(i for batch in sampler for i in batch)
    start = 0
    for n in (100, 25, 4):
        own = [seen[i] for i in range(start, start + n)]
        start += n
        assert sum(own) == round(100 * (n / 100) ** smoothing)
        assert max(own) - min(own) <= 1


def test_what_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        TaskBatchSampler([], 2)
    with pytest.raises(ValueError, match="batch_size=0"):
        TaskBatchSampler(["a"], 0)
    with pytest.raises(ValueError, match="smoothing=2"):
        TaskBatchSampler(["a"], 1, smoothing=2)
    with pytest.raises(ValueError, match="nq: 'search' is no kind of task"):
        losses_by_task({"nq": "search"}, bool)


def test_losses_use_in_batch_negatives_where_they_are_negatives():
    kinds = {"nq": "retrieval", "sts": "similarity", "banking": "classification", "reddit": "clustering"}
    assert losses_by_task(kinds, lambda in_batch: in_batch) == {
        "nq": True,
        "sts": True,
        "banking": False,
        "reddit": False,
    }


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("processes", [2, 3])
def test_accelerate_deals_one_task_to_all_processes(processes, even):
    from accelerate.data_loader import BatchSamplerShard

    tasks = tasks_of([17, 9, 4])
    sampler = TaskBatchSampler(tasks, 3, processes=processes)
    shards = [
        list(BatchSamplerShard(sampler, processes, i, split_batches=False, even_batches=even))
        for i in range(processes)
    ]
    assert [batch for together in zip(*shards, strict=True) for batch in together] == list(sampler)
    for together in zip(*shards, strict=True):
        assert len({tasks[i] for batch in together for i in batch}) == 1
        assert len({len(batch) for batch in together}) == 1


def test_in_the_librarys_trainer_batches_are_homogeneous_and_epochs_differ(tmp_path):
    from datasets import Dataset, DatasetDict
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    from gradatim.losses import MultiPositiveRankingLoss

    model = tiny_encoder(tmp_path)
    data = DatasetDict(
        {"nq": Dataset.from_dict(toy_rows(10, 3)), "banking": Dataset.from_dict(toy_rows(7, 3, seed=1))}
    )
    seen: list[tuple[bool, int, tuple]] = []

    def build(in_batch):
        loss = MultiPositiveRankingLoss(model, in_batch_negatives=in_batch)
        forward = loss.forward

        def watched(features, labels):
            features = list(features)
            seen.append((in_batch, len(labels), tuple(features[0]["input_ids"].sum(dim=1).tolist())))
            return forward(features, labels)

        loss.forward = watched
        return loss

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "out"),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        multi_dataset_batch_sampler=TaskBatchSampler.of_datasets,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = SentenceTransformerTrainer(
        model, arguments, data, loss=losses_by_task({"nq": "retrieval", "banking": "classification"}, build)
    )
    trainer.train()
    epoch = math.ceil(10 / 4) + math.ceil(7 / 4)
    assert len(seen) == 2 * epoch
    for part in (seen[:epoch], seen[epoch:]):
        assert sorted(n for own, n, _ in part if own) == [2, 4, 4]
        assert sorted(n for own, n, _ in part if not own) == [3, 4]
    # The trainer told the sampler about the new epoch.
    assert seen[:epoch] != seen[epoch:]
    assert collate(model, toy_rows(2, 3))[1].shape == (2, 3)
