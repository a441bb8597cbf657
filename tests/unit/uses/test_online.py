"""Online selection against really taking the steps, and against plain training on the chosen."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import inrun
from inrun.errors import MisuseError, NotSupportedError
from inrun.optim import rule_for
from inrun.replay import AnticipatedStep, Rollout, Task
from inrun.uses import anticipating
from tests.integration.runs import RUNS
from tests.oracles import shares as shares_oracle
from tests.oracles.selection import TakenSteps

N, PLACES, HELD = 8, 3, 10
exact = partial(inrun.lookahead, damped=False)  # online selection looks ahead by exact slopes


def adamw(model, lr=3e-3):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.8, 0.95))


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def steep(model):
    """A rate at which one step overshoots; linear in the gradient, so no step is young."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


class Loop:
    """An ordinary training loop on a few samples; the last rows are for validation."""

    def __init__(self, name="mlp", optimizer=adamw, clip=None, warm=12):
        build, draw, self.terms_of = RUNS[name]
        self.data = draw(torch.Generator().manual_seed(4), 30 + HELD)
        self.clip = clip
        torch.manual_seed(0)
        self.model = build().double()
        self.optimizer = optimizer(self.model)
        held = tuple(t[30:] for t in self.data)
        self.utility = inrun.Utility(lambda m, batch: self.terms_of(m, *batch).mean(), held)
        for step in range(warm):  # past Adam's first steps
            self.loss([(4 * step + i) % 30 for i in range(4)]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def fetch(self, ids):
        return tuple(t[torch.as_tensor(list(ids))] for t in self.data)

    def losses(self, model, batch):
        return self.terms_of(model, *batch) / len(batch[0])

    def loss(self, ids):
        return self.terms_of(self.model, *self.fetch(ids)).mean()

    def select(self, keep=PLACES, by="value", horizon=1, rounds=4, **how):
        """As `inrun.select.online`; `how` may hold what only comparisons ask for."""
        of_loop = {name: how.pop(name) for name in ("reduction", "steps") if name in how}
        loop = inrun.select.Loop(self.losses, self.fetch, self.clip, **of_loop)
        return anticipating(
            self.model, self.optimizer, self.utility, keep, by, horizon, rounds, loop,
            **{"seed": 0, **how},
        )  # fmt: skip

    def gradient(self, ids):
        """Of plain training on these rows."""
        found = torch.autograd.grad(self.loss(ids), list(self.model.parameters()))
        return torch.cat([g.flatten() for g in found])

    def present(self):
        return torch.cat([p.grad.flatten() for p in self.model.parameters()])

    def taken(self):
        def terms(model, rows):
            return self.terms_of(model, *self.fetch(rows))

        def judge(model):
            return self.utility.loss_fn(model, next(iter(self.utility.batches.values())))

        return TakenSteps(self.model, self.optimizer, terms, judge, self.clip)

    def run(self, selection, batches):
        for ids in batches:
            with selection.batch(ids):
                self.loss(ids).backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()


def candidates(first=0):
    return [(first + 7 * i) % 30 for i in range(N)]


def scores(selection):
    return torch.tensor(selection.history()["score"].to_numpy()[-N:])


def near(found, wanted, tolerance):
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max(), (found, wanted)


@pytest.mark.parametrize("name", RUNS)
def test_the_gradient_is_that_of_training_on_the_chosen_alone(name):
    loop = Loop(name)
    with loop.select() as selection:
        with selection.batch(candidates()):
            loop.loss(candidates()).backward()
        assert 0 < len(selection.chosen) < N
        # Llama's own norms go through float32
        near(loop.present(), loop.gradient(selection.chosen), 1e-6 if name == "llama" else 1e-12)


@pytest.mark.parametrize(
    "how",
    [{}, {"horizon": 3}, {"rounds": None}, {"rounds": None, "horizon": 3}, {"by": "random"},
     {"by": "loss"}],
)  # fmt: skip
def test_training_is_plain_training_on_the_chosen(how):
    loop, twin = Loop(clip=0.4), Loop(clip=0.4)
    batches = [candidates(step) for step in range(6)]
    with loop.select(**how) as selection:
        loop.run(selection, batches)
    history = selection.history()
    chosen = history.filter(history["chosen"])
    for step in range(1, 7):
        rows = chosen["sample_id"].to_numpy()[chosen["step"].to_numpy() == step].tolist()
        assert len(rows) == PLACES
        twin.loss(rows).backward()
        nn.utils.clip_grad_norm_(twin.model.parameters(), twin.clip)
        twin.optimizer.step()
        twin.optimizer.zero_grad()
    for p, q in zip(loop.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


CASES = [
    (name, optimizer, clip, horizon)
    for name, optimizer in (("mlp", adamw), ("mlp", momentum), ("cnn", adamw), ("gpt2-tied", adamw))
    for clip in (None, 0.3)
    for horizon in (1, 4)
]


@pytest.mark.parametrize(
    ("name", "optimizer", "clip", "horizon"), CASES, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_values_are_central_differences_of_taking_the_steps(name, optimizer, clip, horizon):
    loop = Loop(name, optimizer, clip)
    later = [[1, 2, 3], [4, 5, 6], [7, 8, 9]][: horizon - 1]
    slopes = loop.taken().slopes(candidates(), [1.0] * N, later)
    with loop.select(horizon=horizon, upcoming=lambda n: later) as selection:
        with selection.batch(candidates()):
            loop.loss(candidates()).backward()
    # a weight in the mean over all N moves it by 1/N, a place in the mean over k by 1/k
    near(scores(selection), -slopes * N / PLACES, 1e-5)


@pytest.mark.parametrize("horizon", [1, 3])
def test_values_are_those_of_lookahead_but_for_a_factor(horizon):
    loop = Loop(clip=0.3)
    batches = [candidates(), [1, 2, 3], [4, 5, 6]][:horizon]
    twin = copy.deepcopy((loop.model, loop.optimizer))
    with loop.select(horizon=horizon, upcoming=lambda n: batches[1:]) as selection:
        with selection.batch(candidates()):
            loop.loss(candidates()).backward()
    model, optimizer = twin
    recorder = inrun.record(model, optimizer, loop.losses, loop.fetch, clip_norm=0.3)
    for ids in batches:
        with recorder.batch(ids):
            loop.losses(model, loop.fetch(ids)).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
    values = exact(recorder.finish(), loop.utility, horizon).visits()["value"]
    near(scores(selection) * PLACES / (N - 1), torch.tensor(values.to_numpy()[:N]), 1e-9)


def test_one_roll_out_serves_later_steps_where_they_go_as_it_expected():
    """The adjoint in every state of the way, against look-ahead's own values there."""
    loop = Loop(clip=0.3)
    batches = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    model, optimizer = copy.deepcopy((loop.model, loop.optimizer))
    task = Task(loop.losses, loop.fetch, 0.3)
    rollout = Rollout(model, optimizer, task, loop.utility)
    parameters = dict(model.named_parameters())
    recorder = inrun.record(model, optimizer, loop.losses, loop.fetch, clip_norm=0.3)
    plan, found = [], []
    for step, ids in enumerate(batches):
        with recorder.batch(ids):
            loop.losses(model, loop.fetch(ids)).sum().backward()
        raw = {name: p.grad.clone() for name, p in parameters.items()}
        anticipated = AnticipatedStep(optimizer, rule_for(optimizer), parameters, raw, 0.3)
        if not plan:
            plan = rollout.ahead(anticipated.consumed(), batches[1:], len(batches))
            assert len(plan) == len(batches)
        p = anticipated.taken_back(plan[step])
        rows = shares_oracle.shares(
            model, lambda m, rows, ids=ids: loop.losses(m, loop.fetch(ids))[rows], 3, parameters
        )
        found.append(sum((rows[n] * p[n]).flatten(1).sum(1) for n in p))
        for name, q in parameters.items():
            q.grad = raw[name]
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
    values = exact(recorder.finish(), loop.utility, removal="drop").visits()["value"]
    near(-torch.cat(found), torch.tensor(values.to_numpy()), 1e-9)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_one_round_a_place_is_greedy_choice_by_taking_the_steps(clip):
    """At a rate at which the chosen ones' effects on each other decide."""
    loop = Loop(optimizer=steep, clip=clip)
    at_once = []
    for first in range(6):
        wanted = loop.taken().greedy(candidates(first), PLACES)
        picked = []
        for rounds in (PLACES, 1):
            with loop.select(rounds=rounds) as selection:
                with selection.batch(candidates(first)):
                    loop.loss(candidates(first)).backward()
            picked.append(sorted(candidates(first).index(i) for i in selection.chosen))
            loop.optimizer.zero_grad()
        assert picked[0] == wanted
        at_once.append(picked[1] == wanted)
    assert not all(at_once)


def test_copies_of_one_candidate_are_worth_less_to_each_other():
    """Once it has a place, the same row again adds less; without rounds that cannot be seen."""
    loop = Loop(optimizer=steep)
    kinds = {1: [], PLACES: []}
    for copied in range(30):
        rows = [copied] * 4 + [1, 11, 22, 29]
        for rounds, found in kinds.items():
            with loop.select(rounds=rounds) as selection:
                with selection.batch(rows):
                    loop.loss(rows).backward()
            loop.optimizer.zero_grad()
            found.append(len(set(selection.chosen)))
    assert min(kinds[1]) == 1
    assert sum(kinds[PLACES]) > sum(kinds[1])


def test_blocks_before_a_step_accumulate():
    loop = Loop()
    with loop.select() as selection:
        chosen = []
        for first in (0, 1):
            with selection.batch(candidates(first)):
                (loop.loss(candidates(first)) / 2).backward()
            chosen.append(selection.chosen)
        wanted = (loop.gradient(chosen[0]) + loop.gradient(chosen[1])) / 2
        near(loop.present(), wanted, 1e-12)


def test_weighted_means_stay_weighted_means_of_the_chosen():
    loop = Loop()
    weights = torch.linspace(1, 4, N, dtype=torch.float64)

    def weighted(ids, w):
        return (w * loop.terms_of(loop.model, *loop.fetch(ids))).sum() / w.sum()

    with loop.select() as selection:
        with selection.batch(candidates(), weights=weights):
            weighted(candidates(), weights).backward()
        rows = [candidates().index(i) for i in selection.chosen]
        found = torch.autograd.grad(
            weighted(selection.chosen, weights[rows]), list(loop.model.parameters())
        )
        near(loop.present(), torch.cat([g.flatten() for g in found]), 1e-12)
        # better and worse than the mean over all is balanced
        assert abs(float(scores(selection).sum())) <= 1e-12 * float(scores(selection).abs().sum())


def test_sums_stay_sums():
    loop = Loop()
    with loop.select(reduction="sum") as selection:
        with selection.batch(candidates()):
            (loop.loss(candidates()) * N).backward()
        near(loop.present(), loop.gradient(selection.chosen) * PLACES, 1e-12)


def test_a_block_no_larger_than_the_places_is_trained_on_whole():
    loop = Loop()
    ids = candidates()[:PLACES]
    with loop.select() as selection:
        with selection.batch(ids):
            loop.loss(ids).backward()
        assert torch.equal(loop.present(), loop.gradient(ids))
    assert selection.history()["score"].null_count == PLACES


def test_a_share_of_the_rows_is_rounded():
    loop = Loop()
    with loop.select(keep=0.5) as selection:
        with selection.batch(candidates()):
            loop.loss(candidates()).backward()
    assert len(selection.chosen) == N // 2


def test_the_loss_control_takes_the_largest():
    loop = Loop()
    with torch.no_grad():
        losses = loop.terms_of(loop.model, *loop.fetch(candidates()))
    with loop.select(by="loss") as selection:
        with selection.batch(candidates()):
            loop.loss(candidates()).backward()
    near(scores(selection), losses, 1e-12)
    largest = {candidates()[i] for i in losses.topk(PLACES).indices.tolist()}
    assert set(selection.chosen) == largest


def test_the_random_control_is_repeated_by_its_seed_and_no_other():
    def drawn(seed):
        loop = Loop()
        with loop.select(by="random", seed=seed) as selection:
            loop.run(selection, [candidates(step) for step in range(4)])
        return selection.history()["chosen"].to_pylist()

    assert drawn(0) == drawn(0) != drawn(1)


def test_looking_ahead_leaves_no_trace_in_training():
    """Dropout in the model: random state, weights and moments are as after a plain pass."""

    def after(select):
        loop = Loop(warm=0)
        loop.model = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 4)).double()
        loop.optimizer = adamw(loop.model)
        loop.loss(range(4)).backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        torch.manual_seed(7)
        if select:
            with loop.select(horizon=4) as selection, selection.batch(candidates()):
                loop.loss(candidates()).backward()
        else:
            loop.loss(candidates()).backward()
        state = loop.optimizer.state_dict()["state"]
        moments = [t.clone() for part in state.values() for t in part.values()]
        return [
            torch.get_rng_state(),
            *[p.detach().clone() for p in loop.model.parameters()],
            *moments,
        ]

    torch.manual_seed(0)
    chosen = after(True)
    torch.manual_seed(0)
    plain = after(False)
    assert all(torch.equal(a, b) for a, b in zip(chosen, plain, strict=True))


def test_the_run_s_end_is_never_looked_past():
    loop, asked = Loop(), []

    def upcoming(n):
        asked.append(n)
        return [[1, 2, 3]] * n

    with loop.select(horizon=4, every=1, steps=6, upcoming=upcoming) as selection:
        loop.run(selection, [candidates(step) for step in range(6)])
    assert asked == [3, 3, 3, 2, 1]  # the last step needs no batch


def test_detach_leaves_no_trace():
    loop = Loop()
    before = len(loop.optimizer._optimizer_step_pre_hooks)
    selection = loop.select()
    selection.detach()
    assert len(loop.optimizer._optimizer_step_pre_hooks) == before
    with pytest.raises(MisuseError, match="was detached"), selection.batch(candidates()):
        pass


def test_a_block_that_fails_leaves_gradients_as_they_were():
    loop = Loop()
    loop.loss([1, 2]).backward()
    before = loop.present()
    with loop.select() as selection:
        with pytest.raises(ZeroDivisionError), selection.batch(candidates()):
            raise ZeroDivisionError
        assert torch.equal(loop.present(), before)


BAD = [
    ({"keep": 0}, "keep is 0"),
    ({"keep": 1.5}, "keep is 1.5"),
    ({"by": "luck"}, "is not one of value, random, loss"),
    ({"horizon": 0}, "horizon is 0"),
    ({"horizon": None}, "must say how many steps"),
    ({"rounds": 0}, "rounds is 0"),
    ({"reduction": "max"}, "is not one of mean, sum"),
]


@pytest.mark.parametrize(("how", "message"), BAD, ids=str)
def test_arguments_that_mean_nothing_are_refused(how, message):
    with pytest.raises(MisuseError, match=message):
        Loop().select(**how)


@pytest.mark.parametrize("how", [{"horizon": 2}, {"by": "loss"}])
def test_what_goes_through_rows_again_needs_to_be_told_how(how):
    loop = Loop()
    with pytest.raises(MisuseError, match=r"needs loop=inrun\.select\.Loop\(losses="):
        inrun.select.online(loop.model, loop.optimizer, loop.utility, PLACES, **how)


def test_losses_that_are_not_the_loop_s_are_refused_at_the_first_block():
    loop = Loop()
    with loop.select(horizon=3) as selection:
        with pytest.raises(MisuseError, match="times the training loss"):
            with selection.batch(candidates()):
                (3 * loop.loss(candidates())).backward()


def test_a_change_of_the_gradient_that_was_not_told_is_refused():
    loop = Loop()
    with loop.select() as selection:
        with selection.batch(candidates()):
            loop.loss(candidates()).backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1e-3)
        with pytest.raises(MisuseError, match="clip_norm"):
            loop.optimizer.step()


