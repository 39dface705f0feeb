"""From cosines to decisions on nine speakers: how sure, known or not, what is promised, new ones.

Trains examples/japanese_vowels.toml on all speakers, on five of nine (the others are unknown), and
on six of nine (the others come later, five utterances each), with five seeds each. What is fitted
to held-out data is fitted to one random half of the test utterances and measured on the other one,
20 times per seed; nothing is chosen by it.

python experiments/decisions.py
"""

import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from spherescan import calibration as cal
from spherescan.config import parse_config
from spherescan.data import locate, read_series
from spherescan.inference import Predictor
from spherescan.train import start

SEEDS, SPLITS, EXAMPLES = range(5), 20, 5
CONFIG = Path(__file__).parents[1] / "examples" / "japanese_vowels.toml"
SPEAKERS = [str(i) for i in range(1, 10)]


@dataclass(frozen=True, slots=True)
class Embedded:
    """Unit embeddings of one split, and the speaker of each as an index into the names."""

    z: Tensor
    speaker: Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """A trained model on all utterances; the speakers it knows come first among the names."""

    prototypes: Tensor
    train: Embedded
    test: Embedded
    n_known: int


def trained(speakers: list[str], seed: int, folder: Path) -> Run:
    """Train on some speakers, embed the utterances of all."""
    lines = locate("sample:JapaneseVowels_TRAIN.ts").read_text().splitlines()
    header = [line for line in lines if line.startswith(("#", "@"))]
    header = [
        f"@classLabel true {' '.join(speakers)}" if line.lower().startswith("@classlabel") else line
        for line in header
    ]
    rows = [r for r in lines if r and not r.startswith(("#", "@"))]
    rows = [row for row in rows if row.rsplit(":", 1)[1].strip() in speakers]
    data = folder / "train.ts"
    data.write_text("\n".join((*header, *rows)) + "\n")
    config = tomllib.loads(CONFIG.read_text())
    config["data"]["train"] = str(data)
    config["run"] |= {"dir": str(folder / "run"), "seed": seed}
    start(parse_config(config)).fit()
    predictor = Predictor.load(folder / "run")
    names = [*predictor.task.class_names, *(s for s in SPEAKERS if s not in speakers)]

    def embedded(name: str) -> Embedded:
        table = read_series(locate(f"sample:JapaneseVowels_{name}.ts"))
        assert table.labels is not None
        speaker = torch.tensor([names.index(label) for label in table.labels])
        return Embedded(predictor.embed(table.series), speaker)

    prototypes = predictor.model.head.prototypes.detach()
    return Run(prototypes, embedded("TRAIN"), embedded("TEST"), len(speakers))


def row(name: str, values: list[float]) -> None:
    """Print the mean and the range of a measurement."""
    print(f"{name:44} {sum(values) / len(values):8.3f} {min(values):8.3f} {max(values):8.3f}")


