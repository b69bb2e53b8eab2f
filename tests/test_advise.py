"""The Python interface: the whole story on a module, without files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from advisor import Budget, Request, profile, recommend
from advisor.errors import InputError, ModelError
from advisor.solver import violations


def network(norm=True):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


REQUEST = Request(input_size=(3, 16, 16), batch_size=4, ranks=(2,), probe_seconds=None)


def test_a_recommendation_was_run_and_fits():
    budget = Budget(ram_bytes=1_000_000)
    found = recommend(network(), budget, REQUEST)
    chosen = found.evaluation(found.recommended)
    assert chosen.fits
    assert chosen.measured.survived
    assert chosen.measured.cap_bytes > budget.ram_bytes
    assert not violations(budget, chosen.cost)
    assert "unknown" in found.answer
    assert set(found.front) <= {e.candidate.id for e in found.evaluations}


def test_every_rejection_has_its_reason_in_numbers():
    found = recommend(network(), Budget(ram_bytes=40_000), REQUEST)
    for evaluation in found.evaluations:
        assert evaluation.fits == (evaluation.cost.peak_memory_bytes <= 40_000)
        for violation in evaluation.violations:
            assert violation.value > violation.allowed
            assert any(character.isdigit() for character in violation.reason)


def test_nothing_fits():
    found = recommend(network(), Budget(ram_bytes=10), REQUEST)
    assert found.recommended is None
    assert found.answer.startswith("Nothing fits")


def test_what_does_not_apply_is_said():
    found = profile(network(norm=False), REQUEST)
    assert "recalibrate" in found.not_applicable
    assert "norm" in found.not_applicable
    assert found.recommended is None


def test_why_only_the_whole_network_can_be_trained_is_said():
    class Twice(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.stem, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
            self.head, self.times = nn.Linear(4, 2), times

        def forward(self, x):
            x = self.stem(x)
            for _ in range(self.times):
                x = self.fc(x)
            return self.head(x.mean((2, 3)))

    unverified = replace(REQUEST, verify=False)  # a class made here can't be sent to another process
    told = "only the whole network can be trained, no last part of it: layer `fc` runs twice"
    for ask in (lambda model: profile(model, REQUEST), lambda model: recommend(model, None, unverified)):
        assert told in ask(Twice(2)).warnings
        assert not any("whole network" in warning for warning in ask(Twice(1)).warnings)


def test_the_summary_adds_up():
    found = profile(network(), REQUEST)
    assert sum(t.parameters for t in found.model.layer_types.values()) == found.model.parameters
    assert sum(t.forward_flops for t in found.model.layer_types.values()) == found.model.forward_flops
    # fvcore counts convolutions, linear layers and batch norm; ours must not be below it.
    assert 0 < found.model.fvcore_forward_flops <= found.model.forward_flops * 1.05


def test_a_network_of_shapes_alone_costs_what_one_with_weights_does():
    with torch.device("meta"):
        shapes = network()
    found, expected = recommend(shapes, request=REQUEST), profile(network(), REQUEST)

    def costs(answer):
        return {e.candidate: replace(e.cost, by_layer=(), timeline=None) for e in answer.evaluations}

    assert costs(found) == costs(expected)
    # fvcore wants values.
    assert found.model == replace(expected.model, fingerprint="", fvcore_forward_flops=None)
    assert any("nothing of it can be run" in warning for warning in found.warnings)
    assert found.evaluation(found.recommended).measured is None
    images = np.zeros((20, 16, 16, 3), np.uint8), np.arange(20) % 4
    with pytest.raises(InputError, match="no values to be trained"):
        recommend(shapes, request=replace(REQUEST, data=images))


def test_a_module_needs_its_input_size():
    with pytest.raises(ModelError, match="--input-size"):
        profile(network())


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"ranks": ()}, {"ranks": (0,)}, {"methods": ("lorra",)}]
)
def test_a_wrong_request_is_refused(wrong):
    from dataclasses import replace

    with pytest.raises(InputError):
        profile(network(), replace(REQUEST, **wrong))


def test_few_images_are_all_held_out_in_turn(tmp_path):
    torch.manual_seed(0)
    labels = np.arange(20) % 4
    images = np.random.default_rng(0).random((20, 3, 12, 12)) * 60 + 40 * labels[:, None, None, None]
    np.savez(tmp_path / "few.npz", images=images.astype(np.uint8), labels=labels)
    request = Request(
        batch_size=4,
        input_size=(3, 12, 12),
        data=str(tmp_path / "few.npz"),
        methods=("head", "norm"),
        probe_seconds=20.0,
        epochs=1,
        verify=False,
    )
    found = recommend(network(), request=request)
    assert (found.data.folds, found.data.validation_samples, found.data.train_samples) == (5, 20, 16)
    assert {e.accuracy.samples for e in found.evaluations if e.accuracy} == {20}


@pytest.mark.parametrize("flops", [None, 400_000])  # of full fine-tuning 590,000
def test_probes_may_take_as_long_as_one_full_fine_tune_whatever_the_device_can_do(tmp_path, flops):
    """The limits are the device's, the time that of whoever asks."""
    labels = np.arange(60) % 4
    images = np.random.default_rng(0).random((60, 3, 12, 12))
    np.savez(tmp_path / "few.npz", images=images.astype(np.float32), labels=labels)
    request = Request(
        batch_size=4,
        input_size=(3, 12, 12),
        data=str(tmp_path / "few.npz"),
        methods=("full", "head", "norm"),
        probe_seconds="auto",
        verify=False,
    )
    timed = []

    def progress(_stage, _fraction, running):
        if running.startswith("timing"):
            timed.append(running)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recommend(network(), Budget(flops=flops), request, progress)
    assert timed == ["timing full"]


