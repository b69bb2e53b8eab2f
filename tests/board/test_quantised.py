"""The trained network in int8: what it answers, what is told of it, and one line for what can't be."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from advisor import load_adapter
from advisor.board import quantised
from advisor.board.quantised import told, write_quantised
from advisor.data import load_data
from advisor.delivery.adapters import TENSORS, Recipe, attach_adapter, read_recipe, save_adapter
from advisor.delivery.kept_sums import SUMS, KeptSums, marks_of
from advisor.errors import InputError
from advisor.models import load_model
from advisor.models.layers import take_census
from advisor.parts.sums import Sums
from advisor.records import Candidate
from advisor.training.update import attach

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE = (3, 12, 12)
NAMES = ("red", "green", "blue")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def images(where, each=100, names=NAMES, seed=0):
    """An .npz of noise, brighter in the channel of the class."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(names)), each)
    made = generator.integers(0, 120, (len(labels), *SIZE[1:], 3))
    made[np.arange(len(labels)), :, :, labels % 3] += 100
    np.savez(where, images=made.astype(np.uint8), labels=labels, class_names=np.array(names))
    return str(where)


def network(activation, middle=None):
    """One that tells the channel of which there is most: what is before its head is drawn at random."""
    layers = [nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), activation()]
    layers += middle or [nn.Conv2d(8, 8, 3, padding=1, groups=8), activation(), nn.Conv2d(8, 16, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, len(NAMES)))


def with_head(model, data):
    """The model with a head that tells the classes of the .npz, by ridge regression."""
    found = np.load(data)
    pixels = torch.from_numpy(found["images"]).permute(0, 3, 1, 2).float() / 255
    normal = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    model.eval()
    with torch.no_grad():
        features = model[:-1](normal)
        centred, targets = (
            features - features.mean(0),
            nn.functional.one_hot(torch.from_numpy(found["labels"])),
        )
        gram = centred.T @ centred
        solved = torch.linalg.solve(gram + 1e-3 * gram.trace() * torch.eye(16), centred.T @ targets.float())
        model[-1].weight.copy_(solved.T)
        model[-1].bias.copy_(targets.float().mean(0) - features.mean(0) @ solved)
    return model


def written(folder, model, change=1e-3):
    """The model's file, and an adapter of it in the folder, whose parameters were changed by so much."""
    torch.save(model.eval(), folder / "model.pt")
    base = load_model(str(folder / "model.pt")).module
    census, candidate = take_census(base, SIZE), Candidate.of("lora", {"rank": 2}, Candidate("lora").levers)
    trainable = attach(copy.deepcopy(base), census, candidate)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(change * torch.randn(parameter.shape))
    recipe = replace(
        Recipe.of(base, candidate, census),
        class_names=NAMES[::-1],
        class_outputs=(2, 1, 0),
        mean=MEAN,
        std=STD,
    )
    save_adapter(folder, trainable, recipe)
    return str(folder / "model.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its adapter, and images of its classes."""
    made = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    written(made, with_head(network(nn.ReLU6), images(made / "images.npz")))
    return made


def held_out(data):
    """The images of an .npz that `load_data` holds out, as the network is called with them."""
    dataset = load_data(data, SIZE)
    pixels = dataset.validation.images.float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), dataset.validation


def scores_of(path, given):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": given.numpy()})[0])


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.SiLU, nn.Hardswish])
def test_it_answers_as_the_network_does_and_tells_how_well(tmp_path, activation):
    torch.manual_seed(1)
    data = images(tmp_path / "images.npz")
    model = written(tmp_path, with_head(network(activation), data))
    found = write_quantised(model, tmp_path, tmp_path / "int8.onnx", data)

    given, judged = held_out(data)
    with torch.no_grad():
        expected = load_adapter(load_model(model).module, tmp_path)(given)
    assert found.float32.accuracy.mean == (expected.argmax(1) == judged.labels).double().mean()
    scores = scores_of(found.path, given)
    assert found.int8.accuracy.mean == (scores.argmax(1) == judged.labels).double().mean()
    assert found.changed == (scores.argmax(1) != expected.argmax(1)).sum()
    assert found.int8.accuracy.samples == len(judged) == 90
    assert found.int8.accuracy.mean > 0.95
    assert found.int8.bytes == found.path.stat().st_size
    assert min(found.int8.seconds, found.float32.seconds) > 0
    for count in (1, 7):
        torch.testing.assert_close(scores_of(found.path, given[:count]), scores[:count])

    # Every layer's weights are in int8, with a scale for each channel.
    graph = onnx.load(found.path).graph
    weights = [
        each for each in graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
    ]
    assert len(weights) == found.in_int8 == found.layers == 4
    scales = {each.name: each.dims for each in graph.initializer if each.name.endswith("scale")}
    assert sum(list(dims) in ([8], [16], [3]) for dims in scales.values()) >= 4


