"""Sparse files are small, give back every bit, and are refused when anything about them is wrong."""

from __future__ import annotations

import doctest
import importlib
import json
import struct

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402

from sisopt import InvalidInputError, UnsupportedError  # noqa: E402
from sisopt.adapters.torch import keep_zeros, load_sparse, save_sparse, to_sparse_csr  # noqa: E402
from sisopt.adapters.torch.sparse_files import _DTYPES, FORMAT  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def sparse(shape, share=0.1, dtype=torch.float32):
    """Return random bits of a dtype, NaN and negative zeros among them, of which a share is left."""
    size = dtype.itemsize
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, size), dtype=torch.uint8)
    return (bits * (torch.rand(*shape, 1) < share)).view(dtype).reshape(shape)


def same(found, wanted):
    """Return whether two state dicts are the same to the bit, in the same order."""
    return list(found) == list(wanted) and all(
        a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
        for a, b in zip(found.values(), wanted.values(), strict=True)
    )


def raw(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", _DTYPES.values(), ids=str)
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_every_bit_of_every_dtype_comes_back(path, dtype, share):
    tensors = {
        "weight": sparse((37, 29), share, dtype),
        "kernels": sparse((16, 7, 3, 3), share, dtype),
        "scalar": sparse((), share, dtype),
        "empty": sparse((0, 5), share, dtype),
        "transposed": sparse((40, 30), share, dtype).t(),
        "strided": sparse((40, 30), share, dtype)[::2, 1::3],
        "one": sparse((1,), share, dtype),
    }
    save_sparse(path, tensors)
    assert same(load_sparse(path), tensors)


def test_negative_zeros_and_nan_are_values_not_zeros(path):
    weight = torch.zeros(1000)
    weight[[3, 500]] = torch.tensor([-0.0, float("nan")])
    save_sparse(path, {"weight": weight})
    found = load_sparse(path)["weight"]
    assert raw(found) == raw(weight)
    assert found[3].signbit()
    assert path.stat().st_size < 600


@pytest.mark.parametrize(("zeros", "times"), [(0.8, 5.0), (0.9, 9.5), (0.95, 18.0)])
def test_files_of_sparse_weights_are_small(path, zeros, times):
    weight = torch.randn(500, 400)
    weight[torch.rand(500, 400) < zeros] = 0
    size = save_sparse(path, {"weight": weight})
    assert size == path.stat().st_size
    assert times * size < len(safetensors.save({"weight": weight}))


def test_zeros_that_a_mask_left_negative_take_a_bit_each_and_stay_negative(path):
    weight, mask = torch.randn(500, 400), torch.rand(500, 400) < 0.1
    product = weight * mask
    assert 7 * save_sparse(path, {"weight": product}) < product.nbytes
    assert raw(load_sparse(path)["weight"]) == raw(product)
    assert (load_sparse(path)["weight"].signbit() & ~mask).sum() > 80_000


def test_what_has_no_zeros_is_stored_as_it_is_where_the_mask_form_is_larger(path):
    tensors = {"noise": torch.randint(1, 256, (5000,), dtype=torch.uint8), "bias": torch.randn(10)}
    save_sparse(path, tensors)
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"dense:noise", "dense:bias"}
        assert torch.equal(file.get_tensor("dense:bias"), tensors["bias"])
    assert path.stat().st_size < 5040 + 600
    assert same(load_sparse(path), tensors)


def test_blocks_and_rows_of_zeros_take_less_room_than_scattered_ones(path):
    scattered, rows = torch.ones(400, 400), torch.ones(400, 400)
    scattered[torch.rand(400, 400) < 0.75] = 0
    rows[:300] = 0
    assert 4 * save_sparse(path, {"weight": rows}) < save_sparse(path, {"weight": scattered})


