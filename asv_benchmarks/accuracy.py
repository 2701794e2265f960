"""Error of float32 batch normalization against extended precision, nbbn beside PyTorch.

Prints docs/accuracy.md: relative error of the variance and absolute error of the output, worst
channel, for data whose mean is up to a million times its standard deviation. Fails if nbbn is not
the more accurate one in every row, or if PyTorch is missing.

Run it: python asv_benchmarks/accuracy.py > docs/accuracy.md
"""

import sys

import numpy as np

import nbbn.functional as F  # noqa: N812

try:
    import torch
except ImportError:
    sys.exit("PyTorch is what nbbn is compared with: pip install torch")

HEAD = """# Accuracy

Float32 batch normalization of data whose mean dwarfs its standard deviation, against extended
precision on the same rounded input: relative error of the variance and absolute error of the
output, worst channel.

```bash
python asv_benchmarks/accuracy.py > docs/accuracy.md
```
"""
TAIL = """
How: sums are shifted by a value from the data and merge in float64 by Chan's formula, and the
normalization subtracts the mean in two parts, one that float32 holds exactly and the rest."""
LAYOUTS = {
    "rows (4096, 64)": ((4096, 64), 1),
    "channels last (64, 8, 8, 32)": ((64, 8, 8, 32), 3),
    "channels first (64, 32, 8, 8)": ((64, 32, 8, 8), 1),
}


def truth(x, axis):
    others = tuple(d for d in range(x.ndim) if d != axis)
    x = x.astype(np.longdouble)
    mean = x.mean(others, keepdims=True)
    var = ((x - mean) ** 2).mean(others, keepdims=True)
    return var.reshape(-1), (x - mean) / np.sqrt(var + 1e-5)


def by_nbbn(x, axis):
    y, stats = F.batch_norm_train(x, axis=axis)
    return stats.var, y


def by_torch(x, axis):
    mean, var = torch.zeros(x.shape[axis]), torch.zeros(x.shape[axis])
    y = torch.nn.functional.batch_norm(
        torch.from_numpy(np.moveaxis(x, axis, 1)), mean, var, training=True, momentum=1.0
    )
    count = x.size // x.shape[axis]
    return var.numpy().astype(float) * (count - 1) / count, np.moveaxis(y.numpy(), 1, axis)


peers = {"nbbn": by_nbbn, f"PyTorch {torch.__version__}": by_torch}
rng = np.random.default_rng(0)
print(HEAD)
print("| data | mean/std |" + "".join(f" {name}: var | {name}: y |" for name in peers))
print("|---|---|" + "---|---|" * len(peers))
lost = []
for label, (shape, axis) in LAYOUTS.items():
    for ratio in (1e3, 1e4, 1e5, 1e6):
        x = (rng.standard_normal(shape) + ratio).astype(np.float32)
        var, y = truth(x, axis)
        errors = []
        for peer in peers.values():
            found_var, found_y = peer(x, axis)
            errors.append((np.abs(found_var / var - 1).max(), np.abs(found_y - y).max()))
        cells = (f" {error:.1e} |" for pair in errors for error in pair)
        print(f"| {label} | {ratio:.0e} |" + "".join(cells))
        if not (errors[0][0] < errors[1][0] and errors[0][1] < errors[1][1]):
            lost.append(f"{label}, {ratio:.0e}")
print(TAIL)
if lost:
    sys.exit(f"PyTorch is as accurate or more for {'; '.join(lost)}")
