"""A small classifier of MNIST digits, whose features and labels need no download. Its weights are in `digits.pth`.

`python -m ganforge.metrics.digits` trained them (torch 2.14, two CPU cores, 3 minutes) and printed the accuracy on the
test set.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.v2 import RandomAffine

WEIGHTS = Path(__file__).with_name("digits.pth")


class DigitClassifier(nn.Module):
    """Grey images (N, 1, 28, 28) in [0, 1] to 64 features with mean 0 and variance 1 on MNIST, and 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, padding=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64, bias=False), nn.BatchNorm1d(64, affine=False)),
        )
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, self.classifier(features)


def train(root: str, epochs: int = 15, batch_size: int = 128, seed: int = 0) -> DigitClassifier:
    """AdamW with a one-cycle learning rate, on digits rotated by up to 12 degrees and shifted by up to 2 pixels."""
    from ganforge.data.mnist import MNIST

    torch.manual_seed(seed)
    data = MNIST(root, batch_size=batch_size, shape=[1, 28, 28], num_classes=10)
    data.prepare_data()
    images, labels = data.load("train")
    images = images.float() / 255
    network = DigitClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01, fused=True)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    augment = RandomAffine(12, translate=(2 / 28, 2 / 28))
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: steps // epochs * batch_size].split(batch_size):
            batch = torch.cat([augment(part) for part in images[rows].split(8)])  # eight digits share a transformation
            loss = cross_entropy(network(batch)[1], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    print(f"accuracy on the test set: {accuracy(network, *data.load('test')):.4f}")
    return network


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of digits (N, 1, 28, 28) uint8 that are classified correctly."""
    predictions = torch.cat([network(part.float() / 255)[1].argmax(1) for part in images.split(1000)])
    return (predictions == labels).float().mean().item()


if __name__ == "__main__":
    torch.save(train(sys.argv[1] if sys.argv[1:] else "data").state_dict(), WEIGHTS)
