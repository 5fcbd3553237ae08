"""Configs, command lines and run directories from somebody else, each with a canary: what they name is not run, nothing outside is
written, and no value of the environment or key is shown or kept."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults.harness import Fence, Outcome, require_clean, run_here, run_process
from support.commands import require_words

from kdcli.config.secrets import secret_in, secrets_in
from kdcli.launch.run import launch

PLANTED = "correct-horse-battery-staple"
"""A value of the environment that nobody may see."""
KEY = "sk-proj-abcdEFGH1234567890abcdEFGH"
POPEN = "{_target_: subprocess.Popen, args: [touch, CANARY]}"
PYTHON = "!!python/object/apply:os.system ['touch CANARY']\n"


def quickly(cases: Sequence[Any], every: int) -> list[Any]:
    """Parameters of which `make test` runs every so many-th, and `make test-faults` all."""
    marks = [() if number % every == 0 else pytest.mark.faults for number in range(len(cases))]
    return [pytest.param(case, marks=mark) for case, mark in zip(cases, marks, strict=True)]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is touched when the module `evil_module` is imported, or any class or function of it is called."""
    folder, canary = tmp_path / "installed", tmp_path / "canary"
    folder.mkdir()
    (folder / "evil_module.py").write_text(
        "from pathlib import Path\n"
        "from kdcli.losses.forward_kl import ForwardKL\n"
        f"Path({str(canary)!r}).touch()\n"
        "class Evil(ForwardKL): ...\n"
        "def judge(row, answer): return True\n"
    )
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PLANTED", PLANTED)
    yield canary
    sys.modules.pop("evil_module", None)