def test_tied_tensors_are_stored_once_and_come_back_tied(path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 40)
            self.head = nn.Linear(40, 50, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    untied = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert save_sparse(path, model) < 0.6 * save_sparse(path.with_name("untied"), untied)
    found = load_sparse(path)
    assert same(found, model.state_dict())
    assert found["embedding.weight"] is found["head.weight"]
    parts = torch.randn(2, 60, 50)  # of one memory, but not the same tensor
    shared = {"all": parts, "first": parts[0], "second": parts[1], "turned": parts[0].t()}
    save_sparse(path, shared)
    assert same(load_sparse(path), shared)


def test_a_model_comes_back_into_a_fresh_one(path):
    def make():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))

    model, x = make(), torch.randn(4, 3, 6, 6)
    model(x)
    with torch.no_grad():
        model[4].weight.mul_(torch.rand(5, 128) < 0.1)
    save_sparse(path, model)
    fresh = make()
    fresh.load_state_dict(load_sparse(path))
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    keep_zeros(model)
    save_sparse(path, model)
    assert same(load_sparse(path), model.state_dict())
    layouts = to_sparse_csr(nn.Sequential(fresh[4])).model
    save_sparse(path, layouts)
    assert same(load_sparse(path), layouts.state_dict())


NAMES = ("", "a", "a.b", "mask:a", "values:a", "dense:a", "__metadata__", "é/\n")


def test_names_are_any_text(path):
    tensors = {name: sparse((30, 30)) for name in NAMES}
    save_sparse(path, tensors)
    assert same(load_sparse(path), tensors)


def test_the_same_tensors_make_the_same_file_and_stay_as_they_are(path):
    tensors = {name: sparse((60, 50)) for name in "abcdefgh"}
    before = {name: raw(tensor) for name, tensor in tensors.items()}
    save_sparse(path, tensors)
    first = path.read_bytes()
    save_sparse(str(path), tensors)
    assert path.read_bytes() == first
    assert {name: raw(tensor) for name, tensor in tensors.items()} == before


def test_a_damaged_file_is_refused_wherever_it_is_damaged(path):
    save_sparse(path, {"weight": sparse((40, 30)), "bias": torch.randn(10), "rows": torch.ones(20, 30)})
    whole = path.read_bytes()
    for cut in (0, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InvalidInputError, match="damaged"):
            load_sparse(path)
    for at in range(0, len(whole), 29):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((InvalidInputError, UnsupportedError)):
            load_sparse(path)


def rewritten(path, change):
    """Change what a file says about its tensors, its hash made to agree."""
    from sisopt.adapters.torch.sparse_files import _hash

    with safetensors.safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()[FORMAT])
        parts = {key: file.get_tensor(key) for key in file.keys()}
    change(described["tensors"], parts)
    described["sha256"] = _hash(described["tensors"], parts)
    path.write_bytes(safetensors.save(parts, {FORMAT: json.dumps(described)}))


