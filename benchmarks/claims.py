"""The claim and the control of each benchmark, for its page and the page of all benchmarks."""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    """A statement that the benchmark can refute, and the comparison that would show it."""

    claim: str
    control: str


CLAIMS = {
    "fidelity": Claim(
        "From step 5 on, `path` gives the exact Shapley values of a step.",
        "Every coalition of six samples (four for MiniLM), played out as a real step of the real "
        "optimizer; the published estimators on the same steps.",
    ),
    "optimizers": Claim(
        "`path` needs only an optimizer's update rule, and follows 17 optimizers.",
        "Every coalition of six samples as a real step of that optimizer.",
    ),
    "interaction": Claim(
        "Where samples interact, a value is that of the sample's own slots; it is not the effect "
        "of leaving the sample out.",
        "Cross-entropy, where nothing interacts; exact Shapley values of both questions.",
    ),
    "influence": Claim(
        "The carried push predicts retraining where the model is smooth; look-ahead ranks. "
        "Neither can be relied on with ReLUs and large learning rates.",
        "Training again without the sample, also from a start moved by 1e-5; SGD dynamics, TracIn "
        "and the step's own effect.",
    ),
    "selection": Claim(
        "Filling the batch's places one by one beats fewer rounds, and looking one step ahead "
        "beats eight and more; over all learning rates none differs significantly from chance. "
        "One look (`rounds=None`) gains as much as sixteen rounds at under twice the time of a "
        "random choice. In as much time plain training gains more.",
        "As many samples chosen by chance and by the largest loss; training on all candidates; "
        "plain training for the same time.",
    ),
    "overhead": Claim(
        "The longer a scoring window, the nearer to plain throughput: windows of ten keep about "
        "95 % at 16 x 256 tokens and at GPT-2 small, and 90 % of smaller steps. Every step costs a "
        "validation pass and more beyond it.",
        "Plain training; plain training with the same validation pass; naive per-sample gradients. "
        "All in turn on the same batches.",
    ),
    "following": Claim(
        "Following owners costs Python time per operation: nothing at a GPT-2 of width 256, much "
        "in tiny models.",
        "Plain training, and the version before owners were followed.",
    ),
    "heads": Claim(
        "A fused language model head keeps its memory saved. The aim, at most 10 % over "
        "training alone, is met at widths 16 and 64.",
        "Training alone, and the loss from logits, each in a process of its own.",
    ),
    "budget": Claim(
        "Half of the validation rows per pass lose nothing. Scoring fewer steps loses single "
        "samples and keeps sums over groups.",
        "The same training with every step scored on all validation rows.",
    ),
    "payout": Claim(
        "With a momentum window of 20 steps total values find wrong labels better.",
        "The same training without a window; look-ahead over the whole run.",
    ),
    "pruning": Claim(
        "Dropping samples by balanced totals gains accuracy over random pruning where labels are "
        "wrong; where they are right no ranking gains.",
        "Random pruning with the same balance and seed; training on all; training without exactly "
        "the wrong labels.",
    ),
    "mislabelled": Claim(
        "`label_doubts` ranks wrong labels above the mean loss, which is free, by a little AUC. "
        "Its precision does not differ significantly from the mean loss's, nor its AUC from that "
        "of mean loss and margin.",
        "Mean loss, margin (AUM) and cleanlab on the same trainings.",
    ),
    "tracing": Claim(
        "Values find the source of copied and edited texts; a text search finds paraphrases too.",
        "BM25 and a pretrained sentence encoder.",
    ),
    "taught": Claim(
        "Of the twelve among 400 chat rows that teach SmolLM2-135M a false fact, most come first, "
        "and without the twelve first rows it no longer says it.",
        "The words that rows share with the false answers; twelve random rows left out.",
    ),
    "poison": Claim(
        "With a few triggered texts as target, in-step values name about half of k planted rows "
        "among the first k and most among the first 2k; an embedding's similarity comes near at "
        "k alone, loss, gradient norm and words name next to none. Without the first k the attack "
        "is weaker, and not gone. Of four planted among 128 chat rows of SmolLM2 values name three "
        "among the first four, an embedding's similarity all.",
        "Loss, gradient norm, embeddings, words, a spectral signature, chance; the attack after "
        "removing random rows and after removing exactly the planted ones.",
    ),
    "form": Claim(
        "A question's own fact comes first among in-step values though it was trained in another "
        "format. Over rows of other facts values follow the format as much as the task, where "
        "training again follows the task.",
        "Training again without each group of rows.",
    ),
    "import_time": Claim(
        "`import inrun` is quick; what it needs is loaded with its first use.",
        "`import torch` alone.",
    ),
    "soak": Claim(
        "Time, memory and live tensors stay flat over 20,000 steps.",
        "The first tenth of the same run.",
    ),
    "smollm": Claim(
        "On SmolLM2-135M under TRL's SFT, packed, values are those of the exact game with LoRA, "
        "and nearly so in full fine-tuning; the ledger closes; the weights are those of plain "
        "training. Without half of the rows of a short LoRA run, look-ahead ranks trainings nearly "
        "as well as any sums could; in-step values do not.",
        "Exact Shapley values of four samples in real AdamW steps; the same training alone. "
        "Gradient products, shared words, chance, and a ceiling of any sums.",
    ),
    "explain": Claim(
        "`inrun explain` names the step that began a jump of the validation loss more often than "
        "loss or gradient norm alone; rows and sources are named as well by their own loss.",
        "The step, rows and source by gradient norm, validation loss and training loss alone.",
    ),
    "statements": Claim(
        "Training shares keep large classes from coming out harmful by construction; from eight "
        'visits on "surely harmful" says what other trainings show, and no more agreement is '
        "promised than another training gave; checks may be looked at after every training.",
        "Other trainings of the same data, another validation set, equal weights, and differences "
        "between trainings that are chance alone.",
    ),
    "window": Claim(
        "Windows that `auto` chooses rank samples as `EveryStep` does, R at least 0.97 and "
        "Spearman 0.95, but for a language model at a rate at which single steps turn the "
        "direction. Fixed ones of ten steps and more may not, above all early in training, and the "
        "cosine of their ends says so only in part.",
        "The same training with every step scored, with and without the 1 % largest values.",
    ),
    "datamodeling": Claim(
        "Look-ahead's sums rank trainings without half of the data, also where those of other "
        "values do not; by exact slopes they fail on one seed of three. On digits, medians of "
        "slopes on the way to a half come nearer to what any sum of values can say. On MLPs of "
        "MNIST every method stays far from that, and no way to close it was found.",
        "TracIn, in-step values, gradient products, being of the same class alone, and a ceiling "
        "that no sum of any values can pass on the same trainings.",
    ),
    "tools": Claim(
        "In a short training of a tiny GPT-2 look-ahead ranks single removals as Bergson's MAGIC "
        "does, and comes out highest for half of the data, where MAGIC and its own exact slopes "
        "are not above shared words. It takes less time than MAGIC for many queries, and the most "
        "memory. In a longer training at three times the rate no tool ranks single removals, and "
        "none is above shared words for halves.",
        "The same retrainings for all, single ones also from a start moved by 1e-5; shared words "
        "and chance; a ceiling of any sums.",
    ),
    "groups": Claim(
        "In a short training sums of values rank sources by what leaving them out does, and do not "
        "say how much that is; taking a group's rows out at once says most of it. In a long "
        "training nothing here foretells sources; random groups are ranked well in both.",
        "Training again without each group; random groups as well as groups of like samples.",
    ),
    "queries": Claim(
        "One sweep carries any number of queries, each at a part of what it costs alone; memory "
        "grows with queries times parameters.",
        "One query at a time on the same recording.",
    ),
}


def block(name: str) -> str:
    """The first lines of a benchmark's page."""
    claim = CLAIMS[name]
    return (
        f"**Claim.** {claim.claim}\n\n**Control.** {claim.control}\n\n"
        f"**Command.** `python -m benchmarks.{name}` (template: `benchmarks/{name}/page.md`)."
    )
