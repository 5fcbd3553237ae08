"""kdcli.report of translators: BLEU in sentences and tables, translations on the page, the card and its snippet."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from support.commands import require_words
from test_page import (
    NAMES,
    Page,
    fake_export,
    fake_metrics,
    fake_report,
    fake_run,
    front_matter,
    page_of,
    row,
)

from kdcli import console
from kdcli.report.cards import model_card
from kdcli.report.tables import eval_table, export_table, final_table, sweep_table
from kdcli.report.verdict import verdict_text

SIGNATURE = {
    "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1",
    "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.5.1",
}
PAIR = {
    "source": "In the beginning God created the heavens and the earth.",
    "reference": "En el principio creó Dios los cielos y la tierra.",
    "teacher": "En el principio creó Dios los cielos y la tierra.",
    "control": "En el principio Dios Dios Dios.",
    "student": "En el principio Dios creó los cielos y la tierra.",
}


def fake_model(bleu: float, size: int, beam: float | None, kl: float | None) -> dict[str, Any]:
    """One entry of report.json["models"] of a translator; ``kl`` is None for the teacher."""
    scores = {
        "bleu": bleu,
        "bleu_ci95": [bleu - 0.84, bleu + 0.91],
        "chrf": 20 + bleu,
        "log_prob": -2.1,
        "perplexity": 8.17,
        "token_accuracy": 0.583,
        "kl_to_teacher": kl,
        "length_ratio": 0.973,
        "copied": 0.004,
    }
    return {
        "parameters": size,
        "bytes": 4 * size,
        "score": bleu,
        "scores": scores if beam is None else scores | {"bleu_beam": beam, "chrf_beam": 20.9 + bleu},
        "latency_ms": {"p50": size / 5e5, "p95": size / 3e5},
        "throughput_per_s": 5e9 / size,
        "peak_memory_bytes": 6 * size + 90_000_000,
    }


def fake_translator(
    teacher: float = 25.9,
    control: float | None = 22.7,
    student: float = 24.1,
    beam: float | None = 26.7,
    ci95: tuple[float, float] | None = (0.61, 2.13),
    p: float | None = 0.0002,
    **changes: Any,
) -> dict[str, Any]:
    """report.json of task seq2seq; ``beam`` is the teacher's BLEU by beam search, None where nobody searched."""
    models = {"teacher": fake_model(teacher, 77_900_000, beam, None)}
    if control is not None:
        models["control"] = fake_model(control, 18_800_000, beam and control + 0.7, 1.4)
    models["student"] = fake_model(student, 18_800_000, beam and student + 0.4, 0.9)
    pairs = [{**PAIR, "score": 3.0 * place} for place in range(20)]
    if control is None:
        pairs = [{key: text for key, text in pair.items() if key != "control"} for pair in pairs]
    gained = None if control is None else student - control
    return fake_report() | {
        "task": "seq2seq",
        "metric": "bleu",
        "labels": [],
        "test_examples": 1200,
        "dataset": {
            "name": "bible_en-es",
            "train": 26_400,
            "labelled": 26_400,
            "augmented": 0,
            "validation": 1_000,
            "test": 1_200,
            "fingerprint": "5d1c0f7ab2e94c31",
            "dropped": {"length ratio": 1_204, "identical": 36},
        },
        "models": models,
        "verdict": {
            "retention": student / teacher if teacher else None,
            "gain_over_control": gained,
            "gain_ci95": None if control is None or ci95 is None else list(ci95),
            "gain_p": None if control is None else p,
            "agreement": 0.712,
            "kl_to_teacher": 0.9,
            "compression": 77.9 / 18.8,
            "speedup": 3.2,
            "text": "",
        },
        "signature": dict(SIGNATURE),
        "beams": 4 if beam else 1,
        "translations": {"worst": pairs, "best": [{**pair, "score": 97.0} for pair in pairs]},
        **changes,
    }


def bare() -> dict[str, Any]:
    """What the smallest run leaves: no control, no beam search, nothing measured or cleaned, no translations."""
    report = fake_translator(control=None, beam=None)
    for model in report["models"].values():
        model |= {
            "latency_ms": {"p50": None, "p95": None},
            "throughput_per_s": None,
            "peak_memory_bytes": None,
        }
        for key in ("log_prob", "perplexity", "token_accuracy", "kl_to_teacher"):
            del model["scores"][key]
    report["verdict"] |= {"speedup": None, "agreement": None, "kl_to_teacher": None}
    for key in ("signature", "beams", "translations"):
        del report[key]
    del report["dataset"]["dropped"], report["verdict"]["gain_p"]
    return report


