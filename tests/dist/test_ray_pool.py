"""`runtime.ray_pool` by itself: results larger than the object store, actors that hang, errors of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEAD = """
import os, sys, time
from distwsss.config.hardware import RaySection
from distwsss.errors import DataError, RunError
from distwsss.runtime import ray_pool
from distwsss.runtime.ray_pool import Chunk, Load, Part, connect, run_chunks
from distwsss.runtime.ray_schedule import Step
"""


def run(folder: Path, code: str, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(HEAD + textwrap.dedent(code), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(folder)}
    return subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.slow
def test_results_larger_than_the_object_store_spill(tmp_path: Path) -> None:
    """48 parts of 5 MB, all of one chunk, through an object store of 80 MB; every byte arrives."""
    code = f"""
        def part(number): return bytes([number]) * 5_000_000
        def end(task, results): return [(r[0], len(r), len(set(r))) for r in results]
        spill = {str(tmp_path / "spill")!r}
        section = RaySection(object_store_mb=80, spill_dir=spill)
        chunks = [Chunk("all", None, tuple(Part(f"part {{n}}", n) for n in range(48)))]
        with connect(section, 2):
            steps = [Step(part, 1, 0.5), Step(end, 1, 0.5)]
            *_, (chunk, none, result) = run_chunks(chunks, steps, section, Load())
            assert result == [(n, 5_000_000, 1) for n in range(48)], result
            print("spilled", sum(len(files) for _, _, files in os.walk(spill)))
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("spilled ")[1]) > 0


@pytest.mark.slow
def test_hangs_errors_and_lost_processes(tmp_path: Path) -> None:
    """A part that hangs costs an attempt when its minutes are over; an exception of ours is raised as it is; memory
    that runs out is tried again, then said."""
    code = f"""
        marker = {str(tmp_path / "marker")!r}
        def hang_once(task):
            if not os.path.exists(marker):
                open(marker, "w").close()
                time.sleep(1000)
            return task
        def ours(task): raise DataError("image 7: cannot be done")
        def memory(task):
            open(marker + ".memory", "a").write("x")
            raise MemoryError("no room")
        def end(task, results): return results
        section = RaySection(attempts=2, item_minutes=0.25)
        with connect(section, 1):
            def go(function):
                load = Load()
                found = list(run_chunks([Chunk("c", 0, (Part("p", 1),))],
                                        [Step(function, 1, 0.5), Step(end, 1, 0.5)], section, load))
                return found[-1][2], load.replaced
            assert go(hang_once) == ([1], 1)
            for function in (ours, memory):
                try:
                    go(function)
                except (DataError, RunError) as error:
                    print(type(error).__name__, error)
        print(len(open(marker + ".memory").read()))
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "DataError image 7: cannot be done"
    assert lines[1].startswith("RunError p of c: failed 2 times")
    assert "out of memory" in lines[1]
    assert lines[2] == "2"
    assert "no answer after 0.25 minutes" in done.stderr


@pytest.mark.slow
def test_a_local_ray_listens_on_loopback_only(tmp_path: Path) -> None:
    code = """
        import psutil
        with connect(RaySection(), 1):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                print(*[c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"])
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    listening = set(done.stdout.split())
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert not (tmp_path / ".ray").exists()


def test_a_local_ray_does_not_join_what_an_earlier_one_left() -> None:
    """A killed driver leaves its cluster's address where Ray looks for one to join."""
    address = Path("/tmp/ray/ray_current_cluster")
    before = address.read_bytes() if address.exists() else None
    address.parent.mkdir(exist_ok=True)
    address.write_text("127.0.0.1:1")
    script = (
        "from distwsss.config.hardware import RaySection; from distwsss.runtime import ray_pool\n"
        "with ray_pool.connect(RaySection(), 1): print('cpus', ray_pool.resources()[0])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        address.unlink(missing_ok=True)
        if before is not None:
            address.write_bytes(before)
    assert "cpus 1.0" in done.stdout, done.stderr


@pytest.mark.slow
def test_what_actors_tell_is_heard_while_they_work(tmp_path: Path) -> None:
    """Each job goes on only once the driver has heard what it told. The part dies then, once: its second attempt is
    heard too, and nothing of the first is lost."""
    code = f"""
        from pathlib import Path
        from distwsss.runtime.pool import tell
        folder, heard = Path({str(tmp_path)!r}), []
        def say(step):
            tell({{"step": step}})
            while not (folder / f"heard {{step}}").exists():
                time.sleep(0.1)
        def part(task):
            say(1.0)
            if not (folder / "died").exists():
                (folder / "died").touch()
                os.kill(os.getpid(), 9)
            say(2.0)
        def end(task, results): say(3.0)
        def hear(what):
            heard.append(what)
            if "step" in what:
                (folder / f"heard {{what['step']}}").touch()
        with connect(RaySection(), 2):
            steps, load = [Step(part, 1, 1.0), Step(end, 1, 1.0)], Load()
            list(run_chunks([Chunk("c", 0, (Part("p", 1),))], steps, RaySection(item_minutes=1), load, hear=hear))
        assert load.replaced == 1
        assert [what["step"] for what in heard if "step" in what] == [1, 1, 2, 3], heard
        memory = [what["worker_gb"] for what in heard if "step" not in what]
        assert memory and all(0.01 < gb < 10 for gb in memory), heard
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_work_that_nobody_listens_to_is_on_the_main_thread(tmp_path: Path) -> None:
    """The only one that may set signal handlers, as trainings do. What it tells goes nowhere."""
    code = """
        import threading
        from distwsss.runtime.pool import tell
        def end(task):
            tell({"step": 1.0})
            return threading.current_thread() is threading.main_thread()
        with connect(RaySection(), 1):
            [(chunk, none, result)] = run_chunks([Chunk("c", 0)], [Step(end, 1, 1.0)], RaySection(), Load())
            assert result
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_workers_of_a_local_ray_have_the_driver_s_niceness(tmp_path: Path) -> None:
    """Also where the driver was started under nice itself: 0 is what Ray adds."""
    code = """
        def niceness(task): return os.nice(0)
        def end(task, results): return results
        os.nice(3)
        with connect(RaySection(), 1):
            steps = [Step(niceness, 1, 0.5), Step(end, 1, 0.5)]
            *_, (chunk, none, result) = run_chunks([Chunk("c", 0, (Part("p", 1),))], steps, RaySection(), Load())
            print("niceness", result[0], os.nice(0))
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    worker, driver = done.stdout.split("niceness ")[1].split()
    assert worker == driver
