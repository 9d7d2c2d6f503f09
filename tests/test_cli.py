"""The command line, as a user calls it."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import cojax as co
from benchmarks.peers import to_torch_nn
from cojax import cli
from cojax.demo.network import LABELS, activity_network, trained_variables
from cojax.demo.recordings import load, parse
from cojax.demo.run import run
from cojax.streaming import arrays
from cojax.streaming.lines import json_line
from tests.laws import variables_of

DATA = load("test")


@pytest.fixture(scope="module")
def clip():
    """A recording, and the demo network's output for it."""
    net = activity_network()
    clip = DATA.x[:1]
    return clip[0], np.asarray(net.apply(trained_variables(net), clip)[0])


def feed(monkeypatch, lines):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def samples(clip, separator=","):
    return [separator.join(repr(float(v)) for v in sample) for sample in clip.T]


def test_the_demo_recognises_the_recordings_and_equals_its_clips(capsys):
    outcome = run()
    printed = capsys.readouterr().out
    assert outcome.online >= 0.95
    assert outcome.offline >= 0.95
    assert outcome.difference < 1e-5
    assert printed.count("✓") == round(40 * outcome.online)
    for words in (
        "40/40",
        "accuracy online",
        "time per step, recomputing the window of 61",
        "ratio",
    ):
        assert words in printed