def test_upcoming_must_give_as_many_batches_as_it_is_asked_for():
    loop = Loop()
    with loop.select(horizon=3, upcoming=lambda n: []) as selection:
        with pytest.raises(MisuseError, match="returned 0 batches"):
            with selection.batch(candidates()):
                loop.loss(candidates()).backward()


def test_weights_that_do_not_fit_the_rows_are_refused():
    loop = Loop()
    with loop.select() as selection:
        with pytest.raises(MisuseError, match="one number of at least 0 for each of the 8 rows"):
            with selection.batch(candidates(), weights=torch.ones(3)):
                loop.loss(candidates()).backward()


def slope_values(loop, clip=None):
    """Minus <mean slope of the real step from no gradient to this one, shares>, by hand."""
    taken, ids = loop.taken(), candidates()
    model, optimizer = copy.deepcopy((loop.model, loop.optimizer))
    for p, q in zip(loop.model.parameters(), model.parameters(), strict=True):
        q.grad = torch.zeros_like(p)
    optimizer.step()
    null = [q.detach().clone() for q in model.parameters()]
    model, optimizer = copy.deepcopy((loop.model, loop.optimizer))
    taken.step(model, optimizer, ids, [1.0] * N)
    gradients = [p.grad for p in model.parameters()]
    slopes = [
        torch.where(g == 0, 0.0, (q - n) / torch.where(g == 0, 1.0, g))
        for g, q, n in zip(gradients, model.parameters(), null, strict=True)
    ]
    judged = torch.autograd.grad(taken.judge(model), list(model.parameters()))
    each = [loop.gradient([i]) for i in ids]
    direction = torch.cat([(s * v).flatten() for s, v in zip(slopes, judged, strict=True)])
    mean = torch.stack(each).mean(0)
    return torch.stack([-(direction @ (row - mean)) / PLACES for row in each]).detach()


