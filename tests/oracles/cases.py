"""Model cases: a model, how it is fed, and the rows of its batch that are samples."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class Case:
    """`inputs` are tensors with samples in axis 0; `run(model, *inputs)` gives (B, ...)."""

    def __init__(self, name, build, inputs, run=None):
        self.name, self.build, self._inputs = name, build, inputs
        self.run = run or (lambda model, *x: model(*x))

    def model(self):
        torch.manual_seed(1)
        return self.build().double()

    def inputs(self, samples):
        torch.manual_seed(2)
        return self._inputs(samples)

    def terms(self, model, inputs):
        """One loss term a sample: a weighted square of what the model gives for it."""
        out = self.run(model, *inputs)
        weights = torch.linspace(0.5, 1.5, out[0].numel(), dtype=out.dtype).view_as(out[0])
        return ((out * weights).sin() + 0.1 * out**2).flatten(1).sum(1)

    def loss_fn(self, model, inputs):
        return self.terms(model, inputs).mean()

    tolerance = 1e-9

    def owned(self, samples, inputs):
        """What `batch` is told of rows and slots: each row is a sample."""
        return {}

    def alone(self, inputs, i):
        """Sample i's entries of the inputs."""
        return tuple(t[[i]] for t in inputs)

    def loss(self, model, inputs):
        """The sum of all samples' terms."""
        return self.terms(model, inputs).sum()


def normal(*shape):
    return lambda samples: (torch.randn(samples, *shape, dtype=torch.float64),)


def tokens(length, vocabulary=11):
    return lambda samples: (torch.randint(vocabulary, (samples, length)),)


class Function(nn.Module):
    """Parameters with a function of them."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, value if isinstance(value, nn.Module) else nn.Parameter(value))

    def forward(self, *inputs):
        return self.function(self, *inputs)


class HiddenScale(torch.autograd.Function):
    """x * scale by a function of its own, in which no torch operation can be seen."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        return gradient * scale, (gradient * x).sum(0)


