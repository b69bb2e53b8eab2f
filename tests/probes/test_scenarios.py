import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advisor.data.loading import Dataset, LabelledImages, default_normalisation, load_data
from advisor.data.pixels import Normalisation
from advisor.errors import DataError, ModelError
from advisor.probes.scenarios import Situation, _looked_at, adapt_head, imprint_where_better, relabel, situate


def data_of(*names: str, named: bool = True) -> Dataset:
    """Two blank images of each class, one of them held out."""
    labels = torch.arange(len(names))
    images = LabelledImages(torch.zeros(len(names), 1, 2, 2, dtype=torch.uint8), labels)
    return Dataset("data", names, images, images, default_normalisation(1), named)


def numbered(*numbers: int) -> Dataset:
    return data_of(*(str(number) for number in numbers), named=False)


def grown(old: int, new: int) -> Situation:
    return Situation("new-classes", old + new, new, False, tuple(range(old + new)))


def replaced(classes: int) -> Situation:
    return Situation("new-classes", classes, classes, True, tuple(range(classes)))


def refused(*arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        situate(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# With the model's class names


def test_all_names_known_is_a_shift_whatever_the_order_and_case():
    found = situate(data_of("Cat", "ant", " bee "), 3, model_class_names=("bee", "ANT", "cat"))
    assert found == Situation("shift", 3, 0, False, (2, 1, 0))


def test_known_subset_is_a_shift():
    found = situate(data_of("bee", "cat"), 4, model_class_names=("ant", "cat", "dog", "bee"))
    assert found == Situation("shift", 4, 0, False, (3, 1))


def test_unknown_names_get_the_rows_after_the_old_ones():
    found = situate(data_of("ape", "bee", "cow"), 2, model_class_names=("bee", "cat"))
    assert found == Situation("new-classes", 4, 2, False, (2, 0, 3))


def test_no_name_known_replaces_the_head():
    found = situate(data_of("x", "y"), 3, model_class_names=("ant", "bee", "cat"))
    assert replace(found, warnings=()) == replaced(2)
    assert "knows none of the data's classes (x, y; it knows ant, bee, cat)" in found.warnings[0]
    assert "--classes" in found.warnings[0]


def test_name_of_two_outputs_takes_the_first_and_says_so():
    found = situate(data_of("crane", "hen"), 3, model_class_names=("hen", "crane", "crane"))
    assert found.label_map == (1, 0)
    assert "'crane' names 2 outputs of the model: output 1 is taken" in found.warnings[0]


def test_classes_that_differ_in_case_alone():
    message = refused(data_of("Cat", "cat", "dog"), 2, model_class_names=("cat", "dog"))
    assert "'Cat' and 'cat' differ only in case" in message


def test_wrong_number_of_names():
    message = refused(data_of("a", "b"), 3, model_class_names=("a", "b"))
    assert "2 class names were given, the model has 3 outputs" in message


def test_names_say_nothing_about_numbers():
    found = situate(numbered(0, 1, 2), 3, model_class_names=("ant", "bee", "cat"))
    assert found == Situation("shift", 3, 0, False, (0, 1, 2))
    found = situate(data_of("0", "1", "2"), 3, model_class_names=("ant", "bee", "cat"))
    assert found == Situation("shift", 3, 0, False, (0, 1, 2))


def test_numbers_as_names_on_both_sides_are_matched():
    found = situate(numbered(0, 1, 2), 2, model_class_names=("1", "0"))
    assert found == Situation("new-classes", 3, 1, False, (1, 0, 2))


# Without them: folders


def test_as_many_named_classes_are_taken_in_order_with_a_warning():
    found = situate(data_of("ant", "bee"), 2)
    assert replace(found, warnings=()) == Situation("shift", 2, 0, False, (0, 1))
    assert "classes (ant, bee) are taken for the model's outputs in that order" in found.warnings[0]
    assert "--classes" in found.warnings[0]


def test_folders_that_are_output_numbers_need_no_warning():
    assert situate(data_of("0", "1", "2"), 3) == Situation("shift", 3, 0, False, (0, 1, 2))


def test_more_than_ten_numbered_folders_may_be_in_alphabetical_order():
    found = situate(data_of(*map(str, range(12))), 12)
    assert found.label_map == tuple(range(12))
    assert "alphabetical order" in found.warnings[0]


def test_more_named_classes_are_new_after_the_first_ones():
    found = situate(data_of("ant", "bee", "cat"), 2)
    assert replace(found, warnings=()) == Situation("new-classes", 3, 1, False, (0, 1, 2))
    assert "first 2 classes (ant, bee)" in found.warnings[0]


def test_more_numbered_folders_need_no_warning():
    assert situate(data_of("0", "1", "2"), 2) == Situation("new-classes", 3, 1, False, (0, 1, 2))


def test_fewer_named_classes_replace_the_head():
    found = situate(data_of("ant", "bee"), 1000)
    assert replace(found, warnings=()) == replaced(2)
    assert "taken for new ones" in found.warnings[0]
    assert "--classes" in found.warnings[0]


def test_fewer_numbered_folders_replace_the_head_too():
    assert situate(data_of("0", "1"), 10).head_replaced


def test_a_model_with_one_output_gets_a_new_head():
    for data in (data_of("no", "yes"), numbered(0, 1)):
        found = situate(data, 1)
        assert replace(found, warnings=()) == replaced(2)
        assert "single output" in found.warnings[0]


# Without them: numbers


def test_as_many_numbers_are_a_shift():
    assert situate(numbered(0, 1, 2), 3) == Situation("shift", 3, 0, False, (0, 1, 2))


def test_numbers_from_one():
    found = situate(numbered(1, 2, 3), 3)
    assert replace(found, warnings=()) == Situation("shift", 3, 0, False, (0, 1, 2))
    assert "count from 1 to 3" in found.warnings[0]


def test_more_numbers_are_new_classes():
    assert situate(numbered(0, 1, 2, 3), 2) == Situation("new-classes", 4, 2, False, (0, 1, 2, 3))


def test_fewer_numbers_are_the_outputs_with_those_numbers():
    found = situate(numbered(3, 7), 10)
    assert replace(found, warnings=()) == Situation("shift", 10, 0, False, (3, 7))
    assert "labels 3, 7 are taken for the numbers" in found.warnings[0]


def test_numbers_after_the_models_outputs_are_new():
    found = situate(numbered(1, 3, 4), 3)
    assert replace(found, warnings=()) == Situation("new-classes", 5, 2, False, (1, 3, 4))


def test_numbers_with_a_gap_after_the_models_outputs():
    message = refused(numbered(0, 1, 2, 255), 3)
    assert "0, 1, 2, 255 don't go on from the model's outputs 0 to 2" in message
    assert "from 3 without gaps" in message


# A scenario that the user gives


def test_scenario_that_agrees():
    assert situate(numbered(0, 1), 2, scenario="shift").scenario == "shift"
    assert situate(numbered(0, 1, 2), 2, scenario="new-classes").new_classes == 1


@pytest.mark.parametrize(
    ("data", "classes", "names", "said"),
    [
        (numbered(0, 1, 2), 2, None, "the data has 3 classes and the model 2"),
        (data_of("a", "b", "c"), 2, None, "the data has 3 classes and the model 2"),
        (data_of("a", "b"), 3, None, "which of the model's 3 the data's 2 are can't be told"),
        (data_of("a", "x"), 2, ("a", "b"), "the model doesn't know x"),
        (data_of("x", "y"), 2, ("a", "b"), "the model doesn't know x, y"),
        (data_of("x", "y"), 1, None, "the data has 2 classes and the model 1"),
    ],
)
def test_shift_with_classes_that_the_model_lacks(data, classes, names, said):
    message = refused(data, classes, scenario="shift", model_class_names=names)
    assert f"--scenario shift, but {said};" in message
    assert "use --scenario new-classes" in message


@pytest.mark.parametrize(
    ("data", "classes", "names"),
    [
        (numbered(0, 1, 2), 3, None),
        (numbered(0, 2), 3, None),
        (data_of("0", "1"), 2, None),
        (data_of("b", "a"), 2, ("a", "b")),
        (data_of("b"), 2, ("a", "b")),
    ],
)
def test_new_classes_where_all_are_known(data, classes, names):
    message = refused(data, classes, scenario="new-classes", model_class_names=names)
    assert "--scenario new-classes, but the model knows all" in message
    assert "use --scenario shift" in message


def test_new_classes_for_as_many_names_that_nobody_knows():
    assert situate(data_of("x", "y"), 2, scenario="new-classes") == replaced(2)


def test_shift_makes_numbered_folders_a_subset():
    found = situate(data_of("1", "3"), 4, scenario="shift")
    assert replace(found, warnings=()) == Situation("shift", 4, 0, False, (1, 3))


# Labels


def test_relabel_gives_output_numbers():
    data = data_of("bee", "ant", "new")
    situation = situate(data, 2, model_class_names=("ant", "bee"))
    found = relabel(data, situation)
    assert found.train.labels.tolist() == [1, 0, 2]
    assert found.validation.labels.tolist() == [1, 0, 2]
    assert found.train.labels.dtype == torch.int64
    assert found.class_names == ("bee", "ant", "new")
    assert data.train.labels.tolist() == [0, 1, 2]


def test_relabel_of_data_with_gaps():
    data = numbered(3, 7)
    assert relabel(data, situate(data, 10)).train.labels.tolist() == [3, 7]


def test_digits_beside_models_of_three_sizes():
    data = load_data("digits", (1, 8, 8))
    assert situate(data, 10) == Situation("shift", 10, 0, False, tuple(range(10)))
    assert situate(data, 7) == Situation("new-classes", 10, 3, False, tuple(range(10)))
    assert situate(data, 1000).head_replaced


# The head


def small_model(classes: int, *, convolution: bool = False, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    if convolution:
        ends = [nn.Conv2d(6, classes, 1, bias=bias), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    else:
        ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes, bias=bias)]
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), *ends)


