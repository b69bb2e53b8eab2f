"""Which network weights belong to, under which prefix, and what of it was changed."""

from __future__ import annotations

import time
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

from advisor.errors import ModelError
from advisor.models import index
from advisor.models.architectures import named_architecture, shapes_of, trial_shapes
from advisor.models.rebuild import rebuild


def net(name, classes=5, **options):
    with torch.random.fork_rng():
        return torchvision.models.get_model(name, weights=None, num_classes=classes, **options).eval()


def shapes_only(name, **options):
    """A state dict that takes no memory: proposals look at names and shapes alone."""
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options).state_dict()


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def same(rebuilt, model, channels=3, side=64):
    x = torch.randn(2, channels, side, side)
    with torch.no_grad():
        return torch.equal(rebuilt.module.eval()(x), model.eval()(x))


def told(rebuilt):
    return "; ".join(rebuilt.assumed)


@pytest.mark.parametrize(
    "name",
    ["wide_resnet50_2", "resnext50_32x4d", "vgg11_bn", "efficientnet_b2", "swin_v2_t", "vit_b_32"],
)
def test_a_network_is_told_from_its_relatives(name):
    best, second = index.propose(shapes_of(shapes_only(name, num_classes=5)))[:2]
    assert (best.name, best.score) == (f"torchvision:{name}", 2)
    assert second.score < 2 or second.name.startswith("timm:")


def test_the_index_is_of_the_networks_that_there_are():
    for name in ("torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"):
        known = index.propose(trial_shapes(name))[0]
        assert (known.name, known.score) == (name, 2)


def test_identification_is_quick_and_leaves_the_random_numbers_alone():
    state = net("mobilenet_v3_small").state_dict()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    start = time.perf_counter()
    rebuild(state)
    assert time.perf_counter() - start < 10  # 0.3 s where nothing else runs
    assert torch.equal(torch.rand(3), expected)


def test_counters_of_old_checkpoints_may_be_missing():
    model = net("shufflenet_v2_x0_5")
    old = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    assert same(rebuild(old), model)


@pytest.mark.parametrize(
    "prefix", ["module.", "backbone.", "a.b.model.", "_orig_mod.", "net._orig_mod.module."]
)
def test_a_network_is_found_under_any_prefix(prefix):
    model = net("squeezenet1_1")
    rebuilt = rebuild(under(prefix, model.state_dict()))
    assert same(rebuilt, model)
    assert rebuilt.keys["classifier.1.weight"] == f"{prefix.replace('_orig_mod.', '')}classifier.1.weight"


@pytest.mark.parametrize(
    ("one", "two"),
    [("ema_model.", "model."), ("averaged.module.", ""), ("teacher.", "student."), ("online.", "target.")],
)
def test_of_several_copies_the_evaluated_one_is_taken(one, two):
    model, other = net("squeezenet1_1"), net("squeezenet1_1")
    rebuilt = rebuild(under(two, other.state_dict()) | under(one, model.state_dict()))
    assert same(rebuilt, model)
    assert "2 copies" in told(rebuilt)


def test_a_teacher_of_another_kind_is_left_out():
    model, teacher = net("squeezenet1_0"), net("squeezenet1_1")
    state = under("student.", model.state_dict()) | under("teacher.", teacher.state_dict())
    assert same(rebuild(state), model)


def test_what_training_needed_is_left_out_and_told():
    model = net("squeezenet1_1")
    beside = {
        "criterion.weight": torch.ones(5),
        "val_acc.tp": torch.ones(5),
        "model.total_ops": torch.ones(1),
    }
    rebuilt = rebuild(under("model.", model.state_dict()) | beside)
    assert same(rebuilt, model)
    assert "left out, as it is none of the network's: criterion.weight, val_acc.tp" in told(rebuilt)


def test_a_normalising_layer_gives_mean_and_std():
    model = net("squeezenet1_1")
    values = {"norm.mean": torch.full((1, 3, 1, 1), 0.5), "norm.std": torch.full((1, 3, 1, 1), 0.25)}
    rebuilt = rebuild(under("net.", model.state_dict()) | values)
    assert (rebuilt.mean, rebuilt.std) == ((0.5,) * 3, (0.25,) * 3)


