"""What GANs with and without batch norm draw, judged by a CNN that knows digits.

Trains what gan.py trains, in every variant and with three seeds, and the CNN, where their folders
have none yet. The CNN looks at 10,000 images of each generator. Prints a table, writes all numbers
to gan.csv, and draws gan_samples.png and gan_measures.png.

- Confidence: the mean probability of the class that the CNN finds likeliest.
- Entropy of the classes that it finds, in nats: ln 10 = 2.303 where all are drawn equally often.
- Distance: the Frechet distance (Heusel et al., arXiv:1706.08500) of the CNN's last hidden layer on
  these images to the same on the test set, both taken for normal distributions.

Run it: python examples/gan_judge.py [--judge runs/cnn] [--out runs/gans] [--epochs 1] [--smoke]
"""

import argparse
import csv
import pathlib

import gan
import numpy as np

import nbbn
from nbbn import checkpoint, data, optim, train

# Which nets have batch norm, and what the discriminator normalizes: see gan.py.
VARIANTS = {
    "both, apart": ("both", "apart"),
    "both, together": ("both", "together"),
    "both, half": ("both", "half"),
    "generator only": ("generator", "apart"),
    "discriminator only": ("discriminator", "apart"),
    "none": ("none", "apart"),
}
MEASURES = ("confidence", "entropy", "distance", "distance by batch statistics",
            "believed beside real ones", "believed alone")  # fmt: skip
SEEDS = 3


class Judge:
    """A CNN, as `nbbn train --model cnn --out FOLDER` trains it, and what it says of images."""

    def __init__(self, folder, mnist):
        cnn = nbbn.cnn((28, 28), 10, dropout=0.3, rng=0)
        saved = checkpoint.latest(folder)
        if saved is None:
            epochs, batches = 8, data.Batches(mnist.train_images, mnist.train_labels, 128, rng=0)
            rate = optim.OneCycle(0.1, epochs * len(batches))
            optimizer = optim.SGD(cnn.parameters(), rate, momentum=0.9, weight_decay=5e-4)
            callbacks = [checkpoint.Checkpoints(folder, best=False)]
            train.fit(cnn, batches, optimizer, epochs=epochs, callbacks=callbacks)
        else:
            checkpoint.restore(saved, cnn)
        test = data.Batches(mnist.test_images, mnist.test_labels, 1000, shuffle=False)
        print(f"test accuracy of the judge: {train.evaluate(cnn, test).accuracy:.2%}", flush=True)
        self.body, self.head = nbbn.Sequential(*cnn.layers[:-1]).eval(), cnn.layers[-1]
        self.test = self.features(pixels(mnist.test_images))

    def features(self, images):
        """Map images (N, 784) in [0, 1] to the last hidden layer (N, 128)."""
        return gan.in_parts(self.body, images, 1000)

    def measure(self, images):
        """Confidence, entropy of the classes, distance to the test set."""
        features = self.features(images)
        probabilities = nbbn.functional.softmax(self.head(features).data)
        _, counts = np.unique(probabilities.argmax(axis=1), return_counts=True)
        shares = counts / len(images)
        entropy = (shares * np.log(1 / shares)).sum()
        return probabilities.max(axis=1).mean(), entropy, frechet(features, self.test)


