"""What the documents show runs as it stands: the README's quickstart and the notebook, each in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(code: str, folder: Path) -> str:
    """What a piece of Python prints in a folder. Fails with its error."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_quickstart_is_at_most_eight_lines_and_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"In your own code.*?```python\n(.*?)```", readme, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    depths = [float(line.split()[0]) for line in run(code, ROOT).splitlines()]
    assert depths == [0.12, 0.25, 0.38, 0.5, 0.62, 0.75, 0.88, 1.0]


def test_the_notebook_runs_and_its_lens_beats_the_logit_lens() -> None:
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    printed = run("\n".join(cells), ROOT / "docs")
    rows = [line.split() for line in printed.splitlines() if re.match(r"\s+\d+\s+\d\.\d\d\s", line)]
    assert [int(row[0]) for row in rows] == list(range(7))
    for _, _, logit, ours, shipped in rows:
        assert float(shipped) < float(ours) < float(logit)
    assert "1.00 '    def close(self" in printed


def test_the_notebook_holds_its_pictures_and_no_path_of_a_machine() -> None:
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert "/tmp/" not in json.dumps([output.get("text", "") for output in outputs])
