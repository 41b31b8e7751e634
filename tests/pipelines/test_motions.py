"""One frame tells nothing of the class: shown by construction, and by what frames' states and pixels look like."""

import numpy as np
import pytest
from scipy import stats

from pipelines.motions import GRAVITY, LENGTHS, MOTIONS, PERIOD, clip, displacement, look, render


def test_clips():
    shapes = {clip(i % 8, 24, np.random.default_rng(i)).shape for i in range(40)}
    assert {shape[1:] for shape in shapes} == {(24, 24, 3)}
    lengths = [shape[0] for shape in shapes]
    assert LENGTHS[0] <= min(lengths) < 50 and 80 < max(lengths) <= LENGTHS[1]
    assert np.array_equal(clip(3, 16, np.random.default_rng(5)), clip(3, 16, np.random.default_rng(5)))
    with pytest.raises(ValueError, match="no motion is called fly"):
        displacement("fly", 8, np.random.default_rng(0))


def test_any_frame_of_any_class_is_a_frame_of_any_other():
    """The coupling behind the proof: with z_0' = z_0 + d_t - d'_t another class shows the very same frame at t, and
    z_0' is as uniform as z_0."""
    rng = np.random.default_rng(0)
    appearance = look(24, rng)
    start = rng.uniform(size=(len(appearance.radius), 4))
    moved = {name: displacement(name, 40, rng)[:, None] for name in MOTIONS}
    for t in (0, 17, 39):
        shown = render(appearance, start + moved["bounce"], 24)[t]
        for name in MOTIONS:
            shifted = start + moved["bounce"][t] - moved[name][t]
            other = render(appearance, shifted + moved[name], 24)[t]
            assert np.abs(shown.astype(int) - other).max() <= 1  # of 255: rounding of floats


def test_states_are_uniform_in_every_class_at_every_time():
    """Kolmogorov-Smirnov of each coordinate against the uniform law: 8 classes, 2 times, 4 coordinates."""
    least = 1.0
    for name in MOTIONS:
        rng = np.random.default_rng(1)
        states = [(rng.uniform(size=4) + displacement(name, 33, rng)[[0, 32]]) % 1 for _ in range(400)]
        for column in np.stack(states).reshape(400, 8).T:
            least = min(least, stats.kstest(column, "uniform").pvalue)
    assert least > 0.05 / 64  # Bonferroni


def test_a_classifier_of_single_frames_is_at_chance_and_one_of_two_is_not():
    """Ridge regression to the classes from pixels. A frame: within 4 standard errors of chance, .125. Frames 6
    apart, in features that a network could have: 6 standard errors above it."""
    count, size = 1200, 16
    label = np.arange(count) % 8
    frames = [clip(int(c), size, np.random.default_rng([3, i]))[[10, 16]] for i, c in enumerate(label)]
    pixels = np.stack(frames).astype(float) / 255  # (N, 2, S, S, 3)
    change = pixels[:, 1] - pixels[:, 0]
    gradient = np.stack([np.gradient(pixels[:, 0], axis=a) for a in (1, 2)], 1)
    flow = (gradient * change[:, None]).reshape(count, 2, -1).sum(2)
    energy = (gradient**2).reshape(count, 2, -1).sum(2)
    moving = np.concatenate([flow, np.abs(flow), energy, (change**2).reshape(count, -1).sum(1)[:, None]], 1)

    def accuracy(features, ridge):
        features = (features - features.mean(0)) / features.std(0)
        target = np.eye(8)[label] - 1 / 8
        train, test = features[: count // 2], features[count // 2 :]
        solved = np.linalg.solve(train.T @ train + ridge * np.eye(features.shape[1]), train.T @ target[: count // 2])
        return ((test @ solved).argmax(1) == label[count // 2 :]).mean()

    still = pixels[:, 0].reshape(count, -1)
    error = (0.125 * 0.875 / (count // 2)) ** 0.5
    assert abs(accuracy(still, 300.0) - 0.125) < 4 * error
    assert accuracy(moving, 1.0) > 0.125 + 6 * error


def test_gravity_is_one_number():
    """The second difference of a bounce in flight is the gravity, whatever its height: G T^2 / 8 for a time T."""
    assert pytest.approx(0.42) == GRAVITY * PERIOD**2 / 8
    for seed in range(5):
        height = displacement("bounce", 90, np.random.default_rng(seed))[:, 1]
        assert np.median(np.diff(height, 2)) == pytest.approx(GRAVITY, rel=1e-6)


@pytest.mark.parametrize("name", MOTIONS)
def test_every_motion_can_be_seen_at_a_low_resolution(name):
    """Something moves by more than a pixel of 24 within a stroke, or turns or grows by an eighth."""
    moved = displacement(name, 40, np.random.default_rng(0))
    assert (np.ptp(moved, axis=0) > [1 / 6, 1 / 6, 1 / 8, 1 / 8]).any()