HEADS = {
    "dropout": nn.Sequential(nn.Dropout(), nn.Linear(512, 4)),
    "hidden": nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)),
    "normed": nn.Sequential(
        nn.BatchNorm1d(512), nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    ),
    "named": nn.Sequential(OrderedDict(norm=nn.LayerNorm(512), out=nn.Linear(512, 4, bias=False))),
    "nested": nn.Sequential(OrderedDict(inner=nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 4)))),
    "plain": nn.Linear(512, 4, bias=False),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_other_kinds_are_made_again(kind):
    model = net("resnet18")
    model.fc = HEADS[kind]
    rebuilt = rebuild(model.state_dict())
    assert same(rebuilt, model)
    assert ("ReLU" in told(rebuilt)) == (kind in ("hidden", "normed", "nested"))


def test_a_1x1_convolution_as_the_head():
    model = net("resnet18")
    state = model.state_dict()
    state["fc.weight"] = state["fc.weight"][..., None, None]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(rebuild(state).module.eval()(x), model(x))


def test_a_classifier_that_stands_beside_its_backbone():
    body = net("resnet18")
    body.fc = nn.Identity()
    model = nn.Sequential(OrderedDict(backbone=body, head=nn.Linear(512, 4)))
    rebuilt = rebuild(model.state_dict())
    assert same(rebuilt, model)
    assert rebuilt.keys["fc.weight"] == "head.weight"
    assert "head is its classifier" in told(rebuilt)


def test_a_backbone_by_the_numbers_of_its_layers():
    whole = net("resnet18")
    body = nn.Sequential(*list(whole.children())[:-1])
    model = nn.Sequential(OrderedDict(body=body, flat=nn.Flatten(), head=nn.Linear(512, 4)))
    assert same(rebuild(model.state_dict()), model)


def test_a_missing_head_is_told():
    model = net("mobilenet_v3_small")
    model.classifier = nn.Identity()
    rebuilt = rebuild(model.state_dict())
    assert rebuilt.headless == "classifier"
    assert same(rebuilt, model)


def test_stems_for_grey_and_for_small_images():
    grey = net("resnet18")
    grey.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    assert same(rebuild(grey.state_dict()), grey, channels=1)
    small = net("resnet18")
    small.conv1, small.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    rebuilt = rebuild(small.state_dict())
    assert same(rebuilt, small, side=32)
    assert rebuilt.small
    assert "stride 1, no pooling follows" in told(rebuilt)


WIDTHS = {
    "mobilenet_v2": lambda m: m.mobilenet_v2(num_classes=3, width_mult=0.35),
    "mobilenet_v3_small": lambda m: m.mobilenet_v3_small(num_classes=3, width_mult=0.5, reduced_tail=True),
    "shufflenet": lambda m: m.ShuffleNetV2([2, 3, 2], [8, 16, 32, 64, 128], 3),
    "resnext": lambda m: m.ResNet(m.resnet.Bottleneck, [1, 1, 2, 1], 3, groups=4, width_per_group=16),
    "densenet": lambda m: m.DenseNet(8, (2, 2, 2, 2), 16, num_classes=3),
    "mnasnet": lambda m: m.MNASNet(0.25, num_classes=3),
}


@pytest.mark.parametrize("family", WIDTHS)
def test_widths_and_depths_are_read_off_the_shapes(family):
    model = WIDTHS[family](torchvision.models)
    rebuilt = rebuild(model.state_dict())
    assert same(rebuilt, model)
    assert "as the shapes say" in told(rebuilt)


def test_a_vision_transformer_of_another_image_size():
    state = shapes_only("vit_b_32", image_size=96, num_classes=4)
    shapes = shapes_of(state)
    (name,) = {proposal.name for proposal in index.propose(shapes)[:1]}
    with torch.device("meta"):
        module = named_architecture(name).build(4, shapes)
    assert named_architecture(name).input_size(module) == (3, 96, 96)


