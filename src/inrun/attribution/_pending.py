"""The blocks of the step under way: samples whose shares wait for their step."""

from __future__ import annotations

from inrun.attribution._unattributed import Unowned, samples_of
from inrun.capture import Block, Capture
from inrun.ledger import Ids


class Pending:
    """Blocks that ended, in their order, with the ids of their samples."""

    def __init__(self) -> None:
        self._ended: list[tuple[Ids, Block]] = []

    def __len__(self) -> int:
        return len(self._ended)

    @property
    def samples(self) -> int:
        """How many of the blocks are of samples."""
        return len(samples_of(self.blocks))

    @property
    def unowned(self) -> list[Unowned]:
        """The others: gradients of no sample."""
        return [block for block in self.blocks if isinstance(block, Unowned)]

    def add(self, ids: Ids, block: Block) -> None:
        """A block ended."""
        self._ended.append((ids, block))

    def clear(self) -> None:
        """Their step is over, or will not be scored."""
        self._ended = []

    def conclude(self, capture: Capture) -> bool:
        """Compares blocks with the gradients; True where some turned out not to be in them.

        The loop zeroed the gradients after those: they count no more. Nor does one that is wrong.

        Raises:
            InvariantError: a block's shares do not sum to the gradient.
        """
        unread = capture.check.unread
        try:
            flags = capture.conclude()
        except BaseException:
            del self._ended[len(self._ended) - unread :]
            raise
        for block in self.blocks:  # a gap is one for the whole step
            for name in capture.check.excluded:
                block.factors.pop(name, None)
        if not any(flags):
            return False
        del self._ended[: len(self._ended) - flags[::-1].index(True) - 1]
        return True

    @property
    def blocks(self) -> list[Block]:
        """Without the ids."""
        return [block for _, block in self._ended]

    @property
    def ids(self) -> Ids:
        """Of all samples."""
        return [i for ids, _ in self._ended for i in ids]  # type: ignore[return-value]  # of one kind
