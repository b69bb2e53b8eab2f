"""The trained network as one file for other runtimes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from advisor import load_adapter
from advisor.board.program import write_program
from advisor.delivery.adapters import Recipe, save_adapter
from advisor.errors import InputError
from advisor.methods import get_method
from advisor.models import load_model
from advisor.models.layers import take_census
from advisor.records import Candidate
from advisor.training.update import attach, solve_head

SIZE = (3, 12, 12)


def network():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A model, and the folder of an adapter for it that is not what it began as."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    torch.save(network().eval(), folder / "model.pt")
    base = load_model(str(folder / "model.pt")).module
    census, candidate = take_census(base, SIZE), Candidate.of("lora", {"rank": 2}, Candidate("lora").levers)
    adapted = load_model(str(folder / "model.pt")).module
    trainable = attach(adapted, census, candidate)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    save_adapter(folder, trainable, Recipe.of(base, candidate, census))
    return folder


def test_a_program_answers_as_the_trained_network_for_any_batch(tuned, tmp_path):
    path = tmp_path / "tuned.pt2"
    written = write_program(str(tuned / "model.pt"), tuned, path, "pt2")
    assert (written.path, written.bytes) == (path, path.stat().st_size)
    assert written.difference < 1e-5
    trained = load_adapter(load_model(str(tuned / "model.pt")).module, tuned)
    program = torch.export.load(path).module()
    for count in (1, 7):
        images = torch.randn(count, *SIZE)
        with torch.no_grad():
            torch.testing.assert_close(program(images), trained(images), rtol=1e-4, atol=1e-4)


def test_a_head_that_reads_blocks_is_written_too(tmp_path):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    blocks = (copy.deepcopy(block) for _ in range(4))
    layers = [stem, *blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))]
    torch.save(nn.Sequential(*layers).eval(), tmp_path / "model.pt")
    base = load_model(str(tmp_path / "model.pt")).module
    census, candidate = take_census(base, SIZE), Candidate.parse("ridge-features=all")
    trainable = attach(load_model(str(tmp_path / "model.pt")).module, census, candidate)
    solve_head(trainable, census, [(torch.randn(20, *SIZE), torch.arange(20) % 4)])
    save_adapter(tmp_path, trainable, Recipe.of(base, candidate, census))
    written = write_program(str(tmp_path / "model.pt"), tmp_path, tmp_path / "tuned.pt2", "pt2")
    assert written.difference < 1e-4


def test_an_onnx_file_is_held_against_the_network(tuned, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "tuned.onnx"
    assert write_program(str(tuned / "model.pt"), tuned, path, "onnx").difference < 1e-4
    trained = load_adapter(load_model(str(tuned / "model.pt")).module, tuned)
    images = torch.randn(3, *SIZE)
    [scores] = runtime.InferenceSession(str(path)).run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(scores), trained(images), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_written_leaves_no_file(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr("advisor.board.program.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--as onnx needs onnx and onnxscript: pip install"):
        write_program(str(tuned / "model.pt"), tuned, tmp_path / "a.onnx", "onnx")
    # Folded wrongly, it is not what was trained.
    monkeypatch.setattr(type(get_method("lora")), "merge", lambda self, model: network())
    monkeypatch.setattr("advisor.models.layers._ROUNDING", -1.0)
    with pytest.raises(InputError, match="answers otherwise"):
        write_program(str(tuned / "model.pt"), tuned, tmp_path / "a.pt2", "pt2")
    assert not any(tmp_path.iterdir())