def head_of(model: nn.Module) -> str:
    return next(name for name, module in reversed([*model.named_modules()]) if hasattr(module, "weight"))


@given(
    old=st.integers(1, 12),
    new=st.integers(1, 6),
    convolution=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_growth_keeps_old_rows_bit_for_bit_and_old_outputs(old, new, convolution, bias, seed):
    model = small_model(old, convolution=convolution, bias=bias)
    before = copy.deepcopy(model)
    path = head_of(model)
    assert adapt_head(model, path, grown(old, new), seed=seed) is model
    head, old_head = model.get_submodule(path), before.get_submodule(path)
    assert torch.equal(head.weight[:old], old_head.weight)
    assert head.weight.shape[0] == old + new
    assert (head.bias is not None) == bias
    if bias:
        assert torch.equal(head.bias[:old], old_head.bias)
    assert getattr(head, "out_channels" if convolution else "out_features") == old + new
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[:, :old], before(images), rtol=1e-5, atol=1e-6)

    again = adapt_head(before, path, grown(old, new), seed=seed).get_submodule(path)
    assert torch.equal(head.weight, again.weight)


def test_new_rows_take_no_prediction_from_the_old_classes():
    model = small_model(10)
    with torch.no_grad():  # a head with the clear preferences of a trained one
        model[4].weight.copy_(torch.randn(10, 6, generator=torch.Generator().manual_seed(0)))
        images = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        before = model(images).argmax(1)
        after = adapt_head(model, "4", grown(10, 5))(images).argmax(1)
    assert (before == after).float().mean() > 0.97


