"""The algebra of timing, on its own."""

import itertools

import pytest

from cojax.timing import Axis, Timing, in_parallel, in_sequence
from cojax.timing import windowed as windowed_by


def windowed(kernel_size, stride=1, padding=0, dilation=1, ceil_mode=False):
    return windowed_by(Axis(kernel_size, stride, padding, dilation, ceil_mode))


@pytest.mark.parametrize("steps", range(1, 24))
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_windows_count_outputs_as_torch_does(steps, ceil_mode):
    import torch

    for kernel, stride in itertools.product((2, 3, 5), (1, 2, 3)):
        for padding in range(kernel // 2 + 1):
            if steps + 2 * padding < kernel:
                continue
            pool = torch.nn.MaxPool1d(kernel, stride, padding, ceil_mode=ceil_mode)
            expected = pool(torch.zeros(1, 1, steps)).shape[2]
            timing = windowed(kernel, stride, padding, ceil_mode=ceil_mode)
            assert timing.n_out(steps) == expected


def test_emissions_are_the_outputs_that_leave_before_the_end():
    timing = windowed(5, stride=3, padding=2)
    emitted = [step for step in range(20) if timing.emits(step)]
    assert emitted == [step for step in timing.outputs(20) if step < 20]


def test_sequences_compose_in_input_steps():
    parts = [windowed(3, 2, 1), windowed(5, 3, 2), windowed(4, 1, 0, dilation=2)]
    total = in_sequence(parts)
    assert total == in_sequence([in_sequence(parts[:2]), parts[2]])
    for steps in range(40, 60):
        through = steps
        for part in parts:
            through = part.n_out(through)
        assert total.n_out(steps) == through


def test_no_module_is_the_neutral_element():
    timing = windowed(5, 2, 1)
    assert in_sequence([]) == Timing()
    assert in_sequence([Timing(), timing]) == in_sequence([timing, Timing()]) == timing
    assert in_parallel({"only": timing}) == timing


def test_branches_wait_for_the_slowest():
    total = in_parallel({"a": windowed(3, 2, 1), "b": windowed(7, 2, 3)})
    assert total == Timing(receptive_field=7, stride=2, padding=3, end=3, delay=3)


def test_strides_that_differ_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'fast': 1, 'slow': 2"):
        in_parallel({"fast": Timing(), "slow": windowed(3, 2)})


@pytest.mark.parametrize("steps", range(1, 12))
def test_uneven_padding_counts_outputs_as_a_padded_clip_does(steps):
    for kernel, stride, front, back in ((3, 1, 2, 0), (4, 2, 1, 3), (5, 3, 0, 4)):
        timing = windowed_by(Axis(kernel, stride, front, uneven=back - front))
        assert (timing.padding, timing.end, timing.delay) == (front, back, kernel - 1 - front)
        starts = range(0, steps + front + back - kernel + 1, stride)
        assert timing.n_out(steps) == len(starts)


def test_padding_beyond_the_window_is_refused():
    with pytest.raises(ValueError, match="padding of 3 exceeds receptive_field - 1 = 2"):
        windowed(3, padding=3)
