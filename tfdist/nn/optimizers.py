"""Optimizers that touch only the rows of a batch.

The gradient of a lookup has a row for each id, an IndexedSlices. Keras 3 and most optimizers of
TensorFlow turn it into a dense tensor, or decay the slots of all rows: a step then costs time and
memory in proportion to the table. These optimizers sum the rows of the same id and update them in
place, all on the ps of the variable.

A row that is not in the batch keeps its slots. For Adagrad and FTRL that changes nothing, for their
slots change with the gradient alone. Momentum and Adam would go on to move the row by its past
gradients; here they wait for its next one ("lazy").

Other variables get their dense gradients, as with any optimizer.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, count
from types import MappingProxyType
from typing import Any

import tensorflow as tf

from tfdist.errors import (
    ConfigError,
    checked_choice,
    checked_flag,
    checked_number,
    checked_several,
)
from tfdist.nn.class_table import ClassTable, checked_table, joined, parts_of
from tfdist.nn.placement import check_no_replicas, colocated, colocated_variable

v1 = tf.compat.v1

# Optimizers of tf.compat.v1.train that update single rows too.
_SPARSE = (
    v1.train.GradientDescentOptimizer,
    v1.train.AdagradOptimizer,
    v1.train.MomentumOptimizer,
    v1.train.FtrlOptimizer,
)
_FLOAT_BYTES = 4


def check_optimizer(optimizer: Any, table: ClassTable) -> None:
    """Refuses an optimizer that would go through the whole table in each step.

    Raises:
        ConfigError: it would, and this is how much.
    """
    checked_table(table)
    if isinstance(optimizer, (SparseOptimizer, *_SPARSE)):
        return
    if _is_plain_sgd(optimizer):
        return
    if not hasattr(optimizer, "apply_gradients"):
        raise ConfigError("optimizer", optimizer, "must be an optimizer, with apply_gradients")
    size = table.num_classes * (table.dim + 1) * _FLOAT_BYTES
    raise ConfigError(
        "optimizer",
        type(optimizer).__name__,
        f"would go through all {table.num_classes:,} rows in each step: {size / 1e6:,.1f} MB, and "
        "as much again for each of its slots; use one of tfdist.nn, such as LazyAdam",
    )


def _is_plain_sgd(optimizer: Any) -> bool:
    """Whether it is Keras's SGD, which is not imported for this, without what moves all rows."""
    others = ("momentum", "weight_decay", "use_ema")
    is_sgd = type(optimizer).__name__ == "SGD" and hasattr(optimizer, "momentum")
    return is_sgd and not any(getattr(optimizer, name, None) for name in others)


class _ByVariable(dict[Any, dict[str, Any]]):
    """The slots of each variable. A tf.Module would put a plain dictionary into its checkpoints."""


