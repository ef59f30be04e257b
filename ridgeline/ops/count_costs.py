"""What elementary steps cost, by element, row or pair: shared by the operators' counts."""

from __future__ import annotations

#: Vector operations and exponentials an element of an activation. tanh is one exponential and a
#: division; gelu's error function is counted like one exponential and a short polynomial.
ACTIVATION_COST: dict[str, tuple[int, int]] = {
    "relu": (1, 0),
    "silu": (3, 1),
    "gelu": (8, 1),
    "gelu_tanh": (9, 1),
    "tanh": (3, 1),
}
#: Vector operations an element: square, sum, scale, weight; layer norm also takes the mean
#: (sum, subtract) and adds a bias.
NORM_COST = {"rms": 4, "layer": 7}
#: Vector operations a query-key pair in the softmax: scale, maximum, subtract, sum, divide.
SOFTMAX_COST = 5
#: Vector operations a rotated element: two multiplications and an addition.
ROTATE_COST = 3
#: Vector operations an element of dropout: comparing a random number, and scaling what is kept.
DROPOUT_COST = 2
