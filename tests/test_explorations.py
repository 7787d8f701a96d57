"""Explorations: shares, quartiles and lines against balls, rings and hand-made rays; filter normalisation; what is said where nothing is found; pictures and the command."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from problems import F64, draw, module, objective, ring, rows
from torch import nn

from landscape.analysis import styles
from landscape.analysis.explorations import Exploration, _apart, _normalised, exploration
from landscape.cli.app import main
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import Objective, Rows
from landscape.rays import Rays
from landscape.results import Result

BALL = Objective.from_function(lambda w: w @ w, 5)
AXIS = torch.eye(5, dtype=F64)[0]


def table(found):
    """Rows as dictionaries by the head."""
    head, *rows = found.table()
    return [dict(zip(head, row, strict=True)) for row in rows]


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_a_ball_is_left_where_each_chord_ends():
    # from a point at 0.6 of the centre: r = -0.6 cos + sqrt(level - 0.36 sin^2), one interval whatever the direction
    start = 0.6 * AXIS
    found = exploration(BALL, start, [1.0, 4.0], distance=10.0, directions=100)
    cosines = (found.random.losses[:, 1] - 0.36 - found.random.distances[0, 1] ** 2) / (1.2 * found.random.distances[0, 1])  # fmt: skip
    for place, level in enumerate([4.0, 1.0]):
        truth = -0.6 * cosines + np.sqrt(level - 0.36 * (1 - cosines**2))
        assert found.random.exits[:, place] == pytest.approx(truth, rel=1e-3, abs=1e-5)  # the rays' tolerance
        middle = sorted(truth)
        # order statistics: of 100, the 25th, 50th and 75th
        assert found.quartiles("exits")[:, place] == pytest.approx([middle[24], middle[49], middle[74]], rel=1e-3)
    assert found.levels.tolist() == [4.0, 1.0]
    assert found.starts_inside.all()
    assert (found.reached == 100).all()
    assert (found.single == 100).all()
    row = table(found)[1]
    assert row["one interval"] == "100 of 100 (at least 96.3%)"  # Wilson: 100 / (100 + 1.96^2)
    assert row["width of the ball"] == f"{found.quartiles('exits')[1, 1] * math.sqrt(5):.3g}"


def test_none_of_64_is_at_most_so_many():
    far = exploration(BALL, 1000 * AXIS, [1.0], distance=2000.0)
    assert far.reached.tolist() == [0]
    # Wilson: 1.96^2 / (64 + 1.96^2)
    assert "loss 1 is reached by 0 of 64 (at most 5.7%)" in far.summary()
    assert table(far)[0] == {
        "rays": "64 uniform", "level": "1", "start": "outside", "reach it": "0 of 64 (at most 5.7%)", "enter at": "", "leave at": "",
        "still inside at the reach": "", "one interval": "", "width of the ball": "",
    }  # fmt: skip
    assert np.isnan(far.quartiles("exits")).all()
    assert np.isnan(far.quartiles("entries")).all()
    assert far.panels() == ("loss", "inside")


def test_shares_of_a_ring_are_those_of_its_angles():
    # in the plane, from a point of the ring |w| = 1 with level 0.01: behind, the hole is met where sin^2 < 0.8, by an angle of 2 arcsin sqrt(0.8) of 2 pi
    n = 1000
    found = exploration(ring(2).f, torch.tensor([0.0, 1.0], dtype=F64), [0.01], distance=5.0, directions=n)
    share = math.asin(math.sqrt(0.8)) / math.pi
    # distances on the grid differ by 7.5%: all second intervals are longer (1.895 to 2.095 at the least), and chords of the hole, from |cos| - s to |cos| + s, s^2 = cos^2 - 0.2,
    # are shorter for s < 0.037 |cos| only, that is, on 1e-4 of the angles
    assert abs(found.single[0] / n - (1 - share)) < 4 * math.sqrt(share * (1 - share) / n) + 1e-4
    assert table(found)[0]["one interval"].startswith(f"{found.single[0]} of 1000 (")
    assert re.search(r"in one interval by \d+ of 1000 \([0-9]+% to [0-9]+%\)", found.summary())


def censored(exits, entries=None, reach=8.0):
    """An exploration whose rays have these first exits (infinite: not left) and entries, at one level."""
    found = exploration(BALL, 0.5 * AXIS, [1.0], distance=reach, directions=len(exits))
    grid = found.random.distances
    entries = np.zeros(len(exits)) if entries is None else np.array(entries)
    inside = (grid >= entries[:, None]) & (grid < np.array(exits)[:, None])
    crossings = [(e, into, at) for e, pair in enumerate(zip(entries, exits, strict=True)) for into, at in zip((True, False), pair, strict=True) if 0 < at < math.inf]  # fmt: skip
    ray, entering, crossing = (np.array(column) for column in zip(*crossings, strict=True))
    rays = {**found.rays, "losses": np.where(inside, 0.5, 2.0), "ray": ray, "level": 0 * ray, "entering": entering, "crossing": crossing, "error": 0 * crossing}  # fmt: skip
    return dataclasses.replace(found, rays=rays, start_loss=2.0 if entries[0] else 0.5)


def test_what_is_beyond_the_reach_is_counted_and_not_made_up():
    found = censored([1.0, 2.0, 3.0, math.inf, math.inf, math.inf, math.inf, math.inf])
    assert found.quartiles("exits")[:, 0].tolist() == [2.0, math.inf, math.inf]
    row = table(found)[0]
    assert row["leave at"] == "> 8 [2, > 8]"
    assert "loss 1 is left at > 8 [2, > 8], in one" in found.summary()
    assert row["still inside at the reach"] == "5/8"
    assert row["width of the ball"] == ""


def test_what_is_not_left_is_not_left_at_something():
    none = exploration(BALL, 0.5 * AXIS, [1.0], distance=0.25, directions=5)
    assert "loss 1 is not left within 0.25 by 5 of 5, in one interval by 5 of 5" in none.summary()
    assert table(none)[0]["leave at"] == "not within 0.25"
    one = censored([2.0] + [math.inf] * 5)
    assert "loss 1 is not left within 8 by 5 of 6, in one" in one.summary()
    assert table(one)[0]["leave at"] == "not within 8"


def test_a_reach_far_beyond_a_set_gives_its_distances_and_a_warning():
    near, far = (exploration(BALL, 0.6 * AXIS, [1.0], reach=reach, directions=9) for reach in (10.0, 1e30))
    assert near.warnings == ()
    assert far.quartiles("exits") == pytest.approx(near.quartiles("exits"), rel=2.1e-3)  # twice the tolerance
    assert "first distance on the random rays is 6e+26, and 9 of 9 crossings lie before it" in far.warnings[0]
    assert "Lower --reach" in far.warnings[0]
    # a set that is met before the first distance only is not seen, and this is told
    missed = exploration(BALL, 2 * AXIS, [1.0], distance=1e4, directions=9)
    assert missed.reached.tolist() == [0]
    assert "or a set that it only meets there, is not seen" in missed.warnings[0]
    assert styles.rendered(far, "svg")


def test_a_crossing_within_the_rounding_of_the_start_is_no_number():
    slope = Objective.from_function(lambda w: w[0], 2)
    found = exploration(slope, torch.tensor([3.0, 4.0], dtype=F64), [3.0], directions=5, towards={"up": torch.tensor([4.0, 4.0], dtype=F64)})  # fmt: skip
    assert 0 < found.blurred <= 5 * np.finfo(float).eps
    assert table(found)[1]["leave at"] == f"< {found.blurred:.2g}"
    assert f"towards up at < {found.blurred:.2g} of 1" in found.summary()
    assert f"<: nearer to the start than its rounding, {found.blurred:.2g}" in found.caption()


def test_quartiles_are_over_the_rays_that_are_ever_inside():
    found = censored([2.0, 3.0, math.inf, 4.0, 1.0], [1.0, 1.5, math.inf, 0.5, 0.7])
    assert found.reached.tolist() == [4]
    assert found.quartiles("entries")[:, 0].tolist() == [0.5, 0.7, 1.0]
    assert found.quartiles("exits")[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert table(found)[0]["reach it"].startswith("4 of 5 (")


# -- lines ------------------------------------------------------------------------------------------------------------


def test_lines_go_through_their_points_and_as_far_again():
    # two wells: (w^2 - 1)^2 <= 1/4 is sqrt(1/2) <= |w| <= sqrt(3/2)
    wells = Objective.from_function(lambda w: (w[0] ** 2 - 1) ** 2, 1)
    inner, outer = math.sqrt(0.5), math.sqrt(1.5)
    point = torch.tensor([-1.0], dtype=F64)
    towards = {"there": torch.tensor([1.0], dtype=F64), "here": point, "up": torch.tensor([0.0], dtype=F64)}
    found = exploration(wells, point, [0.25, 2.0], towards=towards, distance=4.0, directions=8)
    assert found.towards == ["there", "up"]
    assert found.warnings == ("here is the start itself: there is no line to it.",)
    assert found.lengths == pytest.approx([2, 1])
    lines = found.lined
    assert lines.distances[:, -1] == pytest.approx([4, 2])
    assert lines.losses[:, 40] == pytest.approx([0, 1], abs=1e-12)  # the 40th of 80 steps is the point
    # bisection's tolerance is relative, of 1e-3
    assert lines.stretches(0, 1) == pytest.approx(np.array([[0, 1 - inner], [1 + inner, 1 + outer]]), rel=1e-3)
    assert lines.stretches(1, 1) == pytest.approx(np.array([[0, 1 - inner], [1 + inner, 2]]), rel=1e-3)
    # levels 2, 1/4: `there` is in both sets, `up` in the first alone
    assert found.straight.tolist() == [[True, False], [True, False]]
    assert "towards there at 0.293 of 2 (in more than one interval up to it), towards up at 0.293 of 1." in found.summary()  # fmt: skip
    rows = [row for row in table(found) if row["rays"].startswith("line to there")]
    assert [row["one interval"] for row in rows] == ["yes", "no, 2"]
    assert "towards there at 2.55 of 2, not left towards up within 2;" in found.summary()  # level 2
    away = exploration(wells, 3 * point, [0.25], towards={"off": 4 * point}, distance=4.0, directions=1)
    assert "along 1 uniform direction, up to" in away.summary()
    assert "along 1 uniform random direction from" in away.caption()
    assert "not reached towards off within 2." in away.summary()
    outside = exploration(wells, 3 * point, [0.25], towards={**towards, "before": 2 * point}, distance=4.0, directions=8)  # fmt: skip
    assert outside.towards == ["there", "here", "up", "before"]
    assert outside.straight.tolist() == [[False], [True], [False], [False]]


def test_levels_lie_between_the_ends_where_none_are_asked_for():
    start, end = 10 * AXIS, 0.1 * AXIS
    found = exploration(BALL, start, towards={"end": end}, directions=2)
    # geometric from 100 to 0.01
    assert found.levels.tolist() == [10.0, 1.0, 0.1]
    assert found.reach == pytest.approx(100.0)  # ten times the start's norm


# -- directions -------------------------------------------------------------------------------------------------------


def test_filter_normalised_directions_have_the_norms_of_filters():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        module[2].weight *= 3
    f, point = Objective.of(module, "mse", Rows(draw(7, 4), draw(7, 3, seed=1)), dtype=F64)
    met = []
    drawn = _normalised(f, point, 5, 0)
    assert drawn.norm(dim=1).numpy() == pytest.approx(np.ones(5), rel=1e-12)
    for entry in f.model.layout.of("parameter"):
        part = slice(entry.offset, entry.offset + entry.size)
        if len(entry.shape) < 2:
            assert (drawn[:, part] == 0).all()
            continue
        norms = drawn[:, part].reshape(5, entry.shape[0], -1).norm(dim=2)
        met.append((norms / point[part].reshape(entry.shape[0], -1).norm(dim=1)).numpy())
    # one factor for all filters and directions
    factors = np.concatenate(met, axis=1)
    assert factors == pytest.approx(np.full_like(factors, factors[0, 0]), rel=1e-10)
    assert np.abs((drawn @ drawn.T).numpy() - np.eye(5)).max() < 0.9  # and they differ
    found = exploration(f, point, [100.0], directions=5, filter_normalised=True)
    assert found.drawn == "filter-normalised"
    # at the same points, in lockstep
    assert found.random.losses[:, -1] == pytest.approx(f(point + found.reach * drawn).numpy(), rel=1e-12)
    # the second of an odd number of planes is not lost, nor are few others than many
    assert torch.equal(_normalised(f, point, 3, 0), drawn[:3])


def test_seeds_draw_other_directions():
    f, point = objective("mlp")
    one, other, again = (exploration(f, point, [1.0], directions=3, seed=seed) for seed in (0, 1, 0))
    assert (one.random.losses == again.random.losses).all()
    assert (one.random.losses[:, 1:] != other.random.losses[:, 1:]).any()


# -- words ------------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_counted_and_told():
    edge = Objective.from_function(lambda w: torch.sqrt(4 - w @ w), 2)  # no number beyond 2
    found = exploration(edge, torch.tensor([0.5, 0.0], dtype=F64), [3.0], distance=5.0, directions=7, towards={"out": torch.tensor([2.5, 0.0], dtype=F64)})  # fmt: skip
    lost = int((~np.isfinite(found.random.losses)).sum())
    assert lost == int(np.isnan(found.rays["losses"]).sum()) > 0
    assert f"not finite at {lost} of 686 points, on 7 of 7 random rays" in found.warnings[0]
    assert "of the lines" in found.warnings[1]
    assert f"({lost} points in all)" in found.caption()
    assert table(found)[1]["leave at"] == "1.5"  # of the line, where numbers end


def test_batchnorm_takes_the_statistics_of_the_rows():
    f, point = objective("batchnorm")
    found = exploration(f, point, [1.0], directions=2, towards={"end": point + 1})
    # torch's own train mode, in which a module is made
    network, data = module("batchnorm").double(), rows("batchnorm")
    own = []
    for shift in (0.0, 1.0):
        with torch.no_grad():
            for weight in network.parameters():
                weight += shift
            own.append(float(nn.functional.cross_entropy(network(data.inputs), data.targets)))
    assert [found.start_loss, found.lined.losses[0, 40]] == pytest.approx(own, rel=1e-12)
    assert found.provenance["norm"] == "batch"
    assert "BatchNorm by the statistics of each chunk of rows: the set is of one function of the weights." in found.caption()  # fmt: skip
    assert "BatchNorm" not in exploration(*objective("mlp"), [1.0], directions=2).caption()


def test_an_answer_is_read_back_equal():
    found = exploration(BALL, AXIS, [0.5, 4.0], towards={"centre": 0 * AXIS}, directions=5)
    read = Result.from_json(found.to_json())
    assert isinstance(read, Exploration)
    assert read.to_json() == found.to_json()
    assert read.table() == found.table()
    assert isinstance(read.random, Rays)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reach": 0.0}, "reach"),
        ({"distance": math.nan}, "reach"),
        ({"distance": 1e39}, "single precision"),
        ({"confidence": 1.0}, "confidence"),
        ({"directions": 0}, "at least 1"),
        ({"directions": 0, "filter_normalised": True}, "at least 1"),
        ({"start": 0 * AXIS}, "--reach-distance"),
        ({"start": AXIS[:3]}, "start"),
        ({"levels": []}, "levels"),
        ({"levels": None}, "--loss"),
        ({"levels": None, "towards": {"same loss": -AXIS}}, "--loss"),
        ({"levels": None, "towards": {"of no loss": 0 * AXIS}}, "--loss"),
        ({"towards": {"other": AXIS[:2]}}, "other"),
        ({"towards": {"other": math.nan * AXIS}}, "not all finite"),
    ],
)
def test_questions_that_are_none_are_refused(change, says):
    with pytest.raises(UsageError, match=says):
        exploration(**{"f": BALL, "start": AXIS, "levels": [0.5], **change})


def test_a_start_without_a_loss_is_refused():
    with pytest.raises(LandscapeError, match="start"):
        exploration(Objective.from_function(lambda w: torch.log(w[0]), 1), torch.tensor([-1.0], dtype=F64), [1.0])


# -- pictures ---------------------------------------------------------------------------------------------------------


def drawn(found):
    return {panel: _axes(found, panel) for panel in found.panels()}


def _axes(found, panel):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    found.plot(ax, panel)
    return ax


def test_pictures_show_the_stored_numbers():
    far = {"centre": 0 * AXIS, "beyond": -2 * AXIS}
    found = exploration(BALL, AXIS, [0.5, 4.0, 20.0], towards=far, distance=3.0, directions=9)
    axes = drawn(found)
    assert list(axes) == ["loss", "distances", "inside"]
    median = next(line for line in axes["loss"].lines if line.get_label() == "median of 9 random")
    assert median.get_ydata() == pytest.approx(np.median(found.random.losses[:, 1:], axis=0))
    shares = {line.get_label(): line.get_ydata() for line in axes["inside"].lines}
    assert shares["4"] == pytest.approx((found.random.losses[:, 1:] <= 4).mean(0))
    assert shares["20"].tolist() == [1.0] * 97
    words = [text.get_text() for text in axes["distances"].texts]
    assert words[0] == "9 of 9 do not leave"  # within 3 no loss reaches 20
    dots = np.concatenate([line.get_xdata() for line in axes["distances"].lines if line.get_marker() == "s"])
    assert sorted(dots) == pytest.approx(sorted(found.random.exits[:, 1]))
    assert len(found.figure().data) == 1 + 1 + 2 + 3
    assert styles.rendered(found, "svg")
    with pytest.raises(UsageError, match="panel"):
        _axes(found, "other")


def test_the_picture_ends_a_bit_beyond_the_last_crossing():
    # all leave by 1.6, the line as far as 2.2; its point is the centre, 0.6 away
    found = exploration(BALL, 0.6 * AXIS, [1.0, 0.5], towards={"centre": 0 * AXIS}, distance=100.0, directions=9)
    last = 1.3 * max(found.random.crossing.max(), found.lined.distances[0, -1] * found.lined.inside[0, :, -1].any())
    for ax in drawn(found).values():
        assert ax.get_xlim()[1] == pytest.approx(last)
    assert _axes(found, "loss").get_ylim()[1] < 100  # not of the losses at 100
    assert found.random.distances[0, -1] == 100
    assert max(found.figure().data[1].x) < 1.1 * last
    # one that stays inside keeps all of the axis
    stays = exploration(BALL, 0.6 * AXIS, [1.0, 2e4], distance=100.0, directions=9)
    assert _axes(stays, "loss").get_xlim()[1] == 100


def test_levels_are_told_apart():
    levels = [5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1]
    found = exploration(BALL, 0.01 * AXIS, levels, distance=1e3, directions=3)
    labels = [text for text in _axes(found, "loss").texts if text.get_text() in {f"{level:g}" for level in levels}]
    assert len(labels) == 8
    heights = np.array([text.xyann[1] for text in labels])
    assert (heights[:-1] - heights[1:] >= 0.045 - 1e-12).all()  # some 7 points
    looks = [(line.get_color(), line.get_marker()) for line in _axes(found, "inside").lines]
    assert len({marker for _, marker in looks}) == 8
    assert not {colour for colour, _ in looks} & {styles.ORANGE, styles.SKY, styles.YELLOW}
    # names beside the axes, not in them
    figure = found.figure()
    assert [trace.name for trace in figure.data][2:] == [f"level {level:g}" for level in levels]
    assert figure.layout.legend.orientation == "v"


def test_labels_move_as_little_as_they_can():
    # a pair at one place by half a gap each, what is far apart not at all, and none beyond the top
    assert _apart(np.array([0.1, 0.5, 0.5]), 0.1) == pytest.approx([0.1, 0.45, 0.55])
    assert _apart(np.array([0.99, 1.0]), 0.1) == pytest.approx([0.9, 1.0])


def test_losses_below_zero_and_lost_ones_are_drawn():
    odd = Objective.from_function(lambda w: torch.where(w[0] > 2, math.nan, -(w @ w)), 2)
    found = exploration(odd, torch.tensor([1.0, 0.0], dtype=F64), [-2.0, -0.5], distance=8.0, directions=20)
    axes = drawn(found)
    assert axes["loss"].get_yscale() == "linear"
    hatched = [patch for patch in axes["loss"].collections if patch.get_hatch()]
    assert len(hatched) == 1
    assert found.figure().data


# -- the command ------------------------------------------------------------------------------------------------------

PROBLEM = """
import torch
from torch import nn

