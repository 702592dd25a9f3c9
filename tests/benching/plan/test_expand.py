import pytest

from mpsdiag.benching.plan.expand import Plan, expand, shard
from mpsdiag.benching.plan.matrix import MatrixSpec
from mpsdiag.benching.plan.matrix_file import parse_matrix
from mpsdiag.benching.plan.this_machine import fingerprint, unavailable
from mpsdiag.benching.run.rounds import group_of
from mpsdiag.errors import BadInput
from mpsdiag.scenario.scenario import Scenario


def plan(text="", *, reason=lambda cell: None, resolve=lambda word: "cpu" if word == "auto" else word):
    return expand(parse_matrix(text, "m"), unavailable=reason, resolve=resolve)


def test_the_default_matrix_is_that_of_the_contract():
    cells = expand(MatrixSpec(), resolve=lambda word: "cpu").cells
    assert {(c.attn_implementation, c.trainer, c.padding_side) for c in cells} == {
        (a, t, p)
        for a in ("sdpa", "eager", "safe_sdpa")
        for t in ("standard", "mps_safe", "cpu_loss")
        for p in ("left", "right")
    }
    assert len(cells) == 18


def test_cells_are_the_product_less_what_is_excluded_plus_what_is_included():
    cells = plan(
        """
        [axes]
        attention = ["sdpa", "eager"]
        padding = ["left", "right"]
        trainer = "standard"
        [[exclude]]
        attention = "eager"
        padding = "right"
        [[include]]
        attention = ["safe_sdpa"]
        model = ["tiny-llama"]
        [[include]]
        attention = ["sdpa"]
        """
    ).cells
    assert [(c.model, c.attn_implementation, c.padding_side) for c in cells] == [
        ("tiny-llama", "sdpa", "left"),
        ("tiny-llama", "eager", "left"),
        ("tiny-llama", "sdpa", "right"),
        ("tiny-llama", "safe_sdpa", "left"),
    ]


def test_the_device_is_resolved_and_an_emulation_stands_on_the_cpu():
    cells = plan("[axes]\nemulate = ['none', '2.8']\nattention = 'sdpa'", resolve=lambda word: "mps").cells
    assert {(c.emulate, c.device, c.emulate_macos) for c in cells} == {(None, "mps", None), ("2.8", "cpu", 15)}


def test_one_cell_a_key_however_often_it_is_named():
    cells = plan("[axes]\nemulate = 'none'\nemulate_macos = [14, 15]\ntrainer='standard'\nattention='sdpa'").cells
    assert len(cells) == len(set(cells)) == 2  # left and right; the macOS of no emulation is none


@pytest.mark.parametrize(
    ("model", "asked", "threads"), [("tiny-gpt2", None, 1), ("tiny-gpt2", 3, 3), ("some/model", None, None)]
)
def test_how_a_cell_is_timed_is_part_of_it(model, asked, threads):
    text = f"warmup = 7\nrepeats = 9\n{f'threads = {asked}' if asked else ''}\n[axes]\nmodel = '{model}'"
    assert {(c.warmup, c.repeats, c.threads) for c in plan(text).cells} == {(7, 9, threads)}


def test_edited_data_make_other_cells(tmp_path):
    path = tmp_path / "lines.txt"
    text = f"dataset = '{path}'\n[axes]\ntrainer = 'standard'\nattention = 'sdpa'\npadding = 'left'"
    keys = []
    for lines in ("one\n", "two\n", "one\n"):
        path.write_text(lines)
        fingerprint.cache_clear()
        keys += [cell.key({}) for cell in plan(text).cells]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]
    assert plan("").cells[0].files is None


def test_cells_that_cannot_be_are_skipped_with_the_reason():
    made = expand(
        parse_matrix("[axes]\nattention = ['sdpa', 'flash_attention_2']\ndevice = 'cpu'\npadding = 'left'", "m")
    )
    assert [cell.attn_implementation for cell in made.cells] == ["sdpa"] * 3
    assert set(made.skipped.values()) == {"flash_attention_2 needs a CUDA or XPU device, not cpu"}


def test_an_emulation_on_a_real_device_is_skipped():
    assert "runs on the CPU, not on mps" in unavailable(Scenario(emulate="2.8", device="mps"))
    assert unavailable(Scenario(emulate="2.8", dtype="float64")) == "MPS does not support float64"
    assert unavailable(Scenario(dtype="float64")) is None


def test_a_device_that_is_not_there_is_a_reason(monkeypatch):
    assert unavailable(Scenario(device="cuda:7")) is not None
    assert unavailable(Scenario()) is None


def test_too_many_cells_and_none_at_all():
    with pytest.raises(BadInput, match=r"has 18 cells, more than --max-cells 17"):
        plan("max_cells = 17")
    with pytest.raises(BadInput, match="has no cells"):
        plan("[[exclude]]\npadding = ['left', 'right']")


def test_more_combinations_than_can_be_looked_at():
    numbers = [*range(1, 201)]
    with pytest.raises(BadInput, match=r"have 143,280,000 combinations, more than can be listed"):
        plan(f"[axes]\nseed = {numbers}\nbatch_size = {numbers}\nsequence_length = {numbers[1:]}")