def fake_log() -> list[dict[str, Any]]:
    """metrics.jsonl of a translator: validation scores are BLEU."""
    records = fake_metrics(steps=1500)
    for record in records:
        if "eval/score" in record:
            top = {"teacher": 26.0, "student": 24.4, "control": 22.9}[record["stage"]]
            record["eval/score"] = top - 20 * 2.7 ** (-record["step"] / 300)
    return records


# --- tables ---


def test_final_table_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """The table wraps into a jumble in a standard terminal once a teacher is large, or beam search hides what is greedy."""
    report = fake_translator()
    report["assistants"] = {"assistant": copy.deepcopy(report["models"]["control"])}
    report["models"]["teacher"] |= {
        "parameters": 671_241_732_096,
        "bytes": 1_384_483_464_192,
        "latency_ms": {"p50": 12_345.6, "p95": 20_000.0},
        "throughput_per_s": 123_456.7,
    }
    final_table(report)
    title, *table, sentence = capsys.readouterr().out.splitlines()
    assert title == "1,200 test examples"
    assert max(map(len, table)) <= 80
    heads = ["model", "BLEU (95 %)", "beam", "chrF", "params", "size", "sentence", "tokens/s"]
    assert re.split(r"\s{2,}", table[0]) == heads
    assert re.split(r"\s+", table[-1], maxsplit=1)[0] == "student"
    cells = ["24.1 (23.3 to 25.0)", "24.5", "44.1", "18.8M", "75.2 MB", "37.6 ms", "266"]
    assert re.split(r"\s{2,}", table[-1])[1:] == cells
    assert sentence == verdict_text(report)


def test_table_leaves_out_what_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    """Without beam search an empty column takes the place of a figure, or what was not measured ends in a traceback."""
    final_table(bare())
    _, heads, teacher, *_ = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", heads) == [
        "model",
        "BLEU (95 %)",
        "chrF",
        "params",
        "size",
        "sentence",
        "tokens/s",
    ]
    assert re.split(r"\s{2,}", teacher)[-2:] == ["n/a", "n/a"]
    remote = fake_translator()
    keys = ("score", "parameters", "bytes", "latency_ms", "throughput_per_s", "peak_memory_bytes")
    remote["models"]["teacher"] = dict.fromkeys(keys)
    final_table(remote)
    assert capsys.readouterr().out.splitlines()[2].split() == ["teacher", *["n/a"] * 7]


def test_table_in_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The table fits a pipe, but a terminal of 80 columns folds its cells."""
    monkeypatch.setattr(console, "_interactive", lambda _: True)
    monkeypatch.setattr(console.out, "_width", 80)
    final_table(fake_translator())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if re.match("teacher|control|student", line)] == [
        *("teacher", "control", "student")
    ]
    assert "24.1 (23.3 to 25.0)" in next(line for line in lines if line.startswith("student"))


def test_eval_table(capsys: pytest.CaptureFixture[str]) -> None:
    """`kdcli eval` of a CTranslate2 directory, which knows no interval, has half a bracket or ends in a traceback."""
    artifact = {"bytes": 19_000_000, "score": 24.0, "scores": {"bleu": 24.0, "chrf": 44.02}}
    result = {"metric": "bleu", "split": "test", "examples": 1200, "dataset": {"name": "bible"}}
    eval_table(result | {"models": {"ctranslate2.int8": artifact}})
    title, _, line = capsys.readouterr().out.splitlines()
    assert title == "1,200 rows of bible, split test"
    assert line.split() == [*("ctranslate2.int8", "24.0", "44.0", "n/a", "19.0", "MB", "n/a", "n/a")]


def test_export_table(capsys: pytest.CaptureFixture[str]) -> None:
    """An artifact that changes the text passes for one that does not."""
    model = fake_model(24.1, 18_800_000, None, 0.9)
    same = {"agreement": 1.0, "same_texts": 1.0, "score_drop": 0.0, "within": True}
    other = {"agreement": 0.973, "same_texts": 0.841, "score_drop": 0.42, "within": False}
    result = fake_export() | {"metric": "bleu", "torch": model, "recommended": "onnx.fp32"}
    result["artifacts"] = {
        "onnx.fp32": model | {"parity": same, "budget": {"met": True}},
        "ctranslate2.int8": model | {"parity": other, "budget": {"met": True}},
    }
    export_table(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:5])) <= 80
    heads = ["file", "BLEU", "size", "sentence", "memory", "agrees", "texts", "checks"]
    assert re.split(r"\s{2,}", lines[1]) == heads
    assert re.split(r"\s{2,}", lines[3])[-3:] == ["100.0 %", "100.0 %", "ok"]
    assert re.split(r"\s{2,}", lines[4])[-3:] == ["97.3 %", "84.1 %", "MISSED"]
    columns, tolerance, recommended = lines[5:]
    require_words(columns, "agrees", "texts", "tokens")
    require_words(tolerance, "ctranslate2.int8", "tolerance", "97.3 % of the tokens", "84.1 %", "0.4 BLEU")
    assert recommended.startswith("* recommended: ")


def test_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can tell which metric a sweep's bare figures are."""
    changes = {"metric": "bleu", "score": 24.1, "gain_over_control": 1.4, "gain_ci95": [0.61, 2.13]}
    sweep_table(
        [
            row("rollout.num_beams=1", validation_score=23.4, **changes),
            row("rollout.num_beams=4", validation_score=24.6, **changes),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:4])) <= 80
    cells = ["* num_beams=4", "24.6", "24.1", "98.1 %", "+1.4 [+0.6, +2.1]", "helped"]
    assert re.split(r"\s{2,}", lines[3]) == cells
    assert lines[-1] == "val. and test: BLEU (higher is better); gain: BLEU, higher is better"


