"""A training that may be interrupted at any time: start it again and it goes on where it was.

What `nbbn train --out runs/digits --resume auto` does, in the public API.

Run it: python examples/resumable.py [--smoke]
"""

import sys

import numpy as np

import nbbn
from nbbn import data, optim, train
from nbbn.train import checkpoint
from nbbn.train.callbacks import EarlyStopping, StopOnSignal
from nbbn.train.logs import LogFile
from nbbn.train.progress import Lines

SMOKE = "--smoke" in sys.argv
EPOCHS, FOLDER = (2, "runs/smoke") if SMOKE else (20, "runs/digits")

rng = np.random.default_rng(0)
mnist = data.load_mnist()
rows, held = data.split(len(mnist.train_labels), 0.1, rng=0)
rows = rows[:2000] if SMOKE else rows
mean, std = data.standardization(mnist.train_images, rows)
batches = data.Batches(
    mnist.train_images, mnist.train_labels, 128, rows=rows, mean=mean, std=std, rng=rng
)
validation = data.Batches(
    mnist.train_images, mnist.train_labels, 1000, rows=held, mean=mean, std=std, shuffle=False
)
model = nbbn.mlp((784, 512, 512, 10), dropout=0.4, rng=rng)
optimizer = optim.AdamW(
    model.parameters(), lr=optim.OneCycle(6e-3, EPOCHS * len(batches)), weight_decay=0.05
)
signals = StopOnSignal()  # Ctrl-C finishes the step
callbacks = [
    signals,
    EarlyStopping(patience=5),
    Lines(),
    LogFile(f"{FOLDER}/log.jsonl"),
    checkpoint.Checkpoints(FOLDER, every=200),  # last: it covers what the others have written
]
history = train.fit(
    model, batches, optimizer, epochs=EPOCHS, validation=validation,
    callbacks=callbacks, resume=checkpoint.latest(FOLDER),
)  # fmt: skip
if signals.signum is not None:
    sys.exit(signals.status)  # stopped and saved, not trained
print(f"{len(history)} epochs, {optimizer.step_count} steps; the folder is {FOLDER}")
