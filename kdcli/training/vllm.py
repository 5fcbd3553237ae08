"""Generates the student's completions with vLLM (rollout.engine=vllm), which gets the student's weights before each round of generation."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli import processes
from kdcli.config.rollout import Rollout
from kdcli.device import has_gpu
from kdcli.distributed import wait_for_everyone
from kdcli.errors import ConfigError, KDError, bounded
from kdcli.generation import ends_of, max_prompt_tokens
from kdcli.models.vocabulary import save_tokenizer
from kdcli.training.job import TrainJob

NAME = "student"
"""How the server calls the model."""
START = 900.0
"""The most seconds until a server has started."""
STOP = 20.0
"""The seconds that a server has to end."""
POLL = 0.5
"""Seconds between two looks at a server that starts."""
REQUESTS = 256
"""Prompts that wait in the server at the same time."""
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""The most nats by which the log-probabilities of the tokens of a prompt, computed here and by the server, may differ on average."""
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of the processes that train, which are not the server's."""


def executable() -> str:
    """Return the path of the command `vllm`: that of this environment, or else the first on the PATH.

    Raises:
        ConfigError: there is none.
    """
    own = Path(sys.executable).with_name("vllm")
    if path := str(own) if own.is_file() else shutil.which("vllm"):
        return path
    raise ConfigError(
        "rollout.engine = vllm: there is no command vllm on the PATH; install vLLM in an environment of its own (python -m venv vllm && "
        "vllm/bin/pip install vllm: it needs its own version of torch) and put vllm/bin on the PATH, or give rollout.engine=transformers"
    )


def require_one_machine() -> None:
    """Refuse processes on several machines: all of them use the server's socket, which is a file.

    Raises:
        ConfigError
    """
    state = PartialState()
    hosts = set(gather_object([socket.gethostname()])) if state.num_processes > 1 else {""}
    if len(hosts) > 1:
        raise ConfigError(
            f"rollout.engine = vllm: the {state.num_processes} processes run on {len(hosts)} machines, and the server is reached from its own machine "
            "only; start all processes on one machine, or give rollout.engine=transformers"
        )


