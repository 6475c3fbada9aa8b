"""Whether the numbers are those of the reference implementation: ganforge beside torch-fidelity on the same pictures.

    python benchmarks/agreement.py [images=2200]

Both read the same two folders of made-up pictures with the same random Inception weights; by default there are more
pictures than features, which takes 20 minutes on two cores. The last column is the relative difference.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from evaluation import ROOT, options, write_pictures, write_weights
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
        fake, real = (write_pictures(folder / name, count, seed) for seed, name in enumerate(("fake", "real")))
        command = [sys.executable, str(ROOT / "evaluate.py"), f"folder={fake}", f"against={real}", "trainer=cpu"]
        command += ["extractor=inception", f"extractor.weights={weights}", f"cache_dir={folder}"]
        output = folder / "ours.json"
        subprocess.run([*command, f"output={output}"], check=True, stdout=subprocess.DEVNULL)
        found = json.loads(output.read_text())
        ours = {key: entry["evaluated"][-1]["value"] for key, entry in found.items()}
        theirs = calculate_metrics(
            input1=str(fake),
            input2=str(real),
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(weights),
            feature_layer_prc="2048",  # it would take VGG's for precision and recall
            **dict.fromkeys(("fid", "kid", "isc", "prc"), True),
            kid_subset_size=min(1000, count),
            cuda=False,
            cache=False,
            verbose=False,
        )
    table = Table("metric", "ganforge", "torch-fidelity", "difference", title=f"{count} pictures against {count}")
    for key, other in NAMES.items():
        difference = abs(ours[key] - theirs[other]) / abs(theirs[other])
        table.add_row(key, f"{ours[key]:.7g}", f"{theirs[other]:.7g}", f"{difference:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
