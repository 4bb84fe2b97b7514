# %% [markdown]
# # Retrieve memories: Hopfield networks and attention
#
# **What you will do.** Store patterns in a network of 1982 and overfill it. Replace its energy by that of the
# modern network, and find that its update is attention. Let it complete handwritten digits, see it confuse
# similar ones, and use it in three layers.
#
# **What you will learn.** The Hebbian matrix and its capacity; an energy that never rises; what the inverse
# temperature $\beta$ decides; metastable states; why one step is often enough; what layer norm is for; how a
# learned query finds the one informative token of a bag.
#
# **What you need.** Lesson `02_build_attention`. What an eigenvalue is helps in one place.
#
# **Variants.** `hopfield`, `hopfield_layer`, `hopfield_pooling`

# %%
import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf import ops
from minitf.attention.hopfield import energy, retrieve
from minitf.testing import NOTEBOOK, check_variant, exercise
from minitf.viz import Picture
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

mt.use("reference")
np.set_printoptions(precision=3, suppress=True)
images, labels = mt.tasks.load_digits()
pixels = images.reshape(-1, 64).astype(np.float64)
print(f"{len(pixels)} digits of {pixels.shape[1]} pixels, from 0 (paper) to {pixels.max():.0f} (ink)")

# %% [markdown]
# ## 1. The classical network
#
# You hum three notes, and the song comes back: you asked a memory with a *part* of what it holds. Hopfield
# (1982) built one from $d$ units that are $+1$ or $-1$. To store the patterns $x^1 \ldots x^P$, strengthen
# the wire between two units that agree and weaken it between two that differ:
#
# $$W = \frac{1}{d} \sum_{\mu=1}^{P} x^\mu (x^\mu)^T \qquad\qquad W_{ii} = 0$$
#
# To retrieve, start from a state $s$ and let one unit after the other follow its neighbours:
# $s_i \leftarrow \mathrm{sign}(\sum_j W_{ij} s_j)$. Each change lowers the energy $-\frac12 s^T W s$, so it
# comes to rest. The diagonal is zero: a unit that votes for itself would not listen to the others.
#
# ### Exercise 1: the Hebbian matrix
#
# Write $W$ without a loop over patterns. Patterns are the rows.


# %%
def hebbian(patterns):
    """W (d, d) without self-connections, from patterns (P, d) of +1 and -1."""
    # BEGIN SOLUTION
    d = patterns.shape[1]
    w = patterns.T @ patterns / d
    return w * (1 - np.eye(d))
    # END SOLUTION


# %% tags=["mistake"]
# Leaves the units connected with themselves.
def hebbian(patterns):
    return patterns.T @ patterns / patterns.shape[1]


# %% tags=["mistake"]
# Compares patterns with patterns, not units with units.
def hebbian(patterns):
    w = patterns @ patterns.T / patterns.shape[1]
    return w * (1 - np.eye(len(w)))


# %% tags=["mistake"]
# Divides by the number of patterns.
def hebbian(patterns):
    w = patterns.T @ patterns / len(patterns)
    return w * (1 - np.eye(len(w)))


# %%
@exercise("hebbian")
def check_hebbian():
    for patterns in (np.array([[1.0, -1.0]]), np.array([[1.0, 1, 1, -1], [1, -1, 1, 1]])):
        answer = hebbian(patterns)
        words = f"for the patterns {patterns.tolist()}"
        assert answer is not None, "hebbian gives nothing back yet: return W, (d, d)"
        d = patterns.shape[1]
        assert np.shape(answer) == (d, d), f"{words} the shape is {np.shape(answer)}, expected {(d, d)}"
        for i, j in np.ndindex(d, d):
            right = 0 if i == j else sum(p[i] * p[j] for p in patterns) / d
            error = abs(answer[i, j] - right)
            assert error <= 1e-12, (
                f"{words} the wire of units {i} and {j} is {answer[i, j]}, expected {right}"
            )
    # BEGIN HIDDEN TESTS
    signs = np.random.default_rng(5).choice([-1.0, 1.0], (7, 30))
    field = signs @ (signs.T @ signs) / 30 - 7 / 30 * signs
    error = np.abs(signs @ hebbian(signs) - field).max()
    assert error <= 1e-9, f"7 patterns of 30 units: the input of a unit is off by {error:.2g}"
    # END HIDDEN TESTS


# %% [markdown]
# ### How many patterns fit?
#
# Store $P$ random patterns and start *at* a stored one: the easiest question there is. Does the network stay?
# The **overlap** of the state with the pattern, $\frac1d \sum_i s_i x_i$, is 1 if it does, and near 0 for an
# unrelated state. Statistical physics (Amit, Gutfreund and Sompolinsky, 1985) says that memory breaks down at
# a **load** $P/d$ of about 0.138, all at once, for large $d$. Guess: where is it for 100 units?
#
# The code below needs no matrix. The input of unit $i$ is
# $\frac1d \sum_\mu x^\mu_i (x^\mu \cdot s) - \frac Pd s_i$, so it keeps the products $x^\mu \cdot s$.


# %%
def settle(patterns, states, sweeps=20):
    """States (n, d) after each unit, in turn, has followed its input until nothing changes."""
    states, products = states.copy(), states @ patterns.T
    for _ in range(sweeps):
        before = states.copy()
        for i in range(states.shape[1]):
            field = products @ patterns[:, i] - len(patterns) * states[:, i]
            new = np.where(field == 0, states[:, i], np.sign(field))
            flipped = new != states[:, i]
            products[flipped] += 2 * new[flipped, None] * patterns[:, i]
            states[:, i] = new
        if np.array_equal(before, states):
            break
    return states


loads = np.array([0.05, 0.09, 0.11, 0.138, 0.16, 0.2])
overlaps = {d: np.zeros((3, len(loads))) for d in (100, 400)}
for d, found in overlaps.items():
    for (seed, column), _ in np.ndenumerate(found):
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (round(loads[column] * d), d))
        found[seed, column] = (settle(signs, signs) * signs).mean()
