"""Where probes run: in this process, in worker processes, or on an engine that joblib knows."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import torch

from advisor.costs import keep_freed_memory
from advisor.errors import InputError, first_line
from advisor.names import check_executor
from advisor.probes.train import Probe, Trainer, Trial
from advisor.records import Candidate
from advisor.system.machine import end_first, is_ample
from advisor.system.temporary import TemporaryFolder

IsRisky = Callable[[Candidate], bool]


class Executor(Protocol):
    """Runs independent trials."""

    workers: int  # how many at once
    threads: int  # that each has
    losses: list[str]  # what died while it ran, in words
    is_risky: IsRisky  # whether a candidate's training may run out of memory

    def run(self, trials: Iterable[Trial]) -> Iterator[Probe]:
        """Each trial's probe as it finishes; a trial is taken when it can begin."""
        ...


@contextmanager
def executor_for(
    spec: str, trainer: Trainer, is_risky: IsRisky = lambda candidate: False
) -> Iterator[Executor]:
    """The executor that `--executor` names, for as long as the context lasts.

    Args:
        spec: `here` is this process; `local` one worker process for each core, `local:N` so many;
            `dask://HOST:PORT` and `ray` or `ray://HOST:PORT` a cluster, whose own business its cores are.
        is_risky: which candidates may run out of memory: they never run in this process.

    Raises:
        InputError: there is no such executor, its package is not installed, or it can't be reached.
    """
    check_executor(spec)
    kind, _, rest = spec.partition(":")
    with ExitStack() as cleanup:
        if spec == "here":
            yield InProcess(trainer, is_risky, cleanup)
        elif kind == "local":
            workers = int(rest or os.cpu_count() or 1)
            # Not before it is needed: sending the images makes them.
            sent = cache(partial(_sent_by_file, trainer, cleanup))
            yield Workers(sent, workers, _local(), is_risky)
        elif kind == "dask":
            scattered = _sent(trainer)
            workers = _connect_dask(f"tcp:{rest}", scattered, cleanup)
            yield Workers(lambda: scattered, workers, {"backend": "dask", "scatter": [scattered]}, is_risky)
        else:
            sent, workers = cache(partial(_sent, trainer)), _connect_ray(spec, cleanup)
            executor = Workers(sent, workers, {"backend": "ray"}, is_risky)
            cleanup.callback(executor.stop)
            yield executor


class InProcess:
    """One after the other, here; what may take the process down, in another one."""

    workers = 1

    def __init__(self, trainer: Trainer, is_risky: IsRisky, cleanup: ExitStack | None = None) -> None:
        """`cleanup`: what stays open for as long as the executor is used."""
        self.losses: list[str] = []
        self.threads = torch.get_num_threads()
        self.is_risky, self._trainer, self._cleanup = is_risky, trainer, cleanup
        self._elsewhere: Workers | None = None

    def run(self, trials: Iterable[Trial]) -> Iterator[Probe]:
        """Each trial's probe, in order."""
        for trial in trials:
            if self._cleanup is None or not self.is_risky(trial.candidate):
                yield self._trainer.probe(trial)
                continue
            if not is_ample():
                yield Probe(trial, None, 0.0, "it may need more memory than is left here")
                continue
            if self._elsewhere is None:
                sent = cache(partial(_sent_by_file, self._trainer, self._cleanup, threads=self.threads))
                try:
                    sent()
                except InputError as error:
                    failure = "it may need more memory than there is, and can't be tried in another process"
                    yield Probe(trial, None, 0.0, f"{failure} ({error.__cause__})")
                    continue
                self._elsewhere = Workers(sent, 1, _local(), self.is_risky, self.threads)
                self._elsewhere.losses = self.losses
            yield from self._elsewhere.run([trial])


