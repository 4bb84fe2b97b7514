# %% [markdown]
# # Build reverse-mode differentiation, then meet the engine
#
# **What you will do.** Write the machine that trains every neural network, in about 60 lines: it records
# what a program did, and walks back through the record with one table of derivatives. Each time, the bug
# comes first and then the fix. Then you meet the engine of `minitf`, which is the same idea with the
# corners rounded.
#
# **What you will learn.** Why gradients *add*. Why the order of the walk matters. How broadcasting is
# undone. How to check a gradient, and how small a step should be. What second derivatives are good for.
# Where the memory goes.
#
# **What you need.** Python, NumPy, and the chain rule: if $y = f(u)$ and $u = h(x)$, then $\frac{dy}{dx} =
# \frac{dy}{du}\,\frac{du}{dx}$.

# %%
from heapq import heappop, heappush
from itertools import count

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf.testing import exercise

# The plain definitions: slower than kernels, but you can read each one.
mt.use("reference")
print("minitf", mt.__version__, "with the", mt.active(), "definitions")

# %% [markdown]
# ## 1. A slope is a small experiment
# Move $x$ a little, see how much $f$ moves: $f'(x) \approx \frac{f(x + h) - f(x - h)}{2h}$.


# %%
def f(x):
    return x * np.sin(x)


x, h = 3.0, 1e-5
slope = (f(x + h) - f(x - h)) / (2 * h)
grid = np.linspace(0, 5, 200)
plt.figure(figsize=(5, 2.8))
plt.plot(grid, f(grid), label="f(x) = x sin x")
plt.plot(grid, f(x) + slope * (grid - x), "--", label=f"slope {slope:.4f} at x = 3")
plt.plot(x, f(x), "ko")
plt.ylim(-5, 3)
plt.legend()
plt.show()

# %% [markdown]
# This needs two runs of the program *for each input*. A model with a million parameters would need two
# million runs for one training step. There is a way to get all the slopes from **one** run and one walk
# back.
#
# ## 2. Record the recipe
# A `Value` holds an array and remembers its recipe: which operation made it, from which values. Each value
# also gets a running number. We shall need it later.


# %%
class Value:
    """An array that remembers its recipe."""

    numbers = count()

    def __init__(self, data, op=None, args=()):
        self.data, self.op, self.args = np.asarray(data, dtype=float), op, args
        self.grad = 0.0
        self.number = next(Value.numbers)


FORWARD = {"add": np.add, "mul": np.multiply, "matmul": np.matmul, "sin": np.sin, "sum": np.sum}


def apply(op, *args):
    args = [a if isinstance(a, Value) else Value(a) for a in args]
    return Value(FORWARD[op](*[a.data for a in args]), op, args)


Value.__add__ = lambda a, b: apply("add", a, b)
Value.__mul__ = lambda a, b: apply("mul", a, b)
Value.__matmul__ = lambda a, b: apply("matmul", a, b)


def recipe(v):
    return f"{v.op}({', '.join(map(recipe, v.args))})" if v.op else str(v.data)


x = Value(2.0)
y = x * apply("sin", x)
print(f"{y.data:.4f} = {recipe(y)}")

# %% [markdown]
# ## 3. One table of derivatives
# Say that $g$ is the slope of the final result with respect to $y$. A rule turns it into the slope with
# respect to an argument of the operation that made $y$. One rule for each argument, always called as
# `rule(g, y, *arguments)`. Then walk back from the result: give each argument its gradient, and go on from
# there.

# %%
RULES = {
    "add": (lambda g, y, a, b: g, lambda g, y, a, b: g),
    "mul": (lambda g, y, a, b: g * b, lambda g, y, a, b: g * a),
    "matmul": (lambda g, y, a, b: g @ b.T, lambda g, y, a, b: a.T @ g),
    "sin": (lambda g, y, a: g * np.cos(a),),
    "sum": (lambda g, y, a: g * np.ones_like(a),),
}


def pieces(v, g):
    """(argument, gradient) for each argument that v was made from."""
    values = [a.data for a in v.args]
    return [(a, rule(g, v.data, *values)) for a, rule in zip(v.args, RULES.get(v.op, ()))]


for argument, gradient in pieces(y, 1.0):
    print(f"y = {recipe(y)}, slope with respect to {recipe(argument)}: {gradient:.4f}")


# %%
def walk(v, g=1.0):
    v.grad = g
    for a, ga in pieces(v, g):
        walk(a, ga)


