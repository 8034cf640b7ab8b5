"""A convolutional network for handwritten digits (digit-recognizer-py), on MNIST."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.datasets import SOURCES, read
from bench.models import Subject, Unavailable, agreement, in_batches
from bench.models.fetch import Archive, state_dict

ARCHIVE = Archive(
    "digit-recognizer-py==0.1.0",
    "digit_recognizer_py-0.1.0-py3-none-any.whl",
    "58a3132a4c3ccf04175142e0c9464e5fe132421aa26d7130cbd6b1d2c03c7b12",
)
WEIGHTS = "digit_recognizer/models/handwriting_model.pth"
MEAN, STD = 0.1307, 0.3081  # of MNIST's pixels, as the weights were trained with
CALIBRATION = 2000  # images, of those that MNIST trains with
BATCH = 500


class DigitNet(nn.Module):
    """Three convolutions with ReLU and max-pooling, two dense layers; 28 x 28 pixels to the scores of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.fc_layers = nn.Sequential(nn.Linear(128 * 3 * 3, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores, (n, 10), of images (n, 1, 28, 28)."""
        return self.fc_layers(self.conv_layers(images).flatten(1))


def subject() -> Subject:
    """Return the network with its weights; the metric is the accuracy on MNIST's test images, in per cent."""
    model = DigitNet()
    model.load_state_dict(state_dict(*ARCHIVE.read(WEIGHTS)))
    (source,) = (source for source in SOURCES if source.name == "mnist")
    try:
        dataset = read(source)
    except OSError as error:
        message = f"MNIST cannot be had ({error})"
        raise Unavailable(message) from error

    def normalized(pixels: object) -> list[Tensor]:
        images = torch.as_tensor(pixels).reshape(-1, *dataset.shape)
        return list(((images - MEAN) / STD).split(BATCH))

    test = normalized(dataset.test.pixels)
    labels = torch.from_numpy(dataset.test.labels)
    return Subject(
        "digits",
        model.eval(),
        normalized(dataset.calibration.pixels[:CALIBRATION]),
        outputs=lambda model: in_batches(model, test),
        score=lambda outputs, _: {"accuracy": agreement(outputs.argmax(1), labels)},
        primary="accuracy",
        levels=(0.8, 0.9, 0.95),
    )
