"""The models that the bench prunes: shapes, tokens, tones, windows, metrics. Nothing is fetched, little is trained."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import types
import zipfile
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from bench.cache import cache_dir  # noqa: E402
from bench.models import (  # noqa: E402
    Subject,
    agreement,
    crepe,
    digits,
    efficientnet,
    forecaster,
    in_batches,
    mean_cosine,
    minilm,
    series,
    subjects,
)
from bench.models.fetch import Archive, Unavailable  # noqa: E402


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SISOPT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


def n_parameters(make):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


# Archives


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/a.txt", b"A")
        archive.writestr("thing/b.txt", b"B")
    return path


def archive_of(wheel):
    return Archive("thing==1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest())


def fake_pip(monkeypatch, content, name):
    calls = []

    def run(command, **_):
        calls.append(command)
        (folder,) = (part.removeprefix("--dest=") for part in command if part.startswith("--dest="))
        folder = type(cache_dir())(folder)
        folder.mkdir()
        (folder / name).write_bytes(content)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_archive_is_fetched_once_and_again_when_it_was_damaged(wheel, monkeypatch):
    archive = archive_of(wheel)
    calls = fake_pip(monkeypatch, wheel.read_bytes(), wheel.name)
    assert archive.read("thing/b.txt", "thing/a.txt") == [b"B", b"A"]
    assert archive.read("thing/a.txt") == [b"A"]
    assert len(calls) == 1 and "--no-deps" in calls[0] and calls[0][-1] == "thing==1.0"
    (cache_dir() / "archives" / wheel.name).write_bytes(b"damaged")
    assert archive.read("thing/a.txt") == [b"A"]
    assert len(calls) == 2


def test_archive_that_is_another_is_an_error_and_not_kept(wheel, monkeypatch):
    fake_pip(monkeypatch, b"something else", wheel.name)
    with pytest.raises(ValueError, match=r"thing==1\.0.*is not what it was"):
        archive_of(wheel).read("thing/a.txt")
    assert not (cache_dir() / "archives" / wheel.name).exists()


def test_archive_that_cannot_be_had_says_why(wheel, monkeypatch):
    def run(command, **_):
        raise subprocess.CalledProcessError(1, command, stderr=b"WARNING: slow\nERROR: no such version\n")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", run)
        with pytest.raises(Unavailable, match="thing==1.0 cannot be fetched .*no such version"):
            archive_of(wheel).read("thing/a.txt")
    fake_pip(monkeypatch, b"", "thing-1.0.tar.gz")
    with pytest.raises(Unavailable, match=r"brought \['thing-1.0.tar.gz'\]"):
        archive_of(wheel).read("thing/a.txt")


# Subjects and metrics


def test_subject_remembers_the_dense_outputs_when_its_model_is_pruned():
    model = torch.nn.Linear(3, 2).eval()
    test = torch.eye(3)
    subject = Subject(
        "linear",
        model,
        [test],
        outputs=lambda model: in_batches(model, [test[:2], test[2:]]),
        score=lambda outputs, dense: {"distance": float((outputs - dense).abs().max())},
        primary="distance",
        levels=(0.5,),
    )
    assert subject.metrics(model) == subject.dense == {"distance": 0.0}
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    assert subject.metrics(model)["distance"] == float(subject.reference.abs().max()) > 0
    assert subject.dense == {"distance": 0.0}


def test_agreement_and_cosine_by_hand():
    assert agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 75.0
    ours, theirs = (
        torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]),
        torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 5.0]]),
    )
    assert mean_cosine(ours, theirs) == pytest.approx((1 + 0 + 0.5**0.5) / 3)


def test_every_subject_has_a_maker():
    assert list(subjects()) == [
        "digits",
        "efficientnet",
        "crepe",
        "minilm",
        *(f"forecaster-{seed}" for seed in (0, 1, 2)),
    ]


# Digits


def test_digit_network_scores_ten_digits():
    assert n_parameters(digits.DigitNet) == 390_410
    assert digits.DigitNet()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


# EfficientNet-Lite0


def test_efficientnet_has_the_published_size_and_halves_its_maps_five_times():
    assert n_parameters(efficientnet.EfficientNetLite0) == 4_652_008
    model = efficientnet.EfficientNetLite0().eval()
    sides = []
    model.conv_head.register_forward_hook(lambda _module, inputs, _outputs: sides.append(tuple(inputs[0].shape[1:])))
    with torch.inference_mode():
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
    assert sides == [(320, 2, 2)]
    assert sum(block.adds for block in model.blocks) == 9


@pytest.mark.parametrize(("kernel", "before", "behind"), [(3, 0, 1), (5, 1, 2)])
def test_strided_convolutions_pad_the_far_sides_more(kernel, before, behind):
    maps = torch.randn(1, 2, 8, 8)
    convolution = torch.nn.Conv2d(2, 2, kernel, 2, groups=2, bias=False)
    padded = np.pad(maps.numpy(), ((0, 0), (0, 0), (before, behind), (before, behind)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))[:, :, ::2, ::2]
    expected = np.einsum("nchwij,cij->nchw", windows, convolution.weight.detach().numpy()[:, 0])
    assert expected.shape == (1, 2, 4, 4)
    got = convolution(efficientnet._padded(maps, convolution)).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_crops_repeat_and_come_from_one_photo_after_the_other(monkeypatch):
    monkeypatch.setattr(efficientnet, "SIDE", 8)
    photos = [torch.full((3, 30, 40), float(level)) for level in range(3)]
    batches, of = efficientnet.crops(photos, 31, np.random.default_rng(0))
    again, _ = efficientnet.crops(photos, 31, np.random.default_rng(0))
    assert [tuple(batch.shape) for batch in batches] == [(25, 3, 8, 8), (6, 3, 8, 8)]
    assert all(torch.equal(*pair) for pair in zip(batches, again, strict=True))
    levels = torch.cat(batches)[:, 0, 0, 0]
    torch.testing.assert_close(levels, of * 1.0)
    assert torch.bincount(of).tolist() == [11, 10, 10] and of.tolist() == sorted(of.tolist())


# CREPE


def test_crepe_has_the_published_size_and_gives_likelihoods():
    assert n_parameters(crepe.Crepe) == 22_239_976
    small = crepe.Crepe((1, 8, 4, 4, 4, 4, 4)).eval()
    with torch.inference_mode():
        likelihoods = small(torch.randn(3, 1024))
    assert likelihoods.shape == (3, 360)
    assert (0 < likelihoods.min()) and (likelihoods.max() < 1)


def test_pitch_is_the_mean_of_the_bins_around_the_likeliest():
    likelihoods = torch.zeros(4, 360)
    likelihoods[0, 100] = 1.0
    likelihoods[1, 100], likelihoods[1, 102], likelihoods[1, 300] = 0.6, 0.2, 0.5  # 300 is too far to count
    likelihoods[2, 0], likelihoods[2, 1] = 0.5, 0.5
    likelihoods[3, 359] = 0.9
    bins = torch.tensor([100.0, 100.5, 0.5, 359.0], dtype=torch.float64)
    torch.testing.assert_close(crepe.pitch(likelihoods), 1997.3794084376191 + 20 * bins)
    assert crepe.near(torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([50.0, -50.0, 51.0, 0.0])) == 75.0


def test_tones_have_the_pitches_that_they_claim():
    frames, cents = crepe.tones(200, True, np.random.default_rng(0))
    torch.testing.assert_close(frames.mean(1), torch.zeros(200), rtol=0, atol=1e-5)
    torch.testing.assert_close(frames.std(1, correction=0), torch.ones(200), rtol=0, atol=1e-4)
    time = (np.arange(400) - 199.5) / 16_000  # the middle, where glides have not gone far
    missed = []
    for frame, pitch in zip(frames.numpy()[:, 312:712], cents.numpy(), strict=True):
        angles = 2 * np.pi * 10 * 2 ** (pitch / 1200) * np.outer(time, np.arange(1, 9))
        waves = np.c_[np.ones(400), np.sin(angles), np.cos(angles)]
        rest = frame - waves @ np.linalg.lstsq(waves, frame, rcond=None)[0]
        missed.append(np.mean(rest**2) / np.mean(frame**2))
    assert max(missed) < 0.2
    assert np.median(missed) < 0.01


def test_calibration_and_test_pitches_lie_apart():
    low = 1200 * np.log2(crepe.LOWEST / 10)
    for odd in (False, True):
        _, cents = crepe.tones(300, odd, np.random.default_rng(0))
        cells = ((cents.numpy() - low) // crepe.CELL).astype(int)
        assert set(cells % 2) == {int(odd)}
        assert len(set(cells)) > 40
        assert low <= cents.min() <= cents.max() <= 1200 * np.log2(crepe.HIGHEST / 10)


# MiniLM


def small_minilm():
    return minilm.MiniLM(vocabulary=50, width=16, n_heads=4, n_layers=2, inner=24).eval()


def test_minilm_has_the_published_size():
    pooler = 384 * 384 + 384
    assert n_parameters(minilm.MiniLM) + pooler == 22_713_216


def test_minilm_is_torchs_own_encoder_and_a_mean():
    model = small_minilm()
    ids = torch.randint(1, 50, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    hidden = model.embeddings(ids)
    for layer in model.encoder["layer"]:
        twin = torch.nn.TransformerEncoderLayer(16, 4, 24, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True)
        attention = layer.attention["self"]
        parts = (attention.query, attention.key, attention.value)
        output, inner = layer.attention["output"], layer.intermediate["dense"]
        twin.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
                "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
                **{f"self_attn.out_proj.{name}": value for name, value in output.dense.state_dict().items()},
                **{f"norm1.{name}": value for name, value in output.LayerNorm.state_dict().items()},
                **{f"linear1.{name}": value for name, value in inner.state_dict().items()},
                **{f"linear2.{name}": value for name, value in layer.output.dense.state_dict().items()},
                **{f"norm2.{name}": value for name, value in layer.output.LayerNorm.state_dict().items()},
            }
        )
        hidden = twin(hidden, src_key_padding_mask=mask == 0)
    means = torch.stack([tokens[seen == 1].mean(0) for tokens, seen in zip(hidden, mask, strict=True)])
    torch.testing.assert_close(model(ids, mask), F.normalize(means, dim=1))


def test_padding_changes_no_embedding():
    model = small_minilm()
    ids, mask = torch.randint(1, 50, (2, 5)), torch.ones(2, 5, dtype=torch.int64)
    longer = {"input_ids": F.pad(ids, (0, 3)), "attention_mask": F.pad(mask, (0, 3))}
    got = in_batches(model, [longer, {"input_ids": ids, "attention_mask": mask}])
    torch.testing.assert_close(got[:2], got[2:])
    torch.testing.assert_close(got.norm(dim=1), torch.ones(4))


def test_texts_become_batches_of_word_pieces(monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "pitch", "##es", "##fork", ",", "a"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    monkeypatch.setattr(minilm, "MOST_TOKENS", 6)
    monkeypatch.setattr(minilm, "BATCH", 2)
    tokenize = minilm.tokenizer(made.to_str().encode())
    first, second = minilm.tokenized(["Pitches, à pitchfork", "a", "zzz"], tokenize)
    assert first["input_ids"].tolist() == [[2, 4, 5, 7, 8, 3], [2, 8, 3, 0, 0, 0]]
    assert first["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert second["input_ids"].tolist() == [[2, 1, 3]]


def test_pearson_of_all_pairs_by_hand():
    embeddings = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])  # cosines of the pairs: 1, 0, 0
    ratings = np.array([[9.0, 0.8, 0.3], [9.0, 9.0, 0.1], [9.0, 9.0, 9.0]])  # only what is above the diagonal counts
    expected = np.corrcoef([1.0, 0.0, 0.0], [0.8, 0.3, 0.1])[0, 1]
    assert minilm.pearson_with_people(embeddings, ratings) == pytest.approx(expected)


# Forecaster


SMALL = forecaster.Recipe(0, width=8, n_blocks=2, steps=3, batch=4)


def test_forecaster_is_the_sum_of_its_blocks():
    model = forecaster.Forecaster(replace(SMALL, n_blocks=3))
    past = torch.randn(5, 48)
    rest, total = past, 0
    for block in model.blocks:
        explained, added = block(rest)
        rest, total = rest - explained, total + added
    assert model(past).shape == (5, 12)
    torch.testing.assert_close(model(past), total)
    weights = 48 * 256 + 3 * 256 * 256 + 256 * (48 + 12)
    biases = 4 * 256 + 48 + 12
    assert n_parameters(lambda: forecaster.Forecaster(forecaster.Recipe(0))) == 3 * (weights + biases)


def test_no_month_that_is_forecast_for_the_test_trains():
    months = {"a": np.arange(200.0), "b": np.arange(60.0)}  # of b too little is left to train with
    training, test = (forecaster.pieces(months, held_out) for held_out in (False, True))
    assert training.shape == (200 - 24 - 60 + 1, 60)
    assert training.max() == 200 - 24 - 1
    assert test[:13, -12:].min() == 200 - 24
    assert test[:13].max() == 199
    assert len(test) == 13 + 1


def test_windows_are_relative_to_the_last_year_and_go_back():
    pieces = np.random.default_rng(0).uniform(50, 150, (7, 60))
    windows = forecaster.Windows.of(pieces)
    torch.testing.assert_close(windows.past[:, -12:].mean(1), torch.zeros(7), rtol=0, atol=1e-5)
    np.testing.assert_allclose(windows.in_people(windows.future), pieces[:, 48:], rtol=1e-6)


def test_smape_by_hand():
    assert forecaster.smape(torch.tensor([110.0, 100.0]), torch.tensor([90.0, 100.0])) == pytest.approx(10.0)


def test_forecaster_is_trained_once_and_alike_from_a_seed(monkeypatch):
    windows = forecaster.Windows.of(np.random.default_rng(0).uniform(50, 150, (9, 60)))
    first = forecaster.load_or_train(windows, SMALL)
    again = forecaster.train(windows, SMALL)
    other = forecaster.train(windows, replace(SMALL, seed=1))
    monkeypatch.setattr(forecaster, "train", None)
    read = forecaster.load_or_train(windows, SMALL)
    name = "blocks.0.backcast.weight"
    for model in (again, read):
        assert all(map(torch.equal, first.state_dict().values(), model.state_dict().values()))
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


@pytest.fixture
def table(monkeypatch):
    """Return a maker of pickles like those that pandas makes of a table."""

    class Thing:
        def __new__(cls, *_arguments):
            return super().__new__(cls)

        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return type(self), self.arguments, self.__dict__.get("state")

    Thing.__module__, Thing.__qualname__ = "pandas.stand_in", "Thing"
    monkeypatch.setitem(sys.modules, "pandas.stand_in", types.SimpleNamespace(Thing=Thing))

    def make(names, values):
        texts = np.array([names, ["title"] * len(names)], dtype=object)
        blocks = (
            Thing(texts, slice(0, 2, 1), 2),
            Thing(values[None], slice(2, 3, 1), 2),
        )
        header = Thing("Index", {"data": np.array(["Series_ID", "Title", "Employed"], dtype=object), "name": None})
        frame = Thing()
        frame.state = {"_mgr": Thing(blocks, [header, Thing()])}
        return pickle.dumps(frame)

    return make


def test_series_are_read_without_pandas_from_the_last_gap_on(table, monkeypatch):
    import lzma

    values = np.array([1.0, np.nan, 2.0, 3.0, 10.0, 11.0])
    content = lzma.compress(table(["x", "x", "x", "x", "y", "y"], values))
    monkeypatch.setattr(Archive, "read", lambda *_: [content])
    found = series.employment()
    assert {name: list(months) for name, months in found.items()} == {"x": [2.0, 3.0], "y": [10.0, 11.0]}


def test_pickles_that_call_anything_are_refused():
    with pytest.raises(pickle.UnpicklingError, match="builtins.print"):
        series.columns(pickle.dumps(print))