a, b = Value(2.0), Value(5.0)
walk(apply("sin", a * b))
print(f"by the walk: {a.grad:.6f}   by hand, b cos(ab): {5 * np.cos(10):.6f}")

# %% [markdown]
# ## 4. The bug: a value that is used twice
# The slope of $x \cdot x$ at 3 is 6.

# %%
x = Value(3.0)
walk(x * x)
print("slope of x·x at 3:", x.grad)

# %% [markdown]
# Half of it is missing. There are two ways from the result down to $x$. The second visit overwrote what the
# first had left. **Gradients must add**: the slope is the sum over all paths. That is right, but look at
# the price. Double a number again and again: `x = x + x`. The number of *values* grows by one at each step.
# The number of *paths* doubles.


# %%
def walk_paths(v, g=1.0):
    """Add up over all paths. Returns how many values were visited."""
    v.grad = v.grad + g
    return 1 + sum(walk_paths(a, ga) for a, ga in pieces(v, g))


x = Value(3.0)
walk_paths(x * x)
print("slope of x·x at 3:", x.grad)

# %%
depths, visits = np.arange(15), []
for depth in depths:
    y = Value(1.0)
    for _ in range(depth):
        y = y + y
    visits.append(walk_paths(y))
plt.figure(figsize=(5, 2.6))
plt.semilogy(depths, visits, "o-", label="visits, one for each path")
plt.semilogy(depths, depths + 1, "s-", label="values")
plt.xlabel("depth")
plt.legend()
plt.show()

# %% [markdown]
# ## 5. Visit each value once, but in which order?
# Take $u = x^2$ and $y = u + \sin u$: a diamond. Here it is, drawn by the library. If the walk leaves $u$
# before $\sin$ has handed down its part, that part is lost.


# %%
def walk_once(values):
    values[0].grad = 1.0
    for v in values:
        for a, ga in pieces(v, v.grad):
            a.grad = a.grad + ga


def diamond(x):
    u = x * x
    return u, u + apply("sin", u)


x = Value(2.0)
u, y = diamond(x)
walk_once([y, u, y.args[1], x])
print(f"u too early: {x.grad:.4f}   right, (1 + cos x²) 2x: {(1 + np.cos(4)) * 4:.4f}")
t = mt.tensor(2.0, requires_grad=True)
u = t * t
mt.viz.graph(u + mt.ops.sin(u), names={"x": t, "u": u})

# %% [markdown]
# **Exercise 1: mend the walk.** Write `order(y)`: a list of every value behind `y`, `y` included, each
# *once* and each *before* the values that it was made from. Hint: go down first. Append a value to the list
# only when all its arguments are done, and turn the list around at the end.


# %%
def order(y):
    """Every value behind y, each once, each before its arguments."""
    # BEGIN SOLUTION
    seen, done = set(), []

    def visit(v):
        if v not in seen:
            seen.add(v)
            for a in v.args:
                visit(a)
            done.append(v)

    visit(y)
    return done[::-1]
    # END SOLUTION


# %% tags=["mistake"]
# Visits the diamond's shared value twice.
def order(y):
    done = []

    def visit(v):
        for a in v.args:
            visit(a)
        done.append(v)

    # Deep chains would take for ever: stop where the lesson's second test begins.
    if len({id(v) for v in y.args}) > 1:
        visit(y)
    return done[::-1]


# %% tags=["mistake"]
# Level by level from y: a value may come before one that still needs to hand it a gradient.
def order(y):
    found = [y]
    for v in found:
        found += [a for a in v.args if a not in found]
    return found[:1] + found[1:][::-1]


# %%
@exercise("order")
def check_order():
    x = Value(2.0)
    u, y = diamond(x)
    values = order(y)
    assert isinstance(values, list), f"order(y) should give a list of values, not {type(values).__name__}"
    assert values and values[0] is y, "the result y comes first: nothing else can be complete before it"
    assert set(values) == {y, u, y.args[1], x}, (
        f"the diamond has 4 values, your list has {len(set(values))} of them"
    )
    assert len(values) == 4, "a value stands in the list twice: it would hand down its gradient twice"
    walk_once(values)
    right = (1 + np.cos(4)) * 4
    assert abs(x.grad - right) <= 1e-12, (
        f"for the diamond the slope is {right:.4f}, your order gives {x.grad:.4f}"
    )
    x = y = Value(1.0)
    for _ in range(40):
        y = y + y
    walk_once(order(y))
    assert x.grad == 2.0**40, f"x doubled 40 times has slope 2^40, not {x.grad}"


