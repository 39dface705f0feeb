"""What pictures show, against values counted by hand; plotly checks that it knows every word."""

import dataclasses
import math

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from spherescan.nn import separated_prototypes
from spherescan.report import (
    ClassAnswers,
    Known,
    NumberAnswers,
    class_sphere,
    conflicts,
    confusion,
    learning_curves,
    number_sphere,
    open_set,
    predicted_and_true,
    reliability,
    slowest_parts,
)
from spherescan.report.curves import _loss_axis
from spherescan.report.decisions import _labels_apart, _one_half
from spherescan.report.palette import colour, dash, mark
from spherescan.report.sphere import components


def answers(n=60, k=3, *, scale=10.0, noise=0.6, names=None, d=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prototypes = separated_prototypes(k, d or k, generator=generator).points.double()
    target = torch.arange(n) % k
    z = prototypes[target] + noise * torch.randn(n, d or k, generator=generator)
    z = torch.nn.functional.normalize(z, dim=1)
    names = tuple(names or map(str, range(k)))
    return ClassAnswers(f"{n} series", names, z @ prototypes.T, target, z, prototypes, scale)


def drawn(section):
    """Let plotly look at every attribute; it refuses those it does not know."""
    figure = go.Figure(data=list(section.data), layout=section.layout)
    assert len(figure.data) > 0
    return figure


def train_records(n=50, groups=2):
    return [
        {
            "kind": "train",
            "step": i + 1,
            "loss": 1 / (i + 1),
            "groups": [
                {"blocks": [g], "ff_loss": 2.0 + g, "cosine": math.cos(i / 5) if g == 0 else None}
                for g in range(groups)
            ],
        }
        for i in range(n)
    ]


def test_the_matrix_counts_which_class_is_taken_for_which():
    asked = answers()
    figure = drawn(confusion(asked))
    counts = np.zeros((3, 3), dtype=int)
    for true, guess in zip(asked.target, asked.predicted, strict=True):
        counts[true, guess] += 1
    assert np.array_equal(figure.data[0].customdata, counts)
    assert figure.data[0].z[1][1] == pytest.approx(counts[1, 1] / counts[1].sum())
    shown = {
        (x, y): int(t)
        for x, y, t in zip(*(figure.data[1][a] for a in ("x", "y", "text")), strict=True)
    }
    assert shown == {(j, i): counts[i, j] for i in range(3) for j in range(3) if counts[i, j]}
    row = confusion(asked).table.rows[2]
    assert row[1:4] == (
        str(counts[2].sum()),
        f"{counts[2, 2] / counts[2].sum():.1%}",
        f"{counts[2, 2] / counts[:, 2].sum():.1%}",
    )


def test_a_class_that_never_occurs_or_is_never_given_has_a_row_too():
    asked = answers(n=2, k=3, noise=0.0)
    assert confusion(asked).table.rows[2] == ("2", "0", "-", "-", "-")
    drawn(confusion(asked))


def test_of_many_classes_the_most_frequent_pairs_are_told():
    section = confusion(answers(n=500, k=50, noise=0.5))
    assert section.data == ()
    counts = [int(row[2]) for row in section.table.rows]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 1
    assert all(row[0] != row[1] for row in section.table.rows)


def test_names_are_shown_as_they_are_and_not_as_tags():
    section = confusion(answers(names=("<b>a</b>", "x & y", " ")))
    assert section.layout["xaxis"]["ticktext"] == ["&lt;b&gt;a&lt;/b&gt;", "x &amp; y", " "]
    sphere = class_sphere(answers(names=("<b>a</b>", "x & y", " ")))
    assert sphere.data[3]["name"] == "&lt;b&gt;a&lt;/b&gt;"


def test_reliability_is_measured_where_the_temperature_was_not_fitted():
    figure = drawn(reliability(answers(n=101)))
    assert [trace.name.split(",")[0] for trace in figure.data] == [
        "as sure as right", "as it answers", "temperature fitted on the other half",
    ]  # fmt: skip
    assert sum(figure.data[1].customdata) == 50
    # Of every class one half, however the labels alternate.
    two = answers(n=80, k=2)
    asked = _one_half(two.target)
    assert torch.bincount(two.target[asked]).tolist() == [20, 20]
    # 10 % too sure: the curve lies below the diagonal.
    certain = answers(n=400, scale=200.0, noise=0.9)
    trace = drawn(reliability(certain)).data[1]
    assert trace.x[-1] - trace.y[-1] > 0.1


def test_without_probabilities_and_with_few_items_there_is_a_reason():
    section = reliability(answers(n=10, scale=None))
    assert section.data == ()
    assert "10 series are too few" in section.text
    assert len(drawn(reliability(answers(n=10))).data) == 2
    assert len(drawn(reliability(answers(scale=None))).data) == 2


def test_the_trade_off_ends_at_the_accuracy_and_unknown_that_are_far_never_get_in():
    asked = answers()
    strange = torch.full((20,), -0.9, dtype=torch.float64)
    section = open_set(asked, strange, unknown_source="20 series of nowhere")
    curve = drawn(section).data[0]
    assert curve.y[-1] == pytest.approx(asked.accuracy)
    assert section.table.rows[0][2] == "100.0%"
    assert "20 series of nowhere" in section.text
    assert "AUROC 1.000" in section.text


def test_without_unknown_series_those_of_other_classes_stand_in():
    asked = answers(noise=0.0)
    section = open_set(asked)
    # Of separated prototypes the others are all equally far, and its own is nearer.
    assert "AUROC 1.000" in section.text
    assert "stands in" in section.text
    target, axes = torch.tensor([0, 1, 0, 1]), torch.eye(2)
    same = ClassAnswers("4", ("a", "b"), torch.zeros(4, 2), target, axes[target], axes, 1.0)
    assert "AUROC 0.500" in open_set(same).text


def test_labels_of_marks_that_lie_on_each_other_are_left_out():
    def place(x, y, asked):
        return {"in": x, "correct": y, "asked": asked}

    marks = [place(0.5, 0.99, 0.01), place(0.03, 0.98, 0.02), place(0.0, 0.95, 0.05)]
    marks.append(place(0.0, 0.9, 0.1))
    assert _labels_apart(marks) == ["1%", "2%", "", "10%"]


def test_scores_other_than_cosines_are_told_and_used():
    asked = answers()
    score, far = torch.arange(60.0), torch.full((60,), 29.5)
    known = dataclasses.replace(asked, known=Known(score, far, "score of <mine>"))
    assert "its score of <mine> is below" in open_set(known).text
    assert "AUROC 0.500" in open_set(known).text
    assert "AUROC 1.000" in open_set(known, torch.full((3,), -1.0)).text


@pytest.mark.parametrize(("k", "d"), [(2, 1), (2, 2), (3, 2), (4, 3), (9, 9), (30, 5)])
@pytest.mark.parametrize("placed", ["separated", "at random"])
def test_the_sphere_is_seen_along_orthonormal_directions(k, d, placed):
    asked = answers(k=k, d=d)
    if placed == "at random":
        rows = torch.randn(k, d, generator=torch.Generator().manual_seed(k))
        prototypes = torch.nn.functional.normalize(rows, dim=1)
        places = asked.embeddings.float() + prototypes[asked.target]
        z = torch.nn.functional.normalize(places, dim=1)
        asked = dataclasses.replace(asked, prototypes=prototypes, embeddings=z)
    view = components(asked.prototypes, asked.embeddings)
    assert view.axes.shape == (d, 3)
    gram = view.axes.T @ view.axes
    assert torch.allclose(gram, torch.diag(gram.diagonal().round()), atol=1e-9)
    assert int(gram.diagonal().round().sum()) == min(3, d)
    assert view.of_prototypes == min(3, d, k - 1)
    assert 0 < view.share <= 1 + 1e-9
    figure = drawn(class_sphere(asked))
    shown = [t for t in figure.data if t.mode == "markers" and t.name != "taken for another"]
    assert sum(len(trace.x) for trace in shown) == 60
    assert len(figure.data[-1].x) == k
    for trace in figure.data:
        radius = np.sqrt(np.square(trace.x) + np.square(trace.y) + np.square(trace.z))
        assert radius.max() <= 1 + 1e-6


def test_the_text_says_what_the_sphere_is_seen_along():
    texts = {k: class_sphere(answers(k=k)).text for k in (2, 3, 9)}
    assert "along the 1 principal component of the prototypes, with 100%" in texts[2]
    assert "and 1 of the rest of the series" in texts[2]
    assert "along the 2 principal components of the prototypes" in texts[3]
    assert "of the rest" not in texts[9]


def test_components_hold_as_much_of_the_prototypes_as_any_three_could():
    asked = answers(k=9)
    view = components(asked.prototypes, asked.embeddings)
    centred = asked.prototypes - asked.prototypes.mean(0)
    variances = np.sort(np.linalg.eigvalsh((centred.T @ centred).numpy()))[::-1]
    assert view.share == pytest.approx(variances[:3].sum() / variances.sum())


def test_too_many_classes_for_the_eye_are_not_drawn():
    assert class_sphere(answers(n=80, k=40)).data == ()


def test_thousands_of_points_are_thinned_and_the_text_says_so():
    asked = answers(n=5000)
    section = class_sphere(asked)
    assert "2000 of them" in section.text
    assert (
        sum(len(t["x"]) for t in section.data if t.get("text") and t["mode"] == "markers") == 2000
    )


def numbers(half_width=None):
    angles = torch.linspace(0.2, 2.8, 40, dtype=torch.float64)
    z = torch.stack([angles.cos(), angles.sin()], 1)
    true = angles.cos()
    return NumberAnswers(
        "40 series", true + 0.1, true, z, torch.tensor([1.0, 0.0], dtype=torch.float64), half_width
    )


def test_numbers_are_drawn_with_their_interval():
    section = predicted_and_true(numbers(0.2))
    figure = drawn(section)
    assert len(figure.data) == 4
    assert "error 0.1" in section.text
    assert "hold 100.0%" in section.text
    assert dict(section.table.rows)["mean error"] == "+0.1"
    assert len(drawn(predicted_and_true(numbers())).data) == 2


def test_the_sphere_of_numbers_keeps_the_angle_to_the_pole():
    asked = numbers()
    figure = drawn(number_sphere(asked))
    points, pole = figure.data[3], figure.data[4]
    cosines = np.array(points.x) * pole.x[0] + np.array(points.y) * pole.y[0]
    assert np.allclose(cosines, asked.target, atol=1e-6)


def test_curves_have_every_loss_and_marks_where_the_run_turned():
    records = [
        *train_records(),
        {"kind": "val", "step": 50, "loss": 0.3, "accuracy": 0.5, "n": 7, "best": True},
    ]
    events = [{"kind": "resume", "step": 20}, {"kind": "save", "step": 30}]
    sections = learning_curves(records, events, score="accuracy")
    figure = drawn(sections[0])
    names = [trace.name for trace in figure.data]
    assert names == ["training", "block 0, its own", "block 1, its own", "validation"]
    assert list(figure.data[0].y) == pytest.approx([1 / (i + 1) for i in range(50)])
    assert [shape["x0"] for shape in sections[0].layout["shapes"]] == [20]
    assert drawn(sections[1]).data[1].x == (50,)
    # Means of long runs: as many points as a screen shows, and none is left out.
    long = learning_curves(train_records(1001), [], score="accuracy")[0]
    assert len(long.data[0]["x"]) == 334
    assert "mean over 3 steps" in long.text
    assert long.data[0]["x"][-1] == 1001


@pytest.mark.parametrize(
    ("losses", "axis"),
    [
        ([0.6, None, 0.9], {"type": "log", "dtick": "D1"}),
        ([0.06, 0.9], {"type": "log", "dtick": "D2"}),
        ([0.0006, 0.9], {"type": "log", "dtick": 1}),
        ([0.0, 0.9], {}),
        ([None], {}),
    ],
)
def test_labels_of_losses_are_as_many_as_there_is_room_for(losses, axis):
    assert _loss_axis([{"y": losses}]) == axis


def test_what_is_not_finite_is_a_gap():
    records = train_records(4)
    records[1]["loss"] = "NaN"
    assert learning_curves(records, [], score="accuracy")[0].data[0]["y"][1] is None


def test_lines_go_on_across_steps_at_which_nothing_was_measured():
    """Backpropagation at every third step: single points would not be seen."""
    records = train_records(30)
    for record in records:
        if record["step"] % 3:
            record["loss"] = None
            for group in record["groups"]:
                group["cosine"] = None
    section, met = learning_curves(records, [], score="accuracy")[0], conflicts(records)
    for trace in (section.data[0], met.data[0]):
        assert trace["x"] == list(range(3, 31, 3))
        assert None not in trace["y"]
        assert trace["mode"] == "lines"
    assert section.data[1]["x"] == list(range(1, 31))


def test_without_backpropagation_there_is_no_line_of_it():
    records = train_records(4)
    for record in records:
        record["loss"] = None
    grown = [{"kind": "grow", "step": 2, "blocks": [0]}]
    section = learning_curves(records, grown, score="accuracy")[0]
    assert [trace["name"] for trace in section.data] == ["block 0, its own", "block 1, its own"]
    assert [row[0] for row in section.table.rows] == ["block 0, its own", "block 1, its own"]
    assert "of the blocks by themselves; blocks are numbered as they lie" in section.text


def test_conflicts_are_told_per_block_and_part_of_the_run():
    section = conflicts(train_records(100))
    figure = drawn(section)
    assert [trace.name for trace in figure.data] == ["block 0"]
    cosines = np.cos(np.arange(100) / 5)
    assert list(figure.data[0].y) == pytest.approx(cosines)
    first = f"{cosines[:15].mean():+.3f} / {(cosines[:15] < 0).mean():.0%}"
    assert section.table.rows == (
        ("block 0", first, section.table.rows[0][2], section.table.rows[0][3]),
    )


def test_a_run_without_surgery_or_steps_says_so():
    records = train_records(3, groups=0)
    assert "local.mode is surgery" in conflicts(records).text
    assert conflicts([]).data == ()
    assert "no step yet" in learning_curves([], [], score="rmse")[0].text


def test_parts_are_ordered_and_the_rest_is_shown():
    section = slowest_parts({"b": 0.1, "a": 0.3}, whole=0.5, of="x")
    assert section.table.rows == (
        ("a", "300.000", "60.0%"),
        ("b", "100.000", "20.0%"),
        ("everything else", "100.000", "20.0%"),
    )
    assert list(drawn(section).data[0].y) == ["everything else", "b", "a"]


def test_no_two_of_many_look_alike():
    looks = {(colour(i), mark(i)) for i in range(35)}
    lines = {(colour(i), dash(i)) for i in range(35)}
    assert len(looks) == len(lines) == 35
