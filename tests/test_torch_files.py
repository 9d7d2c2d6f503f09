"""Checkpoints: those that fit compute what torch does, the others are refused with a reason."""

from collections import OrderedDict
from typing import Any

import continual
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file
from torch import nn

import cojax as co
from tests.laws import assert_same_bits, clip_of, variables_of

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

# Those that fit.

# continual calls torch's state_dict with positional arguments.
CONTINUALS_STATE_DICT = pytest.mark.filterwarnings(
    "ignore:Positional args are being deprecated:FutureWarning"
)


def small_network() -> co.CoModule:
    return co.Sequential(
        co.Conv1d(3, 4, 3, padding=1),
        co.BatchNorm1d(4),
        co.ReLU(),
        co.AvgPool1d(2),
        co.Linear(4, 5, channel_dim=1),
    )


class Small(nn.Sequential):
    """The same in torch, with random statistics."""

    def __init__(self):
        super().__init__(
            nn.Conv1d(3, 4, 3, padding=1),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.AvgPool1d(2),
            nn.Linear(4, 5),
        )
        self.train()(torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0)))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *layers, head = self
        for layer in layers:
            x = layer(x)
        return head(x.swapaxes(1, 2)).swapaxes(1, 2)


def assert_loaded(variables: Any, module: nn.Module) -> None:
    x = clip_of((2, 3, 8))
    with torch.no_grad():
        y = module(torch.from_numpy(np.array(x)))
    np.testing.assert_allclose(small_network().apply(variables, x), y, **TOLERANCE)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pyth", ".ckpt"])
@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model_state",), ("model",)])
def test_torch_files_load(tmp_path, suffix, nested):
    module, path = Small(), tmp_path / f"weights{suffix}"
    content = module.state_dict()
    for name in nested:
        content = {name: content, "epoch": 3}
    torch.save(content, path)
    assert_loaded(co.load_torch(small_network(), path), module)


def test_safetensors_load(tmp_path):
    module = Small()
    safetensors.torch.save_file(module.state_dict(), tmp_path / "weights.safetensors")
    assert_loaded(co.load_torch(small_network(), tmp_path / "weights.safetensors"), module)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_written_load_in_torch_and_here(tmp_path, suffix):
    net, path = small_network(), tmp_path / f"weights{suffix}"
    variables = variables_of(net, 3)
    co.save_torch(path, net, variables)
    module = Small()
    state_dict = (
        torch.load(path, weights_only=True)
        if suffix == ".pt"
        else safetensors.torch.load_file(path)
    )
    module.load_state_dict(state_dict, strict=True)
    assert_loaded(variables, module)
    assert_same_bits(co.load_torch(net, path), variables, "written and read")


def test_renamed_entries_load_by_a_mapping_and_by_a_function():
    module = Small()
    given = {f"backbone.{name}": tensor for name, tensor in module.state_dict().items()}
    mapping = {name: name.removeprefix("backbone.") for name in given}
    for rename in (mapping, lambda name: name.removeprefix("backbone.")):
        assert_loaded(co.load_torch(small_network(), given, rename=rename), module)


@CONTINUALS_STATE_DICT
def test_flattened_names_load():
    module = continual.Sequential(
        continual.Sequential(OrderedDict(conv=continual.Conv1d(3, 4, 3))),
        continual.Sequential(OrderedDict(norm=nn.BatchNorm1d(4))),
    ).eval()
    flat = module.state_dict(flatten=True)
    assert "conv.weight" in flat
    net = co.Sequential(
        co.Sequential({"conv": co.Conv1d(3, 4, 3)}), co.Sequential({"norm": co.BatchNorm1d(4)})
    )
    x = clip_of((2, 3, 7))
    y = net.apply(co.load_torch(net, flat, flatten=True), x)
    with torch.no_grad():
        np.testing.assert_allclose(y, module.forward(torch.from_numpy(np.array(x))), **TOLERANCE)


@CONTINUALS_STATE_DICT
@pytest.mark.parametrize("by_file", [True, False])
def test_the_names_of_branches_that_continual_delays_load(tmp_path, by_file):
    module = continual.BroadcastReduce(
        continual.Conv1d(3, 3, 3, padding=1), continual.Conv1d(3, 3, 5, padding=2)
    ).eval()
    assert "0.0.weight" in module.state_dict()
    source: Any = module.state_dict()
    if by_file:
        source = tmp_path / "weights.pt"
        torch.save(module.state_dict(), source)
    net = co.BroadcastReduce(co.Conv1d(3, 3, 3, padding=1), co.Conv1d(3, 3, 5, padding=2))
    variables, x = co.load_torch(net, source), clip_of((2, 3, 7))
    with torch.no_grad():
        y = module.forward(torch.from_numpy(np.array(x)))
    np.testing.assert_allclose(net.apply(variables, x), y, **TOLERANCE)
    module.load_state_dict(co.to_torch(net, variables, delayed_names=True), strict=True)