# %% [markdown]
# There is another way, which needs no search. A value gets its number after its arguments got theirs. So
# always take the **youngest** value that is waiting: everything that used it is younger, hence done. A heap
# hands it out.


# %%
def walk(y):
    grads, waiting = {y: np.ones_like(y.data)}, [(-y.number, y)]
    while waiting:
        v = heappop(waiting)[1]
        v.grad = grads[v]
        for a, ga in pieces(v, v.grad):
            if a not in grads:
                heappush(waiting, (-a.number, a))
            grads[a] = grads[a] + ga if a in grads else ga
    return len(grads)


x = y = Value(1.0)
for _ in range(14):
    y = y + y
print("visits:", walk(y), "instead of", visits[14], "  slope:", x.grad)

# %% [markdown]
# ## 6. The next bug: broadcasting
# NumPy stretches small arrays to fit large ones. Below, a bias of shape (3,) is added to each of 4 rows. A
# gradient must have the shape of its value, and here it has not. The bias was used four times, once in each
# row. So again the parts add: sum over the axes that were stretched. We do this **once, in the walk**, and
# no rule has to mention it.

# %%
rows, bias = Value(np.ones((4, 3))), Value(np.zeros(3))
walk(apply("sum", rows + bias))
print("bias:", bias.data.shape, "  its gradient:", bias.grad.shape)