def test_no_image_that_calibrates_is_judged(folder, tmp_path, monkeypatch):
    seen, real = [], quantised._quantise

    def quantise(prepared, file, given, left):
        seen.append(given)
        real(prepared, file, given, left)

    monkeypatch.setattr(quantised, "_quantise", quantise)
    data = str(folder / "images.npz")
    found = write_quantised(str(folder / "model.pt"), folder, tmp_path / "int8.onnx", data)
    calibrating, judged = (
        {each.numpy().tobytes() for each in part.images} for part in (seen[0].calibrating, seen[0].judged)
    )
    assert (len(calibrating), len(judged)) == (found.calibrating, found.int8.accuracy.samples) == (128, 90)
    assert not calibrating & judged
    assert judged == {each.numpy().tobytes() for each in held_out(data)[1].images}
    assert seen[0].calibrating.labels.unique().tolist() == [0, 1, 2]


def test_no_image_that_the_head_was_solved_of_is_judged(folder, tmp_path):
    model, data = str(folder / "model.pt"), str(folder / "images.npz")
    held = held_out(data)[1]
    solved_of = held.those(torch.arange(30))
    recipe = read_recipe(folder)
    trainable = attach_adapter(load_model(model).module, recipe, load_file(folder / TENSORS))
    zeros = [torch.zeros(*shape).double() for shape in ((1, 1), (1, 3), (1,), (3,))]
    sums = KeptSums(Sums((1,), 30, *zeros), marks_of(solved_of.images, solved_of.labels))
    save_adapter(tmp_path, trainable, replace(recipe, data=data), sums)
    found = write_quantised(model, tmp_path, tmp_path / "int8.onnx", data)
    assert found.int8.accuracy.samples == len(held) - 30
    assert not found.warnings

    # Without the sums nobody knows which images it was trained on, only that they are of the same data.
    (tmp_path / SUMS).unlink()
    found = write_quantised(model, tmp_path, tmp_path / "int8.onnx", data)
    assert found.int8.accuracy.samples == len(held)
    assert "may have been trained on some of these images" in found.warnings[0]


def between(wide, after):
    """Two layers with values between them of which one channel's are so large that int8 drowns the others."""
    with torch.no_grad():
        wide.weight[0] *= 1e5
        (after.weight[0] if after.groups > 1 else after.weight[:, 0]).mul_(1e-5)
    return wide, after


def test_sensitive_layers_stay_in_float32(tmp_path):
    torch.manual_seed(2)
    data = images(tmp_path / "images.npz")
    model = network(nn.Identity)
    between(model[0], model[3])
    file = written(tmp_path, with_head(model, data), change=0)
    found = write_quantised(file, tmp_path, tmp_path / "int8.onnx", data)
    assert found.left.words == "depthwise convolutions, the first and the last layer"
    assert found.left.throughout.mean < found.float32.accuracy.mean - 0.1
    assert found.int8.accuracy.mean > found.float32.accuracy.mean - 0.03
    assert not found.loses_much
    lines = dict(told(found))
    assert "1 in int8, 3 in float32 (depthwise convolutions, the first" in lines["Layers"]
    assert "right with all layers in int8" in lines["Note"]
    graph = onnx.load(found.path).graph
    assert (
        sum(each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1 for each in graph.initializer) == 1
    )


def test_where_no_layer_left_out_helps_it_says_so(tmp_path):
    torch.manual_seed(3)
    data = images(tmp_path / "images.npz")
    middle = [*between(nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 16, 1)]
    file = written(tmp_path, with_head(network(nn.Identity, middle), data), change=0)
    found = write_quantised(file, tmp_path, tmp_path / "int8.onnx", data)
    assert found.float32.accuracy.mean > 0.95
    assert found.loses_much
    assert "write --as onnx" in told(found)[-1][1]
    assert found.path.exists()


def test_what_it_tells(folder, tmp_path):
    path = tmp_path / "int8.onnx"
    found = write_quantised(str(folder / "model.pt"), folder, path, str(folder / "images.npz"))
    lines = told(found)
    assert [name for name, _ in lines] == ["Wrote", "Right", "Changed", "Time", "Layers"]
    assert lines[0][1].startswith(f"{path}, ")
    assert " of 90 images; in float32 " in lines[1][1]
    assert lines[4][1] == "all 4 in int8; ranges of 128 other images"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": (*NAMES, "grey")}, "doesn't know 'grey', its classes are blue, green, red; leave out"),
        ({"each": 12}, "10 of its images are left to judge by .* and 20 are .* give 67 new ones or more"),
    ],
)
def test_images_that_tell_nothing_are_refused(folder, tmp_path, given, message):
    data = images(tmp_path / "images.npz", **given)
    with pytest.raises(InputError, match=message) as refused:
        write_quantised(str(folder / "model.pt"), folder, tmp_path / "int8.onnx", data)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["images.npz"]


def test_what_fails_leaves_no_file(folder, tmp_path, monkeypatch):
    given = str(folder / "model.pt"), folder, tmp_path / "int8.onnx", str(folder / "images.npz")
    monkeypatch.setattr(quantised, "_LAYERS", None)
    with pytest.raises(InputError, match="can't be written as onnx-int8: "):
        write_quantised(*given)
    monkeypatch.setattr("advisor.board.program.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx and onnxscript and onnxruntime: pip install 'peft-"):
        write_quantised(*given)
    assert not any(tmp_path.iterdir())
