"""`PointTokens` against loops over instances, points and heads."""

import math

import pytest
import torch

from composers import TransformerIPC, TransINR
from composers.encoders import Patches, PointTokens, Transformer, WeightTokens
from composers.encoders.points import farthest_points, sorted_points
from composers.inference import Hypernetwork
from composers.networks import CoordinateMLP, FourierFeatures, TensorSpec
from datamodules.batch import Observation, Views
from datamodules.domain import Grid, Volume
from datamodules.spec import DataSpec, Modality, open_point_set


def _encoder(width=3, **options):
    torch.manual_seed(0)
    sizes = {"num_tokens": 5, "embed_dim": 8, "num_heads": 2, "num_frequencies": 3} | options
    return PointTokens((-1, width), **sizes)


def _points(count, width=3, instances=2, seed=0):
    return torch.rand(instances, count, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _naive_farthest(points, count):
    """Return the indices of farthest points of one set, by Python loops in float64."""
    rows = [tuple(map(float, row)) for row in points]
    centre = [(min(axis) + max(axis)) / 2 for axis in zip(*rows, strict=True)]
    chosen = [max(range(len(rows)), key=lambda index: (math.dist(rows[index], centre), -index))]
    while len(chosen) < min(count, len(rows)):
        gaps = [min(math.dist(row, rows[other]) for other in chosen) for row in rows]
        chosen.append(max(range(len(rows)), key=lambda index: (gaps[index], -index)))
    return [chosen[place % len(chosen)] for place in range(count)]


def _naive_norm(row, norm):
    mean = sum(row) / len(row)
    variance = sum((entry - mean) ** 2 for entry in row) / len(row)
    return [
        (entry - mean) / math.sqrt(variance + norm.eps) * weight + bias
        for entry, weight, bias in zip(row, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    ]


def _naive_linear(row, linear):
    return [
        sum(weight * entry for weight, entry in zip(weights, row, strict=True)) + bias
        for weights, bias in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
    ]


def _naive_tokens(points, encoder):
    """Return the tokens of one point set, by Python loops in float64."""
    rows = sorted(tuple(map(float, row)) for row in points)
    embedded = []
    for row in rows:
        phases = [math.pi * 2.0**k * coord for coord in row[:3] for k in range(3)]
        embedded.append(_naive_linear([*map(math.cos, phases), *map(math.sin, phases), *row], encoder.embedding))
    queries = [embedded[index] for index in _naive_farthest([row[:3] for row in rows], encoder.num_tokens)]
    heads, size = encoder.num_heads, encoder.embed_dim // encoder.num_heads
    keyed = [_naive_linear(_naive_norm(row, encoder.point_norm), encoder.key_value) for row in embedded]
    tokens = []
    for query in queries:
        asked, attended = _naive_linear(_naive_norm(query, encoder.query_norm), encoder.query), []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = [
                sum(a * b for a, b in zip(asked[part], key[: encoder.embed_dim][part], strict=True)) / math.sqrt(size)
                for key in keyed
            ]
            weights = [math.exp(score - max(scores)) for score in scores]
            values = [key[encoder.embed_dim :][part] for key in keyed]
            attended += [
                sum(weight * value[place] for weight, value in zip(weights, values, strict=True)) / sum(weights)
                for place in range(size)
            ]
        token = [a + b for a, b in zip(query, _naive_linear(attended, encoder.projection), strict=True)]
        hidden = _naive_linear(_naive_norm(token, encoder.mlp_norm), encoder.mlp[0])
        hidden = [entry * (1 + math.erf(entry / math.sqrt(2))) / 2 for entry in hidden]
        tokens.append([a + b for a, b in zip(token, _naive_linear(hidden, encoder.mlp[2]), strict=True)])
    return torch.tensor(tokens)


@pytest.mark.parametrize("width", [3, 4, 6])
def test_tokens_equal_those_of_loops(width):
    encoder, points = _encoder(width), _points(9, width)
    expected = torch.stack([_naive_tokens(instance.double(), encoder) for instance in points])
    torch.testing.assert_close(encoder(points).tokens, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("total", "count"), [(1, 1), (1, 4), (7, 7), (40, 12), (5, 13)])
def test_farthest_points_equal_those_of_loops(total, count):
    points = _points(total, seed=total)
    expected = [_naive_farthest(instance.double(), count) for instance in points]
    assert farthest_points(points, count).tolist() == expected


def test_farthest_points_cover_better_than_the_first_points():
    points = _points(500, instances=1)
    chosen = points[0, farthest_points(points, 20)[0]]
    gaps = [torch.cdist(points[0], some).amin(1).max() for some in (chosen, points[0, :20])]
    assert gaps[0] < 0.85 * gaps[1]
    assert torch.pdist(chosen).min() >= gaps[0]  # the greedy choice is within a factor 2 of the best cover


@pytest.mark.parametrize("queries", ["farthest", "random", "learned"])
@pytest.mark.parametrize("count", [3, 30])
def test_tokens_do_not_depend_on_the_order_of_points(queries, count):
    encoder, points = _encoder(6, queries=queries), _points(count, 6)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    assert torch.equal(encoder(points).tokens, encoder(points[:, order]).tokens)


def test_order_does_not_matter_where_points_are_equally_far():
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)[None]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    encoder = _encoder()
    assert torch.equal(encoder(corners).tokens, encoder(corners[:, order]).tokens)


@pytest.mark.parametrize("queries", ["farthest", "random", "learned"])
def test_instances_do_not_depend_on_each_other(queries):
    encoder, points = _encoder(queries=queries), _points(12, instances=3)
    alone = torch.cat([encoder(instance[None]).tokens for instance in points])
    torch.testing.assert_close(encoder(points).tokens, alone)


@pytest.mark.parametrize("queries", ["farthest", "random"])
def test_queries_are_points_and_the_output_depends_on_every_point(queries):
    encoder, points = _encoder(queries=queries), _points(12).requires_grad_()
    encoder(points).tokens.square().sum().backward()
    assert (points.grad.abs().sum(-1) > 0).all()


def test_learned_queries_are_trained_and_others_have_none():
    encoder = _encoder(queries="learned")
    encoder(_points(12)).tokens.square().sum().backward()
    assert encoder.learned.grad.abs().sum() > 0
    assert "learned" not in dict(_encoder().named_parameters())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_points_than_tokens_give_repeated_tokens(count):
    tokens = _encoder()(_points(count, instances=1)).tokens[0]
    assert tokens.shape == (5, 8)
    assert torch.equal(tokens[count:], tokens[: 5 - count])
    assert len(tokens[:count].unique(dim=0)) == count


def test_duplicates_do_not_change_the_choice_of_queries():
    points = _points(12, instances=1)
    repeated = torch.cat((points, points[:, 3:9]), dim=1)
    plain, doubled = (sorted_points(some) for some in (points, repeated))
    chosen = [some[0, farthest_points(some, 5)[0]] for some in (plain, doubled)]
    assert torch.equal(*chosen)
    assert torch.isfinite(_encoder()(points[:, :1].expand(1, 20, 3)).tokens).all()


def test_points_are_sorted_by_all_columns():
    points = torch.randint(0, 2, (2, 30, 4), generator=torch.Generator().manual_seed(0)).float()
    expected = [sorted(instance) for instance in points.tolist()]
    assert sorted_points(points).tolist() == expected


def test_coordinates_are_not_rounded_under_autocast():
    encoder, points = _encoder(num_frequencies=8), _points(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder._features(points)
        tokens = encoder(points).tokens
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, encoder._features(points), rtol=0, atol=0)
    torch.testing.assert_close(tokens.float(), encoder(points).tokens, rtol=0.1, atol=0.1)


def test_half_precision_points_are_converted():
    points = _points(20).bfloat16()
    assert torch.equal(_encoder()(points).tokens, _encoder()(points.float()).tokens)


def test_the_shape_is_taken_from_the_data_with_any_number_of_points():
    spec = DataSpec(Volume(1.0), 1, (2048, 6), Modality())
    assert open_point_set(spec) == (-1, 6)
    assert PointTokens((2048, 6)).signal_shape == (-1, 6)
    encoder = _encoder(6)
    assert encoder(_points(7, 6)).tokens.shape == encoder(_points(70, 6)).tokens.shape == (2, 5, 8)
    assert encoder(_points(7, 6)).grid is None


def test_weight_tokens_learn_no_positions_of_unordered_tokens():
    latents = {"weight.1": TensorSpec((4, 4), lambda: torch.zeros(4, 4))}
    keys = []
    for encoder in (_encoder(), Patches((1, 8), 4)):
        readout = WeightTokens(Transformer(8, 1, 2))
        readout.connect(encoder, latents)
        keys.append("positions" in dict(readout.named_parameters()))
    assert keys == [False, True]
    start = Hypernetwork(_encoder(), WeightTokens(Transformer(8, 1, 2)))
    start.connect(latents)
    assert start.facts() == {"tokens": "5 data + 4 weight"}


@pytest.mark.parametrize("preset", [TransformerIPC, TransINR])
def test_one_pass_from_points_to_a_field_ignores_the_order(preset):
    torch.manual_seed(0)
    network = CoordinateMLP(3, 1, 16, 3, "all" if preset is TransINR else [1], FourierFeatures(4, 8), output_offset=0.0)
    options = {"num_groups": 1} if preset is TransINR else {}
    composer = preset(network, _encoder(6), Transformer(16, 2, 2, residual_dropout=0.0), **options).eval()
    points, coords = _points(50, 6), Volume().coords((3, 3, 3))
    with torch.no_grad():
        values, shuffled = (composer(Observation(some), coords) for some in (points, points.flip(1)))
        other = composer(Observation(_points(50, 6, seed=1)), coords)
    assert values.shape == (2, 27, 1)
    assert torch.equal(values, shuffled)
    assert not torch.allclose(values, other, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signal_shape": None}, "signal_shape is None"),
        ({"signal_shape": (3, 32, 32)}, r"signal_shape is \(3, 32, 32\)"),
        ({"signal_shape": (-1, 2)}, "at least 3"),
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"embed_dim": 10, "num_heads": 4}, "num_heads must divide"),
        ({"num_frequencies": 0}, "num_frequencies 0"),
        ({"queries": "grid"}, "queries is 'grid': choose one of farthest, random, learned"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PointTokens(**({"signal_shape": (-1, 3)} | options))


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (Views(torch.zeros(1, 1, 3, 4, 4), torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 4)), "posed views"),
        (torch.zeros(1, 10, 6), r"point sets \(B, P, 3\)"),
        (torch.zeros(1, 0, 3), "at least one point"),
        (torch.zeros(1, 3, 8, 8), r"\(1, 3, 8, 8\)"),
    ],
)
def test_other_signals_are_refused(signal, message):
    with pytest.raises(ValueError, match=message):
        _encoder()(signal)


def test_images_are_refused_at_set_up():
    with pytest.raises(ValueError, match="signal_shape"):
        PointTokens(open_point_set(DataSpec(Grid.unit(2), 3, (3, 32, 32), Modality())))
