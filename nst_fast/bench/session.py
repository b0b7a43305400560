"""One run of ``nst-fast bench``: its options, its peers, and what it has found so far."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from threadpoolctl import threadpool_limits

from nst_fast import encoders
from nst_fast.backend import Backend
from nst_fast.bench import floor, machine, peers
from nst_fast.bench.findings import (
    SUITES,
    SUITES_ON,
    Device,
    Failure,
    Findings,
    Measurement,
)
from nst_fast.bench.machine import bf16_features
from nst_fast.bench.method import Route, Times, compare, interleave, nothing, order
from nst_fast.bench.peers import StepPeer
from nst_fast.bench.problem import Problem, Step, agreement, backend, evaluate, label
from nst_fast.config import PrecisionName, ProviderName
from nst_fast.encoders import Encoder
from nst_fast.errors import BenchError, EncoderError, ProviderError, SettingsError, with_kind

CAVEAT = (
    "with two threads and more these ratios flatter us, because torch's OpenMP barriers wait for "
    "the slowest thread; measure on a quiet machine, or with --threads 1"
)


@dataclass(frozen=True)
class Options:
    """What to measure; an empty tuple leaves the choice to each suite.

    Attributes:
        suites: of ``SUITES_ON[device]``, in order.
        sizes: pixels a side, multiples of 16.
        encoders: names or folders.
        providers: of ours.
        precisions: of ours.
        batches: pictures at once.
        repeats: rounds.
        threads: for every route.
        peers: folder; None: those of the checkout.
        judge: weights of the network that judges pictures; None: the encoder that ships judges.
        device: that everything runs on.

    Raises:
        SettingsError: a value cannot work; the message names the option.
    """

    suites: tuple[str, ...] = SUITES
    sizes: tuple[int, ...] = ()
    encoders: tuple[str, ...] = ()
    providers: tuple[ProviderName, ...] = ("auto",)
    precisions: tuple[PrecisionName, ...] = ("fp32", "auto")
    batches: tuple[int, ...] = ()
    repeats: int = 7
    threads: int = 1
    peers: Path | None = None
    judge: Path | None = None
    device: Device = "cpu"

    def __post_init__(self) -> None:
        """Check every value."""
        known = SUITES_ON[self.device]
        for suite in self.suites:
            if suite not in known:
                on = "" if self.device == "cpu" else f" on {self.device}"
                raise SettingsError(f"no suite {suite!r}{on}: there are {', '.join(known)}")
        for size in self.sizes:
            if size < 32 or size % 16:
                raise SettingsError(f"--sizes: multiples of 16 from 32 on, not {size}")
        for option, value in (
            ("--repeats", self.repeats),
            ("--threads", self.threads),
            *(("--batch", batch) for batch in self.batches),
        ):
            if value < 1:
                raise SettingsError(f"{option}: must be 1 or more, not {value}")


@dataclass
class Bench:
    """A run in progress.

    ``say`` takes a line of it, ``folder`` is for temporary files, ``probes`` measure the floor.
    """

    options: Options
    findings: Findings
    say: Callable[[str], None]
    folder: Path
    peers: peers.Peers | None
    peers_parent: Path
    probes: floor.Probes
    _encoders: dict[str, Encoder | None] = field(default_factory=dict)
    _groups: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def note(self, text: str) -> None:
        """Keep a line beside the numbers, once, and say it."""
        if text not in self.findings.notes:
            self.findings.notes.append(text)
            self.say(text)

    @contextmanager
    def attempt(self, suite: str, task: str = "") -> Iterator[None]:
        """Go on after whatever fails inside: what was measured stays, and so does the reason."""
        try:
            yield
        except Exception as error:
            failure = Failure(suite, task, with_kind(error))
            self.findings.failures.append(failure)
            self.say(failure.line)

    def encoders(self, default: Sequence[str]) -> list[Encoder]:
        """The encoders asked for, or these; those that are not at hand are noted and left out."""
        names = self.options.encoders or default
        return [found for name in names if (found := self.encoder(name)) is not None]

    def encoder(self, name: str) -> Encoder | None:
        """Load an encoder once; VGG-19 gets random weights where its own are not at hand."""
        if name not in self._encoders:
            self._encoders[name] = self._load(name)
        return self._encoders[name]

    def _load(self, name: str) -> Encoder | None:
        try:
            return encoders.load(name)
        except EncoderError as error:
            if name != "vgg19":
                raise
            if self.peers is None:
                self.note(f"vgg19 left out: {error}")
                return None
        self.say("building vgg19 with random weights")
        self.note("vgg19 has random weights (He et al. 2015): speed does not depend on them.")
        return encoders.load(self.peers.random_vgg19(self.folder))

    @cached_property
    def backends(self) -> dict[str, Backend]:
        """Ours to measure, by label: those asked for, without repetition."""
        found: dict[str, Backend] = {}
        for provider in self.options.providers:
            for precision in self.options.precisions:
                try:
                    chosen = backend(provider, precision, self.options.threads)
                except ProviderError as error:
                    self.note(f"left out: {error}")
                    continue
                found[label(chosen)] = chosen
        if not found:
            raise ProviderError("--providers, --precisions: none of them can be had here")
        return found

    @property
    def best(self) -> Backend:
        """Ours in the best precision among those asked for."""
        return next(
            (b for b in self.backends.values() if b.precision == "bf16"),
            next(iter(self.backends.values())),
        )

    @property
    def on_gpu(self) -> bool:
        """Whether everything runs on a GPU."""
        return self.options.device == "cuda"

    @property
    def wait(self) -> Route:
        """What ends a timing on this device."""
        if self.on_gpu:
            assert self.peers is not None
            return self.peers.gpu.wait
        return nothing

    def agree(self, task: str, ours: Mapping[str, Step], peers: Mapping[str, Step]) -> None:
        """Compare each peer's loss and gradient with ours of its precision, before any timing."""
        if not ours:
            return
        found = {name: evaluate(step) for name, step in {**ours, **peers}.items()}
        for peer in peers:
            same = [name for name in ours if name.split()[0] in peer.split()]
            name = (same or list(ours))[0]
            one = agreement(task, (name, peer), found[name], found[peer])
            self.findings.agreements.append(one)
            self.say(
                f"{task}: {name} | {peer}: loss differs by {one.loss:.1e}, gradient by "
                f"{one.gradient:.1e} (relative), cosine {one.cosine:.6f}"
            )

    def step_peers(self, problem: Problem, compiled: bool = True) -> dict[str, Step]:
        """The peers that can run here, prepared; bf16 on a CPU that has it."""
        made: dict[str, Step] = {}
        several, cpu = problem.image.shape[0] > 1, not self.on_gpu
        for name, peer in self.peers.STEPS[self.options.device].items() if self.peers else ():
            if peer.compiled > compiled or several > peer.several:
                continue
            if cpu and peer.precision == "bf16" and not bf16_features():
                continue
            self.say(f"preparing {name} for {problem.task}")
            try:
                made[name] = peer.make(problem)
                made[name].step()
            except (ImportError, RuntimeError) as error:
                made.pop(name, None)
                self.note(f"{name} left out: {with_kind(error)}")
        return made

    def step_peer(self, name: str) -> StepPeer:
        """A peer of this device."""
        assert self.peers is not None
        return self.peers.STEPS[self.options.device][name]

    def time(
        self,
        routes: Mapping[str, tuple[Route, Measurement]],
        repeats: Mapping[str, int] | None = None,
    ) -> dict[str, Measurement]:
        """Time routes against each other; each comes with the measurement to fill in.

        In the same rounds the peaks are measured that their floors divide by. ``repeats`` tells of
        routes that do their work several times a call how often that is.
        """
        often = repeats or {}
        kinds = {blank.precision for _, blank in routes.values() if blank.flops or blank.moved}
        wanted = {*kinds, "copy"} if kinds else set()
        probes = {kind: probe for kind, probe in self.probes.items() if kind in wanted}
        calls = {name: call for name, (call, _) in routes.items()}
        calls |= {kind: probe.route for kind, probe in probes.items()}
        times = interleave(calls, self.options.repeats, self.wait)
        peaks, group = floor.rates(probes, times), self.new_group()
        self._raise_peaks(peaks)
        found = {}
        for name, (_, blank) in routes.items():
            values = [value / often.get(name, 1) for value in times[name]]
            least = floor.seconds(peaks, blank.precision, blank.flops, blank.moved)
            found[name] = self.keep(replace(blank, values=values, group=group, floor=least))
        return found

    def _raise_peaks(self, peaks: Mapping[str, float]) -> None:
        """Keep the highest of the run."""
        known = self.findings.peaks
        known |= {kind: max(rate, known.get(kind, 0.0)) for kind, rate in peaks.items()}

    def new_group(self) -> int:
        """Number for measurements that share their rounds."""
        return next(self._groups)

    def in_turns(
        self, suite: str, task: str, routes: Mapping[str, Callable[[], float]], rounds: int
    ) -> Times:
        """Call every route once a round; each returns its seconds. Those that fail drop out."""
        times: Times = {name: [] for name in routes}
        for turn in range(rounds):
            for name in order(list(times), turn):
                with self.attempt(suite, f"{task}, {name}"):
                    times[name].append(routes[name]())
                    continue
                del times[name]
        return times

    def keep(self, found: Measurement) -> Measurement:
        """Keep a measurement."""
        self.findings.measurements.append(found)
        return found

    def row(
        self,
        ours: Measurement,
        peer: Measurement,
        target: float | None = None,
        task: str | None = None,
    ) -> None:
        """Keep a comparison."""
        self.findings.rows.append(compare(ours, peer, target, task))