def test_new_rows_differ_and_are_no_larger_than_the_old_ones():
    head = adapt_head(small_model(10), "4", grown(10, 4)).get_submodule("4")
    new = head.weight[10:]
    assert len(new.unique(dim=0)) == 4
    assert new.norm(dim=1).max() < head.weight[:10].norm(dim=1).max()
    assert torch.allclose(head.bias[10:], head.bias[:10].mean())


def test_seed_decides_the_new_rows():
    one, two = (adapt_head(small_model(3), "4", grown(3, 2), seed=seed)[4].weight for seed in (0, 1))
    assert not torch.equal(one[3:], two[3:])


def test_global_random_state_is_left_alone():
    model = small_model(3)
    before = torch.random.get_rng_state()
    adapt_head(model, "4", grown(3, 2))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("classes", [2, 3, 8])
@pytest.mark.parametrize("convolution", [False, True])
def test_replaced_head_is_fresh(classes, convolution):
    model = small_model(3, convolution=convolution)
    path = head_of(model)
    old = model.get_submodule(path).weight.detach().clone()
    head = adapt_head(model, path, replaced(classes)).get_submodule(path)
    assert head.weight.shape[0] == head.bias.shape[0] == classes
    assert not any(torch.equal(row, kept) for row in head.weight for kept in old)
    # As a fresh layer: uniform within 1 / sqrt(inputs).
    assert head.weight.abs().max() <= 6**-0.5
    assert head.bias.abs().max() <= 6**-0.5
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, classes)