def test_heads_of_different_sizes_are_each_adapted():
    model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    model.fc = nn.Linear(1024, 4)  # as most people adapt it: the auxiliary heads keep their thousand
    built = rebuild(model.state_dict()).module
    assert (built.fc.out_features, built.aux1.fc2.out_features) == (4, 1000)


def test_mnasnet_keeps_its_stem():
    # It would rebuild its stem for a state dict that doesn't tell its version, as safetensors can't.
    model = net("mnasnet0_5")
    assert same(rebuild(dict(model.state_dict())), model)


def attention(model):
    model.layer1[0].se = nn.Linear(64, 64)


def deep_stem(model):
    model.conv1 = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3))


def memory(model):
    model.fc = nn.LSTM(512, 8)


@pytest.mark.parametrize(
    ("change", "difference"),
    [(attention, r"layer1\.0\.se\.weight"), (deep_stem, r"conv1\.0\.weight"), (memory, "fc.weight_ih_l0")],
)
def test_what_can_not_be_told_is_not_guessed_at(change, difference):
    model = net("resnet18")
    change(model)
    with pytest.raises(ModelError, match=rf"closest is torchvision:resnet18, but .*{difference}") as error:
        rebuild(model.state_dict(), file="net.pt")
    assert "\n" not in str(error.value)
    compile(error.value.more, "my_network.py", "exec")
    assert "torchvision.models.resnet18(weights=None, num_classes=num_classes)" in error.value.more
    assert "peft-advisor profile net.pt --arch my_network.py:build" in error.value.more


def test_two_backbones_are_no_copies():
    state = {
        **under("rgb.", net("squeezenet1_1").state_dict()),
        **under("depth.", net("squeezenet1_1").state_dict()),
    }
    with pytest.raises(ModelError, match="whose part in the network can't be told"):
        rebuild(state)


def test_a_network_whose_own_names_start_with_model(tmp_path, monkeypatch):
    (tmp_path / "wrapped_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.model = nn.Linear(3, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    state = {"module.model.weight": torch.ones(4, 3), "module.model.bias": torch.ones(4)}
    built = rebuild(state, named_architecture("wrapped_net:Net")).module
    assert torch.equal(built.model.weight, state["module.model.weight"])


def test_weights_in_parts_are_put_together():
    pruned = net("squeezenet1_1")
    prune.l1_unstructured(pruned.classifier[1], "weight", 0.5)
    rebuilt = rebuild(pruned.state_dict())
    assert same(rebuilt, pruned)
    assert "50 % of those weights are zero" in told(rebuilt)
    normed = net("resnet18")
    normed.fc = nn.utils.parametrizations.weight_norm(nn.Linear(512, 4))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(rebuild(normed.state_dict()).module.eval()(x), normed(x))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["roi_heads.box_head.fc6.weight"], "detection"),
        (["backbone.0.weight", "aux_classifier.0.weight"], "segmentation"),
        (["model.layers.0.self_attn.q_proj.weight"], "language model"),
        (["base_model.model.fc.lora_A.weight"], "PEFT adapters alone"),
        (["base_model.fc.base_layer.weight", "base_model.fc.lora_A.default.weight", "x"], "merge_and_unload"),
    ],
)
def test_other_kinds_of_networks_are_named(names, kind):
    with pytest.raises(ModelError, match=kind):
        rebuild(dict.fromkeys(names, torch.zeros(2, 2)))


def test_a_timm_network_is_found_where_torchvision_has_none():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", pretrained=False, num_classes=4)
    assert same(rebuild(under("model.", model.state_dict())), model)


def test_a_timm_network_that_has_no_classifier_unless_asked_for_one():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_small_patch8_224", pretrained=False, num_classes=3, depth=12).eval()
    assert same(rebuild(under("model.", model.state_dict())), model, side=224)


def test_networks_that_the_weights_cant_tell_apart_are_listed():
    timm = pytest.importorskip("timm")
    model = timm.create_model("efficientnet_lite0", pretrained=False)
    with pytest.raises(ModelError, match=r"--arch: timm:efficientnet_lite0, timm:tf_efficientnet_lite0"):
        rebuild(model.state_dict())
    assert same(rebuild(model.state_dict(), said=["efficientnet_lite0"]), model)
