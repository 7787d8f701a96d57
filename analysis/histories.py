"""The course of a run: loss and accuracy on train and test rows against the step, as its metrics file recorded them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landscape.results import Result
from landscape.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure


@dataclass(frozen=True, kw_only=True)
class History(Result):
    """What was measured while a run descended."""

    task: str
    state: str  # finished, interrupted, failed or running
    recorded: int  # T, recorded points
    columns: dict[
        str, np.ndarray
    ]  # step, lr, train_loss, test_loss, train_accuracy, test_accuracy: (evaluations,) each

    def summary(self) -> str:
        """See Result."""
        if not self.columns:
            return f"{self.task}: {self.recorded} recorded points, no measured curve ({self.state})."
        last = {name: values[-1] for name, values in self.columns.items()}
        line = f"{self.task}: {int(last['step']):,} steps, train loss {last['train_loss']:.4g}, test loss {last['test_loss']:.4g}"
        if np.isfinite(last["test_accuracy"]):
            line += f", test accuracy {100 * last['test_accuracy']:.2f}%"
        return f"{line}; {self.recorded:,} points recorded ({self.state})."

    def caption(self) -> str:
        """See Result."""
        return (
            "Loss and accuracy over all train and test rows, measured while descending (the model in evaluation mode)."
        )

    def panels(self) -> tuple[str, ...]:
        """See Result."""
        return ("loss", "accuracy") if self.columns and np.isfinite(self.columns["test_accuracy"]).any() else ("loss",)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        from landscape.analysis.styles import BLUE, VERMILION

        name = panel or "loss"
        if not self.columns:
            ax.text(0.5, 0.5, "nothing was measured", ha="center", va="center", transform=ax.transAxes)
            return
        scale = 100 if name == "accuracy" else 1
        for split, colour, dash in (("train", BLUE, "--"), ("test", VERMILION, "-")):
            ax.plot(
                self.columns["step"],
                scale * self.columns[f"{split}_{name}"],
                dash,
                color=colour,
                marker=".",
                markersize=4,
                label=split,
            )
        ax.set_xlabel("step")
        ax.set_ylabel("accuracy (%)" if name == "accuracy" else "loss")
        if name == "loss":
            ax.set_yscale("log")
        ax.legend()
        ax.set_title(f"{name.capitalize()} while descending", loc="left")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import BLUE, VERMILION, interactive

        figure = go.Figure()
        for split, colour, dash in (("train", BLUE, "dash"), ("test", VERMILION, "solid")):
            if self.columns:
                text = [f"accuracy {100 * value:.2f}%" for value in self.columns[f"{split}_accuracy"]]
                figure.add_scatter(
                    x=self.columns["step"],
                    y=self.columns[f"{split}_loss"],
                    text=text,
                    mode="lines+markers",
                    line={"color": colour, "dash": dash},
                    name=f"{split} loss",
                )
        interactive(figure, x="step", y="loss")
        figure.update_yaxes(type="log")
        return figure


def history(run: Run) -> History:
    """The course of a run. Raises UnsafeInputError where its files are damaged."""
    record = run.record()
    columns = run.metrics()
    recorded = len(run.trajectory()) if (run.trajectory_path / "layout.json").exists() else 0
    notes = []
    if record["state"] in ("interrupted", "failed"):
        notes.append(
            f"the run {'failed' if record['state'] == 'failed' else 'was interrupted'}; the same {record['kind']} command goes on with it."
        )
    return History(
        question={},
        provenance={},
        warnings=tuple(notes),
        task=str(record["options"]["task"]),
        state=str(record["state"]),
        recorded=recorded,
        columns=columns,
    )
