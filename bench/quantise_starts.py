#!/usr/bin/env python3
"""quantise_starts.py: makes the tables of src/numerics/quantise_starts.c.

A search over levels and scales begins from several grids. Which ones, and in which order, is chosen here, greedily: given the starts
taken so far, the next one is that which lowers most the mean, over sample groups, of the best error found. A group's error is that of
the least-squares scale (and minimum) at the levels of that start. The sample: half Gaussian, a quarter Gaussian with lognormal
importance, the rest Student-t5 and Laplace. Needs numpy; a few minutes.

    python3 bench/quantise_starts.py
"""
import numpy as np

STARTS = 32
IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
random = np.random.default_rng(20)


def sample(n, count):
    x = np.concatenate([random.normal(size=(3 * count // 4, n)), random.standard_t(5, size=(count // 8, n)), random.laplace(size=(count // 8, n))])
    w = np.ones_like(x)
    weighted = slice(count // 2, 7 * count // 8)  # a quarter Gaussian, and the Student-t ones
    w[weighted] = np.exp(random.normal(size=w[weighted].shape))
    return x, w / w.mean(1, keepdims=True)


def greedy(errors, starts):
    """errors: [start][group]"""
    best, chosen = np.full(errors.shape[1], np.inf), []
    for _ in range(STARTS):
        k = np.minimum(errors, best).mean(1).argmin()
        best = np.minimum(best, errors[k])
        chosen.append(starts[k])
    return chosen, best.mean() / errors.min(0).mean()


def asymmetric(n, top, grid, signed):
    """Levels 0..top of step * q + minimum; a start cuts (low, high) steps off the range."""
    x, w = sample(n, 4096)
    low, high = x.min(1), x.max(1)
    if not signed:
        low = np.minimum(low, 0)
    step = (high - low) / top
    sw, swx, swxx = w.sum(1), (w * x).sum(1), (w * x * x).sum(1)
    errors, starts = [], []
    for a in grid:
        for b in grid:
            q = np.rint(np.clip((x - (low + a * step)[:, None]) / (step * (1 - (a + b) / top))[:, None], 0, top))
            sq, sqq, sqx = (w * q).sum(1), (w * q * q).sum(1), (w * q * x).sum(1)
            det = sw * sqq - sq * sq
            s, m = (sw * sqx - sq * swx) / det, (sqq * swx - sq * sqx) / det
            if not signed:
                s, m = np.where(m > 0, sqx / sqq, s), np.minimum(m, 0)
            errors.append(swxx - s * sqx - m * swx)
            starts.append((a, b))
    return greedy(np.array(errors) / swxx.mean(), starts)


def symmetric(n, levels, reaches):
    """Values of step * level; a start maps the value of largest magnitude to `reach`."""
    x, w = sample(n, 8192)
    top = x[np.arange(len(x)), np.abs(x).argmax(1)]
    levels = np.array(levels, float)
    middles = (levels[1:] + levels[:-1]) / 2
    errors = []
    for reach in reaches:
        q = levels[np.searchsorted(middles, x * (reach / top)[:, None])]
        sqq, sqx = (w * q * q).sum(1), (w * q * x).sum(1)
        errors.append((w * x * x).sum(1) - np.where(sqq > 0, sqx * sqx / np.maximum(sqq, 1e-9), 0))
    return greedy(np.array(errors) / (w * x * x).sum(1).mean(), list(reaches))


def text(value):
    return ("%.2f" % (value + 0.0)).rstrip("0").rstrip(".").replace("-0", "-0") if abs(value) > 1e-9 else "0"


def print_table(name, chosen, excess):
    pairs = isinstance(chosen[0], tuple)
    items = ["{%s}" % ", ".join(text(v) + ("f" if "." in text(v) else "") for v in c) if pairs else text(c) + ("f" if "." in text(c) else "") for c in chosen]
    print("/* all %d: %.2f%% above the best of every start */" % (STARTS, 100 * (excess - 1)))
    print("const float %s[MICA_STARTS]%s = {" % (name, "[2]" if pairs else ""))
    line = "   "
    for item in items:
        if len(line) + len(item) > 136:
            print(line)
            line = "   "
        line += " " + item + ","
    print(line + "\n};")


span = np.arange
print_table("mica_starts_q2_k", *asymmetric(16, 3, span(-0.4, 1.61, 0.1), False))
print_table("mica_starts_q4_k", *asymmetric(32, 15, span(-0.6, 3.01, 0.2), False))
print_table("mica_starts_q5_k", *asymmetric(32, 31, span(-0.6, 4.01, 0.25), False))
print_table("mica_starts_q4_1", *asymmetric(32, 15, span(-0.6, 3.01, 0.2), True))
print_table("mica_starts_q5_1", *asymmetric(32, 31, span(-0.6, 4.01, 0.25), True))
print_table("mica_starts_q3_k", *symmetric(16, range(-4, 4), np.r_[-5.5:-1.5:0.1, 1.5:4.5:0.1]))
print_table("mica_starts_q6_k", *symmetric(16, range(-32, 32), np.r_[-34:-20:0.2, 20:33:0.2]))
print_table("mica_starts_q4_0", *symmetric(32, range(-8, 8), np.r_[-9.5:-4:0.1, 4:8.5:0.1]))
print_table("mica_starts_q5_0", *symmetric(32, range(-16, 16), np.r_[-18:-9:0.1, 9:17:0.1]))
print_table("mica_starts_q8_0", *symmetric(32, range(-127, 128), np.r_[90:128.2:0.2]))
print_table("mica_starts_iq4", *symmetric(32, IQ4, np.r_[-145:-70:1, 70:125:1]))
