"""How far two ways to compute one thing may differ: one table, by kind of comparison and dtype.

`torch.testing.assert_close(found, expected, **within("rounding"))`. A comparison of bits says
`rtol=0, atol=0`."""

import torch

TOLERANCES = {
    # another implementation of the same definition; coefficients of images in [0, 1]
    "oracle": {torch.float64: (0, 1e-9), torch.float32: (0, 2e-6)},
    # the same operations, now and then in another order
    "rounding": {torch.float64: (0, 1e-12), torch.float32: (1e-5, 1e-6)},
    # the same sums by other operations: compiled, exported, batched, in parts
    "reordered": {
        torch.float32: (1e-4, 1e-5),
        torch.float16: (1e-2, 2e-3),
        torch.bfloat16: (0.1, 0.02),
    },
    # derivatives by other operations, which may cancel
    "gradients": {torch.float32: (1e-3, 1e-3)},
    # weights after some steps, in processes that add gradients in another order
    "processes": {torch.float64: (1e-4, 2e-5), torch.float32: (1e-2, 2e-3)},
    # pixels in [0, 1] by an independent library, which rounds to 256 levels or interpolates
    "levels": {torch.float32: (0, 1.5 / 255)},
    "pixels": {torch.float32: (0, 2e-4)},
}


def within(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    "The relative and the absolute tolerance of a kind of comparison."
    rtol, atol = TOLERANCES[kind][dtype]
    return {"rtol": rtol, "atol": atol}
