"""An entry of the challenge: two convolutions behind scattering; image and mirror image are averaged."""

from torch import Tensor, nn

from wavescat.models.blocks import field_means
from wavescat.scattering import Scattering2D


class Shallow(nn.Module):
    """Scattering, batch norm, two 3×3 convolutions, means over 2×2 fields, dropout, linear.

    (B, C, H, W) → (B, classes). In evaluation, the scores of image and mirror image are averaged."""

    def __init__(self, shape, num_classes, channels=128):
        super().__init__()
        maps = 81 * shape[0]

        def convolution(before):
            return [
                nn.Conv2d(before, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]

        self.scattering = Scattering2D(2, shape[1:], flat=True)
        self.body = nn.Sequential(nn.BatchNorm2d(maps), *convolution(maps), *convolution(channels))
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(4 * channels, num_classes)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(field_means(self.body(self.scattering(x)), 2).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x) if self.training else (self.scores(x) + self.scores(x.flip(-1))) / 2


def shallow(shape, num_classes):
    return Shallow(shape, num_classes)
