"""The recommended fine-tune for real: resumed is undisturbed, what is written is what was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import advisor.delivery.apply
import advisor.delivery.folder
from advisor import Budget, Request, load_adapter, recommend
from advisor.delivery.adapters import RECIPE, TENSORS, read_recipe
from advisor.delivery.apply import Application, apply_advice, verdict
from advisor.delivery.folder import CHECKPOINT
from advisor.errors import InputError
from advisor.models import load_model

SIZE = (1, 8, 8)
REQUEST = Request(batch_size=16, input_size=SIZE, ranks=(2,), probe_seconds=None, verify=False, seed=3)


def network(classes=10):
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes)),
    )


@pytest.fixture(scope="module")
def situation(tmp_path_factory):
    """A folder with a small network, trained on digits, and noisy digits that it has not seen."""
    folder = tmp_path_factory.mktemp("situation")
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    noisy = (images[1400:, 0] + 0.3 * torch.randn(397, 8, 8, generator=torch.manual_seed(1))).clamp(0, 1)
    np.savez(folder / "data.npz", images=noisy.numpy(), labels=digits.target[1400:])
    for name, classes in (("model", 10), ("seven", 7)):
        torch.manual_seed(0)
        model = network(classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        known = torch.arange(1400)[labels[:1400] < classes]
        for batch in known.repeat(2).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch] * 2 - 1), labels[batch]).backward()
            optimizer.step()
        torch.save(model.eval(), folder / f"{name}.pt")
    return folder


def advised(situation, model="model.pt", **more):
    request = replace(REQUEST, **{"data": str(situation / "data.npz")} | more)
    return recommend(str(situation / model), Budget(), request)


@pytest.fixture(scope="module")
def advice(situation):
    return advised(situation)


def carried_out(situation, advice, output, candidate=None, model="model.pt", epochs=2, **more):
    application = Application(Path(output), candidate=candidate, epochs=epochs, **more)
    return apply_advice(str(situation / model), advice, application)


def outputs(module, images=None):
    images = torch.randn(6, *SIZE, generator=torch.manual_seed(5)) if images is None else images
    with torch.no_grad():
        return module.eval()(images)


@pytest.fixture
def trained(monkeypatch):
    """What the trained modules answered when they were written."""
    kept = []
    save = advisor.delivery.folder.save_adapter

    def keep(folder, trainable, recipe, sums):
        kept.append(outputs(trainable.model))
        return save(folder, trainable, recipe, sums)

    monkeypatch.setattr(advisor.delivery.folder, "save_adapter", keep)
    return kept


CANDIDATES = ["full", "lora-rank=2", "dora-rank=2", "norm", "head", "sparse-fraction=0.25", "recalibrate"]
CANDIDATES += ["ssf", "full@last-1", "norm@statistics-reestimated"]


def with_candidate(advice, text):
    """The advice, with a candidate of that id made from one of the method's if it has none."""
    method, _, lever = text.partition("@")
    known = {evaluation.candidate.id: evaluation for evaluation in advice.evaluations}
    if text in known:
        return advice
    like = known[method]
    changed = {"last-1": {"scope": 1}, "statistics-reestimated": {"statistics": "reestimated"}}[lever]
    levers = replace(like.candidate.levers, **changed)
    made = replace(like, candidate=replace(like.candidate, levers=levers))
    assert made.candidate.id == text
    return replace(advice, evaluations=(*advice.evaluations, made))


def adapter_id(advice):
    return next(e.candidate.id for e in advice.evaluations if e.candidate.method == "adapter")


HEADS = ["ridge-features=last", "ridge-features=all", "dora-rank=2@head-ridge-last", "norm@head-ridge-all"]
HEADS += ["lora-rank=2@head-ridge-all"]


@pytest.mark.parametrize("candidate", HEADS)
def test_a_head_that_was_solved_comes_back_with_the_adapter(situation, advice, tmp_path, trained, candidate):
    applied = carried_out(situation, advice, tmp_path, candidate)
    base = load_model(str(situation / "model.pt")).module
    again = load_adapter(base, tmp_path)
    assert torch.equal(outputs(again), trained[0])
    # One-hot targets: the outputs of an image sum to the share of images that have a class.
    torch.testing.assert_close(outputs(again).sum(1), torch.ones(6), rtol=0, atol=1e-3)
    is_wide = candidate.endswith("all")
    assert ((tmp_path / "merged.pt") in applied.files) is not is_wide
    if not is_wide:
        plain = load_model(str(tmp_path / "merged.pt")).module
        torch.testing.assert_close(outputs(plain), trained[0], rtol=1e-4, atol=1e-4)
    twice = carried_out(situation, advice, tmp_path, candidate)  # from its checkpoint
    assert twice.accuracy == applied.accuracy