class SparseOptimizer(tf.Module):
    """Applies gradients; the interface is that of `tf.compat.v1.train.Optimizer`.

    In a graph of TensorFlow 1 use `minimize`, or `tfdist.train.minimize_if`. In TensorFlow 2 take
    gradients with a tape, and call `apply_gradients` in a tf.function or eagerly.

    The slots are on the ps of their variable. They are made by the first `apply_gradients`, or by
    `build`. A checkpoint contains those of a table as one matrix if `build` got the table, and in a
    graph always.

    Attributes:
        learning_rate: a number, a scalar tensor, or a function without arguments that returns one.
    """

    # The first values of the slots, by name.
    _slots: Mapping[str, float] = MappingProxyType({})

    def __init__(self, learning_rate: Any) -> None:
        super().__init__()
        if hasattr(learning_rate, "get_config"):
            rule = "must not be a schedule of Keras; pass lambda: schedule(step)"
            raise ConfigError("learning_rate", learning_rate, rule)
        if not callable(learning_rate) and not tf.is_tensor(learning_rate):
            learning_rate = _checked_number("learning_rate", learning_rate)
        self.learning_rate = learning_rate
        self._by_variable = _ByVariable()
        self.saved_slots: list[Any] = []  # what a checkpoint contains, in the order of `build`

    def build(self, variables: Iterable[Any]) -> None:
        """Makes the slots, before a checkpoint restores them.

        Args:
            variables: variables, also Keras's, and ClassTables.
        """
        for each in checked_several("variables", variables, "must be a list of variables"):
            if isinstance(each, ClassTable):
                for parts in (each.weights, each.bias):
                    self._build_joined(parts)
                continue
            variable = _checked_variable("variables", each)
            if variable.ref() not in self._by_variable:
                self.saved_slots.append(self._make_slots(variable))

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Any, Any]], global_step: Any = None
    ) -> Any:
        """Updates the variables; pairs whose gradient is None are left out.

        Args:
            grads_and_vars: gradients, dense or IndexedSlices, and their variables, also Keras's.
            global_step: a variable to add 1 to after all updates.

        Returns:
            The operation.

        Raises:
            ConfigError: no pair has a gradient, or a variable is not of float32 or no resource
                variable.
        """
        rule = "must be pairs of a gradient and a variable"
        pairs = []
        for pair in checked_several("grads_and_vars", grads_and_vars, rule):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ConfigError("grads_and_vars", type(pair).__name__, rule)
            if pair[0] is not None:
                pairs.append((pair[0], _checked_variable("grads_and_vars", pair[1])))
        if not pairs:
            raise ConfigError("grads_and_vars", [], "must have a gradient")
        check_no_replicas()
        with tf.init_scope():
            self.build(variable for _, variable in pairs)
        rate = self._rate()
        updates = [self._update(gradient, variable, rate) for gradient, variable in pairs]
        updates = [update for update in updates if update is not None]  # eagerly they are done
        if global_step is None:
            return tf.group(*updates)
        if isinstance(global_step, tf.Variable) and not hasattr(global_step, "handle"):
            with tf.control_dependencies(updates), v1.colocate_with(global_step):
                return v1.assign_add(global_step, 1).op  # of disable_resource_variables()
        with tf.control_dependencies(updates), colocated(global_step.handle):
            return global_step.assign_add(1, read_value=False)

    def compute_gradients(
        self, loss: Any, var_list: Sequence[Any] | None = None
    ) -> list[tuple[Any, Any]]:
        """The gradients of a loss in a graph, with their variables; None for all trainable ones."""
        variables = v1.trainable_variables() if var_list is None else list(var_list)
        return list(zip(v1.gradients(loss, variables), variables, strict=True))

    def minimize(
        self, loss: Any, global_step: Any = None, var_list: Sequence[Any] | None = None
    ) -> Any:
        """The operation that updates the variables of a graph to lower a loss."""
        return self.apply_gradients(self.compute_gradients(loss, var_list), global_step)

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The names of the slots that each variable has."""
        return tuple(self._slots)

    # `get_slot` is a name by which checkpoints of TensorFlow would look for slots in their own way.
    def slot(self, variable: Any, name: str) -> Any:
        """The slot of a variable, or None before it is made.

        Raises:
            ConfigError: it is no variable, such as a whole table, or `slot_names` has no such name.
        """
        name = checked_choice("name", name, self.slot_names)
        return self._by_variable.get(_checked_variable("variable", variable).ref(), {}).get(name)

    def _build_joined(self, parts: Any) -> None:
        variables = [part for part in parts_of(parts) if part.ref() not in self._by_variable]
        slots = [self._make_slots(variable) for variable in variables]
        if slots and tf.executing_eagerly():
            self.saved_slots.append(
                {name: joined([each[name] for each in slots]) for name in slots[0]}
            )

    def _make_slots(self, variable: Any) -> dict[str, Any]:
        name, another = variable.name.partition(":")[0], ""
        if not tf.executing_eagerly():
            another = _suffix(name, self.slot_names)
        slots = {
            slot: colocated_variable(
                variable,
                f"{name}/{slot}{another}",
                partial(tf.fill, variable.shape.as_list(), tf.constant(value)),
                trainable=False,
            )
            for slot, value in self._slots.items()
        }
        if not tf.executing_eagerly() and (place := variable._get_save_slice_info()) is not None:
            for slot, made in slots.items():
                made._set_save_slice_info(
                    v1.Variable.SaveSliceInfo(
                        f"{place.full_name}/{slot}{another}",
                        place.full_shape,
                        place.var_offset,
                        place.var_shape,
                    )
                )
        self._by_variable[variable.ref()] = slots
        return slots

    def _rate(self) -> Any:
        """The learning rate of this step, a scalar tensor."""
        rate = self.learning_rate
        return tf.cast(rate() if callable(rate) else rate, tf.float32)

    def _update(self, gradient: Any, variable: Any, rate: Any) -> Any:
        slots = self._by_variable[variable.ref()]
        with colocated(variable.handle):
            if not isinstance(gradient, tf.IndexedSlices):
                return self._apply_dense(variable, slots, gradient, rate)
            ids, places = tf.unique(gradient.indices)
            rows = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(ids))
            return self._apply_rows(variable, slots, rows, ids, rate)

    @abstractmethod
    def _apply_dense(self, variable: Any, slots: dict[str, Any], gradient: Any, rate: Any) -> Any:
        """Updates the whole variable."""

    @abstractmethod
    def _apply_rows(
        self, variable: Any, slots: dict[str, Any], rows: Any, ids: Any, rate: Any
    ) -> Any:
        """Updates the rows of these different ids."""


class SGD(SparseOptimizer):
    """variable -= learning_rate * gradient."""

    def _apply_dense(self, variable: Any, slots: Any, gradient: Any, rate: Any) -> Any:
        return tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.handle, alpha=rate, delta=gradient
        )

    def _apply_rows(self, variable: Any, slots: Any, rows: Any, ids: Any, rate: Any) -> Any:
        return tf.raw_ops.ResourceScatterSub(
            resource=variable.handle, indices=ids, updates=rate * rows
        )


class Momentum(SparseOptimizer):
    """velocity = momentum * velocity + gradient; variable -= learning_rate * velocity."""

    _slots = MappingProxyType({"velocity": 0.0})

    def __init__(
        self, learning_rate: Any, momentum: float = 0.9, *, use_nesterov: bool = False
    ) -> None:
        super().__init__(learning_rate)
        self._momentum = _checked_number("momentum", momentum)
        self._use_nesterov = checked_flag("use_nesterov", use_nesterov)

    def _apply_dense(self, variable: Any, slots: Any, gradient: Any, rate: Any) -> Any:
        return tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=slots["velocity"].handle,
            lr=rate,
            grad=gradient,
            momentum=self._momentum,
            use_nesterov=self._use_nesterov,
        )

    def _apply_rows(self, variable: Any, slots: Any, rows: Any, ids: Any, rate: Any) -> Any:
        return tf.raw_ops.ResourceSparseApplyMomentum(
            var=variable.handle,
            accum=slots["velocity"].handle,
            lr=rate,
            grad=rows,
            indices=ids,
            momentum=self._momentum,
            use_nesterov=self._use_nesterov,
        )


class Adagrad(SparseOptimizer):
    """sum += gradient^2; variable -= learning_rate * gradient / (sqrt(sum) + epsilon).

    Duchi et al. 2011. It suits tables: a rare class keeps a high rate.
    """

    def __init__(
        self, learning_rate: Any, initial_accumulator: float = 0.1, *, epsilon: float = 1e-7
    ) -> None:
        super().__init__(learning_rate)
        self._slots = {"accumulator": _checked_number("initial_accumulator", initial_accumulator)}
        self._epsilon = _checked_number("epsilon", epsilon)

    def _apply_dense(self, variable: Any, slots: Any, gradient: Any, rate: Any) -> Any:
        return tf.raw_ops.ResourceApplyAdagradV2(
            var=variable.handle,
            accum=slots["accumulator"].handle,
            lr=rate,
            epsilon=self._epsilon,
            grad=gradient,
        )

    def _apply_rows(self, variable: Any, slots: Any, rows: Any, ids: Any, rate: Any) -> Any:
        return tf.raw_ops.ResourceSparseApplyAdagradV2(
            var=variable.handle,
            accum=slots["accumulator"].handle,
            lr=rate,
            epsilon=self._epsilon,
            grad=rows,
            indices=ids,
        )


class LazyAdam(SparseOptimizer):
    """Adam (Kingma and Ba 2015) whose two moments of a row change only when the row has a gradient.

    The optimizer counts its updates for the correction of the first steps.
    """

    _slots = MappingProxyType({"first_moment": 0.0, "second_moment": 0.0})

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(learning_rate)
        self._beta_1 = _checked_decay("beta_1", beta_1)
        self._beta_2 = _checked_decay("beta_2", beta_2)
        self._epsilon = _checked_number("epsilon", epsilon)
        self._num_updates: Any = None

    def build(self, variables: Iterable[Any]) -> None:  # noqa: D102
        super().build(variables)
        if self._num_updates is None:
            first = next(iter(self._by_variable)).deref()
            make = partial(
                colocated_variable, first, "num_updates", partial(tf.constant, 0.0), trainable=False
            )
            if tf.executing_eagerly():
                self._num_updates = make()
            else:
                with v1.variable_scope(None, "LazyAdam"):
                    self._num_updates = make()

    def _rate(self) -> Any:
        with colocated(self._num_updates.handle):
            step = tf.identity(self._num_updates.assign_add(1.0))
            correction = tf.sqrt(1 - self._beta_2**step) / (1 - self._beta_1**step)
        return super()._rate() * correction

    def _apply_dense(self, variable: Any, slots: Any, gradient: Any, rate: Any) -> Any:
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=slots["first_moment"].handle,
            v=slots["second_moment"].handle,
            beta1_power=0.0,  # `rate` is corrected already
            beta2_power=0.0,
            lr=rate,
            beta1=self._beta_1,
            beta2=self._beta_2,
            epsilon=self._epsilon,
            grad=gradient,
        )

    def _apply_rows(self, variable: Any, slots: Any, rows: Any, ids: Any, rate: Any) -> Any:
        moments, updates = [], []
        for slot, beta, news in (
            ("first_moment", self._beta_1, rows),
            ("second_moment", self._beta_2, rows * rows),
        ):
            moment = beta * tf.gather(slots[slot], ids) + (1 - beta) * news
            moments.append(moment)
            updates.append(
                tf.raw_ops.ResourceScatterUpdate(
                    resource=slots[slot].handle, indices=ids, updates=moment
                )
            )
        change = rate * moments[0] / (tf.sqrt(moments[1]) + self._epsilon)
        updates.append(
            tf.raw_ops.ResourceScatterSub(resource=variable.handle, indices=ids, updates=change)
        )
        return None if tf.executing_eagerly() else tf.group(*updates)


class Ftrl(SparseOptimizer):
    """FTRL-Proximal (McMahan et al. 2013), with sparse weights by L1.

    It computes a row from the sum of its gradients alone, so the first values of a row are lost
    with its first gradient: pass no `bias_init` or `weights_init` that matters.

    Args:
        learning_rate: as in `SparseOptimizer`, but above 0.
        l1, l2: strengths of the regularization.
        initial_accumulator: first value of the sum of squared gradients.
        learning_rate_power: at most 0; -0.5 divides by the root of that sum.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        initial_accumulator: float = 0.1,
        learning_rate_power: float = -0.5,
    ) -> None:
        super().__init__(learning_rate)
        accumulator = _checked_number("initial_accumulator", initial_accumulator)
        self._slots = {"accumulator": accumulator, "linear": 0.0}
        self._l1, self._l2 = _checked_number("l1", l1), _checked_number("l2", l2)
        rule = "must be a finite number of at most 0"
        self._power = checked_number(
            "learning_rate_power", learning_rate_power, lambda power: -math.inf < power <= 0, rule
        )

    def _apply_dense(self, variable: Any, slots: Any, gradient: Any, rate: Any) -> Any:
        return tf.raw_ops.ResourceApplyFtrlV2(
            var=variable.handle, grad=gradient, **self._options(slots, rate)
        )

    def _apply_rows(self, variable: Any, slots: Any, rows: Any, ids: Any, rate: Any) -> Any:
        return tf.raw_ops.ResourceSparseApplyFtrlV2(
            var=variable.handle, grad=rows, indices=ids, **self._options(slots, rate)
        )

    def _options(self, slots: Any, rate: Any) -> dict[str, Any]:
        return {
            "accum": slots["accumulator"].handle,
            "linear": slots["linear"].handle,
            "lr": rate,
            "l1": self._l1,
            "l2": self._l2,
            "l2_shrinkage": 0.0,
            "lr_power": self._power,
        }