# --- the page ---


def test_page_holds_what_was_found(tmp_path: Path) -> None:
    """The page of a translator hides its translations, how it was scored, or what cleaning left out."""
    page = page_of(fake_run(tmp_path, fake_translator(), fake_log()))
    seen = Page(page)
    text = " ".join(seen.text.split())
    assert verdict_text(fake_translator()) in text
    for part in (
        *("23.3 to 25.0", "Test BLEU", "Validation BLEU", "BLEU over the control", "+0.6 to +2.1, p < 0.001"),
        *(
            "BLEU, beam search",
            "44.1",
            "copies of the source",
            "0.4 %",
            "length over the references'",
            "0.97",
        ),
        *("Time of a sentence, p50", "tokens per second", "trained on references alone", *SIGNATURE.values()),
        *("Beam search: 4 beams", "of the teacher's BLEU by beam search, 26.7", "90.2 %"),
        *("The student's 20 worst", "The student's 20 best", "chrF 3.0", "chrF 97.0"),
        *("dropped 1,240", "dropped: length ratio 1,204", "dropped: identical 36"),
    ):
        assert part.replace(" ", "") in text.replace(" ", "")
    for absent in ("Calibration", "Confusion", "Classes", "Generations", "macro F1", "None"):
        assert absent not in text
    assert text.count(PAIR["student"]) == text.count(PAIR["control"]) == 40
    assert text.count(PAIR["reference"]) == 80  # the teacher's, too
    assert seen.tags.count("svg") == 2 + 1 + 3  # scores and gain, validation, losses
    assert seen.open == []
    assert all(link.startswith("#") for link in seen.links)
    assert not re.search(r"https?:|@import|@font-face", page)
    assert len(page) < 1_000_000


