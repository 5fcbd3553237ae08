"""CTranslate2 on the CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kdcli.measure.runtime import Runs, room
from kdcli.measure.spec import MeasureSpec


class Translator(Runs):
    """A folder of a translator's, run greedily."""

    packages, extra = ("ctranslate2",), "cpu"

    def __init__(self, spec: MeasureSpec):
        import ctranslate2

        self.translator = ctranslate2.Translator(
            spec.path, device="cpu", inter_threads=1, intra_threads=spec.threads
        )
        folder = Path(spec.path)
        shared = folder / "shared_vocabulary.json"
        sides = [folder / f"{side}_vocabulary.json" for side in ("source", "target")]
        files = [shared, shared] if shared.is_file() else sides
        self.source, target = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        self.numbers = {token: number for number, token in enumerate(target)}
        self.given = [target[token] for token in spec.given]
        self.room = room(spec)

    def __call__(self, ids: Sequence[int]) -> list[int]:
        found = self.translator.translate_batch(
            [[self.source[token] for token in ids]],
            target_prefix=[self.given],
            beam_size=1,
            min_decoding_length=0,
            max_decoding_length=self.room + len(self.given),
            max_input_length=0,  # none: nothing is cut off
            return_end_token=True,
        )[0]
        return [self.numbers[token] for token in found.hypotheses[0][len(self.given) :]]