picture = Picture(6, 2.8)
axes = picture.subplots()
for (d, found), color in zip(overlaps.items(), (GREY, BLUE)):
    axes.plot(loads, found.mean(axis=0), "o-", color=color, label=f"{d} units, mean of three seeds")
    axes.fill_between(loads, found.min(axis=0), found.max(axis=0), color=color, alpha=0.2, linewidth=0)
axes.axvline(0.138, color=ORANGE, linestyle="--", label="0.138")
axes.set(xlabel="patterns stored for each unit", ylabel="overlap at rest", ylim=(0, 1.05))
axes.legend(fontsize=8, loc="lower left")
picture

# %% [markdown]
# With 100 units the breakdown is smeared, and one seed differs much from another. With 400 the edge moves
# towards 0.138 and gets steeper. A sharp number needs many more units; the theory is for infinitely many.
#
# Random patterns are the friendly case. Digits resemble each other: all have paper at the edges. Let us store
# one of each kind, with 64 units, and ask for each.

# %%
one_each = np.array([np.flatnonzero(labels == digit)[0] for digit in range(10)])
black = np.where(pixels[one_each] >= 8, 1.0, -1.0)
# How many of the first n stay exactly as they were stored.
kept = [int((settle(black[:n], black[:n]) == black[:n]).all(axis=1).sum()) for n in range(1, 11)]
picture = Picture(8, 2.2)
for column, axes in enumerate(picture.subplots(2, 10).T):
    for axis, state in zip(axes, (black[column], settle(black, black)[column])):
        axis.imshow(state.reshape(8, 8), cmap="Greys")
        axis.set(xticks=[], yticks=[])
    axes[0].set_title(f"{column + 1} stored:\n{kept[column]} stay", fontsize=8)
    if column == 0:
        axes[0].set_ylabel("stored", fontsize=8)
        axes[1].set_ylabel("at rest,\n10 stored", fontsize=8)
print("ten stored:", len(np.unique(settle(black, black), axis=0)), "different resting states")
picture

# %% [markdown]
# Three digits stay, and from the fourth on none does. With ten stored, all ten flow into two blends that
# hardly differ. The signal of a pattern grows as $d$, and so does the disturbance by each pattern that
# resembles it.
#
# ## 2. A sharper energy
#
# Written with products, the old energy is $-\frac{1}{2d}\sum_\mu (x^\mu \cdot s)^2$, up to a constant.
# Squares grow slowly, so many fair agreements beat one perfect one. Ramsauer and others (arXiv:2008.02217)
# let the state $\xi$ be any vector of $d$ numbers, and replace squares by exponentials, under a logarithm.
# With $S$ patterns as the rows of $X$, and $M$ the length of the longest:
#
# $$E(\xi) = -\frac1\beta \log \sum_{j=1}^S e^{\beta x_j \cdot \xi} + \frac12 \xi \cdot \xi
# + \frac1\beta \log S + \frac12 M^2$$
#
# The first term rewards agreement with the best pattern, the second keeps the state short, and the rest are
# constants that make $E \ge 0$. The update is
#
# $$\xi \leftarrow \sum_j p_j x_j = X^T \mathrm{softmax}(\beta X \xi)$$
#
# ### Exercise 2: one update and its energy
#
# Write both. $e^{\beta x \cdot \xi}$ overflows for large $\beta$: take the largest score out first, as in
# lesson `02_build_attention`.


# %%
def hopfield_step(patterns, state, beta):
    """(E of the state, the next state (d,)), for patterns (S, d) and a state (d,)."""
    # BEGIN SOLUTION
    scores = beta * (patterns @ state)
    p = np.exp(scores - scores.max())
    lse = (scores.max() + np.log(p.sum())) / beta
    largest = (patterns**2).sum(axis=1).max()
    e = -lse + state @ state / 2 + np.log(len(patterns)) / beta + largest / 2
    return e, p / p.sum() @ patterns
    # END SOLUTION


# %% tags=["mistake"]
# Lets large scores overflow.
def hopfield_step(patterns, state, beta):
    p = np.exp(beta * (patterns @ state))
    largest = (patterns**2).sum(axis=1).max()
    e = -np.log(p.mean()) / beta + state @ state / 2 + largest / 2
    return e, p / p.sum() @ patterns


# %% tags=["mistake"]
# Does not divide the logarithms by beta.
def hopfield_step(patterns, state, beta):
    scores = beta * (patterns @ state)
    p = np.exp(scores - scores.max())
    largest = (patterns**2).sum(axis=1).max()
    e = -scores.max() - np.log(p.mean()) + state @ state / 2 + largest / 2
    return e, p / p.sum() @ patterns


# %% tags=["mistake"]
# Adds the update to the state.
def hopfield_step(patterns, state, beta):
    return energy(patterns, state, beta), state + retrieve(patterns, state, beta)


# %%
@exercise("hopfield_step")
def check_hopfield_step():
    two = np.array([[1.0, 0.0], [0.0, 2.0]])
    with np.errstate(all="ignore"):
        other = np.array([[2.0, 1.0], [1.0, 0.0]])
        for patterns, beta in ((two[:1], 1.0), (two, 1.0), (two, 0.5), (two, 4000.0), (other, 1.0)):
            state = np.array([0.5, 0.5])
            answer = hopfield_step(patterns, state, beta)
            words = f"patterns {patterns.tolist()}, state [0.5, 0.5], beta {beta}"
            assert answer is not None, "hopfield_step gives nothing back yet: return E and the next state"
            assert np.shape(answer[1]) == (2,), f"{words}: the next state has the shape {np.shape(answer[1])}"
            right = energy(patterns, state, beta), retrieve(patterns, state, beta)
            error = abs(answer[0] - right[0])
            assert error <= 1e-9, f"{words}: the energy is {right[0]:.4f}, yours is {answer[0]:.4f}"
            error = np.abs(answer[1] - right[1]).max()
            assert error <= 1e-9, f"{words}: the next state is {right[1]}, yours is {answer[1]}"