# Those that do not.


@pytest.fixture
def net():
    return co.Sequential(
        {"conv": co.Conv1d(2, 3, 3), "norm": co.BatchNorm1d(3), "head": co.Linear(3, 2, True, 1)}
    )


@pytest.fixture
def state_dict(net):
    return {k: v.numpy() for k, v in co.to_torch(net, variables_of(net)).items()}


def test_every_misfit_is_named_at_once(net, state_dict):
    state_dict["conv.weigth"] = state_dict.pop("conv.weight")
    state_dict["head.bias"] = np.zeros(7, np.float32)
    state_dict["extra"] = np.zeros((2, 2), np.float32)
    with pytest.raises(co.CheckpointError) as error:
        co.load_torch(net, state_dict)
    message = str(error.value)
    for words in (
        "missing conv.weight, of shape (3, 2, 3) (nearest: conv.weigth (3, 2, 3))",
        "unexpected conv.weigth, of shape (3, 2, 3) (nearest: conv.weight)",
        "unexpected extra, of shape (2, 2)",
        "head.bias has shape (7,), expected (2,)",
    ):
        assert words in message


def test_num_batches_tracked_may_be_absent(net, state_dict):
    del state_dict["norm.num_batches_tracked"]
    variables = co.load_torch(net, state_dict)
    assert int(variables["batch_stats"]["layers_norm"]["num_batches_tracked"]) == 0


def test_names_that_become_one_are_refused(net, state_dict):
    with pytest.raises(co.CheckpointError, match="two entries of the checkpoint are called 'x'"):
        co.load_torch(net, state_dict, rename=lambda name: "x")
    twins = co.Sequential(co.Conv1d(1, 1, 1), co.Conv1d(1, 1, 1))
    with pytest.raises(co.CheckpointError, match="cannot be flattened"):
        co.load_torch(twins, {}, flatten=True)


def test_flattened_names_go_out_as_they_come_in(tmp_path):
    branch = co.Sequential({"conv": co.Conv1d(2, 2, 3, padding=1)})
    net = co.Sequential(co.Residual(branch), co.Sequential({"norm": co.BatchNorm1d(2)}))
    variables = variables_of(net)
    state_dict = co.to_torch(net, variables, flatten=True)
    assert list(state_dict) == [
        "conv.weight",
        "conv.bias",
        *(f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")),
        "norm.num_batches_tracked",
    ]
    assert_same_bits(co.load_torch(net, state_dict, flatten=True), variables, "flattened")
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"flat{suffix}"
        co.save_torch(path, net, variables, flatten=True)
        assert_same_bits(co.load_torch(net, path, flatten=True), variables, suffix)


def test_flattened_names_that_clash_are_named(tmp_path):
    net = co.Sequential(co.Conv1d(1, 1, 1), co.Sequential(co.Conv1d(1, 1, 1, bias=False)))
    words = r"several become weight \(0\.weight, 1\.0\.weight\)$"
    path, variables = tmp_path / "flat.safetensors", variables_of(net)
    with pytest.raises(co.CheckpointError, match=words):
        co.to_torch(net, variables, flatten=True)
    with pytest.raises(co.CheckpointError, match=words):
        co.save_torch(path, net, variables, flatten=True)
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("norm.num_batches_tracked", torch.tensor(2**33), "beyond the range of int32"),
        ("head.bias", torch.full((2,), 1e300, dtype=torch.float64), "beyond the range of float32"),
        ("head.bias", torch.arange(2), "dtype int64, expected floating values"),
        ("head.bias", torch.zeros(2, dtype=torch.complex64), "dtype complex64, expected floating"),
        ("head.bias", np.array(["a", "b"]), "expected floating values"),
        ("head.bias", torch.zeros(2, device="meta"), "head.bias"),
        ("head.bias", torch.zeros(2).to_sparse(), "head.bias"),
    ],
)
def test_values_that_would_not_be_kept_are_refused(net, state_dict, name, tensor, words):
    with pytest.raises(co.CheckpointError, match=words):
        co.load_torch(net, {**state_dict, name: tensor})


