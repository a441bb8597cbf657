"""`inrun.lookahead`: values of a recorded run at any horizon, as tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.replay._gradient import KINK_WIDTH
from inrun.replay._proxy import ErrorProxy, kink_share, rounding, second_order
from inrun.replay._removal import push_named, removal_named
from inrun.replay._sweep import Method, sweep, windows
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility


def lookahead(
    run: Trajectory,
    utility: Utility,
    horizon: int | None = None,
    *,
    removal: str = "renormalise",
    push: str = "tangent",
    samples: Collection[object] | None = None,
    curvature: bool = True,
    carry: int = 40,
    damped: bool = True,
) -> Lookahead:
    """What each row of each step did to the validation loss `horizon` steps later.

    One sweep backward over the recorded run, to first order in the row's weight, for any
    architecture: the loss's gradient is carried through the optimizer's own derivative (see
    `damped`) and the training loss's curvature (arXiv 2605.18814 calls the whole-run case
    AdamW-influence, and replaces the curvature by the empirical Fisher matrix, which is not done
    here).

    Args:
        run: from `recorder.finish()` or `inrun.load`.
        utility: the validation loss; every target is carried in the same sweep.
        horizon: steps; the run is cut at multiples of it, and each step looks to the end of its
            window. 1 is the step's own effect, None the effect on the run's last state.
        removal: what a value stands against. 'renormalise': a training in which the others' mean is
            taken without the row. 'drop': one in which the others keep their weight.
        push: 'tangent', first order in the row's weight, or 'finite', the exact first step of the
            row's removal, whose moments then run on through the real optimizer (see `carry`)
            before the sweep takes over. The second materializes shares: for chosen samples, or
            small models.
        samples: ids that 'finite' is done for; None for all. Others have no value then.
        curvature: False leaves out the training loss's Hessian: what is left is how momentum passes
            a row on.
        carry: for how many steps 'finite' runs changed moments through the real optimizer before
            it goes on to first order; as many states are in memory. Adam's moments are run so only
            where a row is a good part of what an element has seen; elsewhere they are followed to
            the window's end by a series, which costs the same for any number of steps. With 0
            single values can be far off: elements with a small second moment respond to first
            order only over a short way.
        damped: True takes Adam's and AdamW's derivative as if second moments had also seen the
            square of what a removal is likely to change, so that an element whose first gradients
            come out next to 0 by chance does not blow single values up. False is the exact
            derivative of training. Other rules have the exact one in either case.

    Returns:
        Values in units of the validation loss; positive rows lowered it.

    Raises:
        InvariantError: the replay does not do what the run did; says what is not deterministic.
        MisuseError: a horizon, sample or name that is not one.
        NotSupportedError: no derivative is known for the optimizer.
    """
    _check_samples(run, push, samples)
    method = Method(
        windows(horizon, len(run.steps)),
        removal_named(removal),
        push_named(push, samples, carry),
        curvature,
        damped=damped,
    )
    return looked_ahead(run, utility, method)


def looked_ahead(run: Trajectory, utility: Utility, method: Method) -> Lookahead:
    """`lookahead` by any method, those among them that only comparisons need."""
    found = [
        (step.step.number, step.ends_at, block.ids, values.numpy())
        for step in sweep(run, utility, method)
        for block, values in zip(step.step.blocks, step.values, strict=True)
    ]
    return Lookahead(run, utility, found, method)


def _check_samples(run: Trajectory, push: str, samples: Collection[object] | None) -> None:
    if samples is None:
        return
    if push != "finite":
        raise MisuseError(
            "samples chooses what push='finite' is done for; the tangent push gives all samples at "
            "no more cost. Leave samples out, or pass push='finite'."
        )
    what = run.unvisited(samples)
    if what is not None:
        raise MisuseError(f"samples names {what}, which the run never visited.")


def value_columns(utility: Utility, values: np.ndarray) -> dict[str, Any]:
    """`value`, the weighted total of values (n, K), and with several targets one column each."""
    columns: dict[str, Any] = {"value": values @ np.asarray(utility.weights)}
    if len(utility.targets) > 1:
        columns |= {target: values[:, k] for k, target in enumerate(utility.targets)}
    return columns


class Lookahead(Answer):
    """What `inrun.lookahead` returns: tables of values.

    Args:
        run: that was looked along.
        utility: the validation loss, of K targets.
        parts: of each block its step, the state that it looks ahead to, its ids, and their values,
            (B, K), NaN where none was asked for.
        method: that made them, if it was look-ahead.
    """

    def __init__(
        self,
        run: Trajectory,
        utility: Utility,
        parts: Sequence[tuple[int, int, list[Any], np.ndarray]],
        method: Method | None = None,
    ):
        self._run, self._utility, self._method = run, utility, method
        self._parts = sorted(parts, key=lambda part: part[0])  # blocks stay in their order

    def to_arrow(self) -> pa.Table:
        """The same as `values`."""
        return self.values()

    def sentences(self) -> list[str]:
        """How many samples helped, and by how much."""
        value = self.values()["value"].to_numpy()
        return [
            f"{len(value):,} samples; {(value > 0).sum():,} lowered the validation loss, by "
            f"{value[value > 0].sum():.4g} together, {(value < 0).sum():,} raised it, by "
            f"{abs(value[value < 0].sum()):.4g}."
        ]

    def visits(self) -> pa.Table:
        """Every visit, in the order of the steps, and of their blocks.

        Returns:
            `step`, `sample_id`, `value`, `ends_at` (the state that the value looks ahead to), and
            with several targets one column each.
        """
        asked = [~np.isnan(values_BK[:, 0]) for *_, values_BK in self._parts]
        values = np.concatenate(
            [part[-1][keep] for part, keep in zip(self._parts, asked, strict=True)]
        )
        rows = [
            (step, who, ends_at)
            for (step, ends_at, ids, _), keep in zip(self._parts, asked, strict=True)
            for who, kept in zip(ids, keep.tolist(), strict=True)
            if kept
        ]
        steps, ids, ends = zip(*rows, strict=True)
        columns = value_columns(self._utility, values)
        return pa.table(
            {
                "step": pa.array(steps),
                "sample_id": pa.array(ids),
                "value": columns.pop("value"),
                "ends_at": pa.array(ends),
                **columns,
            }
        )

    def values(self) -> pa.Table:
        """Every sample, in the order of ids.

        Returns:
            `sample_id`, `value` (the sum over its visits, a contribution to the reduction of the
            validation loss: positive helped), `visits`, `first_step`, `last_step`, and with several
            targets one column each.
        """
        visits = self.visits()
        named = list(self._utility.targets) if len(self._utility.targets) > 1 else []
        sums = [("value", "sum"), *((target, "sum") for target in named)]
        grouped = visits.group_by("sample_id").aggregate(
            [*sums, ("step", "count"), ("step", "min"), ("step", "max")]
        )
        names = ["value", "visits", "first_step", "last_step", *named]
        sources = ["value_sum", "step_count", "step_min", "step_max", *(f"{t}_sum" for t in named)]
        table = pa.table(
            {"sample_id": grouped["sample_id"]}
            | {name: grouped[source] for name, source in zip(names, sources, strict=True)}
        )
        return table.sort_by("sample_id")

    def error_proxy(
        self, groups: int = 16, mixtures: int = 1, seed: int = 0, replays: int = 4
    ) -> ErrorProxy:
        """How far look-ahead can be trusted on this run, from the recorded run alone.

        One sweep forward, two backward, and the run played again a few times.

        Args:
            groups: into how many the steps are split; the median group counts, so that steps
                whose first order explodes do not.
            mixtures: random mixtures of each group's removals; all of all groups are carried
                forward side by side.
            seed: of groups and signs, and of the start's last digits.
            replays: how often the run is played again from a start that differs in them.

        Returns:
            How far from first order removal is, in three figures, and a verdict in words:
            `print(result.error_proxy())`. Measured against retraining in
            docs/evidence/influence.md.

        Raises:
            MisuseError: the values are not of the whole run or not of its own optimizer.
        """
        method = self._method
        if method is None or not method.is_whole:
            raise MisuseError(
                "The error proxy is for values over the whole run: call inrun.lookahead(run, "
                "utility) with horizon=None and the run's own dynamics."
            )
        removal, push = method.removal, push_named("tangent")
        plain, counted = (
            looked_ahead(
                self._run, self._utility, Method(method.ends, removal, push, kink_width=width)
            )._by_sample()
            for width in (0.0, KINK_WIDTH)
        )
        ratio, spread = second_order(
            self._run, self._utility, removal, plain, groups, mixtures, seed
        )
        digits = rounding(self._run, self._utility, plain, replays, seed)
        return ErrorProxy(ratio, spread, kink_share(plain, counted), digits)

    def _by_sample(self) -> dict[object, float]:
        table = self.values()
        return dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
