"""Checkpoints as strangers have them: what each layout is, how it is made, and what becomes of it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as of
from safetensors.torch import load_file, save_file
from support.architectures import MODELS
from support.commands import edit
from support.tiny import decoder, speller

from kdcli.tasks.base import Task
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification

LABELS = ["bad", "good"]
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A layout.

    Attributes:
        make: writes the checkpoint into an empty directory; it gets a tokenizer of thirty words.
        refused: words of the message; empty: it is read.
        task: what it is read for.
        keys: the config keys that are set.
        reads: a checkpoint that computes the same, in a directory below the one of the case; empty: none.
    """

    make: Callable[[Path, Any], object]
    refused: tuple[str, ...] = ()
    task: Callable[[], Task] = lambda: Classification(LABELS)
    keys: dict[str, Any] = field(default_factory=dict)


def classifier(folder: Path, tokenizer: Any, kind: str = "bert", **config: Any) -> Any:
    """A classifier of an architecture, saved with its tokenizer."""
    model = MODELS[kind](eos_token_id=3, bos_token_id=2, **config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def language_model(folder: Path, _: Any = None) -> Any:
    """A decoder, saved with its tokenizer."""
    tokenizer = speller()
    model = decoder(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def changed(
    make: Callable[[Path, Any], object], change: Callable[[Weights], Weights | None]
) -> Callable[[Path, Any], None]:
    """The same checkpoint with other weights."""

    def write(folder: Path, tokenizer: Any) -> None:
        make(folder, tokenizer)
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights) or weights, folder / "model.safetensors", {"format": "pt"})

    return write


def prefixed(prefix: str, make: Callable[[Path, Any], object] = classifier) -> Callable[[Path, Any], None]:
    return changed(make, lambda weights: {prefix + key: tensor for key, tensor in weights.items()})


def configured(
    make: Callable[[Path, Any], object] = classifier, **config: Any
) -> Callable[[Path, Any], None]:
    """The same checkpoint with another config.json."""

    def write(folder: Path, tokenizer: Any) -> None:
        make(folder, tokenizer)
        edit(folder / "config.json", **config)

    return write


def sharded(folder: Path, tokenizer: Any) -> None:
    model = classifier(folder, tokenizer)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    assert (folder / "model.safetensors.index.json").is_file()


def counted_tokens(folder: Path, tokenizer: Any, kind: str = "Bertweet") -> None:
    """BERTweet's and PhoBERT's files: a token and its count in each line, and the merges in bpe.codes."""
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    letters = sorted({letter for word in words for letter in word})
    tokens = [*(f"{letter}@@" for letter in letters), *letters]
    (folder / "vocab.txt").write_text("".join(f"{token} {1000 - at}\n" for at, token in enumerate(tokens)))
    (folder / "bpe.codes").write_text("a n 5\na n</w> 4\n")
    config = {"tokenizer_class": f"{kind}Tokenizer", "model_max_length": 30}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = MODELS["roberta"](vocab_size=4 + len(tokens) + 1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    model.save_pretrained(folder)


def gaps(folder: Path, tokenizer: Any) -> None:
    """Ids that no token has, below the highest one."""
    classifier(folder, tokenizer)
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    for word in ("film", "book"):
        tree["model"]["vocab"].pop(word)
    path.write_text(json.dumps(tree))


def repeated(folder: Path, tokenizer: Any) -> None:
    """A vocab.txt with a token in two lines; the second one gives its id."""
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    MODELS["bert"](vocab_size=len(words) + 1).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join([*words, "film"]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))


def _adapted(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it reads what transformers is about to rename
        return get_peft_model(model, config)


def adapter(
    folder: Path, tokenizer: Any, kind: str = "CAUSAL_LM", with_base: bool = True, **config: Any
) -> Any:
    """A LoRA adapter, whose base model lies in a directory below it."""
    from peft import LoraConfig

    base = folder / "base"
    base.mkdir()
    if kind == "CAUSAL_LM":
        model = language_model(base)
    else:
        classifier(base, tokenizer)
        body = of.BertModel.from_pretrained(base)
        body.save_pretrained(base)
        model = of.BertForSequenceClassification.from_pretrained(base, num_labels=2)
    torch.manual_seed(1)
    adapted = _adapted(model, LoraConfig(task_type=kind, r=2, target_modules="all-linear", **config))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder)
    edit(folder / "adapter_config.json", base_model_name_or_path="base" if with_base else "nobody/nothing")
    return adapted