def test_shift_changes_nothing():
    model = small_model(3)
    weight = model[4].weight
    adapt_head(model, "4", Situation("shift", 3, 0, False, (0, 1)))
    assert model[4].weight is weight


def test_precision_and_frozenness_are_kept():
    model = small_model(3).to(torch.bfloat16)
    model[4].weight.requires_grad_(False)
    head = adapt_head(model, "4", grown(3, 2))[4]
    assert head.weight.dtype == head.bias.dtype == torch.bfloat16
    assert not head.weight.requires_grad
    assert head.bias.requires_grad


def test_a_grown_head_can_be_trained():
    model = adapt_head(small_model(3), "4", grown(3, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    images, labels = torch.randn(5, 1, 8, 8), torch.arange(5)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert model(images).argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_model_that_is_its_own_head():
    assert adapt_head(nn.Linear(4, 3), "", grown(3, 1))(torch.randn(2, 4)).shape == (2, 4)


def test_squeezenet_keeps_its_number_of_classes():
    from torchvision.models import squeezenet1_1

    model = adapt_head(squeezenet1_1(num_classes=5).eval(), "classifier.1", grown(5, 2))
    assert model.num_classes == 7
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_auxiliary_classifiers_of_googlenet_are_left_alone():
    from torchvision.models import googlenet

    model = googlenet(num_classes=5, aux_logits=True, init_weights=False)
    adapt_head(model, "fc", grown(5, 2))
    assert model.fc.out_features == 7
    assert model.aux1.fc2.out_features == model.aux2.fc2.out_features == 5


def test_timm_keeps_its_number_of_classes():
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", num_classes=5).eval()
    adapt_head(model, "classifier", grown(5, 2))
    assert model.num_classes == 7
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("wrap", [lambda weight: weight, lambda weight: nn.Parameter(weight.data)])
def test_tied_head(wrap):
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 6), "head": nn.Linear(6, 3)})
    model["head"].weight = wrap(model["embedding"].weight)
    with pytest.raises(ModelError, match=r"'head' shares its weights with 'embedding\.weight'"):
        adapt_head(model, "head", grown(3, 1))


def test_head_beside_others_in_one_buffer_is_not_tied():
    flat = torch.randn(36)
    model = nn.ModuleDict({"other": nn.Linear(6, 3, bias=False), "head": nn.Linear(6, 3, bias=False)})
    model["other"].weight = nn.Parameter(flat[:18].view(3, 6))
    model["head"].weight = nn.Parameter(flat[18:].view(3, 6))
    assert adapt_head(model, "head", grown(3, 1))["head"].out_features == 4


