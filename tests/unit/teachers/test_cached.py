"""A teacher's stored answers: what is on the disk is what the teacher said, or it is asked again."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.commands import naming
from torch import Tensor

from kdcli import signals
from kdcli.files import digest
from kdcli.losses.base import Divergence
from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.jsd import JSD
from kdcli.losses.reverse_kl import ReverseKL
from kdcli.losses.tvd import TVD
from kdcli.signals import AnySignal, Head, HiddenSignal, Signal, TopKSignal, chunks, top_k
from kdcli.teachers import cached
from kdcli.teachers.base import Compress, Teacher, identity
from kdcli.teachers.cached import CachedTeacher
from kdcli.teachers.shards import is_unchanged

WIDTH = 3
ROWS = 12


class Fake(Teacher):
    """Says of a row what its id alone decides, and notes what it was asked.

    Args:
        said: makes the signal of a row from its number.
        most: rows that it answers before it is killed.
    """

    def __init__(self, said: Callable[[int], AnySignal], most: int = 10**6):
        self.said, self.most = said, most
        self.asked: list[str] = []

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        self.asked += [example["id"] for example in examples]
        if len(self.asked) > self.most:
            raise KeyboardInterrupt
        return [compress(self.said(number_of(example))) for example in examples]


def number_of(example: Mapping[str, Any]) -> int:
    return int(example["id"].removeprefix("row"))


def random(*size: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)) * scale


def speech(classes: int = 50, positions: int | None = None) -> Callable[[int], HiddenSignal]:
    """Of row n, n % 4 positions, so that some rows have none."""
    head = Head(random(classes, WIDTH, seed=1))

    def said(number: int) -> HiddenSignal:
        count = number % 4 if positions is None else positions
        return HiddenSignal(random(count, WIDTH, seed=100 + number, scale=2.0), head)

    return said


def verdicts(number: int) -> Signal:
    return Signal(random(1, 3, seed=number))


def table(*numbers: int) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"id": f"row{number}"} for number in numbers])


def fetched(folder: Path, rows: datasets.Dataset, fake: Fake, **options: Any) -> CachedTeacher:
    teacher = CachedTeacher(folder, **options)
    teacher.fetch(rows, lambda: fake, lambda done: None)
    return teacher


def same(one: AnySignal, other: AnySignal) -> bool:
    return all(
        torch.equal(value, vars(other)[name]) if isinstance(value, Tensor) else value == vars(other)[name]
        for name, value in vars(one).items()
    )


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "SHARD", 4)


def shard_of(folder: Path, rows: datasets.Dataset, row: int) -> Path:
    """The file that holds a row."""
    start = row // 4 * 4
    path = folder / f"{digest(list(rows['id'])[start : start + 4])[:32]}.safetensors"
    assert path.is_file()
    return path


def put(path: Path, content: bytes) -> None:
    """Write a new file in another's place, which may be mapped into memory."""
    path.unlink()
    path.write_bytes(content)


def flipped(place: int) -> Callable[[bytes], bytes]:
    def spoil(content: bytes) -> bytes:
        spoiled = bytearray(content)
        spoiled[place] ^= 1
        return bytes(spoiled)

    return spoil


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit at the end": flipped(-1),
    "a flipped bit in the middle": flipped(-300),
    "a flipped bit in the length of the header": flipped(0),
    "truncated in the data": lambda content: content[:-7],
    "truncated in the header": lambda content: content[:40],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0" * 8,
    "a web page": lambda content: b"<!doctype html>" * 99,
}


