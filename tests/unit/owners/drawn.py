"""Random owned inputs: shapes, and whose their slots are, in whatever order."""

import torch

from tests.oracles.owners import NONE, Data


class Draw:
    """Draws tensors with owners.

    Args:
        random: whatever is decided, it decides.
        samples: B.
    """

    def __init__(self, random, samples):
        self.random, self.samples = random, samples
        self.graded = random.random() < 0.6
        self.seed = 0

    def one_of(self, *options):
        return self.random.choice(options)

    def size(self, low=1):
        """As long as there are samples, often."""
        return max(low, self.one_of(1, 2, 3, 4, self.samples, self.samples))

    def shape(self, ndim=None, *, last=None, low=1, most=3):
        ndim = self.random.randint(max(low, 1), most) if ndim is None else ndim
        sizes = [self.size() for _ in range(ndim)]
        return (*sizes[:-1], last) if last else tuple(sizes)

    def axis(self, shape):
        """An axis, counted from either end."""
        return self.random.randrange(-len(shape), len(shape))

    def generator(self):
        self.seed += 1
        return torch.Generator().manual_seed(self.random.randrange(2**20) + self.seed)

    def owner(self, shape, axes=None):
        """Whose each entry is, or None: nobody's. `axes`: those along which owners may vary."""
        axes = range(len(shape)) if axes is None else [a % len(shape) for a in axes]
        kind = self.one_of("rows", "rows", "rows", "sorted", "slots", "none", "nobody")
        if kind == "nobody" or not axes:
            return None
        axes = [a for a in axes if shape[a] % self.samples == 0] if kind == "rows" else list(axes)
        if not axes:
            return self.owner(shape, None)
        varying = self.random.sample(axes, 1 if kind in ("rows", "sorted") else min(2, len(axes)))
        own = [n if a in varying else 1 for a, n in enumerate(shape)]
        count = torch.Size(own).numel()
        if kind == "rows":
            slots = torch.arange(count)
            codes = slots % self.samples if self.one_of(True, False) else (
                slots * self.samples // max(count, 1)
            )  # fmt: skip
        else:
            codes = torch.randint(self.samples, (count,), generator=self.generator())
        if kind == "none":
            codes[torch.rand(count, generator=self.generator()) < 0.3] = NONE
        return codes.to(torch.int32).reshape(own).expand(shape)

    def x(self, shape, *, axes=None, positive=False, owner=True):
        """Numbers."""
        t = torch.randn(shape, dtype=torch.float64, generator=self.generator())
        t = t.abs() + 0.5 if positive else t
        own = self.owner(tuple(shape), axes) if owner is True else owner
        graded = self.graded if own is not None else self.one_of(True, False)
        return Data(t.requires_grad_(graded), own)

    def beside(self, x, **how):
        """Another tensor of the same shape: mostly with the same owners."""
        own = x.owner if self.one_of(True, True, False) else True
        return self.x(x.tensor.shape, owner=own, **how)

    def broadcast(self, x):
        """A tensor that broadcasts with it."""
        shape = x.tensor.shape
        cut = self.random.randrange(len(shape) + 1) if shape else 0
        kept = [1 if self.one_of(True, False, False) else n for n in shape[cut:]]
        own = None
        if x.owner is not None and self.one_of(True, True, False):
            own = x.owner[(0,) * cut] if cut else x.owner
            for axis, n in enumerate(kept):
                if n == 1:
                    own = own.narrow(axis, 0, 1)
            return self.x(kept, owner=own)
        return self.x(kept) if kept else self.x((), owner=None)

    def whole(self, shape, below, *, owner=None, axes=None):
        """Integers from 0 to `below` - 1."""
        t = torch.randint(max(below, 1), shape, generator=self.generator())
        return Data(t, self.owner(tuple(shape), axes) if owner is True else owner, below)

    def mask(self, shape, *, owner=None):
        t = torch.rand(shape, generator=self.generator()) < 0.5
        return Data(t, self.owner(tuple(shape)) if owner is True else owner, 2)
