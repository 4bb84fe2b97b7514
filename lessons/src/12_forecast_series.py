# %% [markdown]
# # Forecast a series, and beat the simple rules first
#
# **What you will do.** Forecast the CO2 in the air and the spots on the sun. First by rules that need no
# training, then by one matrix, then by transformers. You measure who wins, and you see why the comparison is
# easy to get wrong.
#
# **What you will learn.** How a window is standardised without a look at the future. Why a linear map is hard
# to beat. How auto-correlation finds a period, and why a trend hides it. What a series decomposition changes,
# and what it cannot change. When turning the tokens around (one token per variable) helps.
#
# **What you need.** Python, NumPy, least squares, and what an attention layer is (lesson
# `02_build_attention`). Run the cells from top to bottom. The five exercises check themselves.
#
# **Variants.** `itransformer`, `auto_correlation`, `series_decomposition`, `mlp_mixer`, `pool_mixer`, `s4d`,
# `gfnet_filter`

# %%
import numpy as np

import minitf as mt
from minitf.models import ForecastConfig, Forecaster, seasonal_naive
from minitf.tasks import linear_forecast, load_series, split_series, standardised_error
from minitf.testing import NOTEBOOK, check_variant, exercise
from minitf.viz import Picture
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

mt.use("reference")
np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## 1. Two series, and how to measure
#
# **CO2** at Mauna Loa, one number a week: a trend and a year of 52 weeks. **Sunspots**, one number a year: no
# trend, and a cycle of about 11 years that is never quite the same.
#
# A model sees a *window* of the past, $x_1 \dots x_T$, and forecasts the next $S$ steps. The series is cut in
# the order of time: the first 70 % to learn from, 10 % to validate, the last 20 % to test. No window crosses
# a cut. Which series do you expect to be easier?

# %%
SIZES = {"co2": (104, 26, 52), "sunspots": (22, 8, 11)}  # past T, horizon S, period
data = {name: split_series(name, T, S) for name, (T, S, _) in SIZES.items()}
picture = Picture(7.5, 2.5)
for axes, name, unit in zip(picture.subplots(1, 2), SIZES, ("ppm", "number")):
    times, values = load_series(name)
    axes.plot(times, values, color=GREY, linewidth=0.8)
    axes.plot(times[round(0.8 * len(times)) :], values[round(0.8 * len(times)) :], color=BLUE, linewidth=0.8)
    learn, _, test = (len(part[0]) for part in data[name])
    axes.set_title(f"{name}: {learn} windows to learn, {test} to test", fontsize=9)
    axes.set(xlabel="year", ylabel=unit)
    axes.locator_params(axis="x", nbins=5) if name == "sunspots" else axes.set_xticks(times[92::520])
    if name == "co2":
        axes.set_xticklabels([str(day)[:4] for day in times[92::520]])
picture

# %% [markdown]
# ### A bug that looks like success
#
# A model should see the shape of a window, not its level. So each window is standardised: subtract a mean
# $m$, divide by a deviation $s$. Mean and deviation of *what*? It is easy to take those of the whole window,
# past and future together. Nothing breaks. Look at the error of the simplest model there is, one matrix from
# the past to the future:


# %%
def fit_linear(z, goal, ridge=1e-3):
    """The matrix (T + 1, S) from z (W, T) and a 1 to goal (W, S), by least squares with a ridge."""
    z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    return np.linalg.solve(z.T @ z / len(z) + ridge * np.eye(z.shape[1]), z.T @ goal / len(z))


def apply_linear(matrix, z):
    return z @ matrix[:-1] + matrix[-1]


leaks = {}
for name in SIZES:
    for what in ("past and future", "past alone"):
        scaled = []
        for past, future in (data[name][0], data[name][2]):
            past, future = past[..., 0].astype(float), future[..., 0].astype(float)
            seen = past if what == "past alone" else np.concatenate([past, future], axis=1)
            m, s = seen.mean(axis=1, keepdims=True), seen.std(axis=1, keepdims=True)
            scaled.append(((past - m) / s, (future - m) / s, s / past.std(axis=1, keepdims=True)))
        (z, goal, _), (z_test, goal_test, unit) = scaled
        wrong = unit * (apply_linear(fit_linear(z, goal), z_test) - goal_test)
        leaks[name, what] = np.mean(wrong**2)
        print(f"{name:9} mean and deviation of {what:16} squared error {leaks[name, what]:.3f}")

# %% [markdown]
# The same model, the same data, and a smaller error: because $m$ tells it the mean of the future. If the past
# lies below the mean of the window, the future must lie above it. In use, nobody will hand you that mean.
#
# The test for such a leak is short: **change the future, and the input must not change**.
#
# ### Exercise 1: standardise without a leak
#
# Use the mean and the deviation of each window's own past, over time. A past that never moves has a deviation
# of 0: use 1 instead.


# %%
def standardise(past, future):
    """(past, future), standardised: past (W, T, V) and future (W, S, V), each window by its own past."""
    # BEGIN SOLUTION
    m, s = past.mean(axis=1, keepdims=True), past.std(axis=1, keepdims=True)
    s = np.where(s == 0, 1, s)
    return (past - m) / s, (future - m) / s
    # END SOLUTION


# %% tags=["mistake"]
# Takes mean and deviation over past and future.
def standardise(past, future):
    both = np.concatenate([past, future], axis=1)
    m, s = both.mean(axis=1, keepdims=True), both.std(axis=1, keepdims=True)
    s = np.where(s == 0, 1, s)
    return (past - m) / s, (future - m) / s


# %% tags=["mistake"]
# Takes one mean and deviation for all windows.
def standardise(past, future):
    m, s = past.mean(), past.std()
    return (past - m) / (s if s else 1), (future - m) / (s if s else 1)


# %% tags=["mistake"]
# Divides by a deviation of 0.
def standardise(past, future):
    m, s = past.mean(axis=1, keepdims=True), past.std(axis=1, keepdims=True)
    return (past - m) / s, (future - m) / s


