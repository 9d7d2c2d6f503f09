"""What the zoo is said to cost is what it costs."""

import functools
import json
import math
import pickle
import re
from pathlib import Path

import pytest

import cojax as co
from benchmarks import zoo
from cojax.interop.names import entries

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = re.search(r"^## Model zoo\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)[1]
LINES = re.findall(r"^\| .*\|$", SECTION, re.MULTILINE)
ROWS = [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in LINES]

# Convolutions and linear maps of a step in the PyTorch references, in 10^9.
REFERENCES = {
    "CoX3D-S": 0.15271,
    "CoX3D-M": 0.29753,
    "CoX3D-L": 1.14988,
    "CoSlow": 6.81551,
    "CoI3D": 3.55127,
    "CoST-GCN*": 0.15468,
    "CoA-GCN*": 0.17097,
    "CoS-TR*": 0.14946,
    "CoOadTR-b2": 0.347,
}

assert {*REFERENCES} <= {*zoo.ZOO}

costs = functools.cache(lambda name: zoo.cost(zoo.ZOO[name]))


# In one test, since each may run in a process of its own, and counting takes seconds.
@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_readme_says_what_is_counted_and_the_references_cost_within_a_percent(name):
    (said,) = (row for row in ROWS if row[0] == name)
    assert said == zoo.row(name, zoo.ZOO[name], costs(name))
    if name in REFERENCES:
        assert_close_to_the_reference(name, float(costs(name).step.linear))


def test_the_readme_has_every_network_and_note():
    header, *rows = ROWS
    assert header == zoo.HEADER
    assert [row[0] for row in rows] == list(zoo.ZOO)
    listed = re.findall(r"^\* (\w): (.*?\.)$", SECTION, re.MULTILINE | re.DOTALL)
    assert {key: re.sub(r"\s+", " ", text)[:-1] for key, text in listed} == zoo.NOTES
    assert {key for entry in zoo.ZOO.values() for key in entry.notes} == zoo.NOTES.keys()


@pytest.mark.parametrize("name", zoo.ZOO)
def test_networks_can_be_sent_to_another_process(name):
    net = zoo.ZOO[name].build()
    assert pickle.loads(pickle.dumps(net)) == net


def assert_close_to_the_reference(name, macs):
    if name == "CoA-GCN*":  # There two convolutions run whose outputs are not used.
        net, points = zoo.ZOO[name].build(), 25 * 2
        unused = (e.spec.shape for e in entries(net) if re.search("[ab]_conv.*weight", e.name))
        macs += points * sum(map(math.prod, unused))
    assert macs == pytest.approx(REFERENCES[name] * 1e9, rel=0.01)


def test_one_block_uses_every_matrix_once_in_a_step():
    net = co.models.cooadtr()
    matrices = (e.spec.shape for e in entries(net) if e.path[-1].endswith(("kernel", "in_proj")))
    assert costs("CoOadTR-b1").step.linear == sum(map(math.prod, matrices))
    assert costs("CoOadTR-b1").step.total == pytest.approx(0.0096e9, rel=0.01)


def test_a_step_with_an_output_of_a_strided_network_costs_most():
    for name, stride in (("CoI3D", 2), ("CoA-GCN", 4)):
        found = costs(name)
        cycle = co.flops(zoo.ZOO[name].build(), zoo.ZOO[name].step).cycle
        assert found.timing.stride == len(cycle) == stride
        assert found.answering.total == cycle[0] == max(cycle)
        assert found.step.total * stride == sum(cycle)


def test_the_command_prints_the_table_and_writes_figures(tmp_path, monkeypatch, capsys):
    counted = costs("CoOadTR-b1")
    monkeypatch.setattr(zoo, "cost", lambda entry: counted)
    path = tmp_path / "zoo.json"
    zoo.main(["CoOadTR-b1", "--json", str(path)])
    printed = capsys.readouterr().out
    assert re.search(r"^\| CoOadTR-b1 \| 9,598,998", printed, re.MULTILINE)
    assert all(text in printed for text in zoo.NOTES.values())
    figures = json.loads(path.read_text())["CoOadTR-b1"]
    assert (figures["trained"], figures["delay"]) == (9_598_998, 63)
    assert figures["step"]["linear"] == counted.step.linear
    assert figures["continual"] == {"giga": 0.01, "reduction": None}
    with pytest.raises(SystemExit):
        zoo.main(["CoX3D"])
    assert "no networks of the zoo: CoX3D; there are CoX3D-S" in capsys.readouterr().err
