"""The per-layer plan: what it says, and that each layer is trained as it says."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advisor.costs import Simulator
from advisor.errors import InputError
from advisor.methods import get_method, learning_rates
from advisor.methods.plan import read, written
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from advisor.training.update import begin, update
from tests.methods.matrix import BATCH, SIZE, network

WEIGHTS = ("freeze", "bias", "sparse0.25", "lora2", "full")
TEXT = "freeze:1-3,norm:4-6,lora2+norm:7-9,full+norm:10-14"


def census_and_model():
    torch.manual_seed(0)
    model = network()
    return take_census(model, SIZE), model


CENSUS, MODEL = census_and_model()


def planned(text: str, levers: Levers | None = None) -> Candidate:
    return Candidate.of("plan", {"layers": text}, levers or Levers())


def codes_in(text: str) -> list[str]:
    """What is done in each layer."""
    places = [run for run in read(text) for _ in range(run.first, run.last + 1)]
    return [run.of(layer) for run, layer in zip(places, CENSUS.layers, strict=True)]


@given(st.lists(st.sampled_from(WEIGHTS), min_size=14, max_size=14), st.lists(st.booleans(), min_size=14))
def test_what_is_written_is_read_back(weights, norms):
    codes = [
        ("norm" if norms[place] else "freeze") if layer.layer_type == "norm" else weights[place]
        for place, layer in enumerate(CENSUS.layers)
    ]
    text = written(CENSUS, codes)
    found = codes_in(text)
    for layer, code, again in zip(CENSUS.layers, codes, found, strict=True):
        if layer.parameters and layer.name != CENSUS.head:
            assert again == code
    assert written(CENSUS, found) == text
    candidate = planned(text, Levers(checkpoint=True))
    assert Candidate.parse(candidate.id) == candidate
    assert candidate.short == "plan@checkpoint"


def test_a_layer_that_is_alone_is_a_run():
    runs = read("full:1,freeze:2-13,norm:14")
    assert [(run.first, run.last) for run in runs] == [(1, 1), (2, 13), (14, 14)]
    assert ",".join(map(str, runs)) == "full:1,freeze:2-13,norm:14"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no run of layers"),
        ("all of it", "is no run of layers"),
        ("full:2-14", "'full:2-14' stands where layer 1 should"),
        ("full:1-3,norm:3-14", "'norm:3-14' stands where layer 4 should"),
        ("full:1-3,norm:9-4", "stands where layer 4 should"),
        ("tune:1-14", "'tune' is nothing that is done in a layer"),
        ("lora:1-14", "'lora' is nothing that is done"),
        ("lora0:1-14", "'lora0' is nothing that is done"),
        ("lora1.5:1-14", "'lora1.5' is nothing that is done"),
        ("sparse2:1-14", "'sparse2' is nothing that is done"),
        ("norm4:1-14", "'norm4' is nothing that is done"),
        ("lora4+full:1-14", "'lora4+full' is more than can be done in one layer"),
        ("norm+full:1-14", "'norm+full' is more than can be done in one layer"),
        ("full:1-13", "says what to do in 13 layers, and there are 14"),
        ("full:1-15", "says what to do in 15 layers, and there are 14"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(text, said):
    with pytest.raises(InputError) as error:
        get_method("plan").attach(copy.deepcopy(MODEL), CENSUS, {"layers": text})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_says_itself_which_layers_are_trained():
    with pytest.raises(InputError, match="all of it"):
        begin(copy.deepcopy(MODEL), CENSUS, planned(TEXT, Levers(scope=1)), 1e-3)


def test_each_layer_is_trained_as_the_plan_says():
    text = "full:1,norm:2-4,bias:5-6,sparse0.25:7-9,lora2+norm:10-12,freeze:13-14"
    layers = [layer.name for layer in CENSUS.layers]
    trainable = get_method("plan").attach(copy.deepcopy(MODEL), CENSUS, {"layers": text})
    by_layer = {
        name: [p.removeprefix(f"{name}.") for p in trainable.parameters if p.startswith(f"{name}.")]
        for name in layers
    }
    kinds = {layer.name: layer.layer_type for layer in CENSUS.layers}
    for number, name in enumerate(layers, 1):
        parameters, kind = by_layer[name], kinds[name]
        holds = bool(list(MODEL.get_submodule(name).parameters(recurse=False)))
        if name == CENSUS.head:
            assert parameters == ["weight", "bias"]
        elif not holds or number >= 13:
            assert parameters == []
        elif kind == "norm":
            assert parameters == (["weight", "bias"] if number in (2, 3, 4, 10, 11, 12) else [])
        elif number == 1:
            assert parameters == ["weight"]
        elif 5 <= number <= 6:
            assert set(parameters) <= {"bias"}
        elif 7 <= number <= 9:
            assert parameters == ["peft_sparse.rows"]
        elif 10 <= number <= 12:
            assert parameters == ["peft_bypass.down.weight", "peft_bypass.up.weight"]


def test_it_is_told_by_the_layers_names():
    trainable = get_method("plan").attach(
        copy.deepcopy(MODEL), CENSUS, {"layers": "full:1,freeze:2-9,norm:10-14"}
    )
    first, tenth, last = (CENSUS.layers[place].name for place in (0, 9, 13))
    assert trainable.notes == (
        f"plan: full in layer 1 ({first}); norm in layers 10 to 14 ({tenth} to {last})",
    )


def test_what_other_methods_train_moves_at_their_own_rates():
    candidate = planned("full+norm:1-6,sparse0.25:7-9,lora2+norm:10-14")
    for levers in (Levers(), Levers(update="per-parameter"), Levers(optimizer="sgd")):
        chosen = planned(dict(candidate.setting)["layers"], levers)
        rate = learning_rates(chosen)[1]
        trainable, optimizer = begin(copy.deepcopy(MODEL), CENSUS, chosen, rate)
        names = {id(parameter): name for name, parameter in trainable.parameters.items()}
        found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert set(found) == set(trainable.parameters)
        for name, moved in found.items():
            like = "sparse" if "peft_sparse" in name else "lora" if "peft_bypass" in name else None
            if like is None:
                like = "norm" if trainable.parameters[name].ndim == 1 else "full"
            expected = learning_rates(Candidate(like, levers=levers))[1]
            assert moved == pytest.approx(expected), name


def test_stepped_at_once_it_trains_the_same():
    found = []
    for levers in (Levers(), Levers(update="per-parameter")):
        torch.manual_seed(1)
        trainable, optimizer = begin(copy.deepcopy(MODEL), CENSUS, planned(TEXT, levers), 1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done))
        torch.manual_seed(2)
        for _ in range(3):
            update(trainable, optimizer, torch.randn(BATCH, *SIZE), torch.randint(0, 5, (BATCH,)))
            schedule.step()
        found.append({name: parameter.detach().clone() for name, parameter in trainable.parameters.items()})
    for name, parameter in found[0].items():
        torch.testing.assert_close(parameter, found[1][name], rtol=0, atol=0)


def test_training_the_first_layer_alone_costs_no_other_weight_gradient():
    simulator = Simulator(MODEL, CENSUS)
    first = simulator.cost(planned("full:1,freeze:2-14"), BATCH)
    norm = simulator.cost(planned("norm:1-14"), BATCH)
    full = simulator.cost(Candidate("full"), BATCH)
    assert first.trainable_parameters == MODEL[0][0].weight.numel() + sum(
        p.numel() for p in MODEL.get_submodule(CENSUS.head).parameters()
    )
    assert first.flops.input_gradient == pytest.approx(norm.flops.input_gradient, rel=0.1)
    assert first.flops.weight_gradient < full.flops.weight_gradient / 2


def test_a_network_without_a_head_has_no_plan():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert get_method("plan").settings(take_census(model, SIZE), (2,)) == []