def held_out(runs: list[Run]) -> None:
    """Fit to half of the test utterances, measure on the other half."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for seed, run in enumerate(runs):
        cosines, target = run.test.z @ run.prototypes.T, run.test.speaker
        for split in range(SPLITS):
            order = torch.randperm(len(target), generator=generator(seed, split))
            fit, new = order.chunk(2)
            truth, every = target[new], torch.arange(len(new))
            scale = cal.fit_scale(cosines[fit], target[fit], smoothing=9 / (8 * (len(fit) + 2)))
            alone = cal.fit_scale(cosines[fit], target[fit])
            for name, s in (("trained", 12.0), ("fitted", alone), ("fitted, smoothed", scale)):
                p = cal.probabilities(cosines[new], s)
                note(f"scale, {name}", s)
                note(f"calibration error, {name}", cal.expected_calibration_error(p, truth))
                loss = -p[every, truth].clamp(min=1e-300).log().mean()
                note(f"loss, {name}", loss.item())
            p = cal.probabilities(cosines, scale)
            for name, scores in (
                ("LAC", cal.lac_scores(p)),
                ("APS", cal.aps_scores(p)),
                (
                    "APS with draws",
                    cal.aps_scores(p, uniform=torch.rand(len(p), generator=generator(split, seed))),
                ),
            ):
                threshold = cal.set_threshold(scores[fit], target[fit], coverage=0.9)
                for never_empty in (False, True):
                    inside = cal.prediction_sets(scores[new], threshold, never_empty=never_empty)
                    what = f"90 % {name}{', never empty' if never_empty else ''}"
                    note(f"{what}: coverage", inside[every, truth].double().mean().item())
                    note(f"{what}: classes in a set", inside.sum(1).double().mean().item())
            known = cal.largest_score(cosines)
            threshold = cal.known_threshold(known[fit], rejection=0.05)
            note("5 % rejection: measured", (known[new] < threshold).double().mean().item())
    for name, values in found.items():
        row(name, values)


def open_set(runs: list[Run]) -> None:
    """Compare the scores of being known; what they are fitted to is the training split."""
    found: dict[str, list[float]] = {}
    for run in runs:
        seen = run.train.speaker < run.n_known
        z, target = run.train.z[seen], run.train.speaker[seen]
        means = cal.mean_directions(z, target, n_classes=run.n_known).float()
        concentration = cal.shared_concentration(z, target)
        cosines, to_means = run.test.z @ run.prototypes.T, run.test.z @ means.T
        is_known = run.test.speaker < run.n_known
        correct = (cosines.argmax(1) == run.test.speaker)[is_known]
        found.setdefault("accuracy on known speakers", []).append(correct.double().mean().item())
        for name, score in (
            ("largest probability, scale 12", cal.largest_probability(cosines, scale=12.0)),
            ("largest cosine", cal.largest_score(cosines)),
            ("energy, scale 12", cal.energy_score(cosines, scale=12.0)),
            ("largest cosine with a mean direction", cal.largest_score(to_means)),
            ("energy to mean directions", cal.energy_score(to_means, scale=concentration)),
            (
                "cosine with the nearest neighbour",
                cal.neighbour_cosine(run.test.z, z, neighbours=1),
            ),
            ("cosine with the fifth neighbour", cal.neighbour_cosine(run.test.z, z, neighbours=5)),
        ):
            curve = cal.open_set_curve(score[is_known], correct, score[~is_known])
            area = cal.auroc(score[is_known], score[~is_known])
            found.setdefault(f"AUROC, {name}", []).append(area)
            found.setdefault(f"OSCR, {name}", []).append(curve.area)
    for name in sorted(found):
        row(name, found[name])


def later(runs: list[Run]) -> None:
    """Add three speakers, one after the other, from five utterances each."""
    found: dict[str, list[float]] = {}
    for seed, run in enumerate(runs):
        z, speaker = run.test.z, run.test.speaker
        old = z @ run.prototypes.T
        is_old = speaker < run.n_known
        base = (old.argmax(1) == speaker)[is_old].double().mean().item()
        for split in range(SPLITS):
            for strength in (0.0, 1.0, 5.0):
                cosines, prototypes = old, run.prototypes
                for new in range(run.n_known, len(SPEAKERS)):
                    of_new = (run.train.speaker == new).nonzero()[:, 0]
                    order = torch.randperm(len(of_new), generator=generator(seed, split, new))
                    examples = run.train.z[of_new[order[:EXAMPLES]]]
                    # The three fit beside six in six dimensions while a direction is left.
                    room = strength if len(prototypes) <= run.n_known else 0.0
                    placed = cal.place_class(examples, prototypes, strength=room)
                    prototypes = torch.cat((prototypes, placed.prototype[None]))
                    cosines = cal.append_cosines(cosines, z, placed.prototype)
                assert torch.equal(cosines[:, : run.n_known], old)
                right = (cosines.argmax(1) == speaker).double()
                for what, value in (
                    ("all nine / six before", right.mean().item() / base),
                    ("old speakers", right[is_old].mean().item()),
                    ("new speakers", right[~is_old].mean().item()),
                ):
                    found.setdefault(f"strength {strength:g}: {what}", []).append(value)
    for name, values in found.items():
        row(name, values)


def generator(*key: int) -> Generator:
    """Make a source of randomness for a place in the experiment."""
    return Generator().manual_seed(hash(key) % 2**32)


def main() -> None:
    """Train, measure, print."""
    torch.set_num_threads(1)
    for title, n_known, measure in (
        ("nine speakers, halves of the test split", 9, held_out),
        ("five speakers known, four unknown", 5, open_set),
        ("six speakers, three more later", 6, later),
    ):
        runs = []
        for seed in SEEDS:
            order = torch.randperm(9, generator=generator(seed))[:n_known]
            speakers = [SPEAKERS[i] for i in sorted(order.tolist())]
            with tempfile.TemporaryDirectory() as folder:
                runs.append(trained(speakers, seed, Path(folder)))
        print(f"\n{title:44} {'mean':>8} {'least':>8} {'most':>8}")
        measure(runs)


if __name__ == "__main__":
    main()
