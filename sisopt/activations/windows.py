"""The windows of two-dimensional pooling, as indices of samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError

Windows = npt.NDArray[np.int64]


def pooling_windows(
    n_images: int,
    height: int,
    width: int,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
) -> Windows:
    """Return the windows of two-dimensional max-pooling, those of ``torch.nn.functional.max_pool2d``.

    Parameters
    ----------
    n_images, height, width : int
        Samples are the positions (image, row, column) in that order, the column running fastest.
    kernel_size, stride, padding, dilation : int or pair of int
        As in PyTorch, for rows and columns; the stride is the kernel size by default.
    ceil_mode : bool
        Whether a last window that does not start behind the image may end beyond the padding.

    Returns
    -------
    ndarray of int64, shape (n_images * out_height * out_width, kernel_height * kernel_width)
        Sample indices, -1 for padding; windows in the order (image, row, column).

    Raises
    ------
    InvalidInputError
        If a number is not an integer in its range, no window fits, or one would hold padding alone.

    Examples
    --------
    >>> import sisopt
    >>> sisopt.pooling_windows(1, 2, 4, (2, 2))  # an image of 2 x 4
    array([[0, 1, 4, 5],
           [2, 3, 6, 7]])
    """
    n_images = _integer("n_images", n_images, 1)
    size = (_integer("height", height, 1), _integer("width", width, 1))
    kernel = _pair("kernel_size", kernel_size, 1)
    steps = kernel if stride is None else _pair("stride", stride, 1)
    pads = _pair("padding", padding, 0)
    spread = _pair("dilation", dilation, 1)
    rows, columns = (
        _axis_windows(*numbers, ceil_mode=ceil_mode) for numbers in zip(size, kernel, steps, pads, spread, strict=True)
    )
    # (out_height, out_width, kernel_height, kernel_width)
    row, column = rows[:, None, :, None], columns[None, :, None, :]
    position = np.where((row >= 0) & (column >= 0), row * size[1] + column, -1)
    first = size[0] * size[1] * np.arange(n_images, dtype=np.int64)[:, None, None, None, None]
    return np.where(position >= 0, first + position, -1).reshape(-1, kernel[0] * kernel[1])


def _axis_windows(n: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil_mode: bool) -> Windows:
    """Return the positions (n_windows, kernel) of the windows along one axis, -1 outside of it."""
    extent = dilation * (kernel - 1) + 1
    if 2 * padding > extent:
        msg = f"padding must be at most half of the extent {extent} of a dilated kernel, got {padding}"
        raise InvalidInputError(msg)
    room = n + 2 * padding - extent
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= n + padding:
        count -= 1  # a window may not start in the padding at the far end
    if count < 1:
        msg = f"no window of extent {extent} fits into {n} positions with a padding of {padding}"
        raise InvalidInputError(msg)
    starts = stride * np.arange(count, dtype=np.int64) - padding
    positions = starts[:, None] + dilation * np.arange(kernel, dtype=np.int64)
    inside = (positions >= 0) & (positions < n)
    if not inside.any(axis=1).all():
        msg = f"a window over {n} positions with padding {padding} and dilation {dilation} would hold padding alone"
        raise InvalidInputError(msg)
    return np.where(inside, positions, -1)


def _integer(name: str, value: object, least: int) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        msg = f"{name} must be an integer of at least {least}, got {value!r}"
        raise InvalidInputError(msg)
    return int(value)


def _pair(name: str, value: object, least: int) -> tuple[int, int]:
    if isinstance(value, tuple | list):
        if len(value) != 2:
            msg = f"{name} must be an integer or a pair of them, got {value!r}"
            raise InvalidInputError(msg)
        return _integer(name, value[0], least), _integer(name, value[1], least)
    both = _integer(name, value, least)
    return both, both