@pytest.mark.parametrize("said", [speech(), verdicts], ids=["tokens", "labels"])
@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.usefixtures("small_shards")
def test_a_spoiled_shard_is_named_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: Callable[[int], AnySignal], how: str
) -> None:
    """A bad sector teaches the student noise; or one bad file costs all answers, or ends each run in a traceback."""
    rows = table(*range(ROWS))
    before = fetched(tmp_path, rows, Fake(said)).signals(list(rows))
    path = shard_of(tmp_path, rows, 5)
    put(path, SPOILED[how](path.read_bytes()))
    fake = Fake(said)
    with caplog.at_level(logging.WARNING):
        after = fetched(tmp_path, rows, fake).signals(list(rows))
    assert fake.asked == ["row4", "row5", "row6", "row7"]
    (line,) = caplog.messages
    assert str(path) in line
    assert "computed again" in line
    assert same(before, after)
    fetched(tmp_path, rows, Fake(said, most=0))


@pytest.mark.usefixtures("small_shards")
def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    """A checksum of the tensors alone: with one bit of the header flipped, a vocabulary of 50 is one of 51, and a signal
    of T = 2.0 one of T = 3.0."""
    rows = table(*range(4))
    before = fetched(tmp_path, rows, Fake(speech()), temperature=2.0).signals(list(rows))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    noticed = 0
    for place in [*range(header), *range(header, len(whole), 41)]:
        put(path, flipped(place)(whole))
        fake = Fake(speech())
        after = fetched(tmp_path, rows, fake, temperature=2.0).signals(list(rows))
        noticed += bool(fake.asked)
        assert same(before, after), f"byte {place} of {header}: {whole[max(0, place - 20) : place + 20]!r}"
    assert noticed > header / 2


@pytest.mark.usefixtures("small_shards")
def test_killed_between_shards_only_the_rest_is_asked_for(tmp_path: Path) -> None:
    """An hour of a large teacher's time is lost with each kill."""
    rows = table(*range(ROWS))
    with pytest.raises(KeyboardInterrupt):
        fetched(tmp_path, rows, Fake(speech(), most=6))
    fake, seen = Fake(speech()), []
    teacher = CachedTeacher(tmp_path)
    teacher.fetch(rows, lambda: fake, seen.append)
    assert fake.asked == [f"row{number}" for number in range(4, ROWS)]
    assert seen == [4, 8, 12]
    assert len(list(tmp_path.iterdir())) == 3  # nothing half written is left
    whole = fetched(tmp_path / "whole", rows, Fake(speech()))
    assert same(teacher.signals(list(rows)), whole.signals(list(rows)))


@pytest.mark.usefixtures("small_shards")
def test_nobody_is_asked_twice(tmp_path: Path) -> None:
    """A teacher that is loaded although all its answers are there costs its memory and its start in each run."""
    rows = table(*range(ROWS))
    fetched(tmp_path, rows, Fake(speech()))

    def ask() -> Teacher:
        raise AssertionError

    CachedTeacher(tmp_path).fetch(rows, ask, lambda done: None)


