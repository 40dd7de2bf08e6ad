"""Ray: the only file that imports it. Runs chunks of work on actors, here or on a cluster. Called by `seeds.on_ray`
and `train.stages`; takes plain functions and imports no torch.

A chunk has parts, done by the first step's function on one kind of actor, and an end, done by the last step's on
another kind from the parts' results, which stay in Ray's object store until then. Actors hold no state that matters:
one that dies (killed, out of memory, its node lost) is replaced and its work tried again, at most `attempts` times.
Ray's own retries are off: it would retry a process that runs out of memory for ever.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distwsss.config.hardware import RaySection
from distwsss.errors import ConfigError, LaunchError, RunError, report_problems
from distwsss.runtime import shared_memory
from distwsss.runtime.memory import peak_memory
from distwsss.runtime.pool import LISTEN_SECONDS, WORKER_GB, Hear, tell_to
from distwsss.runtime.progress import log
from distwsss.runtime.ray_schedule import Step
from distwsss.runtime.stop import sigterm_interrupts
from distwsss.runtime.storage import Folder

ANSWER_SECONDS = 120.0  # a ray.get of what is ready already, or an answer from Ray itself
SMALL_STORE_MB = 256  # Ray's own store is a third of the memory, usually more than that
START_SECONDS = 300.0  # a process that is placed and imports our code
ASIDE = "aside"  # Ray's concurrency group, a thread of its own: actors answer in it while they work


@dataclass(frozen=True)
class Part:
    """`label` is what the dashboard shows; parts with the same `prefers` go to the same actor where possible."""

    label: str
    task: Any
    prefers: str = ""


@dataclass(frozen=True)
class Chunk:
    """`name` is for messages; the end's function gets `task` and, where there are parts, the list of their results."""

    name: str
    task: Any
    parts: tuple[Part, ...] = ()
    label: str = "end"


@dataclass
class Load:
    """What the actors are doing and did, for progress and the record of the run."""

    parts_waiting: int = 0
    chunks_in_flight: int = 0
    replaced: int = 0
    by_node: dict[str, int] = field(default_factory=dict)  # jobs done


@dataclass
class Done:
    """How a job ended: small, so that asking costs nothing whatever the size of its result. told: what the job told
    that nobody had asked for yet."""

    node: str
    error: Exception | None = None
    told: list[dict[str, float]] = field(default_factory=list)


def installed() -> bool:
    return importlib.util.find_spec("ray") is not None


@contextmanager
def connect(section: RaySection, cpus: int) -> Iterator[None]:
    """A Ray cluster while the block runs: the one RAY_ADDRESS names, else one of `cpus` CPUs on this machine, bound to
    127.0.0.1, without dashboard and without authentication (nothing of it can be reached from elsewhere).

    Raises ConfigError without Ray, LaunchError when there is no connection.
    """
    if not installed():
        hint = "run `pip install 'distwsss[ray]'`, or use --executor local"
        raise ConfigError(f"executor ray: Ray is not installed; {hint}")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # said before Ray is imported, which reads it once: otherwise it writes ~/.ray/auth_token
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's own 15 starves beside any other process: its workers are the user's work, at the user's niceness
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's name for: listen on 127.0.0.1 only
        if shared_memory.room()[0] < (section.object_store_mb or SMALL_STORE_MB) << 20:  # Ray says so to its own log
            log.warning(
                f"Ray: {shared_memory.described()}: its objects go to files in /tmp, which is slower; "
                f"{shared_memory.MORE}, or use --executor local"
            )
    import ray

    try:
        ray.init(**_options(section, address, cpus))
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, AuthenticationError, ...
        where = f"the cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        raise LaunchError(f"{where}: no connection ({type(error).__name__}: {error}); see docs/cluster.md") from error
    try:
        with sigterm_interrupts():  # ray.init sets a handler of its own
            yield
    finally:
        ray.shutdown()


def _options(section: RaySection, address: str | None, cpus: int) -> dict[str, Any]:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        return {"address": address, **quiet}
    # `local`: else Ray would join what an earlier driver left in /tmp/ray/ray_current_cluster, dead or alive
    options: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False, **quiet}
    if section.object_store_mb:
        options["object_store_memory"] = section.object_store_mb << 20
    for key, folder in (("_temp_dir", section.temp_dir), ("object_spilling_directory", section.spill_dir)):
        if folder:
            options[key] = str(Path(folder).resolve())
    return options