@pytest.mark.parametrize("warm", [0, 3])
def test_young_adam_is_looked_at_through_its_mean_slope(warm):
    loop = Loop(warm=warm)
    wanted = slope_values(loop)
    with loop.select(horizon=4) as selection, selection.batch(candidates()):
        loop.loss(candidates()).backward()
    near(scores(selection), wanted, 1e-6)


def rprop(model):
    return torch.optim.Rprop(model.parameters(), lr=1e-3)


def test_sign_like_optimizers_look_one_step_ahead_through_their_mean_slope():
    loop = Loop(optimizer=rprop)
    wanted = slope_values(loop)
    with loop.select() as selection, selection.batch(candidates()):
        loop.loss(candidates()).backward()
    near(scores(selection), wanted, 1e-6)


def test_further_ahead_sign_like_optimizers_are_refused_with_the_way_round():
    with pytest.raises(NotSupportedError, match="steps by signs"):
        Loop(optimizer=rprop).select(horizon=2)


def test_rotating_parts_of_the_validation_rows_take_turns():
    loop, seen = Loop(), []
    held = tuple(t[30:] for t in loop.data)

    def judge(model, batch):
        seen.append(batch[0][0, 0].item())
        return loop.terms_of(model, *batch).mean()

    loop.utility = inrun.Utility(judge, held).split(2)
    with loop.select(rounds=2) as selection:
        seen.clear()
        loop.run(selection, [candidates(step) for step in range(4)])
    first, second = held[0][0, 0].item(), held[0][1, 0].item()
    assert seen == [first, first, second, second] * 2


def test_parameters_outside_the_model_are_refused():
    loop = Loop()
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2).double())]})
    with pytest.raises(MisuseError, match="of which the model has"):
        loop.select()


def test_what_is_drawn_follows_manual_seed_and_draws_from_no_one_else():
    def chosen(seed):
        loop = Loop()
        torch.manual_seed(seed)
        select = inrun.select.online(loop.model, loop.optimizer, loop.utility, PLACES, by="random")
        with select as selection:
            loop.run(selection, [candidates(step) for step in range(4)])
            history = selection.history()
        assert torch.initial_seed() == seed
        return history["chosen"].to_pylist(), torch.rand(3).tolist()

    first, after = chosen(1)
    torch.manual_seed(1)
    assert after == torch.rand(3).tolist()
    assert (first, after) == chosen(1)
    assert first != chosen(2)[0]
