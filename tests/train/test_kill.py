"""Training in another process that is killed, or interrupted, at random moments."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minitf as mt
from minitf.train import read_checkpoint

SCRIPT = Path(__file__).with_name("tiny_run.py")
STEPS, KILLS = 220, 20


def start(folder: Path, resume: bool) -> "subprocess.Popen[str]":
    command = [sys.executable, str(SCRIPT), str(folder), str(STEPS), *(["--resume"] if resume else [])]
    # The same number of threads everywhere: it decides how matrix products round.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_for_steps(process: "subprocess.Popen[str]", count: int) -> None:
    assert process.stdout is not None
    for _ in range(count):
        line = process.stdout.readline()
        assert line.startswith("step "), f"training should print steps, not {line!r}"


def finish(process: "subprocess.Popen[str]") -> str:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, f"training failed with exit code {process.returncode}"
    return out.splitlines()[-1]


@pytest.mark.slow
def test_killed_at_random_moments_then_interrupted(tmp_path: Path, same_run: Any) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    begin = time.perf_counter()
    assert finish(start(undisturbed, resume=False)) == "stop finished"
    seconds_per_step = (time.perf_counter() - begin) / STEPS

    rng = np.random.default_rng(0)
    for kill in range(KILLS):
        process = start(disturbed, resume=kill > 0)
        # Random moments within a few steps: in a forward pass, in a log row, in the middle of writing a file.
        wait_for_steps(process, int(rng.integers(1, 5)))
        time.sleep(rng.uniform(0.0, 3.0) * seconds_per_step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"kill {kill}: the run had already ended; raise STEPS"
        about = read_checkpoint(disturbed / "checkpoint.safetensors")[1]
        mt.load(disturbed)
        assert 0 <= about["progress"]["step"] < STEPS, f"kill {kill}: step {about['progress']['step']}"

    process = start(disturbed, resume=True)
    wait_for_steps(process, 3)
    process.send_signal(signal.SIGINT)
    assert finish(process) == "stop interrupted", "SIGINT must end the run cleanly"
    progress = read_checkpoint(disturbed / "checkpoint.safetensors")[1]["progress"]
    assert math.isfinite(progress["best_val_loss"]) and progress["step"] < STEPS
    last = (disturbed / "log.csv").read_text().splitlines()[-1]
    assert last.startswith(f"{progress['step']},"), "SIGINT saves the step that the log ends with"

    assert finish(start(disturbed, resume=True)) == "stop finished"
    same_run(disturbed, undisturbed)