def test_outputs_from_before_a_run_do_not_count_if_they_are_to_be_fresh(tmp_path: Path) -> None:
    """teacher.fresh=true reads what it promises to forget; or computes it again whenever the run is continued."""
    rows = table(*range(ROWS))
    store = fetched(tmp_path, rows, Fake(speech()))
    assert (store.reused, store.oldest) == (0, math.inf)
    [path] = tmp_path.iterdir()
    stored = path.stat().st_mtime
    assert CachedTeacher(tmp_path, since=stored + 1).missing(rows)
    assert not CachedTeacher(tmp_path, since=stored - 1).missing(rows)
    again = fetched(tmp_path, rows, Fake(speech()))
    assert (again.reused, again.oldest) == (len(rows), stored)
    assert is_unchanged(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not is_unchanged(path)


@pytest.mark.usefixtures("small_shards")
def test_rows_are_found_by_what_they_are(tmp_path: Path) -> None:
    """A store that is read by place gives a shuffled, shortened or other list of rows somebody else's answers."""
    said = speech()
    fetched(tmp_path, table(*range(ROWS)), Fake(said))
    for numbers in ([3, 2, 1, 0], [4, 5, 6, 7], [1, 2], [*range(20, 25)], [*range(ROWS - 1, -1, -1)]):
        rows = table(*numbers)
        teacher = fetched(tmp_path, rows, Fake(said))
        for order in (numbers, numbers[::-1]):
            examples = [{"id": f"row{number}"} for number in order]
            fresh = fetched(tmp_path / f"fresh {order}", table(*order), Fake(said))
            assert same(teacher.signals(examples), fresh.signals(examples))
            for found, number in zip(teacher.outputs(examples), order, strict=True):
                assert len(found) == number % 4
                assert same(found, fresh.outputs([{"id": f"row{number}"}])[0])


@pytest.mark.usefixtures("small_shards")
def test_a_shard_of_other_rows_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A shard restored under another's name is whole, has as many rows, and teaches each row another one's answer."""
    rows = table(*range(8))
    before = fetched(tmp_path, rows, Fake(verdicts)).signals(list(rows))
    path = shard_of(tmp_path, rows, 4)
    shutil.copy(shard_of(tmp_path, rows, 0), path)
    fake = Fake(verdicts)
    with caplog.at_level(logging.WARNING):
        after = fetched(tmp_path, rows, fake).signals(list(rows))
    assert same(before, after)
    assert fake.asked == ["row4", "row5", "row6", "row7"]
    assert str(path) in caplog.text


@pytest.mark.parametrize("k", [1, 4, 7])
@pytest.mark.parametrize("classes", [65_536, 65_537, 151_936, 262_144])
def test_token_ids_above_16_bits(tmp_path: Path, classes: int, k: int) -> None:
    """Ids cut to 16 bits, or their upper halves exchanged, are other tokens with the right probabilities."""
    likely = torch.tensor([[classes - 1, 0, 65_530, classes // 2, 1, 40_000, classes - 3]])
    likely = torch.cat([likely, likely.flip(-1)])[:, :k]
    logits = torch.zeros(2, classes).scatter(-1, likely, 20.0 - torch.arange(k).float().expand(2, k))
    signal = HiddenSignal(torch.eye(2), Head(logits.T.contiguous()))
    rows = table(0)
    stored = fetched(tmp_path, rows, Fake(lambda number: signal), k=k).signals(list(rows))
    assert isinstance(stored, TopKSignal)
    assert stored.indices.tolist() == likely.tolist()
    assert stored.classes == classes
    expected = logits.log_softmax(-1).gather(-1, likely)
    assert torch.allclose(stored.log_p, expected, atol=5e-3)


@pytest.mark.parametrize(
    ("classes", "size"), [(49_152, 226), (65_536, 226), (65_537, 258), (151_936, 258), (262_144, 258)]
)
def test_bytes_of_a_position(tmp_path: Path, classes: int, size: int) -> None:
    """Twice the bytes a token, and the answers to a corpus do not fit on the disk: 3.5 k + 2, from 65,537 tokens 4 k + 2."""
    sizes = []
    for count in (20, 100):
        folder = tmp_path / str(count)
        fetched(folder, table(0), Fake(speech(classes, count)), k=64)
        sizes.append(sum(file.stat().st_size for file in folder.iterdir()))
    assert round((sizes[1] - sizes[0]) / 80) == size


def test_stored_probabilities_are_the_teachers(tmp_path: Path) -> None:
    """A scale too coarse where the mass is, errors that add up along the tail, or a sure teacher's tail that is cut off."""
    rows, classes = table(0), 1000
    logits = torch.logspace(-1, 1.2, 500)[:, None] * random(500, classes, seed=3)
    signal = HiddenSignal(logits, Head(torch.eye(classes)))
    stored = fetched(tmp_path, rows, Fake(lambda number: signal)).signals(list(rows))
    assert isinstance(stored, TopKSignal)
    exact = logits.log_softmax(-1).gather(-1, stored.indices)
    assert exact.min() < -45
    off = (stored.log_p - exact).abs()
    gaps = -exact.diff(dim=-1, prepend=torch.zeros(500, 1))
    assert gaps.max() < 25
    assert (off <= (gaps.cummax(-1).values + 0.2) * 6e-4 + 1e-5).all()
    assert off[exact > -1].max() < 8e-4
    assert off.mean() < (exact.half().float() - exact).abs().mean() / 5
    assert (exact.exp() * off).max() < 3e-4
    assert ((stored.log_p.exp().sum(-1) + stored.log_rest.exp() - 1).abs() < 6e-4).all()


def test_the_impossible_stays_impossible(tmp_path: Path) -> None:
    """Tokens that a teacher rules out wrap round to likely ones, or make the loss infinite."""
    logits = torch.tensor([[0.0, -40.0, -45.0, -1e4, -torch.inf]])
    signal = HiddenSignal(torch.ones(1, 1), Head(logits.T.contiguous()))
    rows = table(0)
    stored = fetched(tmp_path, rows, Fake(lambda number: signal), k=5).signals(list(rows))
    assert isinstance(stored, TopKSignal)
    assert stored.log_p[0].tolist() == pytest.approx([0, -25, -45, -70, -95], abs=0.02)
    student = HiddenSignal(torch.ones(1, 1), Head(torch.zeros(5, 1)))
    assert loss_of(ForwardKL(1.0), stored, student).item() == pytest.approx(math.log(5), rel=1e-3)


def test_what_is_no_number_is_not_stored_as_one(tmp_path: Path) -> None:
    """A teacher that overflowed is read as one that is sure, and the student learns to be, with a finite loss."""
    signal = HiddenSignal(torch.tensor([[1.0], [torch.nan]]), Head(random(9, 1, seed=1)))
    rows = table(0)
    stored = fetched(tmp_path, rows, Fake(lambda number: signal), k=3).signals(list(rows))
    student = HiddenSignal(torch.ones(2, 1), Head(torch.zeros(9, 1)))
    assert loss_of(ForwardKL(1.0), stored, student).isnan().tolist() == [False, True]


@pytest.mark.parametrize("said", [speech(), verdicts], ids=["tokens", "labels"])
@pytest.mark.usefixtures("small_shards")
def test_a_shard_of_another_format_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: Callable[[int], AnySignal]
) -> None:
    """The bytes of an older version, whole and of the right rows, are read as if they meant what they mean now."""
    rows = table(*range(8))
    before = fetched(tmp_path, rows, Fake(said)).signals(list(rows))
    path = shard_of(tmp_path, rows, 4)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    del about["checksum"], about["format"]
    about["checksum"] = cached._checksum(tensors, about)
    path.unlink()
    save_file(tensors, path, metadata=about)
    fake = Fake(said)
    with caplog.at_level(logging.WARNING):
        after = fetched(tmp_path, rows, fake).signals(list(rows))
    assert fake.asked == ["row4", "row5", "row6", "row7"]
    (line,) = caplog.messages
    assert "format" in line
    assert same(before, after)
    fetched(tmp_path, rows, Fake(said, most=0))


