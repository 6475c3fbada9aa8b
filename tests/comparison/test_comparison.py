"""Comparing runs: the tables, the page, what TensorBoard sees, and untrusted folders."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_POINTS, composed, run
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import backend_context, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest, Status

from ganforge.cli.resolvers import register_resolvers
from ganforge.commands.compare import compare
from ganforge.comparison.differences import protocol_notes, seed_groups, select_metrics, setting_differences
from ganforge.comparison.records import find_runs, natural_key, read_runs
from ganforge.comparison.report import training_pictures
from ganforge.comparison.summaries import runs_table, seeds_table
from ganforge.comparison.tables import PIPE_WIDTH, print_table, split_by_group
from ganforge.runs.folder import settings
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import quoted

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIMIZER = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.001}


def made_up(folder: Path, seed: int = 0, loss: str = "hinge", fid: float = 2.0, **extra: Any) -> Path:
    """A run folder with a record and a metric, whose checkpoints were deleted."""
    record = {
        "seed": seed,
        "loss": {"_target_": f"ganforge.losses.{'Hinge' if loss == 'hinge' else 'NonSaturating'}"},
        "model": {
            "_target_": "ganforge.models.gan.GAN",
            "seed": "${seed}",
            "loss": "${loss}",
            "generator_optimizer": {**OPTIMIZER, "lr": extra.get("lr", 0.001)},
            "discriminator_optimizer": OPTIMIZER,
        },
        "trainer": {"max_steps": 10, "max_epochs": -1, "enable_progress_bar": True},
        "name": folder.name,
        "data": {"cache_dir": str(folder)},
        "callbacks": {},
        "logger": {},
    }
    choices = {"loss": loss, "model": "gan", "trainer": "cpu", "hydra/help": "ganforge"}
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(record, folder / ".hydra" / "config.yaml")
    OmegaConf.save({"hydra": {"runtime": {"choices": choices}}}, folder / ".hydra" / "hydra.yaml")
    how = {"seed": seed, "fake_samples": extra.get("fake_samples", 1000), "versions": {"torch": str(seed)}}
    last, best = ({"value": fid + worse, "step": step, "provenance": how} for worse, step in ((0.5, 10), (0, 5)))
    scores = {"fid": {"higher_is_better": False, "last": last, "best": best}}
    (folder / "metrics.json").write_text(json.dumps(scores | extra.get("scores", {})))
    return folder


def score(sweep: Path, seed: int) -> dict[str, Any]:
    return json.loads((sweep / f"{seed}-seed={seed}" / "metrics.json").read_text())["sliced_wasserstein"]


def cells(columns: list, title: str) -> list[str]:
    return [cell.text for column in columns if column.title == title for cell in column.cells]


# The tables ------------------------------------------------------------------------------------------------------


def test_only_what_differs_is_shown(tmp_path: Path) -> None:
    made_up(tmp_path / "a", lr=0.001)
    made_up(tmp_path / "b", lr=0.002, loss="non_saturating", seed=3)
    runs = read_runs(find_runs(str(tmp_path)))
    shown = {"loss": "loss", "seed": "seed", "model.generator_optimizer.lr": "lr"}
    assert setting_differences(runs) == shown
    table = runs_table(runs, ["fid"])
    assert cells(table, "run") == ["a", "b"]
    assert cells(table, "loss") == ["hinge", "non_saturating"]
    assert cells(table, "lr") == ["0.001", "0.002"]
    assert cells(table, "fid ↓") == ["2", "2"]
    assert cells(table, "at step") == ["5", "5"]
    assert cells(table, "last") == ["2.5", "2.5"]
    (tmp_path / "a" / ".hydra" / "hydra.yaml").unlink()  # then options go by their classes
    assert settings(tmp_path / "a")["loss._target_"] == "Hinge"


def test_schedules_are_shown(tmp_path: Path) -> None:
    register_resolvers()
    folders = [made_up(tmp_path / name, lr=lr) for name, lr in (("a", 0.001), ("b", "${cosine:1e-3,0}"))]
    assert cells(runs_table(read_runs(folders), ["fid"]), "lr") == ["0.001", "${cosine:1e-3,0}"]


def test_what_follows_from_an_option_is_shown_only_if_it_was_asked_for(tmp_path: Path) -> None:
    folders = [made_up(tmp_path / name, lr=lr) for name, lr in (("a", 0.001), ("b", 0.002))]
    hydra = tmp_path / "b" / ".hydra" / "hydra.yaml"
    hydra.write_text(hydra.read_text().replace("model: gan", "model: dcgan"))
    assert setting_differences(read_runs(folders)) == {"model": "model"}
    (tmp_path / "b" / ".hydra" / "overrides.yaml").write_text("- model.generator_optimizer.lr=0.002\n")
    assert list(setting_differences(read_runs(folders)).values()) == ["model", "lr"]


def test_names_are_as_long_as_it_takes(tmp_path: Path) -> None:
    folders = [made_up(tmp_path / name, lr=lr) for name, lr in (("a", 0.001), ("b", 0.002))]
    record = tmp_path / "b" / ".hydra" / "config.yaml"
    record.write_text(record.read_text().replace("lr: 0.001", "lr: 0.003"))
    assert list(setting_differences(read_runs(folders)).values()) == [
        "generator_optimizer.lr",
        "discriminator_optimizer.lr",
    ]


def test_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    for seed, fid in enumerate((1.0, 2.0, 6.0)):
        made_up(tmp_path / f"{seed}", seed=seed, fid=fid)
    failed = made_up(tmp_path / "3", seed=3, fid=100.0)
    (failed / "error.txt").write_text("A loss is NaN or infinite\nmore\n")
    made_up(tmp_path / "4", loss="non_saturating")
    runs = read_runs(find_runs(str(tmp_path)))
    assert cells(runs_table(runs, ["fid"]), "status")[3:] == ["failed: A loss is NaN or infinite", ""]
    (group,) = seed_groups(runs)
    table = seeds_table([group], ["fid"])
    assert cells(table, "seeds") == ["0, 1, 2"]
    assert cells(table, "fid ↓") == ["3 ± 2.6"]  # standard deviation of a sample: sqrt((4 + 1 + 9) / 2)
    assert cells(table, "last") == ["3.5 ± 2.6"]


def test_numbers_that_were_measured_differently_are_not_compared(tmp_path: Path) -> None:
    runs = read_runs([made_up(tmp_path / "a"), made_up(tmp_path / "b", seed=1)])
    assert protocol_notes(runs, ["fid"]) == [], "seed and versions may differ"
    runs = [*runs, *read_runs([made_up(tmp_path / "c", seed=2, fake_samples=50)])]
    (note,) = protocol_notes(runs, ["fid"])
    assert "fid (fake samples: 1000 or 50)" in note
    assert cells(seeds_table([runs], ["fid"]), "fid ↓") == ["measured differently"]


def test_metrics_can_be_chosen(tmp_path: Path) -> None:
    score = {"value": 1, "step": 1, "provenance": {}}
    part = {"fid/7": {"higher_is_better": False, "last": score, "best": score}}
    evaluated = {"kid": {"evaluated": [{"value": 1, "provenance": {}}]}}
    runs = read_runs([made_up(tmp_path / "a", scores=part | evaluated), made_up(tmp_path / "b")])
    assert select_metrics(runs, None) == ["fid"]
    assert select_metrics(runs, ["fid/7"]) == ["fid/7"]
    assert cells(runs_table(runs, ["fid/7"]), "last") == ["1", "-"]
    with pytest.raises(UserError, match=r"show=psnr: no run has this metric\. Available: fid"):
        select_metrics(runs, ["psnr"])


def test_runs_are_found_by_folder_glob_and_list(tmp_path: Path) -> None:
    names = ["2-loss=a,seed=0", "10-loss=a,seed=1", "x [y]"]
    folders = [made_up(tmp_path / "sweep" / name) for name in names]
    assert find_runs(str(tmp_path)) == folders
    assert find_runs(str(folders[2])) == [folders[2]]
    assert find_runs(f"{tmp_path}/*/*-loss=a,*") == folders[:2]
    assert find_runs([str(folders[1]), f"{tmp_path}/*/2-*"]) == folders[:2]
    with pytest.raises(UserError, match="there is no run"):
        find_runs(f"{tmp_path}/nothing*")
    assert natural_key("a/2") < natural_key("a/10")


# The command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with two validations each, where a sweep would leave them."""
    folder = tmp_path_factory.mktemp("here")
    sweep = Path("logs", "sweeps", "tiny", "now")
    steps = ["trainer.max_steps=4", "evaluate_every=2", "sample_every=2", "trainer.log_every_n_steps=1"]
    options = [*TINY_POINTS, *steps, "data.num_samples=64", "trainer=cpu"]
    for seed in (0, 1):
        place = f"hydra.run.dir='{sweep}/{seed}-seed={seed}'"
        result = run("train.py", *options, f"seed={seed}", place, cwd=folder)
        assert result.returncode == 0, result.stderr
    return folder / sweep