@pytest.mark.parametrize("candidate", [*CANDIDATES, "adapter"])
def test_a_loaded_adapter_answers_as_the_trained_model(situation, advice, tmp_path, trained, candidate):
    candidate = adapter_id(advice) if candidate == "adapter" else candidate
    applied = carried_out(situation, with_candidate(advice, candidate), tmp_path, candidate)
    base = load_model(str(situation / "model.pt")).module
    again = load_adapter(base, tmp_path)
    assert torch.equal(outputs(again), trained[0])
    assert not torch.equal(outputs(again), outputs(base))
    assert (tmp_path / TENSORS) in applied.files
    merged = tmp_path / "merged.pt"
    if merged in applied.files:
        plain = load_model(str(merged)).module
        torch.testing.assert_close(outputs(plain), trained[0], rtol=1e-4, atol=1e-4)
        assert [type(module) for module in plain.modules()] == [type(module) for module in base.modules()]
    else:
        assert not merged.exists()
        assert any("merged" in note for note in applied.notes)


@pytest.mark.parametrize("candidate", ["lora-rank=2", "head", "full"])
def test_new_classes_come_back_with_the_adapter(situation, tmp_path, trained, candidate):
    advice = advised(situation, "seven.pt")
    applied = carried_out(situation, advice, tmp_path, candidate, "seven.pt")
    base = load_model(str(situation / "seven.pt")).module
    again = load_adapter(base, tmp_path)
    assert outputs(again).shape == (6, 10)
    assert torch.equal(outputs(again), trained[0])
    assert (applied.recipe.base_classes, applied.recipe.classes) == (7, 10)
    assert base[-1].out_features == 7


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    "candidate",
    ["lora-rank=2", "full", "galore-rank=2", "sparse-fraction=0.25", "norm@statistics-reestimated"],
)
def test_resumed_is_undisturbed(situation, advice, tmp_path, candidate):
    advice = with_candidate(advice, candidate)
    carried_out(situation, advice, tmp_path / "whole", candidate, epochs=3)

    def stop(stage, fraction, running):
        # In the midst of the second epoch: what was trained since the checkpoint is trained again.
        if stage == "train" and fraction > 0.5:
            raise StoppedError

    application = Application(tmp_path / "cut", candidate=candidate, epochs=3)
    with pytest.raises(StoppedError):
        apply_advice(str(situation / "model.pt"), advice, application, stop)
    assert not (tmp_path / "cut" / TENSORS).exists()
    epochs = []
    apply_advice(
        str(situation / "model.pt"), advice, application, on_epoch=lambda epoch, *_: epochs.append(epoch)
    )
    assert epochs == [2, 3]
    assert (tmp_path / "cut" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()
    states = [
        torch.load(tmp_path / name / CHECKPOINT, weights_only=True)["state"] for name in ("cut", "whole")
    ]
    assert all(torch.equal(states[0]["model"][name], value) for name, value in states[1]["model"].items())
    assert all(map(torch.equal, states[0]["random"], states[1]["random"]))


def test_a_finished_run_is_not_trained_again(situation, advice, tmp_path):
    first = carried_out(situation, advice, tmp_path, "norm")
    epochs = []
    application = Application(tmp_path, candidate="norm", epochs=2)
    again = apply_advice(
        str(situation / "model.pt"), advice, application, on_epoch=lambda *args: epochs.append(args)
    )
    assert not epochs
    assert again.accuracy == first.accuracy


def test_statistics_are_re_estimated_in_one_epoch(situation, advice, tmp_path):
    told = []
    application = Application(tmp_path, candidate="recalibrate", epochs=5)
    applied = apply_advice(
        str(situation / "model.pt"), advice, application, on_epoch=lambda *epoch: told.append(epoch)
    )
    assert told == [(1, 1, applied.accuracy.mean)]


def test_held_out_images_choose_nothing(situation, advice, tmp_path, monkeypatch):
    found = iter([9, 5])
    monkeypatch.setattr(
        advisor.delivery.apply.FineTune,
        "judge",
        lambda *_, **__: bytes([1] * (right := next(found, 7)) + [0] * (10 - right)),
    )
    applied = carried_out(situation, advice, tmp_path, "norm", epochs=2)
    last = torch.load(tmp_path / CHECKPOINT, weights_only=True)["state"]["model"]
    written = load_file(tmp_path / TENSORS)
    assert all(torch.equal(tensor, last[name]) for name, tensor in written.items())
    assert applied.recipe.epochs_run == 2


def test_the_recipe_and_the_verdict_tell_what_was_done(situation, tmp_path):
    advice = advised(
        situation, probe_seconds=3.0, methods=("norm",), rehearse="fog:1", class_names=tuple("0123456789")
    )
    assert (advice.data.rehearse, advice.data.class_names, advice.data.mean) == (
        "fog:1",
        tuple("0123456789"),
        (0.5,),
    )
    applied = carried_out(situation, advice, tmp_path)
    recipe = read_recipe(tmp_path)
    assert recipe == replace(applied.recipe, setting={}, levers=recipe.levers)
    chosen = advice.evaluation(advice.recommended)
    assert recipe.candidate == chosen.candidate
    assert recipe.learning_rate == chosen.accuracy.learning_rate
    assert (recipe.rehearse, recipe.seed, recipe.epochs, recipe.mean) == ("fog:1", 3, 2, (0.5,))
    assert recipe.class_names == tuple("0123456789")
    assert recipe.accuracy["mean"] == applied.accuracy.mean
    text = verdict(applied)
    assert "the probe predicted" in text
    assert "its interval" in text
    assert "\n" not in text
    # The probes have judged the model as it is on all images, of which these are some.
    before = advice.data.base_accuracy
    assert len(before.correct) == advice.data.validation_samples > len(applied.base.correct)
    assert before.low < applied.base.mean < before.high


@pytest.mark.parametrize("form", ["state_dict", "prefixed", "safetensors"])
def test_the_merged_model_has_the_form_of_the_base(situation, tmp_path, form):
    state = load_model(str(situation / "model.pt")).module.state_dict()
    path = tmp_path / ("base.safetensors" if form == "safetensors" else "base.pth")
    prefix = "module." if form == "prefixed" else ""
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {prefix + name: tensor for name, tensor in state.items()}}, path)
    arch = "tests.delivery.test_apply:network"
    request = replace(REQUEST, data=str(situation / "data.npz"), arch=arch, methods=("lora",))
    advice = recommend(str(path), Budget(), request)
    assert advice.model.arch == arch
    applied = apply_advice(str(path), advice, Application(tmp_path / "out", epochs=1))
    merged = tmp_path / "out" / ("merged.safetensors" if form == "safetensors" else "merged.pt")
    assert merged in applied.files
    found = load_file(merged) if form == "safetensors" else torch.load(merged, weights_only=True)
    assert found.keys() == {prefix + name for name in state}
    again = load_adapter(load_model(str(path), arch=arch).module, tmp_path / "out")
    plain = load_model(str(merged), arch=arch).module
    torch.testing.assert_close(outputs(plain), outputs(again), rtol=1e-4, atol=1e-4)