def loss_of(loss: Divergence, teacher: AnySignal, student: HiddenSignal) -> Tensor:
    known = teacher.rows(slice(0, len(teacher)))
    assert not isinstance(known, HiddenSignal)
    return loss(student.rows(slice(0, len(student))), known, torch.zeros(len(student), dtype=torch.int64))


LOSSES: dict[str, Callable[[float], Divergence]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": lambda temperature: JSD(0.5, temperature),
    "tvd": TVD,
}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", LOSSES)
def test_more_tokens_are_nearer_to_all_of_them(tmp_path: Path, name: str, temperature: float) -> None:
    """A sum over the top k alone is no divergence: it goes past the whole one, or below 0, and learns to do so."""
    classes, count = 200, 400
    rows, said = table(0), speech(classes, count)
    student = HiddenSignal(random(count, WIDTH, seed=9), Head(random(classes, WIDTH, seed=2)))
    loss = LOSSES[name](temperature)
    whole = loss_of(loss, said(0), student)
    before = torch.zeros(count)
    for k in (1, 2, 8, 32, 100, 199, 200):
        store = fetched(tmp_path / str(k), rows, Fake(said), k=k, temperature=temperature)
        found = loss_of(loss, store.signals(list(rows)), student)
        assert (found > before - 5e-3 * whole.mean()).all(), k
        assert (found < whole * 1.005 + 5e-3).all(), k
        before = found
    assert torch.allclose(before, whole, rtol=2e-3, atol=2e-3)
    assert before.mean() == pytest.approx(float(whole.mean()), rel=1e-3)


