"""Error of float32 batch normalization against extended precision, nbbn beside PyTorch.

Prints docs/accuracy.md: relative error of the variance and absolute error of the output for data
whose mean is up to a million times its standard deviation, and the worst of 20,000 channels for
batches of 2 to 4096. Fails if a promise of that page is broken, or if PyTorch is missing.

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

Errors of float32 batch normalization against extended precision on the same rounded input, worst
channel. This page is printed by

```bash
python asv_benchmarks/accuracy.py > docs/accuracy.md
```

which fails if the variance is off by more than 2e-7 of itself, or if PyTorch is more accurate in
any row.

## Means that dwarf the standard deviation

Relative error of the variance and absolute error of the output.
"""
CHANNELS_HEAD = """
## The worst of 20,000 channels

Relative error of the variance, and error of the mean in standard deviations. nbbn returns float64
statistics and PyTorch float32 ones.
"""
TAIL = """
How: sums are taken about a value near the mean, of planes in float64, of rows a few values at a
time in float32 and from there up in float64, and merge by Chan's formula; a channel of few values,
or whose values lie far from the first ones, is summed in float64 throughout. The normalization
subtracts the mean in two parts, one that float32 holds exactly and the rest. A constant channel has
a variance of exactly 0 and an output of exactly beta, whatever its value, where gamma / sqrt(eps)
is finite in the type of x: in float32, with a gamma of 1, for every eps from 1e-77."""
LAYOUTS = {
    "rows (4096, 64)": ((4096, 64), 1),
    "channels last (64, 8, 8, 32)": ((64, 8, 8, 32), 3),
    "channels first (64, 32, 8, 8)": ((64, 32, 8, 8), 1),
    "channels first (4, 32, 32, 32)": ((4, 32, 32, 32), 1),
}
VARIANCE = 2e-7
CHANNELS, WIDTH = 20_000, 250
BATCHES = (2, 5, 16, 64, 4096)


def truth(x, axis):
    """Mean, biased variance and normalized values, the mean and variance flat."""
    others = tuple(d for d in range(x.ndim) if d != axis)
    x = x.astype(np.longdouble)
    mean = x.mean(others, keepdims=True)
    var = ((x - mean) ** 2).mean(others, keepdims=True)
    return mean.reshape(-1), var.reshape(-1), (x - mean) / np.sqrt(var + 1e-5)


def by_nbbn(x, axis):
    y, stats = F.batch_norm_train(x, axis=axis)
    return stats.mean, stats.var, y


def by_torch(x, axis):
    mean, var = torch.zeros(x.shape[axis]), torch.zeros(x.shape[axis])
    y = torch.nn.functional.batch_norm(
        torch.from_numpy(np.moveaxis(x, axis, 1)), mean, var, training=True, momentum=1.0
    )
    count = x.size // x.shape[axis]
    biased = var.numpy().astype(float) * (count - 1) / count
    return mean.numpy().astype(float), biased, np.moveaxis(y.numpy(), 1, axis)


PEERS = {"nbbn": by_nbbn, f"PyTorch {torch.__version__}": by_torch}


def table(*columns):
    """Print the head of a table with these columns for every peer."""
    cells = [f" {name}: {column} |" for name in PEERS for column in columns]
    print("| data | mean/std |" + "".join(cells))
    print("|---|---|" + "---|" * len(cells))


def row(label, ratio, errors):
    """Print a row: two errors for every peer."""
    print(f"| {label} | {int(ratio):,} |" + "".join(f" {e:.1e} |" for pair in errors for e in pair))


def large_means(rng):
    """Print the table of large means; yield what is broken."""
    table("var", "y")
    for label, (shape, axis) in LAYOUTS.items():
        for ratio in (1e3, 1e4, 1e5, 1e6):
            x = (rng.standard_normal(shape) + ratio).astype(np.float32)
            _, var, y = truth(x, axis)
            errors = []
            for peer in PEERS.values():
                _, found_var, found_y = peer(x, axis)
                errors.append((np.abs(found_var / var - 1).max(), np.abs(found_y - y).max()))
            row(label, ratio, errors)
            if not (errors[0][0] < min(VARIANCE, errors[1][0]) and errors[0][1] < errors[1][1]):
                yield f"{label}, {ratio:g}"


def worst(rng, shape, ratio):
    """Errors (var, mean) of every peer, each the worst of 20,000 channels."""
    errors = np.zeros((len(PEERS), 2))
    for _ in range(CHANNELS // WIDTH):
        x = rng.standard_normal(shape, np.float32) + np.float32(ratio)
        mean, var, _ = truth(x, 1)
        # Few values may all be the same.
        differ = var > 0
        for errors_of_peer, peer in zip(errors, PEERS.values(), strict=True):
            found_mean, found_var, _ = peer(x, 1)
            lost = np.abs(found_var[differ] / var[differ] - 1)
            shift = np.abs(found_mean - mean)[differ] / np.sqrt(var[differ])
            np.maximum(errors_of_peer, (lost.max(), shift.max()), out=errors_of_peer)
    return errors


def many_channels(rng):
    """Print the table of the worst channels; yield what is broken."""
    table("var", "mean")
    for M in BATCHES:
        plane = (1, WIDTH, M) if M < 64 else (M // 64, WIDTH, 8, 8)
        shown = ", ".join("C" if size == WIDTH else str(size) for size in plane)
        for label, shape in ((f"rows ({M}, C)", (M, WIDTH)), (f"planes ({shown})", plane)):
            for ratio in (0, 1e3):
                errors = worst(rng, shape, ratio)
                row(label, ratio, errors)
                (var, mean), (other_var, other_mean) = errors
                if not (var < min(VARIANCE, other_var) and mean <= other_mean):
                    yield f"{label}, {ratio:g}"


rng = np.random.default_rng(0)
print(HEAD)
broken = list(large_means(rng))
print(CHANNELS_HEAD)
broken += many_channels(rng)
print(TAIL)
if broken:
    sys.exit(f"the promise is broken, or PyTorch is more accurate, for {'; '.join(broken)}")