def compared(capsys: pytest.CaptureFixture, runs: Path, *options: str) -> tuple[str, str]:
    """What is printed, and the page."""
    page = runs.parent / "page.html"
    compare(composed(f"runs={quoted(runs)}", f"output={quoted(page)}", *options, config="compare"))
    return capsys.readouterr().out, page.read_text()


def test_a_sweep_on_the_console(sweep: Path) -> None:
    here = sweep.parents[3]
    before = set(here.rglob("*"))
    result = run("compare.py", "runs=logs/sweeps/tiny/*/", cwd=here)
    assert result.returncode == 0, result.stderr
    assert set(here.rglob("*")) - before == {sweep / "comparison.html"}
    for seed in (0, 1):
        (line,) = (line for line in result.stdout.splitlines() if f"{seed}-seed={seed}" in line)
        assert f"{score(sweep, seed)['last']['value']:.4g}" in line
    assert "±" in result.stdout
    listed = run("compare.py", f"runs=[{sweep}/0-seed=0,{sweep}/1-seed=1]", f"output={here}/a=b.html", cwd=here)
    assert listed.returncode == 0, listed.stderr
    assert (here / "a=b.html").read_text() == (sweep / "comparison.html").read_text()


def test_a_notebook_reads_runs_without_a_command(sweep: Path) -> None:
    OmegaConf.clear_resolver("packed")  # what an entry point registers
    assert all("loss" in run.settings for run in read_runs(find_runs(sweep)))