class Workers:
    """Other processes, by way of joblib. A trial whose worker dies is tried once more, alone."""

    def __init__(
        self,
        sent: Callable[[], _Sent],
        workers: int,
        backend: dict[str, Any],
        is_risky: IsRisky,
        threads: int = 1,
    ) -> None:
        """`threads`: that each worker has, as the trainer that is sent says."""
        self.workers, self.threads, self.is_risky = workers, threads, is_risky
        self.losses: list[str] = []
        self._sent, self._backend, self._is_ray = sent, backend, backend["backend"] == "ray"
        self._opened: Any = None

    def run(self, trials: Iterable[Trial]) -> Iterator[Probe]:
        """Each trial's probe as it finishes."""
        waiting = iter(trials)
        while True:
            begun: list[Trial] = []
            try:
                yield from self._parallel(waiting, begun)
            except _deaths() as error:
                self.losses.append(
                    f"a worker died ({type(error).__name__}) while it ran one of: "
                    f"{', '.join(trial.candidate.id for trial in begun)}; each was tried once more"
                )
                for trial in begun:
                    yield self._alone(trial)
            else:
                return

    def stop(self) -> None:
        """End what is kept from one call to the next."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.__exit__(None, None, None)

    def _parallel(self, trials: Iterator[Trial], begun: list[Trial]) -> Iterator[Probe]:
        """Until one of the workers dies; `begun` then holds what was begun and not finished."""
        from joblib import delayed

        def calls(some: Iterable[Trial]) -> Iterator[Any]:
            for trial in some:
                begun.append(trial)
                yield delayed(_probe)(self._sent(), trial)

        with warnings.catch_warnings(), self._pool() as parallel:
            # One that has grown is replaced: cached fronts are no leak.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
            while (first := next(trials, None)) is not None:
                some = chain([first], islice(trials, self.workers - 1) if self._is_ray else trials)
                # Engines start their workers themselves, and ray's call lasts until all are done.
                local = self._backend["backend"] == "loky"
                with _interrupts_kept_from_children() if local else nullcontext():
                    probes = parallel(calls(some))
                for probe in probes:
                    begun.remove(probe.trial)
                    yield probe

    @contextmanager
    def _pool(self) -> Iterator[Any]:
        """What joblib's calls go through. On ray it is kept: a new one's workers all import torch anew."""
        from joblib import Parallel, parallel_config

        if self._opened is None:
            # With a single job joblib would run it in this process.
            with parallel_config(n_jobs=max(self.workers, 2), **self._backend):
                opened = Parallel(
                    # joblib's ray backend hands over results only when all of a call are there.
                    return_as="list" if self._is_ray else "generator_unordered",
                    batch_size=1,
                    pre_dispatch=self.workers,
                )
            self._opened = opened.__enter__()
        is_whole = False
        try:
            yield self._opened
            is_whole = True
        finally:
            if not (self._is_ray and is_whole):
                self.stop()

    def _alone(self, trial: Trial) -> Probe:
        try:
            return next(self._parallel(iter([trial]), []))
        except _deaths() as error:
            self.losses.append(
                f"a worker died again with {trial.candidate.id} alone ({type(error).__name__})"
            )
            return Probe(trial, None, 0.0, "the process that ran it died; is there too little memory?")


@dataclass(frozen=True, slots=True)
class _Sent:
    """A trainer on its way to the workers: in a file that they can read, or as it is."""

    digest: str
    threads: int
    path: str | None = None
    content: bytes | None = None


def _local() -> dict[str, Any]:
    """What joblib starts workers of this machine with."""
    return {"backend": "loky", "initializer": _follow, "initargs": (os.getpid(),)}


def _follow(parent: int) -> None:
    """In a worker process of this machine: end soon after the process that started it, however that ended.

    It only trains, so it keeps what it frees; and it goes first where memory runs out.
    """
    end_first()
    keep_freed_memory()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Processes that are started meanwhile never see a Ctrl-C; this one sees it afterwards.

    A terminal sends it to every process in the foreground. What is blocked is inherited.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import resource_tracker as lokys

    # Both are started with the first worker, just before it, and leave interrupts unblocked.
    resource_tracker.ensure_running()
    lokys.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_received: dict[str, Trainer] = {}  # in a worker: the trainer that was sent last


def _probe(sent: _Sent, trial: Trial) -> Probe:
    """In a worker: run one trial."""
    import pickle

    torch.set_num_threads(sent.threads)
    if sent.digest not in _received:
        content = Path(sent.path).read_bytes() if sent.path is not None else sent.content
        _received.clear()
        _received[sent.digest] = pickle.loads(content or b"")  # noqa: S301 - this run's own
    return _received[sent.digest].probe(trial)


def _sent(trainer: Trainer, threads: int = 1) -> _Sent:
    """With one thread for each worker, they don't fight over the cores."""
    import cloudpickle

    try:
        content = cloudpickle.dumps(trainer)
    except Exception as error:
        raise InputError(
            f"the model can't be sent to other processes ({error}); leave --executor out"
        ) from error
    return _Sent(hashlib.sha256(content).hexdigest(), threads, content=content)


def _sent_by_file(trainer: Trainer, cleanup: ExitStack, threads: int = 1) -> _Sent:
    sent = _sent(trainer, threads)
    folder = cleanup.enter_context(TemporaryFolder())
    path = Path(folder, "trainer.pickle")
    path.write_bytes(sent.content or b"")
    return _Sent(sent.digest, threads, path=str(path))


_CLUSTER_SECONDS = 10.0  # to answer


def _connect_dask(address: str, sent: _Sent, cleanup: ExitStack) -> int:
    """Make the cluster joblib's; how many probes it can run at once."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise InputError("--executor dask needs dask: pip install 'peft-advisor[dask]'") from error
    try:
        client = cleanup.enter_context(Client(address, timeout=_CLUSTER_SECONDS))
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"--executor: there is no dask scheduler at {address}: {error}") from error
    # joblib scatters it for each rung. Held here, the cluster never lets go of it between two.
    held = client.scatter([sent], broadcast=True)
    cleanup.callback(held.clear)
    return max(sum(client.nthreads().values()), 1)


def _connect_ray(spec: str, cleanup: ExitStack) -> int:
    """Make the cluster joblib's; how many probes it can run at once."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise InputError("--executor ray needs ray: pip install 'peft-advisor[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(None if spec == "ray" else spec, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise InputError(f"--executor: there is no ray cluster at {spec}: {first_line(error)}") from error
        cleanup.callback(ray.shutdown)
    register_ray()
    workers = int(ray.cluster_resources().get("CPU", 0))
    if workers < 2:  # with a single job joblib would run it in this process, and ray refuses two
        raise InputError("--executor: the ray cluster has fewer than 2 CPUs; give it more, or leave it out")
    return workers


def _deaths() -> tuple[type[BaseException], ...]:
    """What says that a worker is gone, not that its work went wrong."""
    from concurrent.futures.process import BrokenProcessPool

    found: list[type[BaseException]] = [BrokenProcessPool]
    try:
        from distributed.scheduler import KilledWorker

        found.append(KilledWorker)
    except ImportError:
        pass
    try:
        from ray.exceptions import RayError

        found.append(RayError)
    except ImportError:
        pass
    return tuple(found)
