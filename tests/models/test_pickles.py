"""The reader of pickles against torch's own: the same tensors, whatever their type, layout or file."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from advisor.errors import ModelError
from advisor.models.architectures import named_architecture, unfilled
from advisor.models.load import load_model
from advisor.models.pickles import read_data
from advisor.models.weights import check_together

DTYPES = sorted(
    {value for value in vars(torch).values() if isinstance(value, torch.dtype) and value.itemsize}
    - {value for name, value in vars(torch).items() if name.startswith(("q", "bits", "int1", "uint1"))}
    - {value for name, value in vars(torch).items() if name[:-1] in ("int", "uint") and name[-1] != "8"}
    - {value for name, value in vars(torch).items() if name.endswith("complex32")},  # torch warns of them
    key=str,
)


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def bytes_of(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_read_as_torch_reads_it(dtype):
    count = 64 * dtype.itemsize
    values = torch.arange(count, dtype=torch.uint8).remainder(2).view(dtype).reshape(8, 8)
    content = {
        "whole": values,
        "rows": values[2:5],
        "columns": values.T,
        "none": values[:0],
        "one": values[0, 0],
    }
    found = read_data(saved(content))
    for name, tensor in content.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bytes_of(found[name]), bytes_of(tensor))
    storages = {found[name].untyped_storage().data_ptr() for name in ("whole", "rows", "columns")}
    assert len(storages) == 1


def test_plain_values_come_as_they_are_and_nothing_else_does():
    content = {
        "a": [1, 2.5, None, True, b"x", "y"],
        "b": (1, {2: 3}),
        "sets": ({1, "a"}, set()),
        "state": nn.Linear(2, 2).state_dict(),
    }
    found = read_data(saved(content))
    assert all(found[name] == content[name] for name in ("a", "b", "sets"))
    with pytest.raises(Exception, match=r"it holds torch\.nn\.modules\.linear\.Linear"):
        read_data(saved({"a": nn.Linear(2, 2)}))


def test_another_byte_order_is_told():
    content = saved({"a": torch.zeros(2)}).getvalue().replace(b"little", b"big   ")
    with pytest.raises(Exception, match=r"another byte order|CRC"):
        read_data(io.BytesIO(content))


def test_what_many_entries_share_is_counted_once():
    shared = torch.zeros(1000)
    check_together({"encoder.weight": shared, "decoder.weight": shared, "a": shared[:10]})
    with pytest.raises(ModelError, match="more values than are stored"):
        check_together({f"{number}.weight": shared for number in range(100)})


def test_a_network_for_weights_draws_no_random_numbers():
    before = torch.get_rng_state()
    with unfilled(wanted=True):
        named_architecture("torchvision:alexnet").build(5, None)
        named_architecture("torchvision:shufflenet_v2_x0_5").build(5, None)
    assert torch.equal(before, torch.get_rng_state())


def test_a_module_s_names_are_a_set_as_they_were(tmp_path):
    """Else a buffer that passes would be taken for a weight, and none could be put in another's place."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].register_buffer("passing", torch.zeros(2), persistent=False)
    torch.save(network, tmp_path / "model.pt")
    found = load_model(str(tmp_path / "model.pt")).module
    assert found[0]._non_persistent_buffers_set == {"passing"}
    assert found.state_dict().keys() == network.state_dict().keys()
    found[1].num_batches_tracked = None