def test_unfinished_and_failed_runs(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(sweep, tmp_path / "s")
    first, second = sorted(path for path in (tmp_path / "s").iterdir() if path.is_dir())
    record = first / ".hydra" / "config.yaml"
    record.write_text(record.read_text().replace("max_steps: 4", "max_steps: 8"))
    shutil.rmtree(second / "checkpoints")
    (second / "metrics.json").unlink()
    (second / "error.txt").write_text("[red]no \x1b[31mroom\n")
    printed, page = compared(capsys, tmp_path / "s")
    assert "unfinished: step 4 of 8" in printed
    assert "failed: [red]no \\x1b[31mroom" in printed
    assert "no picture" in page


def test_one_bad_run_does_not_hide_the_others(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(sweep, tmp_path / "s")
    first, second = sorted(path for path in (tmp_path / "s").iterdir() if path.is_dir())
    for path in (first / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    scores = json.loads((second / "metrics.json").read_text())
    scores["sliced_wasserstein"]["last"]["value"] = None  # as NaN is written
    (second / "metrics.json").write_text(json.dumps(scores))
    printed, page = compared(capsys, tmp_path / "s")
    assert "damaged: no checkpoint can be read" in printed
    assert "damaged: no checkpoint can be read" in page
    assert "not finite" in printed
    torch.save({"state_dict": {}, "global_step": 4}, first / "checkpoints" / "last.ckpt")
    [run, _] = read_runs([first, second])
    assert run.status == "damaged: last.ckpt is not a ganforge checkpoint: pytorch-lightning_version is missing"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", "[1]"),
        ("metrics.json", '{"fid": '),
        (".hydra/hydra.yaml", "a: [b"),
        (".hydra/config.yaml", ""),
        (".hydra/config.yaml", "a: [b"),
    ],
)
def test_a_record_that_cannot_be_read_is_damaged(tmp_path: Path, file: str, content: str) -> None:
    folder = made_up(tmp_path / "a")
    (folder / file).write_text(content)
    [run] = read_runs([folder])
    assert run.status.startswith("damaged: its recorded config cannot be read")


def test_a_group_has_several_seeds(tmp_path: Path) -> None:
    made_up(tmp_path / "a", seed=1)
    made_up(tmp_path / "b", seed=1)
    assert seed_groups(read_runs(find_runs(str(tmp_path)))) == []
    made_up(tmp_path / "c", seed=2)
    grouped = seed_groups(read_runs(find_runs(str(tmp_path))))
    assert [len(group) for group in grouped] == [3]
    seeds = next(column for column in seeds_table(grouped, []) if column.title == "seeds")
    assert [cell.text for cell in seeds.cells] == ["1, 2"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("runs=nowhere", "runs=nowhere: there is no run"),
        ("show=[fidd]", "show=fidd: no run has this metric. Available: sliced_wasserstein"),
        ("num_samples=0", "num_samples"),
        ("seed=-1", "seed=-1"),
        ("checkpoint=first", "checkpoint=first"),
        ("output=/proc/x.html", "output=/proc/x.html"),
    ],
)
def test_mistakes_get_one_message(sweep: Path, tmp_path: Path, option: str, message: str) -> None:
    options = {"runs": str(sweep), "output": f"{tmp_path}/page.html", **dict([option.split("=")])}
    with pytest.raises(UserError, match=re.escape(message)):
        compare(composed(*(f"{key}={value}" for key, value in options.items()), config="compare"))


