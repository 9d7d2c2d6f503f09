"""The benchmarks: what they compare is the same, and what they say follows from the times."""

import dataclasses
import datetime
import json
import math
from concurrent.futures import Future

import jax
import numpy as np
import pytest
import torch

import cojax as co
from benchmarks import forward, harness, networks, ops, plot, prefill, step, train
from benchmarks.harness import Disagreement, Job, NoDevice
from benchmarks.networks import NETWORKS, Network
from benchmarks.pairs import Spread, side_by_side
from benchmarks.peers import overwriting, to_continual, to_torch_nn
from benchmarks.weights import state_dict_of
from benchmarks.zoo import ZOO
from tests.laws import clip_of

ARM = co.models.Graph(joints=3, inward=((1, 0), (2, 1)))


pytestmark = pytest.mark.usefixtures("quick_compilation")


# The peers of the zoo.


def skeleton(build, modified, **heads):
    return build(
        modified=modified,
        num_frames=15 if modified else 24,
        num_classes=3,
        graph=ARM,
        channels=(8, 8, 16),
        kernel_size=5,
        **heads,
    )


def oadtr(num_blocks, **options):
    sizes = {"sequence_len": 5, "embed_dim": 8, "num_heads": 2, "dim_feedforward": 8}
    return co.models.cooadtr(6, 3, num_blocks, **sizes, **options)


HEADS = {"num_heads": 2, "graph_blocks": 1}
VIDEO, JOINTS, FEATURES = (2, 3, 16, 32, 32), (2, 3, 26, 3, 2), (2, 6, 14)
TINY = {
    "CoX3D": (
        lambda: co.models.cox3d(
            32, 2, 3, width_factor=0.6, depth_factor=0.2, head_features=8, dropout=0.0
        ),
        VIDEO,
        "",
    ),
    "CoSlow": (
        lambda: co.models.coslow(32, 4, 3, depth=(1, 1, 1, 2), width_factor=1 / 16),
        VIDEO,
        "",
    ),
    "CoI3D": (
        lambda: co.models.coi3d(32, 4, 3, depth=(1, 1, 1, 2), width_factor=1 / 16),
        VIDEO,
        "",
    ),
    "CoST-GCN*": (lambda: skeleton(co.models.cost_gcn, True), JOINTS, ""),
    "CoA-GCN*": (lambda: skeleton(co.models.coa_gcn, True), JOINTS, "attention of no effect"),
    "CoS-TR*": (lambda: skeleton(co.models.cos_tr, True, **HEADS), JOINTS, ""),
    "CoST-GCN": (lambda: skeleton(co.models.cost_gcn, False), JOINTS, "forget their phase"),
    "CoA-GCN": (lambda: skeleton(co.models.coa_gcn, False), JOINTS, "as many outputs"),
    "CoS-TR": (lambda: skeleton(co.models.cos_tr, False, **HEADS), JOINTS, "as many outputs"),
    "CoOadTR-b1": (lambda: oadtr(1), FEATURES, "biases in attention"),
    # Longer than its ring, which continual wraps too early.
    "CoOadTR-b2": (lambda: oadtr(2, learned_encodings=False), FEATURES, "wraps a ring"),
}