def test_the_demo_draws_a_recording(tmp_path, capsys):
    picture = tmp_path / "demo.png"
    assert cli.main(["demo", "--plot", str(picture), "--recording", "3"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "drew recording 3" in capsys.readouterr().out


def test_the_demo_checkpoint_computes_the_same_in_torch(clip):
    net, (x, expected) = activity_network(), clip
    y = to_torch_nn(net, trained_variables(net))(torch.from_numpy(np.array(x[None])))
    np.testing.assert_allclose(y.detach()[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("separator", [",", " ", ", ", "\t"])
def test_stream_answers_every_line(monkeypatch, capsys, clip, separator):
    x, y = clip
    feed(monkeypatch, samples(x[:, :64], separator))
    assert cli.main(["stream"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:60] == [f"{n}\t-" for n in range(1, 61)]
    for n, line in enumerate(lines[60:]):
        assert line == f"{n + 61}\t{LABELS[y[:, n].argmax()]}\t{y[:, n].max():.3f}"


def test_malformed_lines_are_reported_and_do_not_disturb(monkeypatch, capsys, clip):
    x, y = clip
    good = samples(x[:, :62])
    bad = ["1,2,3", "one,2,3,4,5,6", "1,2,3,4,5,nan", "1e39,2,3,4,5,6", "", "1,2,3,4,5,6,7"]
    feed(monkeypatch, [*good[:61], *bad, good[61]])
    assert cli.main(["stream", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "line 62: expected 6 numbers, got 3",
        "line 63: could not convert string to float: 'one'",
        "line 64: 'nan' is not a finite number (of float32)",
        "line 65: '1e39' is not a finite number (of float32)",
        "line 66: expected 6 numbers, got 0",
        "line 67: expected 6 numbers, got 7",
    ]
    last = json.loads(printed.out.splitlines()[-1])
    assert last["line"] == 68
    np.testing.assert_allclose(last["output"], y[:, 1], rtol=1e-4, atol=1e-6)


def test_a_stream_resumes_from_its_state(monkeypatch, capsys, clip, tmp_path):
    x, y = clip
    state = str(tmp_path / "watch.state")
    answers = []
    for part in (x[:, :50], x[:, 50:63]):
        feed(monkeypatch, samples(part))
        assert cli.main(["stream", "--json", "--state", state]) == 0
        answers += [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose([a["output"] for a in answers[60:]], y.T[:3], rtol=1e-4, atol=1e-6)


NETWORK = """
import cojax as co

def tiny():
    return co.Sequential(co.Conv2d(2, 3, (2, 1)), co.ReLU())

def of_a_signal():
    return co.Conv1d(1, 3, 2)

def nothing():
    return 3

def two():
    return co.Broadcast(2)
"""


@pytest.fixture
def own(tmp_path):
    """A network of one's own: its file, its weights and its variables."""
    (tmp_path / "nets.py").write_text(NETWORK)
    net = co.Sequential(co.Conv2d(2, 3, (2, 1)), co.ReLU())
    variables = variables_of(net)
    co.save_torch(tmp_path / "w.safetensors", net, variables)
    co.save_torch(tmp_path / "empty.safetensors", co.ReLU(), {})
    return tmp_path, net, variables


def test_networks_of_ones_own_are_streamed(monkeypatch, capsys, own):
    folder, net, variables = own
    x = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2) / 10
    feed(monkeypatch, [" ".join(map(str, step.ravel())) for step in x])
    arguments = ["--net", f"{folder}/nets.py:tiny", "--weights", f"{folder}/w.safetensors"]
    assert cli.main(["stream", *arguments, "--shape", "2,2", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == {"line": 1, "output": None}
    expected = net.apply(variables, np.moveaxis(x, 0, 2))
    for n in (0, 1):
        np.testing.assert_allclose(answers[n + 1]["output"], expected[0, :, n], rtol=1e-5)


def test_the_rows_of_an_array_are_samples(capsys, clip, tmp_path):
    x, y = clip
    rows = np.insert(x.T[:62], 61, np.nan, axis=0)
    np.save(tmp_path / "watch.npy", rows.astype(np.float64))
    assert cli.main(["stream", str(tmp_path / "watch.npy"), "--json"]) == 0
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert printed.err == "line 62: holds numbers that are not finite (in float32)\n"
    assert [answer["line"] for answer in answers] == [*range(1, 62), 63]
    np.testing.assert_allclose([a["output"] for a in answers[60:]], y.T[:2], rtol=1e-4, atol=1e-6)


def test_features_have_the_shape_of_their_array(capsys, own):
    folder, net, variables = own
    x = np.random.default_rng(0).standard_normal((3, 2, 2), np.float32)
    np.save(folder / "x.npy", x)
    arguments = ["--net", f"{folder}/nets.py:tiny", "--weights", f"{folder}/w.safetensors"]
    assert cli.main(["stream", f"{folder}/x.npy", *arguments, "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = net.apply(variables, np.moveaxis(x, 0, 1)[None])
    for n in (0, 1):
        np.testing.assert_allclose(answers[n + 1]["output"], expected[0, :, n], rtol=1e-5)


def test_a_signal_has_one_number_a_step(capsys, own):
    folder, *_ = own
    net = co.Conv1d(1, 3, 2)
    variables = variables_of(net)
    co.save_torch(folder / "signal.safetensors", net, variables)
    x = np.random.default_rng(0).standard_normal(4, np.float32)
    np.save(folder / "x.npy", x)
    arguments = ["--net", f"{folder}/nets.py:of_a_signal"]
    arguments += ["--weights", f"{folder}/signal.safetensors", "--json"]
    assert cli.main(["stream", f"{folder}/x.npy", *arguments]) == 0
    answers = [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()]
    assert answers[0] is None
    expected = net.apply(variables, x[None, None])[0].T
    np.testing.assert_allclose(answers[1:], expected, rtol=1e-5)


def test_skeletons_may_be_persons_joints_coordinates(capsys, tmp_path, monkeypatch):
    def tiny(dataset):
        return co.models.skeleton.cost_gcn(dataset, num_frames=7, channels=(4, 4), kernel_size=3)

    monkeypatch.setattr(co.models, "cost_gcn", tiny)
    net = tiny("ntu60")
    variables = variables_of(net)
    co.save_torch(tmp_path / "w.safetensors", net, variables)
    x = np.random.default_rng(0).standard_normal((9, 3, 25, 2), np.float32)
    x[..., 1] = 0  # One person is there.
    arguments = ["--model", "cost_gcn", "--weights", str(tmp_path / "w.safetensors"), "--json"]
    expected = net.apply(variables, np.moveaxis(x, 0, 1)[None])[0].T
    one = np.moveaxis(x[..., 0], 1, 2)
    np.save(tmp_path / "x.npy", one)
    assert cli.main(["stream", str(tmp_path / "x.npy"), *arguments]) == 0
    answers = [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()]
    assert answers[: net.delay] == [None] * net.delay
    np.testing.assert_allclose(answers[net.delay :], expected, rtol=1e-4, atol=1e-6)
    for array in (x, np.transpose(x, (0, 3, 2, 1)), one[:, None], one):
        np.testing.assert_array_equal(arrays.as_steps(array, (3, 25, 2)), x)


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (b"", [], "is no .npy file of numbers"),
        (b"1,2,3,4,5,6", [], "is no .npy file of numbers"),
        (np.array(["a", "b"]), [], "is no .npy file of real numbers"),
        (np.array(6.0), [], "must be of shape (T, ...), time first, got ()"),
        (np.arange(6.0), [], "the recording must be of shape (T, 6), got (6,)"),
        (np.ones((9, 5)), [], "the recording must be of shape (T, 6), got (9, 5)"),
        (None, [], "No such file"),
        (np.ones((9, 6)), ["--model", "cost_gcn"], "--net and --model need --weights"),
        (
            np.ones((9, 24, 3)),
            ["--shape", "3,25,2"],
            "(T, 3, 25, 2) or (T, 25, 3) or (T, 2, 25, 3), got (9, 24, 3)",
        ),
    ],
)
def test_arrays_that_do_not_work_say_why(capsys, tmp_path, content, arguments, words):
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    assert cli.main(["stream", str(path), *arguments]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert words in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--net", "{}/nets.py:tiny"], "--net and --model need --weights"),
        (["--net", "tiny"], "a network is WHERE:FUNCTION"),
        (["--net", "{}/nets.py:none"], "has no function 'none'"),
        (["--net", "{}/nets.py:nothing"], "returned a int, expected a CoModule"),
        (["--net", "{}/nets.py:two", "--weights", "{}/empty.safetensors"], "has 2 outputs"),
        (["--net", "no_such_module:f"], "No module named 'no_such_module'"),
        (["--net", "{}/none.py:f"], "No such file"),
        (["--weights", "{}/none.pt"], "there is no file"),
        (["--weights", "{}/w.safetensors"], "the checkpoint does not fit Sequential"),
        (["--labels", "a,b"], "--labels names 2 outputs, the network has 4"),
        (["--state", "{}/none/watch.state"], "could not be saved when the input ends"),
        (["--shape", "5"], "expects 6 channels, got 5"),
    ],
)
def test_arguments_that_do_not_work_say_why(monkeypatch, capsys, own, arguments, words):
    feed(monkeypatch, ["1,2,3,4,5,6"])
    assert cli.main(["stream", *(a.format(own[0]) for a in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_a_network_is_summarised(capsys, own):
    folder, net, _ = own
    assert cli.main(["summary", f"{folder}/nets.py:tiny", "--shape", "2,5", "--depth", "0"]) == 0
    assert capsys.readouterr().out == f"{co.summary(net, (1, 2, 5), depth=0)}\n"
    assert cli.main(["summary", f"{folder}/nets.py:tiny", "--shape", "2x5"]) == 2
    assert "--shape is C[,H,W], as in 3,224,224, got '2x5'" in capsys.readouterr().err


def test_the_recording_to_draw_must_exist(capsys):
    assert cli.main(["demo", "--recording", "41", "--plot", "x.png"]) == 2
    assert "from 1 to 40, got 41" in capsys.readouterr().err


def test_stream_answers_before_the_next_line_and_survives_a_closed_pipe():
    process = subprocess.Popen(
        [sys.executable, "-m", "cojax.cli", "stream"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for n in (1, 2):
        process.stdin.write("1,2,3,4,5,6\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{n}\t-\n"
    process.stdout.close()
    process.stdin.write("1,2,3,4,5,6\n")
    process.stdin.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert errors == ""


def test_numbers_that_json_does_not_know_are_null():
    content = {"label": "a", "output": [[1.5, float("nan")], [float("-inf"), 2]]}
    assert json_line(content) == '{"label": "a", "output": [[1.5, null], [null, 2]]}'


def test_bytes_that_are_no_text_are_a_malformed_line():
    done = subprocess.run(
        [sys.executable, "-m", "cojax.cli", "stream"],
        input=b"1,2,3,4,5,6\r\n\xff\xfe\n1,2,3,4,5,6\n",
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        check=True,
    )
    assert done.stdout == b"1\t-\n3\t-\n"
    assert done.stderr == b"line 2: expected 6 numbers, got 1\n"


def test_recordings_are_read_or_refused():
    lines = ["# made up", "@classLabel true a b", "@data", "1,2:3,4:b", ""]
    data = parse(lines)
    assert data.x.tolist() == [[[1, 2], [3, 4]]]
    assert (data.y.tolist(), data.labels) == ([1], ("a", "b"))
    with pytest.raises(ValueError, match="line 1: label 'c' is none of"):
        parse(["1,2:c"])