def is_cluster() -> bool:
    """Whether workers may lie on other machines than the driver."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_on_every_node(function: Callable[[Any], Any], argument: Any) -> dict[str, Any]:
    """`function(argument)` on every living node: node address -> its answer. Raises LaunchError where a node does not
    answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    calls = {}
    for node in ray.nodes():
        if node["Alive"]:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
            calls[name] = remote.options(name="check", scheduling_strategy=strategy).remote(argument)
    answers = {}
    for name, call in calls.items():
        try:
            answers[name] = ray.get(call, timeout=START_SECONDS)
        except ray.exceptions.RayError as error:
            raise LaunchError(f"Ray node {name}: did not answer ({_reason(error)}); see docs/cluster.md") from error
    return answers


def _missing(paths: Sequence[Folder]) -> list[str]:
    return [str(path) for path in paths if not path.is_file()]


def check_visible(paths: Sequence[Folder]) -> None:
    """Raises LaunchError naming every node that does not see one of `paths`, before any work is sent to it."""
    answers = check_on_every_node(_missing, paths)
    problems = [f"node {node}: cannot see {path}" for node, missing in answers.items() for path in missing]
    if problems:
        raise LaunchError(report_problems("storage is not shared by all nodes of the Ray cluster", problems))


def resources() -> tuple[float, float]:
    """CPUs and GPUs of the connected cluster."""
    import ray

    found = ray.cluster_resources()
    return found.get("CPU", 1.0), found.get("GPU", 0.0)


class _Worker:
    """Runs what it is sent, in a process of its own. `_Pool` makes actors of it."""

    def __init__(self) -> None:
        self.told: deque[dict[str, float]] = deque()
        tell_to(self.told.append)

    def call(self, function: Callable[..., Any], task: Any, *results: Any) -> tuple[Done, Any]:
        """References among the arguments arrive as values, but not inside a list: hence the star."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        try:
            value = function(task, list(results)) if results else function(task)
            return Done(node, told=self.take()), value
        except Exception as error:
            logging.getLogger(__name__).error(traceback.format_exc())  # to the worker's log file
            error.__traceback__ = error.__cause__ = error.__context__ = None  # the frames hold arrays
            return Done(node, error), None

    def take(self) -> list[dict[str, float]]:
        """What work told since this was last asked, with the most memory (GB) that this process has held. Called
        beside `call`, on another thread."""
        found = [self.told.popleft() for _ in range(len(self.told))]
        return [*found, {WORKER_GB: peak_memory()[0]}] if found else []


@dataclass(eq=False)
class _State:
    """A chunk in flight: references to its parts' results."""

    chunk: Chunk
    results: list[Any]


@dataclass(eq=False)
class _Job:
    """One call: part `number` of a chunk, or its end (None)."""

    state: _State
    number: int | None
    attempts: int = 0
    issued: float = 0.0

    @property
    def part(self) -> Part | None:
        return None if self.number is None else self.state.chunk.parts[self.number]

    @property
    def label(self) -> str:
        return self.part.label if self.part else self.state.chunk.label

    @property
    def prefers(self) -> str:
        return self.part.prefers if self.part else ""


@dataclass(eq=False)
class _Actor:
    handle: Any
    prefers: str = ""


class _Pool:
    """The actors of one step, and the jobs that wait for one. heard: whether they are asked what their work tells."""

    def __init__(self, step: Step, heard: bool) -> None:
        self.step, self.heard = step, heard
        self.idle = [self._start() for _ in range(step.actors)]
        self.queue: list[_Job] = []

    def _start(self) -> _Actor:
        import ray

        options: dict[str, Any] = {"num_cpus": self.step.cpus, "num_gpus": self.step.gpus}
        if self.heard:  # only then: it moves work off the main thread, the only one that signal handlers can be set in
            options["concurrency_groups"] = {ASIDE: 1}
        return _Actor(ray.remote(max_restarts=0, max_task_retries=0, **options)(_Worker).remote())

    def next(self) -> tuple[_Job, _Actor]:
        """A job of the earliest chunk, and an idle actor: a pair that did such a part before, where there is one."""
        jobs = [job for job in self.queue if job.state is self.queue[0].state]
        pairs = [(job, actor) for job in jobs for actor in self.idle]
        job, actor = min(pairs, key=lambda pair: (pair[0].prefers != pair[1].prefers, pair[1].prefers != ""))
        self.queue.remove(job)
        self.idle.remove(actor)
        actor.prefers = job.prefers
        return job, actor

    def replace(self, actor: _Actor) -> None:
        _kill(actor)
        self.idle.append(self._start())


