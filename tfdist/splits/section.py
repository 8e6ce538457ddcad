"""Reads and writes of the table of splits within one op, in order, on ps 0."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdist.ps.section import BranchingSection
from tfdist.splits.plan import Plan
from tfdist.splits.rules import DEAD, NOTHING, REVOKED, TODO


class Rank(NamedTuple):
    """The row of one trainer, or the columns of all."""

    incarnation: Any
    held: Any
    attempt: Any
    reserved: Any
    lease_end: Any


class Counts(NamedTuple):
    """Single numbers. No row before `cursor` is free, which spares a claim the search."""

    epoch: Any
    first_epoch: Any
    leases: Any
    frozen_by: Any
    cursor: Any

    @property
    def is_frozen(self) -> Any:
        """True while a trainer saves a checkpoint."""
        return self.frozen_by >= 0


class Names(NamedTuple):
    """Variables: five by row, one by rank, the single numbers, and the losses."""

    starts: str
    stops: str
    offsets: str
    states: str
    retries: str
    ranks: str
    counts: str
    lost: str


def exclusive(name: str) -> BranchingSection:
    """The section that lets one op at a time use the table; built in the default graph."""
    return BranchingSection(f"tfdist/splits/rules/{name}")


def variable_names(name: str) -> Names:
    """The names of the variables of a queue."""
    return Names(*(f"tfdist_splits_{name}_{field}" for field in Names._fields))


class Section:
    """Reads and writes the variables; each sees all writes before it."""

    def __init__(self, name: str, plan: Plan) -> None:
        self._plan = plan
        self._handles = {
            field: tf.raw_ops.VarHandleOp(dtype=tf.int64, shape=None, shared_name=variable)
            for field, variable in zip(Names._fields, variable_names(name), strict=True)
        }
        self.stored: list[Any] = []
        self.now = tf.cast(1e6 * tf.timestamp(), tf.int64)

    def read(self, name: str) -> Any:
        """A whole variable."""
        with tf.control_dependencies(self.stored):
            return tf.raw_ops.ReadVariableOp(resource=self._handles[name], dtype=tf.int64)

    def size(self, name: str) -> Any:
        """The length of a variable."""
        with tf.control_dependencies(self.stored):
            shape = tf.raw_ops.VariableShape(input=self._handles[name], out_type=tf.int64)
            return shape[0]

    def at(self, name: str, places: Any) -> Any:
        """A variable in one place or several."""
        with tf.control_dependencies(self.stored):
            return tf.raw_ops.ResourceGather(
                resource=self._handles[name], indices=places, dtype=tf.int64
            )

    def put(self, name: str, places: Any, values: Any) -> None:
        """Writes a variable in one place or several."""
        with tf.control_dependencies(self.stored):
            self.stored.append(
                tf.raw_ops.ResourceScatterUpdate(
                    resource=self._handles[name], indices=places, updates=values
                )
            )

    def store(self, name: str, value: Any) -> None:
        """Writes a whole variable."""
        with tf.control_dependencies(self.stored):
            self.stored.append(self.assign(name, value))

    def assign(self, name: str, value: Any) -> Any:
        """An op that writes a whole variable, outside of the order."""
        return tf.raw_ops.AssignVariableOp(resource=self._handles[name], value=value)

    def ranks(self) -> Rank:
        """The columns of all trainers."""
        return Rank(*tf.unstack(tf.ensure_shape(self.read("ranks"), [None, 5]), axis=1))

    def counts(self) -> Counts:
        """The single numbers."""
        return Counts(*tf.unstack(tf.ensure_shape(self.read("counts"), [5])))

    def is_over(self, ranks: Rank) -> Any:
        """True if no row is free or leased."""
        is_free = tf.reduce_any(tf.equal(self.read("states"), TODO))
        return tf.reduce_all(ranks.held < 0) & tf.logical_not(is_free)

    def lose(self, ranks: Rank, counts: Counts, mask: Any, *, retries: int) -> tuple[Rank, Counts]:
        """Ends the leases of the masked ranks; returns rows and counts that are not yet written."""
        loses = mask & (ranks.held >= 0)

        def note() -> Any:
            losers = tf.reshape(tf.where(loses), [-1])
            rows = tf.gather(ranks.held, losers)
            often = self.at("retries", rows) + retries
            dead = often > self._plan.max_retries
            lost = tf.stack(
                [
                    tf.fill(tf.shape(losers), counts.epoch),
                    losers,
                    self.at("offsets", rows),
                    tf.gather(ranks.reserved, losers),
                    self.at("stops", rows),
                    tf.cast(dead, tf.int64),
                ],
                1,
            )
            states = tf.where(dead, np.int64(DEAD), np.int64(TODO))
            all_lost = tf.concat([tf.ensure_shape(self.read("lost"), [None, 6]), lost], 0)
            with tf.control_dependencies([all_lost, often, lost]):
                return tf.group(
                    self._scatter("states", rows, states),
                    self._scatter("retries", rows, often),
                    self.assign("lost", all_lost),
                )

        self.stored.append(tf.cond(tf.reduce_any(loses), note, tf.no_op))
        first = tf.reduce_min(tf.where(loses, ranks.held, counts.cursor))
        after = ranks._replace(
            held=tf.where(loses, np.int64(NOTHING), ranks.held),
            attempt=tf.where(loses, np.int64(REVOKED), ranks.attempt),
        )
        return after, counts._replace(cursor=tf.minimum(first, counts.cursor))

    def free_row(self, ranks: Rank, cursor: Any, batch_size: Any) -> Any:
        """The first free row, else a new row of half of the largest rest, else NOTHING.

        The second value is the cursor after this row is leased.
        """
        size = self.size("states")
        is_at_cursor = tf.cond(
            cursor < size,
            lambda: tf.equal(self.at("states", cursor), TODO),
            lambda: tf.constant(False),
        )

        def look() -> Any:
            states = tf.ensure_shape(self.read("states"), [None])
            is_free = tf.equal(states, TODO)
            return tf.where(tf.reduce_any(is_free), tf.argmax(is_free), size)

        # The row at the cursor is leased if an earlier split was lost: the free ones are behind.
        is_hidden = (cursor < size) & tf.logical_not(is_at_cursor)
        first = tf.cond(is_hidden, look, lambda: tf.identity(cursor))
        rows = tf.maximum(ranks.held, 0)
        stops = self.at("stops", rows)
        rests = tf.where(ranks.held >= 0, stops - ranks.reserved, tf.zeros_like(stops))
        rest, victim = tf.reduce_max(rests), tf.argmax(rests)

        def divide() -> Any:
            middle = ranks.reserved[victim] + rest // batch_size // 2 * batch_size
            new = {
                "starts": middle,
                "stops": stops[victim],
                "offsets": middle,
                "states": np.int64(TODO),
                "retries": np.int64(0),
            }
            longer = {
                name: tf.concat([tf.ensure_shape(self.read(name), [None]), [value]], 0)
                for name, value in new.items()
            }
            with tf.control_dependencies(list(longer.values())):
                grown = [self.assign(name, value) for name, value in longer.items()]
            with tf.control_dependencies(grown):
                cut = self._scatter("stops", rows[victim], middle)
            with tf.control_dependencies([cut]):
                return tf.identity(size), size + 1

        def nothing() -> Any:
            return tf.constant(NOTHING, tf.int64), tf.identity(size)

        return tf.cond(
            first < size,
            lambda: (tf.identity(first), first + 1),
            lambda: tf.cond(rest >= batch_size, divide, nothing),
        )

    def _scatter(self, name: str, places: Any, values: Any) -> Any:
        return tf.raw_ops.ResourceScatterUpdate(
            resource=self._handles[name], indices=places, updates=values
        )
