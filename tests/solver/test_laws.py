"""What holds of every choice: more allowed never makes it worse, and each promise comes true."""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.records import LIMITS, Accuracy, Budget, Candidate, Cost, Evaluation, Flops, Memory
from advisor.solver import pareto_front, parse_budget, relaxations, solve
from advisor.solver.choose import cheapest_first, is_as_good
from advisor.solver.limits import LIMIT, judged, limits_of

SAMPLES = 60
sizes = st.integers(1, 30) | st.integers(10**6, 3 * 10**6)


@st.composite
def evaluations(draw, most=7):
    found = []
    for number in range(draw(st.integers(1, most))):
        trained, retained, accuracy = draw(sizes), None, None
        if draw(st.integers(0, 4)):
            answers = draw(st.integers(0, 2**SAMPLES - 1))  # one number is drawn sooner than sixty
            correct = bytes(answers >> sample & 1 for sample in range(SAMPLES))
            mean = sum(correct) / SAMPLES
            if draw(st.booleans()):
                old = draw(st.floats(0.3, 0.9))
                retained = Accuracy(old, 0.2, old + draw(st.sampled_from((0.02, 0.06))), SAMPLES)
            is_last = draw(st.integers(0, 3)) > 0
            accuracy = Accuracy(mean, 0.0, 1.0, SAMPLES, correct, finalist=is_last, retained=retained)
        made = Cost(
            trained,
            draw(sizes),
            Flops(forward=draw(sizes)),
            Memory(weights=draw(sizes)),
            {},
            "simulated",
            inference_flops_ratio=1 + draw(st.sampled_from((0.0, 0.0, 0.0123, 0.2))),
        )
        found.append(Evaluation(Candidate(f"m{number}"), made, accuracy=accuracy))
    return found


@st.composite
def budgets(draw, among=LIMITS):
    names = draw(st.sets(st.sampled_from(among), max_size=4))
    values = {"max_overhead": st.floats(0, 0.3), "step_time": st.floats(0.001, 3)}
    values |= dict.fromkeys(("min_accuracy", "min_retained"), st.floats(0.2, 0.9))
    limits = {LIMIT[name].field: draw(values.get(name, sizes)) for name in sorted(names)}
    overhead = draw(st.integers(0, 50)) if "ram" in names else 0
    if overhead:
        limits["ram_bytes"] += overhead
    return Budget(
        **limits,
        tolerance=draw(st.sampled_from((0.0, 0.01, 0.05))),
        prefer=draw(st.sampled_from(("ram", "flops", "storage"))),
        runtime_overhead_bytes=overhead,
        warn=tuple(sorted(draw(st.sets(st.sampled_from(sorted(names)), max_size=1)))) if names else (),
    )


def choice(found, budget):
    choices = solve(found, budget, None).choices
    return choices[0] if choices else None


def typed_again(sentence, budget):
    """The budget with the limits that the sentence prints, read as the command line reads them."""
    options = dict(re.findall(r"(--[a-z-]+) (\S+)", sentence))
    changes = {}
    for name, limit in LIMIT.items():
        if limit.option in options:
            key = {"flops": "flops", "ram": "ram", "storage": "storage"}.get(name, name)
            parsed = parse_budget(**{key: options[limit.option]})
            changes[limit.field] = getattr(parsed, limit.field)
    assert changes
    return replace(budget, **changes)


@given(evaluations(), budgets())
@settings(max_examples=150, deadline=None)
def test_every_promise_comes_true_as_it_is_printed(found, budget):
    chosen = choice(found, budget)
    for item in relaxations(chosen, found, budget, None):
        other = typed_again(item.sentence, budget)
        assert set(item.limits) <= set(limits_of(budget))
        if item.effect == "fits":
            [admitted] = [e for e in judged(found, other) if e.candidate.id == item.candidate_id]
            assert admitted.fits
        else:
            answer = choice(found, other)
            assert (answer.candidate.id if answer else None) == item.candidate_id
        if item.effect == "stays":
            assert item.candidate_id == chosen.candidate.id