class WrittenOutRMSNorm(nn.Module):
    """As language models write it: float upcast, then the weight."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * (x * scale).to(x.dtype)


def transformers_conv1d():
    from transformers.pytorch_utils import Conv1D

    return Conv1D(4, 5)


def tied():
    def run(m, x):
        hidden = torch.tanh(m.table(x))
        return F.linear(hidden, m.table.weight)

    return Function(run, table=nn.Embedding(11, 6))


def frozen_first():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    return model


def no_grad_branch(m, x):
    with torch.no_grad():
        gate = torch.sigmoid(m.a(x))
    return m.b(x) * gate + m.a(x)


def position_table(m, x):
    return torch.tanh(m.words(x) + m.places(torch.arange(x.shape[1])))


def class_token(m, x):
    return torch.cat([m.token.expand(len(x), -1, -1), x], 1) @ m.w


def sequence_first(m, x):
    return m.layer(x.transpose(0, 1)).transpose(0, 1)


def flattened(m, x):
    return m.layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)


def interleaved(m, x):
    """Positions outside, samples inside: (T * B, I)."""
    flat = x.transpose(0, 1).reshape(-1, x.shape[-1])
    return m.layer(flat).reshape(x.shape[1], x.shape[0], -1).transpose(0, 1)


def in_place(m, x):
    hidden = m.a(x)
    hidden += m.shift
    hidden *= m.scale
    return F.relu_(hidden) @ m.w.T


CASES = [
    Case("linear", lambda: nn.Linear(5, 3), normal(5)),
    Case("linear-3d", lambda: nn.Linear(5, 3), normal(4, 5)),
    Case("linear-4d-no-bias", lambda: nn.Linear(5, 3, bias=False), normal(2, 4, 5)),
    Case("linear-wide", lambda: nn.Linear(2, 3), normal(40, 2)),
    Case("hf-conv1d", transformers_conv1d, normal(3, 5)),
    Case("conv1d", lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), normal(4, 9)),
    Case("conv2d", lambda: nn.Conv2d(2, 4, (3, 2), padding=1, dilation=(2, 1)), normal(2, 7, 6)),
    Case("conv2d-same", lambda: nn.Conv2d(2, 4, 4, padding="same"), normal(2, 7, 6)),
    Case("conv2d-depthwise", lambda: nn.Conv2d(3, 6, 3, groups=3, bias=False), normal(3, 6, 6)),
    Case(
        "conv2d-circular",
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        normal(2, 5, 5),
    ),
    Case("conv3d", lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), normal(2, 4, 5, 4)),
    Case(
        "conv2d-on-frames",
        lambda: nn.Conv2d(2, 3, 2),
        normal(4, 2, 4, 4),
        lambda m, x: m(x.flatten(0, 1)).unflatten(0, x.shape[:2]),
    ),
    Case("conv-transpose", lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), normal(2, 4, 4)),
    Case("embedding", lambda: nn.Embedding(11, 4, padding_idx=0), tokens(6)),
    Case("layer-norm", lambda: nn.LayerNorm((3, 5)), normal(4, 3, 5)),
    Case("layer-norm-2d", lambda: nn.LayerNorm(5), normal(5)),
    Case("group-norm", lambda: nn.GroupNorm(2, 4), normal(4, 3, 3)),
    Case("rms-norm", lambda: nn.RMSNorm(5), normal(4, 5)),
    Case("rms-norm-written-out", lambda: WrittenOutRMSNorm(5), normal(4, 5)),
    Case("batch-norm-frozen", lambda: nn.BatchNorm2d(3).eval(), normal(3, 4, 4)),
    Case("instance-norm", lambda: nn.InstanceNorm1d(3, affine=True), normal(3, 6)),
    Case(
        "attention",
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        normal(5, 8),
        lambda m, x: m(x, x, x, need_weights=False)[0],
    ),
    Case(
        "attention-other-keys",
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        normal(5, 8),
        lambda m, x: m(x, x.flip(1), x.cos())[0],
    ),
    Case(
        "attention-sequence-first",
        lambda: nn.MultiheadAttention(8, 2),
        normal(4, 8),
        lambda m, x: m(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1),
    ),
    Case(
        "encoder-layer",
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0),
        normal(4, 8),
    ),
    Case("lstm", lambda: nn.LSTM(3, 4, batch_first=True), normal(5, 3), lambda m, x: m(x)[0]),
    Case("gru-cell", lambda: nn.GRUCell(3, 4), normal(3)),
    Case("prelu", lambda: nn.PReLU(3), normal(3, 4)),
    Case("bilinear", lambda: nn.Bilinear(3, 3, 2), normal(3), lambda m, x: m(x, x.cos())),
    Case(
        "bare-parameters",
        lambda: Function(
            lambda m, x: (x * m.scale + m.shift) @ m.w / m.by - m.less,
            scale=torch.randn(5),
            shift=torch.randn(1, 5),
            w=torch.randn(5, 3),
            by=torch.rand(3) + 1,
            less=torch.randn(()),
        ),
        normal(4, 5),
    ),
    Case(
        "einsum",
        lambda: Function(lambda m, x: torch.einsum("bti,io->bto", x, m.w), w=torch.randn(5, 3)),
        normal(4, 5),
    ),
    Case(
        "transposed-matmul",
        lambda: Function(lambda m, x: x @ m.w.T, w=torch.randn(3, 5)),
        normal(4, 5),
    ),
    Case("weight-norm", lambda: weight_norm(nn.Linear(5, 3)), normal(4, 5)),
    Case(
        "computed-weight",
        lambda: Function(
            lambda m, x: F.linear(x, m.u @ m.v + torch.diag(m.d)),
            u=torch.randn(5, 2),
            v=torch.randn(2, 5),
            d=torch.randn(5),
        ),
        normal(5),
    ),
    Case(
        "low-rank-adapter",
        lambda: Function(
            lambda m, x: m.base(x) + m.up(m.down(x)) * 0.5,
            base=nn.Linear(5, 3).requires_grad_(False),
            down=nn.Linear(5, 2, bias=False),
            up=nn.Linear(2, 3, bias=False),
        ),
        normal(4, 5),
    ),
    Case(
        "position-table",
        lambda: Function(position_table, words=nn.Embedding(11, 4), places=nn.Embedding(9, 4)),
        tokens(4),
    ),
    Case(
        "position-parameter",
        lambda: Function(
            lambda m, x: torch.tanh(x + m.places[:, : x.shape[1]]), places=torch.randn(1, 6, 5)
        ),
        normal(4, 5),
    ),
    Case(
        "class-token",
        lambda: Function(class_token, token=torch.randn(1, 1, 5), w=torch.randn(5, 2)),
        normal(3, 5),
    ),
    Case("tied", tied, tokens(6)),
    Case(
        "reused",
        lambda: Function(lambda m, x: m.a(torch.tanh(m.a(torch.tanh(m.a(x))))), a=nn.Linear(5, 5)),
        normal(4, 5),
    ),
    Case("frozen-layer", frozen_first, normal(4, 5)),
    Case(
        "no-grad-branch",
        lambda: Function(no_grad_branch, a=nn.Linear(5, 3), b=nn.Linear(5, 3)),
        normal(4, 5),
    ),
    Case(
        "unused-branch",
        lambda: Function(lambda m, x: (m.b(x), m.a(x))[1], a=nn.Linear(5, 3), b=nn.Linear(5, 3)),
        normal(5),
    ),
    Case("sequence-first", lambda: Function(sequence_first, layer=nn.Linear(5, 3)), normal(4, 5)),
    Case("flattened", lambda: Function(flattened, layer=nn.Linear(5, 3)), normal(4, 5)),
    Case("interleaved", lambda: Function(interleaved, layer=nn.Linear(5, 3)), normal(4, 5)),
    Case(
        "in-place",
        lambda: Function(
            in_place,
            a=nn.Linear(5, 4),
            shift=torch.randn(4),
            scale=torch.randn(4),
            w=torch.randn(3, 4),
        ),
        normal(3, 5),
    ),
]


def gpt2(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=23, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, **changes,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=23, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def logits(model, x):
    return model(input_ids=x).logits


LANGUAGE_MODELS = [
    Case("gpt2-tied", gpt2, tokens(5, 23), logits),
    Case("llama", llama, tokens(5, 23), logits),
    Case("llama-tied", lambda: llama(tie_word_embeddings=True), tokens(5, 23), logits),
    Case("bert", bert, tokens(5, 23), logits),
]