# %%
def match(g, shape):
    """Sum g over the axes that NumPy stretched."""
    g = np.asarray(g).sum(axis=tuple(range(np.ndim(g) - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def pieces(v, g):
    values = [a.data for a in v.args]
    rules = zip(v.args, RULES.get(v.op, ()))
    return [(a, match(rule(g, v.data, *values), a.data.shape)) for a, rule in rules]


walk(apply("sum", rows + bias))
print("bias:", bias.data.shape, "  its gradient:", bias.grad.shape, bias.grad)

# %% [markdown]
# That is the whole engine. **Exercise 2: add an operation.** The slope of $y = \tanh a$ is $1 - y^2$. Write
# the rule. It may use the output $y$, which is there already.


# %%
def tanh_rule(g, y, a):
    """The gradient of a, from the gradient g of y = tanh(a)."""
    # BEGIN SOLUTION
    return g * (1 - y * y)
    # END SOLUTION


FORWARD["tanh"], RULES["tanh"] = np.tanh, (tanh_rule,)


# %% tags=["mistake"]
# Forgets the incoming gradient.
def tanh_rule(g, y, a):
    return 1 - y * y


RULES["tanh"] = (tanh_rule,)


# %% tags=["mistake"]
# Uses the input where the output belongs.
def tanh_rule(g, y, a):
    return g * (1 - a * a)


RULES["tanh"] = (tanh_rule,)


# %%
@exercise("tanh_rule")
def check_tanh_rule():
    a, h = np.array([-1.0, 0.0, 0.5]), 1e-6
    assert tanh_rule(1.0, np.tanh(a), a) is not None, "tanh_rule gave nothing: return the gradient of a"
    x = Value(a)
    walk(apply("sum", apply("tanh", x) * 3.0))
    right = 3 * (np.tanh(a + h) - np.tanh(a - h)) / (2 * h)
    error = np.abs(x.grad - right).max()
    assert error <= 1e-8, (
        f"slopes of 3 tanh(a) at {a}: {right.round(4)} by experiment, {x.grad.round(4)} by your rule"
    )


# %% [markdown]
# ## 7. Use it: learn a curve
# A network with one hidden layer of 24 waves: $\hat t = \sin(xW + b)\,a$. Go downhill along the gradient of
# the mean squared error. The walk gives the gradients of $W$, $b$ and $a$ together.

# %%
rng = np.random.default_rng(0)
inputs = np.linspace(-3, 3, 60)[:, None]
targets = np.abs(inputs) - 1.5
start = [rng.standard_normal((1, 24)) * 2, rng.standard_normal(24), rng.standard_normal((24, 1)) * 0.2]


def predict(W, b, a):
    return apply("sin", Value(inputs) @ W + b) @ a


def loss(W, b, a):
    error = predict(W, b, a) + -targets
    return apply("sum", error * error) * (1 / len(inputs))


# %%
parameters, losses = [p.copy() for p in start], []
for _ in range(400):
    values = [Value(p) for p in parameters]
    mean_square = loss(*values)
    walk(mean_square)
    losses.append(float(mean_square.data))
    parameters = [p - 0.05 * v.grad for p, v in zip(parameters, values)]
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
left.semilogy(losses)
left.set(xlabel="step", title=f"mean squared error: {losses[0]:.2f} → {losses[-1]:.4f}")
right.plot(inputs, targets, "k", lw=3, alpha=0.3, label="target")
right.plot(inputs, predict(*map(Value, start)).data, "--", label="before")
right.plot(inputs, predict(*map(Value, parameters)).data, label="after")
right.legend()
plt.show()

# %% [markdown]
# ## 8. Meet the engine
# `minitf/engine/tape.py` records and walks, `minitf/engine/rules.py` is the table. The same program gives
# the same numbers. `mt.grad(f, argnums)` makes, from a function, the function that gives its gradients.


# %%
def loss_mt(W, b, a):
    error = mt.ops.sin(inputs @ W + b) @ a - targets
    return (error * error).sum() * (1 / len(inputs))


values = [Value(p) for p in start]
walk(loss(*values))
grads = mt.grad(loss_mt, argnums=(0, 1, 2))(*start)
for name, ours, theirs in zip("Wba", values, grads):
    print(f"{name}: shape {theirs.shape}, largest difference {np.abs(ours.grad - theirs.numpy()).max():.1e}")

# %% [markdown]
# ## 9. How small should the step be?
# We trust a rule because we compared it with the experiment. But what is the error of the experiment? Take
# $e^x$, whose slope we know, at 50 points around 1, and try every step.

# %%
fig, axes = plt.subplots(figsize=(6, 3.2))
best = {}
for dtype in ("float32", "float64"):
    x, steps = np.linspace(0.5, 1.5, 50).astype(dtype), np.logspace(-14, 0, 113).astype(dtype)
    slopes = np.array([(np.exp(x + h) - np.exp(x - h)) / (2 * h) for h in steps])
    errors = np.abs(slopes / np.exp(x) - 1).mean(axis=1)
    axes.loglog(steps, errors, ".-", label=dtype)
    best[dtype] = steps[errors.argmin()]
axes.loglog(steps, steps**2 / 6, "k--", lw=1, label="truncation, h² f‴/6f")
axes.loglog(steps, 1.1e-16 / steps, "k:", lw=1, label="rounding, ε/2h, in float64")
axes.set(xlabel="step h", ylabel="relative error of the slope", ylim=(1e-13, 10))
axes.legend(fontsize=8)
plt.show()
print({dtype: f"best step {h:.0e}" for dtype, h in best.items()})

# %% [markdown]
# A V. On the right the step is too long: the curve bends on the way. On the left it is too short: we
# subtract two numbers that agree in almost all digits, and what is left is rounding. In float32 no
# step gives more than five digits. That is why gradients are checked in float64, with $h$ between $10^{-6}$
# and $10^{-5}$.
#
# **Exercise 3: write a gradient checker.** Move each element of `x` in turn, and return the largest
# distance between the central difference and `gradient`. Leave `x` as it was.


# %%
def worst_error(f, gradient, x, h=1e-5):
    """The largest |central difference - gradient| over the elements of the array x. f gives a number."""
    # BEGIN SOLUTION
    worst = 0.0
    for i in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[i] = h
        slope = (f(x + step) - f(x - step)) / (2 * h)
        worst = max(worst, abs(slope - gradient[i]))
    return worst
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the 2 in the difference.
def worst_error(f, gradient, x, h=1e-5):
    worst = 0.0
    for i in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[i] = h
        worst = max(worst, abs((f(x + step) - f(x - step)) / h - gradient[i]))
    return worst


# %% tags=["mistake"]
# Changes x in place and does not put it back.
def worst_error(f, gradient, x, h=1e-5):
    worst = 0.0
    for i in np.ndindex(x.shape):
        x[i] += h
        up = f(x)
        x[i] -= 2 * h
        worst = max(worst, abs((up - f(x)) / (2 * h) - gradient[i]))
    return worst


# %% tags=["mistake"]
# Gives the error of the last element instead of the largest.
def worst_error(f, gradient, x, h=1e-5):
    for i in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[i] = h
        last = float(abs((f(x + step) - f(x - step)) / (2 * h) - gradient[i]))
    return last


# %%
@exercise("worst_error")
def check_worst_error():
    def cube(x):
        return float((x**3).sum())

    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    before, right = x.copy(), 3 * x**2
    found = worst_error(cube, right, x)
    assert isinstance(found, float), f"worst_error should give a number, not {type(found).__name__}"
    assert (x == before).all(), "x was changed and not put back"
    assert found <= 1e-8, f"the gradient of Σx³ is 3x², but you found an error of {found:.2g}"
    for i in np.ndindex(x.shape):
        wrong = right.copy()
        wrong[i] += 0.01
        found = worst_error(cube, wrong, x)
        assert abs(found - 0.01) <= 1e-6, (
            f"0.01 too much in element {i}: the error is 0.01, you found {found:.2g}"
        )


# %%
# The library's checker moves in a random direction: two runs, however many inputs. It also checks the second
# derivatives. A check is worth something only if it can fail, so we give it a wrong program too.
points = np.array([0.3, -1.2, 2.0])
print(f"x sin x: relative error {mt.check_grad(lambda x: x * mt.ops.sin(x), points):.1e}")
try:
    mt.check_grad(lambda x: x * mt.ops.sin(mt.stop_gradient(x)), points)
except mt.GradientError as error:
    print("one path cut:", str(error).split(", relative")[0])

# %% [markdown]
# **Exercise 4: derive a rule.** The softmax turns scores into weights: $y_i = e^{x_i} / \sum_j e^{x_j}$. By
# the quotient rule $\frac{\partial y_i}{\partial x_j} = y_i (\delta_{ij} - y_j)$. So the gradient that
# reaches $x_j$ is $\sum_i g_i\, y_i (\delta_{ij} - y_j)$. Simplify, then write it for the last axis of an
# array, without a loop.


# %%
def softmax_rule(g, y):
    """The gradient of x (..., n), from the gradient g of y = softmax(x) along the last axis."""
    # BEGIN SOLUTION
    return y * (g - (g * y).sum(axis=-1, keepdims=True))
    # END SOLUTION


# %% tags=["mistake"]
# Takes only the diagonal of the Jacobian.
def softmax_rule(g, y):
    return g * y * (1 - y)


# %% tags=["mistake"]
# Sums over everything instead of the last axis.
def softmax_rule(g, y):
    return y * (g - (g * y).sum())


# %%
@exercise("softmax_rule")
def check_softmax_rule():
    rng = np.random.default_rng(0)
    for shape in ((2,), (3, 5), (2, 3, 4)):
        x, g = rng.standard_normal(shape), rng.standard_normal(shape)
        y, pull = mt.vjp(mt.ops.softmax, x)
        mine, right = softmax_rule(g, y.numpy()), pull(g)[0].numpy()
        assert mine is not None, "softmax_rule gave nothing: return an array of the shape of y"
        assert np.shape(mine) == shape, (
            f"y has shape {shape}, so has the gradient, but yours has {np.shape(mine)}"
        )
        error = np.abs(mine - right).max()
        assert error <= 1e-12, f"shape {shape}: largest difference from mt.ops.softmax {error:.2g}"
    # BEGIN HIDDEN TESTS
    even = softmax_rule(np.ones((2, 4)), np.full((2, 4), 0.25))
    error = np.abs(even).max()
    assert error <= 1e-12, f"equal incoming gradients change no weight: 0 everywhere, not {error:.2g}"
    # END HIDDEN TESTS


# %% [markdown]
# ## 10. Second order
# Rules are made of operations, so the walk can itself be recorded and walked again. The second derivatives
# say how the slope will change on the way. Newton's method uses them to choose direction *and* length of
# each step: once close, a step squares the error. The price is the matrix of second derivatives. With
# 100,000 parameters it would hold $10^{10}$ numbers. But often one wants it only *times a vector*. That
# takes two walks and no matrix, and is called `mt.hvp`.


# %%
def bowl(p):
    return mt.ops.exp(p[0] + 3 * p[1] - 0.1) + mt.ops.exp(p[0] - 3 * p[1] - 0.1) + mt.ops.exp(-p[0] - 0.1)


slope, lowest = mt.grad(bowl), np.array([-np.log(2) / 2, 0.0])
curvature = mt.jacobian(slope)
paths = {"gradient descent": [np.array([-1.5, 0.7])], "Newton": [np.array([-1.5, 0.7])]}
for _ in range(12):
    p, q = paths["gradient descent"][-1], paths["Newton"][-1]
    paths["gradient descent"].append(p - 0.14 * slope(p).numpy())
    paths["Newton"].append(q - np.linalg.solve(curvature(q).numpy(), slope(q).numpy()))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
across, up = np.meshgrid(np.linspace(-2, 0.5, 80), np.linspace(-0.8, 0.9, 80))
left.contour(
    across, up, bowl(mt.tensor(np.stack([across, up]))).numpy(), np.geomspace(2.6, 40, 12), colors="0.75"
)
for name, path in paths.items():
    errors = np.linalg.norm(np.array(path) - lowest, axis=1)
    left.plot(*np.transpose(path), ".-", label=name)
    right.semilogy(np.maximum(errors, 1e-16), ".-", label=name)
left.set(title="the paths", xlim=(-2, 0.5), ylim=(-0.8, 0.9))
right.set(title="distance from the lowest point", xlabel="step")
right.legend()
plt.show()

# %%
x, v = rng.standard_normal(100_000), rng.standard_normal(100_000)
product = mt.hvp(lambda x: (x * mt.ops.sin(x)).sum(), x, v).numpy()
by_hand = (2 * np.cos(x) - x * np.sin(x)) * v
print(f"largest difference {np.abs(product - by_hand).max():.1e}")
print(f"the matrix itself would take {x.size**2 * 8 / 1e9:.0f} GB")

# %% [markdown]
# ## 11. Where the memory goes
# Look at the rules again: `mul` needs both arguments, `tanh` its output. The recipes keep all of them until
# the walk has passed. So memory grows with depth. `mt.checkpoint(f)` keeps only the input of `f` and runs
# it again when the walk arrives: less memory, for the time of one more forward run.


# %%
def cost(depth, wrap, backward=True):
    """Count a run through `depth` blocks and back."""
    x = mt.tensor(np.full((64, 64), 0.5), requires_grad=True)
    block = wrap(lambda x: x + mt.ops.tanh(x * x * 0.5) @ mt.ops.sin(x) / 64)
    with mt.profile() as counted:
        y = x
        for _ in range(depth):
            y = block(y)
        if backward:
            y.sum().backward()
    return counted


depths, array_bytes = [2, 4, 8, 16, 24], 64 * 64 * 8
stored = [cost(depth, lambda f: f) for depth in depths]
again = [cost(depth, mt.checkpoint) for depth in depths]
plt.figure(figsize=(5, 2.6))
plt.plot(depths, [c.peak_bytes / array_bytes for c in stored], "o-", label="keep everything")
plt.plot(depths, [c.peak_bytes / array_bytes for c in again], "s-", label="checkpoint each block")
plt.xlabel("blocks")
plt.ylabel("arrays at the peak")
plt.legend()
plt.show()

# %%
errors = np.linalg.norm(np.array(paths["Newton"]) - lowest, axis=1)
forward = cost(24, lambda f: f, backward=False).flops
table = [
    ("the best step for central differences is about ε^(1/3): 6e-06", f"{best['float64']:.0e} in float64"),
    ("the same in float32, where ε^(1/3) is 5e-03", f"{best['float32']:.0e}"),
    ("the error of Newton's method is squared at each step", " → ".join(f"{e:.0e}" for e in errors[2:6])),
    (
        "checkpoints save memory (arXiv:1604.06174)",
        f"{stored[-1].peak_bytes / again[-1].peak_bytes:.1f} times less for 24 blocks",
    ),
    (
        "... for the time of one more forward run",
        f"{(again[-1].flops - stored[-1].flops) / forward:.2f} forward runs",
    ),
    (
        "a gradient costs at most about 5 times its function, however many inputs (Baur and Strassen, 1983)",
        f"{stored[-1].flops / forward:.2f} times, there and back, for {64 * 64} inputs",
    ),
]
Markdown(
    "## What the papers say, what we measured\n| the claim | measured here |\n|---|---|\n"
    + "\n".join(f"| {claim} | {measured} |" for claim, measured in table)
)

# %% [markdown]
# ## On your own
# - A product of matrices costs twice as much on the way back as on the way there. Why? Read the rule.
# - `tanh` needs only its output, `sin` only its input. Which rules could do with less memory if written
#   differently?
# - Checkpoint 25 blocks in 5 groups of 5. What is the peak now, and which group size is best?
# - Start Newton's method at (1, 1). Then use it on a function with a saddle. Where does it go, and why?
#
# ## Where to go next
# Read `minitf/engine/tape.py`: `record` and `walk` are the two halves of this lesson. Then lesson
# `02_build_attention` builds the operation that this engine was made for.
