"""Runs models in CTranslate2 on the CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kdcli.measure.runtime import Seq2SeqRuntime, max_new_tokens
from kdcli.measure.spec import MeasureSpec


class CTranslate2Seq2Seq(Seq2SeqRuntime):
    """A folder of CTranslate2."""

    markers = weights = ("model.bin",)
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
        self.ids = {token: index for index, token in enumerate(target)}
        self.prefix = [target[token] for token in spec.decoder_prefix]
        self.max_new_tokens = max_new_tokens(spec)

    def __call__(self, inputs: Sequence[int]) -> list[int]:
        result = self.translator.translate_batch(
            [[self.source[token] for token in inputs]],
            target_prefix=[self.prefix],
            beam_size=1,
            min_decoding_length=0,
            max_decoding_length=self.max_new_tokens + len(self.prefix),
            max_input_length=0,  # no limit: nothing is truncated
            return_end_token=True,
        )[0]
        return [self.ids[token] for token in result.hypotheses[0][len(self.prefix) :]]