# What goes wrong


def test_nothing_recommended(situation, advice, tmp_path):
    with pytest.raises(InputError, match=r"recommends nothing.*--candidate"):
        carried_out(situation, replace(advice, recommended=None), tmp_path)
    with pytest.raises(InputError, match=r"'lora' is not in the report; did you mean lora-2"):
        carried_out(situation, advice, tmp_path, "lora")


def test_another_model(situation, advice, tmp_path):
    torch.manual_seed(9)
    torch.save(network(), situation / "other.pt")
    with pytest.raises(InputError, match="other weights than"):
        carried_out(situation, advice, tmp_path, model="other.pt")


def other_data(folder, digits, names=None):
    known = load_digits()
    among = np.isin(known.target, digits)
    more = {} if names is None else {"class_names": np.array(names)}
    labels = known.target[among]
    np.savez(folder / "other.npz", images=known.images[among] / 16, labels=labels, **more)
    return str(folder / "other.npz")


@pytest.mark.parametrize(
    ("digits", "names", "message"),
    [
        (range(7), None, "not 7, 8, 9; give data of the same classes"),
        (range(10), list("abcdefghij"), "a, b, c, d and 6 others more and not 0, 1, 2, 3 and 6 others;"),
        (range(10), list("1023456789"), "the same ones in another order;"),
    ],
)
def test_data_of_other_classes(situation, advice, tmp_path, digits, names, message):
    with pytest.raises(InputError) as found:
        carried_out(situation, advice, tmp_path, "norm", data=other_data(tmp_path, digits, names))
    assert message in str(found.value)
    assert "--scenario" not in str(found.value)


def test_data_with_a_class_more(situation, tmp_path):
    seven = advised(situation, data=other_data(tmp_path, range(7)))
    with pytest.raises(InputError, match=r"not those of the report's data: 7, 8, 9 more; give data"):
        carried_out(situation, seven, tmp_path, "norm", data=str(situation / "data.npz"))


