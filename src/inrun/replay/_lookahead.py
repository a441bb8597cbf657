"""`inrun.lookahead`: values of a recorded run at any horizon, as tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.errors import MisuseError
from inrun.replay._dynamics import dynamics_named
from inrun.replay._horizon import Curve, Horizon, Windows
from inrun.replay._kinks import KINK_WIDTH
from inrun.replay._proxy import ErrorProxy, kink_share, rounding, second_order
from inrun.replay._push import push_named
from inrun.replay._removal import removal_named
from inrun.replay._sweep import Method, sweep
from inrun.replay._trajectory import COPIES, Trajectory
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
    kink_width: float = 0.0,
    dynamics: str = "optimizer",
    curve: Mapping[int, float] | None = None,
    copies: int = COPIES,
    chunk: int = 16,
    carry: int = 40,
) -> Lookahead:
    """What each row of each step did to the validation loss `horizon` steps later.

    One sweep backward over the recorded run, exact to first order in the row's weight, for any
    architecture: the loss's gradient is carried through the optimizer's own derivative and the
    training loss's curvature (arXiv 2605.18814 calls the whole-run case AdamW-influence, and
    replaces the curvature by the empirical Fisher matrix, which is not done here).

    Args:
        run: from `recorder.finish()` or `inrun.open_trajectory`.
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
        curvature: False leaves out the training loss's Hessian: what is left is how momentum pays
            a row out.
        kink_width: a width, 0.01 for instance, counts the switching of ReLUs into the curvature, as
            its local mean; 0 is the exact Hessian, in which no unit ever switches.
        dynamics: 'optimizer', or 'sgd' to see what assuming plain SGD would cost.
        curve: weights by state (n: after n steps) of a sum over the validation curve, in place of
            the loss at the end; excludes `horizon`.
        copies: states in memory while a segment is played again.
        chunk: rows whose shares 'finite' has in memory at a time.
        carry: for how many steps 'finite' runs changed moments through the real optimizer before
            it goes on to first order; as many states are in memory. Adam's moments are run so only
            where a row is a good part of what an element has seen; elsewhere they are followed to
            the window's end by a series, which costs the same for any number of steps. With 0
            single values can be far off: elements with a small second moment respond to first
            order only over a short way.

    Returns:
        Values in units of the validation loss; positive rows lowered it.

    Raises:
        InvariantError: the replay does not do what the run did; says what is not deterministic.
        MisuseError: a horizon, state or name that is not one.
        NotSupportedError: no derivative is known for the optimizer.
    """
    _check(run, horizon, curve, push, samples)
    when: Horizon = Windows(horizon, len(run.steps))
    if curve is not None:
        when = Curve(curve, len(run.steps))
    method = Method(
        when,
        dynamics_named(dynamics),
        push_named(push, samples, chunk, carry),
        removal_named(removal),
        curvature,
        kink_width,
    )
    result = Lookahead(run, utility, method)
    for found in sweep(run, utility, method, copies):
        for block, values in zip(found.step.blocks, found.values, strict=True):
            result.add(found.step.number, found.ends_at, block.ids, values.numpy())
    return result


def _check(
    run: Trajectory,
    horizon: int | None,
    curve: Mapping[int, float] | None,
    push: str,
    samples: Collection[object] | None,
) -> None:
    if curve is not None and horizon is not None:
        raise MisuseError(
            "horizon and curve both say when the loss counts. Pass one of them: curve is for "
            "several times along the whole run."
        )
    if samples is None:
        return
    if push != "finite":
        raise MisuseError(
            "samples chooses what push='finite' is done for; the tangent push gives all samples at "
            "no more cost. Leave samples out, or pass push='finite'."
        )
    strangers = set(samples) - set(run.sample_ids())
    if strangers or not samples:
        what = f"the sample {min(map(repr, strangers))}" if strangers else "no sample at all"
        raise MisuseError(f"samples names {what}, which the run never visited.")


class Lookahead:
    """What `inrun.lookahead` returns: tables of values."""

    def __init__(self, run: Trajectory, utility: Utility, method: Method | None = None):
        self._run, self._utility, self._method = run, utility, method
        self._targets, self._weights = utility.targets, np.asarray(utility.weights)
        self._parts: list[dict[str, Any]] = []

    def add(self, step: int, ends_at: int, ids: list[Any], values_BK: np.ndarray) -> None:
        """Adds a block; the sweep's own business."""
        asked = ~np.isnan(values_BK[:, 0])
        kept = [i for i, keep in zip(ids, asked, strict=True) if keep]
        self._parts.append(
            {"step": step, "ends_at": ends_at, "ids": kept, "values": values_BK[asked]}
        )

    def visits(self) -> pa.Table:
        """Every visit, in the order of the steps, and of their blocks.

        Returns:
            `step`, `sample_id`, `value`, `ends_at` (the state that the value looks ahead to), and
            with several targets one column each.
        """
        parts = sorted(self._parts, key=lambda part: part["step"])  # blocks stay in their order
        ids = [i for part in parts for i in part["ids"]]
        values = np.concatenate([part["values"] for part in parts])
        columns: dict[str, Any] = {
            "step": [part["step"] for part in parts for _ in part["ids"]],
            "sample_id": ids,
            "value": values @ self._weights,
            "ends_at": [part["ends_at"] for part in parts for _ in part["ids"]],
        }
        if len(self._targets) > 1:
            columns |= {target: values[:, k] for k, target in enumerate(self._targets)}
        return pa.table(columns)

    def values(self) -> pa.Table:
        """Every sample, in the order of ids.

        Returns:
            `sample_id`, `value` (the sum over its visits, a contribution to the reduction of the
            validation loss: positive helped), `visits`, `first_step`, `last_step`, and with several
            targets one column each.
        """
        visits = self.visits()
        named = list(self._targets) if len(self._targets) > 1 else []
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
            groups: into how many the steps are dealt; the median group counts, so that steps
                whose first order explodes do not.
            mixtures: random mixtures of each group's removals; all of all groups are carried
                forward side by side.
            seed: of groups and signs, and of the start's last digits.
            replays: how often the run is played again from a start that differs in them.

        Returns:
            How far from first order removal is, in three figures, and a verdict in words:
            `print(result.error_proxy())`. docs/influence.md has what they were measured against.

        Raises:
            MisuseError: the values are not of the whole run or not of its own optimizer.
        """
        method = self._method
        if method is None or not method.horizon.whole or method.dynamics.name != "optimizer":
            raise MisuseError(
                "The error proxy is for values over the whole run: call inrun.lookahead(run, "
                "utility) with horizon=None and the run's own dynamics."
            )
        removal = method.removal
        plain, counted = (
            lookahead(self._run, self._utility, removal=removal.name, kink_width=width)._by_sample()
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
