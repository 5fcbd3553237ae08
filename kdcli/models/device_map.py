"""Divides the weights of a model among the GPUs, the memory and the disk, by Accelerate: a layer that is elsewhere is fetched when it is computed."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from accelerate import infer_auto_device_map
from accelerate.utils import get_max_memory
from torch import nn
from transformers import PreTrainedModel

from kdcli.device import has_gpu
from kdcli.errors import ModelError
from kdcli.memory import free_memory
from kdcli.numbers import format_bytes

logger = logging.getLogger(__name__)
logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it warns of what `load_divided` logs
SHARE = 0.6
"""The share of the free memory that weights take: the rest is for the layer that is computed, for activations, and for the student."""
DISK = "disk"
DeviceMap = dict[str, int | str]


def divide(model: PreTrainedModel, name: str) -> DeviceMap:
    """Return where each module of a model is to be: GPUs are filled first, then the memory; the remaining layers stay in their files on the disk.

    What is no layer (embeddings, the last norm, the head) is never offloaded: losses and the generation of texts read these weights themselves.

    Args:
        model: on the device "meta", in the dtype in which it is loaded.
        name: of the checkpoint, for messages.

    Raises:
        ModelError: what is no layer does not fit, or the model does not name its layers.
    """
    kinds = set(model._no_split_modules or ())
    if not kinds:
        raise ModelError(
            f"{name}: {type(model).__name__} does not name its layers, so that its weights cannot be divided; use teacher.placement=resident"
        )
    limits: dict[int | str, int] = {}
    if has_gpu():
        limits = {device: size for device, size in get_max_memory().items() if isinstance(device, int)}
    memory = free_memory()
    limits["cpu"] = int(SHARE * memory) if memory is not None else get_max_memory()["cpu"]
    main = min((device for device in limits if isinstance(device, int)), default="cpu")
    inside = {
        id(weight)
        for module in model.modules()
        if type(module).__name__ in kinds
        for weight in module.parameters()
    }
    outside = sum(weight.nbytes for weight in model.parameters() if id(weight) not in inside)
    if outside > limits[main]:
        raise ModelError(
            f"{name}: its embeddings and its output head take {format_bytes(outside)}, and {format_bytes(limits[main])} can be used for weights; use "
            "teacher.dtype=bf16, or teacher.placement=streamed"
        )
    last = outside - _nbytes(model.get_input_embeddings())  # these come first, and are counted there
    device_map: DeviceMap = infer_auto_device_map(
        model, limits | {main: limits[main] - last}, no_split_module_classes=sorted(kinds)
    )
    placed: DeviceMap = {}
    for path, place in device_map.items():
        is_offloaded = place == DISK or (place == "cpu" and main != "cpu")
        placed |= dict(_offloaded(model, path, place, kinds, main)) if is_offloaded else {path: place}
    return placed


def _offloaded(
    model: PreTrainedModel, path: str, place: int | str, kinds: Collection[str], main: int | str
) -> Iterator[tuple[str, int | str]]:
    """Yield the places of the parts of a module that is to be offloaded, to the disk or from a GPU to the memory: only layers are."""
    names = path.split(".") if path else []
    owners = [model.get_submodule(".".join(names[:end])) for end in range(len(names) + 1)]
    module = owners[-1]
    if any(type(each).__name__ in kinds for each in owners):
        yield path, place
    elif not any(type(each).__name__ in kinds for each in module.modules()):
        yield path, main
    else:
        for name, _ in module.named_children():
            yield from _offloaded(model, ".".join([*names, name]), place, kinds, main)
        for name, _ in module.named_parameters(recurse=False):
            yield ".".join([*names, name]), main


def _nbytes(module: nn.Module | None) -> int:
    return sum(weight.nbytes for weight in module.parameters()) if module is not None else 0


def describe(device_map: DeviceMap) -> str:
    """Return how many modules are at each place, for the log."""
    counts = Counter(
        f"GPU {place}" if isinstance(place, int) else str(place) for place in device_map.values()
    )
    return ", ".join(f"{place}: {count}" for place, count in counts.items())


def load_divided(
    load: Callable[..., PreTrainedModel], skeleton: PreTrainedModel, name: str
) -> PreTrainedModel:
    """Load a model whose weights are divided.

    Args:
        load: loads it, with the arguments of `from_pretrained`.
        skeleton: the model on the device "meta", in its dtype.

    Raises:
        ModelError: as `divide`.
    """
    places = divide(skeleton, name)
    logger.info("%s is divided: %s", name, describe(places))
    # for weights whose form on the disk is another than the loaded one, such as another dtype
    scratch = tempfile.mkdtemp(prefix="kdcli-weights-")
    try:
        model = load(device_map=places, offload_folder=scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, scratch, True)
    return model
