"""MNIST-1D: one of ten short strokes at any place, width, height and slope, in noise.

    python experiments/mnist1d.py FOLDER

writes the published data set as FOLDER/MNIST1D_TRAIN.ts and FOLDER/MNIST1D_TEST.ts.

References:
    Greydanus, "Scaling Down Deep Learning", 2020, arXiv:2011.14439.

Letters: n samples.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

N_CLASSES = 10
LENGTH = 40
# Of the whole data set; the published one has 0.02 throughout.
NOISE_RANGE = (0.02, 0.2)

_N_SAMPLES, _N_TRAIN = 5000, 4000
_PUBLISHED_SEED, _PUBLISHED_NOISE = 42, 0.02
_LEAST_PADDING, _MOST_PADDING = 36, 60
_LONG = 72  # points of a sample before it is thinned to LENGTH
_MOST_SHIFT = 47
_SCALE, _SHEAR = 0.4, 0.75  # widths of the ranges of height and slope
_BACKGROUND, _SMOOTHNESS = 0.25, 2.0

# The strokes of the digits 0 to 9 from top to bottom, before each is given mean 0 and deviation 1.
_STROKES = np.array(
    [
        [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
        [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
        [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
        [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
        [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
        [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
        [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
        [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
    ]
)


class Signals(NamedTuple):
    """The data set, shuffled, with what was drawn for each sample.

    Attributes:
        x_train: Values, (n, 40); mean 0 and deviation 1 over the whole data set.
        y_train: Digit.
        position_train: Where the middle of the digit is, in samples of the series from 0.
        noise_train: Standard deviation of the noise added to every point before the thinning.
        shear_train: What the slope takes from the first point to the last.
        x_test: As for training.
        y_test: As for training.
        position_test: As for training.
        noise_test: As for training.
        shear_test: As for training.
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    position_train: NDArray[np.float32]
    noise_train: NDArray[np.float32]
    shear_train: NDArray[np.float32]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    position_test: NDArray[np.float32]
    noise_test: NDArray[np.float32]
    shear_test: NDArray[np.float32]


def load(seed: int = 0, *, varied_noise: bool = True) -> Signals:
    """Generate 4000 training and 1000 test samples.

    Args:
        seed: Of all draws; 42 is that of the published data set.
        varied_noise: Whether the noise level of each sample is drawn uniformly from NOISE_RANGE;
            otherwise it is the published constant. All else is the same for one seed.
    """
    random = np.random.RandomState(seed)  # the published draws, in their order
    levels = np.full(_N_SAMPLES, _PUBLISHED_NOISE)
    if varied_noise:
        levels = np.random.default_rng((seed, 1)).uniform(*NOISE_RANGE, size=_N_SAMPLES)
    digits = np.repeat(np.arange(N_CLASSES), _N_SAMPLES // N_CLASSES)
    templates = _templates()
    drawn = [
        _sample(templates[digit], level, random)
        for digit, level in zip(digits, levels, strict=True)
    ]
    order = random.permutation(_N_SAMPLES)
    x = np.stack([series for series, _, _ in drawn])[order]
    x = (x - x.mean()) / x.std()
    position, shear = np.array([hidden for _, *hidden in drawn])[order].T
    columns = [
        x.astype(np.float32),
        digits[order],
        position.astype(np.float32),
        levels[order].astype(np.float32),
        shear.astype(np.float32),
    ]
    return Signals(*(c[:_N_TRAIN] for c in columns), *(c[_N_TRAIN:] for c in columns))


def write_ts(path: Path, x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
    """Write labelled series as a `.ts` file; float32 values are read back exactly."""
    header = [
        "@problemName MNIST1D",
        "@timeStamps false",
        "@missing false",
        "@univariate true",
        "@equalLength true",
        f"@seriesLength {x.shape[1]}",
        f"@classLabel true {' '.join(map(str, range(N_CLASSES)))}",
        "@data",
    ]
    rows = [
        f"{','.join(f'{value:.9g}' for value in series)}:{label}"
        for series, label in zip(x, y, strict=True)
    ]
    path.write_text("\n".join([*header, *rows, ""]), encoding="ascii")


def _templates() -> NDArray[np.float64]:
    """Return the strokes with deviation 1/6, each beginning at 0."""
    strokes = _STROKES / _STROKES.std(axis=1, keepdims=True)
    return (strokes - strokes[:, :1]) / 6


def _sample(
    template: NDArray[np.float64], noise: float, random: np.random.RandomState
) -> tuple[NDArray[np.float64], float, float]:
    """Draw one series; return it with the middle of its digit and its slope."""
    n_points = len(template)
    padding = _LEAST_PADDING + int(random.rand() * (_MOST_PADDING - _LEAST_PADDING + 1))
    last = n_points + padding - 1
    at = np.linspace(0, last, _LONG)
    series = np.interp(at, np.arange(n_points + 1), np.append(template, 0.0))
    series *= 1 + _SCALE * (random.rand() - 0.5)
    shift = random.randint(_MOST_SHIFT + 1)
    series, inside = np.roll(series, shift), np.roll(at < n_points, shift)

    background = _smooth(_BACKGROUND * random.randn(_LONG))
    series = np.where(inside, series, background) + noise * random.randn(_LONG)
    shear = _SHEAR * (random.rand() - 0.5)
    series -= np.linspace(-shear / 2, shear / 2, _LONG)

    thinned = np.interp(np.linspace(0, _LONG - 1, LENGTH), np.arange(_LONG), series)
    middle = shift + (n_points - 1) / 2 * (_LONG - 1) / last
    return thinned, middle * (LENGTH - 1) / (_LONG - 1), shear


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Filter with a Gaussian that ends after 4 deviations; the ends are mirrored."""
    radius = round(4 * _SMOOTHNESS)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / _SMOOTHNESS) ** 2)
    return np.convolve(np.pad(values, radius, "symmetric"), kernel / kernel.sum(), "valid")


def main() -> None:
    """Write the data set as two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=_PUBLISHED_SEED)
    parser.add_argument("--varied-noise", action="store_true", help="draw the noise of each sample")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    data = load(options.seed, varied_noise=options.varied_noise)
    write_ts(options.folder / "MNIST1D_TRAIN.ts", data.x_train, data.y_train)
    write_ts(options.folder / "MNIST1D_TEST.ts", data.x_test, data.y_test)


if __name__ == "__main__":
    main()
