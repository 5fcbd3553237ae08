"""Prunes the teacher by importance (structured pruning)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from kdcli.config.types import Depth, Rows, Width
from kdcli.data.dataset import with_gold
from kdcli.device import to_default_device
from kdcli.errors import ConfigError
from kdcli.models.checkpoint import Checkpoint, max_input_tokens
from kdcli.signals import HiddenSignal, chunks
from kdcli.students.pruning.anatomy import Anatomy, Group, carve
from kdcli.students.pruning.base import PruningInitializer
from kdcli.students.pruning.families import Stack
from kdcli.tasks.base import Task
from kdcli.tasks.rows import IGNORE

MOST_TOKENS = 2048
"""The maximum number of tokens of a calibration row."""
EXPERTS_MULTIPLE = 8
"""Widths of experts are multiples of it: 16 bytes in half precision, which `torch.nn.functional.grouped_mm` needs."""
INNER = ("heads", "cross", "ffn", "pooled")
"""Units that are scored by the input of the projection after them."""
Scores = dict[Group, Tensor]


class Pruned(PruningInitializer):
    """Removes the least important layers, heads, channels and units of the teacher in one step
    (Minitron, Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679), or of the checkpoint of `student.path`.

    The remaining weights are copied in their order. Each layer has its own selection of heads and feed-forward units; the
    selection of hidden channels is the same in all layers, because they share the residual stream. The width of a head does
    not change. If the heads together are as wide as the hidden states (BERT, GPT-2, BART …), their number follows from
    hidden_size. Otherwise it is free, and heads are removed by full groups that share a key and a value; if both numbers are
    given, within each group.

    The importance of a unit is one of

    - activation: the mean |activation| of a feed-forward unit, the mean norm of a head's output, the mean |output| of a hidden
      channel over all norms, the mean probability that the router gives an expert, all without padding; of a layer 1 - cos(input, output) (Men et al. 2024,
      https://arxiv.org/abs/2403.03853).
    - gradient: the sum of |w · ∂L/∂w| over its weights (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771), with the
      cross-entropy L on gold labels or next tokens.
    - magnitude: the norm of its weights; needs no data.

    Args:
        num_hidden_layers: the number of layers, of both encoder and decoder. For this and all sizes null means unchanged.
        hidden_size: the channels of the hidden states.
        num_attention_heads: the query heads of a layer.
        num_key_value_heads: the key and value heads of a layer, if they are fewer; null: in their present ratio.
        intermediate_size: the feed-forward units of a layer; of each expert in a mixture of experts.
        num_experts: the experts of a layer, in a mixture of experts.
        importance: the score by which units are kept (gradient, activation or magnitude, as above).
        calibration: the number of training rows that the scores are computed on.
    """

    def __init__(
        self,
        num_hidden_layers: Depth | None = None,
        hidden_size: Width | None = None,
        num_attention_heads: Width | None = None,
        num_key_value_heads: Width | None = None,
        intermediate_size: Width | None = None,
        num_experts: Width | None = None,
        importance: Literal["activation", "gradient", "magnitude"] = "activation",
        calibration: Rows = 256,
    ):
        self.requested = {
            "num_hidden_layers": num_hidden_layers,
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
            "intermediate_size": intermediate_size,
            "num_experts": num_experts,
        }
        if not any(self.requested.values()):
            raise ConfigError(
                f"the student is to be pruned, but no size is given: give student."
                f"{', student.'.join(self.requested)}"
            )
        self.importance, self.calibration = importance, calibration

    def cut(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Create a smaller model of the same architecture."""
        anatomy = Anatomy(model)
        sizes = self._sizes(anatomy)
        scores = self._scores(anatomy, tokenizer, task, rows)
        if anatomy.family.first:
            for stack in anatomy.stacks:
                scores[Group("layer", stack.layers)][0] = torch.inf
        layers = [
            top_indices(scores[Group("layer", stack.layers)], sizes[stack.depth]).tolist()
            for stack in anatomy.stacks
        ]
        return carve(anatomy, layers, sizes, select_units(anatomy, sizes, scores)), tokenizer

    def require(self, task: Task, model: PreTrainedModel) -> None:
        """Check that the model can have these sizes."""
        self._sizes(Anatomy(model))

    def skeleton(self, task: Task, teacher: Checkpoint, model: PreTrainedModel) -> PreTrainedModel | None:
        """Return a model of these sizes: which units remain does not change them."""
        anatomy = Anatomy(model)
        sizes = self._sizes(anatomy)
        layers = [list(range(sizes[stack.depth])) for stack in anatomy.stacks]
        selected = select_units(anatomy, sizes, _zeros(anatomy))
        with torch.device("meta"):
            return carve(anatomy, layers, sizes, selected)

    def _sizes(self, anatomy: Anatomy) -> dict[str, int]:
        """Return the sizes of the smaller model by the names of its config.

        Raises:
            ConfigError: the sizes are not possible, or are those of the model.
        """
        config, family, kind = anatomy.config, anatomy.family, anatomy.config.model_type
        hidden = anatomy.units[Group("hidden")]
        grouped = [family.key_value_heads] if family.key_value_heads else []
        present = {
            "num_hidden_layers": {stack.depth: anatomy.depth(stack) for stack in anatomy.stacks},
            "hidden_size": {name: hidden for name in family.hidden if getattr(config, name, None) == hidden},
            "num_attention_heads": {stack.heads: getattr(config, stack.heads) for stack in anatomy.stacks},
            "num_key_value_heads": {name: getattr(config, name) for name in grouped},
            "intermediate_size": {
                stack.feed_forward: anatomy.units[Group("ffn", stack.layers, 0)] for stack in anatomy.stacks
            },
            "num_experts": {name: getattr(config, name) for name in [family.experts] if name},
        }
        before = {name: size for sizes in present.values() for name, size in sizes.items()}
        sizes = dict(before)
        for argument, requested in self.requested.items():
            if requested is None:
                continue
            if not present[argument]:
                raise ConfigError(f"student.{argument} = {requested}: {kind} models have none; leave it null")
            for name, size in present[argument].items():
                if requested > size:
                    raise ConfigError(f"student.{argument} = {requested}: the teacher has {size} ({name})")
                sizes[name] = requested
        if family.head_size is None:
            for stack in anatomy.stacks:
                sizes[stack.heads] = self._heads_that_fill(sizes[family.hidden[0]], stack, anatomy)
        elif grouped:
            self._share_heads(before, sizes, anatomy.stacks[0].heads, grouped[0])
        if family.experts:
            self._check_experts(before, sizes, family.experts, config.num_experts_per_tok)
        if sizes == before:
            raise ConfigError(
                f"nothing is pruned: the teacher has {_listed(before)} already; give a smaller value for at least one"
            )
        return sizes | ({family.head_size: anatomy.head_size(anatomy.stacks[0])} if family.head_size else {})

    def _heads_that_fill(self, hidden: int, stack: Stack, anatomy: Anatomy) -> int:
        """Return the number of heads that together are as wide as the hidden size."""
        size, most = anatomy.head_size(stack), anatomy.units[Group("hidden")]
        heads = self.requested["num_attention_heads"] or hidden // size
        if hidden % size:
            raise ConfigError(
                f"student.hidden_size = {hidden}: the heads of the teacher are {size} wide, and together as wide as its "
                f"hidden states; give a multiple of {size} up to {most}"
            )
        if heads * size != hidden:
            raise ConfigError(
                f"student.num_attention_heads = {heads}, hidden_size = {hidden}: the heads of the teacher are {size} wide, "
                f"and together as wide as its hidden states; {heads} heads need hidden_size = {heads * size}"
            )
        return heads

    def _check_experts(
        self, before: dict[str, int], sizes: dict[str, int], experts: str, per_token: int
    ) -> None:
        """Check that a token has enough experts, that their units can be scored, and that transformers can compute them."""
        if sizes[experts] < per_token:
            raise ConfigError(
                f"student.num_experts = {sizes[experts]}: a token goes through {per_token} experts (num_experts_per_tok); give at least so many"
            )
        if self.requested["intermediate_size"] and self.importance == "activation":
            raise ConfigError(
                "student.intermediate_size: the activations of the units of an expert are not known, since experts are computed together; give "
                "student.importance=gradient or magnitude, or student.num_experts"
            )
        for argument in ("hidden_size", "intermediate_size"):
            size = self.requested[argument]
            if size and size not in before.values() and size % EXPERTS_MULTIPLE:
                raise ConfigError(
                    f"student.{argument} = {size}: experts are computed together, which needs a multiple of {EXPERTS_MULTIPLE}"
                )

    def _share_heads(self, before: dict[str, int], sizes: dict[str, int], heads: str, groups: str) -> None:
        """Set the number of heads or of their groups, if it follows from the other one."""
        ratio = before[heads] // before[groups]
        given = self.requested["num_attention_heads"], self.requested["num_key_value_heads"]
        if given[0] is None:
            sizes[heads] = sizes[groups] * ratio
        elif given[1] is None:
            sizes[groups] = sizes[heads] // ratio
        ratios = [ratio] if None in given else range(1, ratio + 1)
        if sizes[heads] not in [sizes[groups] * count for count in ratios]:
            raise ConfigError(
                f"student.num_attention_heads = {given[0] or 'null'}, num_key_value_heads = {given[1] or 'null'}: "
                f"{ratio} of the teacher's {before[heads]} heads share each of its {before[groups]} keys and values; give a multiple of {ratio} and no "
                f"num_key_value_heads, or both, the first being the second times 1 to {ratio}"
            )

    def _scores(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> Scores:
        """Return the importance of each unit, (units,) fp64, by group; the layers of a stack are a group, too."""
        if self.importance == "magnitude":
            parameters = anatomy.model.named_parameters()
            return by_weights(anatomy, ((name, weight.detach().square()) for name, weight in parameters))
        to_default_device(anatomy.model)
        if self.importance == "gradient":
            return by_gradient(anatomy, self._batches(anatomy.model, tokenizer, task, rows, gold=True), task)
        return by_activation(anatomy, self._batches(anatomy.model, tokenizer, task, rows, gold=False), task)

    def _batches(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        rows: datasets.Dataset,
        gold: bool,
    ) -> Iterator[Batch]:
        """Yield batches of the first rows (gradient: with a gold label) on the model's device."""
        length = min(MOST_TOKENS, max_input_tokens(tokenizer, model.config))
        rows = with_gold(rows) if gold else rows
        if not len(rows):
            raise ConfigError(
                "student.importance = gradient: no training row has a gold label; take activation"
            )
        encoded = task.encode(tokenizer, rows.select(range(min(self.calibration, len(rows)))), length)
        for start in range(0, len(encoded), task.batch):
            part = range(start, min(start + task.batch, len(encoded)))
            batch = task.collate([encoded[row] for row in part], tokenizer)
            batch.pop("rows")
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            labels = inputs.pop("labels")
            positions = torch.arange(inputs["input_ids"].shape[1], device=model.device)
            lengths = torch.from_numpy(encoded.lengths[list(part)]).to(model.device)
            tokens = inputs.get("attention_mask", positions < lengths[:, None]).bool()
            targets = inputs.get("decoder_attention_mask", labels != IGNORE if labels.dim() == 2 else tokens)
            yield Batch(inputs, labels, (tokens, targets.bool()))


@dataclass(frozen=True)
class Batch:
    """A batch for the computation of scores.

    Attributes:
        labels: as returned by the task's collator.
        tokens: the positions that are not padding, bool (B, L), of the first stack and of the decoder of an encoder-decoder model.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    tokens: tuple[Tensor, Tensor]


def by_weights(anatomy: Anatomy, values: Iterable[tuple[str, Tensor]]) -> Scores:
    """Sum values of weights over the units that they belong to.

    Args:
        values: the name of each weight and a tensor of its shape.
    """
    scores = _zeros(anatomy)
    for name, value in values:
        value = value.double()
        for dim, parts in enumerate(anatomy.axes[name]):
            for part in parts:
                scores[part.group] += part.sums(value, dim).cpu()
        if (location := anatomy.locate(name)) and not anatomy.is_shared(name):
            scores[Group("layer", location[0].layers)][location[1]] += value.sum().cpu()
    return scores


def by_gradient(anatomy: Anatomy, batches: Iterable[Batch], task: Task) -> Scores:
    """Sum |w · ∂L/∂w| over each unit's weights and over the batches; L is the sum over a batch's positions."""
    scores = _zeros(anatomy)
    for batch in batches:
        anatomy.model.zero_grad()
        pick, labels = task.positions(batch.labels)
        signal = task.signal(anatomy.model, batch.inputs, pick)
        if isinstance(signal, HiddenSignal):  # the logits over a vocabulary are computed in chunks
            leaf = signal.hidden.detach().requires_grad_()
            for at in chunks(len(labels), signal.classes):
                _cross_entropy(signal.head(leaf[at]), labels[at]).backward()
            signal.hidden.backward(leaf.grad)
        else:
            _cross_entropy(signal.logits, labels).backward()
        parameters = anatomy.model.named_parameters()
        products = (
            (name, (weight.detach() * weight.grad).abs())
            for name, weight in parameters
            if weight.grad is not None
        )
        for group, sums in by_weights(anatomy, products).items():
            scores[group] += sums
    anatomy.model.zero_grad()
    return scores


@torch.no_grad()
def by_activation(anatomy: Anatomy, batches: Iterable[Batch], task: Task) -> Scores:
    """Return the mean magnitude of each unit's output over the tokens; of layers the mean change of the hidden states."""
    sums: dict[tuple[Group, str], Tensor] = {}
    counts: dict[tuple[Group, str], int] = defaultdict(int)
    tokens: tuple[Tensor, ...] = ()

    def register(
        name: str, module: nn.Module, group: Group, measure: Callable[[Tensor, Tensor], Tensor]
    ) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            values = measure(before, output[0] if isinstance(output, tuple) else output)
            mask = tokens[anatomy.side(name)]
            if values.dim() == 3:
                values = values[mask]
            elif len(values) == mask.numel():  # a router's; otherwise they are of one token a row
                values = values[mask.flatten()]
            sums[group, name] = sums.get((group, name), 0) + values.double().sum(0).cpu()
            counts[group, name] += len(values)

        return module.register_forward_hook(hook, with_kwargs=True)

    hooks = [
        register(name, module, *scored)
        for name, module in anatomy.model.named_modules()
        if (scored := _scored_group(anatomy, name, module)) is not None
    ]
    for batch in batches:
        tokens = batch.tokens
        task.signal(anatomy.model, batch.inputs, task.positions(batch.labels)[0])
    for hook in hooks:
        hook.remove()
    scores = _zeros(anatomy)
    for (group, name), total in sums.items():
        mean = total / counts[group, name]
        if group.kind == "layer":
            scores[group._replace(layer=-1)][group.layer] = mean.squeeze()
        else:
            scores[group] += mean
    return scores


def _scored_group(
    anatomy: Anatomy, name: str, module: nn.Module
) -> tuple[Group, Callable[[Tensor, Tensor], Tensor]] | None:
    """Return the group that a module's input or output scores, and the function (input, output) -> (B, L, units); None if it scores none."""
    location = anatomy.locate(name)
    if location and not location[2]:
        return Group(
            "layer", location[0].layers, location[1]
        ), lambda before, after: 1 - cosine_similarity(before.double(), after.double(), dim=-1)[..., None]
    axes = anatomy.axes.get(f"{name}.weight", ())
    groups = [[part.group for part in parts] for parts in axes]
    if groups == [[Group("hidden")]]:
        return Group("hidden"), lambda _, after: after.abs()
    if len(groups) == 2 and groups[0] and groups[0][0].kind == "experts":
        return groups[0][0], lambda before, after: after.double().softmax(-1)
    if not isinstance(module, nn.Linear | Conv1D):
        return None
    parts = axes[0 if isinstance(module, Conv1D) else 1]
    if not parts or parts[0].group.kind not in INNER:
        return None
    width = parts[0].size // parts[0].units
    return parts[0].group, lambda before, _: before.unflatten(-1, (-1, width)).norm(dim=-1)


def select_units(anatomy: Anatomy, sizes: dict[str, int], scores: Scores) -> dict[Group, Tensor]:
    """Return the indices of the selected units, (k,), of each group that is pruned.

    Args:
        sizes: of the smaller model by the names of its config.
    """
    selected = {}
    for group, units in anatomy.units.items():
        count = sizes.get(anatomy.size_name(group) or "", units)
        pair = group._replace(kind="kv")
        if group.kind == "heads" and pair in anatomy.units:
            heads = scores[group].view(anatomy.units[pair], -1)
            pairs = top_indices(scores[pair] + heads.sum(1), sizes[str(anatomy.size_name(pair))])
            per_pair = count // len(pairs)
            selected[pair] = pairs
            selected[group] = torch.cat(
                [index * heads.shape[1] + top_indices(heads[index], per_pair) for index in pairs]
            )
        elif group.kind != "kv" and count < units:
            selected[group] = top_indices(scores[group], count)
    return selected


def top_indices(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the highest scores in ascending order; of equal scores the first ones."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _zeros(anatomy: Anatomy) -> Scores:
    units = anatomy.units | {Group("layer", stack.layers): anatomy.depth(stack) for stack in anatomy.stacks}
    return {group: torch.zeros(count, dtype=torch.float64) for group, count in units.items()}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())
