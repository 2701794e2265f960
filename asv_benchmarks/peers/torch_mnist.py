"""`nbbn train` as a PyTorch script: the same net, recipe and data.

Images stay in one tensor and are gathered per batch: no DataLoader, which would only slow it down.
"""

import argparse
import json
import sys
import time
from pathlib import Path

START = time.perf_counter()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nbbn.data import load_mnist  # noqa: E402 - loads no numba
from peers.with_torch import mlp  # noqa: E402


def accuracy(model, images, labels):
    model.eval()
    with torch.inference_mode():
        right = sum(
            (model(x.float() / 255).argmax(1) == y).sum().item()
            for x, y in zip(images.split(1000), labels.split(1000), strict=True)
        )
    model.train()
    return right / len(labels)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    mnist = load_mnist()
    images, test_images = (
        torch.from_numpy(a).flatten(1) for a in (mnist.train_images, mnist.test_images)
    )
    labels, test_labels = (
        torch.from_numpy(a).long() for a in (mnist.train_labels, mnist.test_labels)
    )
    model = mlp((784, 256, 128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr, fused=True)
    steps = -(-len(labels) // arguments.batch_size) * arguments.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.lr, total_steps=steps, cycle_momentum=False
    )
    for epoch in range(1, arguments.epochs + 1):  # noqa: B007 - read after the loop
        for index in torch.randperm(len(labels)).split(arguments.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[index].float() / 255), labels[index])
            loss.backward()
            optimizer.step()
            schedule.step()
        test_accuracy = accuracy(model, test_images, test_labels)
    seconds = round(time.perf_counter() - START, 3)
    print(json.dumps({"test_accuracy": test_accuracy, "epochs": epoch, "seconds": seconds}))


if __name__ == "__main__":
    main()
