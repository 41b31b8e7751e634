"""Synthetic clips whose class is the motion and never one frame: `clip(label, size, rng)`.

One or two textured figures on a torus (what leaves the picture on one side enters on the other) before a still ground.
A figure's state z is an element of the compact group T^4: place x, y, angle and a phase of size, each in turns of a
circle. A video draws z_0 uniformly, appearance (shape, colours, texture, ground), length and the motion's nuisances
(rate, amplitude, phase, sense), and its frames show z_t = z_0 + d_t, where d_t is a displacement of the class.

Why one frame tells nothing: z_0 is uniform on the group and independent of (class, d), so z_0 + d_t is uniform and
independent of (class, d) too, for every t: the Haar measure is translation invariant. Appearance and length are drawn
before the class is used. So a single frame, at any time, has the same distribution in every class, and (with the start
and the end of the motion at a uniform phase) in every place of the video. Frames must be stored without loss: what a
lossy codec leaves would depend on neighbouring frames.

The classes have dynamics of their own, with few free constants, so that a clip played faster, unevenly or shuffled
looks unlike one that is not: gravity is the same in all videos, strokes begin and end at rest and thrust before they
glide, the period is `PERIOD` within 15 %. No class turns into another by mirroring left and right, which training
views may do.

Legend: F frames, S size, n figures.
"""

from dataclasses import dataclass

import numpy as np

LENGTHS = (32, 96)
"""Frames of a video: uniform, both ends included."""
PERIOD = 28.0
"""Frames of a stroke or swing, times exp(uniform(-.15, .15))."""
GRAVITY = 8 * 0.42 / PERIOD**2
"""Sides of the picture a frame squared: a bounce that takes `PERIOD` is .42 high, one that takes T is G T^2 / 8."""

MOTIONS = ("bounce", "hop", "orbit", "pulse", "rise", "sink", "spin", "swing")
"""The classes: bouncing under gravity on the spot; the same while moving aside; a circle, in either sense, with a
pendulum's speed; growing and shrinking; strokes upward that glide to rest; strokes downward; turning by strokes, in
either sense; a pendulum from side to side, which tilts."""