def test_head_under_two_paths_is_one_module():
    head = nn.Linear(6, 3)
    model = nn.ModuleDict({"one": head, "two": head})
    adapt_head(model, "two", grown(3, 1))
    assert model["one"].out_features == 4


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Conv2d(6, 3, 3), "is Conv2d; classes can only be added to a Linear"),
        (nn.Conv2d(6, 3, 1, groups=3), "ungrouped"),
        (nn.BatchNorm1d(3), "is BatchNorm1d"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
            "computes its weight",
        ),
    ],
)
def test_layers_that_are_no_plain_head(layer, said):
    with pytest.raises(ModelError, match=said):
        adapt_head(nn.Sequential(layer), "0", grown(3, 1))


def test_missing_head():
    with pytest.raises(ModelError, match="no layer 'fc'"):
        adapt_head(small_model(3), "fc", grown(3, 1))


def test_head_of_another_size():
    with pytest.raises(ModelError, match="has 3 outputs, the data was matched to 5"):
        adapt_head(small_model(3), "4", grown(5, 1))


def clusters(classes, seed=0, count=40):
    """Images (N, 1, 4, 4) of each class around a pattern of its own."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(classes, 1, 4, 4, generator=torch.Generator().manual_seed(9)) * 160 + 40
    labels = torch.arange(classes).repeat(count)
    images = patterns[labels] + 12 * torch.randn(len(labels), 1, 4, 4, generator=generator)
    part = LabelledImages(images.clamp(0, 255).to(torch.uint8), labels)
    names = tuple(f"c{label}" for label in range(classes))
    return Dataset("made", names, part, part, Normalisation((0.5,), (0.5,)), True)


def right(model, data):
    images, labels = data.validation.batch(torch.arange(len(data.validation)), data.normalisation)
    return (model(images).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("known", [3, 0])
def test_imprinted_rows_tell_new_classes_before_any_training(known):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, max(known, 2)))
    data, held_out = clusters(5), clusters(5, seed=1)
    if known:  # a head that knows them: the patterns' own directions
        means = torch.stack([data.train.images[data.train.labels == c].float().mean(0) for c in range(known)])
        rows = (means / 255 - 0.5).flatten(1) / 0.5
        with torch.no_grad():
            model[1].weight.copy_(rows - rows.mean(0))
            model[1].bias.copy_(-(rows - rows.mean(0)) @ rows.mean(0))
    before = model[1].weight.detach().clone()
    situation = Situation("new-classes", 5, 5 - known, not known, tuple(range(5)))
    adapt_head(model, "1", situation)
    assert imprint_where_better(model, "1", known, data)
    assert right(model, held_out) > 0.95
    assert torch.equal(model[1].weight[:known], before[:known])


def test_rows_are_not_imprinted_where_that_gets_less_right(monkeypatch):
    data = clusters(5)
    plain = adapt_head(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), "1", grown(3, 2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    model.load_state_dict({"1.weight": plain[1].weight[:3], "1.bias": plain[1].bias[:3]})

    def worse(layer, kept, features, labels):
        with torch.no_grad():
            layer.bias[kept:] = 1e9  # all are of the last class

    monkeypatch.setattr("advisor.probes.scenarios._imprint", worse)
    adapt_head(model, "1", grown(3, 2))
    assert not imprint_where_better(model, "1", 3, replace(data, train=first_of(data.train, 3)))
    assert torch.equal(model[1].weight, plain[1].weight)
    assert torch.equal(model[1].bias, plain[1].bias)


def first_of(images, classes):
    kept = images.labels < classes
    return LabelledImages(images.images[kept], images.labels[kept])


@pytest.mark.parametrize(
    ("images", "classes", "looked_at"),
    [(100, 10, 100), (9000, 2, 512), (9000, 10, 510), (9000, 300, 300), (9000, 1000, 1000), (700, 1000, 700)],
)
def test_rows_are_imprinted_from_as_many_images_of_each_class(images, classes, looked_at):
    """About 512 of them; where there are more classes, as many as classes."""
    assert _looked_at(images, nn.Linear(4, classes)) == looked_at
