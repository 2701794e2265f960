"""NbbnClassifier beside scikit-learn's MLPClassifier: time and accuracy on four data sets.

Both have the same widths, batches, epochs and learning rate, and no early end. Batch normalization
is what differs. Accuracies are on a test set that neither has seen, the mean of three seeds.

Run it: python examples/sklearn_compare.py [--smoke]
"""

import sys
import time
import warnings

import numpy as np
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from nbbn import data
from nbbn.sklearn import NbbnClassifier

SMOKE = "--smoke" in sys.argv
warnings.simplefilter("ignore", ConvergenceWarning)


def built_in(load):
    """Load one of scikit-learn's data sets, standardized by its training part."""
    x, y = load(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
    scaler = StandardScaler().fit(x)
    x, x_test = (scaler.transform(part).astype(np.float32) for part in (x, x_test))
    return x, y, x_test, y_test


def mnist():
    """Load MNIST as floats in [0, 1]."""
    found = data.load_mnist()
    x, x_test = (
        images.reshape(len(images), -1).astype(np.float32) / 255
        for images in (found.train_images, found.test_images)
    )
    return x, found.train_labels, x_test, found.test_labels


SETS = {
    "MNIST": (mnist, (256, 128), 1 if SMOKE else 5),
    "digits": (lambda: built_in(datasets.load_digits), (100,), 2 if SMOKE else 50),
    "breast cancer": (lambda: built_in(datasets.load_breast_cancer), (100,), 2 if SMOKE else 50),
    "wine": (lambda: built_in(datasets.load_wine), (100,), 2 if SMOKE else 50),
}

print(f"{'data':<16}{'estimator':<16}{'epochs':>7}{'seconds':>10}{'accuracy':>10}")
for name, (load, hidden, epochs) in SETS.items():
    x, y, x_test, y_test = load()
    for kind in (NbbnClassifier, MLPClassifier):
        # Compiled kernels load once, not in each training.
        kind(hidden, max_iter=1).fit(x[:256], y[:256])
        seconds, scores = [], []
        for seed in range(1 if SMOKE else 3):
            model = kind(
                hidden, batch_size=min(128, len(y)), max_iter=epochs, n_iter_no_change=epochs,
                random_state=seed,
            )  # fmt: skip
            start = time.perf_counter()
            model.fit(x, y)
            seconds.append(time.perf_counter() - start)
            scores.append(model.score(x_test, y_test))
        print(
            f"{name:<16}{kind.__name__:<16}{epochs:>7}{np.median(seconds):>10.2f}"
            f"{np.mean(scores):>10.2%}"
        )