def test_all_tokens_at_another_terms_temperature(tmp_path: Path) -> None:
    """Stored for T = 2 and read at 1 by a second term and by the report: the rest is then 1 minus rounded numbers."""
    rows, said = table(0), speech(200, 400)
    student = HiddenSignal(random(400, WIDTH, seed=9), Head(random(200, WIDTH, seed=2)))
    whole = loss_of(ForwardKL(1.0), said(0), student)
    for k in (64, 200):
        stored = fetched(tmp_path / str(k), rows, Fake(said), k=k, temperature=2.0).signals(list(rows))
        found = loss_of(ForwardKL(1.0), stored, student)
        assert (found < whole + 5e-3).all()
        assert (found > -1e-3).all()
    assert torch.allclose(found, whole, atol=1e-2)


def test_other_temperatures_are_refused(tmp_path: Path) -> None:
    """The mass outside the top k is known at one temperature; at others it would be made up."""
    rows = table(1)
    stored = fetched(tmp_path, rows, Fake(speech()), k=4, temperature=2.0).signals(list(rows))
    assert isinstance(stored, TopKSignal)
    with pytest.raises(ValueError, match=naming("stored", "temperature 2.0", "3.0")):
        stored.softened(3.0)


def test_a_classifiers_logits_are_kept_bit_for_bit(tmp_path: Path) -> None:
    """Rounded logits make a run from the cache another run than one without."""
    odd = torch.tensor([[1e-42, -0.0, 1e30], [1 / 3, -torch.inf, 65_504.1]])
    said = {0: Signal(odd[:1]), 1: Signal(odd[1:]), 2: verdicts(2)}
    rows = table(0, 1, 2)
    fetched(tmp_path, rows, Fake(said.__getitem__))
    stored = fetched(tmp_path, rows, Fake(said.__getitem__, most=0)).signals(list(rows))
    assert isinstance(stored, Signal)
    expected = torch.cat([signal.logits for signal in said.values()])
    assert torch.equal(stored.logits.view(torch.int32), expected.view(torch.int32))


def test_chunks_of_the_store_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk left out, or counted twice, where a row's logits do not fit in memory at once."""
    rows, said = table(0), speech(50, 100)
    whole = fetched(tmp_path / "whole", rows, Fake(said), k=5).signals(list(rows))
    monkeypatch.setattr("kdcli.signals.CHUNK", 50 * 16)
    assert len(list(chunks(100, 50))) > 3
    parts = fetched(tmp_path / "parts", rows, Fake(said), k=5).signals(list(rows))
    assert isinstance(whole, TopKSignal)
    assert isinstance(parts, TopKSignal)
    assert torch.equal(whole.indices, parts.indices)
    assert torch.allclose(whole.log_p, parts.log_p, atol=5e-3)
    assert torch.allclose(whole.log_rest, parts.log_rest, atol=1e-4)


@pytest.mark.parametrize("classes", [50, 3000])
def test_the_top_k_of_a_few_positions_at_a_time_has_the_same_bits(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored of a position would depend on the positions beside it, beyond what the product with the head does."""
    signal = speech(classes, positions=70)(3).rows(slice(0, 70))
    whole = top_k(signal, 8, 2.0)
    monkeypatch.setattr(signals, "FINE", 16 * signals.SLICE)
    assert same(top_k(signal, 8, 2.0), whole)
