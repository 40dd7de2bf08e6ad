"""One rank of `distwsss`, as launchers start it in tests. What happens to it comes from the environment:

HOOKS   JSON, one mapping per restart by torchrun: fault point -> `ACTIONS`, as {"in-step:3:rank1": "sleep: 2; kill"}
RANK1_ARGUMENTS  JSON, arguments for rank 1 alone
RECORD  folder: `keys-rankR.jsonl` gets what each micro-batch held, `weights-rankR.safetensors` the weights at the end
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
from safetensors.torch import save_file

from distwsss.cli import main
from distwsss.train import checkpoint, loop, stages, steps

RANK, ATTEMPT = int(os.environ.get("RANK", "0")), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
HOOKS = (json.loads(os.environ.get("HOOKS", "[]")) + [{}] * (ATTEMPT + 1))[ATTEMPT]
RECORD = Path(os.environ["RECORD"])
TASKS: list = []
NEXT: set[str] = set()  # what the next forward does


def kill_all() -> None:
    """The agent, its ranks and their loaders, stopped first so that none sees another one's end."""
    agent = psutil.Process(os.getppid())
    others = [agent, *(process for process in agent.children(recursive=True) if process.pid != os.getpid())]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in others:
            process.send_signal(number)
    os.kill(os.getpid(), signal.SIGKILL)


def signal_agent(number: int) -> None:
    os.kill(os.getppid(), number)
    time.sleep(3)  # until all ranks have it


def truncate(name: str) -> None:
    path = Path(name)
    path.write_bytes(path.read_bytes()[:1000])


ACTIONS = {
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "kill all": lambda _: kill_all(),
    "stop": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "signal": lambda name: os.kill(os.getpid(), getattr(signal, name)),
    "signal agent": lambda name: signal_agent(getattr(signal, name)),
    "largest file": lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY)),
    "truncate": truncate,
    "next": NEXT.add,
}


def fault_point(name: str) -> None:
    for text in HOOKS.get(name, "").split("; ") if name in HOOKS else []:
        action, _, argument = text.partition(": ")
        ACTIONS[action](argument)


def task(config):
    """The stage's task; `next: nan` poisons its next loss, `next: raise` fails in its next forward."""
    made = stages_task(config)
    sums, forward = made.sums, made.model.training_outputs

    def poisoned(outputs, batch):
        total, parts = sums(outputs, batch)
        return (total * float("nan") if "nan" in NEXT else total), parts

    def failing(images):
        if "raise" in NEXT:
            raise ValueError("no forward today")
        return forward(images)

    made.sums, made.model.training_outputs = poisoned, failing
    TASKS.append(made)
    return made


def read_batches(batches, start: int, workers: int):
    for number, batch in enumerate(read(batches, start, workers), start * batches.share.accumulation):
        images = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] for image in batch.image]
        samples = [] if batch.empty else list(zip(batch.keys, images, strict=True))
        step, world = number // batches.share.accumulation, batches.share.world
        line = {"process": os.getpid(), "step": step, "world": world, "samples": samples}
        with (RECORD / f"keys-rank{RANK}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        yield batch


def keep_stacks(arguments: list[str]) -> None:
    """What the attempt before wrote of hung ranks, which this one would replace."""
    for folder in [text.removeprefix("paths.run=") for text in arguments if text.startswith("paths.run=")]:
        path = Path(folder) / f"train/stacks-rank{RANK}.txt"
        if ATTEMPT and path.is_file():
            shutil.copy(path, RECORD / f"stacks-{ATTEMPT - 1}-rank{RANK}.txt")


if __name__ == "__main__":
    arguments = sys.argv[1:] + (json.loads(os.environ.get("RANK1_ARGUMENTS", "[]")) if RANK == 1 else [])
    RECORD.mkdir(parents=True, exist_ok=True)
    keep_stacks(arguments)
    steps.fault_point = checkpoint.fault_point = fault_point
    stages_task, stages.segmenter_task = stages.segmenter_task, task
    read, loop.read_batches = loop.read_batches, read_batches
    code = main(arguments)
    if TASKS:
        weights = {name: value.detach().contiguous() for name, value in TASKS[0].model.state_dict().items()}
        save_file(weights, RECORD / f"weights-rank{RANK}.safetensors")
    sys.exit(code)