@pytest.fixture
def refused(tmp_path: Path, canary: Path) -> Callable[..., Outcome]:
    """Runs a command that must end with exit code 2 and touch nothing."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(*words: str) -> Outcome:
        fence = Fence(tmp_path, folder / "runs")
        outcome = run_here([word.replace("CANARY", str(canary)) for word in words], folder)
        require_clean(outcome, codes=[2])
        fence.require_untouched(outcome.command)
        left = [path for path in folder.rglob("*") if not path.is_dir()]
        assert not canary.exists(), outcome.command
        assert not left, f"{left} are left behind by {outcome.command}"
        for secret in (PLANTED, KEY):
            assert secret not in outcome.out + outcome.err, outcome.command
        return outcome

    return run


# ---- typed -------------------------------------------------------------------------------------------

CONFIGS = [
    # a class in an argument, at any depth
    [f"loss.soft_label.temperature={POPEN}"],
    [f"+loss.soft_label.more={POPEN}"],
    [f"loss.hard_label.label_smoothing=[{POPEN}]"],
    [f"+loss.soft_label.more={{a: {{b: [{{c: {POPEN}}}]}}}}"],
    [f"loss.soft_label.weight={POPEN}"],
    [f"trainer.epochs={POPEN}"],
    [f"trainer.freeze=[{POPEN}]"],
    [f"trainer={POPEN}"],
    [f"+trainer.more={POPEN}"],
    [f"dataset.path={POPEN}"],
    [f"dataset.replace={POPEN}"],
    [f"dataset.labels=[{POPEN},b]"],
    ["+dataset._target_=subprocess.Popen", "+dataset.args=[touch,CANARY]"],
    [f"rollout.filter={POPEN}"],
    [f"student.hidden_size={POPEN}"],
    [f"student.path={POPEN}"],
    [f"teacher.others=[{POPEN}]"],
    [f"teacher.trainer.epochs={POPEN}"],
    [f"teacher.path={POPEN}"],
    [f"hardware.precisions=[{POPEN}]"],
    [f"hardware.budget.max_bytes={POPEN}"],
    [f"+hardware.tolerances.x={POPEN}"],
    [f"measure={POPEN}"],
    [f"seed={POPEN}"],
    ["teacher=openai", "teacher.base_url=http://127.0.0.1:9/v1", "teacher.model=m", f"+teacher.parameters.x={POPEN}"],
    ["teacher=openai", "teacher.base_url=http://127.0.0.1:9/v1", "teacher.model=m", f"teacher.budget={POPEN}"],
    ["student=composed", f"+student.steps.mine={POPEN}", "student.initializers=[mine]"],
    ["student=composed", f"student.steps.layers.num_hidden_layers={POPEN}"],
    [f"+stages.one.trainer.epochs={POPEN}"],
    [f"+stages.one.loss.soft={POPEN}"],
    [f"+stages.one.student={POPEN}"],
    # through interpolations
    [f"+loss.soft_label.more={POPEN}", "loss.soft_label.temperature=${loss.soft_label.more}"],
    ["loss.soft_label.temperature=${oc.create:{_target_: subprocess.Popen, args: [touch, CANARY]}}"],
    ["trainer.freeze=[${oc.decode:'{_target_: subprocess.Popen, args: [touch, CANARY]}'}]"],
    # a component of another kind
    ["loss.soft_label._target_=subprocess.Popen", "+loss.soft_label.args=[touch,CANARY]"],
    ["student._target_=subprocess.Popen"],
    ["teacher._target_=kdcli.losses.forward_kl.ForwardKL"],
    ["hardware._target_=pathlib.Path"],
    ["loss.soft_label._target_=kdcli.losses.base.Loss"],
    ["loss.soft_label._target_=os.system"],
    ["loss.soft_label._target_=builtins.eval"],
    ["loss.soft_label._target_={_target_: subprocess.Popen}"],
    ["+teacher.from_scratch._target_=subprocess.Popen"],
    # paths of names
    ["hardware=../x"],
    ["hardware=cpu/../cpu"],
    ["hardware=/etc/x"],
    ["+stages.'..'.trainer.epochs=1"],
    ["+stages={'..': {trainer: {epochs: 1}}}"],
    ["+stages={'': {trainer: {epochs: 1}}}"],
    ["+stages={'../../x': {trainer: {epochs: 1}}}"],
    [f"+stages={{'{'x' * 300}': {{trainer: {{epochs: 1}}}}}}"],
    ["+stages={'a\nb': {trainer: {epochs: 1}}}"],
    ["+stages={CON: {trainer: {epochs: 1}}}"],
]  # fmt: skip


@pytest.mark.parametrize("words", quickly(CONFIGS, 6))
def test_a_hostile_command_line_runs_nothing(refused: Callable[..., Outcome], words: list[str]) -> None:
    """A word that somebody copied from a web page, and that starts a process or writes outside the run."""
    outcome = refused("distill", *words)
    keys = [word.lstrip("+").partition("=")[0].replace("'", "").removesuffix("._target_") for word in words]
    assert any(key.rpartition(".")[2] in outcome.err for key in keys), outcome.err


FILES = {
    "loss/evil.yaml": "soft_label:\n  _target_: kdcli.losses.forward_kl.ForwardKL\n  temperature:\n    _target_: subprocess.Popen\n    args: [touch, CANARY]\n",
    "loss/list.yaml": "soft_label:\n  _target_: kdcli.losses.forward_kl.ForwardKL\n  weights:\n    - a: [{_target_: subprocess.Popen, args: [touch, CANARY]}]\n",
    "loss/anchor.yaml": "x: &x {_target_: subprocess.Popen, args: [touch, CANARY]}\nsoft_label:\n  _target_: kdcli.losses.forward_kl.ForwardKL\n  temperature: *x\n",
    "loss/python.yaml": "soft_label: !!python/object/apply:os.system ['touch CANARY']\n",
    "loss/wrong.yaml": "soft_label:\n  _target_: subprocess.Popen\n  args: [touch, CANARY]\n",
    "student/merge.yaml": "base: &base {_target_: subprocess.Popen}\n_target_: kdcli.students.from_config.FromConfig\nhidden_size:\n  <<: *base\n",
    "teacher/key.yaml": f"_target_: kdcli.teachers.remote.openai.OpenAITeacher\nbase_url: http://127.0.0.1:9/v1\nmodel: m\napi_key_env: {KEY}\n",
    "dataset/secret.yaml": "path: s3://user:correct-horse-battery-staple@host/x\n",
}  # fmt: skip


@pytest.mark.parametrize("name", quickly(list(FILES), 5))
def test_a_hostile_file_of_a_config_folder_runs_nothing(
    refused: Callable[..., Outcome], tmp_path: Path, canary: Path, name: str
) -> None:
    """A folder of configs that was downloaded: its YAML builds a class where a number stands."""
    path = tmp_path / "own" / name
    path.parent.mkdir(parents=True)
    path.write_text(FILES[name].replace("CANARY", str(canary)))
    group, option = name.removesuffix(".yaml").split("/")
    outcome = refused("distill", f"{group}={option}", "--config-dir", str(tmp_path / "own"))
    assert group in outcome.err, outcome.err


# ---- secrets -----------------------------------------------------------------------------------------

ASK = ["teacher=openai", "teacher.base_url=http://127.0.0.1:9/v1", "teacher.model=m"]
SECRETS = [
    [f"teacher.api_key_env={KEY}"],
    [f"teacher.api_key_env={PLANTED}"],
    ["teacher.api_key_env=${oc.env:PLANTED}"],
    [f"+teacher.parameters.api_key={PLANTED}"],
    [f"+teacher.parameters={{api_key: {PLANTED}}}"],
    [f"teacher.parameters={{api_key: {PLANTED}!{{"],
    [f"teacher.parameters={{'X-Api-Key': {PLANTED}!{{"],
    [f"+teacher.parameters.extra_headers.Authorization=Bearer {PLANTED}"],
    [f"+teacher.parameters.extra_headers={{X-Api-Key: {PLANTED}}}"],
    [f"+teacher.parameters.extra_body.note={KEY}"],
    ["+teacher.parameters.token=${oc.env:PLANTED}"],
    [f"teacher.base_url='https://user:{PLANTED}@host/v1'"],
    [f"teacher.base_url='https://host/v1?api_key={PLANTED}'"],
    [f"teacher.model={KEY}"],
    [f"dataset.path={KEY}"],
    [f"+trainer.{KEY}=1"],
    [f"trainer.epochs={KEY}"],
    [KEY],
    [f"{KEY}=1"],
    [f"dataset={KEY}"],
    [f"hydra.run.dir={KEY}"],
    # what an interpolation stands for
    ["trainer.epochs=${oc.env:PLANTED}"],
    ["dataset=csv", "dataset.path=/data/${oc.env:PLANTED}.csv"],
    ["dataset=${oc.env:PLANTED}"],
    ["dataset.replace={'(': ${oc.env:PLANTED}}"],
    ["trainer.epochs=${oc.decode:${oc.env:PLANTED}}"],
    ["loss.soft_label._target_=${oc.env:PLANTED}"],
    ["+stages.one.teacher=${oc.env:PLANTED}"],
    ["hardware=${oc.env:PLANTED}"],
]  # fmt: skip


@pytest.mark.parametrize("words", quickly(SECRETS, 6))
def test_a_secret_is_refused_and_not_repeated(refused: Callable[..., Outcome], words: list[str]) -> None:
    """A key that was pasted where its variable's name belongs: it stands in the log of a CI and in the run's .hydra."""
    refused("distill", *ASK, *words)


def test_a_variable_s_name_is_taken(refused: Callable[..., Outcome]) -> None:
    """A check for keys that refuses what people call their variables, their files and their parameters."""
    outcome = refused("distill", *ASK, "teacher.api_key_env=MY_COMPANY_OPENAI_API_KEY_2")
    require_words(outcome.err, "environment variable", "MY_COMPANY_OPENAI_API_KEY_2")
    for name in (
        "OPENAI_API_KEY",
        "HUGGINGFACEHUB_API_TOKEN",
        "key",
        "_K8S",
        "sk",
        "AZURE_OPENAI_KEY_EASTUS2",
        "MyOpenAIApiKey_Prod",
    ):
        assert secret_in("teacher.api_key_env", name) is None
    for name in ("AbCdEfGhIjKlMnOpQrStUvWxYz", "aB3xY9kLm2Q", "Zk9xQ_aB3xYq_kLm2Qw"):
        assert secret_in("teacher.api_key_env", name) is not None
    for name in ("extra_headers.X-Auth", "AUTH", "bearer"):
        assert secret_in(f"teacher.parameters.{name}", "hunterhunter") is not None
    assert [*secrets_in({"teacher": {"parameters": {"sk-proj-abcdEFGH1234567890abcdEFGH": 1}}})]
    for path in (
        "/data/sk-en-corpus-2024.csv",
        "OWNER/hf_models",
        "package:kdcli/x",
        "https://host/v1",
        "C:\\x",
        "a@b",
        "AKIA.csv",
    ):
        assert secret_in("dataset.path", path) is None
    for name in ("max_tokens", "prompt_cache_key", "stop", "logit_bias", "user"):
        assert secret_in(f"teacher.parameters.{name}", "anything") is None


# ---- a run from elsewhere ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of a moment."""
    run = tmp_path_factory.mktemp("finished") / "run"
    options = [
        *small,
        "measure=null",
        "control=false",
        "trainer.max_steps=1",
        "hardware.budget.max_bytes=1e9",
    ]
    assert launch("distill", [*options, f"hydra.run.dir={run}"]) == 0
    (run / "export" / "cpu").mkdir(parents=True)
    (run / "export" / "cpu" / "model.onnx").write_bytes(b"no model")
    return run


