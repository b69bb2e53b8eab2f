"""Which candidates are worth pricing: every setting of every method, and the levers that help it.

Not the full product: each setting as it is; each method again with less of the network trained; and,
where memory is short, each method with the levers that cost the least and make it fit.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol

from advisor.errors import DEBUG, InputError, first_line, is_fault_of_ours
from advisor.methods import Method, Setting
from advisor.models.blocks import has_replaceable_front, trained_part
from advisor.parts.closed_form import solvable
from advisor.plain import decode, encode
from advisor.records import SMALL_BATCH, Candidate, Census, Cost, Features, Levers, StatisticsPolicy, Work
from advisor.store import Store

_log = logging.getLogger(__name__)
_Levers = dict[str, Any]


class Pricing(Protocol):
    """What a `Simulator` does, as far as it matters here."""

    def cost(self, candidate: Candidate, batch_size: int) -> Cost:
        """Cost of one update. Raises whatever the method or the model raises."""
        ...

    def key(self) -> dict[str, Any]:
        """All that a cost depends on, besides candidate and batch size."""
        ...


class Proposals:
    """Prices candidates as it proposes them; what can't be run is in `failures` or `faults`."""

    def __init__(
        self,
        simulator: Pricing,
        census: Census,
        *,
        batch_size: int,
        allowed_bytes: int | None,
        kernel_bytes: int = 0,
        images: int,
        store: Store | None = None,
    ) -> None:
        """Prepare to propose.

        Args:
            allowed_bytes: that an update may hold; None: as many as it likes.
            kernel_bytes: that count within them for each of its kernels.
            images: how many there are to train on; 0 where no data is given.
            store: where costs are looked for and kept; None: only for this run.
        """
        self._store, self._key = store, simulator.key() | {"batch_size": batch_size} if store else {}
        self._simulator, self._census = simulator, census
        self._batch_size, self._allowed, self._images = batch_size, allowed_bytes, images
        self._kernel_bytes = kernel_bytes
        self._costs: dict[Candidate, Cost | None] = {}
        self._helped: dict[tuple[str, int | None], list[_Levers]] = defaultdict(list)
        self._least_left: dict[Levers, float] = {}  # of the peak, by levers: the least of any method so far
        self.failures: dict[str, str] = {}  # what the model lacks, or breaks, by candidate
        self.faults: dict[str, str] = {}  # where we failed, not the model

    def of(
        self, method: Method, settings: Sequence[Setting], levers: Levers
    ) -> Iterator[tuple[Candidate, Cost]]:
        """The method's candidates with their costs; `levers` are the ones that all start from.

        Where there are images, each is proposed with heads that are solved after its training, too.
        """
        heads: tuple[Features, ...] = ()
        # Of a head that is trained alone, nothing would be left: that is `ridge`.
        if self._images and method.learns_classes and method.learning_rates and not method.only_head:
            heads = solvable(self._census)
        main = Candidate.of(method.name, settings[len(settings) // 2], levers)
        for candidate, cost in self._trained(method, settings, main):
            yield candidate, cost
            if candidate.levers.cached_prefix == "no":  # one training tells of them all
                # Wide ones are more accurate on most data; the head's own features need no new layer.
                few = heads[-2:] if candidate.setting == main.setting else heads[-1:]
                for features in heads if candidate == main else few:
                    yield from self._priced(self._with(candidate, {"head": f"ridge-{features}"}))

    def _trained(
        self, method: Method, settings: Sequence[Setting], main: Candidate
    ) -> Iterator[tuple[Candidate, Cost]]:
        for setting in settings:
            yield from self._priced(Candidate.of(method.name, setting, main.levers))
        policies = self._policies(method, main)
        for policy in policies:
            # Where nothing is trained, other settings take no more time to try.
            for setting in settings if not method.learning_rates else [dict(main.setting)]:
                one = Candidate.of(method.name, setting, main.levers)
                yield from self._priced(self._with(one, {"statistics": policy}))
        scopes = self._scopes(method)
        for scope in scopes:
            narrow = self._with(main, {"scope": scope})
            if list(method.settings(trained_part(self._census, scope), (1,))):
                yield from self._narrow(narrow, policies, is_widest=scope == scopes[0])
        if self._allowed is not None and not self._fits(main):
            scopes = [*scopes, *self._last_resort(method)]
            yield from self._made_to_fit(main, method, [None, *scopes], policies)

    def _narrow(
        self, narrow: Candidate, policies: Sequence[StatisticsPolicy], *, is_widest: bool
    ) -> Iterator[tuple[Candidate, Cost]]:
        """With less of the network trained, and where there are images, what is before it cached."""
        scope = narrow.levers.scope
        if scope:  # without a cache, training the head alone is what the method does anyway
            if self.price(narrow) is None:
                return
            yield from self._priced(narrow)
        if not self._images or not has_replaceable_front(self._census, scope or 0):
            return
        yield from self._cached(narrow)
        # Statistics before the scope may be far off; those of small batches are too noisy.
        for policy in policies:
            if policy == "reestimated" or (policy == "frozen" and self._batch_size < SMALL_BATCH):
                one = self._with(narrow, {"statistics": policy})
                yield from self._cached(one)
                # A wide head reads what a cache leaves out.
                if scope and (is_widest or policy == "frozen"):
                    yield from self._priced(one)

    def _made_to_fit(
        self,
        main: Candidate,
        method: Method,
        scopes: Sequence[int | None],
        policies: Sequence[StatisticsPolicy],
    ) -> Iterator[tuple[Candidate, Cost]]:
        """With the widest scope that can be made to fit, by the least harmful levers; else the leanest.

        What fits is proposed with the other statistics, too: those of a small part of a batch are noisy.

        A batch in parts is not always leaner than a whole one: gradients add up over the parts, so
        none can be freed before the last.
        """
        # Where nothing is trained, all that can be made smaller is the batch.
        trains = bool(method.learning_rates)
        tried: list[Candidate] = []
        for scope in scopes:
            narrow = self._with(main, {"scope": scope})
            same = self._first_fitting(narrow, "same", _SAME_UPDATE) if trains else None
            parts = _PARTS if trains else _PARTS[:1]
            kind = "smaller" if trains else "smaller, untrained"
            fitting = same or self._first_fitting(narrow, kind, self._parts(narrow, parts))
            if fitting is not None:
                yield from self._priced(fitting)
                for policy in policies:
                    yield from self._priced(self._with(fitting, {"statistics": policy}))
                return
            singles = tuple(levers | {"micro_batch": 1} for levers in parts)
            tried += [self._with(narrow, levers) for levers in (*(_SAME_UPDATE if trains else ()), *singles)]
        peaks = {c: self._taken(cost) for c in tried if (cost := self.price(c)) is not None}
        if peaks:  # says how much there would have to be
            yield from self._priced(min(peaks, key=lambda candidate: peaks[candidate]))

    def _policies(self, method: Method, main: Candidate) -> list[StatisticsPolicy]:
        """Other policies for the normalisation layers' statistics than the candidate's own.

        They cost much the same: only data tells them apart.
        """
        if not self._images or not any(layer.tracks_statistics for layer in self._census.layers):
            return []
        if self.price(main) is None:
            return []
        every: tuple[StatisticsPolicy, ...] = ("frozen", "updated", "reestimated")
        if not method.learning_rates:  # one pass changes no statistics, but may find them changed
            every = ("reestimated",) if method.solves(dict(main.setting)) else ()
        return [policy for policy in every if policy != method.statistics]

    def _scopes(self, method: Method) -> list[int]:
        """The last half, quarter and eighth of the blocks; of the head alone only what is before it.

        None of what says itself which layers are trained.
        """
        blocks = len(self._census.blocks)
        if not method.learning_rates or not blocks or method.needs_data:
            return []
        if method.only_head:
            return [0]
        return sorted({-(-blocks // part) for part in (2, 4, 8)} - {blocks}, reverse=True)

    def _cached(self, candidate: Candidate) -> Iterator[tuple[Candidate, Cost]]:
        """The front's outputs kept in memory, or where that is too much, on disk."""
        for where in ("ram", "disk"):
            cached = replace(candidate, levers=replace(candidate.levers, cached_prefix=where))
            if where == "disk" or self._cache_fits(cached):
                yield from self._priced(cached)
                return

    def _cache_fits(self, cached: Candidate) -> bool:
        if self._allowed is not None:
            return self._fits(cached)
        cost = self.price(cached)
        return cost is not None and cost.cache_bytes <= _MOST_CACHED

    def _last_resort(self, method: Method) -> list[int]:
        """The last block alone: what is proposed only where nothing wider fits."""
        return [1] if method.learning_rates and not method.only_head and self._census.blocks else []

    def _parts(self, candidate: Candidate, ladder: Sequence[_Levers]) -> Iterator[_Levers]:
        """The batch in parts as large as may fit; where even single images don't, with further levers."""
        sizes = [size for size in range(self._batch_size // 2, 1, -1) if self._batch_size % size == 0]
        for levers in ladder:
            lighter = self._with(candidate, levers)
            if self._fits(self._with(lighter, {"micro_batch": 1})):
                yield from (levers | {"micro_batch": size} for size in sizes if self._may_fit(lighter, size))
                yield levers | {"micro_batch": 1}

    def _may_fit(self, candidate: Candidate, size: int) -> bool:
        """Whether a line through two sizes' peaks says so: what an image adds is the same for each."""
        whole, one = self.price(candidate), self.price(self._with(candidate, {"micro_batch": 1}))
        if whole is None or one is None or self._allowed is None:
            return False
        share = (size - 1) / max(self._batch_size - 1, 1)
        peak = self._taken(one) + share * (self._taken(whole) - self._taken(one))
        return peak <= self._allowed

    def _first_fitting(self, candidate: Candidate, kind: str, ladder: Iterable[_Levers]) -> Candidate | None:
        """The first that fits, if one does. What helped a method before is tried first.

        Activations are much the same for all methods, so that is mostly right at once.
        """
        scope = candidate.levers.scope
        for levers in chain(self._helped[kind, scope], ladder):
            lighter = self._with(candidate, levers)
            if self._is_hopeless(candidate, lighter):
                continue
            if self._fits(lighter):
                self._helped[kind, scope] = [levers]
                return lighter
        return None

    def _is_hopeless(self, candidate: Candidate, lighter: Candidate) -> bool:
        """Whether these levers save far too little, going by what they saved for other methods.

        Levers act on activations, which are much the same for all methods. It only spares a simulation: what
        has to fit in the end is always simulated.
        """
        if self._allowed is None or lighter in self._costs or lighter.levers.micro_batch is not None:
            return False
        before = self.price(candidate)
        least = self._least_left.get(lighter.levers)
        if before is None or least is None:
            return False
        return _SURELY * least * before.peak_memory_bytes > self._allowed

    def _with(self, candidate: Candidate, levers: _Levers) -> Candidate:
        return replace(candidate, levers=replace(candidate.levers, **levers))

    def _fits(self, candidate: Candidate) -> bool:
        cost = self.price(candidate)
        if cost is None or self._allowed is None:
            return False
        unaided = self._costs.get(replace(candidate, levers=_unaided(candidate.levers)))
        if unaided is not None:
            left = cost.peak_memory_bytes / unaided.peak_memory_bytes
            self._least_left[candidate.levers] = min(left, self._least_left.get(candidate.levers, left))
        return self._taken(cost) <= self._allowed

    def _taken(self, cost: Cost) -> int:
        """Of what is allowed."""
        return cost.peak_memory_bytes + cost.kernels * self._kernel_bytes

    def _priced(self, candidate: Candidate) -> Iterator[tuple[Candidate, Cost]]:
        cost = self.price(candidate)
        if cost is not None:
            yield candidate, cost

    def price(self, candidate: Candidate) -> Cost | None:
        """What an update of it costs; None where it can't be run: then `failures` or `faults` say why."""
        if candidate not in self._costs:
            try:
                self._costs[candidate] = self._known_or_simulated(candidate)
            except InputError as error:
                # That a method finds nothing to adapt in a few blocks is no news.
                if candidate.levers.scope is None:
                    self.failures[candidate.id] = str(error)
                self._costs[candidate] = None
            except Exception as error:
                _log.debug("pricing %s failed", candidate.id, exc_info=True)
                if is_fault_of_ours(error):
                    if os.environ.get(DEBUG):
                        raise
                    self.faults[candidate.id] = f"{type(error).__name__}: {first_line(error)}"
                else:  # what a model breaks must not end the others
                    self.failures[candidate.id] = f"an update of it fails on this model: {_reason(error)}"
                self._costs[candidate] = None
        return self._costs[candidate]

    def _known_or_simulated(self, candidate: Candidate) -> Cost:
        if self._store is None:
            return self._simulator.cost(candidate, self._batch_size)
        key = self._key | {"candidate": candidate.id}
        known = self._store.get("cost", key)
        if known is not None:
            work = tuple(decode(Work, each) for each in known["work"])
            return replace(decode(Cost, known), work=work)
        cost = self._simulator.cost(candidate, self._batch_size)
        self._store.put("cost", key, encode(cost) | {"work": encode(cost.work)})
        return cost


def _unaided(levers: Levers) -> Levers:
    """Without the levers that save memory at the same scope."""
    return replace(levers, micro_batch=None, checkpoint=False, update="end")


_SURELY = 0.75  # levers may save so much more for one method than for any other
_MOST_CACHED = 2**30  # bytes in memory where no limit is given
# In order of what they cost: nothing; a second forward pass.
_SAME_UPDATE: tuple[_Levers, ...] = (
    {"update": "per-parameter"},
    {"checkpoint": True},
    {"checkpoint": True, "update": "per-parameter"},
)
# What smaller parts of the batch are combined with: always lighter.
_PARTS: tuple[_Levers, ...] = (
    {},
    {"update": "per-parameter"},
    {"checkpoint": True, "update": "per-parameter"},
)


def _reason(error: Exception) -> str:
    """What the model broke, in its own words unless they only tell what autograd missed."""
    said = first_line(error)
    if "does not require grad" not in said:
        return said
    return (
        "no gradient comes from its outputs to what is trained; does its forward run under torch.no_grad(), "
        "detach, or compute with NumPy?"
    )
