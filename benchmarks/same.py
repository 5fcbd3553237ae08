"""Whether a commit computes what another one does: `make same BASE=COMMIT`.

Checks both commits out side by side, takes the same small runs through the real commands of each, and compares bit by bit: the weights of
every model that was trained, the scores of report.json, and the predictions of all models and exported files. Prints what differs, and exits
with 1 if anything does that `EXPECTED` does not name. A refactor that is to change nothing is held against the commit before it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]
EXPECTED: dict[str, str] = {}
"""The differences that the checked change intends: each as it is printed, or its beginning, with the reason."""
QUICK = [
    "measure.latency_runs=2",
    "measure.throughput_seconds=0.02",
    "measure.load_seconds=0.02",
    "measure.max_texts=4",
]
WRITES = ["measure.generations=4", "measure.new_tokens=6"]
"""Further options for language models."""


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        options: the overrides of `kdcli distill`.
        export: the overrides of a `kdcli export` of it; None: it is not exported.
    """

    options: list[str]
    export: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def materials(folder: Path) -> dict[str, Case]:
    """Make small models and data in a folder, and the cases that run on them."""
    import torch
    from support.endpoint import Host, last, likely
    from support.tiny import (
        BAD,
        FILLER,
        GOOD,
        bert,
        language_model_options,
        pairs,
        sentences,
        speaker,
        speller,
        talk,
        translator,
        write_csv,
        write_jsonl,
        write_pairs,
    )
    from transformers import BertForMaskedLM, BertModel, PreTrainedTokenizerFast

    folder.mkdir(parents=True)

    def saved(model: Any, tokenizer: Any, name: str) -> Path:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        return folder / name

    def words() -> Any:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER]
        inner = Tokenizer(
            models.WordPiece({word: at for at, word in enumerate(dict.fromkeys(names))}, unk_token="[UNK]")
        )
        inner.normalizer = normalizers.BertNormalizer(lowercase=True)
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **special)

    torch.manual_seed(0)
    tokenizer = words()
    small = bert(tokenizer, ["bad", "good"], layers=4)
    body = saved(BertModel(small.config), tokenizer, "body")
    masked = saved(BertForMaskedLM(small.config), tokenizer, "masked")
    other = saved(bert(tokenizer, ["good", "bad"], hidden=16, seed=3), tokenizer, "other")
    reviews = write_csv(folder / "reviews.csv", sentences(400))
    classifier = [
        "teacher=local", f"teacher.path={body}", "teacher.trainer.precision=fp32", "teacher.trainer.learning_rate=3e-3",
        "teacher.trainer.epochs=6", "student.hidden_size=16", "student.num_hidden_layers=1", "student.intermediate_size=32", "dataset=csv",
        f"dataset.path={reviews}", "dataset.validation_size=48", "dataset.test_size=64", "dataset.max_length=32",
        "trainer.precision=fp32", "trainer.batch_size=16", "trainer.epochs=1", "trainer.logging_steps=5", "smoke=true",
    ]  # fmt: skip
    unshaped = [option for option in classifier if not option.startswith("student.")]
    texts = ["text", *(text for text, _ in sentences(90, seed=11))]
    (folder / "more.csv").write_text("\n".join(texts) + "\n", encoding="utf-8")
    held = write_csv(folder / "held.csv", sentences(80, seed=5))

    tagged = [
        {
            "tokens": text.split(),
            "ner": [f"B-{label}" if word in GOOD + BAD else "O" for word in text.split()],
        }
        for text, label in sentences(300, seed=2)
    ]
    tags = write_jsonl(folder / "tags.jsonl", tagged)
    tagger = [
        *(option for option in classifier if not option.startswith(("dataset=", "dataset.path"))), "dataset=jsonl",
        f"dataset.path={tags}", "dataset.words=tokens", "dataset.tags=ner",
    ]  # fmt: skip

    speaks = language_model_options(speaker(folder / "speaker"))
    alone = ["trainer.max_steps=12", "smoke=true"]
    forms = {form: [*speaks, *talk(folder, form), *alone, *WRITES] for form in ("pairs", "messages", "text")}
    writes = [*forms["pairs"], "rollout.max_new_tokens=8"]
    assert speller() is not None

    translates = [
        "teacher=local", f"teacher.path={translator(folder / 'translator')}", "teacher.tune=false",
        "teacher.trainer.precision=fp32", "student=translator-tiny", "student.hidden_size=16", "student.encoder_layers=1",
        "student.num_attention_heads=2", "student.intermediate_size=32", "student.dropout=0.0", "dataset=csv",
        f"dataset.path={write_pairs(folder / 'pairs.csv', pairs(200, longest=4))}", "dataset.source=en",
        "dataset.target=es", "dataset.validation_size=20", "dataset.test_size=24", "dataset.max_length=32",
        "loss.hard_label.weight=1", "trainer.precision=fp32", "trainer.batch_size=16", "trainer.max_steps=20",
        "trainer.learning_rate=5e-3", "smoke=true",
    ]  # fmt: skip

    def opinion(request: dict[str, Any]) -> list[dict[str, Any]]:
        words_of_text = set(last(request).split("Text:")[-1].split())
        good = len(words_of_text & set(GOOD)) >= len(words_of_text & set(BAD))
        return [likely({"good": 0.7, "bad": 0.1, "hm": 0.15} if good else {"bad": 0.7, "good": 0.2})]

    endpoint = [
        option
        for option in classifier
        if not option.startswith(("teacher=", "teacher.path", "teacher.trainer"))
    ]
    endpoint += [
        "teacher=openai", f"teacher.base_url={Host(opinion).url}", "teacher.model=parrot", "teacher.api_key_env=SAME_KEY",
        f"student.init_from={body}", "dataset.limit=120",
    ]  # fmt: skip
    assistant = [
        "+student@stages.assistant.student=tiny", "stages.assistant.student.hidden_size=24",
        "stages.assistant.student.num_hidden_layers=2", "stages.assistant.student.intermediate_size=48",
        "+stages.answers.teacher=assistant",
    ]  # fmt: skip
    return {
        "classifier, stored teacher": Case(classifier, []),
        "classifier, online teacher": Case([*classifier, "teacher.cache=false", "student.dropout=0.1"]),
        "two labels files": Case(
            [
                *classifier,
                f"dataset.test={held}",
                "dataset.labelled=150",
                f"dataset.unlabelled={folder / 'more.csv'}",
            ]
        ),
        "tagger": Case(tagger, ["hardware.tolerance.agreement=0.5"]),
        "packed text": Case(forms["text"]),
        "chat with a top-k store": Case(
            [*forms["messages"], "teacher.top_k=16"], [*WRITES, "hardware.tolerance.agreement=0.5"]
        ),
        "jsd": Case([*forms["pairs"], "loss=jsd"]),
        "rollouts of the student": Case([*writes, "rollout=student"]),
        "rollouts of the teacher": Case(
            [*writes, "rollout=teacher", "rollout.answers=2", "rollout.sampling_temperature=0.7"]
        ),
        "another vocabulary": Case([*forms["pairs"], "loss=uld"]),
        "translator with beams": Case(
            [*translates, "rollout=beam", "rollout.max_new_tokens=32"], ["hardware.tolerance.agreement=0.5"]
        ),
        "layers, pruned and trimmed": Case(
            [
                *unshaped,
                "student=composed",
                "student.initializers=[layers,width,vocabulary]",
                "student.steps.layers.num_hidden_layers=2",
                "student.steps.width.intermediate_size=32",
            ]
        ),
        "features": Case([*unshaped, "student=layers", "student.num_hidden_layers=2", "loss=features"]),
        "an assistant in stages": Case([*classifier, *assistant]),
        "an ensemble": Case([*classifier, f"teacher.others=[{other}]", "loss.soft_label.temperature=3"]),
        "augmented text": Case(
            [*classifier, "+dataset.augment.copies=2", f"+dataset.augment.path={masked}", "dataset.limit=100"]
        ),
        "quantization-aware": Case([*classifier, "student.quantization=int8", "student.dropout=0"], []),
        "an endpoint": Case(endpoint, environment={"SAME_KEY": "not-a-key"}),
    }