def test_a_report_without_data(situation, advice, tmp_path):
    with pytest.raises(InputError, match="without data; give the images"):
        carried_out(situation, replace(advice, data=None), tmp_path)
    data = str(situation / "data.npz")
    applied = carried_out(situation, replace(advice, data=None), tmp_path, "norm", data=data, epochs=1)
    assert "no probe" in verdict(applied)
    assert "no probe tells a learning rate" in applied.warnings[-1]


def test_code_that_a_report_names_for_its_data_is_not_run(situation, advice, tmp_path):
    """What is typed is run, what a file says is not."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    evil = replace(advice, data=replace(advice.data, source=f"{tmp_path / 'evil.py'}:data"))
    with pytest.raises(InputError, match="the report names code for its data"):
        carried_out(situation, evil, tmp_path / "tuned")
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_can_not_be_written_to(situation, advice, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/here")):
        with pytest.raises(InputError, match="can't be written to"):
            carried_out(situation, advice, folder)


def test_another_recipes_checkpoint(situation, advice, tmp_path):
    carried_out(situation, advice, tmp_path, "norm", epochs=1)
    with pytest.raises(InputError, match=r"another recipe \(candidate norm, now head.*--restart") as found:
        carried_out(situation, advice, tmp_path, "head", epochs=1)
    assert "\n" not in str(found.value)
    with pytest.raises(InputError, match=r"learning rate .*, now 0\.3"):
        carried_out(situation, advice, tmp_path, "norm", epochs=1, learning_rate=0.3)
    applied = carried_out(situation, advice, tmp_path, "head", epochs=1, restart=True)
    assert applied.recipe.method == "head"


@pytest.mark.parametrize("content", [b"", b"nothing that torch wrote"])
def test_a_damaged_checkpoint(situation, advice, tmp_path, content):
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(InputError, match=r"no checkpoint of a fine-tune, or a damaged one; .*--restart"):
        carried_out(situation, advice, tmp_path, "norm")


@pytest.mark.parametrize("missing", ["format", "key", "epochs", "state"])
def test_a_checkpoint_without_a_part(situation, advice, tmp_path, missing):
    carried_out(situation, advice, tmp_path, "norm", epochs=1)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del saved[missing]
    torch.save(saved, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="no checkpoint of a fine-tune, or a damaged one"):
        carried_out(situation, advice, tmp_path, "norm", epochs=1)


@pytest.mark.parametrize("name", [CHECKPOINT, "merged.pt", "link to the folder/merged.pt"])
def test_the_model_that_is_given_is_never_written_over(situation, advice, tmp_path, name):
    (tmp_path / "link to the folder").symlink_to(tmp_path)
    model = tmp_path / name
    model.write_bytes((situation / "model.pt").read_bytes())
    for restart in (False, True):
        with pytest.raises(InputError, match="apply would write over it; give another --output"):
            apply_advice(str(model), advice, Application(tmp_path, candidate="norm", restart=restart))
    assert model.read_bytes() == (situation / "model.pt").read_bytes()


@pytest.mark.parametrize("candidate", ["norm", "lora-rank=2"])
def test_what_others_keep_in_the_folder_stays(situation, advice, tmp_path, candidate):
    own = tmp_path / "huggingface" / "hub" / "model.bin"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    carried_out(situation, advice, tmp_path, "lora-rank=2", epochs=1)
    assert (tmp_path / "huggingface" / "adapter_config.json").is_file()
    carried_out(situation, advice, tmp_path, candidate, epochs=1, restart=True)
    assert own.read_text() == "mine"
    assert (tmp_path / "huggingface" / "adapter_config.json").exists() == (candidate != "norm")


def test_divergence(situation, advice, tmp_path):
    with pytest.raises(InputError, match=r"diverged in its first epoch.*lower --learning-rate"):
        carried_out(situation, advice, tmp_path, "full", learning_rate=1e30)


@pytest.mark.parametrize(
    ("more", "message"), [({"epochs": 0}, "--epochs 0"), ({"learning_rate": -1.0}, "--learning-rate -1.0")]
)
def test_wrong_numbers(situation, advice, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        carried_out(situation, advice, tmp_path, **more)


def test_the_recipe_is_plain_json(situation, advice, tmp_path):
    carried_out(situation, advice, tmp_path, "norm", epochs=1)
    document = json.loads((tmp_path / RECIPE).read_text(), parse_constant=pytest.fail)
    assert document["candidate"] == "norm"
    assert document["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_an_empty_path_of_data_is_not_that_of_the_report(situation, advice, tmp_path):
    for option in ("data", "unlabelled"):
        with pytest.raises(InputError, match="no such file or folder"):
            carried_out(situation, advice, tmp_path, "norm", **{option: ""})
