"""Launchers: the one command that each prints under DRY_RUN, by the variables set, and what each needs to start."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed.run

from helpers.launcher_run import DEMO, LAUNCHERS, REPOSITORY, TORCHRUN, VARIABLES, VOC, launch

NEWER = "--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout 30"
C10D = "OMP_NUM_THREADS=1 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun"
PLAIN = "--mixed_precision no --dynamo_backend no --multi_gpu"
SETS = "--set data.root=<DATA> --set paths.run=<ROOT>/runs/<NAME> --set paths.shards=<ROOT>/shards/<NAME>"
NOTHING_SET = {
    "single_gpu.sh": "python -m distwsss train --config <CONFIG>",
    "torchrun_local.sh": f"{C10D} --nproc-per-node <NPROC> --rdzv-backend c10d --rdzv-endpoint localhost:0 "
    f"--max-restarts 0 {NEWER} -m distwsss train --config <CONFIG>",
    "torchrun_multinode.sh": f"{C10D} --nnodes <NNODES> --nproc-per-node <NPROC> --rdzv-backend c10d "
    "--rdzv-endpoint <HOST>:<PORT> --rdzv-id distwsss --rdzv-conf join_timeout=600 "
    f"--max-restarts 3 {NEWER} -m distwsss train --config <CONFIG>",
    "accelerate.sh": f"OMP_NUM_THREADS=1 accelerate launch {PLAIN} --num_processes <NPROC> --num_machines 1 "
    "--main_process_port 0 --module distwsss train --config <CONFIG>",
    "deepspeed.sh": "OMP_NUM_THREADS=1 deepspeed --no_local_rank --num_gpus <NPROC> --master_port 29500 "
    "--module distwsss train --config <CONFIG>",
    "ray_job.sh": f"ray job submit --address <RAY_ADDRESS> --working-dir {REPOSITORY} --runtime-env-json EXCLUDES "
    f"-- python -m distwsss seeds --config <CONFIG> {SETS} --executor ray",
    "slurm_ray.sbatch": f"python -m distwsss seeds --config <CONFIG> {SETS} --executor ray",
    "slurm_torchrun.sbatch": "NNODES=<NODES> NPROC=1 RDZV_ENDPOINT=<HEAD_IP>:<PORT> RDZV_ID=<JOB>-0 srun --export=ALL "
    "--nodes <NODES> --ntasks <NODES> --cpus-per-task <CPUS> --kill-on-bad-exit=0 "
    f"launchers/torchrun_multinode.sh train --config <CONFIG> {SETS}",
}
MINE = "/shared/me"
RESULTS = f"--set data.root=/shared/data --set paths.run={MINE}/runs/voc_mini --set paths.shards={MINE}/shards/voc_mini"
ARGUMENTS = "classify --config configs/voc_mini/lite.yaml --set 'data.classes=[cat, dog]'"
RUN = f"distwsss {ARGUMENTS}"
SET = {
    "single_gpu.sh": f"python -m {RUN}",
    "torchrun_local.sh": f"{C10D} --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0 "
    f"--max-restarts 0 {NEWER} -m {RUN}",
    "torchrun_multinode.sh": f"{C10D} --nnodes 3 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint head:7 "
    f"--rdzv-id distwsss --rdzv-conf join_timeout=600,is_host=false --max-restarts 3 {NEWER} -m {RUN}",
    "accelerate.sh": f"OMP_NUM_THREADS=1 accelerate launch {PLAIN} --num_processes 6 --num_machines 3 --machine_rank 1 "
    f"--main_process_ip head --main_process_port 7 --module {RUN}",
    "deepspeed.sh": "OMP_NUM_THREADS=1 deepspeed --no_local_rank --num_gpus 2 --master_port 7 --no_ssh "
    f"--hostfile hosts --num_nodes 3 --node_rank 1 --master_addr head --module {RUN}",
    "ray_job.sh": f"ray job submit --address http://127.0.0.1:1 --working-dir {REPOSITORY} --runtime-env-json EXCLUDES "
    f"-- python -m {RUN} {RESULTS} --executor ray",
    "slurm_ray.sbatch": f"python -m {RUN} {RESULTS} --executor ray",
    "slurm_torchrun.sbatch": "NNODES=3 NPROC=2 RDZV_ENDPOINT=192.0.2.9:20007 RDZV_ID=7-0 srun --export=ALL --nodes 3 "
    f"--ntasks 3 --cpus-per-task 4 --kill-on-bad-exit=0 launchers/torchrun_multinode.sh {ARGUMENTS} {RESULTS}",
}


def without_excludes(shown: str) -> str:
    return re.sub(r"(--runtime-env-json) '[^']*'", r"\1 EXCLUDES", shown)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_dry_run_with_nothing_set_prints_one_command_with_placeholders(name: str) -> None:
    done = launch(name, DRY_RUN="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert without_excludes(done.stdout) == f"{NOTHING_SET[name]}\n"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_dry_run_with_everything_set_prints_what_would_run(name: str) -> None:
    done = launch(name, "classify", *VOC, "--set", "data.classes=[cat, dog]", DRY_RUN="1", **VARIABLES)
    assert (done.returncode, done.stderr) == (0, "")
    assert without_excludes(done.stdout) == f"{SET[name]}\n"


@pytest.mark.parametrize(
    ("name", "variables", "expected"),
    [
        ("single_gpu.sh", {"GPU": "1", "OMP_NUM_THREADS": "3"}, "OMP_NUM_THREADS=3 CUDA_VISIBLE_DEVICES=1 python"),
        ("torchrun_local.sh", {"MAX_RESTARTS": "4"}, "--max-restarts 4"),
        ("torchrun_local.sh", {"SHUTDOWN_TIMEOUT": "90"}, "--shutdown-timeout 90"),
        ("single_gpu.sh", {"SHUTDOWN_TIMEOUT": "90"}, " --set hardware.shutdown_seconds=90"),
        ("torchrun_local.sh", {"OMP_NUM_THREADS": "3"}, "OMP_NUM_THREADS=3 TORCH_DISABLE"),
        ("torchrun_local.sh", {"TORCH_EXTENSIONS_DIR": "/tmp/x"}, "TORCH_EXTENSIONS_DIR=/tmp/x TORCH_DISABLE"),
        ("torchrun_multinode.sh", {"NODE_RANK": "0", "JOIN_TIMEOUT": "9"}, "--rdzv-conf join_timeout=9,is_host=true "),
        ("torchrun_multinode.sh", {"SLURM_NODEID": "0"}, "--rdzv-conf join_timeout=600,is_host=true "),
        ("torchrun_multinode.sh", {"RDZV_ID": "x"}, "--rdzv-id x "),
        ("torchrun_multinode.sh", {"LOCAL_ADDR": "me"}, "--rdzv-conf join_timeout=600 --local-addr me "),
        ("accelerate.sh", {"NPROC": "1"}, "--mixed_precision no --dynamo_backend no --num_processes 1 "),
        ("accelerate.sh", {"NNODES": "2"}, "--num_processes <NPROC>x2 --num_machines 2 --machine_rank <NODE_RANK> "
         "--main_process_ip <HOST> --main_process_port <PORT> "),
        ("accelerate.sh", {"ACCELERATE_USE_CPU": "true"}, "ACCELERATE_USE_CPU=true accelerate"),
        ("accelerate.sh", {"SHUTDOWN_TIMEOUT": "90"}, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=90 accelerate"),
        ("accelerate.sh", {"ACCELERATE_CONFIG": "a.yaml"}, "accelerate launch --config_file a.yaml --num_processes"),
        ("deepspeed.sh", {"RDZV_ENDPOINT": "localhost:7"}, "--num_gpus <NPROC> --master_port 7 --module"),
        ("deepspeed.sh", {"NNODES": "2"}, "--master_port <PORT> --no_ssh --hostfile <HOSTFILE> --num_nodes 2 "
         "--node_rank <NODE_RANK> --master_addr <HOST> --module"),
        ("slurm_torchrun.sbatch", {"SLURM_GPUS_ON_NODE": "8"}, "NPROC=8 "),
        ("slurm_torchrun.sbatch", {"SLURM_RESTART_COUNT": "2", "SLURM_JOB_ID": "9"}, "RDZV_ID=9-2 srun"),
    ],
)  # fmt: skip
def test_what_a_variable_changes(name: str, variables: dict[str, str], expected: str) -> None:
    done = launch(name, DRY_RUN="1", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout
    assert expected not in NOTHING_SET[name]


def test_torchrun_itself_takes_the_command() -> None:
    """The real one of this environment, whose help is read."""
    variables = VARIABLES | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DRY_RUN": "1",
        "NODE_RANK": "0",
    }
    command = [str(REPOSITORY / "launchers/torchrun_multinode.sh"), "evaluate", *DEMO, "--split", "val"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=True)
    words = shlex.split(done.stdout)
    parsed = torch.distributed.run.parse_args(words[words.index("torchrun") + 1 :])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.max_restarts) == ("3", "2", 3)
    assert (parsed.rdzv_backend, parsed.rdzv_endpoint, parsed.rdzv_id) == ("c10d", "head:7", "distwsss")
    assert parsed.rdzv_conf == "join_timeout=600,is_host=true"
    assert (parsed.module, parsed.training_script) == (True, "distwsss")
    assert parsed.training_script_args == ["evaluate", *DEMO, "--split", "val"]
    known = vars(parsed)
    assert ("--signals-to-handle" in words) == ("signals_to_handle" in known)
    assert ("--shutdown-timeout" in words) == ("shutdown_timeout" in known)
    assert known.get("signals_to_handle", "SIGUSR1").endswith("SIGUSR1")


OLDER = {TORCHRUN: "() { echo usage; }"}
ABSENT = {TORCHRUN: "() { return 127; }"}


def test_an_older_torchrun_gets_no_newer_options() -> None:
    assert "--max-restarts 0 -m distwsss" in launch("torchrun_local.sh", DRY_RUN="1", **OLDER).stdout


def test_an_older_torchrun_leaves_no_other_time_to_save() -> None:
    done = launch("torchrun_local.sh", *DEMO, NPROC="2", SHUTDOWN_TIMEOUT="90", **OLDER)
    assert (done.returncode, done.stdout) == (2, "")
    assert "SHUTDOWN_TIMEOUT: found 90; allowed: 30" in done.stderr


def test_deepspeed_leaves_no_other_time_to_save() -> None:
    done = launch("deepspeed.sh", *DEMO, NPROC="2", SHUTDOWN_TIMEOUT="90")
    assert (done.returncode, done.stdout) == (2, "")
    assert "SHUTDOWN_TIMEOUT: found 90; allowed: 30" in done.stderr


def test_without_torchrun_a_dry_run_prints() -> None:
    done = launch("torchrun_local.sh", *DEMO, NPROC="2", DRY_RUN="1", **ABSENT)
    assert (done.returncode, done.stdout.count("torchrun --nproc-per-node 2")) == (0, 1)


def test_without_torchrun_a_run_says_so() -> None:
    done = launch("torchrun_local.sh", *DEMO, NPROC="2", **ABSENT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "torchrun: not found" in done.stderr


@pytest.mark.parametrize("name", ["torchrun_multinode.sh", "accelerate.sh", "deepspeed.sh"])
def test_an_endpoint_has_a_port(name: str) -> None:
    done = launch(name, *DEMO, **(VARIABLES | {"RDZV_ENDPOINT": "head"}))
    assert (done.returncode, done.stdout) == (2, "")
    assert "RDZV_ENDPOINT: found head; allowed: HOST:PORT" in done.stderr


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_verb_has_a_default(name: str) -> None:
    verb = "seeds" if "ray" in name else "train"
    assert f" {verb} --config configs/demo/shapes.yaml" in launch(name, *DEMO, DRY_RUN="1").stdout


@pytest.mark.parametrize("name", LAUNCHERS)
def test_what_is_not_set_is_named_at_once(name: str) -> None:
    named = {
        "single_gpu.sh": "--config",
        "torchrun_local.sh": "NPROC --config",
        "torchrun_multinode.sh": "NNODES NPROC RDZV_ENDPOINT --config",
        "accelerate.sh": "NPROC NODE_RANK RDZV_ENDPOINT --config",
        "deepspeed.sh": "NPROC NODE_RANK RDZV_ENDPOINT HOSTFILE --config",
        "ray_job.sh": "RAY_ADDRESS ROOT --config",
        "slurm_ray.sbatch": "SLURM ROOT --config",
        "slurm_torchrun.sbatch": "SLURM ROOT --config",
    }
    machines = {"NNODES": "2"} if name in ("accelerate.sh", "deepspeed.sh") else {}
    done = launch(name, **machines)
    assert (done.returncode, done.stdout) == (2, "")
    assert all(word in done.stderr for word in named[name].split())
    assert "<" not in done.stderr


def test_the_launchers_that_documents_name_exist() -> None:
    documents = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    text = "".join(path.read_text(encoding="utf-8") for path in documents)
    named = set(re.findall(r"\blaunchers/[\w./]*\w", text))
    assert {f"launchers/{name}" for name in LAUNCHERS} <= named
    assert all((REPOSITORY / path).exists() for path in named)


def test_the_variables_that_documents_name_are_read() -> None:
    scripts = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "launchers").glob("*.s*")]
    rows = re.findall(r"^\| (`[A-Z_`, =a-z]+`) \|", (REPOSITORY / "docs/training.md").read_text(encoding="utf-8"), re.M)
    variables = {word for row in rows for word in re.findall("[A-Z][A-Z_]+", row)}
    assert {"NPROC", "RDZV_ENDPOINT", "ACCELERATE_CONFIG", "ROOT"} <= variables
    assert {word for word in variables if not any(word in script for script in scripts)} == set()


@pytest.fixture(scope="module")
def dockerfile() -> str:
    """Its text, an instruction a line."""
    return (REPOSITORY / "launchers/docker/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.fixture(scope="module")
def instructions(dockerfile: str) -> list[list[str]]:
    """Instruction and what follows it."""
    return [line.split(maxsplit=1) for line in dockerfile.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def declared() -> configparser.ConfigParser:
    """setup.cfg."""
    found = configparser.ConfigParser()
    found.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return found


def test_the_image_has_known_instructions_only(instructions: list[list[str]]) -> None:
    assert {word for word, _ in instructions} <= {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "CMD"}


def test_the_image_stands_on_nvidias(dockerfile: str) -> None:
    bases = re.findall(r"BASE=(\S+)", dockerfile)
    assert len(bases) == 2
    assert all(re.fullmatch(r"nvidia/cuda:[\w.-]+", base) for base in bases)  # no other registry


def test_the_image_copies_what_the_package_needs(
    instructions: list[list[str]], declared: configparser.ConfigParser
) -> None:
    sources = {source for word, rest in instructions if word == "COPY" for source in rest.split()[:-1]}
    assert all((REPOSITORY / source).exists() for source in sources)
    needed = [declared["metadata"][key].removeprefix("file: ") for key in ("long_description", "license_files")]
    built_by = {"pyproject.toml", "setup.cfg", "setup.py", "MANIFEST.in"}
    assert sources == {*built_by, "distwsss", "configs", "launchers", *needed}


def test_configurations_are_there_when_the_image_installs(instructions: list[list[str]]) -> None:
    """The wheel carries them."""
    steps = [f"{word} {rest}" for word, rest in instructions]
    installs = next(number for number, step in enumerate(steps) if ".[${EXTRAS}]" in step)
    assert installs > steps.index("COPY configs configs")


def test_the_image_for_cpus_copies_what_is_let_through() -> None:
    """`Dockerfile` at the top; .dockerignore keeps out all but what the two images copy."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    copied = {source for line in text.splitlines() if line.startswith("COPY") for source in line.split()[1:-1]}
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied | {"launchers"} == {line[1:] for line in lines if line.startswith("!")}
    assert all((REPOSITORY / source).exists() for source in copied)
    assert "docker run" in text
    assert "--shm-size" in text


def test_the_image_has_extras_that_exist(dockerfile: str, declared: configparser.ConfigParser) -> None:
    extras = {extra for found in re.findall(r"EXTRAS=(\S+)", dockerfile) for extra in found.split(",")}
    assert extras <= set(declared["options.extras_require"])


def test_the_command_of_the_image_is_of_files_that_exist(dockerfile: str) -> None:
    command = re.search(r"distwsss (launchers/\S+) train --config (\S+)", dockerfile)
    assert command
    assert all((REPOSITORY / path).is_file() for path in command.groups())
