"""What the chief says of each epoch: a table on the terminal, or one JSON object at the end."""

import json
import time
from collections.abc import Iterator
from typing import Any

import movielens_data
from rich.console import Console
from rich.table import Table

import tfdist
from tfdist.train import checkpoint


class Summary:
    """Collects the epochs; `finish` says which promises the run did not keep."""

    def __init__(self, data: str, first_step: int, as_json: bool) -> None:
        self._data, self._true_step = data, first_step
        self._epochs: list[dict[str, Any]] = []
        # On standard error where standard output is for JSON.
        self._console = Console(stderr=as_json, highlight=False)
        self._as_json = as_json
        self._start = time.monotonic()

    def add_epoch(
        self,
        result: tfdist.train.EpochResult,
        waited: dict[str, float],
        rmse: float,
        saved: checkpoint.Saved,
    ) -> None:
        """Takes what the chief knows when all have arrived at the end of an epoch."""
        self._note_leaving(result)
        audit = result.audit
        assert audit is not None  # the epoch knows how many are expected
        # Counted by the trainers, so that it does not rest on the global step it is compared with.
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
                "read": audit.read,
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
        """Prints the end of the summary, and returns what did not turn out as promised."""
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
        """A trainer knows when it left an epoch only in its next report."""
        left = [report.left for report in result.reports if report.left is not None]
        if self._epochs and left:
            self._epochs[-1]["left_within"] = round(max(left) - min(left), 3)

    def _print_epoch(self, epoch: dict[str, Any]) -> None:
        table = Table(title=f"epoch {len(self._epochs)}", title_justify="left")
        table.add_column("trainer")
        for name in ("steps", "examples", "seconds", "waited"):
            table.add_column(name, justify="right")
        for row in epoch["trainers"]:
            table.add_row(
                row["trainer"],
                str(row["steps"]),
                str(row["examples"]),
                f"{row['seconds']:.2f}",
                f"{row['waited']:.2f}",
            )
        say = self._console.print
        say(table)
        say(f"read once: {epoch['read_once']} of {epoch['expected']}")
        say(f"held-out RMSE: {epoch['rmse']:.4f}")
        say(f"checkpoint: {epoch['checkpoint']}", soft_wrap=True)
        say(f"its step: {epoch['saved_step']}, the true one: {epoch['true_step']}\n")

    def _print_end(self, result: dict[str, Any]) -> None:
        baselines, say = result["baselines"], self._console.print
        say("held-out RMSE of simpler models and of this one:")
        say(f"  global mean                     {baselines['global_mean']:.4f}")
        say(f"  user and item biases            {baselines['biases']:.4f}")
        say(f"  this model after {len(self._epochs):2d} epochs      {self._epochs[-1]['rmse']:.4f}")
        worst = max(epoch["left_within"] for epoch in self._epochs)
        say(f"all trainers left each epoch within {worst:.2f} s of one another")
        say(f"{result['seconds']:.1f} s")


def _broken_promises(result: dict[str, Any]) -> Iterator[str]:
    for number, epoch in enumerate(result["epochs"], start=1):
        if epoch["read"] != epoch["expected"] or epoch["missing"] or epoch["duplicates"]:
            yield f"epoch {number}: read once {epoch['read_once']} of {epoch['expected']}"
        if epoch["saved_step"] != epoch["true_step"]:
            yield f"epoch {number}: saved step {epoch['saved_step']} of {epoch['true_step']}"
    rmse, best = result["epochs"][-1]["rmse"], min(result["baselines"].values())
    if rmse >= best:
        yield f"held-out RMSE {rmse:.4f} does not beat the {best:.4f} of simpler models"
