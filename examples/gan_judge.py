"""What GANs with and without batch norm draw, judged by a CNN that knows digits.

Trains what gan.py trains, in every variant and with three seeds, and the CNN, unless OUT has them.
The CNN looks at 10,000 images of each generator. Prints a table, writes all numbers to gan.csv, and
draws gan_samples.png and gan_measures.png.

- Confidence: the mean probability of the class that the CNN finds likeliest.
- Entropy of the classes that it finds, in nats: ln 10 = 2.303 where all are drawn equally often.
- Frechet distance (Heusel et al., arXiv:1706.08500) of the CNN's last hidden layer on these images
  to the same on the test set, both taken for normal distributions.

Run it: python examples/gan_judge.py [--out runs/gans] [--epochs 2] [--smoke]
"""

import argparse
import csv
import pathlib

import gan
import numpy as np
import scipy.linalg

import nbbn
from nbbn import checkpoint, data, optim, train

# Which nets have batch norm, and what the discriminator normalizes: see gan.py.
VARIANTS = (
    ("both", "apart"), ("both", "together"), ("both", "half"),
    ("generator", "apart"), ("discriminator", "apart"), ("none", "apart"),
)  # fmt: skip
MEASURES = ("confidence", "entropy", "Frechet distance", "distance, batch statistics")


class Judge:
    """A CNN that was trained as `nbbn train --model cnn` does, and what it says of images."""

    def __init__(self, path, epochs, mnist):
        cnn = nbbn.cnn((28, 28), 10, dropout=0.3, rng=0)
        if path.exists():
            checkpoint.restore(checkpoint.load(path), cnn)
        else:
            batches = data.Batches(mnist.train_images, mnist.train_labels, 128, rng=0)
            rate = optim.OneCycle(0.1, epochs * len(batches))
            optimizer = optim.SGD(cnn.parameters(), rate, momentum=0.9, weight_decay=5e-4)
            train.fit(cnn, batches, optimizer, epochs=epochs)
            checkpoint.save(path, cnn)
        test = data.Batches(mnist.test_images, mnist.test_labels, 1000, shuffle=False)
        print(f"test accuracy of the judge: {train.evaluate(cnn, test).accuracy:.2%}", flush=True)
        self.body, self.head = nbbn.Sequential(*cnn.layers[:-1]).eval(), cnn.layers[-1]
        self.test = self.features(mnist.test_images.reshape(-1, gan.PIXELS) / np.float32(255))

    def features(self, images):
        """Map images (N, 784) in [0, 1] to the last hidden layer (N, 128)."""
        return np.concatenate([self.body(part).data for part in np.split(images, 10)])

    def measure(self, images):
        """Confidence, entropy of the classes, distance to the test set."""
        features = self.features(images)
        probabilities = nbbn.functional.softmax(self.head(features).data)
        shares = np.bincount(probabilities.argmax(axis=1), minlength=10) / len(images)
        entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum()
        return probabilities.max(axis=1).mean(), entropy, frechet(features, self.test)


def frechet(a, b):
    """Squared Frechet distance between the normal distributions that fit a and b, (N, 128)."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(axis=0), np.cov(x.T)) for x in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)


def with_batch_statistics(generator, noise):
    """Draw as in training, by the statistics of batches of the size that it had."""
    count = len(noise) // gan.BATCH
    parts = np.split(noise[: count * gan.BATCH], count)
    return (np.concatenate([generator(part).data for part in parts]) + 1) / 2


def main():
    """Train what is lacking, measure, write and draw."""
    parser = argparse.ArgumentParser(description="Measure GANs with and without batch norm.")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=2, help="of each GAN")
    parser.add_argument("--smoke", action="store_true", help="little of all, to see that it works")
    given = parser.parse_args()
    mnist = data.load_mnist()
    out = given.out or pathlib.Path("runs/smoke-gans" if given.smoke else "runs/gans")
    variants, seeds, count, epochs, judges_epochs = VARIANTS, 3, 10_000, given.epochs, 5
    if given.smoke:
        mnist = gan.first(mnist, 1280)
        variants, seeds, count, epochs, judges_epochs = VARIANTS[::5], 1, 500, 1, 1

    judge = Judge(out / "judge.safetensors", judges_epochs, mnist)
    noise = np.random.default_rng(2).standard_normal((count, gan.NOISE), dtype=np.float32)
    real = mnist.train_images[:count].reshape(count, -1) / np.float32(255)
    results = [("training images", "", 0, *judge.measure(real), np.nan)]
    samples = {"training images": real[:40]}
    for norm, batches in variants:
        for seed in range(seeds):
            net = gan.train_gan(
                out / f"{norm}-{batches}-{seed}", epochs, mnist, norm, batches, seed
            )
            images = gan.draw(net.generator, noise)
            moved = judge.measure(with_batch_statistics(net.generator, noise))[2]
            results.append((norm, batches, seed, *judge.measure(images), moved))
            if seed == 0:
                samples[f"{norm}, {batches}"] = images[:40]
    write(out, results)
    print_table(results)
    draw_samples(out / "gan_samples.png", samples)
    draw_measures(out / "gan_measures.png", results)


def write(out, results):
    """Write all numbers."""
    with open(out / "gan.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("norm", "batches", "seed", *MEASURES))
        table.writerows((*row[:3], *(f"{value:.5g}" for value in row[3:])) for row in results)


def by_variant(results):
    """Yield each variant's name and its measures (seeds, 4)."""
    for variant in dict.fromkeys(row[:2] for row in results):
        yield (
            ", ".join(filter(None, variant)),
            np.array([row[3:] for row in results if row[:2] == variant]),
        )


def print_table(results):
    """Print the mean of each measure over the seeds, and the range of the distance."""
    print("\n| batch norm, batches | confidence | entropy | distance | lowest | highest |")
    print("|---|---|---|---|---|---|")
    for name, values in by_variant(results):
        confidence, entropy, distance, _ = values.mean(axis=0)
        print(f"| {name} | {confidence:.3f} | {entropy:.3f} | {distance:.2f} | "
              f"{values[:, 2].min():.2f} | {values[:, 2].max():.2f} |")  # fmt: skip


def draw_samples(path, samples):
    """Draw samples of the variants side by side."""
    import matplotlib.pyplot as plt

    columns = (len(samples) + 1) // 2
    figure, axes = plt.subplots(2, columns, figsize=(2.2 * columns, 4.2), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, images) in zip(axes.flat, samples.items(), strict=False):
        axis.imshow(gan.grid(images, 8), cmap="gray")
        axis.set_title(name, fontsize=9)
    figure.savefig(path, dpi=110)


def draw_measures(path, results):
    """Draw each measure of each variant, one point a seed."""
    import matplotlib.pyplot as plt

    variants = dict(by_variant(results))
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
    for column, (axis, title) in enumerate(zip(axes, MEASURES, strict=False)):
        for place, values in enumerate(variants.values()):
            axis.plot(values[:, column], np.full(len(values), place), "o", alpha=0.6)
        axis.axvline(variants["training images"][0, column], color="gray", lw=1, ls=":")
        axis.set(xlabel=title, yticks=range(len(variants)), yticklabels=variants)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
