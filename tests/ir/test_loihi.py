"""Loihi's neurons, sigma-delta messages and delays in small cases; tests/vendor/test_loihi_neurons.py has Lava's
answers to many. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snncc.ir import Domain, Param, Store, Type, ops
from snncc.ir.loihi import STATE, SUM, UNITY, AtrLif, CubaLif, Delay, Delta, Sigma, SigmaDelta, decay, wrap
from snncc.ir.ops import ShapeError
from snncc.ir.types import Array

STORE = Store()
CURRENT = Type((1,), "i32", Domain.CURRENT)
FLOATS = Type((1,), "f32", Domain.CURRENT)
WHOLE = st.integers(-(2**17), 2**17)


def put(*values: Any) -> Param:
    return STORE.put("p", np.array(values))


def run(op: ops.Stateful, *xs: Any, x: Type = CURRENT) -> tuple[Array, Array]:
    """(what is sent (T, *shape), the states after each step (T, ...)) for one sample."""
    type = op.infer((x,), STORE)
    state, sent, states = op.start(1, type, STORE), [], []
    for now in xs:
        state, y = op.step(state, np.broadcast_to(np.asarray(now, np.float64), (1, *x.shape)), type, STORE)
        sent.append(y[0])
        states.append(state[0])
    return np.array(sent), np.array(states)


def sent(op: ops.Stateful, *xs: Any, x: Type = CURRENT) -> list[Any]:
    return list(run(op, *xs, x=x)[0].squeeze(-1).tolist())


def states(op: ops.Stateful, *xs: Any, x: Type = CURRENT) -> list[Any]:
    return list(run(op, *xs, x=x)[1].squeeze(-1).tolist())


# --- the arithmetic of currents and potentials -----------------------------------------------------------------------


def test_decays_round_towards_zero() -> None:
    x = np.array([5, -5, 4096, -4096, 1, -1, 0])
    assert decay(x, 1).tolist() == [4, -4, 4095, -4095, 0, 0, 0]
    assert decay(x, 2048).tolist() == [2, -2, 2048, -2048, 0, 0, 0]
    assert decay(x, 0).tolist() == x.tolist()
    assert not decay(x, UNITY).any()


@given(st.integers(-(2**29), 2**29), st.integers(0, UNITY))
def test_decays_are_exact(x: int, amount: int) -> None:
    magnitude = abs(x) * (4096 - amount) >> 12
    assert decay(np.array(float(x)), amount).item() == (magnitude if x > 0 else -magnitude)


def test_a_current_wraps_once() -> None:
    turns = {
        2**23: 2**23,
        2**23 + 1: -(2**23) + 1,
        -(2**23) + 1: -(2**23) + 1,
        -(2**23): 2**23,
        -(2**23) - 1: 2**23 - 1,
        2**24: 0,
        2**25: 2**24,  # and not 0
        -(2**26): -(2**26) + 2**24,
    }
    assert wrap(np.array(list(turns), np.float64)).tolist() == list(turns.values())


# --- cuba_lif --------------------------------------------------------------------------------------------------------


def test_a_spike_needs_more_than_the_threshold() -> None:
    assert sent(CubaLif(5), 5, 0, 1) == [0, 0, 1]
    assert states(CubaLif(5), 5, 0, 1) == [[320, 320], [0, 320], [64, 0]]
    assert sent(CubaLif(5, put(1)), 5) == [1]  # a bias counts 1/64 of the threshold's units
    assert sent(CubaLif(5, put(-1)), 5, 0, 0) == [0, 0, 0]
    assert sent(CubaLif(0), 0, -1, 1, 1) == [0, 0, 0, 1]


def test_the_reset_is_to_zero_and_keeps_the_current() -> None:
    assert states(CubaLif(4, decay_u=0), 3, 0, 0, 0) == [[192, 192], [192, 0], [192, 192], [192, 0]]
    assert sent(CubaLif(4), 100, 0, 5) == [1, 0, 1]  # what was above the threshold is lost


def test_leaks() -> None:
    # u: 640, 320, 160; v: 640, 640 * 3/4 + 320, ...
    assert states(CubaLif(99, decay_u=2048, decay_v=1024), 10, 0, 0) == [[640, 640], [320, 800], [160, 760]]
    assert states(CubaLif(99, decay_v=UNITY), 10, 0) == [[640, 640], [0, 0]]
    assert states(CubaLif(99, put(-7), decay_v=4095), 0, 0) == [[0, -7], [0, -7]]  # -7 / 4096 is rounded to 0


def test_a_current_beyond_24_bits_wraps_and_a_potential_saturates() -> None:
    edge = 2**17
    assert states(CubaLif(edge), edge, 1) == [[2**23, 2**23 - 1], [64, 2**23 - 1]]
    assert states(CubaLif(edge), edge + 1) == [[64 - 2**23, 64 - 2**23]]
    assert sent(CubaLif(9), edge + 1, 2 * edge + 10) == [0, 0]
    assert states(CubaLif(edge), -edge + 1, -edge + 1) == [[64 - 2**23, 64 - 2**23], [64 - 2**23, 1 - 2**23]]
    assert states(CubaLif(edge, put(-9)), -edge)[0] == [2**23, 2**23 - 9]  # saturated after the bias
    assert sent(CubaLif(edge - 1), edge - 1, 1) == [0, 1]  # the largest threshold of 17 bits can be passed


def test_where_a_neuron_starts() -> None:
    op = CubaLif(3, v0=put(3, -2))
    two = replace(CURRENT, shape=(2,))
    assert op.start(2, two, STORE).tolist() == [[[0, 0], [192, -128]]] * 2
    assert run(op, 1, 5, x=two)[0].tolist() == [[1, 0], [1, 1]]


def lif(x: list[int], op: CubaLif, bias: int) -> list[tuple[int, int, int]]:
    """One neuron in plain integers: (spike, u, v) of every step."""
    u, v, trace = 0, 0, []
    for now in x:
        u = (abs(u) * (4096 - op.decay_u) >> 12) * (1 if u > 0 else -1) + (now << 6)
        u = u - 2**24 if u > 2**23 else u + 2**24 if u <= -(2**23) else u
        v = (abs(v) * (4096 - op.decay_v) >> 12) * (1 if v > 0 else -1) + u + bias
        v = min(max(v, 1 - 2**23), 2**23 - 1)
        spike = v > op.threshold << 6
        v = 0 if spike else v
        trace.append((int(spike), u, v))
    return trace


@settings(max_examples=200)
@given(
    st.lists(WHOLE | st.integers(-300, 300), min_size=1, max_size=12),
    st.builds(
        CubaLif,
        st.sampled_from([0, 5, 3000, 2**17 - 1]),
        decay_u=st.integers(0, UNITY) | st.just(UNITY),
        decay_v=st.integers(0, UNITY) | st.just(0),
    ),
    st.integers(-(2**19), 2**19),
)
def test_cuba_lif_in_plain_integers(x: list[int], op: CubaLif, bias: int) -> None:
    spikes, ends = run(replace(op, bias=put(bias)), *x)
    got = [(int(s), int(u), int(v)) for s, (u, v) in zip(spikes.ravel(), ends.squeeze(-1), strict=True)]
    assert got == lif(x, op, bias)


# --- atr_lif ---------------------------------------------------------------------------------------------------------


def test_a_subtractive_reset() -> None:
    op = AtrLif(2)
    assert sent(op, 2, 2, 2, 2) == [1, 0, 1, 0]
    assert states(op, 2, 2, 2) == [[128, 256], [256, 256], [384, 512]]
    assert sent(op, 20, 0, 0, 0, 0, 0) == [1, 1, 1, 1, 1, 0]  # at most one a step, and none is lost
    assert sent(replace(op, v0=put(1)), 1, 0) == [1, 0]
    assert sent(replace(op, bias=put(64)), 0, 0, 0, 0, 0, 0) == [0, 1, 0, 0, 0, 1]
    assert sent(op, -20, 21, 1) == [0, 0, 1]


@settings(max_examples=100)
@given(st.lists(st.integers(-300, 300), min_size=1, max_size=20), st.integers(1, 90), st.integers(-99, 99))
def test_atr_lif_is_integrate_and_fire(x: list[int], theta: int, v0: int) -> None:
    spikes, ends = run(AtrLif(theta, v0=v0), *x)
    want, potentials = run(ops.If(2 * theta, v0=theta + v0), *x)
    assert spikes.tolist() == want.tolist()
    assert ((ends[:, 0] - ends[:, 1]) / 64 + theta).tolist() == potentials.tolist()


def test_atr_lif_holds_24_bits_of_charge() -> None:
    edge = 2**17
    assert states(AtrLif(edge), edge - 1, edge - 1, 1 - edge) == [[2**23 - 64, 0], [2**23 - 1, 0], [63, 0]]
    assert states(AtrLif(1), edge + 1) == [[64 - 2**23, 0]]
    assert sent(AtrLif(edge - 1), edge - 1, edge - 1, edge - 1) == [1, 0, 0]  # no charge is left to fire again


# --- messages --------------------------------------------------------------------------------------------------------


def test_delta_sends_changes() -> None:
    assert sent(Delta(), 7, 7, 7, 5, 0) == [7, 0, 0, -2, -5]
    assert sent(Delta(scale=64), 7, 7, 6) == [448, 0, -64]
    assert sent(Delta(), 0.5, 0.25, x=FLOATS) == [0.5, -0.25]


def test_delta_keeps_small_changes() -> None:
    assert sent(Delta(3), 2, 3, 5, 6, 4, 3) == [0, 3, 0, 3, 0, -3]
    assert states(Delta(3), 2, 3, 5) == [[2, 2], [3, 0], [5, 2]]
    assert sent(Delta(3, 10), 2, 3, -3) == [0, 30, -60]  # the threshold is one of the input


def test_sigma_delta_sends_changes_of_its_activation() -> None:
    assert sent(SigmaDelta(), 5, -7, 1, 4) == [5, -5, 0, 3]
    assert sent(SigmaDelta(activation="none"), 5, -7, 1, 4) == [5, -7, 1, 4]
    assert sent(SigmaDelta(put(3)), 0, -4, 0, 2) == [3, -3, 0, 1]  # a bias comes with the first step
    assert states(SigmaDelta(put(3)), 5, -9) == [[5, 8, 0], [-4, 0, 0]]
    assert sent(SigmaDelta(put(0.5)), 0.25, -1.0, x=FLOATS) == [0.75, -0.75]


def test_sigma_delta_keeps_small_changes() -> None:
    op = SigmaDelta(threshold=4)
    assert sent(op, 3, 1, 2, 3, -1) == [0, 4, 0, 5, 0]
    assert states(op, 3, 1, 2, 3, -1)[-1] == [8, 8, -1]


def test_messages_are_rounded_down() -> None:
    op = SigmaDelta(shift=2, activation="none")
    assert sent(op, 7, -7) == [1, -2]  # the sum is not that of the activation: each message is rounded
    assert sent(op, -1, -3, -4, -5) == [-1, -1, -1, -2]
    assert sent(SigmaDelta(threshold=4, shift=2), 3, 4, -4) == [0, 1, -1]  # the threshold is one of the activation


@given(st.integers(-5000, 5000), st.integers(-5000, 5000), st.integers(0, 7), st.sampled_from(["relu", "none"]))
def test_one_step_of_input_is_computed_exactly(x: int, bias: int, shift: int, activation: str) -> None:
    op = SigmaDelta(put(bias), 0, shift, activation)
    total = sum(sent(op, x, 0, 0))
    type = op.infer((CURRENT,), STORE)
    assert total == op.evaluate([np.array([[float(x)]])], type, STORE).item()
    assert total == (max(x + bias, 0) if activation == "relu" else x + bias) >> shift


def test_sigma_adds_up() -> None:
    assert sent(Sigma(), 5, -7, 0) == [5, -2, -2]
    assert sent(Sigma(put(10)), 5, -7, 0) == [15, 8, 8]
    assert states(Sigma(put(10)), 5, -7) == [5, -2]


def test_what_messages_are_worth() -> None:
    x = replace(CURRENT, unit=0.5)
    assert Delta(scale=64).infer((x,), STORE) == Type((1,), "i32", Domain.MESSAGE, 0.5 / 64)
    assert SigmaDelta(shift=3).infer((x,), STORE) == Type((1,), "i32", Domain.MESSAGE, 4.0)
    assert Sigma().infer((x,), STORE) == x
    assert Delay(2).infer((x,), STORE) == x
    assert CubaLif(1).infer((x,), STORE).domain is Domain.SPIKE
    message = Delta().infer((x,), STORE)
    assert ops.Concat().infer((message, message), STORE).domain is Domain.MESSAGE
    assert ops.Add().infer((message, message), STORE).domain is Domain.CURRENT
    assert ops.Concat().infer((message, replace(message, domain=Domain.SPIKE)), STORE).domain is Domain.CURRENT
    for op in (Delta(), SigmaDelta()):
        assert op.infer((FLOATS,), STORE).unit == 1.0


# --- delays, channels and neurons ------------------------------------------------------------------------------------


def test_delays() -> None:
    assert sent(Delay(0), 1, 2, 3) == [1, 2, 3]
    assert sent(Delay(2), 1, 2, 3, 4) == [0, 0, 1, 2]
    rows = [np.array([[t, -t], [10 * t, -10 * t]]) for t in (1, 2, 3, 4)]
    x = Type((2, 2), "i8", Domain.SPIKE)
    late, last = run(Delay(put(2, 1)), *rows, x=x)
    assert late[:, 0].tolist() == [[0, 0], [0, 0], [1, -1], [2, -2]]
    assert late[:, 1].tolist() == [[0, 0], [10, -10], [20, -20], [30, -30]]
    assert last[-1][:, 0].tolist() == [[4, -4], [3, -3]]  # the newest first


@pytest.mark.parametrize("op", [CubaLif(9), AtrLif(4), SigmaDelta(activation="none"), Sigma()])
def test_biases_per_channel_and_per_neuron(op: Any) -> None:
    x = Type((2, 3), "i32", Domain.CURRENT)
    each = np.array([[-640, -64, 0], [64, 640, 6400]])
    alone = [[run(replace(op, bias=put(b)), 3, -1, 8)[0] for b in row] for row in each.tolist()]
    together, _ = run(replace(op, bias=STORE.put("b", each)), 3, -1, 8, x=x)
    np.testing.assert_array_equal(together, np.array(alone)[..., 0].transpose(2, 0, 1))
    channels, _ = run(replace(op, bias=put(64, 640)), 3, -1, 8, x=x)
    np.testing.assert_array_equal(channels, np.repeat(together[:, 1, :2, None], 3, axis=2))


def test_samples_are_apart() -> None:
    x = np.array([[1.0, 9.0], [9.0, 1.0], [5.0, 5.0]])  # (N, C)
    two = replace(CURRENT, shape=(2,))
    for op in (CubaLif(3, decay_u=700), AtrLif(2), Delta(2), SigmaDelta(threshold=2), Sigma(), Delay(put(1, 0))):
        type = op.infer((two,), STORE)
        state, parts = op.start(3, type, STORE), [op.start(1, type, STORE) for _ in x]
        for _ in range(3):
            state, together = op.step(state, x, type, STORE)
            for i in range(3):
                parts[i], alone = op.step(parts[i], x[i : i + 1], type, STORE)
                np.testing.assert_array_equal(together[i : i + 1], alone)


# --- as a network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "rate"),
    [
        (CubaLif(9), [0, 0, 0.3, 0.9, 1]),
        (CubaLif(9, put(128)), [0, 0.2, 0.5, 1, 1]),
        (AtrLif(5), [0, 0, 0.3, 0.9, 1]),
        (AtrLif(5, put(128)), [0, 0.2, 0.5, 1, 1]),
        (Delta(5, 3), [-15, 0, 9, 27, 60]),
        (SigmaDelta(put(-1), shift=1), [0, 0, 1, 4, 9]),
        (SigmaDelta(put(-1), shift=1, activation="none"), [-3, -1, 1, 4, 9]),
        (Sigma(put(5)), [0, 5, 8, 14, 25]),
        (Delay(3), [-5, 0, 3, 9, 20]),
    ],
)
def test_transfer_functions(op: ops.Stateful, rate: list[float]) -> None:
    x = np.array([[-5.0], [0.0], [3.0], [9.0], [20.0]])
    assert op.evaluate([x], op.infer((CURRENT,), STORE), STORE).ravel().tolist() == pytest.approx(rate)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [CubaLif(1), CubaLif(1, decay_u=9), AtrLif(1), SigmaDelta(), Sigma()])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_beyond_24_bits(op: ops.Stateful, sign: int) -> None:
    run(op, sign * (STATE - 1))
    with pytest.raises(OverflowError, match="synaptic sums of 8388608, beyond the 24 bits"):
        run(op, 0, sign * STATE)


@pytest.mark.parametrize(
    ("op", "most", "steps"),
    [
        (CubaLif(1, decay_u=0), 2**22, 2),  # 2**28 a step, less 2**24 each time that it wraps
        (SigmaDelta(), 2**22, 127),
        (Sigma(), 2**22, 127),
        (Delta(), SUM - 1, 99),
        (Delta(scale=64), SUM // 64 - 1, 99),
    ],
)
def test_states_that_may_overflow_in_lava(op: ops.Stateful, most: int, steps: int) -> None:
    run(op, *[most] * steps)
    with pytest.raises(OverflowError, match=r"beyond 2\*\*29"):
        run(op, *[most] * steps, most + 1, *[most] * 2)


def test_floats_have_no_bounds() -> None:
    for op in (Delta(), SigmaDelta(), Sigma()):
        assert sent(op, 1e12, x=FLOATS) == [1e12]


IMAGE = Type((2, 4, 4), "i32", Domain.CURRENT)
REAL = replace(IMAGE, dtype="f32")


@pytest.mark.parametrize(
    ("op", "x", "message"),
    [
        (CubaLif(1, put(1, 2, 3)), IMAGE, r"bias \(3,\) is neither per channel nor per neuron of \(2, 4, 4\)"),
        (AtrLif(1, STORE.put("b", np.ones((4, 4), int))), IMAGE, "neither per channel nor per neuron"),
        (SigmaDelta(put(1)), IMAGE, "neither per channel nor per neuron"),
        (Sigma(put(1)), REAL, "neither per channel nor per neuron"),
        (CubaLif(1, put(1, 0.5)), IMAGE, "bias must be whole"),
        (AtrLif(1, put(0, -SUM - 1)), IMAGE, "bias must be whole and -536870912 to 536870912"),
        (CubaLif(1, v0=put(1, 2, 3)), IMAGE, "v0 must have one value per channel"),
        (AtrLif(1, v0=put(1)), IMAGE, "v0 must have one value per channel"),
        (CubaLif(1, v0=2**17), IMAGE, "v0 must be whole and -131071 to 131071"),
        (AtrLif(1, v0=put(0, -(2**17))), IMAGE, "v0 must be whole and -131071 to 131071"),
        (CubaLif(-1), IMAGE, "threshold must be whole and 0 to 2147483647"),
        (CubaLif(1, decay_u=4097), IMAGE, "decay_u must be whole and 0 to 4096"),
        (CubaLif(1, decay_v=-1), IMAGE, "decay_v must be whole and 0 to 4096"),
        (AtrLif(0), IMAGE, "theta must be whole and 1 to 2147483647"),
        (Delta(-1), IMAGE, "threshold must be whole and 0 to 2147483647"),
        (Delta(scale=0), IMAGE, "scale must be whole and 1 to 2147483647"),
        (Delta(scale=2), REAL, "a scale among floats"),
        (SigmaDelta(threshold=-1), IMAGE, "threshold must be whole and 0 to 2147483647"),
        (SigmaDelta(shift=-1), IMAGE, "shift must be whole and 0 to 31"),
        (SigmaDelta(shift=1), REAL, "a shift among floats"),
        (SigmaDelta(activation="tanh"), IMAGE, "unknown activation 'tanh'; known: relu, none"),
        (Delay(put(1, 2, 3)), IMAGE, "one delay per channel"),
        (Delay(-1), IMAGE, "steps must be whole and 0 to 2147483647"),
        (Delay(put(0, -1)), IMAGE, "steps must be whole and 0 to 2147483647"),
        (Delay(put(0, 0.5)), IMAGE, "steps must be whole and 0 to 2147483647"),
    ],
)
def test_operands_that_do_not_fit(op: ops.Op, x: Type, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        op.infer((x,), STORE)


def test_without_bytes_shapes_are_checked() -> None:
    elsewhere = Store()
    CubaLif(1, put(1, 2), v0=put(3, 4)).infer((IMAGE,), elsewhere)
    Delay(put(1, 2)).infer((IMAGE,), elsewhere)
    with pytest.raises(ShapeError, match="one delay per channel"):
        Delay(put(1, 2, 3)).infer((IMAGE,), elsewhere)
