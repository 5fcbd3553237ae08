"""Three runs of `kdcli distill` in each of two processes: one without a shared cache, one whose evaluation is longer than the time-out, and one in which
the second process dies.

python ranks.py FOLDER OVERRIDE…
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from kdcli.commands import distill
from kdcli.launch.run import launch
from kdcli.training.trainer import _Trainer

TIMEOUT, EVALUATION, STEP = 20, 23, 3
"""Seconds of the time-out and of the evaluation, and the step in which the second process dies."""
DIED = "died at"


def _late(*arguments: Any, **options: Any) -> Any:
    """The evaluation, which takes longer than the time-out."""
    time.sleep(EVALUATION)
    return evaluate(*arguments, **options)


def _dies(self: _Trainer, *arguments: Any, **options: Any) -> Any:
    """A training step, in which the second process is killed."""
    if self.state.global_step == STEP and self.args.process_index == 1:
        (folder / DIED).write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments, **options)


if __name__ == "__main__":
    folder, overrides = Path(sys.argv[1]), sys.argv[2:]
    second = os.environ["RANK"] == "1"
    cache = os.environ["KDCLI_CACHE_DIR"]
    if second:
        os.environ["KDCLI_CACHE_DIR"] = str(folder / "elsewhere")
    assert launch("distill", [*overrides, f"hydra.run.dir={folder / 'unshared'}"]) == 2
    os.environ["KDCLI_CACHE_DIR"] = cache
    evaluate, distill.evaluate = distill.evaluate, _late
    assert launch("distill", [*overrides, f"hydra.run.dir={folder / 'late'}"]) == 0
    distill.evaluate = evaluate
    step, _Trainer.training_step = _Trainer.training_step, _dies  # type: ignore[method-assign]
    sys.exit(launch("distill", [*overrides, f"hydra.run.dir={folder / 'died'}"]))