def with_tokens(folder: Path, tokenizer: Any) -> Any:
    """An adapter with tokens of its own: it holds the larger embeddings, and its tokenizer lies beside it."""
    from peft import LoraConfig

    (base := folder / "base").mkdir()
    model, own = language_model(base), speller()
    own.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    model.resize_token_embeddings(len(own), mean_resizing=False)
    adapted = _adapted(
        model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", use_dora=True)
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder, save_embedding_layers=True)
    own.save_pretrained(folder)
    edit(folder / "adapter_config.json", base_model_name_or_path="base")
    return adapted


def sharded_and_compiled(folder: Path, tokenizer: Any) -> None:
    sharded(folder, tokenizer)
    for path in folder.glob("*.safetensors"):
        weights = {f"_orig_mod.{key}": tensor for key, tensor in load_file(path).items()}
        save_file(weights, path, {"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = {f"_orig_mod.{key}": file for key, file in index["weight_map"].items()}
    edit(folder / "model.safetensors.index.json", weight_map=names)


def of_tensorflow(weights: Weights) -> Weights:
    """LayerNorm's parameters as the first BERTs call them."""
    new = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    return {key.replace(*new[0]).replace(*new[1]): tensor for key, tensor in weights.items()}


def unmerged(weights: Weights) -> Weights:
    """A model that was saved with its adapters in it."""
    own = {f"base_model.model.{key}": tensor for key, tensor in weights.items()}
    return own | {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(2, 32)
    }


def prompt_tuned(folder: Path, _: Any) -> None:
    from peft import PromptTuningConfig

    (folder / "base").mkdir()
    model = _adapted(
        language_model(folder / "base"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    model.save_pretrained(folder)
    edit(folder / "adapter_config.json", base_model_name_or_path="base")


def both(folder: Path, tokenizer: Any) -> None:
    """An adapter in the directory of the merged model."""
    adapter(folder, tokenizer)
    for path in (folder / "base").iterdir():
        shutil.copyfile(path, folder / path.name)


def of_another_model(folder: Path, tokenizer: Any) -> None:
    adapter(folder, tokenizer)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key.replace("q_proj", "query"): value for key, value in weights.items()},
        folder / "adapter_model.safetensors",
    )


def multimodal(folder: Path, kind: str) -> Any:
    """A model that reads images and text."""
    tokenizer = speller()
    ids = {"vocab_size": len(tokenizer) + 8, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": None}
    text = ids | {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 128,
    }  # fmt: skip
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    if kind.startswith("Qwen"):
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
        vision = {
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 14,
            "out_hidden_size": 32,
        }
    if kind == "Qwen3_5":  # a linear attention beside the full one
        text |= {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        }
        text["rope_parameters"] |= {"partial_rotary_factor": 0.75, "mrope_section": [1, 1, 1]}
        vision |= {"hidden_size": 16, "intermediate_size": 24, "num_position_embeddings": 16}
    if kind == "Gemma3":
        text |= {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    config = getattr(of, f"{kind}Config")(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = getattr(of, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def pointer(name: str) -> Callable[[Path, Any], None]:
    """A checkpoint of which a clone without Git LFS has one file."""

    def write(folder: Path, tokenizer: Any) -> None:
        classifier(folder, tokenizer)
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1b\nsize 42\n")

    return write


def pickled(folder: Path, tokenizer: Any) -> Any:
    """Weights as torch.save writes them, of a model that DistributedDataParallel wrapped."""
    model = classifier(folder, tokenizer)
    (folder / "model.safetensors").unlink()
    weights = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save(weights, folder / "pytorch_model.bin")
    return model


def pickled_adapter(folder: Path, tokenizer: Any) -> None:
    """An adapter as PEFT wrote it in 2023."""
    adapter(folder, tokenizer)
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()


def in_several_files(folder: Path, tokenizer: Any) -> None:
    pickled(folder, tokenizer)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00002.bin")


def without(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if not key.endswith(names)}


def below(*names: str) -> Callable[[Path, Any], None]:
    """Checkpoints in directories below the one that is given, as the Trainer leaves them."""

    def write(folder: Path, tokenizer: Any) -> None:
        for name in names:
            (folder / name).mkdir(parents=True)
            classifier(folder / name, tokenizer)

    return write


def weights_as(file: str, make: Callable[[Path, Any], object] = classifier) -> Callable[[Path, Any], None]:
    """The weights in a file of another name."""

    def write(folder: Path, tokenizer: Any) -> None:
        make(folder, tokenizer)
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / "model.safetensors").rename(folder / file)

    return write


def beside_other_files(folder: Path, tokenizer: Any) -> None:
    """One file of weights, with what others leave beside it: a damaged file of another layout, and an index whose files are not there."""
    sharded(folder, tokenizer)
    for shard in folder.glob("*-of-*.safetensors"):
        shard.unlink()
    classifier(folder, tokenizer)
    assert (folder / "model.safetensors.index.json").is_file()
    (folder / "consolidated.safetensors").write_bytes(b"other")


def without_index(folder: Path, tokenizer: Any) -> None:
    sharded(folder, tokenizer)
    (folder / "model.safetensors.index.json").unlink()


def with_further_heads(folder: Path, tokenizer: Any) -> None:
    """What SetFit and sentence-transformers save behind a transformer."""
    of.BertModel(MODELS["bert"]().config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model_head.pkl").write_bytes(b"")
    for module in ("1_Pooling", "2_Dense"):
        (folder / module).mkdir()


def labels_by_name(folder: Path, tokenizer: Any) -> Any:
    """A config.json with label2id and without id2label."""
    model = classifier(folder, tokenizer, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["id2label"]
    path.write_text(json.dumps(config))
    return model


def of_sentence_transformers(folder: Path, tokenizer: Any) -> None:
    """Its first layout: the transformer in a directory of its own, and a config.json that is none of a model."""
    below("0_Transformer")(folder, tokenizer)
    (folder / "config.json").write_text('{"__version__": "0.2.5"}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')


def tagger(folder: Path, tokenizer: Any) -> Any:
    """A model of tags, whose head has the names and the shape of a classifier's."""
    model = of.BertForTokenClassification(MODELS["bert"](num_labels=2).config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def without_type(folder: Path, tokenizer: Any) -> None:
    """A config.json of 2019."""
    classifier(folder, tokenizer)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["model_type"]
    path.write_text(json.dumps(config))


def packed(weights: Weights) -> Weights:
    """Four bits a weight, as MLX packs them: without quantization_config."""
    new: Weights = {}
    for key, tensor in weights.items():
        if tensor.ndim < 2 or not key.endswith(".weight"):
            new[key] = tensor
            continue
        rows, columns = tensor.shape
        new[key] = torch.zeros(rows, columns // 8, dtype=torch.uint32)
        for name in ("scales", "biases"):
            new[f"{key.removesuffix('weight')}{name}"] = torch.ones(rows, 1)
    return new


def two_towers(weights: Weights) -> Weights:
    """A bi-encoder: two bodies."""
    body = {key.removeprefix("bert."): tensor for key, tensor in weights.items() if key.startswith("bert.")}
    return {
        f"{tower}.{key}": tensor.clone()
        for tower in ("query_encoder", "doc_encoder")
        for key, tensor in body.items()
    }


def own_output_layer(weights: Weights) -> Weights:
    """One that differs from the embeddings which config.json ties it to."""
    torch.manual_seed(1)
    return weights | {"lm_head.weight": 0.1 * torch.randn_like(weights["model.embed_tokens.weight"])}


DENSE = "encoder.layer.1.output.dense.weight"
CASES: dict[str, Case] = {
    # ---- read ----
    "Plain safetensors": Case(classifier),
    "Several files with an index": Case(sharded),
    "One file beside the index of the model from which it was fine-tuned": Case(beside_other_files),
    "Padding in config.json unlike the tokenizer's": Case(
        lambda folder, tokenizer: classifier(folder, tokenizer, pad_token_id=2)
    ),
    "Padding -1 or null in config.json": Case(
        lambda folder, tokenizer: classifier(folder, tokenizer, "llama-labels", pad_token_id=-1)
    ),
    "Padding with the end token": Case(
        lambda folder, tokenizer: classifier(folder, tokenizer, "gpt2-labels", pad_token_id=3)
    ),
    "vocab.txt with counts, and bpe.codes": Case(counted_tokens),
    "Token ids with gaps": Case(gaps),
    "A token twice in vocab.txt": Case(repeated),
    "torch.compile (`_orig_mod.`)": Case(prefixed("_orig_mod.")),
    "DistributedDataParallel (`module.`)": Case(prefixed("module.")),
    "FSDP and activation checkpointing": Case(
        changed(
            classifier,
            lambda weights: {
                key.replace(".layer.1.", ".layer.1._checkpoint_wrapped_module."): w
                for key, w in weights.items()
            },
        )
    ),
    "One prefix for all weights": Case(prefixed("model.net.")),
    "One prefix, doubled": Case(prefixed("model.", language_model), task=CausalLM),
    "Buffers of older versions": Case(
        changed(
            classifier, lambda weights: weights | {"bert.embeddings.position_ids": torch.arange(40)[None]}
        )
    ),
    "LayerNorm as gamma and beta": Case(changed(classifier, of_tensorflow)),
    "A value head beside the head (TRL)": Case(
        changed(language_model, lambda weights: weights | {"v_head.summary.weight": torch.zeros(1, 32)}),
        task=CausalLM,
    ),
    "torch.compile, in several files": Case(sharded_and_compiled),
    "An adapter with tokens of its own, merged": Case(
        with_tokens, task=CausalLM, keys={"merge_adapter": True}
    ),
    "The head of another task": Case(
        lambda folder, tokenizer: classifier(folder, tokenizer, "bert-masked"), keys={"tune": True}
    ),
    "An adapter, merged": Case(adapter, task=CausalLM, keys={"merge_adapter": True}),
    "An adapter of a classifier, merged": Case(
        lambda folder, tokenizer: adapter(folder, tokenizer, "SEQ_CLS"), keys={"merge_adapter": True}
    ),
    **{
        f"Multimodal: {kind}": Case(lambda folder, _, kind=kind: multimodal(folder, kind), task=CausalLM)
        for kind in ("Gemma3", "Mistral3", "Qwen2VL", "Qwen2_5_VL", "Qwen3_5", "Llava")
    },
    "Labels in label2id alone": Case(labels_by_name),
    "An output layer that config.json ties to other embeddings": Case(
        changed(language_model, own_output_layer), task=CausalLM
    ),
    "A head of another task with the same names": Case(tagger, keys={"tune": True}),
    "SetFit, and sentence-transformers with further layers": Case(with_further_heads, keys={"tune": True}),
    # ---- refused ----
    "In a directory below (checkpoint-500)": Case(
        below("checkpoint-500", "checkpoint-1000"), ("teacher.path=", "checkpoint-1000", "checkpoint-500")
    ),
    "In a directory below (0_Transformer)": Case(
        of_sentence_transformers, ("teacher.path=", "0_Transformer")
    ),
    "A config.json without model_type": Case(without_type, ('"model_type": "bert"', "config.json")),
    "Packed integers beside their scales (MLX)": Case(
        changed(classifier, packed),
        ("quantized", "bert.embeddings.position_embeddings.scales", "from which they were quantized"),
    ),
    "Several models under prefixes (a bi-encoder)": Case(
        changed(classifier, two_towers), ("doc_encoder.", "query_encoder.", "by itself")
    ),
    "In a snapshot of the hub's cache": Case(below("snapshots/1b2c"), ("teacher.path=", "snapshots/1b2c")),
    "A directory with a GGUF file": Case(
        lambda folder, _: (folder / "model-q4.gguf").write_bytes(b"GGUF"), ("teacher.path=", "model-q4.gguf")
    ),
    "Weights of TensorFlow (tf_model.h5)": Case(
        weights_as("tf_model.h5"), ("tf_model.h5", "transformers<5", "from_tf=True")
    ),
    "Weights of Flax (flax_model.msgpack)": Case(
        weights_as("flax_model.msgpack"), ("flax_model.msgpack", "transformers<5", "from_flax=True")
    ),
    "An export alone (onnx/model.onnx)": Case(
        weights_as("onnx/model.onnx"), ("onnx/model.onnx", "teacher.path=")
    ),
    "A variant's name (model.fp16.safetensors)": Case(
        weights_as("model.fp16.safetensors"), ("rename", "model.fp16.safetensors", "model.safetensors")
    ),
    "Several files without their index": Case(without_index, ("model.safetensors.index.json",)),
    "Weights that are a pointer of Git LFS": Case(
        pointer("model.safetensors"), ("model.safetensors", "git lfs pull")
    ),
    "A tokenizer that is a pointer of Git LFS": Case(
        pointer("tokenizer.json"), ("tokenizer.json", "git lfs pull")
    ),
    "Pickled weights (pytorch_model.bin)": Case(
        pickled, ("pytorch_model.bin", "weights_only=True", "model.safetensors")
    ),
    "Pickled weights in several files": Case(
        in_several_files, ("transformers.BertForSequenceClassification.from_pretrained",)
    ),
    "An adapter": Case(adapter, ("an adapter (PEFT)", "base", "teacher.merge_adapter=true"), CausalLM),
    "A pickled adapter (adapter_model.bin)": Case(
        pickled_adapter,
        ("adapter_model.bin", "weights_only=True", "adapter_model.safetensors"),
        CausalLM,
        {"merge_adapter": True},
    ),
    "An adapter beside a model": Case(
        both,
        ("an adapter (adapter_config.json)", "whole model (model.safetensors)"),
        CausalLM,
        {"merge_adapter": True},
    ),
    "An adapter of another model": Case(
        of_another_model,
        ("another model", "adapter_config.json (base_model_name_or_path)"),
        CausalLM,
        {"merge_adapter": True},
    ),
    "An adapter whose base model is not there": Case(
        lambda folder, tokenizer: adapter(folder, tokenizer, with_base=False),
        ("adapter_config.json",),
        CausalLM,
        {"merge_adapter": True},
    ),
    "Adapters saved in the model": Case(changed(language_model, unmerged), ("merge_and_unload",), CausalLM),
    "Prompt tuning": Case(
        prompt_tuned, ("PROMPT_TUNING", "cannot be merged"), CausalLM, {"merge_adapter": True}
    ),
    "A prefix of some weights": Case(
        changed(
            classifier,
            lambda weights: {("net." if "bert" in key else "") + key: w for key, w in weights.items()},
        ),
        ("weights lack", "only the head"),
    ),
    "A missing weight of the body": Case(
        changed(classifier, without(DENSE)), ("weights lack 1", f"'bert.{DENSE}'", "only the head")
    ),
    "Fewer layers in config.json": Case(
        configured(num_hidden_layers=2), ("config.json leaves out", ".layer.2.")
    ),
    "More layers in config.json": Case(
        configured(num_hidden_layers=6), ("weights lack", "config.json", "random")
    ),
    "Embeddings of another size": Case(
        configured(vocab_size=41), ("'bert.embeddings.word_embeddings.weight'", "only the head")
    ),
    "A weight of the body that is left over": Case(
        changed(classifier, lambda weights: weights | {"bert.embeddings.more.weight": torch.zeros(3)}),
        ("config.json leaves out", "'bert.embeddings.more.weight'"),
    ),
    "A config of another architecture": Case(
        configured(model_type="electra", architectures=["ElectraForSequenceClassification"]),
        ("weights lack", "'electra.embeddings.LayerNorm.bias'", "config.json"),
    ),
    "A head of several labels a text": Case(
        configured(problem_type="multi_label_classification"),
        ("multi_label_classification", "teacher.tune=true"),
    ),
    "A regression head": Case(
        lambda folder, tokenizer: classifier(folder, tokenizer, id2label={0: "score"}, label2id={"score": 0}),
        ("a number", "regression", "teacher.tune=true"),
    ),
}
