import numpy as np
import pytest
import torch

from spherescan.data import read_series
from spherescan.errors import CheckpointError, DataError
from spherescan.inference import Predictor
from tests.tolerances import assert_close
from tests.train.test_training import trainer_for, write_series


@pytest.fixture
def series(tmp_path):
    return write_series(tmp_path / "train.ts")


@pytest.mark.unwatched
def test_predictions_equal_the_evaluation(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series, run__steps=60, optim__lr=0.02)
    trainer.fit()
    table = read_series(series)
    predictor = Predictor.load(tmp_path / "run")
    assert predictor.step == trainer.counters.best_step
    right = [
        p == label for p, label in zip(predictor.predict(table.series), table.labels, strict=True)
    ]
    assert np.mean(right) > 0.9
    embedded = predictor.embed(table.series)
    assert_close(embedded.norm(dim=1), torch.ones(24))
    assert_close(predictor.model.head(embedded), predictor.cosines(table.series))
    assert (
        Predictor.load(tmp_path / "run", which=trainer.store.steps()[0]).step
        == trainer.store.steps()[0]
    )
    with pytest.raises(CheckpointError, match="has no checkpoint of step 7"):
        Predictor.load(tmp_path / "run", which=7)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "at least one"),
        ([np.zeros((3, 5))], "has 5 channels; the training data has 2"),
        ([np.full((3, 2), np.nan)], "sequence 0"),
        ([["a", "b"]], "not an array of numbers"),
    ],
)
def test_what_cannot_be_predicted_is_refused(tmp_path, series, sequences, message):
    trainer_for(tmp_path, data__train=series).fit(1)
    with pytest.raises(DataError, match=message):
        Predictor.load(tmp_path / "run").predict(sequences)


def test_a_series_of_one_channel_may_be_flat(tmp_path):
    write_series(tmp_path / "train.ts", n_channels=1)
    trainer_for(tmp_path, data__train=tmp_path / "train.ts").fit(1)
    predictor = Predictor.load(tmp_path / "run")
    flat = np.arange(4.0)
    assert_close(predictor.cosines([flat]), predictor.cosines([flat[:, None]]))


def test_strided_and_transposed_arrays_are_read_right(tmp_path, series):
    trainer_for(tmp_path, data__train=series).fit(1)
    predictor = Predictor.load(tmp_path / "run")
    x = np.random.default_rng(0).normal(size=(2, 12))
    for view in (x.T, x.T[::2], x[:, ::-1].T):
        assert_close(predictor.cosines([view]), predictor.cosines([view.copy(order="C")]))


def test_only_known_checkpoints_can_be_asked_for(tmp_path, series):
    trainer_for(tmp_path, data__train=series).fit(1)
    load = getattr(Predictor.load, "__wrapped__", None)
    with pytest.raises(Exception, match="latest"):
        (load or Predictor.load)(
            Predictor, tmp_path / "run", which="latest"
        ) if load else Predictor.load(tmp_path / "run", which="latest")


def test_the_next_token_is_an_integer_and_damaged_weights_are_refused(tmp_path):
    trainer = trainer_for(tmp_path, data__source="synthetic", data__vocab_size=9, data__seq_len=8)
    trainer.fit(1)
    predictor = Predictor.load(tmp_path / "run")
    assert predictor.predict([np.array([1, 2])]).dtype == np.int64
    assert predictor.embed([np.array([1, 2])]).shape == (1, 8)
    checkpoint = trainer.store.load()
    checkpoint.tensors["model/norm_f.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="another model"):
        Predictor._from_checkpoint(checkpoint)
