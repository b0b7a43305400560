"""The loss between a forward and a backward graph, and the loss alone, as operators.

Inputs that the operators read, for N pictures and K terms at the taps; a site is a tap, or a tap
and a region (``losses.objective``):

    weights_<site>     (N, 1, H/s, W/s)   m, where the graph is weighted
    <constant>_<site>  (N, …)             of the style loss
    content_<tap>      (N, C, H/s, W/s)   F_c
    normalizers             (N, K)             ``Goal.normalizers``
    pulls              (N, K)             ``Goal.pulls``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import TensorProto

from nst_fast.graph.graph import Graph
from nst_fast.graph.parts import gradient_name
from nst_fast.host import Float32, Float64
from nst_fast.losses.moments import FeatureMatrix, Layout
from nst_fast.losses.objective import Goal, Objective, tap_of

TERMS = "terms"
NORMALIZERS = "normalizers"
PULLS = "pulls"
LOSS_SCALE = "loss_scale"


def weights_name(site: str) -> str:
    """Name of the input that holds the weights of a site's cells."""
    return f"weights_{site}"


def content_name(tap: str) -> str:
    """Name of a content target."""
    return f"content_{tap}"


def constant_name(constant: str, site: str) -> str:
    """Name of a constant of the style loss."""
    return f"{constant}_{site}"


def moments_name(site: str) -> str:
    """Name of the moments at a site where they are an input or an output."""
    return f"moments_{site}"


def derivative_name(site: str) -> str:
    """Name of [A b] where it is an output."""
    return f"derivative_{site}"


def goal_inputs(goal: Goal) -> dict[str, Float32 | Float64]:
    """What graphs read of a goal, by the names of their inputs; N is 1 where all pictures share."""
    values: dict[str, Float32 | Float64] = {NORMALIZERS: goal.normalizers, PULLS: goal.pulls}
    values |= {weights_name(site): m[:, None] for site, m in goal.weights.items()}
    values |= {content_name(tap): features for tap, features in goal.content.items()}
    for site, constants in goal.constants.items():
        values |= {constant_name(name, site): array for name, array in constants.items()}
    return values


class Head:
    """Adds the terms to a graph, and their gradients at the taps: ``d_<tap>``.

    Outputs: ``terms`` (N, K), unweighted.
    """

    def __init__(
        self,
        objective: Objective,
        shapes: Mapping[str, tuple[int, ...]],
        layout: Layout,
        *,
        weighted: bool,
        half: bool = False,
    ) -> None:
        """Keep what the graph will be made of.

        Args:
            objective: names the terms.
            shapes: of the taps, (N, C, H/s, W/s).
            layout: of the products.
            weighted: whether cells have weights.
            half: taps are float16; gradients are multiplied by the input ``loss_scale`` (N,)
                before they are rounded to it.
        """
        self._objective, self._shapes, self._layout = objective, shapes, layout
        self._weighted, self._half = weighted, half

    def __call__(self, graph: Graph) -> None:
        """Add everything."""
        names = self._objective.terms
        n = next(iter(self._shapes.values()))[0]
        columns = _Columns(graph, n, len(names))
        terms: list[str] = []
        gradients: dict[str, list[str]] = {}
        for index, (role, place) in enumerate(names):
            add = self._style if role == "style" else self._content
            term, gradient = add(graph, place, columns, index)
            terms.append(term)
            gradients.setdefault(tap_of(place), []).append(gradient)
        graph.add("Concat", terms, TERMS, axis=1)
        graph.outputs[TERMS] = (n, len(names))
        for tap, parts in gradients.items():
            op = {1: "Identity", 2: "Add"}.get(len(parts), "Sum")
            if self._half:
                _to_half(graph, graph.add(op, parts), gradient_name(tap), n)
            else:
                graph.add(op, parts, gradient_name(tap))

    def _style(self, graph: Graph, site: str, columns: _Columns, index: int) -> tuple[str, str]:
        tap = tap_of(site)
        features, shape = self._features(graph, tap), self._shapes[tap]
        matrix = FeatureMatrix(graph, features, shape, self._layout, self._weights(graph, site))
        M = matrix.moments(columns.normalizer(index, 3))
        term, derivative = style_term(
            graph, self._objective, site, M, shape=shape, pull=columns.pull(index, 3)
        )
        return term, matrix.pull_back(derivative)

    def _content(self, graph: Graph, tap: str, columns: _Columns, index: int) -> tuple[str, str]:
        shape = self._shapes[tap]
        graph.inputs[content_name(tap)] = shape
        difference = graph.add("Sub", [self._features(graph, tap), content_name(tap)])
        weights = self._weights(graph, tap)
        weighted = difference if weights is None else graph.add("Mul", [difference, weights])
        square = graph.add("Mul", [weighted, difference])
        # Row by row first: one float32 sum over millions of elements is off by a thousandth.
        rows = graph.add("ReduceSum", [square, graph.shape_constant(3)], keepdims=0)
        total = graph.add("ReduceSum", [rows, graph.shape_constant(1, 2)], keepdims=0)
        column = graph.add("Unsqueeze", [total, graph.shape_constant(1)])
        term = graph.add("Mul", [column, columns.normalizer(index, 2)])
        return term, graph.add("Mul", [weighted, columns.pull(index, 4)])

    def _features(self, graph: Graph, tap: str) -> str:
        """The tap in float32."""
        return graph.add("Cast", [tap], to=TensorProto.FLOAT) if self._half else tap

    def _weights(self, graph: Graph, site: str) -> str | None:
        return weights_input(graph, site, self._shapes[tap_of(site)]) if self._weighted else None


