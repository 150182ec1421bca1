"""The promises of the data module: exact epochs, exact resume, one source a batch, few padding."""

import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser

from hyperbagel.bagel.segments import DroppedSegment, ImageSegment, TextSegment, ViTSegment
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.pipeline import CondDropout
from hyperbagel.datamodules.sources import Source
from tests.datamodules.samples import assert_same, epoch

Make = Callable[..., InterleavedDataModule]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_epoch_has_every_sample_once(shards, make_module: Make, world: int, batch_size: int):
    batching = Batching(batch_size=batch_size, window=4)
    ranks = [epoch(make_module(shards, batching=batching, rank=rank, world_size=world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    for step in zip(*ranks, strict=True):  # ranks work on the same source, and nobody has nothing to do
        assert len({batch.source for batch in step}) == 1
        assert all(1 <= len(batch) <= batch_size for batch in step)
    counts = Counter(key for batches in ranks for batch in batches for key in batch.keys)
    assert len(counts) == 74
    repeated = sum(counts.values()) - 74
    # With single documents the last of a source cannot be levelled out among ranks.
    assert repeated == (0 if batch_size > 1 else sum(-n % world for n in (43, 21, 10)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rank,world", [(0, 1), (0, 2), (1, 2)])
def test_resuming_anywhere_gives_the_remaining_batches(shards, make_module: Make, workers: int, rank: int, world: int):
    ranks = {"rank": rank, "world_size": world}
    straight = make_module(shards, **ranks)
    expected = epoch(straight) + list(straight.train_dataloader())  # two epochs
    length = len(expected) // 2
    for stop in (1, length) if workers else (0, 2, length - 1, length + 2):
        module = make_module(shards, workers=workers, **ranks)
        module.setup()
        loader = module.train_dataloader()
        seen = []
        while len(seen) < stop:
            seen += list(islice(loader, min(stop - len(seen), length)))
        state = module.state_dict()
        del loader, module  # with batches loaded ahead that nobody consumed
        resumed = make_module(shards, workers=workers, **ranks)
        resumed.load_state_dict(state)
        resumed.setup()
        loader = resumed.train_dataloader()
        assert len(loader) == length
        rest = list(loader)
        if len(seen) + len(rest) < 2 * length:
            rest += list(loader)
        assert_same(seen + rest, expected)


def test_iterating_again_goes_on(shards, make_module: Make):
    expected = epoch(make_module(shards))
    module = make_module(shards, workers=2)
    module.setup()
    loader = module.train_dataloader()
    pieces = [list(islice(loader, count)) for count in (3, 0, 1)]
    assert_same([batch for piece in pieces for batch in piece] + list(loader), expected)


def test_workers_outlive_the_sigterm_that_tells_a_run_to_end(shards, make_module: Make):
    expected = epoch(make_module(shards))
    module = make_module(shards, workers=1)
    module.setup()
    previous = signal.signal(signal.SIGTERM, lambda *_: os._exit(1))  # a trainer's handler, which workers inherit
    try:
        others = set(multiprocessing.active_children())  # of tests before
        batches = iter(module.train_dataloader())
        first = next(batches)
        (worker,) = set(multiprocessing.active_children()) - others
        for _ in range(2):
            subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        assert_same([first, *batches], expected)
        worker.terminate()  # as multiprocessing does at exit, which then waits
        worker.join(10)
        assert worker.exitcode == 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_process_ends_while_its_workers_wait():
    script = """
import torch
from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.datamodules.interleaved import InterleavedDataModule
from hyperbagel.datamodules.pipeline import Formatting
from hyperbagel.datamodules.scenes import SceneSource
from hyperbagel.datamodules.sources import Source
from hyperbagel.scenes.vocabulary import tokenizer_folder

torch.set_num_threads(1)
source = Source(name="scenes", samples=SceneSource(weights={"generation": 1}))
formatting = Formatting(str(tokenizer_folder()), NANO.vae_transform, NANO.vit_transform)
module = InterleavedDataModule(formatting, train=[source])
module.setup("fit")
kept = iter(module.train_dataloader())
next(kept)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "Error" not in run.stderr, run.stderr


def test_workers_of_ended_validations_are_let_go(shards, make_module: Make):
    sources = [Source(name, [str(path) for path in paths]) for name, paths in shards.items()]
    module = make_module(shards, workers=1, val=sources)
    module.setup("validate")
    loader = module.val_dataloader()
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    next(batches)
    (worker,) = (weakref.ref(child) for child in set(multiprocessing.active_children()) - others)
    assert worker() is not None
    list(batches)
    del batches
    multiprocessing.active_children()  # forgets what has ended
    gc.collect()
    assert worker() is None


def test_order_depends_on_seed_and_epoch_only(shards, make_module: Make):
    torch.manual_seed(1)
    first = make_module(shards)
    one = epoch(first)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert_same(epoch(make_module(shards, workers=2)), one)
    assert torch.equal(torch.get_rng_state(), state)
    two = list(first.train_dataloader())
    other = epoch(make_module(shards, batching=Batching(batch_size=3, window=4, seed=6)))
    for batches in (two, other):
        assert [batch.keys for batch in batches] != [batch.keys for batch in one]
        assert {key for batch in batches for key in batch.keys} == {key for batch in one for key in batch.keys}


def test_changed_data_is_not_resumed(shards, make_module: Make):
    module = make_module(shards)
    module.setup()
    next(iter(module.train_dataloader()))
    other = make_module({"generation": shards["generation"]})
    other.load_state_dict(module.state_dict())
    other.setup()
    with pytest.raises(ValueError, match="same sources"):
        other.train_dataloader()


def test_weights_set_the_mix(shards, make_module: Make):
    weights = {"generation": 1.0, "editing": 3.0, "understanding": 0.0}
    module = make_module(shards, weights=weights, batching=Batching(batch_size=2, batches_per_epoch=40))
    batches = epoch(module) + list(module.train_dataloader())
    assert Counter(batch.source for batch in batches) == {"generation": 20, "editing": 60}
    # The small source is read again and again, each turn whole: 21 documents in 11 batches.
    editing = [batch for batch in batches if batch.source == "editing"]
    for turn in range(5):
        assert len({key for batch in editing[11 * turn : 11 * (turn + 1)] for key in batch.keys}) == 21
    # Sources are mixed evenly over the epoch.
    assert 4 <= sum(batch.source == "generation" for batch in batches[:20]) <= 6


def test_all_batch_sizes_may_be_multiplied(shards, make_module: Make):
    """Those of sources too, as a recipe for a small machine has both."""
    module = make_module(shards, batching=Batching(batch_size=3, times=4))
    module.sources["train"] = [
        replace(s, batch_size=2 if s.name == "editing" else None) for s in module.sources["train"]
    ]
    sizes: Counter[str] = Counter()
    for batch in epoch(module):
        sizes[batch.source] = max(sizes[batch.source], len(batch))
    assert sizes == {"generation": 12, "editing": 8, "understanding": 10}


def test_default_epoch_with_weights_covers_the_largest_source(shards, make_module: Make):
    batches = epoch(make_module(shards, weights={"generation": 1.0, "editing": 1.0, "understanding": 1.0}))
    keys = {key for batch in batches for key in batch.keys}
    assert len(keys) == 74 and len(batches) == 3 * math.ceil(43 / 3)


def test_conditions_are_expanded_as_in_bagel(shards, make_module: Make):
    module = make_module(shards, dropout=CondDropout(0, 0, 0))
    by_source = {batch.source: batch for batch in epoch(module)}
    for document in by_source["generation"].documents:
        assert [type(s) for s in document] == [TextSegment, ImageSegment]
        assert document[1].loss and not document[0].loss
    for document in by_source["editing"].documents:
        assert [type(s) for s in document] == [ImageSegment, ViTSegment, TextSegment, ImageSegment]
        assert [getattr(s, "loss", None) for s in document] == [False, None, False, True]
        assert document[0].pixels.shape[1] % 8 == 0 and document[1].pixels.shape[1] % 14 == 0
        assert document[0].pixels.dtype == torch.float32 and -1 <= document[0].pixels.min() < -0.5
    for document in by_source["understanding"].documents:
        assert [type(s) for s in document] == [ViTSegment, TextSegment, TextSegment]
        assert document[2].loss
        assert bytes(document[2].ids.tolist())  # ids only, one a byte
    assert all(meta["number"] >= 0 for meta in by_source["editing"].metas)


def test_answers_begin_as_the_model_expects(shards, formatting, tmp_path):
    """One token a byte: the prefix stands before answers only, and travels with the batch."""
    framed = replace(formatting, answer_prefix="Me:")
    module = InterleavedDataModule(
        framed, [Source("a", [str(p) for p in shards["understanding"]])], reader=ReaderSettings(0, cache_dir=tmp_path)
    )
    for batch in epoch(module):
        for document in batch.documents:
            texts = [s for s in document if isinstance(s, TextSegment)]
            assert [(s.loss, s.prefix) for s in texts] == [(False, 0), (True, 3)]
            assert module.builder.tokenizer.decode(texts[1].ids).startswith("Me:answer ")


def test_dropout_rates_and_marks(shards, make_module: Make):
    module = make_module(shards, dropout=CondDropout(text=0.5, vit=1.0, image=0.0))
    for batch in epoch(module):
        for document in batch.documents:
            kinds = [type(s) for s in document if not isinstance(s, TextSegment)]
            if batch.source == "editing":
                assert kinds == [ImageSegment, DroppedSegment, ImageSegment]
            elif batch.source == "understanding":  # never dropped from
                assert len(document) == 3
    texts = [
        any(isinstance(s, TextSegment) for s in document)
        for _ in range(4)
        for batch in module.train_dataloader()
        if batch.source != "understanding"
        for document in batch.documents
    ]
    assert 0.35 < sum(texts) / len(texts) < 0.65


def test_buckets_leave_little_padding(shards, make_module: Make):
    def waste(window: int) -> float:
        module = make_module(shards, batching=Batching(4, window=window), dropout=CondDropout(0, 0, 0))
        module.setup()
        loader = module.train_dataloader()
        lengths = [loader.dataset[loader.order[number]].tokens for number in range(len(loader))]
        return 1 - sum(map(sum, lengths)) / sum(max(tokens) * len(tokens) for tokens in lengths)

    assert waste(window=32) < 0.1 < 0.2 < waste(window=1)


def test_drawn_samples_and_evaluation_order(formatting, shards):
    class Drawn:
        def __len__(self) -> int:
            return 7

        def __getitem__(self, index: int) -> dict:
            image = torch.full((16, 16, 3), index, dtype=torch.uint8).numpy()
            text = {"type": "text", "text": f"number {index}"}
            document = {"segments": [text, {"type": "image", "file": "0.png", "loss": True}], "meta": {"index": index}}
            return {"__key__": f"drawn-{index}", "json": document, "0.png": image}

    sources = [Source("drawn", samples=Drawn(), batch_size=2)]
    module = InterleavedDataModule(formatting, train=sources, val=sources, dropout=CondDropout(1, 1, 1))
    module.setup()
    assert sorted(key for batch in module.train_dataloader() for key in batch.keys) == [f"drawn-{i}" for i in range(7)]
    for _ in range(2):  # every validation is the same, and nothing is dropped
        batches = list(module.val_dataloader())
        assert [key for batch in batches for key in batch.keys] == [f"drawn-{i}" for i in range(7)]
        for batch in batches:
            for document, meta in zip(batch.documents, batch.metas, strict=True):
                assert isinstance(document[0], TextSegment)
                torch.testing.assert_close(document[1].pixels, torch.full((3, 16, 16), meta["index"] / 127.5 - 1))


def test_bad_settings_give_clear_errors(formatting, shards, make_module: Make, tmp_path):
    with pytest.raises(ValueError, match="either `shards` or `samples`"):
        Source("both")
    with pytest.raises(ValueError, match="same name"):
        InterleavedDataModule(formatting, train=[Source("a", "x"), Source("a", "y")])
    with pytest.raises(FileNotFoundError, match="correct `shards`"):
        make_module({"a": [tmp_path / "missing.tar"]}).setup()
    with pytest.raises(ValueError, match="every source a `weight`"):
        epoch(make_module(shards, weights={"editing": 1.0}))
    with pytest.raises(ValueError, match="make it longer"):
        epoch(make_module(shards, batching=Batching(batches_per_epoch=1)))
    with pytest.raises(ValueError, match=r"set `data\.train`"):
        epoch(make_module({}))
    with pytest.raises(ValueError, match="probabilities"):
        CondDropout(text=2)


def test_configured_from_yaml(shards, formatting, tmp_path):
    text = f"""
      data:
        class_path: hyperbagel.datamodules.interleaved.InterleavedDataModule
        init_args:
          formatting:
            tokenizer: {formatting.tokenizer}
            latent: {{max_size: 32, min_size: 16, stride: 8}}
            vit: {{max_size: 28, min_size: 14, stride: 14}}
          train:
            - name: text-to-image
              weight: 2
              shards: {shards["generation"][0].parent}/generation-{{0000..0004}}.tar
            - name: drawn
              weight: 1
              samples:
                class_path: hyperbagel.datamodules.scenes.SceneSource
                init_args: {{split: train, size: 30}}
          batching: {{batch_size: 4, batches_per_epoch: 12}}
          dropout: {{text: 0.2}}
          reader: {{num_workers: 0, cache_dir: {tmp_path}}}
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    module = parser.instantiate_classes(parser.parse_string(text)).data
    assert module.dropout == CondDropout(text=0.2, vit=0.3, image=0.3)
    assert Counter(batch.source for batch in epoch(module)) == {"text-to-image": 8, "drawn": 4}
