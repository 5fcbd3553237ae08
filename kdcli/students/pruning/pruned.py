"""A student that is the teacher without what matters least."""

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
from kdcli.errors import ConfigError
from kdcli.models.checkpoint import room
from kdcli.signals import HiddenSignal, chunks
from kdcli.students.pruning.anatomy import Anatomy, Group, Stack, carve
from kdcli.students.pruning.base import PruningInitializer
from kdcli.tasks.base import Task
from kdcli.tasks.rows import IGNORE

MOST_TOKENS = 2048
"""Tokens of a row that are looked at."""
INNER = ("heads", "cross", "ffn", "pooled")
"""Units that are told by what they hand to the projection after them."""
Scores = dict[Group, Tensor]


class Pruned(PruningInitializer):
    """The teacher with fewer layers, heads, channels and units: those that matter least are taken away, all at once
    (Minitron, Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679). With `student.path`, that checkpoint.

    What is kept is copied and stays in its order. Each layer chooses its own heads and feed-forward units; hidden channels
    are the same throughout, so that the residual stream stays one. The size of a head stays as it is. Where heads side by
    side are as wide as the hidden states (BERT, GPT-2, BART …), their number follows from hidden_size; elsewhere it is
    free, and they go by whole groups that share a key and a value (given both numbers, by what is left of each group).

    How much a unit matters:

    - activation: a feed-forward unit by its mean |activation|, a head by the mean norm of its output, a hidden channel by
      its mean |output| over all norms, on real tokens only; a layer by 1 - cos(what goes in, what comes out)
      (Men et al. 2024, https://arxiv.org/abs/2403.03853).
    - gradient: the sum of |w · ∂L/∂w| over its weights (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771), with the
      cross-entropy L on gold labels or next tokens.
    - magnitude: the norm of its weights; needs no data.

    Args:
        num_hidden_layers: layers, of an encoder and a decoder alike; as all sizes, null: as it is.
        hidden_size: channels of the hidden states.
        num_attention_heads: query heads a layer.
        num_key_value_heads: key and value heads a layer, where they are fewer; null: in the ratio that they have.
        intermediate_size: feed-forward units a layer.
        importance: which of the scores above.
        calibration: training rows that the scores are taken on.
    """

    def __init__(
        self,
        num_hidden_layers: Depth | None = None,
        hidden_size: Width | None = None,
        num_attention_heads: Width | None = None,
        num_key_value_heads: Width | None = None,
        intermediate_size: Width | None = None,
        importance: Literal["activation", "gradient", "magnitude"] = "activation",
        calibration: Rows = 256,
    ):
        self.wanted = {
            "num_hidden_layers": num_hidden_layers,
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
            "intermediate_size": intermediate_size,
        }
        if not any(self.wanted.values()):
            raise ConfigError(
                f"the student is to be pruned, but nothing says how far: give student."
                f"{', student.'.join(self.wanted)}"
            )
        self.importance, self.calibration = importance, calibration

    def cut(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model of the same architecture, in which less stands."""
        anatomy = Anatomy(model)
        sizes = self._sizes(anatomy)
        scores = self._scores(anatomy, tokenizer, task, rows)
        layers = [
            best(scores[Group("layer", stack.layers)], sizes[stack.depth]).tolist()
            for stack in anatomy.stacks
        ]
        return carve(anatomy, layers, sizes, kept_units(anatomy, sizes, scores)), tokenizer

    def require(self, task: Task, model: PreTrainedModel) -> None:
        """It can have these sizes."""
        self._sizes(Anatomy(model))

    def _sizes(self, anatomy: Anatomy) -> dict[str, int]:
        """What the smaller model's config says of its sizes, by its own names for them.

        Raises:
            ConfigError: these sizes cannot be, or are those that it has.
        """
        config, family, kind = anatomy.config, anatomy.family, anatomy.config.model_type
        hidden = anatomy.units[Group("hidden")]
        grouped = [family.key_value_heads] if family.key_value_heads else []
        has = {
            "num_hidden_layers": {stack.depth: anatomy.depth(stack) for stack in anatomy.stacks},
            "hidden_size": {name: hidden for name in family.hidden if getattr(config, name, None) == hidden},
            "num_attention_heads": {stack.heads: getattr(config, stack.heads) for stack in anatomy.stacks},
            "num_key_value_heads": {name: getattr(config, name) for name in grouped},
            "intermediate_size": {
                stack.feed_forward: anatomy.units[Group("ffn", stack.layers, 0)] for stack in anatomy.stacks
            },
        }
        before = {name: size for sizes in has.values() for name, size in sizes.items()}
        sizes = dict(before)
        for argument, wanted in self.wanted.items():
            if wanted is None:
                continue
            if not has[argument]:
                raise ConfigError(f"student.{argument} = {wanted}: {kind} models have none; leave it null")
            for name, size in has[argument].items():
                if wanted > size:
                    raise ConfigError(f"student.{argument} = {wanted}: the teacher has {size} ({name})")
                sizes[name] = wanted
        if family.head_size is None:
            for stack in anatomy.stacks:
                sizes[stack.heads] = self._heads_that_fill(sizes[family.hidden[0]], stack, anatomy)
        elif grouped:
            self._share_heads(before, sizes, anatomy.stacks[0].heads, grouped[0])
        if sizes == before:
            raise ConfigError(
                f"nothing is pruned: the teacher has {_listed(before)} already; give less of at least one"
            )
        return sizes | ({family.head_size: anatomy.head_size(anatomy.stacks[0])} if family.head_size else {})

    def _heads_that_fill(self, hidden: int, stack: Stack, anatomy: Anatomy) -> int:
        """How many heads stand side by side in the hidden size."""
        size, has = anatomy.head_size(stack), anatomy.units[Group("hidden")]
        wanted = self.wanted["num_attention_heads"] or hidden // size
        if hidden % size:
            raise ConfigError(
                f"student.hidden_size = {hidden}: the heads of the teacher are {size} wide, and side by side as wide as its "
                f"hidden states; give a multiple of {size} up to {has}"
            )
        if wanted * size != hidden:
            raise ConfigError(
                f"student.num_attention_heads = {wanted}, hidden_size = {hidden}: the heads of the teacher are {size} wide, "
                f"and side by side as wide as its hidden states; {wanted} heads need hidden_size = {wanted * size}"
            )
        return wanted

    def _share_heads(self, before: dict[str, int], sizes: dict[str, int], heads: str, groups: str) -> None:
        """Put in the number of heads, or of their groups, that follows from the other one."""
        each = before[heads] // before[groups]
        wanted = self.wanted["num_attention_heads"], self.wanted["num_key_value_heads"]
        if wanted[0] is None:
            sizes[heads] = sizes[groups] * each
        elif wanted[1] is None:
            sizes[groups] = sizes[heads] // each
        left = [each] if None in wanted else range(1, each + 1)
        if sizes[heads] not in [sizes[groups] * count for count in left]:
            raise ConfigError(
                f"student.num_attention_heads = {wanted[0] or 'null'}, num_key_value_heads = {wanted[1] or 'null'}: "
                f"{each} of the teacher's {before[heads]} heads share each of its {before[groups]} keys and values; give a multiple of {each} and no "
                f"num_key_value_heads, or both, the first being the second times 1 to {each}"
            )

    def _scores(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> Scores:
        """How much each unit matters, (units,) fp64, by the group; layers are groups as well."""
        if self.importance == "magnitude":
            parameters = anatomy.model.named_parameters()
            return by_weights(anatomy, ((name, weight.detach().square()) for name, weight in parameters))
        if torch.cuda.is_available():
            nn.Module.cuda(anatomy.model)
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
        """The first rows (of those that have a gold label) on the model's device."""
        length = min(MOST_TOKENS, room(tokenizer, model.config))
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
            places = torch.arange(inputs["input_ids"].shape[1], device=model.device)
            lengths = torch.from_numpy(encoded.lengths[list(part)]).to(model.device)
            real = inputs.get("attention_mask", places < lengths[:, None]).bool()
            written = inputs.get("decoder_attention_mask", labels != IGNORE if labels.dim() == 2 else real)
            yield Batch(inputs, labels, (real, written.bool()))


@dataclass(frozen=True)
class Batch:
    """Rows to take scores on.

    Attributes:
        labels: as the task's collator makes them.
        real: which positions are tokens and no padding, bool (B, L): of the first stack, and of a decoder that has an
            encoder beside it.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    real: tuple[Tensor, Tensor]


def by_weights(anatomy: Anatomy, values: Iterable[tuple[str, Tensor]]) -> Scores:
    """Sums of what each weight's numbers are worth, by the name of the weight, over the units that they belong to."""
    scores = _zeros(anatomy)
    for name, worth in values:
        worth = worth.double()
        for dim, axis in enumerate(anatomy.axes[name]):
            if axis:
                scores[axis.group] += axis.sums(worth, dim).cpu()
        if (place := anatomy.place(name)) and not anatomy.common(name):
            scores[Group("layer", place[0].layers)][place[1]] += worth.sum().cpu()
    return scores


def by_gradient(anatomy: Anatomy, batches: Iterable[Batch], task: Task) -> Scores:
    """The sum of |w · ∂L/∂w| over each unit's weights, and over the batches; L is the sum over a batch's positions."""
    scores = _zeros(anatomy)
    for batch in batches:
        anatomy.model.zero_grad()
        pick, labels = task.positions(batch.labels)
        said = task.signal(anatomy.model, batch.inputs, pick)
        if isinstance(said, HiddenSignal):  # the logits of a vocabulary are never whole
            leaf = said.hidden.detach().requires_grad_()
            for at in chunks(len(labels), said.classes):
                _cross_entropy(said.head(leaf[at]), labels[at]).backward()
            said.hidden.backward(leaf.grad)
        else:
            _cross_entropy(said.logits, labels).backward()
        parameters = anatomy.model.named_parameters()
        worth = (
            (name, (weight.detach() * weight.grad).abs())
            for name, weight in parameters
            if weight.grad is not None
        )
        for group, found in by_weights(anatomy, worth).items():
            scores[group] += found
    anatomy.model.zero_grad()
    return scores


@torch.no_grad()
def by_activation(anatomy: Anatomy, batches: Iterable[Batch], task: Task) -> Scores:
    """What each unit puts out, on average over the real tokens; layers by what they change."""
    sums: dict[tuple[Group, str], Tensor] = {}
    counts: dict[tuple[Group, str], int] = defaultdict(int)
    real: tuple[Tensor, ...] = ()

    def watch(name: str, module: nn.Module, group: Group, measure: Callable[[Tensor, Tensor], Tensor]) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
            before = given[0] if given else named["hidden_states"]
            values = measure(before, out[0] if isinstance(out, tuple) else out)
            if values.dim() == 3:  # else of one token a row
                values = values[real[anatomy.side(name)]]
            sums[group, name] = sums.get((group, name), 0) + values.double().sum(0).cpu()
            counts[group, name] += len(values)

        return module.register_forward_hook(hook, with_kwargs=True)

    hooks = [
        watch(name, module, *watched)
        for name, module in anatomy.model.named_modules()
        if (watched := _watched(anatomy, name, module)) is not None
    ]
    for batch in batches:
        real = batch.real
        task.signal(anatomy.model, batch.inputs, task.positions(batch.labels)[0])
    for hook in hooks:
        hook.remove()
    scores = _zeros(anatomy)
    for (group, name), found in sums.items():
        mean = found / counts[group, name]
        if group.kind == "layer":
            scores[group._replace(layer=-1)][group.layer] = mean.squeeze()
        else:
            scores[group] += mean
    return scores


def _watched(
    anatomy: Anatomy, name: str, module: nn.Module
) -> tuple[Group, Callable[[Tensor, Tensor], Tensor]] | None:
    """Of which units a module's input or output tells, and how, as (B, L, units); None: of none."""
    place = anatomy.place(name)
    if place and not place[2]:
        return Group(
            "layer", place[0].layers, place[1]
        ), lambda before, after: 1 - cosine_similarity(before.double(), after.double(), dim=-1)[..., None]
    axes = anatomy.axes.get(f"{name}.weight", ())
    if len(axes) == 1 and axes[0] and axes[0].group == Group("hidden"):
        return axes[0].group, lambda _, after: after.abs()
    if not isinstance(module, nn.Linear | Conv1D):
        return None
    axis = axes[0 if isinstance(module, Conv1D) else 1]
    if axis is None or axis.group.kind not in INNER:
        return None
    width = module.weight.shape[0 if isinstance(module, Conv1D) else 1] // axis.units
    return axis.group, lambda before, _: before.unflatten(-1, (-1, width)).norm(dim=-1)


def kept_units(anatomy: Anatomy, sizes: dict[str, int], scores: Scores) -> dict[Group, Tensor]:
    """Which units stay, of each group of which some go.

    Args:
        sizes: of the smaller model, as its config calls them.
    """
    kept = {}
    for group, units in anatomy.units.items():
        count = sizes.get(anatomy.size_name(group) or "", units)
        pair = group._replace(kind="kv")
        if group.kind == "heads" and pair in anatomy.units:
            each = scores[group].view(anatomy.units[pair], -1)
            groups = best(scores[pair] + each.sum(1), sizes[str(anatomy.size_name(pair))])
            left = count // len(groups)
            kept[pair] = groups
            kept[group] = torch.cat([number * each.shape[1] + best(each[number], left) for number in groups])
        elif group.kind != "kv" and count < units:
            kept[group] = best(scores[group], count)
    return kept


def best(scores: Tensor, count: int) -> Tensor:
    """The places of the highest scores, in their order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _zeros(anatomy: Anatomy) -> Scores:
    units = anatomy.units | {Group("layer", stack.layers): anatomy.depth(stack) for stack in anatomy.stacks}
    return {group: torch.zeros(count, dtype=torch.float64) for group, count in units.items()}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())
