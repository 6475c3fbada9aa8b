"""Agreement of ganforge's metrics with those of torch-fidelity, the reference implementation.

    python benchmarks/agreement.py [images=2200]

Both read the same two folders of synthetic images with the same random Inception weights. By default there are more
images than features, which takes 20 minutes on two cores. The last column is the relative difference.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from evaluation import ROOT, options, write_images, write_weights
from rich.console import Console
from rich.table import Table
from torch_fidelity import calculate_metrics

NAMES = {
    "fid_inception": "frechet_inception_distance",
    "kid_inception": "kernel_inception_distance_mean",
    "is_inception": "inception_score_mean",
    "precision_inception": "precision",
    "recall_inception": "recall",
}


def main() -> None:
    count = options(images=2200)["images"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_weights(folder / "torch")
        fake, real = (write_images(folder / name, count, seed) for seed, name in enumerate(("fake", "real")))
        command = [sys.executable, str(ROOT / "evaluate.py"), f"folder={fake}", f"against={real}", "trainer=cpu"]
        command += ["extractor=inception", f"extractor.weights={weights}", f"cache_dir={folder}"]
        output = folder / "ours.json"
        subprocess.run([*command, f"output={output}"], check=True, stdout=subprocess.DEVNULL)
        metrics = json.loads(output.read_text())
        ours = {key: entry["evaluated"][-1]["value"] for key, entry in metrics.items()}
        theirs = calculate_metrics(
            input1=str(fake),
            input2=str(real),
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(weights),
            feature_layer_prc="2048",  # the default for precision and recall is VGG
            **dict.fromkeys(("fid", "kid", "isc", "prc"), True),
            kid_subset_size=min(1000, count),
            cuda=False,
            cache=False,
            verbose=False,
        )
    table = Table("metric", "ganforge", "torch-fidelity", "difference", title=f"{count} images against {count}")
    for key, other in NAMES.items():
        difference = abs(ours[key] - theirs[other]) / abs(theirs[other])
        table.add_row(key, f"{ours[key]:.7g}", f"{theirs[other]:.7g}", f"{difference:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