LIES = {
    "shape": lambda entries, parts: entries[0].update(shape=[40, 31]),
    "huge shape": lambda entries, parts: entries[0].update(shape=[1 << 40, 1 << 40]),
    "negative shape": lambda entries, parts: entries[0].update(shape=[-40, -30]),
    "shape of text": lambda entries, parts: entries[0].update(shape="many"),
    "dtype": lambda entries, parts: entries[0].update(dtype="float64"),
    "unknown dtype": lambda entries, parts: entries[0].update(dtype="object"),
    "kept": lambda entries, parts: entries[0].update(kept=entries[0]["kept"] + 1),
    "planes": lambda entries, parts: entries[0].update(planes=[1, 2, 3, 4]),
    "no planes": lambda entries, parts: entries[0].pop("planes"),
    "name": lambda entries, parts: entries[0].update(name="other"),
    "twice": lambda entries, parts: entries.append(entries[0]),
    "nothing like it": lambda entries, parts: entries.append({"name": "b", "same_as": "c"}),
    "left out": lambda entries, parts: entries.pop(),
    "mask": lambda entries, parts: parts["mask:weight"].fill_(255),
    "values": lambda entries, parts: parts.update({"values:weight": parts["values:weight"][:-1].clone()}),
    "signs": lambda entries, parts: entries[0].update(signs=True),
    "no signs": lambda entries, parts: entries[0].pop("signs"),
    "no entry": lambda entries, parts: entries.append(7),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_contradicts_itself_is_refused(path, lie):
    save_sparse(path, {"weight": sparse((40, 30)), "bias": torch.randn(10)})
    rewritten(path, lambda entries, parts: None)
    assert set(load_sparse(path)) == {"weight", "bias"}
    rewritten(path, LIES[lie])
    with pytest.raises(InvalidInputError, match="damaged"):
        load_sparse(path)


def test_no_more_is_unpacked_than_the_shape_asks_for(path):
    import zlib

    bomb = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    stream = torch.frombuffer(bytearray(bomb.compress(bytes(1 << 24)) + bomb.flush()), dtype=torch.uint8)
    save_sparse(path, {"weight": torch.zeros(1 << 20)})
    rewritten(path, lambda entries, parts: parts.update({"mask:weight": stream}))
    with pytest.raises(InvalidInputError, match="damaged"):
        load_sparse(path)


def test_foreign_files_are_told_apart(path, tmp_path):
    path.write_bytes(safetensors.save({"weight": torch.ones(3)}))
    with pytest.raises(InvalidInputError, match="not written by save_sparse"):
        load_sparse(path)
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(InvalidInputError, match="damaged or no safetensors"):
        load_sparse(path)
    header = json.dumps({"__metadata__": {FORMAT: json.dumps({"version": 9, "tensors": []})}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UnsupportedError, match="version 9"):
        load_sparse(path)
    with pytest.raises(FileNotFoundError):
        load_sparse(tmp_path / "nothing")


def test_a_pickle_in_a_file_is_not_run(path):
    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('executed')",)

    torch.save({"weight": Trap()}, path)
    with pytest.raises(InvalidInputError):
        load_sparse(path)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"a": 3}, InvalidInputError, "'a' must be a tensor, got int"),
        ({3: torch.ones(2)}, InvalidInputError, "must be str, got 3"),
        ([torch.ones(2)], InvalidInputError, "a state dict, got list"),
        (
            {"a": torch.ones(2, 2).to_sparse()},
            UnsupportedError,
            "'a' must be a dense tensor, got layout torch.sparse_coo",
        ),
        ({"a": torch.ones(2, dtype=torch.complex128)}, UnsupportedError, "'a' is of dtype torch.complex128"),
        ({"a": torch.ones(2, device="meta")}, InvalidInputError, "meta device"),
    ],
)
def test_what_cannot_be_written_is_refused_and_the_older_file_stays(path, value, error, message):
    save_sparse(path, {"a": torch.ones(3)})
    with pytest.raises(error, match=message):
        save_sparse(path, value)
    assert torch.equal(load_sparse(path)["a"], torch.ones(3))
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_places_where_no_file_can_be_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="there is no folder"):
        save_sparse(tmp_path / "no" / "file", {})
    with pytest.raises(InvalidInputError, match="it is a folder"):
        save_sparse(tmp_path, {})


def test_a_link_stays_a_link_and_no_tensors_make_a_file(path, tmp_path):
    link = tmp_path / "link"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("no links here")
    save_sparse(link, {})
    assert link.is_symlink()
    assert load_sparse(path) == load_sparse(link) == {}


def test_the_examples_of_the_docstrings_run():
    outcome = doctest.testmod(importlib.import_module("sisopt.adapters.torch.sparse_files"))
    assert outcome.attempted > 4
    assert not outcome.failed


def test_conjugate_and_negative_views_are_told_apart(tmp_path):
    a = torch.randn(50, dtype=torch.complex64)
    for tensors in ({"a": a, "b": a.conj()}, {"a": a.imag, "b": a.conj().imag}):
        save_sparse(tmp_path / "x.safetensors", tensors)
        found = load_sparse(tmp_path / "x.safetensors")
        assert all(torch.equal(found[name], tensor.resolve_conj().resolve_neg()) for name, tensor in tensors.items())