@pytest.fixture
def foreign(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test makes hostile."""
    return Path(shutil.copytree(finished, tmp_path / "foreign"))


def config(run: Path, change: Callable[[Any], object], name: str = "config") -> None:
    path = run / ".hydra" / f"{name}.yaml"
    tree = yaml.safe_load(path.read_text())
    change(tree)
    path.write_text(
        yaml.safe_dump(json.loads(json.dumps(tree)))
    )  # without aliases, which are refused by themselves


def recorded(key: str, value: Any) -> Callable[[Path], None]:
    """Sets a key of the recorded config."""

    def edit(run: Path) -> None:
        def change(tree: Any) -> None:
            *parents, last = key.split(".")
            for parent in parents:
                tree = tree.setdefault(parent, {})
            tree[last] = value

        config(run, change)

    return edit


def words(*given: str) -> Callable[[Path], None]:
    """Sets the recorded words of the command line."""

    def edit(run: Path) -> None:
        config(run, lambda tree: tree["hydra"]["overrides"].update(task=list(given)), "hydra")
        (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(given)))

    return edit


def choice(name: str) -> Callable[[Path], None]:
    return lambda run: config(
        run, lambda tree: tree["hydra"]["runtime"]["choices"].update(hardware=name), "hydra"
    )


def text(name: str, content: str) -> Callable[[Path], None]:
    """Appends to a file of the run."""

    def edit(run: Path) -> None:
        canary = run.parent / "canary"
        with (run / name).open("a") as stream:
            stream.write(content.replace("CANARY", str(canary)))

    return edit


def report(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        told = json.loads((run / "report.json").read_text())
        change(told)
        (run / "report.json").write_text(json.dumps(told))

    return edit


def artifacts(**told: Any) -> Callable[[Path], None]:
    """Writes an export.json beside a file."""

    def edit(run: Path) -> None:
        whole = {
            "hardware": "cpu",
            "student": "x",
            "recommended": "model.onnx",
            "artifacts": {"model.onnx": {"sha256": {}}},
        }
        (run / "export" / "cpu" / "export.json").write_text(json.dumps(whole | told))

    return edit


def linked(name: str) -> Callable[[Path], None]:
    """Puts a link to a folder outside in the place of one of the run's."""

    def edit(run: Path) -> None:
        outside = run.parent / "home"
        outside.mkdir()
        (outside / "cpu").mkdir()
        (outside / "cpu" / "kept.txt").write_text("kept")
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).symlink_to(outside)

    return edit