@pytest.mark.parametrize("count", [20, 320])  # so few are all held out in turn
def test_the_same_question_is_answered_again_without_decoding_an_image(tmp_path, monkeypatch, count):
    random = np.random.default_rng(0)
    for index in range(count):
        path = tmp_path / "data" / "abcde"[index % 5] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = random.random((12, 12, 3)) * 60 + 40 * (index % 5)
        Image.fromarray(picture.astype(np.uint8)).save(path)
    request = Request(
        batch_size=4,
        input_size=(3, 12, 12),
        data=str(tmp_path / "data"),
        methods=("head", "norm"),
        probe_seconds=5.0,
        epochs=1,
        verify=False,
        store=tmp_path / "store",
    )
    model = network()
    first = recommend(model, request=request)
    monkeypatch.setattr(Image, "open", lambda path: pytest.fail(f"{path} is decoded"))
    again = recommend(model, request=request)
    assert again.data.probes_run == 0
    assert again.data.probes_recalled == first.data.probes_run + first.data.probes_recalled
    assert again.evaluations == first.evaluations
    fitting = [e for e in first.evaluations if e.fits]
    assert all((e.accuracy and e.accuracy.finalist) or e.predicted or e.probe_failure for e in fitting)
    assert (again.answer, again.warnings) == (first.answer, first.warnings)


def test_what_does_not_fit_is_predicted_from_what_was_probed(tmp_path):
    random = np.random.default_rng(0)
    labels = np.arange(320) % 4
    images = (random.random((320, 3, 12, 12)) * 60 + 45 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "colours.npz", images=images, labels=labels)
    request = replace(
        REQUEST,
        input_size=(3, 12, 12),
        data=str(tmp_path / "colours.npz"),
        methods=("head", "full"),
        probe_seconds=5.0,
        epochs=2,
        verify=False,
    )
    costs = {e.candidate.id: e.cost.peak_memory_bytes for e in profile(network(), request).evaluations}
    found = recommend(network(), Budget(ram_bytes=(costs["head"] + costs["full"]) // 2), request)
    full = found.evaluation("full")
    assert not full.fits
    assert full.accuracy is None
    assert 0 < full.predicted.low < full.predicted.mean < full.predicted.high < 1
    # It is offered for a looser limit only where it is expected to be better than what was chosen.
    best = found.evaluation(found.recommended).accuracy
    offered = [r.sentence for r in found.relaxations if r.candidate_id == "full"]
    assert any("as predicted" in sentence for sentence in offered) == (full.predicted.mean > best.mean)


def test_noise_teaches_nothing_and_that_is_the_answer(tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (320, 3, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=images, labels=np.arange(320) % 4)
    request = Request(
        batch_size=8,
        input_size=(3, 12, 12),
        data=str(tmp_path / "noise.npz"),
        methods=("head", "norm"),
        probe_seconds=10.0,
        epochs=2,
    )
    found = recommend(network(), request=request)
    assert (found.recommended, found.outcome) == (None, "none")
    assert "always answering the largest class, which is right for 25.0 %" in found.answer
    assert any(e.fits and e.accuracy for e in found.evaluations)
    assert not found.relaxations