@pytest.mark.parametrize("name", TINY)
def test_the_peers_of_the_zoo_answer_as_its_networks(name):
    build, shape, mended = TINY[name]
    net, x = build(), np.array(clip_of(shape))
    variables, notes = co.load_torch(net, state_dict_of(net)), []
    module = overwriting(to_torch_nn(net, variables))
    peer = overwriting(to_continual(net, variables, notes=notes))

    @jax.jit
    def ours(variables, x):
        state = net.init_state(x[:, :, 0])
        frames, _ = net.apply(variables, state, x, method="forward_steps")
        return net.apply(variables, x), frames

    clip, frames = ours(variables, x)
    with torch.inference_mode():
        tensor = torch.from_numpy(x)
        assert_close(clip, module(tensor))
        answers = [peer.forward_step(x_t) for x_t in tensor.clone().unbind(2)]
    assert [answer is not None for answer in answers] == frames.valid.tolist()
    assert_close(frames.dense(), torch.stack([y for y in answers if y is not None], 2))
    assert torch.equal(tensor, torch.from_numpy(np.array(clip_of(shape)))), "overwritten"
    assert mended in " ".join(notes)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_nothing_is_mended_where_no_notes_are_asked_for():
    net = skeleton(co.models.cost_gcn, False)
    variables, notes = co.load_torch(net, state_dict_of(net)), []
    mended = to_continual(net, variables, notes=notes)
    assert len(notes) == 2
    assert kinds(to_continual(net, variables)) < kinds(mended)


def kinds(peer):
    return {type(module) for module in peer.modules()}


def test_relus_in_branches_overwrite_nothing_that_others_read():
    net = co.Sequential(
        co.BatchNorm1d(3), co.BroadcastReduce(co.ReLU(), co.Conv1d(3, 3, 1)), co.ReLU()
    )
    module = overwriting(to_torch_nn(net, co.load_torch(net, state_dict_of(net))))
    branch, last = (m for m in module.modules() if isinstance(m, torch.nn.ReLU))
    assert (branch.inplace, last.inplace) == (False, True)


def test_the_bytes_of_a_state_in_continual_are_those_of_its_tensors():
    net = co.Sequential(
        co.Conv1d(3, 4, 3), co.Delay(2), co.LSTM(4, 5, num_layers=2), co.Conv1d(5, 5, 1)
    )
    peer = to_continual(net, co.load_torch(net, state_dict_of(net)))
    assert step.state_bytes(peer) == 0
    with torch.inference_mode():
        for _ in range(5):
            peer.forward_step(torch.ones(2, 3))
    conv = 4 * (2 * 2 * 4 * 2) + 2 * 8  # Two partial outputs of two steps; two numbers.
    assert step.state_bytes(peer) == conv + 4 * (2 * 2 * 4) + 8 + 4 * 2 * (2 * 2 * 5)


# The networks that are measured.


def test_all_networks_of_the_zoo_are_measured_but_the_strided_skeletons():
    strided = {"CoST-GCN", "CoA-GCN", "CoS-TR"}
    assert {*ZOO} - strided == {*NETWORKS} & {*ZOO}


