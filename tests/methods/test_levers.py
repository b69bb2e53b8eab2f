"""What each lever promises: the same update for less memory, or what it changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.errors import InputError
from advisor.models.blocks import front_modules, run_front, trained_part, without_front
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from advisor.training.update import begin, update
from tests.padding import BySize

SIZE = (3, 12, 12)
BATCH = 8


class Residual(nn.Module):
    """A block with a skip connection: nothing inside it is a cut."""

    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.second(torch.relu(self.norm(self.first(x))))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(Residual(8), nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU(), Residual(12)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
    )
    for _ in range(2):
        model(torch.randn(8, *SIZE))
    return model.eval()


class Given(nn.Module):
    """A block that runs an activation given to it, twice."""

    def __init__(self, channels, activation):
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.second, self.activation = nn.Conv2d(channels, channels, 1), activation

    def forward(self, x):
        return x + self.second(self.activation(self.norm(self.first(self.activation(x * 0.5)))))


class Sharing(nn.Module):
    """Activations and pooling between the layers, twice in a Sequential, and inside blocks.

    Each of them is what `activation` and `pool` return: the same object, or always another.
    """

    def __init__(self, activation, pool):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act, self.pool = activation(), pool()
        self.given = Given(8, activation())
        self.body = nn.Sequential(
            *(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), activation(), pool()),
            *(Given(12, activation()), activation(), nn.Conv2d(12, 12, 1), activation()),
        )
        self.act2 = activation()
        self.tail, self.last = Given(12, activation()), nn.Conv2d(12, 12, 1)
        self.act3 = activation()
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.given(self.pool(self.act(self.norm(self.stem(x)))))
        x = self.tail(self.act2(self.body(x) - 0.1))
        return self.head(self.act3(self.last(x)).mean((2, 3)))


class Sine(nn.Module):
    """Of somebody's own."""

    def forward(self, x):
        return torch.sin(x)


ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "own": Sine,
}
SHARED = [*ACTIVATIONS, "apart"]


def sharing(kind: str) -> Sharing:
    """A network with one activation and one pooling object; `apart`: the silu one, with many."""
    torch.manual_seed(0)
    if kind == "apart":
        model = Sharing(nn.SiLU, lambda: nn.MaxPool2d(2, 1))
    else:
        activation, pool = ACTIVATIONS[kind](), nn.MaxPool2d(2, 1)
        model = Sharing(lambda: activation, lambda: pool)
    for _ in range(2):
        model(torch.randn(8, *SIZE))
    return model.eval()


def after_updates(levers: Levers, method="full", setting=None, updates=3, model=None):
    """The network after a few updates, and the census."""
    model = network() if model is None else model
    census = take_census(model, SIZE)
    trainable, optimizer = begin(model, census, Candidate.of(method, setting or {}, levers), 1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        images = torch.randn(BATCH, *SIZE, generator=generator)
        labels = torch.randint(0, 4, (BATCH,), generator=generator)
        if levers.cached_prefix != "no":
            images = run_front(trainable.model, trainable.front, images)
        update(trainable, optimizer, images, labels)
    return model, trainable


def assert_same(one: nn.Module, other: nn.Module, tolerance=1e-5):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=tolerance, atol=tolerance, msg=name)


def test_the_blocks_of_a_network_end_where_nothing_bypasses_them():
    blocks = take_census(network(), SIZE).blocks
    assert [block.modules for block in blocks] == [
        ("0", "1", "2"),
        ("3",),
        ("4", "5", "6"),
        ("7", "8", "9"),
    ]
    assert all(block.linked for block in blocks)


def test_a_skip_over_a_cut_joins_the_blocks():
    class Bypassed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.three, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.one(x)
            x = x + self.three(self.two(x))
            return self.head(x.mean((2, 3)))

    blocks = take_census(Bypassed(), SIZE).blocks
    assert [block.modules for block in blocks] == [("one",), ("two", "three")]


