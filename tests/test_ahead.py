"""What is read from steps that were compiled for a device that is not there."""

import os
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest

import cojax as co
from benchmarks import ahead

HLO = """HloModule step, is_scheduled=true

%fused (p: f32[2,3]) -> f32[2,3] {
  %p = f32[2,3]{1,0} parameter(0)
  ROOT %c = f32[2,3]{0,1} copy(%p)
}

%rest (q: f32[2,3]) -> (f32[2,3], s32[]) {
  %q = f32[2,3]{1,0} parameter(0)
  %zero = s32[] constant(0)
  ROOT %t = (f32[2,3]{1,0}, s32[]) tuple(%q, %zero)
}

%run (r: f32[2,3]) -> (f32[2,3], s32[]) {
  %r = f32[2,3]{1,0} parameter(0)
  %kept = f32[2,3]{1,0:T(8,128)} copy(%r), metadata={op_name="kept"}
  %both = (f32[2,3]{1,0}, s32[]) fusion(%kept), kind=kLoop, calls=%fused
  %first = f32[2,3]{1,0} get-tuple-element(%both), index=0
  %second = s32[] get-tuple-element(%both), index=1
  ROOT %u = (f32[2,3]{1,0}, /*index=1*/s32[]) tuple(%first, %second)
}

ENTRY %main (x: f32[2,3], ok: pred[]) -> (f32[2,3], s32[]) {
  %x = f32[2,3]{1,0} parameter(0)
  %ok = pred[] parameter(1)
  %turned = f32[3,2]{1,0} copy(%x)
  ROOT %cond = (f32[2,3]{1,0}, s32[]) conditional(%ok, %x, %x), CHOICE, metadata={}
}
"""
CHOICES = {
    "by a predicate": "true_computation=%run, false_computation=%rest",
    "by a number": "branch_computations={%rest, %run}",
}


@pytest.mark.parametrize("how", CHOICES)
def test_of_a_choice_the_longer_branch_is_counted(how):
    hlo = HLO.replace("CHOICE", CHOICES[how])
    ran = ahead.instructions(hlo)
    assert [each.name for each in ran] == ["turned", "kept", "both"]
    memory = {"ring": jax.ShapeDtypeStruct((2, 3), "float32"), "count": jnp.zeros((), jnp.int32)}
    assert [each.name for each in ahead.copied(hlo, memory)] == ["kept"]


def test_a_memory_that_is_copied_is_seen():
    net, x = co.Delay(3), jnp.zeros((2, 4))
    state = net.init_state(x)

    def step(state, x):
        return net.apply({}, state, x, method="forward_step")

    for donated, copies in ((0, 0), ((), 1)):
        compiled = jax.jit(step, donate_argnums=donated).lower(state, x).compile()
        assert len(ahead.copied(compiled.as_text(), state)) == copies


def test_norms_are_folded_without_weights():
    net = co.Sequential(co.Conv1d(2, 4, 3), co.BatchNorm1d(4))
    variables = net.init(jax.random.key(0), method="declare")
    found, specs = ahead.folded(net, ahead.declared(net))
    expected, constants = co.fold_batch_norm(net, variables)
    assert found == expected
    assert specs == jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), constants
    )


PACKAGES = {"h200": "jax_plugins.xla_cuda12", "v5e": "libtpu"}


def installed(package):
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("target", PACKAGES)
def test_steps_compile_for_accelerators_that_are_not_there(target, monkeypatch):
    if not installed(PACKAGES[target]):
        pytest.skip(f"{PACKAGES[target]} is not installed")
    for name, value in ahead.TARGETS[target].environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XLA_FLAGS", ahead.TARGETS[target].flags)
    device = ahead.TARGETS[target].device()
    row = ahead.measure("demo", 1, ahead.TARGETS[target], device, fold=True)
    assert row["copies"] == 0
    assert row["kernels"] > 0


def test_without_the_compiler_it_says_so(capsys, monkeypatch):
    def missing():
        raise RuntimeError("no such platform")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(ahead.TARGETS, "v5e", ahead.TARGETS["v5e"]._replace(device=missing))
    with pytest.raises(SystemExit):
        ahead.main(["--target", "v5e", "demo"])
    assert "no such platform" in capsys.readouterr().err
