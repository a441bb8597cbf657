"""Trainers and accelerate on as many processes as there are: the same global batches, their values.

Several processes run `main`; a case alone is the same on one process.
"""

import os
import warnings

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from datasets import Dataset
from torch.utils.data import DataLoader, TensorDataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import inrun
from inrun.integrations.transformers import InRun
from tests.integration.tiny_language import TOKENIZER, language_model, sentences, settings
from tests.processes import leave_together

warnings.filterwarnings("ignore", category=FutureWarning)
EXACT = inrun.Options(progress=False, smoothed_steps=0, contraction="dense")
ROWS = 4  # of a step, over all processes
TEXTS = Dataset.from_dict({"text": sentences(40, 4, 9, 0)})


def size():
    return int(os.environ.get("WORLD_SIZE", "1"))


def arguments(folder, **changes):
    return settings(
        folder, **{"max_steps": 3, **changes}, per_device_train_batch_size=ROWS // size(),
        optim="adamw_torch",
        learning_rate=1e-3, max_grad_norm=0.1, gradient_accumulation_steps=2,
    )  # fmt: skip


def attributed(trainer, **options):
    callback = InRun(trainer.train_dataset.select(range(4)), options=EXACT, **options)
    trainer.add_callback(callback)
    trainer.train()
    return callback.attribution


def plain_trainer(folder):
    tokens = Dataset.from_list([dict(TOKENIZER(text)) for text in TEXTS["text"]])
    collate = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    return attributed(
        Trainer(
            language_model(), TrainingArguments(**arguments(folder)), train_dataset=tokens,
            data_collator=collate,
        )
    )  # fmt: skip


def made(folder, **changes):
    return SFTTrainer(
        language_model(), SFTConfig(**arguments(folder, max_length=16, **changes)),
        train_dataset=TEXTS, processing_class=TOKENIZER,
    )  # fmt: skip


def sft(folder):
    return attributed(made(folder))


def packed(folder):
    return attributed(made(folder, packing=True, max_steps=2), examples=TEXTS)


def loss_fn(model, tokens):
    return model(input_ids=tokens, labels=tokens).loss


def loop(accelerator):
    """Accumulation over two micro-batches, and clipping."""
    tokens = torch.randint(3, 16, (40, 6), generator=torch.Generator().manual_seed(0))
    model = language_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(torch.arange(24), tokens[:24]), ROWS // size())
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    utility = inrun.Utility(loss_fn, tokens[24:])
    attribution = inrun.attach(model, optimizer, utility, options=EXACT)
    for ids, rows in loader:
        with accelerator.accumulate(model):
            with attribution.batch(ids):
                accelerator.backward(loss_fn(model, rows))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    attribution.detach()
    return attribution


def accelerate(folder):
    return loop(Accelerator(cpu=True, gradient_accumulation_steps=2))


def sharded(folder):
    """By accelerate's own plugin; on one process there is nothing to shard."""
    if size() == 1:
        return accelerate(folder)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
    )  # fmt: skip
    return loop(Accelerator(cpu=True, gradient_accumulation_steps=2, fsdp_plugin=plugin))


CASES = [accelerate, plain_trainer, sft, packed, sharded]


def main(folder):
    from accelerate.state import AcceleratorState

    for case in CASES:
        AcceleratorState._reset_state(reset_partial_state=False)
        attribution = case(folder)
        if dist.get_rank() == 0:
            pq.write_table(attribution.values(), folder / f"{case.__name__}-values.parquet")
            pq.write_table(attribution.ledger(), folder / f"{case.__name__}-ledger.parquet")
        del attribution
    leave_together()