def test_page_escapes_translations(tmp_path: Path) -> None:
    """A model writes a <script>, and it runs in the browser of whoever reads the report."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)></dd></dl>{{ 7 * 7 }}"
    report = fake_translator(signature={"bleu": evil}, translations={"worst": [dict.fromkeys(PAIR, evil)]})
    report["dataset"]["dropped"] = {evil: 3}
    seen = Page(page_of(fake_run(tmp_path, report, [])))
    assert not {"script", "img"} & set(seen.tags)
    assert seen.handlers == seen.open == []
    assert seen.text.count(evil) == 5 + 1 + 1


def test_page_shows_text_that_runs_from_right_to_left(tmp_path: Path) -> None:
    """Hebrew and Arabic stand with their full stop at the wrong end."""
    pair = PAIR | {"reference": "בראשית ברא אלהים.", "student": "ברא אלהים את השמים.", "score": 41.0}
    page = page_of(fake_run(tmp_path, fake_translator(translations={"worst": [pair]}), []))
    for text in pair.values():
        if isinstance(text, str):
            assert re.search(rf'dir="auto">{re.escape(text)}<', page)


def test_page_of_odd_translations(tmp_path: Path) -> None:
    """A model that writes nothing, on and on, or half a character breaks the page, or seems to be missing from it."""
    odd = [
        {"source": "s", "reference": "r", "teacher": "", "student": "word " * 20_000, "score": None},
        {"source": "half \ud83d", "student": None, "score": float("nan")},
    ]
    report = fake_translator(control=None, translations={"worst": odd, "best": []})
    page = page_of(fake_run(tmp_path, report, []))
    seen = Page(page)
    assert len(page) < 300_000
    assert page.count('<dd class="none">nothing</dd>') == 2
    assert "word …" in seen.text
    assert "20 best" not in seen.text
    assert "control" not in page.partition("<h2>Translations")[2].partition("The run")[0]


@pytest.mark.parametrize(
    "report",
    [
        bare(),
        fake_translator(smoke=True, translations=None, signature=None, beams=None),
        fake_translator(teacher=0.0, student=0.0, control=0.0, beam=0.0, ci95=(0.0, 0.0), p=0.5),
        fake_translator(ci95=None),
    ],
    ids=["bare", "smoke", "zeros", "no-interval"],
)
def test_page_survives_what_is_missing(tmp_path: Path, report: dict[str, Any]) -> None:
    """A run of hours ends in a traceback because a figure that it could not have is not there."""
    seen = Page(page_of(fake_run(tmp_path, report, fake_log())))
    text = " ".join(seen.text.split())
    assert verdict_text(report) in text
    assert not re.search(r"\b(nan|inf|None|undefined)\b", text)
    assert ("Translations" in text) == bool(report.get("translations"))


def test_page_says_that_cleaning_left_out_nothing(tmp_path: Path) -> None:
    """Clean data looks like data that nobody cleaned."""
    report = fake_translator()
    report["dataset"] |= {"dropped": {}, "prefix": "", "source_language": None, "target_language": "es"}
    seen = Page(page_of(fake_run(tmp_path, report, [])))
    text = re.sub(r"\s+", "", seen.text.partition("The run")[2])
    assert "dropped0" in text
    assert "target_languagees" in text
    assert not re.search("prefix|source_language", text)


# --- the model card ---


def test_model_card() -> None:
    """A translator is filed as a language model, is loaded with the wrong class, or hides how it was scored."""
    report = fake_translator()
    card = model_card(report, NAMES)
    front, body = front_matter(card)
    (index,) = front.pop("model-index")
    assert index["results"][0]["metrics"][0]["name"] == "BLEU"
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "translation",
        "tags": ["translation", "knowledge-distillation", "kdcli"],
        "metrics": ["bleu", "chrf"],
    }
    for part in (
        *(verdict_text(report).replace("<", r"\<"), "AutoModelForSeq2SeqLM.from_pretrained(path)"),
        *("licences", "trained on the references alone", "26,400 have a reference", "fluent and wrong"),
        *("1,240 rows were dropped (length ratio 1,204, identical 36).", "\n- Beam search: 4 beams\n"),
        *("BLEU: nrefs:1\\|case:mixed", "chrF: nrefs:1"),
    ):
        assert part in body
    assert not re.search(r"classes|classif|gold|ECE|INPUT", body)
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("|")
    ]
    assert table[0] == [
        *("model", "BLEU", "95 % interval", "params", "size", "sentence", "tokens/s", "memory"),
        *("beam BLEU", "chrF", "perplexity", "copies"),
    ]
    assert {len(line) for line in table} == {len(table[0])}
    assert [line[1] for line in table[2:]] == ["25.9", "22.7", "24.1"]
    assert "Cleaning" not in model_card(bare(), NAMES)
    smoke = fake_translator(smoke=True, control=None)
    assert verdict_text(smoke) in model_card(smoke, NAMES)


def test_snippet_of_the_card_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a stranger copies from the card fails, or forgets the prefix that the model was trained with."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

    words = [
        "</s>",
        "<unk>",
        "<pad>",
        *[
            "A",
            "text",
            "like",
            "those",
            "it",
            "was",
            "trained",
            "on",
            ".",
            "say",
            ":",
            '"',
            "hola",
            "qué",
            "tal",
        ],
    ]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    small = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    special = {"pad_token_id": 2, "eos_token_id": 0, "decoder_start_token_id": 2, "forced_eos_token_id": 0}
    config = MarianConfig(
        vocab_size=len(words),
        decoder_vocab_size=len(words),
        max_position_embeddings=256,
        **small,
        **heads,
        **special,
    )
    for part in (MarianMTModel(config), tokenizer):
        part.save_pretrained(tmp_path)
    report = fake_translator()
    report["dataset"]["prefix"] = 'say "hola": '
    code = re.search(r"```python\n(.*?)```", model_card(report, NAMES), flags=re.DOTALL)
    assert code
    assert len(code[1].splitlines()) <= 10
    scope: dict[str, Any] = {}
    exec(code[1].replace("path/to/this/directory", str(tmp_path)), scope)
    assert scope["text"] == 'say "hola": A text like those it was trained on.'
    assert capsys.readouterr().out.strip()
