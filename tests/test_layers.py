"""What single layers promise beside the laws."""

import jax.numpy as jnp
import numpy as np
import pytest

import cojax as co
from tests.laws import clip_of, variables_of


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: co.Conv1d(1, 1, 3, padding=3), "padding of 3 exceeds receptive_field - 1 = 2"),
        (lambda: co.Conv2d(1, 1, (3, 3, 3)), "kernel_size must be an int, or 2 ints"),
        (lambda: co.Conv3d(1, 1, 3, stride=0), "stride must be an int, or 3 ints"),
        (lambda: co.Conv1d(1, 1, 3, padding=((1, 3),)), "the last output would see nothing but"),
        (lambda: co.Conv1d(1, 1, 3, padding=((2, -1),)), r"got padding=\(\(2, -1\),\)"),
        (lambda: co.Conv1d(1, 1, 3, padding=((1, 0, 0),)), "an entry for each of 1 axes"),
        (lambda: co.Conv1d(1, 1, 3, padding=(2, 0)), r"as in \(\(2, 0\),\); got padding=\(2, 0\)"),
        (lambda: co.Conv1d(1, 1, 3, padding=("ab",)), r"got padding=\('ab',\)"),
        (lambda: co.Conv2d(1, 1, 3, padding=((1, 0),)), "an entry for each of 2 axes"),
        (lambda: co.Conv3d(1, 1, 3, padding="full"), "padding must be one of 'valid', 'same'"),
        (lambda: co.Conv3d(1, 1, 3, 2, padding="same"), "for windows without a stride"),
        (lambda: co.Conv1d(3, 4, 1, groups=2), "in_channels=3 must be a multiple"),
        (lambda: co.Conv2d(2, 2, 1, padding_mode="mirror"), "padding_mode must be one of"),
        (lambda: co.Conv2d(2, 2, 1, temporal_fill="ones"), "temporal_fill must be one of"),
        (lambda: co.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"), "Conv1d has none"),
        (lambda: co.AvgPool1d(3, padding=2), "at most half"),
        (lambda: co.AvgPool2d(3, dilation=(1, 2)), "dilates time alone"),
        (lambda: co.AdaptiveAvgPool3d((2, 1, 1), 4), "the first \\(time\\) 1"),
        (lambda: co.AdaptiveMaxPool2d(1, 4, padding=4), "exceeds receptive_field"),
        (lambda: co.Delay(-1), "none negative"),
        (lambda: co.Delay(), "takes a number of steps"),
        (lambda: co.Delay(2, auto_shrink="leading"), "auto_shrink must be one of"),
        (lambda: co.Delay(2, auto_shrink=(1, 2, 0)), "a pair of how many steps to crop"),
        (lambda: co.Delay(2, auto_shrink=(1.5, 1)), "a pair of how many steps to crop"),
        (lambda: co.AvgPool1d(2, divisor_override=1.5), "must be positive and whole"),
        (
            lambda: co.SingleOutputMultiheadAttention(4, 2, sequence_len=2.5),
            "sequence_len=2.5 must be positive and whole",
        ),
        (lambda: co.Delay(2, auto_shrink=(0, 3)), "at most the 2 steps"),
        (lambda: co.Skip(0), "must be positive"),
        (lambda: co.Skip(1.5), "must be positive and whole"),
        (lambda: co.Conv1d(2, 2, 1, groups=0), "must be positive"),
        (lambda: co.Linear(0, 2), "must be positive"),
        (lambda: co.Broadcast(0), "must be positive"),
        (lambda: co.AvgPool1d(2, divisor_override=0), "must be positive"),
        (lambda: co.Dropout(1.5), "must be a probability"),
        (lambda: co.FeatureAlphaDropout(-0.1), "must be a probability"),
        (lambda: co.RReLU(0.5, 0.1), "must not exceed"),
        (lambda: co.Hardtanh(1, 1), "must be below"),
        (lambda: co.CELU(0), "must not be zero"),
        (lambda: co.Softplus(beta=0), "must not be zero"),
        (lambda: co.Softshrink(-1), "must not be negative"),
        (lambda: co.GELU("erf"), "approximate must be one of 'none', 'tanh'"),
        (lambda: co.PReLU(0), "must be positive"),
        (lambda: co.GroupNorm(3, 4), "must be a multiple of self.num_groups=3"),
        (lambda: co.InstanceNorm1d(4, per_step=True), r"LayerNorm\(4, channel_dim=1\)"),
        (lambda: co.LayerNorm(()), "must be a length, or several"),
        (lambda: co.LayerNorm((2, 0)), "must be a length, or several"),
        (lambda: co.LayerNorm((2, 3), channel_dim=1), "names one axis of the clip"),
        (lambda: co.LayerNorm(2, channel_dim=1, per_step=True), "names one axis of the clip"),
        (lambda: co.Reshape(3), "Reshape takes the shape of a step"),
        (lambda: co.Reshape(-1, -1), "at most one -1"),
        (lambda: co.Lambda(), "Lambda needs fn"),
        (lambda: co.Lambda(3), "Lambda wraps functions"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_construction(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_padding_by_name_is_that_of_numbers():
    assert co.Conv2d(1, 1, (3, 4), padding="same").padding == (1, (1, 2))
    assert co.Conv2d(1, 1, (3, 4), dilation=2, padding="same").padding == (2, 3)
    assert co.Conv2d(1, 1, (3, 4), padding="valid") == co.Conv2d(1, 1, (3, 4))


@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (co.Conv2d(1, 1, 5), (1, 1, 3), "do not fit into the spatial axes"),
        (
            co.Conv2d(1, 1, (1, 3), padding=(0, 3), padding_mode="reflect"),
            (1, 1, 3),
            "can pad a spatial axis of 3 by at most 2, got 3",
        ),
        (co.MaxPool3d(4), (1, 1, 8, 3), "do not fit into the spatial axes"),
        (co.Linear(3, 2), (1, 3), "the time axis of a clip with 3 axes"),
        (co.Linear(3, 2, channel_dim=1), (1, 4), "expects 3 features along channel_dim=1"),
        (co.Linear(3, 2, channel_dim=5), (1, 4), "channel_dim=5 is no axis"),
        (co.Softmax(dim=2), (1, 4), "dim of Softmax is the time axis"),
        (co.LogSoftmax(dim=-1), (1, 4), "dim of LogSoftmax is the time axis"),
        (co.Softmax2d(), (1, 4), "Softmax2d expects steps"),
        (co.GLU(), (1, 4), "dim of GLU is the time axis"),
        (co.GLU(dim=1), (1, 3), "halves the axis dim=1 of the clip, which is odd, 3"),
        (co.PReLU(3), (1, 4), "3 slopes, one for each channel, and got 4 channels"),
        (co.Dropout2d(), (1, 4), "Dropout2d expects steps"),
        (co.GroupNorm(2, 4), (1, 6), "GroupNorm expects 4 channels, got 6"),
        (co.InstanceNorm3d(4), (1, 4), "InstanceNorm3d expects steps"),
        (co.LayerNorm(4), (1, 4, 3), r"lengths \(4,\), got clips \(1, 4, time, 3\)"),
        (co.LayerNorm(4, channel_dim=1), (1, 3), "pass channel_dim=1"),
        (co.LayerNorm(4, channel_dim=2), (1, 3), "channel_dim of LayerNorm is the time axis"),
        (co.LayerNorm((2, 3, 4), per_step=True), (3, 4), "got clips"),
        (co.Reshape(1, 5), (1, 4), "cannot be reshaped"),
        (co.BatchNorm2d(3), (1, 3), "BatchNorm2d expects steps"),
        (co.Lambda(lambda x: (x, x)), (1, 3), "must return one array, got a tuple"),
        (co.Add(np.ones((4, 1))), (1, 3), r"constant of shape \(4, 1\) does not broadcast"),
        (co.Multiply(np.ones((3, 2))), (1, 3), r"constant of shape \(3, 2\) does not broadcast"),
        (co.Lambda(lambda x: x @ jnp.ones((9, 2))), (1, 4), "the function failed on a step"),
    ],
)
def test_steps_that_do_not_fit_are_refused(net, shape, words):
    with pytest.raises(co.InputError, match=words):
        net.init_state(shape)


def test_batch_norm_without_running_statistics_refuses_to_step():
    norm = co.BatchNorm1d(3, track_running_stats=False)
    variables, x = variables_of(norm), clip_of((4, 3, 5))
    assert norm.apply(variables, x).shape == x.shape
    with pytest.raises(co.InputError, match="track running statistics"):
        norm.apply(variables, {}, x[:, :, 0], method="forward_step")
    norm.apply(variables, {}, x[:, :, 0], train=True, method="forward_step")


def test_a_layer_norm_over_time_takes_clips_of_its_length():
    norm = co.LayerNorm(5)
    variables = variables_of(norm)
    assert norm.apply(variables, clip_of((2, 3, 5))).shape == (2, 3, 5)
    with pytest.raises(co.InputError, match=r"lengths \(5,\), got clips \(2, 3, 7\)"):
        norm.apply(variables, clip_of((2, 3, 7)))


def test_batch_norm_refuses_to_train_on_one_value():
    norm = co.BatchNorm1d(3)
    with pytest.raises(co.InputError, match="more than one value a channel"):
        norm.apply(
            variables_of(norm), {}, jnp.zeros((1, 3)), train=True, method="forward_step",
            mutable=["batch_stats"],
        )  # fmt: skip


def test_lambda_calls_the_function_of_its_mode():
    net = co.Lambda(
        forward_only_fn=lambda x: x + 1,
        forward_step_only_fn=lambda x: x + 2,
        forward_steps_only_fn=lambda x: x + 3,
    )
    x = jnp.zeros((1, 1, 4))
    assert (net.apply({}, x) == 1).all()
    assert (net.apply({}, {}, x[:, :, 0], method="forward_step")[0].value == 2).all()
    assert (net.apply({}, {}, x, method="forward_steps")[0].value == 3).all()


def test_constants_keep_the_dtype_of_their_input():
    x = jnp.zeros((1, 1, 2), jnp.bfloat16)
    for net in (co.Add(1.5), co.Multiply(np.float64(2)), co.Constant(3), co.Zero(), co.One()):
        assert net.apply({}, x).dtype == jnp.bfloat16


def test_a_huge_value_leaves_no_trace_in_a_pool():
    net = co.AvgPool1d(3, stride=1)
    x = jnp.ones((1, 1, 12)).at[0, 0, 2].set(1e30).at[0, 0, 5].set(jnp.inf)
    frames, _ = net.apply({}, net.init_state((1, 1)), x, method="forward_steps")
    np.testing.assert_array_equal(frames.value[0, 0, 8:], 1)


def test_half_precision_is_summed_in_single():
    x = jnp.full((1, 1, 64, 8), 2000, jnp.float16)
    for net in (co.AvgPool2d((64, 1)), co.AvgPool2d((1, 8)), co.AvgPool2d((64, 8))):
        y = net.apply({}, x)
        assert y.dtype == jnp.float16
        np.testing.assert_array_equal(y, 2000)
        np.testing.assert_array_equal(net.apply({}, x, method="forward_stream"), 2000)


def test_a_constant_is_not_truncated_to_whole_numbers():
    x = jnp.ones((1, 2, 3), jnp.int32)
    np.testing.assert_array_equal(co.Add(2).apply({}, x), 3)
    with pytest.raises(co.InputError, match="would be truncated to int32"):
        co.Multiply(0.5).apply({}, x)


def test_torchs_inplace_is_accepted():
    for net in (
        *(co.ReLU(inplace=True), co.RReLU(inplace=True), co.ReLU6(True), co.SiLU(inplace=True)),
        *(co.Hardtanh(inplace=True), co.Hardsigmoid(True), co.Hardswish(True), co.ELU(1.0, True)),
        *(co.CELU(1.0, True), co.SELU(True), co.LeakyReLU(0.1, True), co.Threshold(0, 1, True)),
        *(co.Dropout(0.1, inplace=True), co.Dropout1d(0.1, True), co.AlphaDropout(0.1, True)),
    ):
        assert net.apply({}, jnp.ones((1, 1, 1))).shape == (1, 1, 1)