@given(evaluations(), budgets())
@settings(max_examples=100, deadline=None)
def test_where_nothing_fits_something_is_said_that_would(found, budget):
    """Unless nothing gets anything right: no floor is low enough, as 0 is none."""
    known = [e for e in found if e.accuracy and e.accuracy.mean and e.accuracy.retained]
    if choice(found, budget) is None and known:
        ways = relaxations(None, found, budget, None)
        assert ways
        assert len({len(way.limits) for way in ways}) == 1


@given(evaluations(), budgets(), st.data())
@settings(max_examples=200, deadline=None)
def test_more_allowed_never_gives_a_worse_choice(found, budget, data):
    """It is as accurate, or cheaper and as good as the best there is then, or it forgets less."""
    limits = {}
    for name in limits_of(budget):
        limit, value = LIMIT[name], getattr(budget, LIMIT[name].field)
        factor = data.draw(st.floats(0.2, 1) if limit.at_least else st.floats(1, 5))
        limits[limit.field] = type(value)(value * factor)
    looser = replace(budget, **limits)
    tight, loose = choice(found, budget), choice(found, looser)
    if tight is None:
        return
    assert loose is not None
    if tight.accuracy is None or loose.accuracy is None:
        assert tight.accuracy is None  # what is known goes before what isn't
        return
    if tight.accuracy.finalist != loose.accuracy.finalist:
        assert loose.accuracy.finalist
        return
    if loose.accuracy.mean < tight.accuracy.mean:
        old = [a.retained for a in (tight.accuracy, loose.accuracy)]
        forgets_less = bool(old[1]) and old[1].mean > (old[0].mean if old[0] else 0.0)
        assert cheapest_first([tight, loose], budget)[0] is loose or forgets_less
        fitting = [e.accuracy for e in judged(found, looser) if e.fits and e.accuracy]
        best = max((a for a in fitting if a.finalist == loose.accuracy.finalist), key=lambda a: a.mean)
        assert is_as_good(loose.accuracy, best, budget)


@given(evaluations(), budgets())
@settings(max_examples=100, deadline=None)
def test_the_choice_fits_and_is_on_the_front(found, budget):
    chosen = choice(found, budget)
    if chosen is None:
        return
    fitting = [e for e in judged(found, budget) if e.fits]
    assert chosen in fitting
    front = pareto_front(fitting)
    if chosen.accuracy is None or chosen.accuracy.finalist:
        assert chosen in front
    assert front


@given(evaluations(), budgets(), st.randoms(), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_neither_order_nor_what_is_beaten_changes_anything(found, budget, random, more):
    ids = [e.candidate.id for e in solve(found, budget, None).choices]
    shuffled = random.sample(found, len(found))
    assert [e.candidate.id for e in solve(shuffled, budget, None).choices] == ids
    chosen = choice(found, budget)
    model = random.choice(found)
    cost = replace(
        model.cost, delta_bytes=model.cost.delta_bytes + more, memory=Memory(model.cost.memory.weights + more)
    )
    beaten = Evaluation(Candidate("zz"), cost, accuracy=model.accuracy)
    again = choice([*found, beaten], budget)
    assert (again and again.candidate) == (chosen and chosen.candidate)


@given(st.sampled_from(LIMITS), st.floats(1e-4, 1e12))
def test_limits_that_are_typed_hold_on_the_side_they_promise(name, value):
    limit = LIMIT[name]
    if limit.share:
        value = min(value, 0.999)
    elif limit.parse("5s" if name == "step_time" else limit.typed(5)) == 5 and limit.least == 1:
        value = round(value)
    tight, loose = limit.meeting(value), limit.missing(value)
    if tight is not None:
        assert limit.is_met(value, limit.parse(limit.typed(tight)))
        assert abs(tight - value) <= max(0.011 * value, limit.least)
    if loose is not None:
        assert not limit.is_met(value, limit.parse(limit.typed(loose)))
        assert abs(loose - value) <= max(0.021 * value, 2 * limit.least)