class Functional(nn.Module):
    """Its code computes between the modules: before, in and after any front."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.three = Residual(8), Residual(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.two(torch.relu(self.norm(self.one((x - 0.5) / 0.25))) + 1)
        return self.head(torch.tanh(self.three(torch.sigmoid(x))).mean((2, 3)))


@pytest.mark.parametrize("scope", [0, 1])
def test_a_front_is_left_out_whatever_the_models_code_does_around_it(scope):
    model = Functional().eval()
    census = take_census(model, SIZE)
    assert [block.modules for block in census.blocks] == [("one", "norm"), ("two",), ("three",)]
    assert not any(block.linked for block in census.blocks)
    images, labels = torch.randn(BATCH, *SIZE), torch.randint(0, 4, (BATCH,))
    trained = []
    for cached in ("no", "ram"):
        levers = Levers(scope=scope, cached_prefix=cached, statistics="frozen")
        candidate = Candidate("full" if scope else "head", levers=levers)
        trainable, optimizer = begin(copy.deepcopy(model), census, candidate, 1e-2)
        inputs = run_front(trainable.model, trainable.front, images) if cached == "ram" else images
        for _ in range(2):
            update(trainable, optimizer, inputs, labels)
        trained.append(trainable.model)
    assert_same(*trained)


def test_a_front_stays_where_the_code_behind_it_needs_the_image():
    class Upsampled(Functional):
        def forward(self, x):
            inner = self.two(self.norm(self.one(x[:, :, ::2, ::2])))
            return self.head(self.three(nn.functional.interpolate(inner, x.shape[-2:])).mean((2, 3)))

    blocks = take_census(Upsampled().eval(), SIZE).blocks
    # Behind `three` nothing asks for the image's size any more.
    assert [block.replaceable for block in blocks] == [True, False, True]


class Overwriting(nn.Module):
    """Its code writes to what the layers return; with `doubling`, otherwise each time."""

    def __init__(self, *, doubling):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.head, self.doubling = nn.Linear(3, 4), doubling

    def forward(self, x):
        x = self.one(x)
        x = x.mul_(2) if self.doubling else x.relu_()
        return self.head(self.three(self.two(x)).relu_().mean((2, 3)))


@pytest.mark.parametrize(
    ("doubling", "replaceable"),
    # What `two` makes would be written over by the code behind `one`; what `three` makes, twice.
    [(True, [True, False, False]), (False, [True, False, True])],
)
def test_a_front_stays_where_the_code_in_it_would_write_over_what_it_makes(doubling, replaceable):
    blocks = take_census(Overwriting(doubling=doubling).eval(), SIZE).blocks
    assert [block.replaceable for block in blocks] == replaceable


def test_one_cut_is_told_from_another():
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(5))
            self.head = nn.Linear(3, 4)

        def forward(self, images):
            x = images
            for number, layer in enumerate(self.layers):
                x = layer(x) + (images.detach().mean() if number == 2 else 0)
            return self.head(x.mean((2, 3)))

    blocks = take_census(Changing().eval(), SIZE).blocks
    assert [block.replaceable for block in blocks] == [True, True, False, True, True]


def test_a_module_without_weights_that_runs_twice_costs_no_block():
    every = {kind: take_census(sharing(kind), SIZE) for kind in SHARED}
    apart = every["apart"].blocks
    assert [len(block.modules) for block in apart] == [4, 1, 4, 2, 3, 1, 2]
    for kind, census in every.items():
        assert census.whole_because == ""
        assert [len(block.modules) for block in census.blocks] == [len(block.modules) for block in apart]
        assert [block.linked for block in census.blocks] == [block.linked for block in apart], kind
        assert all(block.replaceable for block in census.blocks)
    assert [block.modules for block in every["relu"].blocks][:3] == [
        ("stem", "norm", "act", "pool"),
        ("given",),
        ("body.0", "body.1", "act", "pool"),
    ]


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize(
    ("levers", "other"),
    [
        ({}, {"checkpoint": True}),
        ({"scope": 4}, {"checkpoint": True}),
        *(({"scope": scope}, {"cached_prefix": "ram"}) for scope in range(1, 7)),
        ({"scope": 5}, {"cached_prefix": "ram", "checkpoint": True, "update": "per-parameter"}),
        (
            {"scope": 3, "statistics": "frozen"},
            {"cached_prefix": "ram", "checkpoint": True, "micro_batch": 2},
        ),
    ],
)
def test_levers_change_nothing_where_an_activation_is_shared(kind, levers, other):
    plain, _ = after_updates(Levers(**levers), model=sharing(kind))
    helped, _ = after_updates(Levers(**levers, **other), model=sharing(kind))
    assert_same(plain, helped)


def test_one_activation_or_many_train_alike():
    levers = Levers(scope=4, cached_prefix="ram", checkpoint=True)
    one, _ = after_updates(levers, "lora", {"rank": 2}, model=sharing("silu"))
    many, _ = after_updates(levers, "lora", {"rank": 2}, model=sharing("apart"))
    images = torch.randn(2, *SIZE)
    torch.testing.assert_close(one.eval()(images), many.eval()(images))


@pytest.mark.parametrize("kind", SHARED)
def test_a_front_is_left_out_of_every_forward_pass_anew(kind):
    model = sharing(kind)
    census, images = take_census(model, SIZE), torch.randn(3, 2, *SIZE)
    for scope in range(len(census.blocks)):
        front = front_modules(census, scope)
        made = [run_front(model, front, batch) for batch in images]
        with without_front(model, front), torch.no_grad():
            got = [model(tensor) for tensor in made]
        torch.testing.assert_close(torch.stack(got), torch.stack([model(batch) for batch in images]))
    assert not any("_compiled_call_impl" in vars(module) for module in model.modules())


def test_what_runs_at_another_path_than_its_first_is_left_out_too():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
            self.one, self.norm, self.two = self.body
            self.hidden = [nn.ReLU()]
            self.head = nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.two(self.hidden[0](self.norm(self.one(x)))).mean((2, 3)))

    torch.manual_seed(0)
    model = Renamed().eval()
    plain, _ = after_updates(Levers(scope=1), model=copy.deepcopy(model))
    cached, _ = after_updates(
        Levers(scope=1, cached_prefix="ram", checkpoint=True), model=copy.deepcopy(model)
    )
    assert_same(plain, cached)
    plain, _ = after_updates(Levers(), model=copy.deepcopy(model))
    again, _ = after_updates(Levers(checkpoint=True), model=model)
    assert_same(plain, again)


def test_a_shared_dropout_keeps_what_it_runs_in_together():
    """Frozen parts run in eval mode and trained ones don't: one object can't do both."""
    torch.manual_seed(0)
    drop, relu = nn.Dropout(0.5), nn.ReLU()
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), relu, drop, nn.Conv2d(4, 4, 1), relu, drop),
        *(nn.Conv2d(4, 4, 1), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)),
    ).eval()
    census = take_census(model, SIZE)
    assert [len(block.modules) for block in census.blocks] == [6, 4]
    trained = []
    for cached in ("no", "ram"):
        tuned, trainable = after_updates(Levers(scope=1, cached_prefix=cached), model=copy.deepcopy(model))
        assert not trainable.model[2].training
        trained.append(tuned)
    assert_same(*trained)
    _, trainable = after_updates(Levers(checkpoint=True), model=model)
    assert trainable.model[2].training


def test_in_the_trained_part_is_also_what_blocks_have_from_elsewhere():
    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), Given(8, relu), Given(8, relu), nn.Flatten(), nn.Linear(1152, 2)
    )
    census = take_census(model, SIZE)
    assert [block.shared for block in census.blocks] == [(), (), ("1.activation",)]
    assert "1.activation" in [layer.name for layer in trained_part(census, 1).layers]


def test_checkpointing_changes_nothing_but_memory():
    plain, _ = after_updates(Levers())
    again, _ = after_updates(Levers(checkpoint=True))
    assert_same(plain, again)  # running statistics and their counters included: averaged once, not twice


def test_per_parameter_updates_change_nothing_but_memory():
    for method, setting in (("full", {}), ("lora", {"rank": 2}), ("galore", {"rank": 2})):
        plain, _ = after_updates(Levers(), method, setting)
        at_once, trainable = after_updates(Levers(update="per-parameter"), method, setting)
        assert_same(plain, at_once)
        assert all(parameter.grad is None for parameter in trainable.parameters.values())


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("update_when", ["end", "per-parameter"])
def test_micro_batches_accumulate_to_the_same_update_where_statistics_are_frozen(size, update_when):
    plain, _ = after_updates(Levers(), "head")
    accumulated, _ = after_updates(Levers(micro_batch=size, update=update_when), "head")
    assert_same(plain, accumulated)


def test_micro_batches_see_their_own_statistics_where_those_are_updated():
    plain, _ = after_updates(Levers(), "norm")
    accumulated, _ = after_updates(Levers(micro_batch=2), "norm")
    with pytest.raises(AssertionError):
        assert_same(plain, accumulated)


@pytest.mark.parametrize("method", ["full", "norm", "bias", "lora"])
def test_a_scope_leaves_everything_before_it_as_it_was(method):
    base = network().state_dict()
    model, trainable = after_updates(Levers(scope=2), method, {"rank": 2} if method == "lora" else {})
    assert trainable.front == ("0", "1", "2", "3")
    front = [name for name in base if name.split(".")[0] in "0123"]
    assert front
    state = model.state_dict()
    assert all(torch.equal(base[name], state[name]) for name in front)
    assert not torch.equal(base["5.running_mean"], state["5.running_mean"])
    assert {name.split(".")[0] for name in trainable.parameters} <= {"4", "5", "7", "10"}


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_cached_prefix_trains_as_the_whole_network_would(where):
    plain, _ = after_updates(Levers(scope=2), "norm")
    cached, _ = after_updates(Levers(scope=2, cached_prefix=where), "norm")
    assert_same(plain, cached)


def test_fused_norms_compute_the_same():
    plain, one = after_updates(Levers(scope=2), "norm")
    fused, two = after_updates(Levers(scope=2, fuse=True), "norm")
    assert isinstance(fused.get_submodule("1"), nn.Identity)
    images = torch.randn(4, *SIZE)
    plain.eval(), fused.eval()
    torch.testing.assert_close(plain(images), fused(images), rtol=1e-4, atol=1e-5)
    assert one.delta().keys() == two.delta().keys()


@pytest.mark.parametrize("kind", [BySize, nn.Conv2d])
def test_norms_are_fused_into_layers_that_pad_first(kind):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(kind(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), kind(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    model(torch.randn(8, *SIZE))
    plain, _ = after_updates(Levers(scope=1), model=copy.deepcopy(model))
    fused, _ = after_updates(Levers(scope=1, fuse=True), model=model)
    assert isinstance(fused[1], nn.Identity)
    images = torch.randn(4, *SIZE)
    torch.testing.assert_close(plain.eval()(images), fused.eval()(images), rtol=1e-4, atol=1e-5)


def test_levers_together():
    plain, _ = after_updates(Levers(scope=3, optimizer="momentum"))
    levers = Levers(
        scope=3, optimizer="momentum", checkpoint=True, update="per-parameter", cached_prefix="ram"
    )
    together, _ = after_updates(levers)
    assert_same(plain, together)


@pytest.mark.parametrize(
    "levers",
    [
        Levers(),
        Levers(optimizer="adamw"),
        Levers(optimizer="momentum"),
        Levers(scope=1),
        Levers(scope=2, fuse=True),
        Levers(micro_batch=2),
        Levers(micro_batch=2, checkpoint=True),
        Levers(update="per-parameter"),
        Levers(update="per-parameter", micro_batch=4, optimizer="sgd"),
        Levers(checkpoint=True, scope=3),
        Levers(scope=2, cached_prefix="ram", checkpoint=True),
        Levers(scope=2, cached_prefix="disk"),
    ],
)
@pytest.mark.parametrize("method", ["full", "norm"])
@pytest.mark.parametrize("made", [network, lambda: sharing("silu in place")], ids=["apart", "shared"])
def test_every_kind_of_tensor_gives_a_lever_the_same_cost(levers, method, made):
    model = made()
    simulator = Simulator(model, take_census(model, SIZE), images=100)
    candidate = Candidate.of(method, {}, levers)
    meta = simulator.cost(candidate, BATCH, "meta")
    assert meta == simulator.cost(candidate, BATCH, "fake")
    real = simulator.cost(candidate, BATCH, "real")
    assert (meta.memory, meta.flops, meta.cache_bytes) == (real.memory, real.flops, real.cache_bytes)


def test_what_levers_cost():
    model = network()
    simulator = Simulator(model, take_census(model, SIZE), images=100)

    def cost(method="full", **levers):
        return simulator.cost(Candidate.of(method, {}, Levers(**levers)), BATCH)

    plain = cost()
    assert cost(checkpoint=True).flops.forward > plain.flops.forward
    assert cost(checkpoint=True).flops.weight_gradient == plain.flops.weight_gradient
    assert cost(checkpoint=True).peak_memory_bytes < plain.peak_memory_bytes
    assert cost(micro_batch=2).peak_memory_bytes < plain.peak_memory_bytes
    assert cost(update="per-parameter").peak_memory_bytes < plain.peak_memory_bytes
    assert cost(update="per-parameter").flops == plain.flops
    assert cost(scope=2).peak_memory_bytes < plain.peak_memory_bytes
    cached = cost(scope=2, cached_prefix="ram")
    on_disk = cost(scope=2, cached_prefix="disk")
    assert cached.flops.forward < cost(scope=2).flops.forward
    assert cached.cache_bytes == 100 * 8 * 12 * 12 * 4 == cached.memory.cached
    assert on_disk.peak_memory_bytes == cached.peak_memory_bytes - cached.cache_bytes
    assert cached.setup_flops > 0
    # Four micro-batches of 2 multiply and add as often as one batch of 8.
    assert cost("head", micro_batch=2).by_layer_type["linear"].flops.weight_gradient >= (
        cost("head").by_layer_type["linear"].flops.weight_gradient
    )


def test_micro_batches_are_extrapolated_exactly():
    """Costs of many micro-batches come from two; the real update runs all of them."""
    model = network()
    census = take_census(model, SIZE)
    simulator = Simulator(model, census)
    three, four = (simulator.cost(Candidate("norm", (), Levers(micro_batch=2)), n).flops for n in (6, 8))
    two = simulator.cost(Candidate("norm", (), Levers(micro_batch=2)), 4).flops
    assert (four.total - three.total) == (three.total - two.total) > 0


def test_re_estimating_in_parts_costs_the_same_flops():
    model = network()
    simulator = Simulator(model, take_census(model, SIZE))
    whole, parts = (
        simulator.cost(Candidate("recalibrate", (), Levers(micro_batch=size)), BATCH) for size in (None, 1)
    )
    for kind in ("standard", "pointwise"):
        assert parts.by_layer_type[kind].flops == whole.by_layer_type[kind].flops
    assert parts.peak_memory_bytes < whole.peak_memory_bytes


def test_levers_that_the_model_does_not_allow_are_refused():
    model = network()
    simulator = Simulator(copy.deepcopy(model), take_census(model, SIZE))
    with pytest.raises(InputError, match="blocks"):
        simulator.cost(Candidate("full", levers=Levers(scope=9)), BATCH)
    with pytest.raises(InputError, match="divide"):
        simulator.cost(Candidate("full", levers=Levers(micro_batch=3)), BATCH)
    with pytest.raises(InputError, match="--data"):
        simulator.cost(Candidate("full", levers=Levers(scope=1, cached_prefix="ram")), BATCH)