def take(case: Case, name: str, checkout: Path, folder: Path) -> dict[str, Any]:
    """Run a case through the commands of a checkout.

    Returns:
        What is compared, by where it stands in the run directory.
    """
    run = folder / name.replace(" ", "-").replace(",", "")
    environment = {
        **os.environ,
        **case.environment,
        "PYTHONPATH": str(checkout),
        "KDCLI_CACHE_DIR": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    commands = [["distill", *case.options, *QUICK, f"hydra.run.dir={run}"]]
    if case.export is not None:
        commands.append(["export", f"run={run}", "hardware=cpu", *QUICK, *case.export])
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "kdcli", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 3):
            last = (done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message").replace(
                str(folder), ""
            )
            return {f"{command[0]}: exit code {done.returncode}": last}
    return dict(figures(run))


def figures(run: Path) -> Iterator[tuple[str, Any]]:
    """Yield what a run computed: scores and verdict, and a hash of each model's weights and of each file of predictions."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    for group in ("models", "assistants"):
        for name, model in report.get(group, {}).items():
            yield f"{group}/{name}", {"score": model.get("score"), "scores": model.get("scores")}
    measured = ("speedup", "text")
    yield "verdict", {key: value for key, value in report["verdict"].items() if key not in measured}
    yield "validation", report.get("validation_score")
    for exported in sorted(run.glob("export/*/export.json")):
        for name, entry in json.loads(exported.read_text(encoding="utf-8"))["artifacts"].items():
            yield f"{exported.parent.name}/{name}", {key: entry.get(key) for key in ("score", "parity")}
    for file in sorted([*run.glob("**/*.safetensors"), *run.glob("**/predictions/*")]):
        if not file.relative_to(run).parts[0].startswith("stages"):
            yield file.relative_to(run).as_posix(), _hashed(file)


def _hashed(file: Path) -> str:
    """Return the sha256 of a file's contents; of tensors by their names, because their metadata may differ."""
    if file.suffix != ".safetensors":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    import torch
    from safetensors.torch import load_file

    total = hashlib.sha256()
    for key, tensor in sorted(load_file(file).items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def check_out(commit: str, folder: Path) -> Path:
    """Write the files of a commit into a folder."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    return folder


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference."""
    keys = [*before, *(key for key in now if key not in before)]
    return [
        f"{key}: {before.get(key, 'absent')!s:.100} -> {now.get(key, 'absent')!s:.100}"
        for key in keys
        if before.get(key, "absent") != now.get(key, "absent")
    ]


def main() -> int:
    """Compare two commits; the exit code is 1 if anything differs that is not expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the commit before")
    parser.add_argument("commit", nargs="?", default="HEAD", help="the commit that is checked (HEAD)")
    parser.add_argument("--skip", type=int, default=0, help="so many runs")
    parser.add_argument("--only", help="runs whose name holds this")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="kdcli-same-"))
    wrong = 0
    try:
        cases = materials(place / "materials")
        sides: dict[str, Callable[[str, Case], dict[str, Any]]] = {}
        for side, commit in (("before", given.base), ("now", given.commit)):
            checkout, folder = check_out(commit, place / side / "source"), place / side / "runs"
            folder.mkdir()
            sides[side] = lambda name, case, checkout=checkout, folder=folder: take(
                case, name, checkout, folder
            )
        with ThreadPoolExecutor(2) as pool:
            for name, case in list(cases.items())[given.skip :]:
                if given.only and given.only not in name:
                    continue
                before, now = (
                    future.result() for future in [pool.submit(each, name, case) for each in sides.values()]
                )
                lines = differences(before, now)
                failed = [key for found in (before, now) for key in found if "exit code" in key]
                print(f"{name}: {len(before)} things compared, {len(lines)} differ", flush=True)
                for line in lines:
                    why = next((EXPECTED[key] for key in EXPECTED if line.startswith(key)), None)
                    print(f"  {line}" + (f"   (expected: {why})" if why else ""), flush=True)
                    wrong += why is None
                if failed and not lines:
                    print(f"  both fail: {before}")
                    wrong += 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("nothing differs" if not wrong else f"{wrong} things differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
