from __future__ import annotations

import csv
import io
import json
import math

import pandas as pd
import pyarrow.parquet as pq
import pytest

from mpsdiag.reporting.formats import cells


def rows(story) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(cells.csv_text(story))))


def test_every_cell_is_one_row(stories):
    found = rows(stories["both"])
    assert len(found) == sum(len(scene.results) for scene in stories["both"].scenes)
    assert {row["environment"] for row in found} == {"A", "B"}


def test_pandas_reads_it_back_with_numbers(stories):
    table = pd.read_csv(io.StringIO(cells.csv_text(stories["every_end"])))
    safe = table[(table.attn_implementation == "safe_sdpa") & (table.padding_side == "left")].iloc[0]
    assert safe.eval_step == pytest.approx(0.0103, rel=0.02)
    assert safe["rank"] == 1


def test_the_frame_holds_what_the_file_holds(stories):
    """And so does the Parquet file: what was not measured is missing, a loss that is NaN is not."""
    made = cells.frame(stories["both"])
    read = pd.read_csv(io.StringIO(cells.csv_text(stories["both"])))
    parquet = pq.read_table(io.BytesIO(cells.parquet(stories["both"])))
    assert list(made.columns) == list(read.columns) == parquet.column_names
    for name in ("eval_step", "rank", "dead_rows"):
        numbers = made[name].to_numpy("float64", na_value=math.nan).tolist()
        assert numbers == pytest.approx(read[name].tolist(), nan_ok=True)
        assert numbers == pytest.approx(
            [math.nan if one is None else one for one in parquet[name].to_pylist()], nan_ok=True
        )
    assert str(made["rank"].dtype) == "int64[pyarrow]"
    losses = dict(zip(parquet["status"].to_pylist(), parquet["eval_loss"].to_pylist(), strict=True))
    assert math.isnan(losses["nan"])
    assert losses["crash"] is None
    assert made["eval_loss"].isna().tolist() == [one is None for one in parquet["eval_loss"].to_pylist()]


def test_a_cell_that_is_not_right_has_no_rank_and_no_ratio(stories):
    for row in rows(stories["every_end"]):
        if row["status"] in {"nan", "wrong"}:
            assert row["rank"] == ""
            assert row["eval_ratio"] == ""
            assert row["eval_step"] != ""


def test_a_nan_is_written_as_one_and_not_as_nothing(stories):
    found = {row["attn_implementation"]: row for row in rows(stories["every_end"]) if row["trainer"] == "standard"}
    assert found["unmask_sdpa"]["eval_loss"] == ""
    stock = next(row for row in rows(stories["every_end"]) if row["status"] == "nan")
    assert stock["eval_loss"] == "nan"
    assert stock["stock_eval_loss"] == "5.52"


def test_a_spreadsheet_runs_nothing(hostile):
    for row in rows(hostile("formula")):
        for value in row.values():
            assert not value.startswith(("=", "+", "@"))


def test_hostile_texts_stay_one_row_a_cell(nasty):
    assert len(cells.csv_text(nasty).splitlines()) == 1 + sum(len(scene.results) for scene in nasty.scenes)


def strict(text: str):
    def refuse(word: str):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_document_is_strict_json_with_nan_as_a_word(stories):
    found = strict(cells.json_text(stories["every_end"]))
    assert found["schema"] == 2
    stock = next(one for one in found["scenes"][0]["cells"] if one["status"] == "nan")
    assert stock["measured"]["eval_loss"] == "nan"
    assert stock["timing"]["eval_ratio"] is None
    assert found["scenes"][0]["verdict"] == "affected"
    assert found["scenes"][0]["fixes"][0]["attention"] == "safe_sdpa"


def test_a_character_that_no_terminal_should_get_is_spelled():
    text = cells._text({"system": "Linux \x7f \x9b \u202e \ud800 é"})
    assert text.isprintable()
    assert json.loads(text) == {"system": "Linux \x7f \x9b \u202e \ud800 é"}


def test_the_document_has_the_comparison(stories):
    found = strict(cells.json_text(stories["compared"]))
    assert found["comparison"]["cells"][0]["change"] == "newly_bad"
    assert strict(cells.json_text(stories["every_end"]))["comparison"] is None


def test_hostile_texts_are_json(nasty):
    text = cells.json_text(nasty)
    strict(text)
    text.encode("utf-8")


def test_emulated_scenes_say_so_and_timings_are_never_emulated(stories):
    for scene in strict(cells.json_text(stories["emulated"]))["scenes"]:
        assert "emulated MPS" in scene["emulated"]
        assert all(one["timing"]["emulated"] is False for one in scene["cells"])