def displacement(motion: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """d_t, float64 (F, 4): x to the right, y downward (sides of the picture), angle and phase of size (turns).

    It depends on its arguments alone, not on the state that it is added to.
    """
    period = PERIOD * np.exp(rng.uniform(-0.15, 0.15))
    amplitude = rng.uniform(0.85, 1.15)
    sense = rng.choice([-1.0, 1.0])
    tau = np.arange(frames) / period + rng.uniform()  # periods
    whole, part = np.divmod(tau, 1)
    eased = 1 - (1 - part) ** 2
    stroke = whole + eased**2 * (3 - 2 * eased)  # at rest at every whole tau, fastest at a quarter
    height = GRAVITY * period**2 / 2 * part * (1 - part)  # above the ground, which it meets at every whole tau
    swing = amplitude * np.sin(2 * np.pi * tau)
    still = np.zeros(frames)
    if motion == "bounce":
        moved = (still, -height, still, still)
    elif motion == "hop":
        moved = (sense * 0.35 * amplitude * tau, -height, still, still)
    elif motion == "orbit":
        angle = sense * 2 * np.pi * (tau + 0.08 * np.sin(2 * np.pi * tau))
        moved = (0.2 * amplitude * np.cos(angle), 0.2 * amplitude * np.sin(angle), still, still)
    elif motion == "pulse":
        moved = (still, still, still, tau)
    elif motion == "rise":
        moved = (still, -0.45 * amplitude * stroke, still, still)
    elif motion == "sink":
        moved = (still, 0.45 * amplitude * stroke, still, still)
    elif motion == "spin":
        moved = (still, still, sense * 0.6 * amplitude * stroke, still)
    elif motion == "swing":
        moved = (0.24 * swing, -0.05 * swing**2, -0.06 * swing, still)
    else:
        raise ValueError(f"no motion is called {motion}: there are {', '.join(MOTIONS)}")
    return np.stack(moved, 1)


@dataclass(frozen=True)
class Look:
    """What a video shows, apart from where it is: drawn without knowledge of the class."""

    ground: np.ndarray
    """float (S, S, 3), in [0, 1]."""
    outline: np.ndarray
    """float (n, 3): a figure's corners, depth of their notches and its stretch."""
    colours: np.ndarray
    """float (n, 2, 3): of its stripes."""
    stripes: np.ndarray
    """float (n, 3): frequency along and across, and phase."""
    radius: np.ndarray
    """float (n,): sides of the picture; the phase of size multiplies it by exp(.4 cos)."""


def look(size: int, rng: np.random.Generator) -> Look:
    count = int(rng.integers(1, 3))
    tones = rng.uniform(0, 1, (2, 3))
    coarse = rng.uniform(-0.5, 0.5, (5, 5))
    mixed = (smooth(coarse, size) * 1.6 + 0.5).clip(0, 1)[..., None]
    ground = 0.25 + 0.4 * (tones[0] + mixed * (tones[1] - tones[0]))
    corners = rng.choice([0.0, 2.0, 3.0, 4.0, 5.0], count)
    notch = np.where(corners == 0, 0, rng.uniform(0.15, 0.35, count))
    outline = np.stack([corners, notch, rng.uniform(1.0, 1.5, count)], 1)
    dark = rng.integers(0, 2, count)[:, None]
    colours = np.stack([0.3 * rng.uniform(size=(count, 3)), 1 - 0.3 * rng.uniform(size=(count, 3))], 1)
    colours = np.where(dark[..., None] == 1, colours[:, ::-1], colours)
    turn = rng.uniform(0, 2 * np.pi, count)
    stripes = np.stack([3 * np.cos(turn), 3 * np.sin(turn), rng.uniform(0, 2 * np.pi, count)], 1)
    return Look(ground, outline, colours, stripes, rng.uniform(0.15, 0.19, count))


def smooth(coarse: np.ndarray, size: int) -> np.ndarray:
    """(k, k) -> (size, size), periodic, by a raised cosine between the nodes."""
    count = len(coarse)
    place = np.arange(size) / size * count
    low, part = np.floor(place).astype(int), (1 - np.cos(np.pi * (place % 1))) / 2
    weights = np.zeros((size, count))
    np.add.at(weights, (np.arange(size), low % count), 1 - part)
    np.add.at(weights, (np.arange(size), (low + 1) % count), part)
    return weights @ coarse @ weights.T


def render(look: Look, state: np.ndarray, size: int) -> np.ndarray:
    """States (F, n, 4) in turns -> uint8 (F, S, S, 3). A frame is a function of the look and of its state modulo 1."""
    pixels = np.broadcast_to(look.ground.astype(np.float32), (len(state), size, size, 3)).copy()
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    for i in range(state.shape[1]):
        x, y, angle, phase = (np.round(state[:, i] % 1, 6) % 1).astype(np.float32).T
        dx = ((grid - x[:, None] + 0.5) % 1 - 0.5)[:, None, :]  # (F, 1, S)
        dy = ((grid - y[:, None] + 0.5) % 1 - 0.5)[:, :, None]
        cosine, sine = (f(2 * np.pi * angle)[:, None, None] for f in (np.cos, np.sin))
        radius = (look.radius[i] * np.exp(0.4 * np.cos(2 * np.pi * phase)))[:, None, None]
        corners, notch, stretch = look.outline[i]
        u = (dx * cosine + dy * sine) / (radius * stretch**0.5)
        v = (dy * cosine - dx * sine) / (radius / stretch**0.5)
        edge = 1 + notch * np.cos(corners * np.arctan2(v, u)) if corners else 1.0
        cover = ((edge - np.hypot(u, v)) * radius * size + 0.5).clip(0, 1)[..., None]
        along, across, shift = look.stripes[i]
        wave = (0.5 + 1.2 * np.sin(along * u + across * v + shift)).clip(0, 1)[..., None]
        one, other = look.colours[i]
        pixels += cover * (one + wave * (other - one) - pixels)
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)


def clip(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A video of the class `MOTIONS[label]`: uint8 (F, size, size, 3), F drawn from `LENGTHS`."""
    frames = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
    appearance = look(size, rng)
    start = rng.uniform(size=(len(appearance.radius), 4))
    moved = [displacement(MOTIONS[label], frames, rng) for _ in start]
    return render(appearance, start + np.stack(moved, 1), size)