# %% [markdown]
# ### Does it ever rise?
#
# The paper's first theorem: no update raises $E$. Five hundred random memories, of random size, width and
# $\beta$, twelve updates each. The library's `energy` and `retrieve` are the two formulas.

# %%
rng, rises, lows = np.random.default_rng(0), [], []
for _ in range(500):
    patterns = rng.standard_normal((rng.integers(2, 30), rng.integers(1, 20)))
    state, beta = 2 * rng.standard_normal(patterns.shape[1]), 10 ** rng.uniform(-2, 1)
    path = []
    for _ in range(12):
        path.append(energy(patterns, state, beta))
        state = retrieve(patterns, state, beta)
    rises.append((np.diff(path) / path[0]).max())
    lows.append(min(path))
largest_rise = max(rises)
print(f"largest rise in {11 * len(rises):,} updates: {largest_rise:.0e} of the energy at the start")
print(f"lowest energy: {min(lows):.3f}")

# %% [markdown]
# ### Exercise 3: the slope of the energy
#
# Why does it never rise? Differentiate $E$ with respect to $\xi$. The derivative of
# $\frac1\beta \log \sum_j e^{\beta x_j \cdot \xi}$ is short: do it on paper. Write the gradient; the check
# compares with differences $\frac{E(\xi + h) - E(\xi - h)}{2h}$, one coordinate at a time.


# %%
def energy_slope(patterns, state, beta):
    """The gradient of E, (d,), at a state (d,), for patterns (S, d)."""
    # BEGIN SOLUTION
    return state - ops.softmax(beta * (patterns @ state)) @ patterns
    # END SOLUTION


# %% tags=["mistake"]
# Keeps a factor beta that cancels.
def energy_slope(patterns, state, beta):
    return state - beta * ops.softmax(beta * (patterns @ state)) @ patterns


# %% tags=["mistake"]
# Points downhill.
def energy_slope(patterns, state, beta):
    return ops.softmax(beta * (patterns @ state)) @ patterns - state


# %% tags=["mistake"]
# Forgets the term that keeps the state short.
def energy_slope(patterns, state, beta):
    return -ops.softmax(beta * (patterns @ state)) @ patterns


# %%
@exercise("energy_slope")
def check_energy_slope():
    rng = np.random.default_rng(0)
    for s, d, beta in ((1, 1, 1.0), (2, 1, 2.0), (5, 3, 0.3), (5, 3, 4.0)):
        patterns, state, h = rng.standard_normal((s, d)), rng.standard_normal(d), 1e-5
        answer = energy_slope(patterns, state, beta)
        assert answer is not None, "energy_slope gives nothing back yet: return the gradient, (d,)"
        assert np.shape(answer) == (d,), f"the shape is {np.shape(answer)}, that of the state is {(d,)}"
        for i, step in enumerate(h * np.eye(d)):
            rise = energy(patterns, state + step, beta) - energy(patterns, state - step, beta)
            error = abs(answer[i] - rise / (2 * h))
            assert error <= 1e-7, (
                f"{s} patterns of width {d}, beta {beta}: coordinate {i} of the slope is "
                f"{rise / (2 * h):.5f}, yours is {answer[i]:.5f}"
            )


# %% [markdown]
# So $\nabla E = \xi - \xi_{\mathrm{new}}$. The update is a step of plain gradient descent, $\xi \leftarrow
# \xi - \eta \nabla E$, with the rate $\eta = 1$. And a state that the update leaves alone is a stationary
# point of $E$. Is 1 a good rate? Try others.

# %%
rng = np.random.default_rng(3)
patterns = rng.standard_normal((20, 16))
start = patterns[0] + 0.5 * rng.standard_normal(16)
picture = Picture(6, 2.8)
axes = picture.subplots()
for rate, color in ((0.5, GREY), (1.0, BLUE), (1.8, GREEN), (2.1, ORANGE)):
    state, path = mt.tensor(start), []
    for _ in range(9):
        e, slope = mt.value_and_grad(lambda xi: energy(mt.tensor(patterns), xi, 1.0))(state)
        path.append(e.item())
        state = mt.tensor(state.numpy() - rate * slope.numpy())
    axes.plot(path, "o-", color=color, label=f"rate {rate}" + ", the update" * (rate == 1))
axes.set(xlabel="steps", ylabel="energy", xticks=range(9))
axes.legend(fontsize=8, loc="upper left")
picture

# %% [markdown]
# The update is there after one step. Near a pattern that stands apart, $p$ is almost constant, and $E$ is
# almost the parabola $\frac12 |\xi - x|^2$: a rate of 1 jumps to its bottom, and beyond 2 the steps grow.
# A reason that holds everywhere: the first term of $E$ is concave. Replace it by its tangent at $\xi$, and
# you get a parabola that lies above $E$ and touches it. The update goes to the bottom of that parabola.
#
# ## 3. It is attention
#
# Look at the update again. State: query. Patterns: keys *and* values. $\beta$: the scale $1/\sqrt d$. For
# many states at once it is $\mathrm{softmax}(\beta\, Q K^T) K$. The layer `hopfield` projects the patterns
# once more to values, and so one update is attention, with the same parameters.

# %%
options = {"dim": 16, "heads": 4, "dtype": "float64", "seed": 0}
attention = mt.build("softmax_attention", causal=False, **options)
memory = mt.build("hopfield", steps=0, norm=False, bias=False, **options)
memory.load_state_dict(attention.state_dict())
x = mt.tensor(np.random.default_rng(0).standard_normal((2, 9, 16)))
same = np.abs(memory(x).numpy() - attention(x).numpy()).max()
print(f"hopfield without further steps and softmax attention differ by {same:.1g}")

