"""What retraining does, against hand counts on weights whose order is known, and the law of a random mask; the pictures from the stored numbers alone."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from landscape.analysis.magnitudes import Retraining, Stage, retraining
from landscape.analysis.thresholds import Threshold
from landscape.cli.app import main
from landscape.errors import LandscapeError, UsageError
from landscape.masks import Mask
from landscape.results import Result
from landscape.runs import Run
from landscape.trajectories import Entry, Layout

# two tensors that may be pruned, and a bias that may not
LAYOUT = Layout(
    (
        Entry("first.weight", (2, 4), 0, "float64", "parameter"),
        Entry("first.bias", (2,), 8, "float64", "parameter"),
        Entry("last.weight", (1, 2), 10, "float64", "parameter"),
    )
)
PRUNABLE = Mask.of(LAYOUT, {"first.bias": np.zeros(2)})
# |w| of the ten weights are 1 to 10, so that the smallest four are the first four; the biases are 100
BEFORE = np.array([1.0, -2, 3, -4, 5, -6, 7, -8, 100, -100, 9, -10])
AFTER = np.array([0.0, 0, 0, 0, 5, 3, -4, -8, 103, -100, 9, -14])


def mask(*gone: int) -> Mask:
    kept = np.ones(LAYOUT.dim, dtype=bool)
    kept[list(gone)] = False
    return Mask(LAYOUT, kept)


def stages(after: np.ndarray = AFTER, gone: tuple[int, ...] = (0, 1, 2, 3)) -> list[Stage]:
    return [
        Stage(0, mask(), np.zeros(12), BEFORE, 0.125),
        Stage(1, mask(*gone), np.where(mask(*gone).kept, BEFORE, 0), after, 0.25),
    ]


def two() -> Retraining:
    return retraining({"weight-rewind": stages()}, prunable=PRUNABLE)


def test_a_step_is_counted_by_hand():
    found = two()
    assert found.survivors.tolist() == [[10, 6]]
    assert found.pruned[0, 0] == 0.4
    assert found.thresholds[0, 0] == 4  # the fourth smallest
    # of 5, 3, 4, 8, 9, 14 two are at most 4
    assert found.small[0, 0] == pytest.approx(2 / 6, abs=1e-15)
    assert found.lengths[0, 0] == pytest.approx(math.sqrt((1 + 4 + 9 + 16) / 385), abs=1e-15)
    # from (5, -6, 7, -8, 100, -100, 9, -10)
    assert found.moved[0, 0] == pytest.approx(math.sqrt(9**2 + 11**2 + 3**2 + 4**2), abs=1e-12)
    assert found.travelled[0].tolist() == pytest.approx([math.sqrt(385 + 20_000), math.sqrt(9**2 + 11**2 + 3**2 + 4**2)], abs=1e-10)  # fmt: skip
    one, other = np.array([5.0, -6, 7, -8, 100, -100, 9, -10]), np.array([5.0, 3, -4, -8, 103, -100, 9, -14])
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    # arccos loses half of the digits near 1: at 0.98 its condition is 1 / sqrt(1 - 0.98^2) = 5
    assert found.turned[0, 0] == pytest.approx(2 / math.pi * math.acos(cosine), abs=1e-13)
    assert np.allclose(found.kept[0], [[1, 1], [0.5, 1]])
    assert found.layers == ["first.weight", "last.weight"]
    assert found.quantiles[3] == 0.5
    assert found.solved_quantiles[0, :, 3].tolist() == [5.5, 6.5]
    assert found.projected_quantiles[0, 0, 3] == 7.5
    assert np.isnan([found.thresholds[0, 1], found.small[0, 1], found.lengths[0, 1], found.moved[0, 1]]).all()
    assert found.errors.tolist() == [[0.125, 0.25]]
    assert not found.warnings


def test_histograms_hold_every_survivor_once_in_its_bin():
    found = two()
    for counts, sizes in ((found.solved[0, 0], range(1, 11)), (found.projected[0, 0], range(5, 11)), (found.solved[0, 1], (5, 3, 4, 8, 9, 14))):  # fmt: skip
        assert counts.sum() == len(sizes)
        for low, high, count in zip(found.edges[:-1], found.edges[1:], counts, strict=True):
            # the powers of ten of the edges are rounded: 1 and 10 lie on one
            assert count == sum(low * (1 + 1e-12) <= size * (1 + 1e-9) < high * (1 + 1e-12) for size in sizes)
    assert not found.projected[0, 1].any()
    ratios = found.edges[1:] / found.edges[:-1]
    assert np.allclose(ratios, ratios[0], rtol=1e-12)


def test_a_random_mask_removes_the_root_of_its_share_and_full_mixing_brings_back_the_share():
    n, f = 20_000, 0.36
    layout = Layout((Entry("w", (n,), 0, "float64", "parameter"),))
    rng = np.random.default_rng(0)
    w, gone = rng.standard_normal(n), rng.permutation(n)[: int(f * n)]
    kept = np.ones(n, dtype=bool)
    kept[gone] = False
    again = np.where(kept, rng.standard_normal(n), 0)
    random_ = retraining({"x": [Stage(0, Mask.full(layout), w, w), Stage(1, Mask(layout, kept), w, again)]}, prunable=Mask.full(layout))  # fmt: skip
    # R^2 / |w|^2 is a ratio of means; over the draws of the mask its variance is f (1 - f) Var(w^2) / (n E[w^2]^2) = 2 f (1 - f) / n: 0.0048. Of the root half of it over the root: 0.004; 4 of them
    assert random_.lengths[0, 0] == pytest.approx(math.sqrt(f), abs=0.016)
    assert "larger than others that stayed" in random_.warnings[0]
    # retrained weights that are drawn anew from the same law: the share below the f-quantile of w is f, with standard error sqrt(f (1 - f) / n (1 / (1 - f) + 1)) = 0.0054
    assert random_.small[0, 0] == pytest.approx(f, abs=4 * 0.0054)
    # the same by magnitude: shorter, and without a warning
    low = np.argsort(np.abs(w))[: int(f * n)]
    kept = np.ones(n, dtype=bool)
    kept[low] = False
    still = np.where(kept, w, 0)
    found = retraining({"x": [Stage(0, Mask.full(layout), w, w), Stage(1, Mask(layout, kept), still, still)]}, prunable=Mask.full(layout))  # fmt: skip
    # a normal's share of squares below the f-quantile q of |w| is F(q^2), F of chi-square with 3 degrees of freedom. Of so many draws q has standard error sqrt(f (1 - f) / n) / 2 phi(q), 1.0% of it,
    # and R, the root mean square of a fixed number of weights below q, about as much; |w| 0.5%: 4 of them
    q = stats.norm.ppf(0.5 + f / 2)
    assert found.lengths[0, 0] == pytest.approx(math.sqrt(stats.chi2(3).cdf(q * q)), rel=0.045)
    assert found.small[0, 0] == 0  # nothing moved
    assert found.moved[0, 0] == 0
    assert found.turned[0, 0] == 0
    assert not found.warnings


def test_variants_of_unlike_length_stand_side_by_side_and_survive_the_round_trip():
    third = np.where(mask(0, 1, 2, 3, 5, 6).kept, AFTER, 0)
    longer = [*stages(), Stage(2, mask(0, 1, 2, 3, 5, 6), third, third)]
    found = retraining({"weight-rewind": longer, "fine-tune": stages()}, prunable=PRUNABLE, levels=[1], provenance={"task": "t", "seeds": [0, 1]})  # fmt: skip
    assert found.survivors.tolist() == [[10, 6, 4], [10, 6, 0]]
    assert np.isfinite(found.thresholds).tolist() == [[True, True, False], [True, False, False]]
    assert found.thresholds[0, 1] == 4  # of 5, 3, 4, 8, 9, 14 two go
    assert found.shown == [1]
    assert found.panels() == ("magnitudes weight-rewind", "magnitudes fine-tune", "threshold", "new small weights", "length", "layers")  # fmt: skip
    again = Result.from_json(found.to_json())
    assert isinstance(again, Retraining)
    assert again.to_json() == found.to_json()
    assert len(found.table()) == 1 + 3 + 2
    assert {len(row) for row in found.table()} == {16}
    for panel in found.panels():
        again.plot(Figure().subplots(), panel)
    assert len(again.figure().data) == 3 * 3
    with pytest.raises(UsageError, match="panel"):
        found.plot(Figure().subplots(), "other")


def test_one_level_has_no_step():
    found = retraining({"weight-rewind": stages()[:1]}, prunable=PRUNABLE)
    assert "nothing was retrained" in found.summary()
    assert found.panels() == ("layers",)
    found.plot(Figure().subplots(), "layers")
    assert Result.from_json(found.to_json()).to_json() == found.to_json()


def test_what_cannot_be_followed_is_refused():
    wrong = stages()
    with pytest.raises(UsageError, match="does not follow"):
        retraining({"x": [wrong[1], wrong[0]]}, prunable=PRUNABLE)
    with pytest.raises(UsageError, match="does not follow"):  # a weight comes back
        back = Stage(2, mask(1, 2, 3), AFTER, AFTER)
        retraining({"x": [*wrong, back]}, prunable=PRUNABLE)
    with pytest.raises(UsageError, match="no step goes from level 1"):
        retraining({"x": wrong}, prunable=PRUNABLE, levels=[1])
    with pytest.raises(UsageError, match="no level"):
        retraining({"x": []}, prunable=PRUNABLE)
    with pytest.raises(UsageError, match="at least one run"):
        retraining({}, prunable=PRUNABLE)
    with pytest.raises(UsageError, match="12 parameters"):
        retraining({"x": [Stage(0, mask(), BEFORE, BEFORE[:5])]}, prunable=PRUNABLE)
    with pytest.raises(LandscapeError, match="not finite"):
        retraining({"x": [Stage(0, mask(), BEFORE, BEFORE * np.nan)]}, prunable=PRUNABLE)


def test_dead_survivors_are_counted_and_not_drawn():
    zero = np.where(np.arange(12) == 4, 0.0, AFTER)
    found = retraining({"x": stages(zero)}, prunable=PRUNABLE)
    assert found.outside.tolist() == [[0, 1]]
    assert found.solved[0, 1].sum() == 5
    assert "survivors that are 0 or beyond" in found.warnings[0]


# -- the command ------------------------------------------------------------------------------------------------------

IMP = ["--levels", "2", "--steps", "12", "--batch-size", "20", "--limit", "100", "--width", "0.25", "--replicates", "0", "--evaluations", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def ladders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladders")
    for name, more in {"rewound": [], "tuned": ["--variant", "fine-tune"], "other": ["--norm", "layer"], "alone": ["--output", "0"]}.items():  # fmt: skip
        assert main(["imp", "digits-mlp", *IMP, *more, "--out", str(folder / name)]) == 0
    return folder


def test_the_command_reads_the_levels_of_runs(ladders, capsys):
    first, second = str(ladders / "rewound"), str(ladders / "tuned")
    assert main(["retraining", first, second, "--levels", "1"]) == 0
    (path,) = (ladders / "rewound" / "results").glob("retraining.json")
    found = Result.from_json(path.read_text())
    assert isinstance(found, Retraining)
    assert found.variants == ["weight-rewind", "fine-tune"]
    assert found.shown == [1]
    # 20% of n go, rounded up; what is on disk tells it again
    n = found.prunable
    for _ in range(2):
        n -= math.ceil(n / 5)
    assert found.survivors[:, 2].tolist() == [n, n]
    for v, name in enumerate(("rewound", "tuned")):
        run = Run(ladders / name)
        before, after = (run.level(level).trajectory().row(-1).point for level in (0, 1))
        gone = (after == 0) & (np.abs(before) <= found.thresholds[v, 0])
        assert np.sum(gone) == found.prunable - found.survivors[v, 1]
        # float32 points, summed in float64
        assert found.moved[v, 0] == pytest.approx(float(np.linalg.norm((after - before)[~gone].astype(float))), rel=1e-6)  # fmt: skip
    capsys.readouterr()
    assert main(["retraining", first, second, "--levels", "1"]) == 0
    assert "answered before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["other"], "differ in norm"),
        (["alone"], "may not prune the same weights"),
        (["rewound"], "named twice"),
        (["missing"], "does not exist"),
    ],
)
def test_runs_that_cannot_stand_side_by_side_are_refused(ladders, capsys, others, message):
    assert main(["retraining", *(str(ladders / name) for name in ["rewound", *others])]) == 2
    assert message in capsys.readouterr().err


def test_tickets_stand_on_the_axis_of_a_sweep(ladders, capsys):
    asked = ["threshold", "digits-mlp", "--limit", "100", "--width", "0.25", "--dims", "2,4", "--seeds", "1", "--steps", "3", "--evaluations", "1", "--out", str(ladders / "sweep")]  # fmt: skip
    assert main(asked) == 0
    assert main([*asked, "--tickets", f"{ladders / 'rewound'},{ladders / 'tuned'}"]) == 0
    plain, beside = (Result.from_json((ladders / "sweep" / "results" / name).read_text()) for name in ("threshold.json", "threshold-2.json"))  # fmt: skip
    assert isinstance(plain, Threshold)
    assert isinstance(beside, Threshold)
    assert "tickets" not in plain.question
    assert beside.ladders == ["imp rewound", "imp tuned"]
    records = [Run(ladders / "rewound").level(level).record() for level in range(3)]
    mine = beside.tickets["name"] == "imp rewound"
    # biases move too: all parameters but those pruned
    gone = [0, *(beside.ambient - int(np.count_nonzero(Run(ladders / "rewound").level(level).trajectory().row(-1).point)) for level in (1, 2))]  # fmt: skip
    assert beside.tickets["dim"][mine].tolist() == [beside.ambient - count for count in gone]
    assert beside.tickets["test_accuracy"][mine].tolist() == [record["final"]["test_accuracy"] for record in records]
    capsys.readouterr()
    assert main([*asked, "--tickets", str(ladders / "other")]) == 2
    assert "differ in norm" in capsys.readouterr().err