def _kill(actor: _Actor) -> None:
    import ray

    with suppress(Exception):  # it is dead already, most times
        ray.kill(actor.handle)


class _Loop:
    """Issues jobs and collects what they did. Chunks start in order and at most `window` are in flight, so that a
    straggler delays its own chunk only, and what lies in the object store stays bounded."""

    def __init__(
        self, chunks: Sequence[Chunk], steps: Sequence[Step], section: RaySection, load: Load, hear: Hear | None
    ) -> None:
        self.waiting, self.section, self.load, self.hear = deque(chunks), section, load, hear
        self.asked: dict[Any, _Actor] = {}  # answer to come -> who was asked what its work told
        self.asked_at = time.monotonic()
        self.pools = [_Pool(step, hear is not None) for step in steps]
        parts = max((len(chunk.parts) for chunk in chunks), default=0)
        self.window = 2 * steps[-1].actors + (-(-steps[0].actors // parts) if parts else 0)
        self.running: dict[Any, tuple[_Job, _Actor, _Pool, Any]] = {}

    def busy(self) -> bool:
        return bool(self.waiting or self.load.chunks_in_flight)

    def fill(self) -> None:
        """Chunks into flight, then jobs to idle actors, the earliest chunk's first."""
        while self.waiting and self.load.chunks_in_flight < self.window:
            chunk = self.waiting.popleft()
            self.load.chunks_in_flight += 1
            self._queue(_State(chunk, [None] * len(chunk.parts)))
        for pool in self.pools:
            while pool.queue and pool.idle:
                self._issue(pool, *pool.next())
        self.load.parts_waiting = len(self.pools[0].queue)

    def _queue(self, state: _State, attempts: int = 0) -> None:
        """What of the chunk can be done now: parts without a result, else its end."""
        missing = [number for number, result in enumerate(state.results) if result is None]
        if missing:
            self.pools[0].queue += [_Job(state, number, attempts) for number in missing]
        else:
            self.pools[-1].queue.append(_Job(state, None, attempts))

    def _issue(self, pool: _Pool, job: _Job, actor: _Actor) -> None:
        function, chunk = pool.step.function, job.state.chunk
        job.issued, job.attempts = time.monotonic(), job.attempts + 1
        call = actor.handle.call.options(name=job.label, num_returns=2)
        arguments = [job.part.task] if job.part else [chunk.task, *job.state.results]
        done, value = call.remote(function, *arguments)
        self.running[done] = (job, actor, pool, value)

    def collect(self) -> Iterator[tuple[Chunk, Part | None, Any]]:
        """Waits for the next job to end. Yields (chunk, part, None) for a part, (chunk, None, result) for a chunk."""
        import ray

        ended, _ = ray.wait(list(self.running), num_returns=1, timeout=1.0)
        for call in ended:
            job, actor, pool, value = self.running.pop(call)
            try:
                done = ray.get(call, timeout=ANSWER_SECONDS)
                if done.error is None and not job.part:
                    result = ray.get(value, timeout=ANSWER_SECONDS)
            except ray.exceptions.RayError as error:
                self._failed(job, actor, pool, error)
                continue
            if done.error is not None:
                if not _is_memory(done.error):
                    raise done.error
                self._failed(job, actor, pool, done.error)
                continue
            pool.idle.append(actor)
            self._hand_on(done.told)
            self.load.by_node[done.node] = self.load.by_node.get(done.node, 0) + 1
            if job.number is None:
                self.load.chunks_in_flight -= 1
                yield job.state.chunk, None, result
                continue
            job.state.results[job.number] = value
            if all(found is not None for found in job.state.results):
                self._queue(job.state)
            yield job.state.chunk, job.part, None
        self._expire()

    def listen(self) -> None:
        """Hands on what actors have answered and asks those that work, about once a second; waits for no answer."""
        import ray

        if self.hear is None or time.monotonic() - self.asked_at < LISTEN_SECONDS:
            return
        self.asked_at = time.monotonic()
        answered = ray.wait(list(self.asked), num_returns=len(self.asked), timeout=0)[0] if self.asked else []
        for call in answered:
            del self.asked[call]
            with suppress(ray.exceptions.RayError):  # that an actor died is seen by its job
                self._hand_on(ray.get(call, timeout=ANSWER_SECONDS))
        waiting = list(self.asked.values())
        for _, actor, _, _ in self.running.values():
            if actor not in waiting:
                self.asked[actor.handle.take.options(concurrency_group=ASIDE).remote()] = actor

    def _hand_on(self, told: list[dict[str, float]]) -> None:
        if self.hear is not None:
            for what in told:
                self.hear(what)

    def _expire(self) -> None:
        """Jobs that take too long: of a process that hangs, or that no node has room for."""
        minutes = self.section.item_minutes
        for call, (job, actor, pool, _) in list(self.running.items()):
            if time.monotonic() - job.issued > 60 * minutes:
                del self.running[call]
                self._failed(job, actor, pool, TimeoutError(f"no answer after {minutes:g} minutes"))

    def _failed(self, job: _Job, actor: _Actor, pool: _Pool, error: Exception) -> None:
        """The actor is replaced and the job tried again, unless its budget is spent."""
        pool.replace(actor)
        self.load.replaced += 1
        what, reason = f"{job.label} of {job.state.chunk.name}", _reason(error)
        if job.attempts >= self.section.attempts:
            raise RunError(
                f"{what}: failed {job.attempts} times (hardware.ray.attempts), at last: {reason}. Finished shards are "
                "kept: run the same command to go on"
                + ("; with less memory a worker: fewer of them, or smaller shards" if _is_memory(error) else "")
            )
        log.warning(f"{what}: attempt {job.attempts} failed ({reason}); trying again")
        if _is_lost(error):  # a node took results of parts with it
            job.state.results = [None] * len(job.state.results)
            self._queue(job.state, job.attempts)
        else:
            pool.queue.insert(0, job)

    def close(self) -> None:
        for actor in [actor for pool in self.pools for actor in pool.idle] + [run[1] for run in self.running.values()]:
            _kill(actor)


def run_chunks(
    chunks: Sequence[Chunk],
    steps: Sequence[Step],
    section: RaySection,
    load: Load,
    tick: Callable[[], None] = lambda: None,
    hear: Hear | None = None,
) -> Iterator[tuple[Chunk, Part | None, Any]]:
    """Every chunk's parts by the first step's actors, then its end by the last step's, on the connected cluster.

    Yields (chunk, part, None) as parts end and (chunk, None, result) as chunks end. An exception that a function raises
    is raised here; one that says memory ran out, and the death of a process, cost an attempt. Raises RunError when the
    attempts of a job are spent. All actors end with the iteration. About once a second `tick` is called, and `hear`
    with each thing that functions told (`pool.tell`) on their way; what a process that dies told last is lost.
    """
    loop = _Loop(chunks, steps, section, load, hear)
    try:
        while loop.busy():
            loop.fill()
            yield from loop.collect()
            loop.listen()
            tick()
    finally:
        loop.close()


def _is_memory(error: BaseException) -> bool:
    import ray

    if isinstance(error, MemoryError | ray.exceptions.OutOfMemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, ray.exceptions.RayError) and "memory" in str(error).lower()


def _is_lost(error: BaseException) -> bool:
    import ray

    lost = ray.exceptions.ObjectLostError | ray.exceptions.ObjectFetchTimedOutError
    return isinstance(error, lost) or isinstance(getattr(error, "cause", None), lost)


def _reason(error: BaseException) -> str:
    if _is_memory(error):
        return f"out of memory ({type(error).__name__})"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