# %% [markdown]
# ## 4. When is one update enough?
#
# Say the state is exactly $x_i$. Every other pattern $j$ gets at most the weight
# $e^{-\beta (x_i \cdot x_i - x_i \cdot x_j)}$. Call the smallest of these gaps the **separation** $\Delta_i$.
# The $S - 1$ others together pull the answer away by their weights times a distance of at most $2M$:
#
# $$|x_i - \xi_{\mathrm{new}}| \;\le\; 2 M (S - 1)\, e^{-\beta \Delta_i} \qquad\qquad
# \Delta_i = \min_{j \ne i} (x_i \cdot x_i - x_i \cdot x_j)$$
#
# The error falls *exponentially* in $\beta$ and in the separation.
#
# ### Exercise 4: how large must beta be?
#
# Turn it around: the smallest $\beta$ at which the bound is at most `error` for *every* pattern. All
# separations are positive here.


# %%
def beta_for(patterns, error):
    """The beta at which the bound, for the worst of the patterns (S, d), equals error."""
    # BEGIN SOLUTION
    products = patterns @ patterns.T
    gaps = np.diag(products)[:, None] - products
    separation = gaps[~np.eye(len(patterns), dtype=bool)].min()
    longest = np.sqrt(np.diag(products).max())
    return np.log(2 * longest * (len(patterns) - 1) / error) / separation
    # END SOLUTION


# %% tags=["mistake"]
# Takes the mean separation: the worst pattern is not safe.
def beta_for(patterns, error):
    products = patterns @ patterns.T
    gaps = np.diag(products)[:, None] - products
    gaps = gaps + np.where(np.eye(len(patterns)), np.inf, 0)
    longest = np.sqrt(np.diag(products).max())
    return np.log(2 * longest * (len(patterns) - 1) / error) / gaps.min(axis=1).mean()


# %% tags=["mistake"]
# Compares each pattern with itself: the separation is zero.
def beta_for(patterns, error):
    products = patterns @ patterns.T
    gaps = np.diag(products)[:, None] - products
    longest = np.sqrt(np.diag(products).max())
    return np.log(2 * longest * (len(patterns) - 1) / error) / max(gaps.min(), 1e-12)


# %% tags=["mistake"]
# Forgets that many small weights add up.
def beta_for(patterns, error):
    products = patterns @ patterns.T
    gaps = np.diag(products)[:, None] - products
    separation = gaps[~np.eye(len(patterns), dtype=bool)].min()
    return np.log(2 * np.sqrt(np.diag(products).max()) / error) / separation


# %%
@exercise("beta_for")
def check_beta_for():
    rng = np.random.default_rng(0)
    cases = [np.eye(2), np.eye(3)]
    # Three patterns of which two are near each other, then random ones.
    cases += [np.array([[1.0, 0], [0.8, 0.6], [-1, 0]]), rng.standard_normal((20, 32))]
    for patterns in cases:
        size, longest = len(patterns), np.linalg.norm(patterns, axis=1).max()
        gaps = [x @ x - x @ y for i, x in enumerate(patterns) for j, y in enumerate(patterns) if i != j]
        for error in (0.1, 1e-6):
            answer = beta_for(patterns, error)
            assert answer is not None, "beta_for gives nothing back yet: return a number"
            words = f"{size} patterns, smallest gap {min(gaps):.3g}, error {error:g}: at your beta"
            assert answer > 0, f"{words} of {answer:.4g}, which must be positive"
            bound = 2 * longest * (size - 1) * np.exp(-answer * min(gaps))
            off = abs(np.log(bound + 1e-300) - np.log(error))
            assert off <= 1e-6, f"{words} of {answer:.4g} the bound is {bound:.3g}, it must be {error:g}"
            real = np.linalg.norm(retrieve(patterns, patterns, answer) - patterns, axis=1).max()
            assert real <= error, f"{words} a pattern comes back with the error {real:.3g}"


# %% [markdown]
# ### Far beyond the classical capacity
#
# Random directions are rarely near each other in high dimension. So how many patterns can we store? Below:
# random patterns of length $\sqrt d$, $\beta = 1$, a cue that is off by a fifth of the length, one update. A
# pattern counts as found if it gets more than half of the weight. For each width, the largest power of two of
# patterns at which at least nine in ten are found.


# %%
def found_share(size, d, seed):
    """The share of up to 64 of `size` stored patterns that one update finds."""
    rng = np.random.default_rng(seed)
    patterns, noise = rng.standard_normal((size, d)), rng.standard_normal((min(size, 64), d))
    patterns *= np.sqrt(d) / np.linalg.norm(patterns, axis=1, keepdims=True)
    cues = patterns[:64] + 0.2 * np.sqrt(d) * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (ops.softmax(cues @ patterns.T)[np.arange(len(cues)), np.arange(len(cues))] > 0.5).mean()


widths, sizes = np.arange(6, 17, 2), 2 ** np.arange(1, 16)
capacity = np.zeros((2, len(widths)))
for (seed, column), _ in np.ndenumerate(capacity):
    for size in sizes.tolist():
        if found_share(size, widths[column], seed) < 0.9:
            break
        capacity[seed, column] = size
growth = np.polyfit(widths, np.log2(capacity).mean(axis=0), 1)[0]
picture = Picture(6, 2.8)
axes = picture.subplots()
axes.plot(widths, capacity.mean(axis=0), "o-", color=BLUE, label="modern, mean of two seeds")
axes.plot(widths, 0.138 * widths, "--", color=ORANGE, label="classical: 0.138 d")
axes.set(xlabel="width d", ylabel="patterns stored", yscale="log", xticks=widths)
axes.legend(fontsize=8)
print(f"each further dimension multiplies the number by {2**growth:.2f}")
picture

