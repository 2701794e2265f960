"""Sparse rows beside dense ones: memory and time of the same training on bags of words.

Made-up documents of about 100 words each out of 20,000, by Zipf's law, with a topic each: 0.5 % of
the elements are not 0. The same net trains on a CSR matrix and on the array that it stands for, in
turns; losses agree to rounding. Prints what the data take, and the time of a step.

Run it: python examples/sparse_text.py [--smoke]
"""

import sys
import time

import numpy as np
from scipy import sparse

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

SMOKE = "--smoke" in sys.argv
DOCUMENTS, WORDS, LENGTH, TOPICS = (512, 2_000, 10, 5) if SMOKE else (4_096, 20_000, 100, 20)
STEPS = 8 if SMOKE else 96

rng = np.random.default_rng(0)
topics = rng.integers(0, TOPICS, DOCUMENTS)
# Each topic has an order of the words of its own; the first ones are the most frequent.
orders = np.array([rng.permutation(WORDS) for _ in range(TOPICS)])
ranks = rng.zipf(1.2, (DOCUMENTS, 2 * LENGTH)) % WORDS
words = np.where(rng.random(ranks.shape) < 0.5, orders[topics[:, None], ranks], ranks)
rows = np.repeat(np.arange(DOCUMENTS), words.shape[1])
counts = sparse.csr_matrix((np.ones(words.size, np.float32), (rows, words.ravel())),
                           (DOCUMENTS, WORDS))  # fmt: skip
counts.data = np.log1p(counts.data)


def training(x):
    """A net, and the batches it trains on, for ever."""
    rng = np.random.default_rng(0)
    model = nbbn.mlp((WORDS, 128, TOPICS), rng=rng)
    optimizer = optim.SGD(model.parameters(), 0.1)
    step = train.record_step(model, losses.cross_entropy, optimizer)
    batches = data.Batches(x, topics, 128, rng=rng)
    while True:
        for batch in batches:
            start = time.perf_counter()
            loss = step(*batch)
            yield time.perf_counter() - start, loss


dense = counts.toarray()
held = counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes
print(f"{DOCUMENTS} documents, {counts.nnz / dense.size:.2%} of {WORDS} words")
print(f"data: {held / 2**20:.1f} MiB sparse, {dense.nbytes / 2**20:.1f} MiB dense")
contenders = {"sparse": training(counts), "dense": training(dense)}
found = {name: [] for name in contenders}
for _ in range(STEPS):
    for name, steps in contenders.items():
        found[name].append(next(steps))
for name, steps in found.items():
    # The first two steps record, and the first compiles.
    times = [seconds for seconds, _ in steps[2:]]
    print(f"{name}: {1e3 * np.median(times):.2f} ms a step, last loss {steps[-1][1]:.4f}")
