"""What train.py says at the end, with the commands to type next."""

import shlex
from collections.abc import Sequence
from pathlib import Path


def stop_message(folder: Path, step: int, is_job: bool = False, trust: str = "", options: Sequence[str] = ()) -> str:
    """The message after a signal. `trust` is the prefix of commands that read the run, see `trust_prefix`; `options`
    apply to a single command, so they are repeated.

    A job's message names no command: the sweep ends with one for all of its jobs.
    """
    if is_job:
        return f"Stopped after step {step}."
    command = " ".join([f"{trust}python train.py resume={_shell_quoted(folder)}", *map(shlex.quote, options)])
    return f"Stopped after step {step}. Resume with:\n  {command}"


def finish_message(
    outcome: str, folder: Path, step: int, from_images: bool, is_job: bool = False, trust: str = ""
) -> str:
    """The message after the last step. `from_images`: whether it is an image-to-image model."""
    run = _shell_quoted(folder)
    lines = [
        outcome,
        f"  run folder   {run}",
        f"  samples      {run}/samples/step-{step:08d}.png",
    ]
    if not is_job:
        samples = ["input=<image or folder>"] if from_images else ["num_samples=100 seed=1", "interpolate=true"]
        lines += [
            "Try next:",
            f"  {trust}python evaluate.py run={run}",
            *(f"  {trust}python sample.py run={run} {options}" for options in samples),
            "  tensorboard --logdir logs",
        ]
    return "\n".join(lines)


def _shell_quoted(folder: Path) -> str:
    """The folder as a shell argument, relative to the working directory where possible."""
    path = folder.resolve()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