@pytest.mark.parametrize(
    ("rules", "number", "named", "hint"),
    [
        ("[[exclude]]\nmodel = 'tiny-lama'", 1, "model = tiny-lama", "Did you mean 'tiny-llama'?"),
        ("[[exclude]]\npadding = 'left'\n[[exclude]]\nseed = [7, 8]", 2, "seed = 7 or 8", "Choose from: 0."),
        ("[[exclude]]\npadding = 'left'\nemulate = '2.8'", 1, "emulate = 2.8, padding_side = left", "from: none."),
    ],
)
def test_an_exclude_rule_that_leaves_nothing_out_says_so(rules, number, named, hint):
    (note,) = plan(rules).notes
    assert note.startswith(f"[[exclude]] rule {number} ({named}) leaves nothing out: the axis ")
    assert hint in note


@pytest.mark.parametrize(
    ("rules", "title"),
    [
        ("[[include]]\nattention = 'eager'\n[[include]]\nseed = 1", "rule 1 (attn_implementation = eager)"),
        ("[[include]]\nseed = 1\n[[include]]\nseed = [1]", "rule 2 (seed = 1)"),
    ],
)
def test_an_include_rule_that_adds_nothing_says_so(rules, title):
    assert plan(rules).notes == (f"[[include]] {title} adds nothing: the matrix already has its cells.",)


def test_rules_that_change_something_say_nothing():
    rules = "[[exclude]]\nattention = ['eager', 'flash_attention_2']\n[[include]]\nattention = 'eager'"
    assert plan(rules).notes == ()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_shards_cover_everything_once_and_keep_together_what_is_compared(count):
    whole = plan("[axes]\nmodel = ['a', 'b', 'c']\nseed = [0, 1]")
    parts = [shard(whole, number, count, group_of) for number in range(1, count + 1)]
    cells = [cell for part in parts for cell in part.cells]
    assert sorted(map(repr, cells)) == sorted(map(repr, whole.cells))
    for part in parts:
        others = [cell for other in parts if other is not part for cell in other.cells]
        assert not {group_of(cell) for cell in part.cells} & {group_of(cell) for cell in others}


@pytest.mark.parametrize(
    ("axes", "said"), [("emulate_macos = 14", 1), ("emulate_macos = 14\nemulate = '2.8'", 0), ("", 0)]
)
def test_a_macos_that_nothing_is_emulated_on_is_mentioned(axes, said):
    assert sum("emulate_macos has no effect" in note for note in plan(f"[axes]\n{axes}").notes) == said


@pytest.mark.parametrize(("baseline", "said"), [("eager", 1), ("sdpa", 0)])
def test_a_baseline_that_is_not_run_is_mentioned(baseline, said):
    notes = plan(f"baseline = '{baseline}'\n[axes]\nattention = ['sdpa', 'safe_sdpa']").notes
    assert sum("no cell has the baseline's attention, eager" in note for note in notes) == said


def test_machines_that_skip_different_cells_share_a_matrix_alike():
    text = "[axes]\nmodel = ['a', 'b', 'c', 'd']\nattention = 'sdpa'\npadding = 'left'"
    models = []
    for number, lacking in ((1, "a"), (2, "d")):
        whole = plan(text, reason=lambda cell, lacking=lacking: "no" if cell.model == lacking else None)
        part = shard(whole, number, 2, group_of)
        models += [*(cell.model for cell in part.cells), *(cell.model for cell in part.skipped)]
    assert sorted(set(models)) == ["a", "b", "c", "d"]


def test_a_part_without_cells_says_why():
    assert shard(plan(), 3, 4, group_of).empty == (
        "part 3 of 4 is empty: the matrix has 2 groups of cells that are compared, which stay together"
    )
    assert not shard(plan(), 2, 4, group_of).empty


@pytest.mark.parametrize(("index", "count"), [(0, 2), (3, 2), (1, 0)])
def test_shards_that_are_not_there(index, count):
    with pytest.raises(BadInput, match="--shard"):
        shard(Plan(()), index, count, group_of)


def test_a_key_depends_on_every_axis_and_on_the_versions():
    versions = {"torch": "2.8.0", "transformers": "5.23.0"}
    cell = Scenario()
    others = [
        Scenario(seed=1),
        Scenario(attn_implementation="eager"),
        Scenario(device="mps"),
        Scenario(emulate="2.8"),
        Scenario(dataset="x"),
    ]
    keys = {cell.key(versions), *(one.key(versions) for one in others), cell.key({**versions, "torch": "2.9.0"})}
    assert len(keys) == 7
    assert Scenario().key(dict(reversed(versions.items()))) == cell.key(versions)


def test_what_is_emulated_runs_here_and_what_is_measured_in_each_environment():
    cells = plan(
        "[axes]\nenvironment = ['none', 'a', 'b']\nemulate = ['none', '2.8']\n"
        "attention = 'sdpa'\ntrainer = 'standard'\npadding = 'left'"
    ).cells
    assert [(cell.environment, cell.emulate) for cell in cells] == [
        (None, None),
        ("a", None),
        ("b", None),
        (None, "2.8"),
    ]
    notes = plan("[axes]\nenvironment = 'a'\nemulate = '2.8'").notes
    assert any("environment has no effect with emulate" in note for note in notes)
