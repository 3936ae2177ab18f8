"""Trains a network of one hidden layer on Fashion-MNIST and prints the loss of each epoch.

Standard output holds nothing that depends on the machine's speed, so that two runs can be compared.
Standard error has a line with the seconds of each part, parted by tabs.
"""

import gzip
import resource
import sys
import time

import numpy as np

FOLDER = "/usr/share/datasets/fashion-mnist/"
PIXELS, CLASSES = 28 * 28, 10
BATCH, HIDDEN, RATE = 100, 32, 0.1


def told(what, since):
    print(f"{what}\t{time.monotonic() - since:.3f}", file=sys.stderr, flush=True)


def images(count):
    with gzip.open(FOLDER + "train-images-idx3-ubyte.gz") as file:
        file.read(16)
        pixels = np.frombuffer(file.read(count * PIXELS), np.uint8)
    return pixels.reshape(count, PIXELS).astype(np.float32) / 255


def labels(count):
    with gzip.open(FOLDER + "train-labels-idx1-ubyte.gz") as file:
        file.read(8)
        return np.frombuffer(file.read(count), np.uint8)


def epoch(x, wanted, order, weights):
    w1, b1, w2, b2 = weights
    loss = 0.0
    for start in range(0, len(x), BATCH):
        rows = order[start : start + BATCH]
        batch, target = x[rows], wanted[rows]
        hidden = np.maximum(batch @ w1 + b1, 0)
        scores = hidden @ w2 + b2
        scores -= scores.max(axis=1, keepdims=True)
        chances = np.exp(scores)
        chances /= chances.sum(axis=1, keepdims=True)
        loss -= float(np.log(chances[target == 1]).sum())
        error = (chances - target) / len(rows)
        back = (error @ w2.T) * (hidden > 0)
        w2 -= RATE * (hidden.T @ error)
        b2 -= RATE * error.sum(axis=0)
        w1 -= RATE * (batch.T @ back)
        b1 -= RATE * back.sum(axis=0)
    return loss / len(x)


def main():
    count, epochs = int(sys.argv[1]), int(sys.argv[2])
    since = time.monotonic()
    x, y = images(count), labels(count)
    told("load", since)
    random = np.random.default_rng(1)
    wanted = np.eye(CLASSES, dtype=np.float32)[y]
    weights = [
        (random.standard_normal((PIXELS, HIDDEN)) * 0.05).astype(np.float32),
        np.zeros(HIDDEN, np.float32),
        (random.standard_normal((HIDDEN, CLASSES)) * 0.05).astype(np.float32),
        np.zeros(CLASSES, np.float32),
    ]
    for number in range(epochs):
        since = time.monotonic()
        loss = epoch(x, wanted, random.permutation(count), weights)
        told(f"epoch {number + 1}", since)
        print(f"epoch {number + 1}: loss {loss:.17g}", flush=True)
    right = np.maximum(x @ weights[0] + weights[1], 0) @ weights[2] + weights[3]
    print(f"right: {int((right.argmax(axis=1) == y).sum())} of {count}")
    # Linux tells KiB.
    print(f"peak\t{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}", file=sys.stderr)


main()