def test_names_that_are_also_those_of_a_delayed_branch_are_ones_own():
    conv = [co.Conv1d(2, 2, 3, padding=1) for _ in range(3)]
    branch = co.Sequential(co.Sequential(conv[0], conv[1]), conv[2])
    net = co.BroadcastReduce(branch, co.Conv1d(2, 2, 9, padding=4))
    variables = variables_of(net)
    for delayed in (False, True):
        state_dict = co.to_torch(net, variables, delayed_names=delayed)
        assert_same_bits(co.load_torch(net, state_dict), variables, f"{delayed=}")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_refused(net, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(co.CheckpointError, match="cannot be read as a checkpoint"):
        co.load_torch(net, path)


def test_pickled_modules_are_never_loaded(net, tmp_path):
    path = tmp_path / "module.pt"
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(co.CheckpointError, match="nothing else is ever loaded"):
        co.load_torch(net, path)


@pytest.mark.parametrize(
    ("content", "words"),
    [([1, 2], "holds a list"), ({"epoch": 3}, "its entry 'epoch' is a int")],
)
def test_a_file_without_a_state_dict_is_refused(net, tmp_path, content, words):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(co.CheckpointError, match=words):
        co.load_torch(net, tmp_path / "w.pt")


def test_unknown_files_are_refused(net, tmp_path):
    for path in (tmp_path / "weights.bin", "weights"):
        with pytest.raises(co.CheckpointError, match="must end in"):
            co.load_torch(net, path)
        with pytest.raises(co.CheckpointError, match="must end in"):
            co.save_torch(path, net, variables_of(net))
    with pytest.raises(co.CheckpointError, match="there is no file"):
        co.load_torch(net, tmp_path / "none.pt")


def test_foreign_variables_are_not_written(net, tmp_path):
    variables = variables_of(net)
    variables["params"]["layers_head"]["bias"] = jnp.zeros(5)
    del variables["params"]["layers_conv"]
    variables["params"]["layers_norm"]["gamma"] = jnp.zeros(3)
    variables["intermediates"] = {"layers_head": {"output": (jnp.zeros(2),)}}
    with pytest.raises(co.CheckpointError) as error:
        co.save_torch(tmp_path / "w.pt", net, variables)
    assert "missing params/layers_conv/kernel" in str(error.value)
    assert "params/layers_head/bias has shape (5,), expected (2,)" in str(error.value)
    assert "unexpected params/layers_norm/gamma, of shape (3,)" in str(error.value)
    assert "unexpected intermediates/layers_head/output" in str(error.value)
    assert not (tmp_path / "w.pt").exists()


def test_arrays_of_another_machine_or_of_more_precision_load(net, state_dict):
    expected = co.load_torch(net, state_dict)
    for dtype in (">f4", ">f8", np.longdouble):
        given = {k: x.astype(dtype) if x.dtype.kind == "f" else x for k, x in state_dict.items()}
        assert_same_bits(co.load_torch(net, given), expected, str(dtype))
    state_dict["head.bias"] = np.full(2, np.finfo(np.longdouble).max)
    with pytest.raises(co.CheckpointError, match=r"head\.bias has values beyond the range"):
        co.load_torch(net, state_dict)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_dtypes_of_fewer_than_16_bits_are_not_written(net, tmp_path, dtype):
    variables = variables_of(net)
    head = variables["params"]["layers_head"]
    head["bias"] = head["bias"].astype(dtype)
    words = f"params/layers_head/bias has dtype {dtype}, which is not written: cast it"
    with pytest.raises(co.CheckpointError, match=words):
        co.to_torch(net, variables)
    with pytest.raises(co.CheckpointError, match=words):
        co.save_torch(tmp_path / "w.safetensors", net, variables)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_files_keep_dtypes_and_bits(net, tmp_path, suffix, dtype):
    variables = variables_of(net)
    variables["params"] = {
        name: {leaf: value.astype(dtype) for leaf, value in layer.items()}
        for name, layer in variables["params"].items()
    }
    co.save_torch(tmp_path / f"w{suffix}", net, variables)
    assert_same_bits(co.load_torch(net, tmp_path / f"w{suffix}"), variables, dtype)


def test_a_state_dict_without_tensors_of_ours_is_refused(net, tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(co.CheckpointError, match=r"missing conv.weight(.|\n)*unexpected a"):
        co.load_torch(net, tmp_path / "w.safetensors")


def test_a_network_without_variables_loads_nothing():
    assert co.load_torch(co.ReLU(), {}) == {"params": {}}


def test_a_module_in_two_places_has_both_names():
    conv, twin = co.Conv1d(2, 2, 3, padding=1), torch.nn.Conv1d(2, 2, 3, padding=1)
    net = co.Sequential(co.Sequential(conv, co.ReLU()), conv)
    module = torch.nn.Sequential(torch.nn.Sequential(twin, torch.nn.ReLU()), twin)
    state_dict = module.state_dict()
    variables = co.load_torch(net, state_dict)
    x = clip_of((1, 2, 6))
    expected = module(torch.from_numpy(np.array(x))).detach()
    np.testing.assert_allclose(net.apply(variables, x), expected, rtol=1e-5, atol=1e-6)
    assert list(co.to_torch(net, variables)) == list(state_dict)

    del state_dict["0.0.bias"]
    assert_same_bits(co.load_torch(net, state_dict), variables, "one name suffices")
    state_dict["0.0.bias"] = state_dict["1.bias"] + 1
    with pytest.raises(co.CheckpointError, match=r"1.bias differs from another use of the same"):
        co.load_torch(net, state_dict)
