"""What the chief prints: one line an epoch and a summary, or one JSON object at the end."""

import json
import time
from collections.abc import Iterator
from typing import Any

import movielens_data
from rich.console import Console
from rich.table import Table

import tfdist


class Summary:
    """Collects the epochs; `finish` returns the promises that the run did not keep."""

    def __init__(self, data: str, num_epochs: int, first_step: int, as_json: bool) -> None:
        self._data, self._num_epochs, self._true_step = data, num_epochs, first_step
        self._epochs: list[dict[str, Any]] = []
        self._console = Console(highlight=False, soft_wrap=True)
        self._as_json = as_json
        self._start = time.monotonic()

    def add_epoch(
        self,
        result: tfdist.train.EpochResult,
        waited: dict[str, float],
        rmse: float,
        saved: tfdist.train.Saved,
    ) -> None:
        """Adds an epoch whose end all trainers have reached."""
        self._note_leaving(result)
        audit = result.audit
        assert audit is not None  # the epoch has `expected`
        # The trainers counted it, so it does not rest on the global step that it is compared with.
        self._true_step += result.steps
        self._epochs.append(
            {
                "trainers": [
                    {
                        "trainer": report.trainer,
                        "steps": report.steps,
                        "examples": report.examples,
                        "seconds": round(report.seconds, 3),
                        "waited": round(waited[report.trainer], 3),
                    }
                    for report in result.reports
                ],
                "expected": audit.expected,
                "read_once": audit.read_once,
                "missing": audit.missing,
                "duplicates": audit.duplicates,
                "rmse": round(rmse, 4),
                "checkpoint": saved.path,
                "saved_step": saved.global_step,
                "true_step": self._true_step,
            }
        )
        if not self._as_json:
            self._print_epoch(self._epochs[-1])

    def finish(self, farewell: tfdist.train.EpochResult) -> list[str]:
        """Prints the summary, and returns the promises that the run did not keep."""
        self._note_leaving(farewell)
        baselines = movielens_data.baselines(self._data)
        result = {
            "epochs": self._epochs,
            "baselines": {name: round(rmse, 4) for name, rmse in baselines.items()},
            "seconds": round(time.monotonic() - self._start, 3),
        }
        if self._as_json:
            print(json.dumps(result))
        else:
            self._print_end(result)
        return list(_broken_promises(result))

    def _note_leaving(self, result: tfdist.train.EpochResult) -> None:
        """Adds when the trainers left the epoch before, which only their next report says."""
        left = [report.left for report in result.reports if report.left is not None]
        if self._epochs and left:
            self._epochs[-1]["left_within"] = round(max(left) - min(left), 3)

    def _print_epoch(self, epoch: dict[str, Any]) -> None:
        self._console.print(
            f"epoch {len(self._epochs):2d} of {self._num_epochs}: "
            f"{epoch['read_once']} of {epoch['expected']} examples read once, "
            f"held-out RMSE {epoch['rmse']:.4f}, "
            f"saved at step {epoch['saved_step']} of {epoch['true_step']}"
        )

    def _print_end(self, result: dict[str, Any]) -> None:
        say = self._console.print
        table = Table(title="\nall epochs", title_justify="left")
        table.add_column("trainer")
        for name in ("steps", "examples", "seconds", "waited"):
            table.add_column(name, justify="right")
        for rows in zip(*(epoch["trainers"] for epoch in self._epochs), strict=True):
            sums = {key: sum(row[key] for row in rows) for key in rows[0] if key != "trainer"}
            table.add_row(
                rows[0]["trainer"],
                str(sums["steps"]),
                str(sums["examples"]),
                f"{sums['seconds']:.1f}",
                f"{sums['waited']:.1f}",
            )
        say(table)
        baselines = result["baselines"]
        say("held-out RMSE:")
        say(f"  global mean                 {baselines['global_mean']:.4f}")
        say(f"  user and item biases        {baselines['biases']:.4f}")
        say(f"  this model, {len(self._epochs):2d} epochs       {self._epochs[-1]['rmse']:.4f}")
        worst = max(epoch["left_within"] for epoch in self._epochs)
        say(f"all trainers left each epoch within {worst:.2f} s; {result['seconds']:.1f} s in all")


def _broken_promises(result: dict[str, Any]) -> Iterator[str]:
    for number, epoch in enumerate(result["epochs"], start=1):
        if epoch["read_once"] != epoch["expected"]:
            yield f"epoch {number}: {epoch['read_once']} of {epoch['expected']} examples read once"
        if epoch["saved_step"] != epoch["true_step"]:
            yield f"epoch {number}: saved at step {epoch['saved_step']} of {epoch['true_step']}"
    rmse, best = result["epochs"][-1]["rmse"], min(result["baselines"].values())
    if rmse >= best:
        yield f"held-out RMSE {rmse:.4f} does not beat the {best:.4f} of simpler models"