def test_a_metric_may_have_an_ideal_value(tmp_path: Path) -> None:
    now = {"value": 1.05, "step": 5, "provenance": {}}
    scores = {"diversity": {"ideal": 1.0, "last": now, "best": now}}
    (run,) = read_runs([made_up(tmp_path / "a", scores=scores)])
    assert cells(runs_table([run], ["diversity", "fid"]), "diversity → 1") == ["1.05"]


def test_wide_tables_come_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = [f"metric_number_{i}" for i in range(8)]
    now = {"value": 1.05, "step": 5, "provenance": {}}
    scores = {name: {"higher_is_better": True, "last": now, "best": now} for name in names}
    runs = read_runs([made_up(tmp_path / "a", scores=scores)])
    columns = runs_table(runs, names)
    assert [part[1].title for part in split_by_group(columns)] == [*(f"{name} ↑" for name in names), "time"]
    assert all(part[0].title == "run" for part in split_by_group(columns))
    print_table("Runs", columns)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= PIPE_WIDTH
    assert all(name in printed for name in names)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_files_of_a_run_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    folder = made_up(tmp_path / "runs" / "a")
    (folder / "samples").mkdir()
    for name in ("error.txt", "events.out.tfevents.1.host.1.0", "samples/step-00000000.png"):
        target = tmp_path / "secret.png" if name.endswith("png") else secret
        place: Any = {"link": lambda p, to=target: p.symlink_to(to), "pipe": os.mkfifo, "folder": Path.mkdir}[kind]
        place(folder / name)
    if kind != "folder":
        with pytest.raises(UserError, match="it is refused"):
            read_runs([folder])
        return
    assert read_runs([folder])[0].status.startswith("damaged")
    (folder / "error.txt").rmdir()
    (run,) = read_runs([folder])
    assert not run.curves
    assert not training_pictures(run)
    assert "events.out.tfevents.1.host.1.0 is skipped" in caplog.text


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    made_up(tmp_path / "runs" / "a")
    page = tmp_path / "runs" / "a" / "comparison.html"
    for target in (tmp_path / "outside", tmp_path / "not there"):
        (tmp_path / "outside").write_text("mine")
        page.unlink(missing_ok=True)
        page.symlink_to(target)
        with pytest.raises(UserError, match="is a link"):
            compare(composed(f"runs={quoted(tmp_path / 'runs')}", config="compare"))
    assert (tmp_path / "outside").read_text() == "mine"
    assert not (tmp_path / "not there").exists()


def test_texts_that_are_no_unicode_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    now = {"value": 1.0, "step": 5, "provenance": {"\ud800": "\x1b[31m"}}
    folder = made_up(tmp_path / "runs" / "a", scores={"\ud800": {"higher_is_better": True, "last": now, "best": now}})
    (folder / "error.txt").write_text("x" * 10_000)
    printed, page = compared(capsys, tmp_path / "runs")
    assert "\\ud800 ↑" in printed
    assert "x" * 301 not in page


# The page --------------------------------------------------------------------------------------------------------