def frechet(a, b):
    """Squared Frechet distance between the normal distributions that fit a and b, (N, features)."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(axis=0), np.cov(x.T)) for x in (a, b))
    # The trace of a matrix's square root, where units that are always 0 make it singular.
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(0)).sum()
    return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * root


def pixels(images):
    """Bytes (N, 28, 28) as rows (N, 784) in [0, 1]."""
    return images.reshape(-1, gan.PIXELS) / np.float32(255)


def with_batch_statistics(generator, noise):
    """Draw as in training, by the statistics of batches of the size that it had."""
    whole = len(noise) // gan.BATCH * gan.BATCH
    return (gan.in_parts(generator, noise[:whole], gan.BATCH) + 1) / 2


def believed(net, real, noise):
    """Mean probability of being real that generated images get, beside real ones and alone."""
    logits = []
    generated = net.generator(noise).data
    for images in (np.concatenate([2 * real - 1, generated]), generated):
        logits.append(net.discriminator(images).data[-len(noise) :])
    return [nbbn.functional.sigmoid(part).mean() for part in logits]


def main():
    """Train what is lacking, measure, write and draw."""
    parser = argparse.ArgumentParser(description="Measure GANs with and without batch norm.")
    parser.add_argument("--judge", type=pathlib.Path, default=pathlib.Path("runs/cnn"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/gans"))
    parser.add_argument("--epochs", type=int, default=1, help="of each GAN")
    parser.add_argument("--smoke", action="store_true", help="little of all, to see that it works")
    given = parser.parse_args()
    mnist, out, of_judge = data.load_mnist(), given.out, given.judge
    variants, seeds, count, epochs = VARIANTS, SEEDS, 10_000, given.epochs
    if given.smoke:
        variants, seeds, count, epochs = {"both, half": VARIANTS["both, half"]}, 1, 500, 1
        mnist = data.Dataset(*(part[:640] for part in mnist))
        out, of_judge = pathlib.Path("runs/smoke-gans"), pathlib.Path("runs/smoke-judge")

    judge = Judge(of_judge, mnist)
    noise = np.random.default_rng(2).standard_normal((count, gan.NOISE), dtype=np.float32)
    real = pixels(mnist.train_images[:count])
    samples = {"training images": real}
    # Name and seed, and then what MEASURES says.
    results = [("training images", 0, *judge.measure(real), *[np.nan] * 3)]
    for name, (norm, batches) in variants.items():
        for seed in range(seeds):
            folder = out / f"{norm}-{batches}-{seed}"
            net = gan.train_gan(folder, epochs, mnist, norm, batches, seed)
            images = gan.draw(net.generator, noise)
            measures = judge.measure(images)
            of_batches = np.nan
            if norm in ("both", "generator"):
                of_batches = judge.measure(with_batch_statistics(net.generator, noise))[2]
            beliefs = believed(net, real[: gan.BATCH], noise[: gan.BATCH])
            results.append((name, seed, *measures, of_batches, *beliefs))
            samples.setdefault(name, images)
    write(out, results)
    of_variants = {name: np.array([row[2:] for row in results if row[0] == name])
                   for name in samples}  # fmt: skip
    print_table(of_variants)
    draw_samples(out / "gan_samples.png", samples)
    draw_measures(out / "gan_measures.png", of_variants)


def write(out, results):
    """Write all numbers."""
    with open(out / "gan.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("batch norm", "seed", *MEASURES))
        table.writerows((*row[:2], *(f"{value:.5g}" for value in row[2:])) for row in results)


def print_table(of_variants):
    """Print the mean of each measure over the seeds, and the range of the distance."""
    print("\n| batch norm | confidence | entropy | distance | lowest | highest |")
    print("|---|---|---|---|---|---|")
    for name, values in of_variants.items():
        confidence, entropy, distance, *_ = values.mean(axis=0)
        low, high = values[:, 2].min(), values[:, 2].max()
        print(f"| {name} | {confidence:.3f} | {entropy:.3f} | {distance:.2f} | {low:.2f} | "
              f"{high:.2f} |")  # fmt: skip
    print("\n| batch norm | generated images believed, beside real ones | alone |\n|---|---|---|")
    for name, values in of_variants.items():
        if name.startswith("both"):
            beside, alone = values.mean(axis=0)[-2:]
            print(f"| {name} | {beside:.3f} | {alone:.3f} |")


def draw_samples(path, samples):
    """Draw 24 images of each variant side by side."""
    import matplotlib.pyplot as plt

    columns = (len(samples) + 1) // 2
    size = 2.2 * columns, 2.4
    figure, axes = plt.subplots(2, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, images) in zip(axes.flat, samples.items(), strict=False):
        axis.imshow(gan.grid(images[:24], 8), cmap="gray")
        axis.set_title(name, fontsize=9)
    figure.savefig(path, dpi=100)


def draw_measures(path, of_variants):
    """Draw each measure of each variant, one point a seed; lines show those of real images."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True, layout="constrained")
    for column, axis in enumerate(axes):
        for place, values in enumerate(of_variants.values()):
            axis.plot(values[:, column], np.full(len(values), place), "o", alpha=0.6)
        axis.axvline(of_variants["training images"][0, column], color="gray", lw=1, ls=":")
        axis.set(xlabel=MEASURES[column], yticks=range(len(of_variants)), yticklabels=of_variants)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
