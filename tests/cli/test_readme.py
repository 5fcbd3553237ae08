"""The README's own parts, as a reader copies them into a folder, through the real command."""

from __future__ import annotations

import re
from pathlib import Path

from support.commands import read

from kdcli.launch.run import launch

README = Path(__file__).parents[2] / "README.md"
FILE = re.compile(r"^```(?:python|yaml)\n# ([\w/]+\.(?:py|yaml))\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_a_student_and_losses_of_ones_own(small: list[str], tmp_path: Path) -> None:
    """An example that does not run as it stands is the first that a user of the extension points meets."""
    folder = tmp_path / "own"
    names = []
    for name, text in FILE.findall(README.read_text(encoding="utf-8")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        names.append(name)
    assert {"my_parts/first.py", "my_parts/similarity.py", "student/first.yaml", "loss/hellinger.yaml"} <= {
        *names
    }
    run = tmp_path / "run"
    options = [
        *(option for option in small if not option.startswith("student.")), "student=first", "student.num_hidden_layers=1",
        "loss=hellinger", "+loss.similarity._target_=my_parts.similarity.Similarity",
        "+loss.similarity.layer_mapping=uniform", "control=false", "trainer.max_steps=4", "measure=null",
        f"hydra.run.dir={run}",
    ]  # fmt: skip
    assert launch("distill", options, config_dir=folder) == 0
    assert {"soft_label", "similarity"} <= set(read(run / "report.json")["loss"])