def dumped(page: Path, script: str = "") -> str:
    """The page as a browser has it after a script."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    copy = page.with_name("scripted.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    options = ["--no-sandbox", "--headless", "--disable-gpu", "--dump-dom", f"--user-data-dir={page.parent}/profile"]
    result = subprocess.run([CHROMIUM, *options, copy.as_uri()], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows(dom: str) -> list[str]:
    """Which runs the rows are of, in the same order in all parts of a table."""
    (order,) = {tuple(re.findall(r"</span>(\d-seed=\d)</div>", part)) for part in parts_of(dom) if "</div>" in part}
    return list(order)


def parts_of(dom: str) -> list[str]:
    return re.findall(r"<tbody>.*?</tbody>", dom, re.DOTALL)


@pytest.mark.slow  # starts a browser
def test_the_page_sorts_and_shows_every_step(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(sweep, tmp_path / "s")
    _, page = compared(capsys, tmp_path / "s")
    assert len(page) < 2_000_000
    assert len(parts_of(page)) == 4 + 2, "settings, two metrics, time; the two metrics over seeds"
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "nothing is loaded"
    assert page.count("data:image/svg+xml") == 4, "losses of D and G, and the two metrics"
    assert re.findall(r'data-step="(\d+)"', page) == ["0", "2", "4"]
    click = "[...document.querySelectorAll('th button')].find(b => b.textContent.startsWith('sliced')).click();"
    best = sorted((0, 1), key=lambda seed: score(sweep, seed)["best"]["value"])
    order = [f"{seed}-seed={seed}" for seed in best]
    assert rows(dumped(tmp_path / "page.html", click)) == order
    assert rows(dumped(tmp_path / "page.html", click + click)) == order[::-1]
    moved = dumped(tmp_path / "page.html", "slider.value = 1; slider.oninput()")
    assert re.findall(r'data-step="(\d+)" hidden', moved) == ["0", "4"]


def test_what_runs_say_is_escaped(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    evil = "<script>document.title='owned'</script>"
    names = [f"{seed}<img src=x onerror=alert(1)>" for seed in (0, 1)]
    for seed, name in enumerate(names):
        shutil.copytree(sweep / f"{seed}-seed={seed}", tmp_path / "s" / name)
    first = tmp_path / "s" / names[0]
    record: Any = OmegaConf.load(first / ".hydra" / "config.yaml")
    record.trap = evil
    OmegaConf.save(record, first / ".hydra" / "config.yaml")
    scores = json.loads((first / "metrics.json").read_text())
    (first / "metrics.json").write_text(json.dumps(scores | {f"{evil[:-9]}$x": scores["sliced_wasserstein"]}))
    (first / "error.txt").write_text(f"{evil}\n")
    (first / "samples" / "step-00000002.png").write_bytes(b"no picture")
    _, page = compared(capsys, tmp_path / "s")
    assert page.count("<script>") == 1
    assert "<img src=x" not in page
    assert "&lt;script&gt;document.title" in page
    assert "<title>Comparison of 2 runs</title>" in dumped(tmp_path / "page.html")


# TensorBoard -----------------------------------------------------------------------------------------------------


def test_tensorboard_reads_what_its_pages_show(sweep: Path) -> None:
    events = EventAccumulator(str(sweep / "0-seed=0")).Reload()
    scores = score(sweep, 0)
    assert events.Scalars("metrics/sliced_wasserstein")[-1].value == pytest.approx(scores["last"]["value"])
    assert events.Scalars("best/sliced_wasserstein")[-1].value == pytest.approx(scores["best"]["value"])
    assert [image.step for image in events.Images("samples")] == [0, 2, 4]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"loss_d/total" in layout
    assert b"loss_g/total" in layout


def test_tensorboard_has_hyperparameters_with_final_and_best_metrics(sweep: Path) -> None:
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(sweep))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(sweep))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider, logdir=str(sweep)))
    request = ListSessionGroupsRequest(slice_size=10, include_metrics=True, allowed_statuses=Status.values())
    found = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    assert [group.name for group in found] == ["0-seed=0", "1-seed=1"]
    for seed, group in enumerate(found):
        assert group.hparams["seed"].number_value == seed
        assert group.hparams["model"].string_value == "gan"
        assert group.hparams["model.generator_optimizer.lr"].number_value == 5e-4
        assert not [value for value in group.hparams.values() if "/" in value.string_value], "no paths"
        values = {value.name.tag: value.value for value in group.metric_values}
        scores = score(sweep, seed)
        assert values["metrics/sliced_wasserstein"] == pytest.approx(scores["last"]["value"])
        assert values["best/sliced_wasserstein"] == pytest.approx(scores["best"]["value"])
