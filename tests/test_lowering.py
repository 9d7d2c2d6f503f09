"""What compiled steps are made of."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cojax as co
from cojax import buffers
from cojax.layers import norm
from cojax.ops import product, windows
from cojax.ops.convolution import convolve_clip, convolve_window
from cojax.ops.dense import convolution
from cojax.ops.depthwise import depthwise
from cojax.ops.fast_fir import convolve_by_phases
from cojax.timing import Axis
from tests.laws import clip_of
from tests.networks import random_variables


def compiled_step(net, x_t, skip=False):
    variables = random_variables(net, 0)
    state = net.init_state(x_t)

    def step(state, x_t):
        return net.apply(variables, state, x_t, skip=skip, method="forward_step")

    return jax.jit(step, donate_argnums=0).lower(state, x_t).compile(), state


NETWORKS = {
    "a depthwise convolution": co.Conv3d(20, 20, 3, padding=1, groups=20),
    "a delay": co.Delay(3),
    "a temporal convolution": co.Conv3d(20, 20, (5, 1, 1)),
    "a convolution that remembers one frame": co.Conv3d(20, 20, (2, 1, 1)),
    "a pool": co.AvgPool3d((4, 1, 1), stride=1),
    "a residual block": co.Residual(
        co.Sequential(
            co.Conv3d(20, 20, 1), co.ReLU(), co.Conv3d(20, 20, 3, padding=1, groups=20), co.SiLU()
        )
    ),
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_copies_none_of_its_memories(name):
    assert_copies_nothing(*compiled_step(NETWORKS[name], jnp.zeros((2, 20, 10, 10))))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU")
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("kind", "heads"), [("SingleOutput", 2), ("SingleOutput", 10), ("Retroactive", 4)]
)
def test_a_step_of_attention_copies_none_of_its_memories(kind, heads, batch):
    attention = getattr(co, f"{kind}MultiheadAttention")(20, heads, sequence_len=6)
    assert_copies_nothing(*compiled_step(attention, jnp.zeros((batch, 20))))


SKIPPED = {
    **NETWORKS,
    "what is delayed itself": co.Sequential(
        co.Skip(2),
        *(co.Conv3d(20, 20, (3, 1, 1), padding=(1, 0, 0)), co.Delay(3), co.AvgPool3d((2, 1, 1), 1)),
    ),
    "a further stride": co.Sequential(
        co.Conv3d(20, 20, (3, 1, 1)), co.MaxPool3d((2, 1, 1)), co.Conv3d(20, 20, (4, 1, 1))
    ),
    "branches": co.Sequential(
        co.BroadcastReduce(
            co.Sequential(co.Conv3d(20, 20, 1, stride=(2, 1, 1)), co.Delay(1)),
            co.Sequential(co.MaxPool3d((2, 1, 1)), co.Conv3d(20, 20, (3, 1, 1), padding=(1, 0, 0))),
        ),
        co.Conv3d(20, 20, (2, 1, 1)),
    ),
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU")
@pytest.mark.parametrize("name", SKIPPED)
def test_a_step_that_skips_copies_none_of_its_memories(name, request):
    if name == "branches" and jax.__version_info__ >= (0, 12):
        copied = "XLA copies the one slot of a delay within a branch there"
        request.applymarker(pytest.mark.xfail(reason=copied, strict=True))
    net = co.Sequential(co.MaxPool3d((2, 1, 1)), SKIPPED[name])
    step, state = compiled_step(net, jnp.zeros((2, 20, 10, 10)), skip=True)
    assert " conditional(" in step.as_text()
    assert_copies_nothing(step, state)


def assert_copies_nothing(step, state):
    rings = {
        f"{leaf.dtype.name[0]}32[{','.join(map(str, leaf.shape))}]"
        for leaf in jax.tree.leaves(state)
        if leaf.ndim
    }
    assert rings
    # Within a fusion a copy is only another order of the axes.
    unfused = re.sub(r"^%fused\S+ .*?^}", "", step.as_text(), flags=re.M | re.S)
    copied = re.findall(r"= (\S+?\])\S* copy\(", unfused)
    assert not rings & set(copied)
    assert step.memory_analysis().alias_size_in_bytes >= sum(
        leaf.nbytes for leaf in jax.tree.leaves(state)
    )


def test_an_activation_behind_a_convolution_is_not_transposed():
    net = co.Sequential(
        co.Conv3d(3, 20, (1, 3, 3)), co.BatchNorm3d(20), co.SiLU(), co.Conv3d(20, 7, 1)
    )
    step, _ = compiled_step(net, jnp.zeros((2, 3, 12, 12)))
    entry = step.as_text().split("ENTRY")[1]
    assert not re.findall(r"\[2,20,10,10\]", entry)


CONVOLUTIONS = {
    "pointwise": ((1, 1, 1), 6, 4, 1, (1, 1, 1)),
    "strided pointwise": ((1, 1, 1), 6, 4, 1, (2, 2, 1)),
    "temporal": ((3, 1, 1), 6, 4, 1, (1, 1, 1)),
    "depthwise": ((3, 3, 3), 6, 12, 6, (1, 2, 1)),
    "grouped": ((2, 3, 3), 6, 4, 2, (1, 1, 1)),
    "of few places": ((2, 3, 3), 6, 4, 1, (2, 1, 2)),
    "of many places": ((2, 3, 3), 10, 4, 1, (1, 1, 1)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_lowered_convolutions_are_those_of_xla_and_so_are_their_gradients(name):
    kernel_size, channels, out, groups, stride = CONVOLUTIONS[name]
    x = clip_of((2, 5, 17, 18, channels))
    kernel = clip_of((*kernel_size, channels // groups, out), seed=1)
    axes = [Axis(k, s, 0) for k, s in zip(kernel_size, stride, strict=True)]

    def lowered(x, kernel):
        return convolve_clip(x, kernel, axes, groups)

    plain = functools.partial(convolved_by_xla, axes=axes, groups=groups)
    expected, pull = jax.vjp(plain, x, kernel)
    found, pull_lowered = jax.jit(lambda x, k: jax.vjp(lowered, x, k))(x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    weights = clip_of(expected.shape, seed=2)
    for a, b in zip(pull_lowered(weights), pull(weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)

    if kernel_size[0] > 1 or stride[0] == 1:  # a window is a clip of its own length
        steps = x[:, : kernel_size[0]]
        window = convolve_window(jnp.moveaxis(steps, 1, -2), kernel, axes[1:], groups)
        np.testing.assert_allclose(window, plain(steps, kernel)[:, 0], rtol=1e-4, atol=1e-4)


LARGE = {
    "of an image": ((20, 18), (3, 3), [Axis(3, 1, 1), Axis(3, 1, 1)]),
    "with a stride": ((20, 18), (3, 3), [Axis(3, 2, 1), Axis(3, 2, 1)]),
    "with a stride along one axis": ((20, 18), (3, 3), [Axis(3, 2, 1), Axis(3, 1, 1)]),
    "dilated": ((20, 18), (3, 3), [Axis(3, 1, 1, 2), Axis(3, 1, 0)]),
    "along time": ((20, 18), (5, 1), [Axis(5, 1, 0), Axis(1, 1, 0)]),
    "along time, from the past": ((20, 18), (5, 1), [Axis(5, 1, 8, 2, uneven=-8), Axis(1, 1, 0)]),
    "of an uneven kernel": ((20, 18), (2, 3), [Axis(2, 2, 1), Axis(3, 1, 1, 2)]),
    "of thin rows": ((40, 18), (7, 7), [Axis(7, 2, 3), Axis(7, 2, 3)]),
    "of one column": ((20, 1), (3, 1), [Axis(3, 1, 2, uneven=-2), Axis(1, 1, 0)]),
}


DEPTHWISE = {
    "of a clip": ((9, 6, 5), [Axis(3, 1, 1), Axis(3, 1, 1), Axis(2, 1, 0)]),
    "of a long clip": ((19, 6), [Axis(3, 1, 2, uneven=-2), Axis(3, 1, 1)]),
    "with strides": ((9, 11, 8), [Axis(3, 2, 1), Axis(3, 2, 1), Axis(2, 3, 0)]),
    "dilated": ((13, 12), [Axis(3, 1, 2, 2), Axis(2, 2, 1, 3)]),
    "dilated by its stride": ((13, 12), [Axis(3, 2, 2, 2), Axis(3, 1, 1)]),
    "of windows far apart": ((9, 12), [Axis(1, 4, 0), Axis(2, 3, 0)]),
}


def assert_same_in_every_transformation(convolve, plain, x, kernel):
    def everything(convolve, x, kernel):
        y, pull = jax.vjp(convolve, x, kernel)
        tangents = clip_of(x.shape, seed=2), clip_of(kernel.shape, seed=3)

        def energy(x, kernel):
            return jnp.sum(convolve(x, kernel) ** 2) / y.size

        return {
            "value": y,
            "gradients": pull(clip_of(y.shape, seed=4)),
            "change": jax.jvp(convolve, (x, kernel), tangents)[1],
            "batches": jax.vmap(convolve, (0, None))(jnp.stack([x, -x]), kernel),
            "kernels": jax.vmap(convolve, (None, 0))(x, jnp.stack([kernel, -kernel])),
            "curvature": jax.jvp(jax.grad(energy, (0, 1)), (x, kernel), tangents)[1],
        }

    found, expected = (jax.jit(functools.partial(everything, each)) for each in (convolve, plain))
    chex.assert_trees_all_close(found(x, kernel), expected(x, kernel), rtol=1e-4, atol=1e-4)


def test_statistics_are_those_of_jax_in_every_transformation():
    def of_jax(x, factor):
        return factor * jnp.mean(x, (0, 1), keepdims=True), jnp.var(factor * x, (0, 1))

    def ours(x, factor):
        mean, var = norm._statistics(factor * x, (0, 1))
        return mean, var[0, 0]

    def joined(statistics):
        return lambda x, factor: jnp.stack([each.ravel() for each in statistics(x, factor)])

    x, factor = clip_of((2, 5, 3)), clip_of((3,), seed=1)
    assert_same_in_every_transformation(joined(ours), joined(of_jax), x, factor)


def convolved_by_xla(x, kernel, axes, groups=1):
    space = "THW"[-len(axes) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        [axis.stride for axis in axes],
        [axis.pads for axis in axes],
        rhs_dilation=[axis.dilation for axis in axes],
        dimension_numbers=("N" + space + "C", space + "IO", "N" + space + "C"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize("name", LARGE)
def test_large_convolutions_are_those_of_xla_in_every_transformation(name):
    size, kernel_size, axes = LARGE[name]
    assert_same_in_every_transformation(
        functools.partial(convolution, axes=axes),
        functools.partial(convolved_by_xla, axes=axes),
        clip_of((2, *size, 4)),
        clip_of((*kernel_size, 4, 3), seed=1),
    )


PHASES = {
    "of 5 taps": (13, 5, Axis(5, 1, 0)),
    "of 4 taps": (12, 4, Axis(4, 1, 0)),
    "of 4 taps, odd outputs": (12, 4, Axis(4, 1, 1)),
    "of the past": (9, 9, Axis(9, 1, 8, uneven=-8)),
    "of a part": (11, 4, Axis(4, 1, 0, uneven=-3)),
    "of 2 taps, one output": (2, 2, Axis(2, 1, 0)),
}


@pytest.mark.parametrize("name", PHASES)
def test_convolutions_by_phases_are_those_of_xla_in_every_transformation(name):
    size, taps, time = PHASES[name]
    axes = time, Axis(1, 1, 0)
    assert_same_in_every_transformation(
        functools.partial(convolve_by_phases, axes=axes, convolve=convolution),
        functools.partial(convolved_by_xla, axes=axes),
        clip_of((2, size, 3, 4)),
        clip_of((taps, 1, 4, 3), seed=1),
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU")
def test_a_large_convolution_along_time_takes_fewer_products():
    axes = Axis(9, 1, 4), Axis(1, 1, 0)
    x, kernel = clip_of((2, 100, 50, 64)), clip_of((9, 1, 64, 64), seed=1)
    convolve = jax.jit(lambda x, kernel: convolution(x, kernel, axes)).lower(x, kernel).compile()
    plain = jax.jit(lambda x, kernel: convolved_by_xla(x, kernel, axes)).lower(x, kernel).compile()
    np.testing.assert_allclose(convolve(x, kernel), plain(x, kernel), rtol=1e-4, atol=1e-4)
    assert convolve.cost_analysis()["flops"] < 0.85 * plain.cost_analysis()["flops"]


@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_convolutions_are_those_of_xla_in_every_transformation(name):
    size, axes = DEPTHWISE[name]
    kernel_size = [axis.kernel_size for axis in axes]

    def plain(x, kernel):
        return convolved_by_xla(x, jnp.expand_dims(kernel, -2), axes, groups=3)

    assert_same_in_every_transformation(
        functools.partial(depthwise, axes=axes),
        plain,
        clip_of((2, *size, 3)),
        clip_of((*kernel_size, 6), seed=1),
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU")
def test_the_gradient_of_a_depthwise_convolution_lays_out_no_shifted_slices():
    axes = [Axis(3, 1, 1), Axis(3, 1, 1), Axis(3, 1, 1)]
    x, kernel = clip_of((1, 8, 16, 16, 20)), clip_of((3, 3, 3, 20), seed=1)

    def loss(x, kernel):
        return jnp.sum(jnp.square(depthwise(x, kernel, axes)))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).compile()
    # The padded input, the padded gradient of the output, and an eighth of 27 products.
    assert gradient.memory_analysis().temp_size_in_bytes < 7 * x.nbytes


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU")
@pytest.mark.parametrize(
    "name", sorted(LARGE.keys() - {"of thin rows"})
)  # with 24 channels they are not
def test_large_convolutions_are_not_laid_out_in_memory(name):
    size, kernel_size, axes = LARGE[name]
    x, kernel = clip_of((2, *size, 24)), clip_of((*kernel_size, 24, 24), seed=1)
    lowered = jax.jit(lambda x, kernel: convolution(x, kernel, axes)).lower(x, kernel)
    assert "convolution(" in lowered.compile().as_text()
    assert "ynn_fusion" not in lowered.compile().as_text()


SUMS = {
    "of a depthwise convolution": (co.Conv3d(4, 4, 3, padding=1, groups=4), (4, 4)),
    "of wide frames": (co.Conv3d(4, 2, (3, 1, 1)), (4, 4)),
    "of wide kernels": (co.Conv3d(9, 8, (3, 1, 1)), (2, 2)),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_gradient_of_a_step_of_sums_scatters_nothing(name):
    net, size = SUMS[name]
    x_t = clip_of((2, net.in_channels, *size))
    variables = random_variables(net, 0)

    def energy(params, state, x_t):
        y, after = net.apply(params, state, x_t, method="forward_step")
        return jnp.sum(y.value) + jnp.sum(after["sums"])

    def gradients(params, state, x_t):
        count = state["count"]
        by_sums = jax.grad(lambda sums: energy(params, {"count": count, "sums": sums}, x_t))
        return jax.grad(energy, (0, 2))(params, state, x_t), by_sums(state["sums"])

    program = jax.jit(gradients).lower(variables, net.init_state(x_t), x_t).as_text()
    assert "gather" in program
    assert "scatter" not in program


def test_large_products_are_those_of_xla_in_every_transformation():
    x, kernel = clip_of((520, 64)), clip_of((64, 128), seed=1)
    assert product._suit_eigen(x, kernel)
    assert_same_in_every_transformation(product.times, jnp.matmul, x, kernel)
    xs = clip_of((2, 3, *x.shape), seed=2)
    nested = jax.vmap(jax.vmap(product.times, (0, None)), (0, None))
    chex.assert_trees_all_close(jax.jit(nested)(xs, kernel), xs @ kernel, rtol=1e-4, atol=1e-4)
    assert jax.vmap(product.times, (0, None))(xs[0, :0], kernel).shape == (0, 520, 128)


def test_a_product_of_explicitly_sharded_matrices_keeps_its_sharding():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Explicit,))
    kernel = jax.device_put(clip_of((64, 128)), NamedSharding(mesh, PartitionSpec(None, "d")))
    x = jax.device_put(clip_of((520, 64)), NamedSharding(mesh, PartitionSpec(None, None)))
    y = jax.jit(product.times)(x, kernel)
    assert y.sharding.spec == PartitionSpec(None, "d")


def test_products_of_sizes_that_are_unknown_stay_products():
    (rows,) = export.symbolic_shape("n")
    x, kernel = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((rows, 4), (4, 12)))
    assert "convolution" not in export.export(jax.jit(product.times))(x, kernel).mlir_module()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU")
def test_large_products_go_to_eigen_but_not_those_of_a_batch_of_kernels():
    x, kernel = clip_of((3, 520, 64)), clip_of((3, 64, 128), seed=1)
    for rows, kernels in ((0, None), (None, 0), (0, 0)):
        given = x if rows == 0 else x[0], kernel if kernels == 0 else kernel[0]
        lowered = jax.jit(jax.vmap(product.times, (rows, kernels))).lower(*given)
        assert ("convolution" in lowered.as_text()) == (kernels is None)
        assert kernels == 0 or "ynn_fusion" not in lowered.compile().as_text()


@pytest.mark.parametrize(("rows", "by_eigen"), [(1, False), (8, True), (64, False), (520, True)])
def test_products_of_few_or_many_rows_go_to_eigen(rows, by_eigen):
    x, kernel = clip_of((rows, 520)), clip_of((520, 520), seed=1)
    assert ("convolution" in jax.jit(product.times).lower(x, kernel).as_text()) == by_eigen
    turned = jax.jit(product.product_transposed).lower(x, kernel)
    assert "convolution" not in turned.as_text()
    y = turned.compile()(x, kernel)
    chex.assert_trees_all_close(y, x @ kernel.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", range(4))
def test_entries_counted_back_are_those_gathered_in_every_transformation(count):
    def gathered(x, factor):
        return factor * x[(count - np.arange(3)) % 3]

    def counted_back(x, factor):
        return factor * windows.counted_back(x, jnp.int32(count))

    assert_same_in_every_transformation(counted_back, gathered, clip_of((3, 2)), clip_of((2,)))


@pytest.mark.parametrize("channels", [(2, 4), (4, 2)])
@pytest.mark.parametrize("stride", [1, 7])
def test_programs_do_not_grow_with_the_taps(channels, stride):
    def lines(taps):
        net = co.Conv1d(*channels, taps, stride)
        variables, x = random_variables(net, 0), jnp.zeros((1, channels[0], 2 * taps))
        step = functools.partial(net.apply, method="forward_step")
        state = net.init_state(x[:, :, 0])

        def energy(variables):
            return jnp.sum(step(variables, state, x[:, :, 0])[0].value)

        programs = (
            jax.jit(net.apply).lower(variables, x),
            jax.jit(step).lower(variables, state, x[:, :, 0]),
            jax.jit(jax.grad(energy)).lower(variables),
        )
        return [len(program.as_text().splitlines()) for program in programs]

    assert lines(90) == lines(30)


def test_a_cpu_computes_what_other_platforms_are_given_to_compute(monkeypatch):
    net = co.Sequential(
        co.Residual(co.Conv3d(4, 4, 3, padding=1, groups=4)), co.Conv3d(4, 2, (3, 1, 1))
    )
    variables = random_variables(net, 0)
    x = clip_of((2, 4, 8, 3, 3))

    def energy(variables, x):
        y, state = net.apply(variables, net.init_state(x[:, :, 0]), x, method="forward_steps")
        return jnp.sum(y.value**2), (y, state)

    def computed():
        return jax.jit(jax.grad(energy, argnums=(0, 1), has_aux=True))(variables, x)

    taken = []

    def elsewhere(*args, default, **_):
        taken.append(default.__qualname__)
        return default(*args)

    with jax.default_device(jax.devices("cpu")[0]):
        expected = computed()
        with monkeypatch.context() as patched:
            patched.setattr(lax, "platform_dependent", elsewhere)
            patched.setattr(buffers, "_LARGE", 0)
            jax.clear_caches()
            given = computed()
        jax.clear_caches()
    chex.assert_trees_all_close(given, expected, rtol=1e-4, atol=1e-4)
    assert {"apart.<locals>.in_buffers", "_oldest.<locals>.behind_a_barrier"} <= set(taken)


def test_steps_lower_for_a_tpu():
    net = co.Sequential(
        co.Conv3d(3, 8, 3, padding=1),
        co.BatchNorm3d(8),
        co.Residual(co.Sequential(co.Conv3d(8, 8, 3, padding=1, groups=8), co.SiLU())),
        co.MaxPool3d((2, 2, 2), stride=(1, 2, 2)),
        co.AdaptiveAvgPool3d(1, kernel_size=4),
    )
    variables = random_variables(net, 0)
    x_t = jnp.zeros((1, 3, 16, 16))
    state = net.init_state(x_t)
    step = jax.jit(lambda v, s, x: net.apply(v, s, x, method="forward_step"))
    exported = export.export(step, platforms=["tpu"])(variables, state, x_t)
    assert exported.platforms == ("tpu",)


# As many times as large as its frames: what it was given, and what it gave, for the square of that.
KEPT = {
    "depthwise": (co.Conv3d(8, 8, 3, padding=1, groups=8), 2),
    "spatial": (co.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1)), 2),
    "to fewer channels": (co.Conv3d(8, 4, (3, 1, 1)), 1.5),
    "delay": (co.Delay(4), 1),
    # Places, of a byte each, in rows, columns and steps.
    "maximum": (co.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), 0.25 + 0.125 + 2 * 0.0625),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_gradient_through_steps_keeps_little_of_each(name):
    net, frames = KEPT[name]
    x = jnp.zeros((2, 8, 5, 12, 12))
    variables = net.init(jax.random.key(0), method="declare")

    def energy(params, x):
        y, _ = net.apply(params, net.init_state(x[:, :, 0]), x, method="forward_steps")
        return jnp.sum(y.value**2)

    jaxpr = jax.make_jaxpr(jax.grad(energy, argnums=(0, 1)))(variables, x).jaxpr
    forward = next(equation for equation in jaxpr.eqns if equation.primitive.name == "scan")
    outputs = [variable.aval for variable in forward.outvars]
    kept = [each for each in outputs if each.shape[:1] == (x.shape[2],)]
    assert sum(each.size * each.dtype.itemsize for each in kept) < 1.02 * frames * x.nbytes