def make():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), "cross-entropy", (x, (x[:, 0] > 0).long())
"""


def test_the_command_asks_once_and_tells_a_table(tmp_path, capsys):
    (tmp_path / "problem.py").write_text(PROBLEM)
    spec, run = f"{tmp_path}/problem.py:make", str(tmp_path / "run")
    ask = ["explore", run, "--task", spec]
    assert main(["train", spec, "--steps", "20", "--batch-size", "10", "--record-every", "5", "--evaluations", "2", "--out", run]) == 0  # fmt: skip
    capsys.readouterr()
    assert main([*ask, "--directions", "4", "--loss", "0.3,0.5", "--at", "init"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in out[1:3]] == [["4", "uniform", "0.5"], ["4", "uniform", "0.3"]]
    assert out[3].startswith("line to step 20, ")
    assert out[-1].endswith("exploration.json")
    found = Exploration.from_json((tmp_path / "run" / "results" / "exploration.json").read_text())
    assert found.question["place"] == "step=0"
    assert found.question["levels"] == [0.5, 0.3]
    assert found.provenance["step"] == 0
    # three levels between the ends where none are asked for, and the same question is not asked again
    for _ in range(2):
        assert main([*ask, "--reach-distance", "3", "--filter-normalised"]) == 0
    second = Exploration.from_json((tmp_path / "run" / "results" / "exploration-2.json").read_text())
    assert (len(second.levels), second.reach, second.drawn) == (3, 3.0, "filter-normalised")
    assert sorted(path.name for path in (tmp_path / "run" / "results").iterdir()) == ["exploration-2.json", "exploration.json"]  # fmt: skip
    capsys.readouterr()
    for flags, says in ((["--reach", "2", "--reach-distance", "3"], "Leave one of them out"), (["--reach", "-1"], "--reach"), (["--loss", "a,b"], "0.3,0.1"), (["--loss", "nan"], "levels"), (["--directions", "0"], "at least 1")):  # fmt: skip
        assert main([*ask, *flags]) == 2
        assert says in capsys.readouterr().err
