"""What Hugging Face PEFT makes of the adapter, with the real package: the same outputs."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from advisor.delivery.adapters import Recipe
from advisor.delivery.huggingface import FOLDER, save_for_peft
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from advisor.training.update import begin, update

SIZE = (3, 12, 12)


class Network(nn.Module):
    """Standard, strided, grouped, depthwise and pointwise convolutions, norms, a hidden linear layer."""

    def __init__(self, grouped=4, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=grouped)
        self.block = nn.Sequential(
            *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 12, 1), nn.BatchNorm2d(12), nn.ReLU()),
        )
        self.other = nn.Conv2d(12, 12, 3, **options)
        self.hidden = nn.Linear(12, 10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        x = self.block(self.grouped(torch.relu(self.bn1(self.stem(x)))))
        return self.fc(torch.relu(self.hidden(self.other(x).mean((2, 3)))))


def trained(model, candidate):
    torch.manual_seed(1)
    model.train()
    for _ in range(3):
        model(torch.randn(8, *SIZE))
    model.eval()
    base, census = copy.deepcopy(model), take_census(model, SIZE)
    trainable, optimizer = begin(model, census, candidate, 1e-2)
    for _ in range(4):
        update(trainable, optimizer, torch.randn(6, *SIZE), torch.randint(0, 5, (6,)))
    return base, trainable, Recipe.of(base, candidate, census)


def written(folder, model, method, **more):
    base, trainable, recipe = trained(model, Candidate.of(method, {"rank": 4} | more, Levers()))
    files, note = save_for_peft(folder, base, trainable, recipe)
    assert bool(files) != bool(note)
    return base, trainable.model.eval(), note


def through_peft(base, folder):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        from peft import PeftModel

        model = PeftModel.from_pretrained(copy.deepcopy(base), str(folder / FOLDER)).eval()
    assert not [each for each in told if "missing" in str(each.message).lower()]
    return model


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("lora", {"stride": 2, "padding": 1}),
        ("lora", {"padding": "same"}),
        ("dora", {"grouped": 1}),
        ("loha", {}),
        ("loha", {"dilation": 2, "stride": 2}),
        ("lokr", {}),
        ("lokr", {"dilation": 2, "stride": 2}),
        ("ia3", {}),
        ("ia3", {"dilation": 2, "padding": 2, "padding_mode": "reflect"}),
    ],
)
def test_peft_answers_the_same(tmp_path, method, options):
    torch.manual_seed(0)
    base, adapted, _ = written(tmp_path, Network(**options), method)
    again = through_peft(base, tmp_path)
    x = torch.randn(5, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(again(x), adapted(x), rtol=1e-5, atol=1e-5)
        assert (adapted(x) - base(x)).abs().max() > 1e-2


def numbered():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_peft_answers_the_same_where_layers_have_numbers_for_names(tmp_path, method):
    torch.manual_seed(0)
    base, adapted, _ = written(tmp_path, numbered(), method)
    x = torch.randn(5, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(through_peft(base, tmp_path)(x), adapted(x), rtol=1e-5, atol=1e-5)


def test_a_name_that_ends_one_of_pefts_own_is_not_written(tmp_path):
    """The BatchNorm `1`: PEFT would save its own `hada_t1` along, and fail."""
    *_, note = written(tmp_path, numbered(), "loha")
    assert "PEFT can't tell 1 from hada_t1" in note


@pytest.mark.parametrize(
    ("method", "options", "more", "message"),
    [
        ("lora", {"dilation": 2}, {}, "other is dilated"),
        ("lora", {"padding_mode": "reflect", "padding": 1}, {}, "other pads with reflect"),
        ("lora", {}, {"depthwise": "factor"}, "block.0 has a factorised kernel"),
        ("dora", {}, {}, "grouped has groups"),
        ("dora", {"grouped": 1, "dilation": 2}, {}, "other is dilated"),
        ("loha", {"padding_mode": "circular", "padding": 1}, {}, "other pads with circular"),
        ("lokr", {"padding_mode": "reflect", "padding": 1}, {}, "other pads with reflect"),
    ],
)
def test_what_peft_computes_otherwise_is_not_written(tmp_path, method, options, more, message):
    *_, note = written(tmp_path, Network(**options), method, **more)
    assert message in note
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 6, 8, 20])
@pytest.mark.parametrize("hidden", [12, 13, 64])
def test_kronecker_factors_are_the_same_at_every_rank(tmp_path, rank, hidden):
    """From some rank on PEFT, and from another on we, hold the second factor whole."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, hidden, 3), nn.ReLU(), nn.Conv2d(hidden, 9, (3, 1)), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential()
    for name, layer in zip("abcd", layers, strict=True):
        model.add_module(f"layer_{name}", layer)
    model.add_module("flat", nn.Flatten())
    model.add_module("hidden", nn.Linear(9, hidden))
    model.add_module("fc", nn.Linear(hidden, 5))
    base, adapted, _ = written(tmp_path, model, "lokr", rank=rank)
    x = torch.randn(5, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(through_peft(base, tmp_path)(x), adapted(x), rtol=1e-5, atol=1e-5)
        assert (adapted(x) - base(x)).abs().max() > 1e-3


def test_scales_behind_batch_norms_alone_are_not_written(tmp_path):
    *_, note = written(tmp_path, numbered(), "ia3")
    assert "every scale is behind a BatchNorm" in note
    assert not (tmp_path / FOLDER).exists()


def test_names_that_peft_takes_for_others_are_not_written(tmp_path):
    """PEFT would save `big_fc` whole instead of adapting it: it ends like `fc`."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers)
    model.add_module("big_fc", nn.Linear(8, 20))
    model.add_module("fc", nn.Linear(20, 5))
    *_, note = written(tmp_path, model, "lora")
    assert "PEFT can't tell big_fc" in note


def test_other_methods_have_nothing_to_say(tmp_path):
    base, trainable, recipe = trained(Network(), Candidate("norm"))
    assert save_for_peft(tmp_path, base, trainable, recipe) == ((), "")