def test_statistics_of_norms_are_those_of_the_clips():
    network = tiny()
    variables, clips = network.variables(network.build()), network.clip(4)
    norm = variables["batch_stats"]["layers_1"]
    y = co.Conv1d(6, 8, 3).apply({"params": variables["params"]["layers_0"]}, clips)
    np.testing.assert_allclose(norm["mean"], np.mean(y, (0, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm["var"], np.var(y, (0, 2), ddof=1), rtol=1e-4)


# Figures.


TIMES = {"slow": [3.0, 4.0, 8.0], "fast": [1.0, 2.0, 2.0]}


def test_ratios_are_of_neighbours():
    figures = harness.compared(TIMES, "slow")
    assert figures["fast"]["times"] == {"low": 2.5, "median": 3.0, "high": 3.5}
    assert figures["slow"]["times"]["median"] == 1
    assert figures["slow"]["ms"] == Spread.of([3000.0, 4000.0, 8000.0])._asdict()


def test_every_round_runs_each_way_in_turn():
    ran = []
    ways = {name: lambda name=name: ran.append(name) for name in "ab"}
    times = side_by_side(ways, rounds=3, warm_up=1)
    assert ran == ["a", "b"] * 4
    assert [len(seconds) for seconds in times.values()] == [3, 3]


@pytest.mark.parametrize("seconds", [1e-9, 1e-5, 10])
def test_the_time_of_a_turn_does_not_depend_on_how_many_fill_a_round(seconds):
    taken = []
    job = Job("", 1, rounds=2, seconds=seconds)
    times = harness.per_turn({"way": taken.append}, job, multiple=3)
    *judged, _, _, _ = taken
    rounds = taken[-3:]
    assert judged == [3, *(3 * 4**i for i in range(len(judged) - 1))]
    assert len({*rounds}) == 1
    assert rounds[0] % 3 == 0
    assert 3 <= rounds[0] <= 3000
    assert all(seconds < 1 for seconds in times["way"])


def test_differences_that_are_no_rounding_are_refused():
    y, job = np.array([1.0, -4.0]), Job("", 1)
    assert harness.deviation(y + 2e-3, y, job, "y") == pytest.approx(5e-4, rel=1e-3)
    for ours, theirs, said in (
        (y + 0.1, y, "differ by"),
        (y[:1], y, "shapes"),
        (y * math.nan, y, "not finite"),
        (np.ones(2), np.ones(2), "all alike"),
    ):
        with pytest.raises(Disagreement, match=said):
            harness.deviation(ours, theirs, job, "y")
    assert harness.deviation(y + 0.1, y, Job("", 1, dtype="bfloat16"), "y") > 0.02


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_asked_for_in_vain():
    with pytest.raises(NoDevice, match="--device gpu: torch finds no GPU"):
        harness.set_up(Job("", 1, device="gpu"))


def test_figures_are_shown_to_so_many_digits():
    assert [harness.short(x) for x in (0.01234, 0.5, 12.34, 1234.5, 0.0, None)] == [
        *("0.0123", "0.500", "12.3", "1,234", "0.0", "")
    ]


# Whole measurements, of a tiny network.


def tiny():
    def build():
        return co.Sequential(
            co.Conv1d(6, 8, 3),
            co.BatchNorm1d(8),
            co.ReLU(),
            co.AvgPool1d(2),
            co.Conv1d(8, 4, 3),
            co.BatchNorm1d(4),
        )

    return Network(build, (6,), build, 12, build, (3, 6, 12), clip_notes=("it is tiny",))


BENCHMARKS = {"step": step, "forward": forward, "train": train, "prefill": prefill}


@pytest.fixture(scope="module")
def measured():
    """The figures of each benchmark for a tiny network, as they are read from JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "tiny", tiny())
        for benchmark in (step, forward):
            patch.setattr(benchmark, "machine_rates", lambda job: {"flops": 1e11, "bytes": 1e10})
        threads = torch.get_num_threads()
        job = Job("tiny", 2, rounds=3, seconds=1e-3)
        found = {}
        for name, benchmark in BENCHMARKS.items():
            asked = dataclasses.replace(job, batch=1) if name == "step" else job
            found[name] = {"network": "tiny", "batch": asked.batch} | benchmark.measure(asked)
        torch.set_num_threads(threads)
    return json.loads(json.dumps(found))


def test_what_was_not_measured_is_left_open_in_a_table(measured):
    row = measured["step"]
    brief = {name: times for name, times in row["steps"].items() if name != "cojax Stream"}
    ran = {"cojax": {"number": 7.0, "ms": 0.25, "longest": {}}, "continual": None}
    lines = step.table([row | {"steps": brief, "window": None, "kernels": ran}]).splitlines()
    assert lines[2].endswith(")")
    (header,) = (line for line in lines if "kernels" in line)
    assert lines[lines.index(header) + 2].split() == ["tiny", "1", "7.00", "0.250"]
    assert "kernels" not in step.table([row])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_network_is_measured_and_shown_in_a_table(measured, name):
    table = BENCHMARKS[name].table([measured[name], measured[name]])
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["tiny", "tiny"]
    assert max(map(len, lines)) <= 120
    assert table.endswith("tiny: it is tiny.") == (name in ("step", "forward"))


def test_a_step_is_measured_where_both_libraries_answer(measured):
    row = measured["step"]
    net = tiny().build()
    assert (row["delay"], row["stride"]) == (net.delay, 2)
    assert {*row["steps"]} == {"continual", "cojax", "cojax Stream"}
    assert row["macs"] == co.flops(net, (1, 6)).total
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(net.init_state((1, 6))))
    assert row["state_bytes"]["cojax"] == state
    seconds = row["steps"]["cojax"]["ms"]["median"] / 1e3
    assert row["matrix_fraction"] == pytest.approx(2 * row["macs"] / seconds / 1e11)
    assert {*row["window"]} == {"length", "cojax", "torch"}


def test_a_layer_is_measured_in_every_place(monkeypatch):
    monkeypatch.setitem(ops.OPS, "tiny", ops.Op(co.Conv1d(6, 4, 3), (6,)))
    row = {"network": "tiny"} | ops.measure(Job("tiny", 2, rounds=3, seconds=1e-3))
    assert {*row["us"]} == {"alone", "cond", "scan", "gradient", "gradient of scan"}
    lines = ops.table([row]).splitlines()
    assert lines[2].split()[:2] == ["tiny", "6"]


def answer(job):
    """Measures nothing: the second of two fails before it is alone, and the first still is."""
    if job.batch == 2:
        raise Disagreement("they differ")
    with harness.alone():
        return {"answer": job.batch}


def test_processes_are_alone_when_all_others_are_ready_or_have_failed():
    jobs = [Job("tiny", batch, together=2, patience=300) for batch in (1, 2)]
    found = {job.batch: future for job, future in harness.in_processes(answer, jobs)}
    assert found[1].result() == {"answer": 1}
    with pytest.raises(Disagreement, match="they differ"):
        found[2].result()


def test_a_measurement_that_fails_is_said_and_the_others_are_kept(monkeypatch, tmp_path, capsys):
    groups = []

    def in_processes(function, jobs):
        groups.append(len(jobs))
        for job in reversed(jobs):
            future = Future()
            if job.batch == 2:
                future.set_exception(Disagreement("they differ"))
            else:
                future.set_result({"answer": job.batch})
            yield job, future

    monkeypatch.setattr(harness, "in_processes", in_processes)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = harness.parser("A benchmark.", ("tiny",), batches=(1, 2))
    path = tmp_path / "figures.json"
    asked = ["--json", str(path), "--together", "2"]
    with pytest.raises(SystemExit, match="1"):
        harness.run(parser, ("tiny",), lambda job: {}, str, asked)
    assert groups == [1, 2]
    assert "tiny, batch 2: Disagreement: they differ" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    day = rows[0].pop("date")
    assert rows[0] == {"network": "tiny", "batch": 1, "answer": 1}
    assert datetime.date.fromisoformat(day)
    assert "error" in rows[1]
    with pytest.raises(SystemExit, match="2"):
        harness.run(parser, ("tiny",), lambda job: {}, str, ["huge"])
    assert "unknown: huge; there are tiny" in capsys.readouterr().err


def test_the_picture_shows_what_was_measured(measured, tmp_path):
    conditions = {"device": "a processor", "platform": "cpu", "threads": 2, "dtype": "float32"}
    conditions |= {"date": "2026-01-02", "cojax": "1", "jax": "2", "torch": "3"}
    conditions |= {"continual-inference": "4"}
    said = "a processor, 2 threads, float32, 2026-01-02"
    assert plot.caption(conditions).startswith(said)
    result = {"conditions": conditions, "rows": [measured["step"]]}
    plot.draw([result, result], tmp_path / "steps.svg")
    picture = (tmp_path / "steps.svg").read_text()
    for text in (said, "tiny", "batch 1"):
        assert picture.count(f"<!-- {text} -->") == 2
    with pytest.raises(ValueError, match="measured in every file"):
        plot.draw([{"conditions": conditions, "rows": []}], tmp_path / "nothing.png")
