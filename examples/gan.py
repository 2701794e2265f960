"""A GAN that draws digits, after Radford et al. (arXiv:1511.06434), with batch norm and without.

The discriminator learns to tell generated images from real ones, the generator to fool it, each in
its turn on every batch. Writes a checkpoint and a picture of samples after every epoch. Started
again, it goes on where it was, and ends with the same bits. gan_judge.py measures what it draws.

Run it: python examples/gan.py [--out runs/gan] [--epochs 2] [--seed 0] [--smoke]
                               [--norm both|none|generator|discriminator]
                               [--batches apart|together|half]

--norm says which of the nets has batch normalization. --batches says what the discriminator
normalizes: real and generated images apart, or both together as one batch; half of it, that is
together in its own turn, and generated images alone in the generator's.
"""

import argparse
import pathlib

import numpy as np

import nbbn
from nbbn import checkpoint, data, ops, optim, train
from nbbn.nn import losses

PIXELS, NOISE, BATCH = 28 * 28, 64, 64
NORMS = ("both", "none", "generator", "discriminator")
# Whether the discriminator sees both kinds as one batch: in its own turn, in the generator's turn.
BATCHES = {"apart": (False, False), "together": (True, True), "half": (True, False)}


def norms(channels, wanted):
    """A layer in a list, or none: where there is no batch norm the layer before has a bias."""
    return [nbbn.BatchNorm(channels)] if wanted else []


def make_generator(normed, rng):
    """Make what maps noise (N, 64) to images (N, 784) in [-1, 1].

    Weights are He's, not Radford's normal ones of 0.02, which are too small without batch norm.
    """
    return nbbn.Sequential(
        nbbn.Dense(NOISE, 32 * 7 * 7, bias=not normed, rng=rng),
        nbbn.Unflatten((32, 7, 7)),
        *norms(32, normed),
        nbbn.ReLU(),
        nbbn.ConvTranspose2d(32, 16, 4, stride=2, padding=1, bias=not normed, rng=rng),
        *norms(16, normed),
        nbbn.ReLU(),
        nbbn.ConvTranspose2d(16, 1, 4, stride=2, padding=1, rng=rng),
        nbbn.Tanh(),
        nbbn.Flatten(),
    )


def make_discriminator(normed, rng):
    """Make what maps images (N, 784) to logits (N, 1), positive where they look real."""
    return nbbn.Sequential(
        nbbn.Unflatten((1, 28, 28)),
        nbbn.Conv2d(1, 16, 4, stride=2, padding=1, rng=rng),
        nbbn.LeakyReLU(0.2),
        nbbn.Conv2d(16, 32, 4, stride=2, padding=1, bias=not normed, rng=rng),
        *norms(32, normed),
        nbbn.LeakyReLU(0.2),
        nbbn.Flatten(),
        nbbn.Dense(32 * 7 * 7, 1, rng=rng),
    )


class GAN(nbbn.Module):
    """Both nets, and what they were made with: a checkpoint of other settings does not fit."""

    def __init__(self, norm="both", batches="apart", seed=0, rng=None):
        self.norm, self.batches, self.seed = norm, batches, seed
        self.generator = make_generator(norm in ("both", "generator"), rng)
        self.discriminator = make_discriminator(norm in ("both", "discriminator"), rng)


class Turn(nbbn.Module):
    """What one net learns from: x (N, 784 + 64), real images with noise beside them, to logits."""

    def __init__(self, gan, together):
        self.generator, self.discriminator = gan.generator, gan.discriminator
        self.together = together


class DiscriminatorsTurn(Turn):
    """Logits of the real images, and then of the generated ones, (2N, 1)."""

    def forward(self, x):
        """Judge both."""
        real, generated = x[:, :PIXELS], self.generator(x[:, PIXELS:])
        if self.together:
            return self.discriminator(ops.concatenate([real, generated]))
        return ops.concatenate([self.discriminator(real), self.discriminator(generated)])


class GeneratorsTurn(Turn):
    """Logits of the generated images, (N, 1)."""

    def forward(self, x):
        """Judge the generated ones, perhaps beside the real ones."""
        real, generated = x[:, :PIXELS], self.generator(x[:, PIXELS:])
        if self.together:
            return self.discriminator(ops.concatenate([real, generated]))[x.shape[0] :]
        return self.discriminator(generated)