class VLLM:
    """A vLLM server with the weights of the model that is trained.

    It listens on a Unix socket in a folder that other users of the machine cannot enter: whoever reaches a server that takes new weights can
    replace them, and can read files.

    Args:
        address: the path of its socket.
        folder: where it reads the weights.
        dtype: in which it computes.
    """

    def __init__(self, address: str, folder: Path, dtype: torch.dtype):
        self.address, self.folder, self.dtype = address, folder, dtype
        self.step: int | None = None
        """The optimizer step whose weights it has; None: it has not got any."""
        self._verified = False

    def update(self, student: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
        """Hand over new weights.

        Args:
            weights: by their names in the student.

        Raises:
            KDError: the server does not take them.
        """
        _save(student, weights, self.folder, self.dtype)
        request = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        self._post("/collective_rpc", request)
        self._post("/reset_prefix_cache", {})  # it holds keys and values of the weights before

    @torch.no_grad()
    def _verify(self, student: PreTrainedModel, prompt: Sequence[int]) -> None:
        """Compare the log-probabilities of a prompt's tokens with the student's own, once: the server began with other weights, so that those
        that it has not replaced are found.

        Raises:
            KDError: they differ.
        """
        body = {"prompt": [*prompt], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        entries = self._complete(body)["prompt_logprobs"]
        served = [entry[str(token)]["logprob"] for token, entry in zip(prompt[1:], entries[1:], strict=True)]
        was_training = student.training
        student.eval()
        logits = student(input_ids=torch.tensor([[*prompt]], device=student.device)).logits[0, :-1].float()
        student.train(was_training)
        own = logits.log_softmax(-1).cpu().gather(-1, torch.tensor([prompt[1:]]).T)[:, 0]
        difference = float((own - torch.tensor(served)).abs().mean())
        if not difference <= TOLERANCE[self.dtype]:
            raise KDError(
                f"rollout.engine = vllm: the server gives the tokens of a prompt other log-probabilities than the student, by {difference:.2g} nats "
                f"on average (at most {TOLERANCE[self.dtype]:g}): this version of vLLM does not replace all weights of a "
                f"{type(student).__name__}, or computes it differently; give rollout.engine=transformers"
            )

    def generate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int,
        temperature: float = 0.0,
        seeds: Sequence[int] = (),
        ends: Sequence[int] = (),
    ) -> list[list[int]]:
        """Generate after each prompt, as `kdcli.generation.generate` does. The server divides the prompts into batches itself, on which the
        last bits of its logits depend: the same seed may give another completion in another run.

        Raises:
            KDError: the server has ended, or does not answer as vLLM does.
        """
        most = max_prompt_tokens(model.config, max_new_tokens)
        prompts = [[*(prompt[-most:] if most else prompt)] for prompt in prompts]
        if not self._verified and (longest := max(prompts, key=len))[1:]:
            self._verify(model, longest)
            self._verified = True
        ends = ends_of(model, tokenizer, ends)
        fixed = {
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "stop_token_ids": ends,
            "ignore_eos": True,  # the ends are all that counts
            "return_token_ids": True,
            "n": 1,
        }
        bodies = [
            {
                "prompt": [*(prompt[-most:] if most else prompt)],
                **fixed,
                **({"seed": seed} if temperature else {}),
            }
            for prompt, seed in zip(prompts, [*seeds] or [0] * len(prompts), strict=True)
        ]
        with ThreadPoolExecutor(max_workers=min(REQUESTS, len(bodies) or 1)) as pool:
            choices = list(pool.map(self._complete, bodies))
        out = []
        for choice in choices:
            tokens = list(choice["token_ids"])
            last = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
            out.append(tokens[: last + 1])
        return out

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the only choice of a completion, which has the fields that were requested."""
        answer = self._post("/v1/completions", {"model": NAME, **body})
        try:
            [choice] = answer["choices"]
            if not isinstance(choice["prompt_logprobs" if "prompt_logprobs" in body else "token_ids"], list):
                raise TypeError("no list")
        except (KeyError, TypeError, ValueError) as error:
            raise KDError(
                f"rollout.engine = vllm: the server's answer is not that of vLLM ({type(error).__name__}: {error}): {bounded(str(answer))}; "
                "install a newer vLLM, or give rollout.engine=transformers"
            ) from None
        return dict(choice)

    def _post(self, page: str, body: dict[str, Any]) -> Any:
        """Send a request; returns the JSON of its answer."""
        try:
            status, data = _request(self.address, "POST", page, body)
        except (OSError, http.client.HTTPException) as error:
            raise KDError(
                f"rollout.engine = vllm: the server has ended ({type(error).__name__}: {error}); start the same command again to continue from the last "
                "checkpoint"
            ) from None
        if status != http.HTTPStatus.OK:
            raise KDError(
                f"rollout.engine = vllm: the server answers {page} with {status}: {bounded(data.decode(errors='replace'))}; install a newer vLLM, or "
                "give rollout.engine=transformers"
            )
        try:
            return json.loads(data)
        except ValueError:
            raise KDError(
                f"rollout.engine = vllm: the server's answer to {page} is no JSON: {bounded(data.decode(errors='replace'))}"
            ) from None


@contextlib.contextmanager
def generation_engine(job: TrainJob, dtype: torch.dtype) -> Iterator[VLLM | None]:
    """Have the main process start a server if `rollout.engine` asks for one, and end it with the block. All processes use it.

    Args:
        dtype: in which it computes.

    Raises:
        ConfigError: there is no vLLM.
        KDError: it does not start.
    """
    if job.rollout is None or job.rollout.engine != "vllm":
        yield None
        return
    state, folder = PartialState(), job.folder / "vllm"
    with contextlib.ExitStack() as stack:
        shared = [""]
        if state.is_main_process:
            shared = [stack.enter_context(_serving(job, job.rollout, folder, dtype))]
        wait_for_everyone(state)
        broadcast_object_list(shared)
        yield VLLM(shared[0], folder, dtype)


@contextlib.contextmanager
def _serving(job: TrainJob, rollout: Rollout, folder: Path, dtype: torch.dtype) -> Iterator[str]:
    """Run a server, which begins with other weights than the student's; yields the path of its socket."""
    student, log = job.distiller.student, folder / "vllm.log"
    _save(
        student, {name: -2 * weight.flip(0) for name, weight in student.state_dict().items()}, folder, dtype
    )
    save_tokenizer(job.tokenizer, folder)
    with tempfile.TemporaryDirectory(prefix="kdcli-") as private, log.open("wb") as stream:
        address = f"{private}/socket"
        command = [executable(), "serve", str(folder), "--uds", address, "--served-model-name", NAME]
        command += ["--max-model-len", str(job.max_length + rollout.max_new_tokens)]
        command += ["--dtype", str(dtype).removeprefix("torch."), "--generation-config", "vllm"]
        command += (
            ["--gpu-memory-utilization", str(rollout.gpu_memory_fraction)]
            if has_gpu()
            else ["--enforce-eager"]
        )
        process = subprocess.Popen(
            processes.bound(command, signal.SIGTERM), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=_environment(),
            start_new_session=True,  # Ctrl-C is for the training, which ends after its step
        )  # fmt: skip
        try:
            _wait(process, address, log)
            yield address
        finally:
            _end(process)


def _environment() -> dict[str, str]:
    """Return the variables of a server: it takes new weights, loads nothing from the hub, and is not one of the processes that train."""
    own = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    on_cpu = {} if has_gpu() else {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return on_cpu | own | {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1"}


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until the server answers."""
    until = time.monotonic() + START
    while True:
        processes.raise_if_interrupted()
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _request(address, "GET", "/health")[0] == http.HTTPStatus.OK:
                return
        if process.poll() is not None or time.monotonic() > until:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            errors = [line for line in lines if "Error" in line] or lines or ["it printed nothing"]
            raise KDError(
                f"rollout.engine = vllm: vLLM does not start with the student: {bounded(errors[-1].strip())} ({log} has all it printed); give "
                "rollout.engine=transformers, or another rollout.gpu_memory_fraction"
            )
        time.sleep(POLL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and the processes that it has started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _request(address: str, method: str, page: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Send a request to a Unix socket; returns the status and the content of the answer."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    with contextlib.closing(connection):
        connection.sock.connect(address)
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, page, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()


def _save(
    student: PreTrainedModel, weights: Mapping[str, torch.Tensor], folder: Path, dtype: torch.dtype
) -> None:
    """Write the student with the given weights for the server, in its dtype.

    vLLM's kernels for a CPU keep a copy of the output embeddings, which only weights of their own replace: there, tied ones are written twice.
    """
    copies = {
        name: weight.detach().to("cpu", dtype if weight.is_floating_point() else None, copy=True).contiguous()
        for name, weight in weights.items()
    }
    student.save_pretrained(folder, state_dict=copies)
    config = copy.deepcopy(student.config)
    config.dtype = dtype
    if not has_gpu():
        config.tie_word_embeddings = False
    config.save_pretrained(folder)
