"""One version's side: trains a small model and times steps when it is asked to.

Run by path with another version's `src` on PYTHONPATH, so it imports nothing of the benchmarks, and
uses only what both versions have. Reads a number of steps a line, writes their mean seconds of
process time, or first "failed: ..." where this version cannot train the model.
"""

import sys
import time
import warnings

import torch
import torch.nn.functional as F

import inrun

warnings.simplefilter("ignore")


def text(rows, length, vocabulary):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (rows, length), generator=generator)


def gpt2(layers, width):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=4000, n_positions=256, n_embd=width, n_layer=layers, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def mixtral(experts):
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=128,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    model.set_experts_implementation(experts)
    return model


def language(model, batch, length, vocabulary):
    data = text(batch, length, vocabulary), text(2, length, vocabulary)

    def loss(model, ids):
        logits = model(input_ids=ids).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    return model, *data, loss


def mlp():
    layers = [torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 4))
    x, y = torch.randn(40, 16), torch.randint(4, (40,))
    loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    return model, (x[:32], y[:32]), (x[32:], y[32:]), loss


SIZES = {
    "GPT-2 4 x 256, 8 x 64": lambda: language(gpt2(4, 256), 8, 64, 4000),
    "GPT-2 2 x 32, 4 x 16": lambda: language(gpt2(2, 32), 4, 16, 4000),
    "MLP 16-64-64-4, 32 rows": mlp,
    "Mixtral 2 x 64, 8 x 32, eager": lambda: language(mixtral("eager"), 8, 32, 1000),
    "Mixtral 2 x 64, 8 x 32, grouped_mm": lambda: language(mixtral("grouped_mm"), 8, 32, 1000),
}


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, batch, held_out, loss = SIZES[sys.argv[1]]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    attribution = None
    if sys.argv[2] == "scored":
        utility = inrun.Utility(loss, held_out)
        attribution = inrun.attach(
            model,
            optimizer,
            utility,
            options=inrun.Options(progress=False, self_test=False, smoothed_steps=0),
        )
    ids = range(len(batch if isinstance(batch, torch.Tensor) else batch[0]))

    def step():
        if attribution is None:
            loss(model, batch).backward()
        else:
            with attribution.batch(ids):
                loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    try:
        for _ in range(16):  # low ranks are admitted, what is compiled is compiled
            step()
    except inrun.errors.InRunError as error:
        print(f"failed: {type(error).__name__}: {str(error)[:120]}", flush=True)
        return
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.process_time()
        for _ in range(int(line)):
            step()
        print((time.process_time() - began) / int(line), flush=True)


if __name__ == "__main__":
    main()