EVIL = {"_target_": "evil_module.Evil"}
START = {"_target_": "subprocess.Popen", "args": ["touch", "canary"]}
RERUN, EXPORT, EVAL = ["distill", "--rerun", "RUN"], ["export", "run=RUN"], ["eval", "run=RUN"]
FILE = ["eval", "run=RUN", "artifact=export/cpu"]
RUNS: list[tuple[Callable[[Path], None], list[list[str]]]] = [
    (recorded("loss.soft_label._target_", "evil_module.Evil"), [RERUN]),
    (recorded("loss.other", EVIL), [RERUN]),
    (recorded("loss.soft_label.temperature", START), [RERUN]),
    (recorded("loss.soft_label.temperature", {"a": [EVIL]}), [RERUN]),
    (recorded("student._target_", "evil_module.Evil"), [RERUN]),
    (recorded("student._target_", "kdcli.exporting.snippets.onnx_encoder.x"), [RERUN]),
    (recorded("teacher._target_", "evil_module.Evil"), [RERUN]),
    (recorded("hardware._target_", "evil_module.Evil"), [RERUN]),
    (recorded("teacher.from_scratch", EVIL), [RERUN]),
    (recorded("stages", {"one": {"loss": {"a": EVIL}}}), [RERUN]),
    (recorded("stages", {"..": {"trainer": {"epochs": 1}}}), [RERUN]),
    (recorded("rollout.filter.function", "evil_module.judge"), [RERUN]),
    (recorded("teacher.trust_remote_code", True), [RERUN]),
    (recorded("student.trust_remote_code", "yes"), [RERUN]),
    (recorded("teacher.base_url", "http://127.0.0.1:9/v1"), [RERUN]),
    (recorded("teacher.api_key_env", "PLANTED"), [RERUN]),
    (recorded("hub.push_to", "somebody/else"), [RERUN]),
    (recorded("hydra", {"callbacks": {"x": EVIL}}), [RERUN]),
    (recorded("hydra", {"launcher": EVIL, "sweeper": EVIL}), [RERUN]),
    (recorded("defaults", [{"/loss": "../../../../evil"}]), [RERUN]),
    (recorded("dataset.defaults", ["x"]), [RERUN, EVAL]),
    (recorded("dataset._target_", "evil_module.Evil"), [RERUN, EVAL, EXPORT]),
    (recorded("dataset.replace", START), [RERUN, EVAL, EXPORT]),
    (recorded("dataset.path", "${oc.env:PLANTED}"), [RERUN, EVAL, EXPORT]),
    (recorded("dataset.text", "${oc.decode:'${oc.env:PLANTED}'}"), [RERUN, EVAL, EXPORT]),
    (recorded("dataset.path", "/data/${${dataset.text}:PLANTED}"), [RERUN, EVAL, EXPORT]),
    (recorded("dataset.path", "${dataset.text}"), [RERUN, EVAL, EXPORT]),
    (recorded("dataset.text", "${dataset.text}"), [RERUN, EVAL, EXPORT]),
    (recorded("dataset", 5), [RERUN, EVAL, EXPORT]),
    (text(".hydra/config.yaml", f"more: {PYTHON}"), [RERUN, EVAL, EXPORT]),
    (text(".hydra/hydra.yaml", f"more: {PYTHON}"), [RERUN, EVAL, EXPORT]),
    (text(".hydra/config.yaml", "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40))), [RERUN, EVAL, EXPORT]),
    (text(".hydra/hydra.yaml", "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40))), [RERUN, EVAL, EXPORT]),
    (text(".hydra/config.yaml", "".join(f"a{n}: ${{a{n + 1}}}${{a{n + 1}}}\n" for n in range(40)) + "a40: xx\n"), [RERUN, EVAL, EXPORT]),
    (text(".hydra/config.yaml", "deep: " + "[" * 5000 + "]" * 5000 + "\n"), [RERUN, EVAL, EXPORT]),
    (text(".hydra/config.yaml", "x: " + "1" * 2_000_000 + "\n"), [RERUN, EVAL, EXPORT]),
    (choice("../../../evil"), [EXPORT]),
    (choice("cpu/../cpu"), [EXPORT]),
    (choice("cpu,intel"), [EXPORT]),
    (words("hardware._target_=evil_module.Evil"), [EXPORT]),
    (words("hardware.precisions=[{_target_: evil_module.Evil}]"), [EXPORT]),
    (words("hardware.budget.max_bytes=${oc.env:PLANTED}"), [EXPORT]),
    (words("hardware.threads=1,2"), [EXPORT]),
    (words("hardware.threads={"), [EXPORT]),
    (words("hardware.threads=glob(*)"), [EXPORT]),
    (report(lambda told: told["models"].update({"../../home": {"score": 1}})), [EVAL]),
    (report(lambda told: told["models"].update({"/etc": {"score": 1}})), [EVAL]),
    (report(lambda told: told["models"].update({"a\nb" * 200: {"score": 1}})), [EVAL]),
    (artifacts(recommended="../../../../etc/passwd"), [FILE]),
    (artifacts(recommended="/etc/passwd"), [FILE]),
    (artifacts(recommended="**"), [FILE]),
    (artifacts(artifacts={"model.onnx": {"sha256": {"../../../../../etc/hostname": "0"}}}), [FILE]),
    (artifacts(artifacts={"model.onnx": {"sha256": {"/etc/hostname": "0"}}}), [FILE]),
    (linked("export"), [EXPORT]),
]  # fmt: skip


@pytest.mark.parametrize("case", quickly(range(len(RUNS)), 8))
def test_a_hostile_run_does_nothing(refused: Callable[..., Outcome], foreign: Path, case: int) -> None:
    """A run directory that somebody sent: repeating, scoring or exporting it starts a process, sends a key, or writes elsewhere."""
    edit, commands = RUNS[case]
    edit(foreign)
    for command in commands:
        refused(*(word.replace("RUN", str(foreign)) for word in command))


def test_what_hydra_recorded_is_not_built(foreign: Path, canary: Path, tmp_path: Path) -> None:
    """The launcher, the sweeper and the callbacks of a foreign hydra.yaml, which Hydra would build by itself."""
    nodes = {"launcher": EVIL, "sweeper": EVIL, "callbacks": {"x": EVIL}}
    config(foreign, lambda tree: tree["hydra"].update(nodes), "hydra")
    outcome = run_here(["distill", "--rerun", str(foreign), "--cfg", "all"], tmp_path)
    require_clean(outcome, codes=[0])
    assert not canary.exists()
    assert "evil_module" not in outcome.out


def test_a_recorded_path_of_a_student_is_not_followed(
    refused: Callable[..., Outcome], foreign: Path, tmp_path: Path
) -> None:
    """A foreign report.json that has a folder elsewhere scored as the run's student."""
    report(lambda told: told["models"]["student"].update(path=str(tmp_path)))(foreign)
    shutil.rmtree(foreign / "student")
    refused("eval", f"run={foreign}", "artifact=nothing")
    outcome = run_here(["eval", f"run={foreign}", "measure=null"], tmp_path)
    assert str(foreign / "student") in outcome.err.replace("\n", "") or outcome.code == 2


@pytest.mark.faults
def test_a_link_in_an_unfinished_run_is_not_written_through(
    refused: Callable[..., Outcome], foreign: Path, tmp_path: Path, small: list[str]
) -> None:
    """A foreign run that is continued, and whose metrics.jsonl is a link to a file of the user's."""
    (foreign / "report.json").unlink()
    (tmp_path / "profile").write_text("mine")
    (foreign / "metrics.jsonl").unlink()
    (foreign / "metrics.jsonl").symlink_to(tmp_path / "profile")
    options = [
        *small,
        "measure=null",
        "control=false",
        "trainer.max_steps=1",
        "hardware.budget.max_bytes=1e9",
    ]
    outcome = refused("distill", *options, f"hydra.run.dir={foreign}")
    require_words(outcome.err, str(foreign / "metrics.jsonl"), "link", str(tmp_path / "profile"))


@pytest.mark.faults
@pytest.mark.parametrize("case", [0, 5, 22])
def test_a_hostile_run_does_nothing_to_a_process(
    foreign: Path, canary: Path, tmp_path: Path, case: int
) -> None:
    """What holds in the process of a test, and not where a user starts kdcli."""
    edit, commands = RUNS[case]
    edit(foreign)
    fence = Fence(tmp_path, tmp_path / "here")
    (tmp_path / "here").mkdir()
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path / "installed")])
    for command in commands:
        words = [word.replace("RUN", str(foreign)) for word in command]
        outcome = run_process(words, tmp_path / "here", 400, PYTHONPATH=path)
        require_clean(outcome, codes=[2])
        assert PLANTED not in outcome.out + outcome.err
    for words in CONFIGS[case * 6 % len(CONFIGS)], SECRETS[case]:
        words = [word.replace("CANARY", str(canary)) for word in words]
        require_clean(run_process(["distill", *words], tmp_path / "here", 400, PYTHONPATH=path), codes=[2])
    fence.require_untouched()
    assert not canary.exists()
    assert not [path for path in (tmp_path / "here").rglob("*") if not path.is_dir()]


# ---- what goes on working --------------------------------------------------------------------------------


def test_a_run_that_is_trusted_is_repeated(foreign: Path, canary: Path, tmp_path: Path) -> None:
    """A flag that changes nothing; an own run with a class of one's own that cannot be repeated any more."""
    recorded("loss.soft_label._target_", "evil_module.Evil")(foreign)
    again = ["distill", "--rerun", str(foreign), "--cfg", "job"]
    outcome = run_here(again, tmp_path)
    assert outcome.code == 2
    require_words(outcome.err, "evil_module.Evil", "--trust-run")
    assert not canary.exists()
    require_clean(run_here([*again, "--trust-run"], tmp_path), codes=[0])
    assert canary.exists()


@pytest.mark.parametrize(
    ("edit", "command"),
    [
        (words("hardware._target_=evil_module.Evil"), "export"),
        (recorded("dataset.task", "evil_module.Evil"), "eval"),
    ],
    ids=["export", "eval"],
)
def test_a_run_that_is_trusted_is_scored_and_exported(
    edit: Callable[[Path], None], command: str, foreign: Path, canary: Path, tmp_path: Path
) -> None:
    """A flag that one of the commands takes and does not look at: a colleague's run with a class of its own can be repeated, and not scored."""
    edit(foreign)
    outcome = run_here([command, f"run={foreign}", "--cfg", "job"], tmp_path)
    require_clean(outcome, codes=[2])
    require_words(outcome.err, "evil_module.Evil", "--trust-run")
    assert not canary.exists()
    outcome = run_here([command, f"run={foreign}", "--cfg", "job", "--trust-run"], tmp_path)
    assert "--trust-run" not in outcome.err
    assert canary.exists()


def test_a_directory_of_a_class_name_names_no_class(foreign: Path, canary: Path, tmp_path: Path) -> None:
    """A run that was sent in a folder called like the class that it wants to have run, or a harmless word that contains the name."""
    recorded("dataset.task", "evil_module.Evil")(foreign)
    recorded("loss.soft_label._target_", "evil_module.Evil")(foreign)
    named = foreign.rename(foreign.with_name("evil_module.Evil"))
    for words in (
        ["eval", f"run={named}", "--cfg", "job"],
        ["eval", str(named)],
        ["distill", "--rerun", str(named), "--out", str(tmp_path / "x" / "evil_module.Evil")],
        ["distill", "--rerun", str(named), "hydra.run.dir=evil_module.Evil", "dataset.path=evil_module.Evil"],
    ):
        outcome = run_here(words, tmp_path)
        require_clean(outcome, codes=[2])
        require_words(outcome.err, "evil_module.Evil", "--trust-run")
    assert not canary.exists()


@pytest.mark.parametrize("by", ["typed", "folder", "replaced"])
def test_a_class_that_the_command_line_names_needs_no_flag(
    foreign: Path, canary: Path, tmp_path: Path, by: str
) -> None:
    """One's own loss in one's own folder, for which each repetition asks for trust."""
    recorded("loss.soft_label._target_", "evil_module.Evil")(foreign)
    own = tmp_path / "own" / "loss"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("soft_label:\n  _target_: evil_module.Evil\n")
    more = {
        "typed": ["loss.soft_label._target_=evil_module.Evil"],
        "folder": ["--config-dir", str(own.parent)],
        "replaced": ["loss.soft_label._target_=kdcli.losses.reverse_kl.ReverseKL"],
    }[by]
    require_clean(run_here(["distill", "--rerun", str(foreign), "--cfg", "job", *more], tmp_path), codes=[0])
    assert canary.exists() == (by != "replaced")


def test_ordinary_commands_on_an_own_run(finished: Path, canary: Path, tmp_path: Path) -> None:
    """A check of foreign runs that stops what everybody does with their own."""
    for command in (
        ["distill", "--rerun", str(finished), "seed=1", "--cfg", "job"],
        ["export", f"run={finished}", "--cfg", "job"],
        ["eval", f"run={finished}", "--cfg", "job"],
        ["distill", "student=composed", "student.initializers=[layers,vocabulary]", "--cfg", "job"],
        ["distill", "experiment=translation", "--cfg", "job"],
        ["distill", "dataset=csv", "dataset.path=/data/sk-en-corpus-2024.csv", "--cfg", "job"],
    ):
        require_clean(run_here(command, tmp_path), codes=[0])


@pytest.mark.parametrize("name", ["typer.py", "yaml.py", "kdcli_extra.py"])
def test_no_module_of_the_working_directory_is_imported(tmp_path: Path, canary: Path, name: str) -> None:
    """`python -m kdcli` in a folder that somebody else wrote into imports what lies there."""
    (tmp_path / name).write_text(f"open({str(canary)!r}, 'w')\n")
    require_clean(run_process(["list", "hardware"], tmp_path), codes=[0])
    assert not canary.exists()


@pytest.mark.faults
def test_the_measuring_process_imports_no_module_of_the_working_directory(
    small: list[str], tmp_path: Path, canary: Path
) -> None:
    """`--config-dir` puts the working directory before numpy in the process that measures a model."""
    for name in ("numpy.py", "torch.py", "json.py", "transformers.py", "sitecustomize.py"):
        (tmp_path / name).write_text(f"open({str(canary)!r}, 'w')\n")
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "my_loss.py").write_text(
        "from kdcli.losses.forward_kl import ForwardKL\nclass Mine(ForwardKL): ...\n"
    )
    (tmp_path / "conf" / "loss" / "mine.yaml").write_text(
        "soft_label:\n  _target_: my_loss.Mine\n  temperature: 2.0\n"
    )
    options = [*small, "loss=mine", "control=false", "trainer.max_steps=1", "hydra.run.dir=run"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    outcome = run_process(["distill", *options, "--config-dir", "conf"], tmp_path, 400, **environment)
    require_clean(outcome, codes=[0])
    assert (
        json.loads((tmp_path / "run" / "report.json").read_text())["models"]["student"]["latency_ms"]["p50"]
        > 0
    )
    assert not canary.exists()


def test_a_module_that_exits_when_it_is_imported_is_named(reviews: Path, tmp_path: Path) -> None:
    """`sys.exit(0)` of a script that is named as a class ends a run as if it had been done."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "leaving.py").write_text("import sys\n\nsys.exit(0)\n")
    words = ["distill", "dataset=csv", f"dataset.path={reviews}", "--config-dir=own"]
    outcome = run_here([*words, "loss.soft_label._target_=leaving.Loss"], tmp_path)
    require_clean(outcome, codes=[2])
    require_words(outcome.err, "leaving.Loss", "SystemExit")