# %%
@exercise("standardise")
def check_standardise():
    past, future = np.array([[[1.0], [3.0]]]), np.array([[[5.0]]])
    with np.errstate(all="ignore"):
        answer = standardise(past, future)
        assert answer is not None, "standardise gives nothing back yet: return the past and the future"
        shapes = [np.shape(part) for part in answer]
        assert shapes == [(1, 2, 1), (1, 1, 1)], f"past (1, 2, 1) and future (1, 1, 1) became {shapes}"
        found = [part.ravel().tolist() for part in answer]
        assert found == [[-1, 1], [3]], f"past 1, 3 and future 5 became {found}, expected -1, 1 and 3"
        flat = standardise(np.full((1, 2, 1), 7.0), np.array([[[9.0]]]))[1].item()
        assert flat == 2, f"after a past of 7, 7 the future 9 became {flat}, expected (9 - 7) / 1 = 2"
        two = np.concatenate([past, 10 * past])
        found = standardise(two, two)[0][1].ravel()
        assert np.abs(found - [-1, 1]).max() <= 1e-9, f"the second window 10, 30 became {found}, not -1, 1"
        # BEGIN HIDDEN TESTS
        rng = np.random.default_rng(0)
        past, future = rng.standard_normal((3, 5, 2)), rng.standard_normal((3, 4, 2))
        moved = np.abs(standardise(past, future)[0] - standardise(past, future + 3)[0]).max()
        assert moved <= 1e-12, f"adding 3 to the future moved the past by {moved:.2f}"
        level = standardise(past, future)[0].mean(axis=1)
        assert np.abs(level).max() <= 1e-9, f"with two variables the means over time are {level[0]}"
        # END HIDDEN TESTS


# %% [markdown]
# ## 2. Rules first
#
# Before any training, ask what costs nothing:
# - **last value**: tomorrow is like today;
# - **mean**: of the past;
# - **seasonal naive**: the last period once more. CO2 was so a year ago, sunspots so 11 years ago;
# - **linear map**: the matrix above, one least-squares problem.
#
# The error is the mean squared error in units of the deviation of each past. An error of 1 means: wrong by
# one deviation.
#
# ### Exercise 2: the seasonal naive forecast
#
# The future repeats the last $P$ steps of the past, over and over if the horizon is longer than $P$. The past
# need not be a whole number of periods.


# %%
def repeat_period(past, horizon, period):
    """Forecast (W, horizon, V) from past (W, T, V): the last `period` steps, repeated."""
    # BEGIN SOLUTION
    return past[:, past.shape[1] - period + np.arange(horizon) % period]
    # END SOLUTION


# %% tags=["mistake"]
# Starts to repeat from the beginning of the past.
def repeat_period(past, horizon, period):
    return past[:, np.arange(horizon) % period]


# %% tags=["mistake"]
# Does not begin the period again when the horizon is longer.
def repeat_period(past, horizon, period):
    return past[:, -period:][:, :horizon]


# %%
@exercise("repeat_period")
def check_repeat_period():
    past = np.arange(5.0)[None, :, None]
    answer = repeat_period(past, 4, 3)
    assert answer is not None, "repeat_period gives nothing back yet: return (windows, horizon, variables)"
    assert np.shape(answer) == (1, 4, 1), f"for a horizon of 4 the shape is {np.shape(answer)}, not (1, 4, 1)"
    found = answer.ravel().astype(int).tolist()
    assert found == [2, 3, 4, 2], f"after 0 1 2 3 4 with period 3 you forecast {found}, expected [2, 3, 4, 2]"
    # BEGIN HIDDEN TESTS
    past = np.random.default_rng(0).standard_normal((2, 9, 3))
    for horizon, period in [(1, 1), (9, 9), (7, 2), (2, 7)]:
        err = np.abs(repeat_period(past, horizon, period) - seasonal_naive(past, horizon, period)).max()
        assert err <= 0, f"horizon {horizon}, period {period}: wrong by {err:.2f}"
    # END HIDDEN TESTS


# %%
def rules(name):
    """The error of every rule on the test windows."""
    learn, _, (past, future) = data[name]
    forecasts = {
        "last value": past[:, -1:],
        "mean": past.mean(axis=1, keepdims=True),
        "seasonal naive": seasonal_naive(past, SIZES[name][1], SIZES[name][2]),
        "linear map": linear_forecast(learn, past),
    }
    return {rule: standardised_error(past, future, forecast) for rule, forecast in forecasts.items()}


baseline = {name: rules(name) for name in SIZES}
for rule in baseline["co2"]:
    print(f"{rule:15}", "   ".join(f"{name} {baseline[name][rule]:.3f}" for name in SIZES))

# %% [markdown]
# The linear map is far ahead. What has it learned? Below are its weights, for every step of the future (rows)
# and every step of the past (columns, counted back from now). This is an attention map that never looks at
# the data: the same weights for every window.

# %%
picture = Picture(7.5, 2.6)
for axes, name in zip(picture.subplots(1, 2, width_ratios=(1.5, 1)), SIZES):
    (past, future), (T, S, _) = data[name][0], SIZES[name]
    m, s = past.mean(axis=1, keepdims=True), past.std(axis=1, keepdims=True)
    matrix = fit_linear(((past - m) / s)[..., 0].astype(float), ((future - m) / s)[..., 0])
    high = np.abs(matrix[:-1]).max()
    extent = (-T - 0.5, -0.5, S + 0.5, 0.5)
    shown = axes.imshow(matrix[:-1].T, cmap="RdBu", vmin=-high, vmax=high, aspect="auto", extent=extent)
    axes.set(xlabel="step of the past", ylabel="step of the future", title=f"{name}: weights of the map")
    axes.title.set_fontsize(10)
    picture.colorbar(shown, ax=axes)
picture

# %% [markdown]
# Blue pushes the forecast up. For CO2 there are two kinds of structure: the columns at the right end (where
# are we now?) and the slanted bands, the strongest of which starts 52 weeks back (what happened then?). For
# sunspots there is a band too, from about 11 years back: three steps further into the future it looks three
# years later.
#
# ## 3. What is a token?
#
# A transformer needs tokens. For a series there are three choices:
#
# | a token is | as in | attention mixes | tokens for 104 weeks of CO2 |
# |---|---|---|---|
# | one step | Autoformer | times | 104 |
# | a patch of steps | PatchTST, `Forecaster` of minitf | times | 26, of 4 weeks each |
# | one variable, its whole past | `itransformer` | variables | 1 |
#
# `Forecaster` cuts the standardised past into patches, sends them through blocks, and one linear head reads
# all tokens at once. Its mixer is a name of the catalogue. Which names fit a series? Ask each.

# %%
fits, refused = [], []
for kind in ("attention", "mixer"):
    for entry in mt.catalogue.find("*", kind=kind):
        try:
            Forecaster(ForecastConfig(104, 26, 4, dim=16, depth=1, heads=2, attention=entry.name))
            fits.append(entry.name)
        except (ValueError, TypeError):
            refused.append(f"{entry.name} ({entry.card.grid} grid)")
print(len(fits), "fit, among them", ", ".join(fits[-9:]))
print(len(refused), "do not:", ", ".join(refused))