# %% [markdown]
# The number grows exponentially with the width, as the paper's third theorem says. There is a price. The
# classical network keeps $d^2$ wires whatever it stores. The modern one keeps every pattern, and reads all of
# them at each update.
#
# ## 5. Metastable states
#
# What if patterns *are* similar? Take four in the plane: two near each other on the right, two on the left.
# Each is $(\pm c, \pm s)$ with $c = \cos 15°$ and $s = \sin 15°$. Predict the resting states for a small, a
# medium and a large $\beta$.

# %%
c, s = np.cos(np.radians(15)), np.sin(np.radians(15))
four = np.array([[c, s], [c, -s], [-c, s], [-c, -s]])
starts = np.random.default_rng(0).uniform(-1.2, 1.2, (60, 2))
grid = np.stack(np.meshgrid(np.linspace(-1.4, 1.4, 121), np.linspace(-1, 1, 91)), axis=-1)
picture = Picture(8, 2.5)
resting = {}
for axes, beta in zip(picture.subplots(1, 3, sharey=True), (0.6, 5.0, 40.0)):
    states = starts
    for _ in range(200):
        states = retrieve(four, states, beta)
    resting[beta] = np.unique(states.round(3) + 0.0, axis=0)
    height = energy(four, grid, beta)
    axes.contourf(grid[..., 0], grid[..., 1], np.sqrt(height - height.min()), 14, cmap="Blues_r")
    axes.plot(*four.T, "o", color=ORANGE, markersize=8, label="patterns")
    axes.plot(*resting[beta].T, "kx", label="resting states")
    axes.set(title=f"beta = {beta}: {len(resting[beta])} resting", aspect="equal", xticks=(-1, 0, 1))
    axes.set(xlabel="first coordinate")
axes.legend(fontsize=7, loc="upper center", ncols=2)
picture.axes[0].set_ylabel("second coordinate")
picture

# %% [markdown]
# The dark valleys are where states come to rest. At a small $\beta$ there is one, at the **mean of all**. At
# a medium $\beta$ there is one for each *cluster*, near its mean: a **metastable state**. Only at a large
# $\beta$ has each pattern its own. Where are the changes?
#
# Here the softmax of four splits into two of two, one for each coordinate, and
# $e^{a} / (e^{a} + e^{-a}) - e^{-a} / (e^{a} + e^{-a}) = \tanh a$. So the update is
#
# $$\xi_1 \leftarrow c \tanh(\beta c\, \xi_1) \qquad\qquad \xi_2 \leftarrow s \tanh(\beta s\, \xi_2)$$
#
# Near 0, $\tanh a \approx a$: the second coordinate is multiplied by $\beta s^2$. Above $\beta = 1/s^2$ zero
# repels, and the cluster splits. In general: the derivative of the update is $\beta$ times the covariance of
# the patterns under the weights $p$. A resting state repels as soon as the largest eigenvalue of that
# covariance, times $\beta$, exceeds 1.

# %%
betas = np.geomspace(0.5, 60, 240)
states = np.tile([c, s], (len(betas), 1))
for _ in range(1500):
    states = retrieve(four, states, betas[:, None])
splits = [1 / c**2, 1 / s**2]
measured = [betas[np.argmax(coordinate > 0.01)] for coordinate in states.T]
picture = Picture(6, 3)
axes = picture.subplots()
for coordinate, color, name in zip(states.T, (BLUE, ORANGE), ("first", "second")):
    for sign in (1, -1):
        axes.plot(betas, sign * coordinate, color=color, label=f"{name} coordinate" if sign > 0 else None)
for place, split in enumerate(splits):
    axes.axvline(split, color=GREY, linestyle="--", label=None if place else "1 / c² and 1 / s²")
axes.set(xscale="log", xlabel="beta", ylabel="where states rest", ylim=(-1.6, 1.3))
axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
axes.minorticks_off()
for left, right, name in (
    (0.5, splits[0], "mean of all"),
    (*splits, "means of clusters"),
    (splits[1], 60, "single"),
):
    axes.text(np.sqrt(left * right), 1.12, name, ha="center", fontsize=8)
axes.legend(fontsize=7, loc="lower center", ncols=3)
print(
    f"splits measured at beta = {measured[0]:.2f} and {measured[1]:.2f}; "
    f"1/c² = {splits[0]:.2f}, 1/s² = {splits[1]:.2f}"
)
picture

# %% [markdown]
# A metastable state is no failure. It is how a head averages over a *group*: words of a kind, patches of an
# object. In the layer, `steps` iterates the queries before the values are read, and each head may have its
# own $\beta$. Below one layer has three heads, and the tokens come from three clusters *a*, *b*, *c*, made
# equally long by a layer norm. Which $\beta$ turns tokens into clusters?

# %%
rng = np.random.default_rng(0)
centres = np.repeat(rng.standard_normal((3, 16)), 4, axis=0)
clusters = mt.tensor((centres + 0.5 * rng.standard_normal((12, 16)))[None])
bare = {"static": ("state", "stored", "values"), "norm": False, "project": False}
head_betas, names = (0.03, 0.4, 3.0), [f"{'abc'[i // 4]}{i % 4}" for i in range(12)]
picture = Picture(7, 4.6)
for steps, line in zip((0, 20), picture.subplots(2, 3)):
    options = {"heads": 3, "beta": head_betas, "steps": steps, "eps": 0.0, "dtype": "float64"}
    layer = mt.build("hopfield", dim=16, **options, **{**bare, "norm": True})
    for axes, weights, beta in zip(line, layer.weights(clusters).numpy()[0], head_betas):
        axes.imshow(np.sqrt(weights), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(12), names, fontsize=6)
        axes.set_yticks(range(12), names, fontsize=6)
        axes.set_title(f"beta = {beta}, {steps} further steps", fontsize=9)
picture

