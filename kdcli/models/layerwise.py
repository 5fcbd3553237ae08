"""Runs a model while only one of its layers is in memory.

The model's own forward pass runs once for each layer: the layers before it return their input, and the pass stops after the layer. The
architecture therefore computes the attention masks, the positions and the other arguments of the layer itself. The layers of an encoder-decoder
are those of its encoder, then those of its decoder; the embeddings of the targets come between the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.device import default_device
from kdcli.errors import KDError, ModelError
from kdcli.memory import trim
from kdcli.models.checkpoint import Checkpoint, load_config
from kdcli.models.dtypes import TORCH
from kdcli.models.weights import StoredTensor, stored_tensors
from kdcli.signals import FINE, SLICE, HiddenSignal, Signal
from kdcli.tasks.base import Task

Part = int | Literal["embedding", "head", "rest"]
"""A part of the weights: a layer (its index), the input embeddings, the output head of a language model, or all the rest."""
Forward = Callable[..., Any]
PROBED = 64
"""The number of rows of the output head that are read to check it."""
REMEDY = "use teacher.placement=resident on a machine with more memory, or a teacher of another architecture"


class _StoppedError(Exception):
    """Stops a forward pass after the layer that is computed."""


class Layerwise:
    """A checkpoint whose weights are loaded in parts.

    Args:
        source: the checkpoint, complete for the task.
        bf16: whether it computes in bf16 by autocast.
        order: the index of each label among the model's own labels.

    Raises:
        ModelError: the model has no list of layers, or its weights are quantized.
    """

    def __init__(self, source: Checkpoint, task: Task, bf16: bool, order: Sequence[int] | None = None):
        self.name, self.task, self.bf16, self.order = source.name, task, bf16, order
        self.dtype = TORCH[source.dtype]
        config = load_config(source)
        if source.code or getattr(config, "quantization_config", None) is not None:
            kind = "has code of its own" if source.code else "is quantized"
            raise ModelError(f"{self.name} {kind}, and cannot be read layer by layer; {REMEDY}")
        config.dtype, config.use_cache = self.dtype, False
        with init_empty_weights(include_buffers=False):
            self.model: PreTrainedModel = task.create(config)
        self.model.eval().requires_grad_(False)
        self.device = default_device()
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self.device)
        self.stacks = find_layers(self.model, self.name)
        self.layers = [layer for stack in self.stacks.values() for layer in stack]
        self.encoder_layers = len(next(iter(self.stacks.values()))) if len(self.stacks) > 1 else 0
        """The number of layers of an encoder-decoder's encoder, whose output each layer of the decoder reads; 0: it is none."""
        self.steps: list[Part] = ["embedding", *range(len(self.layers))]
        """The part of each step of a pass: the embeddings, then each layer; of an encoder-decoder once more the embeddings, of the targets."""
        if self.encoder_layers:
            self.steps.insert(self.encoder_layers + 1, "embedding")
        self.embeddings = find_embeddings(self.model)
        self.head: nn.Module | None = self.model.get_output_embeddings()
        self.tensors = self._parts(stored_tensors(source.path, self.name))
        self.tuple_sizes: list[int | None] = [None] * len(self.stacks)
        """The size of the tuple that the layers of a stack return; None: they return a tensor. Set by `check`."""
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.bytes_read = 0

    # ---- weights ---------------------------------------------------------------------------------------

    def _parts(self, stored: Mapping[str, StoredTensor]) -> dict[Part, dict[str, StoredTensor]]:
        """Return the stored tensors of each part, under the names that the architecture has for them."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        mapping = get_model_conversion_mapping(self.model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        own, prefix = self.model.state_dict(), self.model.base_model_prefix
        self._head_name = next(
            (name for name, module in self.model.named_modules() if module is self.head), None
        )
        self.converted: set[Part] = set()
        present: set[str] = set()
        parts: dict[Part, dict[str, StoredTensor]] = {"rest": {}, "embedding": {}, "head": {}}
        parts |= {index: {} for index in range(len(self.layers))}
        for key, tensor in stored.items():
            name, pattern = rename_source_key(key, renamings, converters, prefix, own)
            if name not in own and key in own:
                name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=own)
            if name in own:
                part = self._part_of(name)
                parts[part][key] = tensor
                present.add(name)
                if pattern is not None:
                    self.converted.add(part)
        self.missing = own.keys() - present
        stored_embeddings = present & {f"{name}.weight" for name in self.embeddings}
        self._tied = {
            "embedding": not stored_embeddings,
            "head": self._head_name is not None and f"{self._head_name}.weight" not in present,
        }
        return parts

    def _part_of(self, name: str) -> Part:
        first = 0
        for prefix, stack in self.stacks.items():
            if name.startswith(f"{prefix}."):
                return first + int(name.removeprefix(f"{prefix}.").partition(".")[0])
            first += len(stack)
        if any(name.startswith(f"{each}.") for each in self.embeddings):
            return "embedding"
        return "head" if self._head_name and name.startswith(f"{self._head_name}.") else "rest"

    def nbytes(self, part: Part) -> int:
        """Return the memory that a part takes while it is loaded: its weights in their dtype, and what is converted."""
        total = 0
        for tensor in self.tensors[self._source(part)].values():
            size = tensor.nbytes // tensor.dtype.itemsize * self.dtype.itemsize
            total += size * (2 if part in self.converted else 1)
            total += 0 if tensor.dtype == self.dtype else tensor.nbytes
        return total

    def _source(self, part: Part) -> Part:
        """Return the part whose stored tensors are a part's weights: of tied embeddings one is stored."""
        if part == "head" and self._tied["head"]:
            return "embedding"
        return "head" if part == "embedding" and self._tied["embedding"] else part

    @property
    def total_bytes(self) -> int:
        """The bytes of all stored weights."""
        return sum(tensor.nbytes for part in self.tensors.values() for tensor in part.values())

    def load(self, part: Part) -> None:
        """Read the weights of a part."""
        self._read(part)
        source = self._source(part)
        if source != part:
            self._read(source)
        if part == "embedding":
            for name, module in self.embeddings.items():
                module.weight = self._stored_weight(name)
        elif source != part:
            assert self.head is not None
            self.head.weight = self._stored_weight(str(self._head_name))
        elif part == "rest":
            self.model.tie_weights(missing_keys=set(self.missing), recompute_mapping=False)
            self._initialise_constants()
        if source != part:
            self.unload(source)

    def _initialise_constants(self) -> None:
        """Initialise the weights that no checkpoint of the architecture has, because they are not learned (sinusoidal positions)."""
        for key in self.missing - self.model.all_tied_weights_keys.keys():
            path, _, name = key.rpartition(".")
            module = self.model.get_submodule(path)
            if name in module._parameters and self._part_of(key) == "rest":
                empty = torch.empty_like(module.get_parameter(name), device=self.device)
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)
                self.model._init_weights(module)

    def _stored_weight(self, name: str) -> nn.Parameter:
        """Return the weight of a module, or if the checkpoint has no tensor of it the one that it is tied to."""
        ties, own = self.model.all_tied_weights_keys, f"{name}.weight"
        if own not in self.missing:
            return self.model.get_parameter(own)
        group = {own, ties.get(own, own)}
        group |= {key for pair in ties.items() if group & set(pair) for key in pair}
        stored = next((key for key in sorted(group) if key not in self.missing), own)
        return self.model.get_parameter(stored)

    def _read(self, part: Part) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        tensors: dict[str, Any] = dict(self.tensors[part])
        if not tensors:
            return
        mapping: Any = get_model_conversion_mapping(self.model)
        options = LoadStateDictConfig(
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            weight_mapping=mapping,
            device_map={"": str(self.device)},
        )
        convert_and_load_state_dict_in_model(model=self.model, state_dict=tensors, load_config=options)
        self.model.requires_grad_(False)
        self.bytes_read += sum(tensor.nbytes for tensor in self.tensors[part].values())

    def unload(self, part: Part) -> None:
        """Free the weights of a part."""
        if isinstance(part, int):
            _unload(self.layers[part])
        elif part == "head":
            _unload(self.head)
        else:
            for module in self.embeddings.values():
                _unload(module)
        trim()

    def work_bytes(self, rows: int, length: int) -> int:
        """Return an upper estimate of the memory of a layer's forward pass beyond its weights: the outputs of all its linear maps, the hidden
        states before and after it, and attention weights where they are computed whole."""
        config = self.model.config.get_text_config()
        hidden = self.hidden_size
        layer = max(self.layers, key=lambda each: sum(weight.numel() for weight in each.parameters()))
        experts = next(
            (
                count
                for key in ("num_experts_per_tok", "moe_topk", "moe_k")
                if (count := getattr(config, key, None))
            ),
            1,
        )
        width = 0
        for module in layer.modules():
            width += int(getattr(module, "out_features", getattr(module, "nf", 0)))  # nf: GPT-2's Conv1D
            own = [weight.shape for weight in module.parameters(recurse=False) if weight.ndim == 3]
            width += sum(experts * max(shape[1:]) for shape in own)
        attention = 0
        if self.model.config._attn_implementation == "eager":
            attention = 3 * 4 * rows * (config.num_attention_heads or 1) * length**2
        size = 4 if self.bf16 else self.dtype.itemsize
        return rows * length * (width + 3 * hidden) * size + rows * length**2 * size + attention

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def _classes(self) -> int:
        """The number of tokens that the output head of a language model knows."""
        return int(self.model.get_parameter(f"{self._head_name}.weight").shape[0])

    def peak_bytes(self, rows: int, length: int) -> dict[str, int]:
        """Return the memory that each step of a pass takes: the embeddings, the largest layer, the head."""
        rest, block = self.nbytes("rest"), rows * length * self.hidden_size * self.dtype.itemsize
        largest = max(map(self.nbytes, range(len(self.layers))))
        embedding = self.nbytes("embedding")
        checked = self.nbytes(self.encoder_layers) if self.encoder_layers else 0  # both stacks at once
        head = 0
        if self.task.vocabulary and self.head is not None:
            classes, head = self._classes, self.nbytes("head")
            copied = int(min(1.0, SLICE / classes) * head)  # by the math library
            head += copied + 3 * 4 * min(FINE, rows * length * classes)
        return {
            "the embeddings": rest + self.nbytes(max(0, self.encoder_layers - 1)) + embedding + 3 * block,
            "a layer": rest + largest + checked + self.work_bytes(rows, length),
            "the head": rest + head + 2 * block,
        }

    # ---- forward passes --------------------------------------------------------------------------------

    def embed(self, features: Sequence[dict[str, Any]]) -> Tensor:
        """Return the input of the first layer for a batch, (B, L, H). The embeddings must be loaded."""
        return self._captured(features, 0, {self.layers[0]: _first})

    def embed_targets(self, features: Sequence[dict[str, Any]]) -> Tensor:
        """Return the input of the decoder's first layer, (B, T, H), of an encoder-decoder. The embeddings must be loaded."""
        return self._captured(features, self.encoder_layers, {self.layers[self.encoder_layers]: _first})

    def layer(
        self,
        index: int,
        features: Sequence[dict[str, Any]],
        states: Tensor,
        encoder_states: Tensor | None = None,
    ) -> Tensor:
        """Return the output of a layer for its input, (B, L, H). The layer must be loaded.

        Args:
            encoder_states: the output of the encoder's last layer, (B, S, H), for a layer of the decoder that reads it.
        """
        layer = self.layers[index]
        own = layer.forward

        def run(*args: Any, **kwargs: Any) -> Tensor:
            args, kwargs = _with_first(args, kwargs, states.to(self.device))
            return self._states(own(*args, **kwargs), index)

        given: dict[nn.Module, Forward] = {}
        if encoder_states is not None:
            last = self.encoder_layers - 1
            given[self.layers[last]] = lambda *_, **__: self._shaped(encoder_states.to(self.device), last)
        return self._captured(features, index, {**given, layer: run, **self._each_embedding(self._blank)})

    def _captured(
        self, features: Sequence[dict[str, Any]], index: int, forwards: Mapping[nn.Module, Forward]
    ) -> Tensor:
        """Return what the forward function of a layer returns, after which the pass is stopped."""
        captured: list[Tensor] = []

        def stop(*args: Any, **kwargs: Any) -> None:
            captured.append(forwards[self.layers[index]](*args, **kwargs))
            raise _StoppedError

        self._run(features, {**self._passed(0, index), **forwards, self.layers[index]: stop})
        return captured[0]

    def outputs(
        self, features: Sequence[dict[str, Any]], states: Tensor
    ) -> tuple[Signal | HiddenSignal, list[Tensor]]:
        """Return the outputs for the output of the last layer, as `Task.forward_rows`. The head must be loaded."""
        last = len(self.layers) - 1
        passed = self._passed(0, last)
        passed[self.layers[last]] = lambda *_, **__: self._shaped(states.to(self.device), last)
        result = self._run(features, {**passed, **self._each_embedding(self._blank)})
        assert result is not None
        return result

    def _run(self, features: Sequence[dict[str, Any]], forwards: Mapping[nn.Module, Forward]) -> Any:
        with _replaced(forwards), contextlib.suppress(_StoppedError):
            return self.task.forward_rows(self.model, self.tokenizer, features, self.bf16, self.order)  # type: ignore[arg-type]

    def _blank(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(*ids.shape, self._width, dtype=self.dtype, device=self.device)

    @property
    def _width(self) -> int:
        weight: Any = next(iter(self.embeddings.values())).weight
        return int(weight.shape[-1])

    def _each_embedding(self, forward: Forward) -> dict[nn.Module, Forward]:
        return dict.fromkeys(self.embeddings.values(), forward)

    def _passed(self, first: int, last: int) -> dict[nn.Module, Forward]:
        """Return forward functions of the layers from `first` to the one before `last` that return their input."""

        def passing(index: int) -> Forward:
            return lambda *args, **kwargs: self._shaped(_first(*args, **kwargs), index)

        return {self.layers[index]: passing(index) for index in range(first, last)}

    def _stack(self, index: int) -> int:
        return int(0 < self.encoder_layers <= index)

    def _shaped(self, states: Tensor, index: int) -> Any:
        size = self.tuple_sizes[self._stack(index)]
        return states if size is None else (states, *[None] * (size - 1))

    def _states(self, output: Any, index: int) -> Tensor:
        size = len(output) if isinstance(output, tuple) else None
        if size != self.tuple_sizes[self._stack(index)]:
            raise self._refusal("its layers do not all return the same kind of output")
        return output if size is None else output[0]

    # ---- checks ----------------------------------------------------------------------------------------

    def check(self, features: Sequence[dict[str, Any]]) -> None:
        """Refuse an architecture that does more than apply its layers one after the other. `rest` and the first layer must be loaded; that of the
        decoder is loaded here for the time of the check.

        Args:
            features: a few rows.

        Raises:
            ModelError
        """
        try:
            if self.encoder_layers:
                self.load(self.encoder_layers)
            first, second = (self._trace(features, seed) for seed in (0, 1))
            if not all(_same(*pair) for pair in zip(first, second, strict=True)):
                raise self._refusal("its layers are called with results of the embeddings or of other layers")
            if self.task.vocabulary and self.head is not None:
                self._check_head()
        except KDError:
            raise
        except Exception as error:  # an architecture may raise anything if its layers do not compute
            raise self._refusal(
                f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            ) from error
        finally:
            if self.encoder_layers:
                self.unload(self.encoder_layers)

    def _trace(self, features: Sequence[dict[str, Any]], seed: int) -> list[Any]:
        """Return the arguments of each layer besides the hidden states, from a pass in which the first layer of each stack alone computes. The decoder
        reads an encoder's output that does not depend on the seed."""
        begins = {0, self.encoder_layers}
        own = {index: self.layers[index].forward for index in begins}
        calls: list[Any] = []
        last: list[Any] = [None]

        def record(index: int) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                states = _first(*args, **kwargs)
                if index != len(calls) or (index not in begins and states is not last[0]):
                    raise self._refusal("it computes between its layers, or runs them in another order")
                calls.append(
                    (args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"})
                )
                output = states
                if index in begins:
                    output = own[index](*args, **kwargs)
                    more = output[1:] if isinstance(output, tuple) else ()
                    if any(each is not None for each in more):
                        raise self._refusal(
                            "its first layer returns more than hidden states, which the others may use"
                        )
                    self.tuple_sizes[self._stack(index)] = (
                        len(more) + 1 if isinstance(output, tuple) else None
                    )
                    output = self._states(output, index)
                if index == self.encoder_layers - 1:
                    output = torch.ones_like(output)
                last[0] = output
                if index == len(self.layers) - 1:
                    raise _StoppedError
                return self._shaped(output, index)

            return forward

        forwards = {layer: record(index) for index, layer in enumerate(self.layers)}
        self._run(features, {**forwards, **self._each_embedding(self._random(seed))})
        if len(calls) != len(self.layers):
            raise self._refusal("it does not run all of its layers")
        return calls

    def _random(self, seed: int) -> Forward:
        """Return embeddings that depend on the token alone."""

        def forward(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            rows = {}
            for token in set(ids.flatten().tolist()):
                generator = torch.Generator().manual_seed(1 + token + 2**32 * seed)
                rows[token] = torch.randn(self._width, generator=generator)
            table = torch.stack([rows[token] for token in ids.flatten().tolist()])
            return table.reshape(*ids.shape, -1).to(self.device, self.dtype)

        return forward

    def _check_head(self) -> None:
        """Run what the task checks of a loaded model, with the first layer and some rows of the head."""
        assert self.head is not None
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        size = self._classes
        self.head.weight = nn.Parameter(self._head_rows(), requires_grad=False)
        if bias is not None:
            self.head.bias = nn.Parameter(
                torch.zeros(PROBED, dtype=self.dtype, device=self.device), requires_grad=False
            )
        buffers = self.model._buffers
        biases = {name: each for name, each in buffers.items() if each is not None and each.shape[-1] == size}
        buffers |= {name: each[..., :PROBED] for name, each in biases.items()}  # of the logits (Marian, BART)
        passed = self._passed(1, len(self.layers))
        try:
            with _replaced({**passed, **self._each_embedding(self._random(0))}):
                self.task.check_loaded(self.model)
        finally:
            self.head.weight = weight
            buffers |= biases
            if bias is not None:
                self.head.bias = bias

    def _head_rows(self) -> Tensor:
        """Return the first rows of the output head."""
        part = self._source("head")
        tensor = max(self.tensors[part].values(), key=lambda each: each.nbytes)
        rows = tensor.read(PROBED).to(self.device, self.dtype)
        self.bytes_read += rows.numel() * tensor.dtype.itemsize
        return rows

    def _refusal(self, reason: str) -> ModelError:
        return ModelError(
            f"{self.name} ({type(self.model).__name__}) cannot be run layer by layer: {reason}; {REMEDY}"
        )


def find_layers(model: PreTrainedModel, name: str) -> dict[str, nn.ModuleList]:
    """Return the list of a model's layers by its name in the model; of an encoder-decoder those of the encoder and of the decoder.

    Raises:
        ModelError: it has none, or several; or the first layer computes for the others.
    """
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        parts: dict[str, nn.Module] = {
            path: module
            for path, module in model.named_modules()
            if module in (model.get_encoder(), model.get_decoder())
        }
    else:
        parts = {"": model}
    stacks: dict[str, nn.ModuleList] = {}
    for path, part in parts.items():
        lists = [
            (f"{path}.{inner}".lstrip("."), module)
            for inner, module in part.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) in _layer_counts(part)
        ]
        outer = [
            (path, module)
            for path, module in lists
            if not any(path.startswith(f"{other}.") for other, _ in lists)
        ]
        if len(outer) != 1 or len(set(map(id, outer[0][1]))) != len(outer[0][1]):
            raise ModelError(
                f"{name} ({kind}) has no list of its layers, and cannot be run layer by layer; {REMEDY}"
            )
        stacks |= dict(outer)
    for stack in stacks.values():
        first, *others = (set(dict(layer.named_parameters())) for layer in stack)
        if model.config.is_encoder_decoder and others and first - set().union(*others):
            raise ModelError(
                f"{name} ({kind}) computes in its first layers what the others use, and cannot be run layer by layer; {REMEDY}"
            )
    return stacks


def find_embeddings(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the input embeddings of a model by their names: of an encoder-decoder those of both sides, and those that they are tied to."""
    parts = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model]
    own = [part.get_input_embeddings() for part in parts]
    modules = dict(model.named_modules(remove_duplicate=False))
    embeddings = {name: module for name, module in modules.items() if any(module is each for each in own)}
    for target, source in model.all_tied_weights_keys.items():
        name = source.removesuffix(".weight")
        if target.removesuffix(".weight") in embeddings and isinstance(modules.get(name), nn.Embedding):
            embeddings[name] = modules[name]
    return embeddings


def _layer_counts(part: nn.Module) -> tuple[int | None, ...]:
    """Return the numbers of layers that the config has for a model, or for a side of an encoder-decoder."""
    config = part.config.get_text_config() if isinstance(part, PreTrainedModel) else None
    return tuple(
        getattr(config, name, None) for name in ("num_hidden_layers", "encoder_layers", "decoder_layers")
    )


def _unload(module: nn.Module | None) -> None:
    for part in () if module is None else module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.device.type != "meta":
                empty = torch.empty_like(weight, device="meta")
                part._parameters[name] = nn.Parameter(empty, requires_grad=False)


def _first(*args: Any, **kwargs: Any) -> Tensor:
    """Return the hidden states among the arguments of a layer."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _with_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], states: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a layer with other hidden states."""
    return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})


def _same(one: Any, other: Any) -> bool:
    """Return whether the arguments of two calls are equal. Objects of other kinds (caches) are not compared."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other)


@contextlib.contextmanager
def _replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Replace the forward functions of modules until the block ends."""
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)