# %% [markdown]
# Most of those refused want rows and columns. A series is an image with one row, so the Fourier filter
# `gfnet_filter` can be put in by hand. The training loop is the usual one; the loss is the error above.
#
# First softmax attention, trained for long. Before you run the second cell, draw the two curves: does the
# error on the *test* windows fall below the linear map?


# %%
def forecaster(name, mixer, seed, cls=Forecaster, past=None, **options):
    """A small model: one block of width 16. Patches of 4 weeks, or of 2 years."""
    past, (T, S, _) = past, SIZES[name]
    T, patch = past or T, 4 if name == "co2" and past != 26 else 2
    part = "softmax" if mixer == "gfnet_filter" else mixer
    config = ForecastConfig(T, S, patch, dim=16, depth=1, heads=2, attention=part, ffn="relu")
    net = cls(config, seed=seed, **options)
    if mixer == "gfnet_filter":
        row = (1, T // patch)
        net.blocks[0].mixer = mt.models.backbone.OnGrid(mt.build(mixer, 16, grid=row, seed=seed), row)
    return net


def error(net, windows):
    past, future = windows
    return standardised_error(past, future, net(mt.tensor(past)).numpy())


def train(net, data, steps, seed=0, every=None):
    """Train on data[0]; every so many steps note (step, training error, test error)."""
    (past, future), rng, notes = data[0], np.random.default_rng(seed), []
    optimizer = mt.train.AdamW(net.parameters())
    for step in range(steps):
        optimizer.lr = mt.train.warmup_cosine(step, steps, steps // 10, 0.01, 0.001)
        rows = rng.integers(0, len(past), size=16)
        unit = past[rows].std(axis=1, keepdims=True)
        loss = mt.ops.square((net(mt.tensor(past[rows])) - future[rows]) / unit).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if every and (step + 1) % every == 0:
            some = slice(None, None, 8)
            notes.append((step + 1, error(net, (past[some], future[some])), error(net, data[2])))
    return notes


# %%
STEPS, EVERY = {"co2": 420, "sunspots": 240}, {"co2": 60, "sunspots": 30}
curves = {}
for name in SIZES:
    net = forecaster(name, "softmax", 0)
    curves[name] = train(net, data[name], STEPS[name], every=EVERY[name])
picture = Picture(7.5, 2.7)
for axes, name in zip(picture.subplots(1, 2), SIZES):
    step, learned, tested = np.array(curves[name]).T
    axes.plot(step, learned, "o-", color=GREY, markersize=3, label="softmax, windows it learns from")
    axes.plot(step, tested, "o-", color=BLUE, markersize=3, label="softmax, test windows")
    axes.axhline(baseline[name]["seasonal naive"], color=GREEN, linestyle=":", label="seasonal naive")
    axes.axhline(baseline[name]["linear map"], color=ORANGE, linestyle="--", label="linear map")
    axes.set(xlabel="training step", ylabel="squared error", title=name, yscale="log")
    axes.set_yticks(*[[0.05, 0.1, 0.2, 0.4, 0.6]] * 2)
    axes.minorticks_off()
axes.legend(fontsize=7, loc="lower left")
for name in SIZES:
    step, learned, tested = curves[name][-1]
    best = min(tested for _, _, tested in curves[name])
    line = baseline[name]["linear map"]
    print(f"{name:9} softmax after {step} steps {tested:.3f}, at its best {best:.3f}; linear map {line:.3f}")
picture

# %% [markdown]
# Two different stories. On CO2, with over a thousand windows, attention comes down to the line and stays
# about there. On sunspots, with fewer than two hundred windows, the error on the windows it learns from keeps
# falling, but the test error does not follow: it wavers, and ends above the rule that costs nothing.
#
# So is attention the wrong mixer? Here are others, with equal width and equal steps: few steps, before the
# two errors part. `pool_mixer` has no weights at all, it only averages neighbours. Sunspots with all seven
# and two seeds (a dot each), CO2 with four and one seed.

# %%
MIXERS = ["softmax", "auto_correlation", "pool_mixer", "itransformer", "s4d", "mlp_mixer", "gfnet_filter"]
FEW, scores, nets = {"co2": 100, "sunspots": 80}, {}, {}
for name, mixers, seeds in (("co2", MIXERS[:4], 1), ("sunspots", MIXERS, 2)):
    for mixer in mixers:
        for seed in range(seeds):
            T, S, _ = SIZES[name]
            if mixer == "itransformer":
                net = mt.build(mixer, 16, heads=2, past=T, horizon=S, depth=1, act="relu", seed=seed)
            else:
                net = forecaster(name, mixer, seed)
            train(net, data[name], FEW[name], seed)
            scores.setdefault((name, mixer), []).append(error(net, data[name][2]))
            nets[name, mixer] = net
picture = Picture(7.5, 2.9)
for axes, name in zip(picture.subplots(1, 2), SIZES):
    shown = [mixer for mixer in MIXERS if (name, mixer) in scores]
    for row, mixer in enumerate(shown):
        axes.barh(row, np.mean(scores[name, mixer]), color=BLUE, alpha=0.35)
        axes.plot(scores[name, mixer], [row] * len(scores[name, mixer]), "o", color=BLUE, markersize=4)
    axes.axvline(baseline[name]["seasonal naive"], color=GREEN, linestyle=":", label="seasonal naive")
    axes.axvline(baseline[name]["linear map"], color=ORANGE, linestyle="--", label="linear map")
    axes.set(xlabel="squared error, test windows", title=f"{name}, {FEW[name]} steps")
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.4, -0.6)
picture.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower right", ncols=2)
picture

# %% [markdown]
# Whatever mixes the tokens, nobody passes the dashed line in so few steps. On CO2 even the pooling that
# learns nothing is not far behind: the linear head after the last block reads all tokens, and does most of
# the mixing by itself. On sunspots pooling fails. And the inverted transformer has *one* token here: its
# softmax has one entry, which is 1. It is a small network that sees the whole past at once, and we come
# back to it when there are several variables.
#
# ## 4. Auto-correlation: compare a series with itself, later
#
# Attention compares token with token. A series with a period $P$ asks for something else: compare the whole
# series with its copy $\tau$ steps later,
#
# $$r(\tau) = \sum_{t=0}^{N-1} x_{(t+\tau) \,\mathrm{mod}\, N} \; x_t$$
#
# If $r(\tau)$ is large, what came $\tau$ steps later was similar: read the values there. One sum costs $N$
# products, all of them $N^2$. The Fourier transform does it in $N \log N$: with $F$ the transform of $x$ and
# $\bar F$ its complex conjugate, $r$ is the inverse transform of $F \bar F$.
#
# ### Exercise 3: the correlation of a series with itself
#
# Use `np.fft.rfft` and `np.fft.irfft`. Mind series with an odd number of steps.


# %%
def correlation_with_itself(x):
    """r (N,) of a series x (N,): r[tau] = sum over t of x[(t + tau) % N] * x[t]."""
    # BEGIN SOLUTION
    waves = np.fft.rfft(x)
    return np.fft.irfft(waves * np.conj(waves), n=len(x))
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the conjugate: that is a convolution.
def correlation_with_itself(x):
    waves = np.fft.rfft(x)
    return np.fft.irfft(waves * waves, n=len(x))


# %% tags=["mistake"]
# Does not say how long the series is.
def correlation_with_itself(x):
    waves = np.fft.rfft(x)
    return np.fft.irfft(waves * np.conj(waves))


# %% tags=["mistake"]
# Does not go around the circle.
def correlation_with_itself(x):
    return np.correlate(x, x, mode="full")[len(x) - 1 :]


# %%
@exercise("correlation_with_itself")
def check_correlation_with_itself():
    rng = np.random.default_rng(0)
    for x in (np.array([1.0, 2.0, 0.0]), rng.standard_normal(8)):
        answer = correlation_with_itself(x)
        assert answer is not None, "correlation_with_itself gives nothing back yet: return one number a delay"
        assert np.shape(answer) == x.shape, f"{len(x)} steps have {len(x)} delays, not {np.shape(answer)}"
        expected = np.array([np.roll(x, -tau) @ x for tau in range(len(x))])
        err = np.abs(answer - expected).max()
        assert err <= 1e-9, f"for {x} the answer is {answer}, expected {expected}"
    # BEGIN HIDDEN TESTS
    x = rng.standard_normal(101) + 5
    expected = np.array([np.roll(x, -tau) @ x for tau in range(len(x))])
    err = np.abs(correlation_with_itself(x) - expected).max()
    assert err <= 1e-8, f"for 101 steps around 5 the answer is wrong by {err:.2e}"
    # END HIDDEN TESTS


# %% [markdown]
# Now look for the year in the CO2, in windows of four years. An auto-correlation layer keeps the
# $K = \lfloor \ln N \rfloor$ largest delays of $r$: here five, and four for sunspots. The dots are those.
# Grey: the windows as they are. Blue: first a moving average over about one period is taken away.

# %%
from minitf.blocks.series_decomposition import decompose
from minitf.mixers.auto_correlation import correlation
from minitf.tasks.series import fill_gaps, windows


def mean_correlation(x):
    """r (N,) over all windows x (W, N, 1), with r[0] = 1."""
    heads = x[:, None]
    r = correlation(heads, heads).numpy().mean(axis=(0, 1, 3))
    return r / r[0]


picture, largest = Picture(7.5, 2.7), {}
for axes, name, N, kernel, top in zip(picture.subplots(1, 2), SIZES, (208, 66), (53, 11), (5, 4)):
    series = fill_gaps(load_series(name)[1])
    past = windows(series[: round(0.7 * len(series))], N, 1)[0]
    z = mt.tensor((past - past.mean(axis=1, keepdims=True)) / past.std(axis=1, keepdims=True))
    for label, x, color in (("as it is", z, GREY), ("trend taken away", decompose(z, kernel)[0], BLUE)):
        r = mean_correlation(x)
        largest[name, label] = np.sort(np.argsort(-r)[:top]).tolist()
        axes.plot(r, color=color, label=label)
        axes.plot(largest[name, label], r[largest[name, label]], "o", color=color, markersize=4)
        print(f"{name:9}{label:17} largest delays {largest[name, label]}")
    axes.set(xlabel="delay in " + ("weeks" if name == "co2" else "years"), ylabel="correlation", title=name)
    axes.set_xticks(range(0, N + 1, 52 if name == "co2" else 11))
axes.legend(fontsize=8)
picture

# %% [markdown]
# Weeks next to each other are alike, so delays near 0 (or, around the circle, near $N$) always look good. In
# the raw CO2 they take all five places, because a window that rises has its ends far apart. With the trend
# gone, 52 and 156 weeks get a place: whole years. Sunspots have little trend, and one cycle has its place
# from the start.
#
# So a trend must go before periods can be found. That is the reason for the second half of Autoformer.
#
# ## 5. Take the trend apart
#
# A **series decomposition** splits a series into a moving average (the *trend*) and the rest (the *season*):
#
# $$\mathrm{trend}_t = \frac{1}{\kappa} \sum_{j=-h}^{h} x_{t+j}, \qquad h = \frac{\kappa - 1}{2}, \qquad
# \mathrm{season} = x - \mathrm{trend}$$
#
# $\kappa$ is odd. Beyond the ends, the first and the last value are repeated.
#
# ### Exercise 4: the moving average


# %%
def moving_average(x, kernel):
    """The trend (T,) of a series x (T,): the mean of `kernel` steps around each, ends repeated."""
    # BEGIN SOLUTION
    side = kernel // 2
    longer = np.concatenate([np.full(side, x[0]), x, np.full(side, x[-1])])
    return np.convolve(longer, np.ones(kernel) / kernel, mode="valid")
    # END SOLUTION


# %% tags=["mistake"]
# Puts zeros beyond the ends.
def moving_average(x, kernel):
    longer = np.pad(x, kernel // 2)
    return np.convolve(longer, np.ones(kernel) / kernel, mode="valid")


# %% tags=["mistake"]
# Looks back only, so the trend lags behind.
def moving_average(x, kernel):
    longer = np.concatenate([np.full(kernel - 1, x[0]), x])
    return np.convolve(longer, np.ones(kernel) / kernel, mode="valid")


# %% tags=["mistake"]
# Does not pad: the series gets shorter.
def moving_average(x, kernel):
    return np.convolve(x, np.ones(kernel) / kernel, mode="valid")


# %%
@exercise("moving_average")
def check_moving_average():
    rng = np.random.default_rng(0)
    for x, kernel in [(np.array([0.0, 0.0, 3.0]), 3), (np.array([2.0, 5.0]), 1), (rng.standard_normal(9), 5)]:
        answer = moving_average(x, kernel)
        assert answer is not None, "moving_average gives nothing back yet: return one mean a step"
        assert np.shape(answer) == x.shape, f"kernel {kernel} made {len(x)} steps {np.shape(answer)}"
        expected = decompose(mt.tensor(x[None, :, None]), kernel)[1].numpy().ravel()
        err = np.abs(answer - expected).max()
        assert err <= 1e-9, f"the trend of {x} with kernel {kernel} is {answer}, expected {expected}"
    # BEGIN HIDDEN TESTS
    line = 0.5 * np.arange(40)
    err = np.abs(moving_average(line, 7) - line)[3:-3].max()
    assert err <= 1e-9, f"inside, a straight line must be its own trend; yours is off by {err:.2f}"
    # END HIDDEN TESTS


# %% [markdown]
# Three years of CO2, taken apart by the library. The two parts always add up to the series: nothing is lost,
# whatever $\kappa$ is. And you have met a decomposition before: `pool_mixer` gives the mean of the neighbours
# *less* the token itself. That is the season with its sign turned, away from the ends.

# %%
series = fill_gaps(load_series("co2")[1])[None, -156:, None]
picture = Picture(7.5, 2.8)
for axes, kernel in zip(picture.subplots(1, 3, sharey=True), (5, 25, 53)):
    season, trend = (part.numpy() for part in decompose(mt.tensor(series), kernel))
    sum_error = np.abs(season + trend - series).max()
    pooled = mt.build("pool_mixer", 1, window=kernel, dtype="float64")(mt.tensor(series)).numpy()
    h = kernel // 2
    same = np.abs(pooled + season)[:, h:-h].max()
    axes.plot(series[0, :, 0] - 360, color=GREY, linewidth=0.8, label="series - 360")
    axes.plot(trend[0, :, 0] - 360, color=ORANGE, label="trend - 360")
    axes.plot(season[0, :, 0], color=BLUE, label="season")
    axes.set(title=f"kernel {kernel}", xlabel="weeks")
    print(f"kernel {kernel:2}: trend + season is off by {sum_error:.0e}, pool_mixer + season by {same:.0e}")
picture.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=3)
picture

# %% [markdown]
# ### Does it help a linear map?
#
# **DLinear** is one linear map for the trend, another for the season, added. It became famous for beating the
# transformers of its time. Predict: does it beat *one* linear map?
#
# Trend and season are linear in $x$: $\mathrm{trend} = A x$ and $\mathrm{season} = (I - A) x$. So
# $W_1 A x + W_2 (I - A) x$ is again one matrix times $x$; and with $W_1 = W_2 = W$ it is $W x$. The two
# models can express exactly the same forecasts. What remains is how the ridge weighs them.

# %%
split_gain = {}
for name, (_, _, period) in SIZES.items():
    scaled = []
    for past, future in (data[name][0], data[name][2]):
        past, future = past.astype(float), future.astype(float)
        m, s = past.mean(axis=1, keepdims=True), past.std(axis=1, keepdims=True)
        z = (past - m) / s
        both = np.concatenate([part.numpy() for part in decompose(mt.tensor(z), period // 2 * 2 + 1)], axis=1)
        scaled.append((z[..., 0], both[..., 0], ((future - m) / s)[..., 0]))
    (z, both, goal), (z_test, both_test, goal_test) = scaled
    for ridge in (1e-1, 1e-3, 1e-6):
        one = apply_linear(fit_linear(z, goal, ridge), z_test)
        two = apply_linear(fit_linear(both, goal, ridge), both_test)
        split_gain[name, ridge] = np.mean((one - goal_test) ** 2), np.mean((two - goal_test) ** 2)
        words = "ridge {:.0e}: one map {:.4f}, DLinear {:.4f}".format(ridge, *split_gain[name, ridge])
        print(f"{name:9} {words}, forecasts differ by at most {np.abs(one - two).max():.0e}")

# %% [markdown]
# As the ridge goes to zero, so does the difference. The decomposition gave DLinear its name, but not its
# strength.
#
# ### Does it help a transformer?
#
# Blocks are not linear, so here it may. `series_decomposition` is the encoder layer of Autoformer: after each
# branch it takes the moving average away and passes on the season. We put softmax attention into it, so that
# only the decomposition differs. There is a trap: the trend is *thrown away*. Autoformer adds it up in its
# decoder. Here, a linear map forecasts the trend of the series beside the network. And because that map is a
# gift in itself, a control gets it too, without any decomposition.


# %%
class WithLine(Forecaster):
    """A forecaster, plus a linear map of the trend; of the whole series if there is no kernel."""

    def __init__(self, config, seed, kernel=None):
        super().__init__(config, seed)
        self.kernel, self.line = kernel, mt.nn.Linear(config.context, config.horizon, seed=seed)
        self.line.weight.data *= 0

    def future(self, z, rng):
        season, trend = decompose(z, self.kernel) if self.kernel else (z, z)
        return super().future(season, rng) + self.line(trend.mT).mT


def decomposing(name, seed):
    """The encoder layer of Autoformer with softmax attention; the average is over about one period."""
    mixer = mt.build("softmax_attention", 16, heads=2, causal=False, seed=seed)
    ffn, kernel = mt.build("relu_ffn", 16, seed=seed), 13 if name == "co2" else 5
    return [mt.build("series_decomposition", 16, kernel=kernel, mixer=mixer, ffn=ffn)]


ARMS = ["as before", "block throws trend away", "block + line for the trend", "no block, line for all"]
arms = {(name, ARMS[0]): scores[name, "softmax"] for name in SIZES}
for name, seeds in (("co2", 1), ("sunspots", 2)):
    for arm in ARMS[1:]:
        for seed in range(seeds):
            trend = {"kernel": SIZES[name][2] // 2 * 2 + 1} if "trend" in arm and "line" in arm else {}
            net = forecaster(name, "softmax", seed, WithLine if "line" in arm else Forecaster, **trend)
            if "no block" not in arm:
                net.blocks = decomposing(name, seed)
            train(net, data[name], FEW[name], seed)
            arms.setdefault((name, arm), []).append(error(net, data[name][2]))
picture = Picture(7.5, 2.2)
for axes, name in zip(picture.subplots(1, 2), SIZES):
    for row, arm in enumerate(ARMS):
        axes.barh(row, np.mean(arms[name, arm]), color=BLUE, alpha=0.35)
        axes.plot(arms[name, arm], [row] * len(arms[name, arm]), "o", color=BLUE, markersize=4)
    axes.axvline(baseline[name]["linear map"], color=ORANGE, linestyle="--")
    axes.set(xlabel="squared error (dashed: linear map)", title=f"{name}, {FEW[name]} steps")
    axes.set_yticks(range(len(ARMS)), ARMS if name == "co2" else [])
    axes.set_ylim(len(ARMS) - 0.4, -0.6)
for name in SIZES:
    for arm in ARMS:
        print(f"{name:9} {arm:27}", " ".join(f"{value:.3f}" for value in arms[name, arm]))
picture

# %% [markdown]
# Read the control first. On CO2 the line alone does better than the block with a line: what helped was the
# linear path, not the decomposition. On sunspots the decomposition itself helps: the block with a line is
# ahead of the control with either seed, though still behind the linear map. A result on one of two series is
# worth what it is worth.
#
# ## 6. More past, better forecast?
#
# A longer past holds more information, so a good model should not get worse. Again the measure is a trap: our
# unit is the deviation of the past, and with a trend it grows with the length of the past. The same forecast
# would look better. So now we measure in ppm (the root of the mean squared error), on the same futures for
# all.

# %%
S, pasts = SIZES["co2"][1], [26, 39, 52, 78, 104, 156, 200]
ppm = {"linear map": {}, "softmax": {}, "deviation of the past": {}}
same_futures = len(split_series("co2", 200, S)[2][0])
for past_steps in pasts:
    parts = split_series("co2", past_steps, S)
    past, future = (part[-same_futures:] for part in parts[2])
    guesses = {"linear map": linear_forecast(parts[0], past)}
    if past_steps in (26, 104, 200):
        # For 104 weeks there is one already.
        net = nets["co2", "softmax"]
        if past_steps != 104:
            net = forecaster("co2", "softmax", 0, past=past_steps)
            train(net, parts, FEW["co2"])
        guesses["softmax"] = net(mt.tensor(past)).numpy()
    for model, guess in guesses.items():
        ppm[model][past_steps] = np.sqrt(np.mean((guess - future) ** 2))
    ppm["deviation of the past"][past_steps] = past.std(axis=1).mean()
picture = Picture(6.5, 2.8)
axes = picture.subplots()
for (model, found), color in zip(ppm.items(), (ORANGE, BLUE, GREY)):
    axes.plot(list(found), list(found.values()), "o-", color=color, label=model, markersize=4)
naive = np.sqrt(np.mean((seasonal_naive(past, S, 52) - future) ** 2))
axes.axhline(naive, color=GREEN, linestyle=":", label="seasonal naive")
axes.set(xlabel="weeks of the past that are seen", ylabel="ppm", ylim=(0, 3.8), xticks=pasts)
axes.legend(fontsize=8, ncols=2, loc="upper right")
for model in ("linear map", "softmax"):
    words = "  ".join(f"{steps} weeks {value:.2f}" for steps, value in ppm[model].items())
    print(f"{model:11}", words)
picture

# %% [markdown]
# With half a year in sight, attention is ahead: it can tell from the shape which half it is, and answer
# accordingly, while the matrix has one answer for all. At two years and beyond the linear map wins, and it
# gets better with every year. Attention, trained as briefly as before and with one seed, gets worse again
# when the past is longest: more tokens, more weights in its head, and not one window more to learn them from.
#
# ## 7. Turn the tokens around
#
# So far every series was alone. Now six sensors stand along a river. A wave passes one after the other, five
# steps apart. Sensor A, upstream, cannot be forecast. But what sensor B will see in the next four steps,
# sensor A has seen already. In every example the sensors come in a **different order**.
#
# `itransformer` makes one token of the whole past of one sensor. Attention then compares *sensors*. It has no
# positions: sensors are a set. The second cell fits two linear rivals on 2000 rivers: one sees a sensor
# alone, the other all six columns at once. All three are also tried on sensors in a fixed
# order, where the second rival should shine.

# %%
PAST, AHEAD, LAG, SENSORS = 24, 4, 5, 6


def river(rng, size=32, shuffled=True):
    """past (size, 24, 6), future (size, 4, 6), and which place along the river each column has."""
    length = PAST + AHEAD + LAG * SENSORS
    wave = np.zeros((size, length))
    for t in range(1, length):
        wave[:, t] = 0.8 * wave[:, t - 1] + 0.6 * rng.standard_normal(size)
    starts = LAG * np.arange(SENSORS)[::-1]
    x = np.stack([wave[:, a : a + PAST + AHEAD] for a in starts], axis=-1)
    x += 0.05 * rng.standard_normal(x.shape)
    places = np.argsort(rng.random((size, SENSORS)), axis=1) if shuffled else np.arange(SENSORS)[None]
    x = np.take_along_axis(x, places[:, None], axis=2).astype("float32")
    return x[:, :PAST], x[:, PAST:], places


rng = np.random.default_rng(0)
inverted = mt.build("itransformer", 32, past=PAST, horizon=AHEAD, depth=1, act="relu", seed=0)
optimizer = mt.train.AdamW(inverted.parameters(), weight_decay=0.0)
for step in range(220):
    optimizer.lr = mt.train.warmup_cosine(step, 220, 20, 0.01)
    past, future, _ = river(rng)
    loss = mt.ops.square((inverted(mt.tensor(past)) - future) / past.std(axis=1, keepdims=True)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
past, future, places = river(np.random.default_rng(9), 256)
print(f"training error at the end {loss.item():.2f}, on new rivers {error(inverted, (past, future)):.2f}")


# %%
def flat(x):
    """(B, T, V) -> (B, T * V)."""
    return x.reshape(len(x), -1).astype(float)


def alone(x):
    """(B, T, V) -> (B * V, T, 1): every sensor is an example."""
    return np.swapaxes(x, 1, 2).reshape(-1, x.shape[1], 1)


found = {}
for order in (False, True):
    past_l, future_l, _ = river(np.random.default_rng(3), 2000, order)
    past_t, future_t, _ = river(np.random.default_rng(9), 256, order)
    every = apply_linear(fit_linear(flat(past_l), flat(future_l)), flat(past_t)).reshape(future_t.shape)
    one = linear_forecast((alone(past_l), alone(future_l)), alone(past_t))
    one = np.swapaxes(one.reshape(256, SENSORS, AHEAD), 1, 2)
    guess = inverted(mt.tensor(past_t)).numpy()
    for model, values in (("linear, each alone", one), ("linear, all six", every), ("itransformer", guess)):
        found[model, order] = standardised_error(past_t, future_t, values)
for model in ("linear, each alone", "linear, all six", "itransformer"):
    print(
        f"{model:19} fixed order {found[model, False]:.2f}   a new order each time {found[model, True]:.2f}"
    )

# %% [markdown]
# Where does the inverted transformer look? Sort the sensors by their place along the river, and average the
# attention maps. And since variables are a set, ask it something no matrix can be asked: forecast from three
# sensors when it was trained on six.

# %%
z = (past - past.mean(axis=1, keepdims=True)) / past.std(axis=1, keepdims=True)
maps = inverted.blocks[0].mixer.weights(inverted.embed(mt.tensor(z).mT)).numpy()
order = np.argsort(places, axis=1)
inside = np.stack([m[:, o][:, :, o] for m, o in zip(maps, order)]).mean(axis=(0, 1))
guess = np.take_along_axis(inverted(mt.tensor(past)).numpy(), order[:, None], axis=2)
sorted_past, sorted_future = (np.take_along_axis(a, order[:, None], axis=2) for a in (past, future))
columns = [[a[..., i : i + 1] for a in (sorted_past, sorted_future, guess)] for i in range(6)]
by_place = [standardised_error(*three_arrays) for three_arrays in columns]
few = inverted(mt.tensor(sorted_past[..., :3])).numpy()
three = standardised_error(sorted_past[..., 1:3], sorted_future[..., 1:3], few[..., 1:])
picture = Picture(7, 2.8)
left, right = picture.subplots(1, 2)
left.imshow(inside, cmap="Blues", vmin=0)
left.set(xlabel="looks at sensor", ylabel="sensor", title="mean attention, four heads")
for set_ticks in (left.set_xticks, left.set_yticks):
    set_ticks(range(6), list("ABCDEF"))
right.bar(list("ABCDEF"), by_place, color=BLUE)
right.axhline(found["linear, each alone", True], color=ORANGE, linestyle="--", label="linear, each alone")
right.set(xlabel="sensor", ylabel="squared error", title="error by place")
right.legend(fontsize=8)
print(f"B and C with six sensors: {np.mean(by_place[1:3]):.2f}; with A, B and C only: {three:.2f}")
picture

# %% [markdown]
# The dark line beside the diagonal: every sensor looks at the one *upstream* of it, wherever that stands in
# the table. Sensor A has nobody upstream, and its forecast is poor. Here attention does what one matrix
# cannot: who is to be read depends on the data. With a single series there is nobody to look at, which is
# why the inverted transformer gained nothing in section 3.
#
# ## 8. Your own auto-correlation layer
#
# ### Exercise 5: two delays
#
# Put it together. From $q, k, v$ of shape (B, N, D):
#
# 1. $c(\tau) = \sum_t q_{(t+\tau) \,\mathrm{mod}\, N}\, k_t$ for each channel, by `mt.ops.rfft`,
#    `mt.ops.conj` and `mt.ops.irfft` along axis 1;
# 2. $r$ (B, N): the mean of $c$ over the channels;
# 3. the two largest delays of **each example** (one, if $N = 1$): `mt.ops.topk(r.detach(), 2, axis=1)` gives
#    values and positions. Their weights are a softmax over the two values of $r$: `mt.ops.take_along_axis`;
# 4. the weighted sum of $v$, read at $(t + \tau) \,\mathrm{mod}\, N$: `shifted(v, tau)` is given.
#
# The check compares with loops, then lets the properties of the catalogue's layer tear at yours.


# %%
def shifted(v, tau):
    """v (B, N, D) read at (t + tau) mod N, with one delay for each example: tau (B,), integers."""
    at = (np.arange(v.shape[1]) + tau[:, None]) % v.shape[1]
    return mt.ops.take_along_axis(v, np.broadcast_to(at[..., None], v.shape), axis=1)


class MyLayer(mt.nn.Module):
    """x (B, N, D) -> (B, N, D), by your function."""

    def __init__(self, dim, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        self.wq, self.wk, self.wv = (mt.nn.Linear(dim, dim, False, rng, dtype=dtype) for _ in range(3))

    def forward(self, x):
        return auto_correlate(self.wq(x), self.wk(x), self.wv(x))


def auto_correlate(q, k, v):
    """o (B, N, D) from q, k, v (B, N, D), tensors."""
    # BEGIN SOLUTION
    n = v.shape[1]
    waves = mt.ops.rfft(q, axis=1) * mt.ops.conj(mt.ops.rfft(k, axis=1))
    r = mt.ops.irfft(waves, n=n, axis=1).mean(axis=2)
    tau = mt.ops.topk(r.detach(), min(2, n), axis=1)[1].numpy()
    w = mt.ops.softmax(mt.ops.take_along_axis(r, tau, axis=1))
    o = w[:, :1, None] * shifted(v, tau[:, 0])
    return o + w[:, 1:, None] * shifted(v, tau[:, 1]) if n > 1 else o
    # END SOLUTION


# %% tags=["mistake"]
# Chooses the delays by the mean over the batch, as the published code does in training.
def auto_correlate(q, k, v):
    n = v.shape[1]
    waves = mt.ops.rfft(q, axis=1) * mt.ops.conj(mt.ops.rfft(k, axis=1))
    r = mt.ops.irfft(waves, n=n, axis=1).mean(axis=2)
    judged = 0 * r.detach() + r.detach().mean(axis=0, keepdims=True)
    tau = mt.ops.topk(judged, min(2, n), axis=1)[1].numpy()
    w = mt.ops.softmax(mt.ops.take_along_axis(r, tau, axis=1))
    o = w[:, :1, None] * shifted(v, tau[:, 0])
    return o + w[:, 1:, None] * shifted(v, tau[:, 1]) if n > 1 else o


# %% tags=["mistake"]
# Reads the values in the wrong direction.
def auto_correlate(q, k, v):
    n = v.shape[1]
    waves = mt.ops.rfft(q, axis=1) * mt.ops.conj(mt.ops.rfft(k, axis=1))
    r = mt.ops.irfft(waves, n=n, axis=1).mean(axis=2)
    tau = mt.ops.topk(r.detach(), min(2, n), axis=1)[1].numpy()
    w = mt.ops.softmax(mt.ops.take_along_axis(r, tau, axis=1))
    o = w[:, :1, None] * shifted(v, -tau[:, 0])
    return o + w[:, 1:, None] * shifted(v, -tau[:, 1]) if n > 1 else o


# %% tags=["mistake"]
# Takes the softmax over all delays, so that the two weights do not sum to one.
def auto_correlate(q, k, v):
    n = v.shape[1]
    waves = mt.ops.rfft(q, axis=1) * mt.ops.conj(mt.ops.rfft(k, axis=1))
    r = mt.ops.irfft(waves, n=n, axis=1).mean(axis=2)
    tau = mt.ops.topk(r.detach(), min(2, n), axis=1)[1].numpy()
    w = mt.ops.take_along_axis(mt.ops.softmax(r), tau, axis=1)
    o = w[:, :1, None] * shifted(v, tau[:, 0])
    return o + w[:, 1:, None] * shifted(v, tau[:, 1]) if n > 1 else o


# %%
@exercise("auto_correlate")
def check_auto_correlate():
    v = np.array([1.0, 2.0, 3.0, 4.0])
    # A query at step 1 and a key at step 0; then several of each.
    for q, k in (np.eye(4)[[1, 0]], np.array([[1.0, 0.0, 3.0, 0.5], [0.0, 2.0, 0.0, 1.0]])):
        answer = auto_correlate(*(mt.tensor(a[None, :, None]) for a in (q, k, v)))
        assert answer is not None, "auto_correlate gives nothing back yet: return o (B, N, D)"
        assert answer.shape == (1, 4, 1), f"for q, k, v of shape (1, 4, 1) the answer has {answer.shape}"
        r = np.array([np.roll(q, -tau) @ k for tau in range(4)])
        two = np.argsort(-r, kind="stable")[:2]
        w = np.exp(r[two]) / np.exp(r[two]).sum()
        expected = sum(weight * np.roll(v, -tau) for weight, tau in zip(w, two))
        found = answer.numpy().ravel()
        words = f"q = {q}, k = {k}: delays {two.tolist()} with weights {w}"
        assert np.abs(found - expected).max() <= 1e-9, f"{words} give {expected}, and you give {found}"
    claims = ("translation_equivariant", "batch_independent")
    report = check_variant(MyLayer, kind="token_mixer", claims=claims, examples=NOTEBOOK, on_fail=None)
    broken = "; ".join(f"{result.check}: {result.reason}, for {result.case}" for result in report.failed)
    assert not broken, f"it agrees with the loops for one example, but {broken}"
    # BEGIN HIDDEN TESTS
    q, k, v = np.random.default_rng(4).standard_normal((3, 2, 5, 3))
    answer = auto_correlate(*map(mt.tensor, (q, k, v))).numpy()
    for one in range(2):
        r = np.mean(
            [[np.roll(q[one, :, c], -tau) @ k[one, :, c] for tau in range(5)] for c in range(3)], axis=0
        )
        two = np.argsort(-r, kind="stable")[:2]
        w = np.exp(r[two]) / np.exp(r[two]).sum()
        expected = sum(weight * np.roll(v[one], -tau, axis=0) for weight, tau in zip(w, two))
        error = np.abs(answer[one] - expected).max()
        assert error <= 1e-9, f"with three channels, example {one}: off by {error:.2g}; r is their mean"
    # END HIDDEN TESTS


# %% [markdown]
# The published code differs from yours on purpose: in training it chooses the delays once for the whole
# batch, which is quicker. Then the forecast for one example depends on its neighbours in the batch. The
# catalogue's layer keeps that as its training mode. Look:

# %%
layer = mt.build("auto_correlation", 16, heads=2, seed=0, dtype="float64")
x = mt.tensor(np.random.default_rng(0).standard_normal((8, 26, 16)))
neighbours = {}
for mode in ("inference", "training"):
    layer.mode = mode
    neighbours[mode] = np.abs(layer(x).numpy()[:1] - layer(x[:1]).numpy()).max()
    print(f"{mode:9}: the first example, alone and among eight, differs by {neighbours[mode]:.0e}")

# %%
from IPython.display import Markdown

best_mixer = {}
for name, mixer in sorted(scores, key=lambda key: -np.mean(scores[key])):
    best_mixer[name] = mixer
best_seen = {name: min(c for _, _, c in curves[name]) for name in SIZES}
linear = {name: baseline[name]["linear map"] for name in SIZES}
after = {name: np.mean(scores[name, best_mixer[name]]) for name in SIZES}
arm_means = {key: np.mean(values) for key, values in arms.items()}
rows = [
    (
        "*Are Transformers Effective for Time Series Forecasting?* (arXiv:2205.13504): one linear layer "
        "beats the transformers of its time in most cases",
        "; ".join(
            f"{name}: linear {linear[name]:.3f}, best mixer after {FEW[name]} steps {after[name]:.3f} "
            f"(`{best_mixer[name]}`), softmax after {STEPS[name]} steps {curves[name][-1][2]:.3f}, at best "
            f"{best_seen[name]:.3f}"
            for name in SIZES
        ),
    ),
    (
        "the same: DLinear takes trend and season apart",
        "with a ridge of 1e-6 one map and two give "
        + ", ".join("{:.4f} and {:.4f} on {}".format(*split_gain[name, 1e-6], name) for name in SIZES),
    ),
    (
        "the same, and *Transformers in Time Series* (arXiv:2202.07125): with a longer past, transformers "
        "stay as they are or get worse; a linear map improves",
        "CO2 from 104 to 200 weeks: linear {:.2f} to {:.2f} ppm, softmax {:.2f} to {:.2f} ppm (one seed, {} "
        "steps)".format(*(ppm[m][n] for m in ("linear map", "softmax") for n in (104, 200)), FEW["co2"]),
    ),
    (
        "*Autoformer* (arXiv:2106.13008), 3.1: decomposition inside the network helps; the survey agrees",
        "; ".join(
            f"{name}: without {arm_means[name, ARMS[0]]:.3f}, with it and a line for the trend "
            f"{arm_means[name, ARMS[2]]:.3f}, the line without it {arm_means[name, ARMS[3]]:.3f}"
            for name in SIZES
        ),
    ),
    (
        "*Autoformer*, 3.2: auto-correlation finds the period",
        f"CO2 with its trend: delays {largest['co2', 'as it is']}; without: "
        f"{largest['co2', 'trend taken away']}; sunspots without: {largest['sunspots', 'trend taken away']}",
    ),
    (
        "*iTransformer* (arXiv:2310.06625): attention over variables captures how they depend on each other, "
        "and takes any number of them",
        f"six sensors in changing order: each alone {found['linear, each alone', True]:.2f}, all by one "
        f"matrix {found['linear, all six', True]:.2f}, `itransformer` {found['itransformer', True]:.2f}; "
        f"with three sensors {three:.2f} for B and C",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# These series are short, the models are small, and most of them have seen few steps. The test windows of one
# series overlap: 33 windows of sunspots are not 33 independent trials. Do not carry the ranking elsewhere.
# Carry the habit: rules first, the past alone in the units, the same futures for all, and a control.
#
# ## On your own
#
# - We stopped early to save your time. Train softmax on CO2 for 800 steps with batches of 32 and three seeds.
#   Does it pass the linear map? By more than the seeds differ?
# - Give the sunspot forecaster dropout, another weight decay, or half the width, and choose by the test error
#   what is best. How much of the gain was choosing?
# - `load_series("elnino")` has months since 1950. Which period, which rules, and who wins?
# - Plant spikes in the test part of the CO2. Use the error of the linear map one step ahead to find them.
#   What share do you find at one false alarm in a hundred?
# - In section 7, let the wave take 5 steps between some sensors and 8 between others. Does the attention map
#   still find the one upstream? What does each head do?
#
# ## Where to go next
#
# `minitf/blocks/series_decomposition.py` has the decoder of Autoformer as well, which adds the trends up.
# `minitf train --task co2 --attention auto_correlation --out runs/co2` trains a larger forecaster and prints
# the two baselines beside it. `mt.catalogue.find("*", family="state space")` lists mixers that read a series
# step by step.