class Training:
    """A GAN in training: `epoch` by epoch, `save` and `load` in between."""

    def __init__(self, images, labels, norm, batches, seed):
        self.rng = np.random.default_rng(seed)
        self.gan = gan = GAN(norm, batches, seed, self.rng)
        # In [-1, 1], as the generator's. A checkpoint has rng's state as that of the batches.
        self.batches = data.Batches(
            images, labels, BATCH, mean=0.5, std=0.5, drop_last=True, rng=self.rng
        )
        self.nets = [gan.discriminator.parameters(), gan.generator.parameters()]
        groups = [{"params": parameters} for parameters in self.nets]
        self.optimizer = optim.Adam(groups, lr=1e-3, betas=(0.5, 0.999))
        own, others = BATCHES[batches]
        turns = DiscriminatorsTurn(gan, own), GeneratorsTurn(gan, others)
        # All a turn does is apply layers to its input: from its third step on it is replayed.
        self.steps = [
            train.record_step(turn, losses.binary_cross_entropy, self.optimizer) for turn in turns
        ]
        # The discriminator shall tell both apart; the generator's images shall pass for real.
        ones = np.ones((BATCH, 1), np.float32)
        self.targets = [np.concatenate([ones, 0 * ones]), ones]
        self.history = []

    def epoch(self):
        """Train on every image once; append the mean losses of both nets to the history."""
        sums = np.zeros(2)
        for images, _ in self.batches:
            noise = self.rng.standard_normal((BATCH, NOISE), dtype=np.float32)
            x = np.hstack([images, noise])
            sums += [self.take(turn, x) for turn in (0, 1)]
        self.history.append((sums / len(self.batches)).tolist())

    def take(self, turn, x):
        """Let the discriminator (turn 0) or the generator (1) learn from x; return its loss.

        The optimizer leaves parameters alone that get no gradient: the other net's.
        """
        for net, parameters in enumerate(self.nets):
            for parameter in parameters:
                parameter.requires_grad = net == turn
        return self.steps[turn](x, self.targets[turn])

    def save(self, path):
        """Write a checkpoint."""
        progress = {"history": self.history}
        checkpoint.save(path, self.gan, self.optimizer, self.batches, progress=progress)

    def load(self, path):
        """Go on where a checkpoint was written."""
        saved = checkpoint.load(path)
        checkpoint.restore(saved, self.gan, self.optimizer, self.batches)
        self.history = saved.progress["history"]


def in_parts(net, x, rows):
    """Apply a net to some rows at a time."""
    return np.concatenate([net(x[i : i + rows]).data for i in range(0, len(x), rows)])


def draw(generator, noise):
    """Map noise to images (N, 784) in [0, 1], by the running statistics."""
    generator.eval()
    images = in_parts(generator, noise, 1000)
    generator.train()
    return (images + 1) / 2


def grid(images, columns=10):
    """Images (N, 784) in rows of `columns`, as one picture."""
    rows = len(images) // columns
    return images.reshape(rows, columns, 28, 28).swapaxes(1, 2).reshape(rows * 28, -1)


def save_picture(path, images):
    """Write images (N, 784) in [0, 1] as a PNG."""
    from matplotlib.image import imsave

    imsave(path, grid(images), cmap="gray", vmin=0, vmax=1)


def train_gan(out, epochs, mnist, norm="both", batches="apart", seed=0):
    """Train a GAN, or what is left of that, and return it; `out` has its files."""
    training = Training(mnist.train_images, mnist.train_labels, norm, batches, seed)
    path = out / "gan.safetensors"
    if path.exists():
        training.load(path)
    noise = np.random.default_rng(1).standard_normal((100, NOISE), dtype=np.float32)
    while (done := len(training.history)) < epochs:
        training.epoch()
        out.mkdir(parents=True, exist_ok=True)
        save_picture(out / f"epoch-{done + 1:02}.png", draw(training.gan.generator, noise))
        training.save(path)
        print("{}: epoch {}, loss of the discriminator {:.3f}, of the generator {:.3f}".format(
            out, done + 1, *training.history[-1]), flush=True)  # fmt: skip
    return training.gan


def main():
    """Train what the command line asks for."""
    parser = argparse.ArgumentParser(description="Train a GAN on MNIST.")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--norm", choices=NORMS, default="both")
    parser.add_argument("--batches", choices=BATCHES, default="apart")
    parser.add_argument("--smoke", action="store_true", help="few images, to see that it works")
    given = parser.parse_args()
    mnist = data.load_mnist()
    if given.smoke:
        mnist = data.Dataset(*(part[:640] for part in mnist))
    out = given.out or pathlib.Path("runs/smoke-gan" if given.smoke else "runs/gan")
    train_gan(out, given.epochs, mnist, given.norm, given.batches, given.seed)


if __name__ == "__main__":
    main()