# %% [markdown]
# Above is plain attention, below the same after twenty more retrievals. The steps settle what one softmax
# leaves open: all tokens, one's own cluster, or oneself.
#
# ## 6. Digits from halves
#
# Now store all 1,797 digits in 64 dimensions, and ask with the upper half of an image. Guess first: will the
# pixels do as patterns, just as they are? Below, each column is one digit. Look at the third row.


# %%
def standardise(rows):
    """Mean 0 and variance 1 for each row: layer norm without its gains."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / rows.std(axis=1, keepdims=True)


def upper_half(patterns):
    return patterns * (np.arange(64) < 32)


ink, clean = pixels / 16, standardise(pixels)
asked = np.random.default_rng(4).permutation(len(pixels))[:8]
rows = {
    "asked for": ink[asked],
    "cue": upper_half(ink[asked]),
    "pixels,\nbeta 20": retrieve(ink, upper_half(ink[asked]), 20.0),
    "cleaned,\nbeta 0.3": retrieve(clean, upper_half(clean[asked]), 0.3),
    "cleaned,\nbeta 5": retrieve(clean, upper_half(clean[asked]), 5.0),
}
picture = Picture(7, 4.4)
for line, (name, states) in zip(picture.subplots(5, 8), rows.items()):
    for axes, state in zip(line, states):
        axes.imshow(state.reshape(8, 8), cmap="Greys")
        axes.set(xticks=[], yticks=[])
    line[0].set_ylabel(name, fontsize=8)
winners = {name: (upper_half(x) @ x.T).argmax(axis=1) for name, x in (("pixels", ink), ("cleaned", clean))}
for name, winner in winners.items():
    right = (winner == np.arange(len(winner))).mean()
    print(f"{name}: {right:.0%} get the right image; {len(set(winner.tolist()))} images win ever")
picture

# %% [markdown]
# The pixels themselves fail. A product grows with the *ink* of the stored digit, so dark digits win against
# everyone. Give each pattern mean 0 and variance 1, and all are equally long. This is why the layer starts
# with a layer norm.
#
# At $\beta = 0.3$ you see blends of many digits. At $\beta = 5$ sharp digits come back, sometimes another
# digit with a similar upper half. How does it depend on how many are stored? A digit counts
# as found if the answer is within a tenth of its length.

# %%
betas, shares = [0.1, 0.2, 0.5, 1, 2, 5, 20], {}
rng = np.random.default_rng(0)
for cue in ("half", "noise"):
    for size in (10, 100, 1797):
        stored = clean[rng.permutation(1797)[:size]]
        states = upper_half(stored) if cue == "half" else stored + rng.standard_normal(stored.shape)
        answers = (retrieve(stored, states, beta) for beta in betas)
        shares[cue, size] = [(np.linalg.norm(a - stored, axis=1) < 0.8).mean() for a in answers]
whole = np.linalg.norm(retrieve(clean, clean, 20.0) - clean, axis=1) < 0.8
print(f"asked with the whole digit, all stored, beta = 20: {whole.mean():.1%} come back")
picture = Picture(8, 2.8)
for axes, cue in zip(picture.subplots(1, 2, sharey=True), ("half", "noise")):
    for size, color in ((10, GREY), (100, BLUE), (1797, ORANGE)):
        axes.semilogx(betas, shares[cue, size], "o-", color=color, label=f"{size} stored")
    title = {"half": "the cue is the upper half", "noise": "the cue has noise as strong as itself"}[cue]
    axes.set(xlabel="beta", title=title, ylim=(-0.03, 1.03))
    axes.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
picture.axes[0].legend(fontsize=8, loc="upper left")
picture.axes[0].set_ylabel("share found in one update")
picture

# %% [markdown]
# The classical network of the same width could not hold four digits. This one holds them all, and what
# limits it is the cue: many digits share their upper half with another.
#
# ## 7. A lookup that needs no training
#
# In `hopfield_layer` the patterns belong to the *layer*, and each token is a state that looks them up. With
# separate targets it is $\mathrm{softmax}(\beta\, x K^T)\, T$. Put training digits into $K$ and their labels,
# as one-hot rows, into $T$: that is a classifier. For large $\beta$ it is the nearest neighbour. We also
# train one with only 20 patterns, from random ones, and look at what it stores.

# %%
order = np.random.default_rng(0).permutation(len(pixels))
train, test = order[:1200], order[1200:]


def lookup(quantity, beta):
    options = {
        "quantity": quantity,
        "beta": beta,
        "separate": True,
        "heads": 1,
        "seed": 0,
        "dtype": "float64",
    }
    return mt.build("hopfield_layer", dim=64, **bare, **options)


def accuracy(layer):
    answers = layer(mt.tensor(clean[test])).numpy()[:, :10]
    return (answers.argmax(axis=1) == labels[test]).mean()


layer, scores = lookup(len(train), 1.0), {}
layer.patterns.data, layer.targets.data = clean[train], np.eye(64)[labels[train]]
for beta in (0.001, 0.01, 0.1, 1.0, 10.0):
    layer.hopfield.beta = np.full(1, beta)
    scores[beta] = accuracy(layer)
print("nothing trained, beta and accuracy:", "  ".join(f"{b}: {a:.3f}" for b, a in scores.items()))

# %%
small, rng = lookup(20, 0.1), np.random.default_rng(0)
optimizer = mt.train.AdamW(small.parameters(), lr=0.05, weight_decay=0.0)
for _ in range(300):
    batch = rng.choice(train, 64)
    loss = ops.cross_entropy(small(mt.tensor(clean[batch]))[:, :10], labels[batch]).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"20 learned patterns: accuracy {accuracy(small):.3f}")
picture = Picture(8, 2.2)
for axes, pattern, target in zip(picture.subplots(2, 10).ravel(), small.patterns.data, small.targets.data):
    axes.imshow(pattern.reshape(8, 8), cmap="Greys")
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"votes {target[:10].argmax()}", fontsize=8)
picture

# %% [markdown]
# The patterns need not look like digits. Dark and light places are evidence for and against.
#
# ## 8. The one that matters
#
# A bag holds 20 digits. Its label says whether *one* of them is a 9, not which. Such tasks are everywhere: a
# slide of tissue with one sick cell, a repertoire of immune cells of which few know the virus. A mean over
# the bag drowns the one in nineteen others. `hopfield_pooling` has a learned state that asks the bag.
#
# Three detectors, each followed by one linear map to a number: the plain mean; a two-layer network on each
# digit, then the mean (a fair rival, with about as many parameters); Hopfield pooling. Which will win?


# %%
def bags(rng, pool, size=20, count=64):
    """Indices of digits (count, size), whether a bag has a 9, and where it would be."""
    nines, others = pool[labels[pool] == 9], pool[labels[pool] != 9]
    chosen, places = rng.choice(others, (count, size)), rng.integers(0, size, count)
    positive = np.arange(count) % 2 == 1
    chosen[positive, places[positive]] = rng.choice(nines, positive.sum())
    return chosen, positive, places


class Detector(mt.nn.Module):
    """A bag (B, N, 64) -> a number (B,): above 0 it says that there is a 9."""

    def __init__(self, kind, seed):
        super().__init__()
        self.kind = kind
        if kind == "Hopfield pooling":
            self.pool = mt.build("hopfield_pooling", dim=64, heads=1, seed=seed)
        if kind == "network, mean":
            self.network = mt.build("relu_ffn", dim=64, hidden=128, seed=seed)
        self.out = mt.nn.Linear(64, 1, True, mt.nn.init.generator(seed + 100))

    def forward(self, x):
        if self.kind == "Hopfield pooling":
            return self.out(self.pool(x)[:, 0])[:, 0]
        return self.out((self.network(x) if self.kind == "network, mean" else x).mean(axis=1))[:, 0]


kinds, right, detectors = ("mean", "network, mean", "Hopfield pooling"), {}, {}
inputs = (pixels / 16 - 0.3).astype("float32")
for kind in kinds:
    right[kind] = []
    for seed in range(2):
        detector, rng = Detector(kind, seed), np.random.default_rng(seed)
        optimizer = mt.train.AdamW(detector.parameters(), lr=0.005, weight_decay=0.0)
        for _ in range(200):
            chosen, positive, _ = bags(rng, train)
            signs = np.where(positive, 1, -1).astype("float32")
            loss = ops.softplus(-signs * detector(mt.tensor(inputs[chosen]))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        chosen, positive, places = bags(np.random.default_rng(99), test, count=1000)
        right[kind].append(((detector(mt.tensor(inputs[chosen])).numpy() > 0) == positive).mean())
    detectors[kind] = detector
    words = f"{kind:17} {detector.count_parameters():6,} parameters"
    print(f"{words}, right on new bags: {np.round(right[kind], 3)}")

# %% [markdown]
# The plain mean is lost, though its pixels hold all the information: what it lacks is something that acts on
# a digit *before* the sum. The rival has that, and does about as well as pooling. So pooling is not the only
# way. What it offers in addition is an answer to *which one*. Nobody ever told it.

# %%
pool = detectors["Hopfield pooling"].pool
bag = mt.tensor(inputs[chosen])
states = ops.broadcast_to(pool.states, (len(chosen), *pool.states.shape))
looks = pool.hopfield.weights(states, context=bag).numpy()[:, 0, 0]
pointed = (looks.argmax(axis=1) == places)[positive].mean()
print(f"bags with a 9: the largest weight is on it in {pointed:.0%} (chance {1 / 20:.0%})")
picture = Picture(8, 2.4)
lines = picture.subplots(3, 20)
for line, b in zip(lines, np.flatnonzero(positive)[:3]):
    for axes, i, weight in zip(line, chosen[b], looks[b]):
        axes.imshow(images[i], cmap="Greys")
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f"{weight:.2f}", fontsize=6)
        for spine in axes.spines.values():
            spine.set(color=ORANGE if labels[i] == 9 else GREY, linewidth=3 if labels[i] == 9 else 0.5)
picture.suptitle("three new bags, the weight of each digit, the 9 in a frame", fontsize=9)
picture

# %% [markdown]
# ## 9. Your own association layer
#
# Build the layer from what you know: **two updates** in a learned space, with nothing but queries and
# patterns. With $Q = x W_q$, $K = x W_k$, split into heads, and $\beta = 1/\sqrt{d}$ for heads of width $d$:
#
# $$Q_1 = \mathrm{softmax}(\beta\, Q K^T)\, K \qquad Q_2 = \mathrm{softmax}(\beta\, Q_1 K^T)\, K \qquad
# y = \mathrm{merge}(Q_2)\, W_o$$
#
# The order of tokens cannot matter: shuffle the tokens, and the outputs are shuffled the same way. This is
# the claim `permutation_equivariant`. The check also hides pairs with masks, takes derivatives, and feeds
# huge numbers.
#
# ### Exercise 5: two updates
#
# Write `forward`. `ops.split_heads(x, heads)` gives (B, H, N, d), `ops.merge_heads` undoes it, and
# `ops.softmax(scores, mask=mask)` gives hidden patterns no weight.


# %%
class Association(mt.nn.Module):
    """Two retrievals from the tokens themselves. x (B, N, D) -> (B, N, D)."""

    def __init__(self, dim, *, heads=2, seed=0, dtype="float32"):
        super().__init__()
        rng = mt.nn.init.generator(seed)
        self.heads = heads
        self.wq, self.wk, self.wo = (mt.nn.Linear(dim, dim, False, rng, dtype=dtype) for _ in range(3))

    def forward(self, x, *, mask=None):
        # BEGIN SOLUTION
        q, k = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk))
        beta = q.shape[-1] ** -0.5
        for _ in range(2):
            q = ops.softmax(beta * (q @ k.mT), mask=mask) @ k
        return self.wo(ops.merge_heads(q))
        # END SOLUTION


# %% tags=["mistake"]
# Forgets the mask in the second update.
class Association(Association):
    def forward(self, x, *, mask=None):
        q, k = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk))
        beta = q.shape[-1] ** -0.5
        q = ops.softmax(beta * (q @ k.mT), mask=mask) @ k
        return self.wo(ops.merge_heads(ops.softmax(beta * (q @ k.mT)) @ k))


# %% tags=["mistake"]
# One update only.
class Association(Association):
    def forward(self, x, *, mask=None):
        q, k = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk))
        return self.wo(ops.merge_heads(ops.softmax(q.shape[-1] ** -0.5 * (q @ k.mT), mask=mask) @ k))


# %% tags=["mistake"]
# Lets the states compete for a pattern, instead of the patterns for a state.
class Association(Association):
    def forward(self, x, *, mask=None):
        q, k = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk))
        beta = q.shape[-1] ** -0.5
        for _ in range(2):
            q = ops.softmax(beta * (q @ k.mT), axis=-2, mask=mask) @ k
        return self.wo(ops.merge_heads(q))


# %% tags=["mistake"]
# Takes the weights out of the gradient.
class Association(Association):
    def forward(self, x, *, mask=None):
        q, k = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk))
        beta = q.shape[-1] ** -0.5
        for _ in range(2):
            q = ops.stop_gradient(ops.softmax(beta * (q @ k.mT), mask=mask)) @ k
        return self.wo(ops.merge_heads(q))


# %%
@exercise("Association")
def check_association():
    layer = Association(4, heads=2, dtype="float64")
    options = {"static": ("values",), "connected": True, "norm": False, "bias": False, "eps": 0.0}
    twice = mt.build("hopfield", dim=4, heads=2, steps=1, dtype="float64", **options)
    twice.load_state_dict(layer.state_dict())
    for n in (1, 2, 6):
        x = mt.tensor(3 * np.random.default_rng(n).standard_normal((1, n, 4)))
        answer = layer(x)
        assert answer is not None, "the forward of Association gives nothing back yet: return (B, N, D)"
        assert answer.shape == x.shape, f"for {n} tokens the shape is {answer.shape}, expected {x.shape}"
        error = np.abs((answer - twice(x)).numpy()).max()
        assert error <= 1e-9, f"of {n} tokens one output is off by {error:.2g} from two updates of `hopfield`"
    rest = layer(x[:, 2:]).numpy()
    error = np.abs(layer(x, mask=np.arange(6) >= 2).numpy()[:, 2:] - rest).max()
    assert error <= 1e-9, (
        f"with tokens 0 and 1 hidden the others move by {error:.2g}, as if they still counted"
    )
    claims = ("permutation_equivariant", "batch_independent")
    check_variant(Association, kind="token_mixer", claims=claims, examples=NOTEBOOK)


# %%
digits = (
    f"one of each kind: {max(kept)} stay at best, none of ten" if kept[-1] == 0 else f"{kept[-1]} of ten stay"
)
at = dict(zip(loads.tolist(), overlaps[400].mean(axis=0)))
table_rows = [
    (
        "*Storing infinite numbers of patterns in a spin-glass model* (Amit, Gutfreund, Sompolinsky, 1985): "
        "memory is lost above a load of about 0.138",
        f"400 units, three seeds: overlap {at[0.11]:.2f} at 0.11, {at[0.138]:.2f} at 0.138, "
        f"{at[0.2]:.2f} at 0.2; digits, {digits}",
    ),
    (
        "*Hopfield Networks is All You Need* (arXiv:2008.02217), theorem 1: updates never raise the energy",
        f"largest rise in {11 * len(rises):,} updates: {largest_rise:.0e} of the energy",
    ),
    ("the same: the update is the attention of transformers", f"largest difference {same:.1g}"),
    (
        "the same, theorem 3: exponentially many patterns in the width",
        f"{capacity[:, 0].mean():.0f} at width {widths[0]}, {capacity[:, -1].mean():,.0f} at {widths[-1]}: "
        f"times {2**growth:.2f} for each dimension",
    ),
    (
        "the same: resting states are the mean of all, means of subsets, or single patterns",
        f"{', '.join(str(len(found)) for found in resting.values())} resting states of four patterns at beta "
        f"{', '.join(map(str, resting))}; splits at {measured[0]:.2f} and {measured[1]:.2f} "
        f"(computed {splits[0]:.2f} and {splits[1]:.2f})",
    ),
    (
        "the same: pooling finds the few informative instances of a bag",
        f"right on bags of 20, two seeds: mean {np.mean(right['mean']):.2f}, "
        f"pooling {np.mean(right['Hopfield pooling']):.2f}, "
        f"but a network before the mean {np.mean(right['network, mean']):.2f}; "
        f"pooling points at the 9 in {pointed:.0%}",
    ),
]
table = "\n".join(f"| {claim} | {measure} |" for claim, measure in table_rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# ## On your own
#
# - Erase the left half of the digits instead of the lower one. Which digits are now confused, and does a
#   second update help?
# - Give the classical network standardised, binary digits from which the mean digit has been subtracted. How
#   many can it hold now?
# - Move the four patterns of section 5 so that one cluster has three of them. Which $\beta$ splits it first?
# - Train the detectors of section 8 on bags of 80. Which of them suffers most?
# - Start `hopfield_pooling` from the mean of the training nines. Does it learn faster?
#
# ## Where to go next
#
# `minitf/attention/hopfield.py` is the layer in full; its identities are the sentences that you checked here.
# Lesson `06_unroll_linear_attention` drops the softmax: what remains is a Hebbian matrix again, written and
# read token by token.
