"""A network's report as one HTML page: what it says here, how it looks in the template beside this file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from .report_plot import curves_figure, errors_figure, has_points, svg_of
from .report_table import Column, filled_columns, macs
from .thumbnails import FULL, LARGEST, map_of

if TYPE_CHECKING:
    from .report import LayerReport, NetworkReport

MASK_SIZE = 160  # pixels of a map's longer side, at most; a place gets whole ones
MEANINGS = {
    "MACs": "multiply-adds of the dense layer for one sample of the network",
    "left": "those with weights that are not zero",
    "output err": "‖R(Z) − Y‖ / ‖Y‖ on the calibration data, Y what the dense network's layer puts out",
    "held out": "the same, estimated on samples that the weights were not fitted to",
    "rel. err": "the distance to pre-activations with the dense outputs: 0 the dense layer, 1 the best constant one",
    "gap": "how far the convex program's answer can be from optimal at most, relative: proved by a dual point",
}


def page(report: NetworkReport) -> str:
    """Return the page."""
    try:
        import jinja2  # noqa: PLC0415  an extra
        from markupsafe import Markup  # noqa: PLC0415  comes with jinja2
    except ModuleNotFoundError as error:
        msg = 'an HTML report needs jinja2: pip install "sisopt[report]"'
        raise ModuleNotFoundError(msg, name=error.name) from None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_text("report_page.html.jinja"))
    script = _text("report_page.js")
    drawn = svg_of(curves_figure, report) if has_points(report) else None
    errors = svg_of(errors_figure, report)
    return template.render(
        _content(report),
        # from files of ours and from matplotlib, which escapes names: nothing else is let through as it is
        style=Markup(_text("report_page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode(),
        curves=drawn and Markup(drawn),
        errors=errors and Markup(errors),
    )


def _text(name: str) -> str:
    """Return a file that lies beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _content(report: NetworkReport) -> dict[str, Any]:
    """Return what the page says, as plain text and numbers."""
    from .. import __version__  # noqa: PLC0415  the package is there by now

    columns = filled_columns(report.layers, report)
    headings = [{"title": "#", "type": "number", "total": ""}, {"title": "layer", "type": "text", "total": ""}]
    headings += [
        {"title": column.title, "type": "number" if column.value else "text", "total": column.total}
        for column in columns
    ]
    rows = [
        [_cell(str(n), n), _cell(layer.name, layer.name), *(_column_cell(column, layer) for column in columns)]
        for n, layer in enumerate(report.layers, start=1)
    ]
    titles = {column.title for column in columns}
    n_zeros = report.n_weights - report.n_kept
    return {
        "version": __version__,
        "title": f"{report.sparsity:.2%} zeros in {_layers(len(report.included))}",
        "facts": list(_facts(report)),
        "headings": headings,
        "rows": rows,
        "meanings": [(title, text) for title, text in MEANINGS.items() if title in titles],
        "bars": [_bar(layer, n_zeros) for layer in report.layers],
        "zeros_of_all": f"there are {n_zeros:,} in {report.n_weights:,} weights",
        "curves_text": _curves_text(report),
        "gaps_text": _gaps_text(report),
        "masks": [_mask(layer) for layer in report.layers if layer.density],
        "asked": [(key, _plain(value)) for key, value in report.options.items() if value not in (None, {}, [])],
    }


def _column_cell(column: Column, layer: LayerReport) -> dict[str, str]:
    return _cell(column.text(layer), column.value(layer) if column.value else column.text(layer))


def _cell(text: str, value: str | float | None) -> dict[str, str]:
    """Return what a cell shows, and the text or number that its row is sorted by, nothing where that is not known."""
    return {"text": text, "value": "" if value is None else str(value), "type": "text" if value == text else "number"}


def _facts(report: NetworkReport) -> Iterator[tuple[str, str]]:
    """Yield what stands at the top: a term and what it is."""
    yield "zeros", f"{report.sparsity:.2%}"
    yield "weights kept", f"{report.n_kept:,} of {report.n_weights:,}"
    yield "layers made sparse", f"{sum(layer.sparsity > 0.0 for layer in report.layers)} of {len(report.layers)}"
    if report.flops:
        left = f"{macs(report.flops_kept, report.flops)} of {macs(report.flops, report.flops)}"
        yield "multiply-adds left", left
    for term, name, form in (
        ("largest output error", "output_error", ".4f"),
        ("largest error held out", "held_out_error", ".4f"),
        ("largest certified gap", "gap", ".1e"),
    ):
        known = [(getattr(x, name), x.name) for x in report.included if getattr(x, name) is not None]
        if known:
            value, where = max(known)
            yield term, f"{value:{form}} in {where}"
    yield "time", f"{report.seconds:.1f} s"


def _bar(layer: LayerReport, n_zeros: int) -> dict[str, str]:
    """Return a layer's bar; its text says how much of all zeros it has."""
    own = layer.n_weights - layer.n_kept
    text = f"{layer.sparsity:.2%}: {own:,} of {layer.n_weights:,}"
    if layer.included and own:
        text += f", {own / n_zeros:.1%} of all zeros"
    elif not own:
        text += f" ({layer.status})" * bool(layer.status)
    return {"name": layer.name, "percent": f"{100.0 * layer.sparsity:.4f}", "text": text}


def _curves_text(report: NetworkReport) -> str:
    """Return what the picture of errors and zeros shows."""
    by_errors = report.options.get("allocation") in ("error", "flops")
    if not any(layer.curve for layer in report.layers):
        if by_errors:
            return (
                "Marks: where the layers ended. How errors grow with zeros was not measured: that is done where "
                "several layers without goals of their own share the zeros out."
            )
        return (
            "Marks: where the layers ended. How errors grow with zeros is measured where the zeros are shared out by "
            'errors: allocation="error" or "flops".'
        )
    if by_errors:
        return (
            "Lines: the errors that zeros would cost each layer alone, measured quickly, on part of it, before the "
            "zeros were shared out. Marks: where the layers ended, behind others that are sparse."
        )
    return "Lines: each layer's errors at several sparsities. Marks: the network of this report."


def _gaps_text(report: NetworkReport) -> str:
    gaps = [layer.gap for layer in report.included if layer.gap is not None]
    if not gaps:
        return (
            "No layer has a certified gap: no convex program was solved. It is with a goal relative_error, and with "
            'effort="full".'
        )
    text = f"{_layers(len(gaps))} with a certified gap, {max(gaps):.1e} at most"
    tol = report.options.get("tol")
    return f"{text}; {tol:g} was asked for." if isinstance(tol, float) else f"{text}."


def _mask(layer: LayerReport) -> dict[str, Any]:
    """Return a layer's map as a picture."""
    densities = map_of(layer.density)
    n_rows, n_columns = densities.shape
    scale = max(1, MASK_SIZE // max(n_rows, n_columns, LARGEST // 4))
    most = int(densities.max())
    text = f"{layer.sparsity:.2%} zeros" + (f"; densest place {most / FULL:.0%} kept" if 0 < most < FULL else "")
    return {
        "name": layer.name,
        "png": base64.b64encode(_png(densities)).decode(),
        "width": scale * n_columns,
        "height": scale * n_rows,
        "text": text,
    }


def _png(densities: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return a map as a picture in PNG: white where all weights are zero, black at its densest."""
    from PIL import Image  # noqa: PLC0415  comes with matplotlib

    most = max(1, int(densities.max()))
    grey = FULL - densities.astype(np.int64) * FULL // most
    stream = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)}"


def _plain(value: object) -> str:
    """Return an option as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
