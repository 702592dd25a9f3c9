import re
from pathlib import Path

from mpsdiag.benching.gates import MEASURES, parse_gate
from mpsdiag.benching.plan.matrix import AXES, MatrixSpec
from mpsdiag.benching.plan.matrix_file import parse_matrix

PAGE = Path(__file__).resolve().parents[3] / "docs" / "matrix.md"


def test_the_page_shows_every_key_and_is_a_matrix():
    text = PAGE.read_text(encoding="utf-8")
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1]
    spec = parse_matrix(example, "docs/matrix.md")
    assert spec.model_fields_set == set(MatrixSpec.model_fields)
    assert spec.axes.model_fields_set == set(AXES)
    for gate in re.findall(r"--fail-if '([^']+)'", text):
        parse_gate(gate)
    assert all(f"`{name}`" in text for name in MEASURES)