def weights_input(graph: Graph, site: str, shape: Sequence[int]) -> str:
    """Name of the input with the weights at a site; ``shape`` is that of its tap."""
    n, _, height, width = shape
    graph.inputs[weights_name(site)] = (n, 1, height, width)
    return weights_name(site)


def style_term(
    graph: Graph,
    objective: Objective,
    site: str,
    M: str,
    *,
    shape: Sequence[int],
    pull: str,
) -> tuple[str, str]:
    """Add the style term at a site: its name, (N, 1), and that of [A b], (N, C, C+1).

    Args:
        graph: to add to.
        objective: chooses the loss.
        site: the site.
        M: the moments there.
        shape: N and C, and what may follow.
        pull: factor of the derivative, (N, 1, 1).
    """
    n, channels = shape[:2]
    constants = {}
    for name, size in objective.distance.shapes(channels).items():
        constants[name] = constant_name(name, site)
        graph.inputs[constants[name]] = (n, *size)
    term, derivative = objective.distance.add_to(graph, M, constants, channels)
    bounds = [graph.shape_constant(v) for v in (0, channels, 1)]
    return term, graph.add("Mul", [graph.add("Slice", [derivative, *bounds]), pull])


def loss_graph(objective: Objective, channels: Mapping[str, int], count: int) -> Graph:
    """The style loss alone, between moments and pull back, for ``count`` pictures.

    Inputs: ``moments_<site>`` (N, C+1, C+1), the constants, and ``pulls`` (N, K). Outputs:
    ``derivative_<site>`` [A b], (N, C, C+1), and ``terms`` (N, K_style), unweighted. ``channels``
    are those of the sites.
    """
    graph = Graph([], {}, {}, {})
    columns = _Columns(graph, count, len(objective.terms))
    terms = []
    for index, site in enumerate(objective.style):
        C = channels[site]
        graph.inputs[moments_name(site)] = (count, C + 1, C + 1)
        term, derivative = style_term(
            graph,
            objective,
            site,
            moments_name(site),
            shape=(count, C),
            pull=columns.pull(index, 3),
        )
        terms.append(term)
        graph.add("Identity", [derivative], derivative_name(site))
        graph.outputs[derivative_name(site)] = (count, C, C + 1)
    graph.add("Concat", terms, TERMS, axis=1)
    graph.outputs[TERMS] = (count, len(terms))
    graph.remove_dead()
    return graph


def statistics(
    graph: Graph, objective: Objective, shapes: Mapping[str, tuple[int, ...]], layout: Layout
) -> None:
    """Turn a forward graph into one of what the terms compare; its outputs are replaced.

    Inputs: the weights, and ``normalizers``. Outputs: ``moments_<site>`` (N, C+1, C+1) and
    ``content_<tap>``.
    """
    graph.outputs = {}
    n = next(iter(shapes.values()))[0]
    columns = _Columns(graph, n, len(objective.terms))
    for index, site in enumerate(objective.style):
        tap = tap_of(site)
        weights = weights_input(graph, site, shapes[tap])
        matrix = FeatureMatrix(graph, tap, shapes[tap], layout, weights)
        M = matrix.moments(columns.normalizer(index, 3))
        side = shapes[tap][1] + 1
        graph.outputs[graph.add("Identity", [M], moments_name(site))] = (n, side, side)
    for tap in objective.content:
        graph.outputs[graph.add("Identity", [tap], content_name(tap))] = shapes[tap]
    graph.remove_dead()


def _to_half(graph: Graph, gradient: str, output: str, n: int) -> None:
    """Multiply by the loss scale and round to float16."""
    graph.inputs[LOSS_SCALE] = (n,)
    scale = graph.add("Reshape", [LOSS_SCALE, graph.shape_constant(n, 1, 1, 1)])
    scaled = graph.add("Mul", [gradient, scale])
    graph.add("Cast", [scaled], output, to=TensorProto.FLOAT16)


class _Columns:
    """Columns of the inputs ``normalizers`` and ``pulls``, (N, K)."""

    def __init__(self, graph: Graph, n: int, count: int) -> None:
        self._graph, self._n = graph, n
        graph.inputs[NORMALIZERS] = graph.inputs[PULLS] = (n, count)

    def normalizer(self, index: int, rank: int) -> str:
        """s of a term, (N, 1, …, 1) of ``rank`` dimensions."""
        return self._column(NORMALIZERS, index, rank)

    def pull(self, index: int, rank: int) -> str:
        """What a term's derivative is multiplied by, likewise."""
        return self._column(PULLS, index, rank)

    def _column(self, name: str, index: int, rank: int) -> str:
        graph = self._graph
        bounds = [graph.shape_constant(value) for value in (index, index + 1, 1)]
        column = graph.add("Slice", [name, *bounds])
        shape = graph.shape_constant(self._n, *(1,) * (rank - 1))
        return graph.add("Reshape", [column, shape])