def _checked_number(field: str, value: Any) -> float:
    rule = "must be a finite number of at least 0"
    return checked_number(field, value, lambda number: 0 <= number < math.inf, rule)


def _checked_decay(field: str, value: Any) -> float:
    rule = "must be at least 0 and below 1"
    return checked_number(field, value, lambda number: 0 <= number < 1, rule)


def _suffix(name: str, slots: Sequence[str]) -> str:
    """What makes names of slots of a variable that another optimizer of the graph does not use."""
    scope = v1.get_variable_scope().name
    start = f"{scope}/{name}" if scope else name
    taken = {variable.op.name for variable in v1.global_variables()}
    suffixes = chain([""], (f"_{number}" for number in count(1)))
    return next(
        suffix
        for suffix in suffixes
        if not any(f"{start}/{slot}{suffix}" in taken for slot in slots)
    )


def _checked_variable(field: str, variable: Any) -> Any:
    """The variable of TensorFlow, also that of a variable of Keras 3."""
    if not isinstance(variable, tf.Variable) and isinstance(
        getattr(variable, "value", None), tf.Variable
    ):
        variable = variable.value
    if not isinstance(variable, tf.Variable):
        rule = "must be variables; pass table.trainable_variables for a ClassTable"
        raise ConfigError(field, type(variable).__name__, rule)
    if not hasattr(variable, "handle"):
        rule = "must be resource variables; call tf.compat.v1.enable_resource_variables()"
        raise ConfigError(field, variable.name, rule)
    if variable.dtype.base_dtype != tf.float32:
        rule = f"must be float32, not {variable.dtype.base_dtype.name}"
        raise ConfigError(field, variable.name, rule)
    return variable
