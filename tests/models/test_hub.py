"""Folders of transformers' networks and of PEFT's adapters."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torchvision
from torch import nn

from advisor.errors import ModelError
from advisor.models import load_model, take_census
from advisor.models.layers import logits

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, of their future
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

CLASSES = {0: "cat", 1: "dog", 2: "owl"}


@pytest.fixture
def network(tmp_path):
    """A small network of transformers, and the folder that it was saved in."""
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label=CLASSES,
    )
    model = transformers.ViTForImageClassification(config).eval()
    folder = tmp_path / "vit"
    model.save_pretrained(folder)
    said = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return model, folder


def _edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_network_of_transformers(network):
    model, folder = network
    loaded = load_model(str(folder))
    assert loaded.class_names == ("cat", "dog", "owl")
    assert loaded.input_size == (3, 32, 32)
    assert loaded.images.mean == (0.4, 0.4, 0.4)
    assert loaded.form == "safetensors"
    assert take_census(loaded.module, loaded.input_size).classes == 3
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(logits(loaded.module(x)), model(x).logits)


def test_a_folders_own_code_is_never_run(network, tmp_path):
    _, folder = network
    for name in ("modeling_evil.py", "configuration_evil.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    _edit(
        folder / "config.json",
        auto_map={
            "AutoConfig": "configuration_evil.Evil",
            "AutoModelForImageClassification": "modeling_evil.Evil",
        },
        attn_implementation="somebody/kernel:attention",
        _attn_implementation="somebody/kernel:attention",
    )
    assert load_model(str(folder), trust=True).class_names == ("cat", "dog", "owl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["ViTModel"]}, "holds transformers' ViTModel, which gives no scores"),
        ({"model_type": "unheard-of"}, "can't make its ViTForImageClassification"),
        ({"hidden_size": 24}, "lack|can't make"),
        ({"num_hidden_layers": 2}, r"lack .* and \d+ more of ViTForImageClassification"),
        ({"quantization_config": {}}, "holds a quantised"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(network, changes, told):
    _, folder = network
    _edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=told) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


@pytest.fixture
def adapted(tmp_path):
    """A network with adapters, its own file, and the folder of the adapters."""
    torch.manual_seed(0)
    base = torchvision.models.squeezenet1_1(num_classes=4).eval()
    torch.save(base.state_dict(), tmp_path / "base.pt")
    config = peft.LoraConfig(r=2, target_modules=["expand1x1"], modules_to_save=["classifier.1"])
    model = peft.get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.normal_(weight, std=0.1)
    folder = tmp_path / "adapters"
    model.save_pretrained(folder)
    _edit(folder / "adapter_config.json", base_model_name_or_path="../base.pt")
    return model.eval(), tmp_path / "base.pt", folder


def test_adapters_are_merged_into_the_network_that_they_go_on(adapted):
    model, base, folder = adapted
    loaded = load_model(str(folder))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), model(x))
        assert not torch.allclose(load_model(str(base)).module(x), model(x))
    assert loaded.name == "squeezenet1_1"
    assert "its PEFT adapters are merged into" in loaded.assumed[0]
    assert {name for name, _ in loaded.module.named_parameters()} == {
        name for name, _ in load_model(str(base)).module.named_parameters()
    }


@pytest.mark.parametrize(
    ("base", "told"),
    [
        (None, "doesn't say which model they go on"),
        ("somebody/network", "somebody/network, is not here"),
        ("../adapters", "which holds adapters, too"),
        ("timm/resnet10t", "can't be merged into the model that they go on"),
    ],
)
def test_adapters_without_their_network_are_told_how_to_merge(adapted, base, told):
    _, _, folder = adapted
    _edit(folder / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(ModelError, match=told) as error:
        load_model(str(folder))
    assert "PeftModel" in str(error.value) or "merge those first" in str(error.value)
    assert "\n" not in str(error.value)


def test_half_of_the_adapters_is_told(adapted):
    from safetensors.torch import load_file, save_file

    _, _, folder = adapted
    file = folder / "adapter_model.safetensors"
    kept = load_file(file)
    save_file({name: kept[name] for name in sorted(kept)[:-4]}, file)
    with pytest.raises(ModelError, match="missing adapter keys"):
        load_model(str(folder))


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_a_missing_library_is_told(network, adapted, monkeypatch, library):
    folder = network[1] if library == "transformers" else adapted[2]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModelError, match=r"pip install 'peft-advisor\[hf\]'"):
        load_model(str(folder))
