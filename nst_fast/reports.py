"""Reports of one picture of several; as arrays, and back: what a saved run keeps of its steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nst_fast.host import Float64
from nst_fast.losses import Objective
from nst_fast.result import Report, named_terms
from nst_fast.state import State

Kind = Mapping[str, Any]  # "size", and the names of the "terms", of reports in a row; JSON-able


def of_one(
    reports: Sequence[Report], evaluations: Sequence[tuple[Objective, Float64]], index: int
) -> tuple[Report, ...]:
    """Reports on several pictures with the losses of one of them.

    ``evaluations`` are the terms (N, K) of each step, with their objective.
    """
    if not evaluations or len(evaluations[0][1]) == 1:
        return tuple(reports)
    own = [(objective, terms[index]) for objective, terms in evaluations]
    return tuple(
        replace(report, loss=float(terms.sum()), terms=named_terms(objective, terms))
        for report, (objective, terms) in zip(reports, own, strict=True)
    )


def pack(reports: Sequence[Report]) -> tuple[list[Kind], dict[str, Float64]]:
    """Kinds of reports in the order of the steps, and an array of numbers for each.

    The arrays are named "reports0" and so on, and have a row for each step.
    """
    kinds: list[Kind] = []
    arrays: dict[str, Float64] = {}
    for kind, same in itertools.groupby(reports, _kind):
        rows = [(r.progress, r.loss, r.seconds, r.took, *r.terms.values()) for r in same]
        arrays[f"reports{len(kinds)}"] = np.array(rows, np.float64)
        kinds.append(kind)
    return kinds, arrays


def unpack(state: State, steps: int) -> Iterator[Report]:
    """The reports of a state, as a run of so many steps tells them.

    Raises:
        StateError: they are not there.
    """
    first = 1
    for index, (kind, count) in enumerate(
        zip(state.course.kinds, state.course.taken, strict=False)
    ):
        rows = np.empty((count, 4 + len(kind["terms"])))
        state.into({f"reports{index}": rows})
        width, height = kind["size"]
        for step, (progress, loss, seconds, took, *terms) in enumerate(rows.tolist(), first):
            yield Report(
                step=step,
                steps=steps,
                size=(width, height),
                progress=progress,
                loss=loss,
                terms=dict(zip(kind["terms"], terms, strict=True)),
                seconds=seconds,
                took=took,
            )
        first += count


def _kind(report: Report) -> Kind:
    return {"size": list(report.size), "terms": list(report.terms)}