def least(found: Mapping[str, Measurement]) -> Measurement | None:
    """The measurement with the least median; None of none."""
    return min(found.values(), key=lambda one: one.middle, default=None)


@contextmanager
def opened(options: Options, command: str, say: Callable[[str], None]) -> Iterator[Bench]:
    """Find the peers, limit everybody's threads, prepare the floor; then the run is open.

    Raises:
        BenchError: the folder named has no peers; there is no GPU.
    """
    found, parent, reason = peers.load(options.peers)
    where = machine.facts(options.threads)
    if options.device == "cuda":
        if found is None:
            raise BenchError(f"--device cuda needs the peers, which time the GPU; {reason}")
        where |= found.gpu.facts()
    where["load_after"] = where["load"]
    findings = Findings(machine=where, command=command, rounds=options.repeats)
    with (
        tempfile.TemporaryDirectory() as folder,
        threadpool_limits(options.threads),
        ThreadPoolExecutor(options.threads) as pool,
    ):
        if found is not None and options.device == "cuda":
            probes = floor.gpu_probes(found.gpu)
        else:
            probes = floor.probes(pool, options.threads, options.repeats)
        bench = Bench(options, findings, say, Path(folder), found, parent, probes)
        if reason:
            bench.note(reason)
        if where["load"][0] > machine.BUSY * where["cores"]:
            bench.note(f"Other programs are running (load {where['load'][0]}): {CAVEAT}.")
        findings.peaks = floor.peaks(probes, options.repeats, bench.wait)
        yield bench
