# %% [markdown]
# # Read a feed-forward layer like a dictionary
#
# **What you will do.** Take a feed-forward layer apart into single neurons. Read in plain symbols what each
# neuron writes. Turn eight of them up and watch the answer change. Then count how few neurons work at all,
# forbid the others, and compare shapes of layers at equal size.
#
# **What you will learn.** Keys and values in a feed-forward layer; reading vectors in the vocabulary;
# steering; activation sparsity and top-k; gated layers (GLU); wide-narrow-wide layers; and why a control
# experiment can spoil a beautiful result.
#
# **What you need.** Python, NumPy, derivatives, and lesson `02_build_attention` for what a residual stream
# and a head are. Run the cells from top to bottom. The five exercises check themselves.
#
# **Variants.** `relu_ffn`, `glu_ffn`, `lazy_topk_ffn`, `hourglass_ffn`, `spark_ffn`, `pkm`

# %%
import numpy as np

import minitf as mt
from minitf.models import Config, LanguageModel
from minitf.testing import check_variant, exercise
from minitf.viz import Picture
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

# The plain code, so that what you read in the library is what runs here.
mt.use("reference")
np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## 1. Every neuron is an entry of a dictionary
#
# A feed-forward layer (FFN) acts on one token $x$ of width $D$ and has $F$ hidden neurons:
#
# $$h = \mathrm{relu}(x W_1 + b_1) \qquad\qquad y = h W_2 + b_2 = b_2 + \sum_{i=1}^{F} h_i v_i$$
#
# Look at the sum. Column $i$ of $W_1$ is a **key** $k_i$: the neuron is active if
# $x \cdot k_i + b_{1,i} > 0$. Row $i$ of $W_2$ is a **value** $v_i$: what the neuron writes, always the same
# vector, more or less of it. So the layer looks up a dictionary, as attention does. But the entries are
# weights, not other tokens, and no softmax makes them compete.
#
# Below, a dictionary of three entries made by hand. Letters are one-hot vectors, and the entries say what
# follows which letter.

# %%
letters = ["a", "b", "c", "d"]
one_hot = np.eye(4, dtype="float32")
layer = mt.build("relu_ffn", dim=4, hidden=3)
# Keys are columns of W1, values are rows of W2: a -> b, b -> c, and "a or c" -> d.
layer.w1.weight.data = np.stack([one_hot[0], one_hot[1], one_hot[0] + one_hot[2]], axis=1)
layer.w2.weight.data = np.stack([one_hot[1], one_hot[2], one_hot[3]])
answers = layer(mt.tensor(one_hot)).numpy()
for letter, answer in zip(letters, answers):
    print(letter, "->", [f"{other} {weight:.0f}" for other, weight in zip(letters, answer) if weight] or "-")

# %% [markdown]
# ### Exercise 1: what does each neuron add?
#
# Take the sum apart: give back one row for each neuron, $h_i v_i$. A neuron that is not active adds zero.


# %%
def contributions(x, w1, b1, w2):
    """What each neuron adds, (F, D), for one token x (D,), from w1 (D, F), b1 (F,) and w2 (F, D)."""
    # BEGIN SOLUTION
    h = np.maximum(x @ w1 + b1, 0)
    return h[:, None] * w2
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the ReLU: neurons that are not active write the negative of their value.
def contributions(x, w1, b1, w2):
    return (x @ w1 + b1)[:, None] * w2


# %% tags=["mistake"]
# Takes the columns of W2 for the values.
def contributions(x, w1, b1, w2):
    return np.maximum(x @ w1 + b1, 0)[:, None] * w2.T[: w2.shape[0], : w2.shape[1]]


# %%
@exercise("contributions")
def check_contributions():
    x, w1, b1 = np.array([1.0, 2.0]), np.eye(2), np.array([0.0, -3.0])
    w2 = np.array([[1.0, 5.0], [7.0, 1.0]])
    rows = contributions(x, w1, b1, w2)
    assert rows is not None, "contributions gives nothing back yet: return h_i times row i of w2, for every i"
    assert np.shape(rows) == (2, 2), f"2 neurons of width 2 give the shape {np.shape(rows)}, expected (2, 2)"
    expected = np.array([[1.0, 5.0], [0.0, 0.0]])
    err = np.abs(rows - expected).max()
    assert err <= 1e-12, f"h = [1, 0], w2 = {w2.tolist()}: you give {rows.tolist()}, not {expected.tolist()}"
    # BEGIN HIDDEN TESTS
    ffn = mt.build("relu_ffn", dim=5, hidden=9, seed=1, dtype="float64")
    ffn.w1.bias.data = np.random.default_rng(2).standard_normal(9)
    x = np.random.default_rng(3).standard_normal(5)
    rows = contributions(x, *(p.numpy() for p in (ffn.w1.weight, ffn.w1.bias, ffn.w2.weight)))
    assert np.shape(rows) == (9, 5), f"9 neurons of width 5 give the shape {np.shape(rows)}, expected (9, 5)"
    err = np.abs(rows.sum(axis=0) + ffn.w2.bias.numpy() - ffn(mt.tensor(x)).numpy()).max()
    assert err <= 1e-12, f"for a random layer the rows and b2 do not add up to y: off by {err:.1e}"
    # END HIDDEN TESTS


# %% [markdown]
# ## 2. A model that knows 240 facts
#
# Reading makes sense where there is something to read. `ToyFacts` has 60 persons of two names, four
# relations (think of *lives in*, *works for*), and one object for each person and relation, drawn at
# random. Each relation has five objects of its own. No rule helps: the model must learn the table by heart.
# Both names matter, since each name belongs to several persons.
#
# We train one transformer block: attention, then a ReLU layer with 256 neurons.

# %%
task = mt.tasks.ToyFacts(disjoint=True)
names = ["BOS", *"fffff", *(f"First{i}" for i in range(12)), *(f"Last{i}" for i in range(12))]
names += [f"relation{r}" for r in "ABCD"] + [f"{r}{i}" for r in "ABCD" for i in range(1, 6)]
x, y, _ = task.sample(np.random.default_rng(1), 4)
for question, answer in zip(x, y):
    print(" ".join(names[token] for token in question), "->", names[answer[-1]])


def train(model, batch, steps, lr, decay=True, watch=None):
    """The losses of all steps; `batch()` gives the next batch, `watch()` is called every 40 steps."""
    optimizer, losses = mt.train.AdamW(model.parameters(), lr=lr, weight_decay=0.0), []
    for step in range(steps):
        if watch is not None and step % 40 == 0:
            watch()
        fall = 1 - step / steps if decay else 1
        optimizer.groups[0]["lr"] = lr * min(1, (step + 1) / 20) * fall
        optimizer.zero_grad()
        loss = model.loss(*batch())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


sizes = dict(vocab=task.V_in, context=task.N, dim=64, depth=1, heads=4, tied=False, position="learned")
model = LanguageModel(Config(**sizes, norm="layernorm", ffn="relu_ffn", ffn_hidden=256), seed=0)
data, rng = mt.train.TaskData(task), np.random.default_rng(0)
losses = train(model, lambda: data.batch(rng, 64), steps=250, lr=5e-3)

# %%
questions, answers, _ = task.facts()
answers, relation = answers[:, -1], np.arange(240) % 4
block = model.blocks[0]


def last_logits(part=None, change=None):
    """Logits (240, V) for all facts, with the output of `part` changed if given."""
    hook = None if part is None else part.register_forward_hook(lambda module, args, out: change(out))
    with mt.no_grad():
        logits = model(questions)[:, -1].numpy()
    if hook is not None:
        hook.remove()
    return logits


def share_right(logits):
    return float((logits.argmax(axis=-1) == answers).mean())


right = {
    "whole model": share_right(last_logits()),
    "without the FFN": share_right(last_logits(block.ffn, lambda out: 0 * out)),
    "without attention": share_right(last_logits(block.mixer, lambda out: 0 * out)),
}
picture = Picture(7, 2.4)
left, bars = picture.subplots(1, 2)
left.plot(losses, color=BLUE)
left.axhline(np.log(5), color=GREY, linestyle="--", label="knows the relation only: ln 5")
left.set(xlabel="training step", ylabel="loss (nats)")
left.legend(fontsize=8)
drawn = bars.barh(list(right), list(right.values()), color=[BLUE, ORANGE, ORANGE])
bars.bar_label(drawn, fmt="%.2f", fontsize=9, padding=3, bbox=dict(color="white", pad=1))
bars.axvline(0.2, color=GREY, linestyle="--")
bars.set(xlim=(0, 1.15), xlabel="share of the 240 facts")
bars.invert_yaxis()
picture

# %% [markdown]
# A surprise, if you have read that "facts are in the FFN". Without it, most answers are still right: far
# more than the dashed line, one in five. With four heads, attention itself fetches the names with weights
# that depend on the question, and its four softmaxes look up many facts alone. The FFN adds the rest.
# Without attention, nothing knows the person. So be careful with the sentence "layer X stores Y".
#
# ## 3. Read the values in the vocabulary
#
# What the FFN writes goes through the last norm and the head to the logits. Keep the divisor $s$ of the norm
# as it is (it is *frozen*). Then, up to constants, all that follows is linear, and each neuron has its own
# logits:
#
# $$\mathrm{logits}(z) = \left(\frac{z - \mathrm{mean}(z)}{s} \cdot g + b\right) W_U$$
#
# $$P_i = ((v_i - \mathrm{mean}(v_i)) \cdot g) W_U$$
#
# $z$ is the residual stream, $g$ and $b$ are the gain and the bias of the norm, $W_U$ is the head, of shape
# (D, V). One more unit of neuron $i$ adds exactly $P_i / s$ to the logits.
#
# ### Exercise 2: the words of each neuron
#
# Compute all rows of $P$ at once.


# %%
def neuron_words(w2, gain, head):
    """P (F, V), from w2 (F, D), the gain of the norm (D,) and the head (D, V)."""
    # BEGIN SOLUTION
    centred = w2 - w2.mean(axis=1, keepdims=True)
    return (centred * gain) @ head
    # END SOLUTION


# %% tags=["mistake"]
# Forgets that the norm subtracts the mean.
def neuron_words(w2, gain, head):
    return (w2 * gain) @ head


# %% tags=["mistake"]
# Subtracts the mean over the neurons, not over the width.
def neuron_words(w2, gain, head):
    return ((w2 - w2.mean(axis=0)) * gain) @ head


# %% tags=["mistake"]
# Forgets the gain of the norm.
def neuron_words(w2, gain, head):
    return (w2 - w2.mean(axis=1, keepdims=True)) @ head


# %%
@exercise("neuron_words")
def check_neuron_words():
    value, gain = np.array([[1.0, 2.0, 6.0]]), np.array([1.0, 1.0, 2.0])
    words = neuron_words(value, gain, np.eye(3))
    assert words is not None, "neuron_words gives nothing back yet: centre rows, times gain, times head"
    assert np.shape(words) == (1, 3), f"one neuron and 3 symbols: your shape is {np.shape(words)}, not (1, 3)"
    err = np.abs(words - [[-2.0, -1.0, 6.0]]).max()
    assert err <= 1e-12, (
        f"value {value[0].tolist()}, gain {gain.tolist()}, head = identity: you give {words[0].tolist()}, "
        "expected [-2.0, -1.0, 6.0]"
    )
    # BEGIN HIDDEN TESTS
    rng = np.random.default_rng(4)
    w2, gain, head, z = (rng.standard_normal(shape) for shape in ((6, 5), 5, (5, 7), 5))

    def logits(z, s):
        return ((z - z.mean()) / s * gain) @ head

    s, words = np.std(z), neuron_words(w2, gain, head)
    assert np.shape(words) == (6, 7), f"6 neurons and 7 symbols: your shape is {np.shape(words)}"
    for i in range(6):
        err = np.abs(logits(z + w2[i], s) - logits(z, s) - words[i] / s).max()
        assert err <= 1e-12, f"neuron {i} of a random layer changes the logits otherwise: off by {err:.1e}"
    # END HIDDEN TESTS


# %%
value, gain, head = block.ffn.w2.weight.numpy(), model.norm.weight.numpy(), model.head.weight.numpy()
P = ((value - value.mean(axis=1, keepdims=True)) * gain) @ head
# Five columns for each relation: (neurons, relations, objects).
on_objects = P[:, task.first_object :].reshape(256, 4, 5)
# How much more a neuron writes the objects of one relation than the others: (neurons, relations).
concept = on_objects.mean(axis=2)
concept = (4 * concept - concept.sum(axis=1, keepdims=True)) / 3
for neuron in np.argsort(-concept.max(axis=1))[:8]:
    top = np.argsort(-P[neuron])[:5]
    print(f"neuron {neuron:3d} writes", " ".join(names[token] for token in top))

# %% [markdown]
# Each of these neurons writes mostly the objects of one relation. They are the most one-sided of 256: I
# searched for them, and who searches finds. So count over all neurons: how many have at least four of their
# five strongest objects in one relation? And how many would, if the objects were dealt to the relations at
# random?


# %%
def grouped(deal):
    """Share of neurons with four of their top five objects in one group; `deal` (20,) names the groups."""
    top = deal[np.argsort(-on_objects.reshape(256, 20), axis=1)[:, :5]]
    return float(np.mean([np.bincount(row, minlength=4).max() >= 4 for row in top]))


true_deal, shuffler = np.repeat(np.arange(4), 5), np.random.default_rng(0)
share, shuffled = grouped(true_deal), [grouped(shuffler.permutation(true_deal)) for _ in range(300)]
print(f"grouped neurons: {share:.2f}; with shuffled objects {np.mean(shuffled):.3f} on average,")
print(f"and below {np.quantile(shuffled, 0.95):.3f} in 95 of 100 shuffles")

# %% [markdown]
# Now the keys. For which relation is a neuron most active, on average over the 60 persons? If a neuron is
# an entry of a dictionary, key and value should agree: it should be active in questions about A and write
# objects of A. The picture shows the four most one-sided neurons for each relation. Left: keys, as mean
# activity in the questions about each relation, each row divided by its largest. Right: values, as $P$ on
# the 20 objects.

# %%
hidden = []
hook = block.ffn.w1.register_forward_hook(lambda module, args, out: hidden.append(np.maximum(out.numpy(), 0)))
last_logits()
hook.remove()
h = hidden[0][:, -1]  # (240, 256): the neurons at the token of the relation
key_relation = h.reshape(60, 4, 256).mean(axis=0).T  # (256, 4)
agree = float((key_relation.argmax(axis=1) == concept.argmax(axis=1)).mean())
print(f"key and value name the same relation in {agree:.2f} of all neurons; by chance 0.25")
chosen = np.concatenate([np.argsort(-concept[:, r])[:4] for r in range(4)])
picture = Picture(7, 3.6)
left, right_side = picture.subplots(1, 2, width_ratios=(1, 4))
left.imshow(
    key_relation[chosen] / key_relation[chosen].max(axis=1, keepdims=True), cmap="Greys", aspect="auto"
)
left.set_xticks(range(4), list("ABCD"))
left.set_yticks(range(16), chosen, fontsize=8)
left.set(title="keys", xlabel="relation asked", ylabel="neuron")
limit = np.abs(on_objects[chosen]).max()
shown = right_side.imshow(
    on_objects[chosen].reshape(16, 20), cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto"
)
right_side.set_xticks(range(20), names[-20:], fontsize=7)
right_side.set(title="values, read in the vocabulary", xlabel="object", yticks=[])
for edge in (4.5, 9.5, 14.5):
    right_side.axvline(edge, color="black", linewidth=0.6)
picture.colorbar(shown, ax=right_side, label="P")
picture

# %% [markdown]
# The values are clean blocks. The keys are not: a neuron that writes objects of one relation may be active
# for other relations too, and others must cancel what it writes. Key and value agree more often than by
# chance, and far from always.
#
# ## 4. Steer: turn neurons up by hand
#
# If a value means "objects of A", turning up such neurons should move *any* answer to A. Choose the eight
# neurons of the highest concept score for A, and set each to $\alpha$ times its largest activity on the
# data. Ask about the *other* relations. The control is five random sets of eight.
#
# Predict: how large must $\alpha$ be until a question about B is answered with an object of A?

# %%
alphas = np.array([0, 0.5, 1, 2, 4, 8])
largest = h.max(axis=0)


def steered(neurons, alpha):
    """Logits (240, V) with these neurons held at alpha times their largest activity. ReLU leaves them so."""

    def hold(u):
        u = u.numpy().copy()
        u[..., neurons] = alpha * largest[neurons]
        return mt.tensor(u)

    return last_logits(block.ffn.w1, hold)


def mass(neurons, target):
    """Mean probability of the objects of relation `target` in questions about others, and its mean log."""
    p = [mt.ops.softmax(steered(neurons, alpha)[relation != target]) for alpha in alphas]
    p = np.stack(p)[..., task.objects_of(target)].sum(axis=-1)
    return p.mean(axis=1), np.log(p).mean(axis=1)


best = [np.argsort(-concept[:, r])[:8] for r in range(4)]
chosen_mass, chosen_log = (np.stack(both) for both in zip(*(mass(best[r], r) for r in range(4))))
dice = np.random.default_rng(5)
random_log = np.stack([mass(dice.choice(256, 8, replace=False), 0)[1] for _ in range(5)])
gap = chosen_log[0] - random_log.max(axis=0)
print(f"log probability of A above the best random set, at alpha = {alphas[1:]}: {gap[1:].round(1)}")
picture = Picture(7, 2.6)
left, right_side = picture.subplots(1, 2)
left.plot(alphas, random_log.T, color=GREY, label=["five random sets"] + [None] * 4)
left.plot(alphas, chosen_log[0], "o-", color=ORANGE, label="the eight neurons of A")
left.set(xlabel="alpha", ylabel="mean log probability of A", ylim=(-9.5, 3.5))
left.legend(fontsize=8, loc="upper right")
for r, color in enumerate([ORANGE, BLUE, GREEN, "black"]):
    right_side.plot(alphas, chosen_mass[r], "o-", color=color, label="ABCD"[r])
right_side.set(xlabel="alpha", ylabel="probability of the target", ylim=(-0.03, 1.03))
right_side.legend(fontsize=8, title="steered to")
picture

# %% [markdown]
# The dose works, and the random sets do much less. But look where it works: at $\alpha = 1$, the largest
# activity that ever occurs, little happens. Steering pushes far outside of what the layer does by itself.
#
# With the divisor of the norm frozen, the effect is no mystery at all. The logits change by
# $\sum_{i \in S} (\alpha_i - h_i) P_i / s$, a straight line in $\alpha$. Check it for all facts: the first
# line is exact up to rounding, the second is what the moving divisor does.

# %%
streams = []
hook = model.norm.register_forward_pre_hook(lambda module, args: streams.append(args[0].numpy()[:, -1]))
before, after = last_logits(), steered(best[0], 4)
hook.remove()
s = [np.sqrt(z.var(axis=-1, keepdims=True) + 1e-5) for z in streams]  # 1e-5 is the norm's own epsilon
predicted = (4 * largest[best[0]] - h[:, best[0]]) @ P[best[0]] / s[0]
bias = model.norm.bias.numpy() @ head
frozen = (after - bias) * s[1] / s[0] + bias - before
print(
    f"frozen divisor: largest difference {np.abs(predicted - frozen).max():.0e} of {np.abs(frozen).max():.0f}"
)
print(f"the real divisor grows by a factor of {np.mean(s[1] / s[0]):.2f} on average")

# %% [markdown]
# ## 5. Lazy neurons
#
# How many of the neurons work? At the start a ReLU is active for about half of the tokens: its input has
# either sign. Nothing in the loss asks for fewer. Guess what training does to the share of active neurons.
#
# The task is `BigramBackcopy`: text from a Markov chain in which three trigger symbols copy what stood
# before them. The model has two blocks with 128 neurons each. We measure the share of entries of $h$ above
# zero, the mean over tokens, on text that was not trained on. The control is a plain network on 8x8 digits,
# also ReLU.

# %%
chain = mt.tasks.BigramBackcopy(n=32)
text = mt.train.TaskData(chain)
held_out = text.validation_batches(64, 1)[0]


def active(layers, run):
    """Hidden units (tokens, F) after the ReLU, of each of these first matrices, while `run` runs."""
    seen = []
    hooks = [
        part.register_forward_hook(lambda module, args, out: seen.append(np.maximum(out.numpy(), 0)))
        for part in layers
    ]
    with mt.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return [part.reshape(-1, part.shape[-1]) for part in seen]


def chain_model(ffn="relu_ffn", hidden=128, **options):
    config = Config(
        chain.V_in, chain.N, dim=32, depth=2, norm="layernorm", position="learned", ffn=ffn,
        ffn_hidden=hidden, ffn_options=options,
    )  # fmt: skip
    return LanguageModel(config, seed=0)


lazy, source, shares = chain_model(), np.random.default_rng(0), []
first_matrices = [part.ffn.w1 for part in lazy.blocks]
train(
    lazy, lambda: text.batch(source, 16), steps=241, lr=1e-2, decay=False,
    watch=lambda: shares.append([(u > 0).mean() for u in active(first_matrices, lambda: lazy(held_out[0]))]),
)  # fmt: skip
shares = np.array(shares)
print(f"active neurons: {shares[0].round(2)} at the start, {shares[-1].round(2)} after 240 steps")

# %%
from minitf.nn import Linear, Module


class Digits(Module):
    def __init__(self):
        self.w1, self.w2 = Linear(64, 128, True, 1), Linear(128, 10, True, 2)

    def loss(self, images, labels):
        return mt.ops.cross_entropy(self.w2(mt.ops.relu(self.w1(images))), labels)


(images, labels), (test_images, _) = mt.tasks.split_digits()
images, test_images = mt.tensor(images.reshape(-1, 64)), mt.tensor(test_images.reshape(-1, 64))
digits, digit_shares, source = Digits(), [], np.random.default_rng(0)


def some_digits():
    rows = source.integers(0, len(labels), 64)
    return images[rows], labels[rows]


def count_digits():
    digit_shares.append((active([digits.w1], lambda: digits.w1(test_images))[0] > 0).mean())


train(digits, some_digits, steps=241, lr=1e-2, decay=False, watch=count_digits)
picture = Picture(5.5, 2.6)
axes = picture.subplots()
at = 40 * np.arange(len(shares))
axes.plot(at, shares[:, 0], "o-", color=BLUE, markersize=3, label="block 0")
axes.plot(at, shares[:, 1], "o-", color=ORANGE, markersize=3, label="block 1")
axes.plot(at, digit_shares, "o--", color=GREY, markersize=3, label="control: digits")
axes.set(xlabel="training step", ylabel="share of active neurons", ylim=(0, 0.9))
axes.legend(fontsize=8, ncols=3, loc="lower left")
picture

# %% [markdown]
# The neurons of the transformer grow lazy, with no penalty that asks for it. The digits do not: a ReLU and a
# falling loss are not enough. Keep the control in mind when you read "trained networks are sparse".
#
# If few neurons work, only the largest $k$ for each token should be needed. `lazy_topk_ffn` keeps those and
# sets the others to zero.
#
# ### Exercise 3: keep the k largest
#
# For each token on its own. Among equal numbers the lower index wins: many entries are exactly zero, and
# without a rule two machines would choose differently. `np.argsort(..., kind="stable")` keeps equal numbers
# in order, and `np.put_along_axis(array, indices, values, axis=-1)` writes into each row.


# %%
def keep_largest(h, k):
    """h (..., F) with the k largest entries of each row kept, and zeros elsewhere."""
    # BEGIN SOLUTION
    place = np.argsort(-h, axis=-1, kind="stable")[..., :k]
    kept = np.zeros_like(h)
    np.put_along_axis(kept, place, np.take_along_axis(h, place, axis=-1), axis=-1)
    return kept
    # END SOLUTION


# %% tags=["mistake"]
# Keeps all that reach the k-th largest: with ties these are more than k.
def keep_largest(h, k):
    threshold = np.sort(h, axis=-1)[..., -k][..., None]
    return np.where(h >= threshold, h, 0)


# %% tags=["mistake"]
# Sorts upwards: among equal numbers the higher index wins.
def keep_largest(h, k):
    place = np.argsort(h, axis=-1, kind="stable")[..., -k:]
    kept = np.zeros_like(h)
    np.put_along_axis(kept, place, np.take_along_axis(h, place, axis=-1), axis=-1)
    return kept


# %% tags=["mistake"]
# Chooses k entries of the whole batch, not of each token.
def keep_largest(h, k):
    place = np.argsort(-h.reshape(-1), kind="stable")[:k]
    kept = np.zeros_like(h)
    kept.reshape(-1)[place] = h.reshape(-1)[place]
    return kept


# %%
@exercise("keep_largest")
def check_keep_largest():
    cases = [([1, 3, 2], 1, [0, 3, 0]), ([2, 2, 1], 1, [2, 0, 0]), ([[1, 2], [4, 3]], 1, [[0, 2], [4, 0]])]
    for h, k, expected in cases:
        kept = keep_largest(np.array(h, float), k)
        assert kept is not None, "keep_largest gives nothing back yet: return an array shaped like h"
        assert np.shape(kept) == np.shape(h), f"h = {h} became the shape {np.shape(kept)}, not {np.shape(h)}"
        err = np.abs(kept - np.array(expected)).max()
        assert err <= 0, f"h = {h}, k = {k}: you keep {np.asarray(kept).tolist()}, expected {expected}"
    # BEGIN HIDDEN TESTS
    from minitf.ffn.lazy_topk_ffn import keep_largest as reference

    h = np.maximum(np.random.default_rng(6).integers(-3, 4, (2, 5, 9)), 0).astype(float)
    for k in (1, 3, 9):
        err = np.abs(keep_largest(h, k) - reference(mt.tensor(h), k).numpy()).max()
        assert err <= 0, f"for a random h (2, 5, 9) with ties and k = {k} you keep other entries"
    # END HIDDEN TESTS


# %%
ks = [128, 64, 32, 16, 8, 4, 2]
chain_losses = []
for k in ks:
    limited = chain_model("lazy_topk_ffn", k=k)
    limited.load_state_dict(lazy.state_dict())  # the weights of the trained model, nothing learnt anew
    with mt.no_grad():
        chain_losses.append(limited.loss(*held_out).item())
picture = Picture(7, 2.5)
left, right_side = picture.subplots(1, 2)
for u, color, label in zip(active(first_matrices, lambda: lazy(held_out[0])), (BLUE, ORANGE), "01"):
    energy = np.cumsum(-np.sort(-np.square(u), axis=1), axis=1)
    left.plot(range(1, 129), (energy / energy[:, -1:]).mean(axis=0), color=color, label=f"block {label}")
left.set(xlabel="neurons, the largest first", ylabel="share of the sum of squares", ylim=(0, 1.05))
left.legend(fontsize=8)
right_side.plot(ks, chain_losses, "o-", color=BLUE, label="top k after training")
right_side.axhline(chain.entropy, color=GREY, linestyle="--", label="best possible")
right_side.set(xscale="log", xlabel="k of 128", ylabel="loss (nats)")
right_side.set_xticks(ks, ks)
right_side.minorticks_off()
right_side.legend(fontsize=8)
picture

# %% [markdown]
# The top quarter ($k = 32$) carries nearly all, and with it the loss hardly moves. So you could train with a
# small $k$ from the start, and announce that four neurons of 128 are enough. Before you do, run the control
# that could spoil it: an ordinary layer that *has* only one neuron.

# %%
single, source = chain_model(hidden=1), np.random.default_rng(0)
train(single, lambda: text.batch(source, 16), steps=241, lr=1e-2, decay=False)
with mt.no_grad():
    single_loss = single.loss(*held_out).item()
print(f"128 neurons: {chain_losses[0]:.3f}; one neuron: {single_loss:.3f}; best possible {chain.entropy:.3f}")

# %% [markdown]
# With one neuron in each block the model is nearly as good. Attention does the work here, and this task
# cannot tell what a small $k$ costs. Take one in which the FFN does all the work: guess the next letter of
# *Moby-Dick* from the eight letters before it. The eight embeddings of width 8, side by side, are one token
# of width 64. There is no attention.

# %%
from minitf.nn import Embedding, RMSNorm

book = mt.tasks.load_moby()[:300_000]
ids = np.array(mt.tasks.CharTokenizer.from_text(book).encode(book))
window, cut = np.arange(8), 270_000
test_at = np.random.default_rng(9).integers(cut, len(ids) - 8, 2000)


class NextLetter(Module):
    """Letters (B, 8) -> logits: z = embeddings side by side; z + FFN(norm(z)); norm; head."""

    def __init__(self, ffn, seed, **options):
        rng = np.random.default_rng(seed)
        self.embedding = Embedding(ids.max() + 1, 8, rng)
        self.embedding.weight.data = self.embedding.weight.data * 25  # from a spread of 0.02 to 0.5
        self.ffn = mt.build(ffn, dim=64, seed=rng, **options)
        self.norms, self.head = [RMSNorm(64), RMSNorm(64)], Linear(64, ids.max() + 1, False, rng)
        # The hourglass brings its own norms and residuals.
        self.bare = ffn == "hourglass_ffn"

    def loss(self, letters, target):
        z = self.embedding(letters).reshape((len(letters), 64))
        z = self.ffn(z) if self.bare else z + self.ffn(self.norms[0](z))
        return mt.ops.cross_entropy(self.head(self.norms[1](z)), target)


def test_loss(ffn, seed=0, steps=200, **options):
    """Loss on held-out letters after training, and the model."""
    reader, source = NextLetter(ffn, seed, **options), np.random.default_rng(seed)

    def batch():
        at = source.integers(0, cut - 8, 128)
        return ids[at[:, None] + window], ids[at + 8]

    train(reader, batch, steps, lr=1e-2)
    with mt.no_grad():
        return reader.loss(ids[test_at[:, None] + window], ids[test_at + 8]).item(), reader


whole, reader = test_loss("relu_ffn", hidden=256)
print(f"256 neurons: loss {whole:.3f}; guessing without looking {np.log(ids.max() + 1):.3f}")

# %%
few = [64, 16, 4]
trained = [test_loss("lazy_topk_ffn", hidden=256, k=k)[0] for k in few]
narrow = [test_loss("relu_ffn", hidden=k)[0] for k in few]
afterwards = []
for k in few:
    limited = NextLetter("lazy_topk_ffn", 0, hidden=256, k=k)
    limited.load_state_dict(reader.state_dict())
    with mt.no_grad():
        afterwards.append(limited.loss(ids[test_at[:, None] + window], ids[test_at + 8]).item())
picture = Picture(5.5, 2.8)
axes = picture.subplots()
axes.axhline(whole, color=GREY, linestyle="--", label="all 256 neurons")
axes.plot(few, afterwards, "o-", color=ORANGE, label="top k of 256, after training")
axes.plot(few, narrow, "s-", color=GREEN, label="a layer with k neurons")
axes.plot(few, trained, "o-", color=BLUE, label="top k of 256, from the start")
axes.set(xscale="log", xlabel="neurons that may act for one token", ylabel="loss (nats)")
axes.set_xticks(few, few)
axes.minorticks_off()
axes.legend(fontsize=8)
picture

# %% [markdown]
# Now the claim means something. A layer that was trained with all its neurons does not notice when three
# quarters of them are taken away ($k = 64$), but suffers at 16 and at 4. Trained with top-k from the start,
# it loses little, and it beats a layer that has only $k$ neurons: *which* neurons act is chosen for each
# token, from many.
#
# ## 6. Shapes: gated, and wide-narrow-wide
#
# Two other ideas for the same number of weights. A **gated** layer (`glu_ffn`) multiplies two linear maps,
# so that one decides how much of the other passes. With $\mathrm{silu}(t) = t / (1 + e^{-t})$ it is SwiGLU:
#
# $$y = (\mathrm{silu}(x W_g) \cdot x W_u) W_d$$
#
# The usual layer goes narrow, wide, narrow: from $D$ to $4D$ and back. The **hourglass** turns it round: $K$
# small gated networks, one after the other, each with its own norm and residual, each with $F < D$ (at equal
# size from $K = 3$ on):
#
# $$z_0 = x \qquad\qquad z_i = z_{i-1} + \mathrm{GLU}_i(\mathrm{norm}_i(z_{i-1})) \qquad\qquad y = z_K$$
#
# ### Exercise 4: the same size
#
# A fair comparison has equal budgets. The ReLU layer with $F = 4D$ has $8 D^2$ weights. Which hidden widths
# give the gated layer, and each of the $K$ small networks of the hourglass, the same in total? Round to the
# nearest whole number. Leave biases and norms out.


# %%
def hidden_widths(dim, depth):
    """Three whole numbers: F of the ReLU layer, of the gated layer, of each of `depth` small networks."""
    # BEGIN SOLUTION
    return 4 * dim, round(8 * dim / 3), round(8 * dim / (3 * depth))
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the third matrix of a gated layer.
def hidden_widths(dim, depth):
    return 4 * dim, 4 * dim, round(4 * dim / depth)


# %% tags=["mistake"]
# Counts the hourglass as one network.
def hidden_widths(dim, depth):
    return 4 * dim, round(8 * dim / 3), round(8 * dim / 3)


# %%
@exercise("hidden_widths")
def check_hidden_widths():
    found = hidden_widths(12, 4)
    assert found is not None, "hidden_widths gives nothing back yet: return three numbers"
    assert np.shape(found) == (3,), f"three numbers are asked for, and you give {found}"
    for name, yours, expected in zip(("ReLU", "gated", "hourglass"), found, (48, 32, 8)):
        assert yours == expected, f"D = 12, K = 4: F of the {name} layer is {yours}, expected {expected}"
    # BEGIN HIDDEN TESTS
    for dim, depth in ((64, 4), (96, 3)):
        found = tuple(hidden_widths(dim, depth))
        expected = (4 * dim, round(8 * dim / 3), round(8 * dim / (3 * depth)))
        assert found == expected, f"D = {dim}, K = {depth}: you give {found}, expected {expected}"
    # END HIDDEN TESTS


# %%
kinds = {
    "ReLU": ("relu_ffn", dict(hidden=256, bias=False)),
    "SwiGLU": ("glu_ffn", dict(hidden=171)),
    "hourglass, K = 3": ("hourglass_ffn", dict(depth=3, hidden=57)),
    "hourglass, K = 4": ("hourglass_ffn", dict(depth=4, hidden=43)),
}
shape_losses = {}
for name, (ffn, options) in kinds.items():
    runs = [test_loss(ffn, seed, **options) for seed in (0, 1)]
    shape_losses[name] = [loss for loss, _ in runs]
    print(f"{name}: {runs[0][1].ffn.count_parameters():,} parameters")
picture = Picture(5.5, 2.2)
axes = picture.subplots()
for row, found in enumerate(shape_losses.values()):
    axes.plot(found, [row] * 2, "o", color=BLUE)
    axes.plot(np.mean(found), row, "|", color=ORANGE, markersize=22, markeredgewidth=2)
axes.set_yticks(range(4), list(shape_losses))
axes.set(xlabel="loss on held-out letters (nats): two seeds, and their mean", ylim=(3.5, -0.5))
picture

# %% [markdown]
# The gate pays, and clearly so. Turning the shape round does not: the hourglass is made of gated networks,
# and it does not beat one gated layer of the usual shape. The paper compares whole language models of a
# hundred million weights, and moves the weights that it saves to other places. One layer, 200 steps and one
# learning rate cannot refute that, and they do not confirm it.
#
# ### Exercise 5: your own hourglass
#
# `norms` and `parts` are lists of modules; `parts[i]` is a gated network. Write the loop. The check
# compares it with the library. Then it wraps it in a class, and `check_variant` tears at that.


# %%
def hourglass(x, norms, parts):
    """y (..., D) from x (..., D): each part reads the normalised stream and adds to the stream."""
    # BEGIN SOLUTION
    z = x
    for norm, part in zip(norms, parts):
        z = z + part(norm(z))
    return z
    # END SOLUTION


# %% tags=["mistake"]
# One residual around the whole, none inside.
def hourglass(x, norms, parts):
    z = x
    for norm, part in zip(norms, parts):
        z = part(norm(z))
    return x + z


# %% tags=["mistake"]
# Every part reads x: the networks stand side by side, not one after the other.
def hourglass(x, norms, parts):
    z = x
    for norm, part in zip(norms, parts):
        z = z + part(norm(x))
    return z


# %% tags=["mistake"]
# The normalised stream goes on, so the skip path is no clean sum.
def hourglass(x, norms, parts):
    z = x
    for norm, part in zip(norms, parts):
        z = norm(z)
        z = z + part(z)
    return z


# %%
class MyHourglass(Module):
    def __init__(self, dim, *, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        self.norms = [RMSNorm(dim, dtype=dtype) for _ in range(3)]
        self.parts = [mt.build("glu_ffn", dim=dim, hidden=2, seed=rng, dtype=dtype) for _ in range(3)]

    def forward(self, x):
        return hourglass(x, self.norms, self.parts)


@exercise("hourglass")
def check_hourglass():
    theirs = mt.build("hourglass_ffn", dim=4, depth=3, hidden=2, seed=1, dtype="float64")
    x = mt.tensor(np.array([1.0, 2.0, -1.0, 0.5]))
    for depth in (1, 2, 3):
        y = hourglass(x, theirs.norms[:depth], theirs.parts[:depth])
        assert y is not None, "hourglass gives nothing back yet: start with z = x and let each part add to z"
        assert y.shape == (4,), f"a token of width 4 became the shape {y.shape}, expected (4,)"
        expected = x
        for norm, part in zip(theirs.norms[:depth], theirs.parts[:depth]):
            expected = expected + part(norm(expected))
        err = np.abs(y.numpy() - expected.numpy()).max()
        assert err <= 1e-12, f"one token, K = {depth}: you give {y.numpy()}, expected {expected.numpy()}"
    check_variant(MyHourglass, kind="channel_mixer", claims=("token_wise",), examples=8)


# %% [markdown]
# ## 7. Outlook: dictionaries with many more entries
#
# To find the top $k$, `lazy_topk_ffn` sorts. `spark_ffn` does not: it treats the scores of a token as
# normally distributed, computes their mean and spread, and puts the threshold where about $k$ should lie
# above. The left picture counts how many do, for random tokens.
#
# `pkm` (product-key memory) makes the dictionary large. A key consists of two halves out of $n$ each, which
# makes $n^2$ entries, and the best $k$ are found by comparing with $2n$ halves only. The right picture
# counts operations for one token.

# %%
spark = mt.build("spark_ffn", dim=64, hidden=2048, k=164)
tokens = mt.tensor(np.random.default_rng(0).standard_normal((500, 64)).astype("float32"))
counts = (spark.gate(tokens).numpy() > 0).sum(axis=1)
entries, operations = np.array([16, 32, 64, 128]) ** 2, []
for n in (16, 32, 64, 128):
    small = mt.build("pkm", dim=64, heads=1, keys=n, k=8, key_dim=64)
    plain = mt.build("relu_ffn", dim=64, hidden=n * n)
    for part in (small, plain):
        with mt.profile() as p:
            part(tokens[:1])
        operations.append(p.flops)
picture = Picture(7, 2.5)
left, right_side = picture.subplots(1, 2)
left.hist(counts, bins=25, color=BLUE)
left.axvline(164, color=ORANGE, label="k = 164 of 2048")
left.set(xlabel="active neurons of a token", ylabel="tokens")
left.legend(fontsize=8)
right_side.loglog(entries, operations[1::2], "o-", color=ORANGE, label="relu_ffn: all entries")
right_side.loglog(entries, operations[0::2], "o-", color=BLUE, label="pkm: two halves")
right_side.set(xlabel="entries of the dictionary", ylabel="operations for a token")
right_side.legend(fontsize=8)
picture

# %%
from IPython.display import Markdown

means = {name: float(np.mean(found)) for name, found in shape_losses.items()}
hourglasses = [means[f"hourglass, K = {depth}"] for depth in (3, 4)]
verdict = "came out" if min(hourglasses) < means["SwiGLU"] else "did not come out"
rows = [
    (
        "*Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the Vocabulary Space* "
        "(arXiv:2203.14680): values, read in the vocabulary, often form one concept",
        f"{share:.2f} of the neurons have 4 of their top 5 objects in one relation; shuffled "
        f"{np.mean(shuffled):.3f}",
    ),
    (
        "*Transformer Feed-Forward Layers Are Key-Value Memories* (arXiv:2012.14913), section 4: in upper "
        "layers a value promotes what follows the texts of its key, far above chance and far from always",
        f"key and value name the same relation in {agree:.2f} of the neurons, by chance 0.25",
    ),
    (
        "*Mechanistic interpretability for steering vision-language-action models* (arXiv:2509.00328): "
        "setting the neurons of a concept steers the output, random neurons do not",
        f"probability of A at alpha = 1, 2, 4, 8: {', '.join(f'{m:.2f}' for m in chosen_mass[0, 2:])}; its "
        f"log at alpha = 4 is {gap[4]:.1f} above the best of five random sets",
    ),
    (
        "*The Lazy Neuron Phenomenon* (arXiv:2210.06313): activations become sparse in training, without a "
        "penalty, in transformers and in two-layer networks",
        f"active neurons: transformer {shares[0].mean():.2f} to {shares[-1].mean():.2f}; it did not come "
        f"out for digits: {digit_shares[0]:.2f} to {digit_shares[-1]:.2f}",
    ),
    (
        "the same: networks can be trained with a small top k",
        f"loss with 256 neurons {whole:.3f}; with k = {few[0]}, {few[1]}, {few[2]} from the start "
        f"{', '.join(f'{t:.3f}' for t in trained)}, only after training "
        f"{', '.join(f'{t:.3f}' for t in afterwards)}",
    ),
    (
        "*GLU Variants Improve Transformer* (arXiv:2002.05202): at equal size gated layers are better",
        f"ReLU {means['ReLU']:.3f}, SwiGLU {means['SwiGLU']:.3f}; means of two seeds",
    ),
    (
        "*Revisiting the Shape Convention of Transformer Language Models* (arXiv:2602.06471): at equal size "
        "and small scale, wide-narrow-wide is better",
        f"against SwiGLU it {verdict}: K = 3 {hourglasses[0]:.3f}, K = 4 {hourglasses[1]:.3f}",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# ## On your own
#
# - Train the facts with one head instead of four. Predict first: how many facts remain without the FFN?
# - Steer *away*: hold the eight neurons of A at 0 in questions about A. How many answers break? Why so few
#   or so many?
# - In section 5, let the learning rate decay (`decay=True`), or divide it by five. How sparse do the neurons
#   become? What does that say about the cause?
# - Shuffle the labels of the digits, and measure the share of active neurons again. The paper says that
#   labels do not matter.
# - Give each shape of section 6 its own best learning rate out of three. Does the order change?
#
# ## Where to go next
#
# Read `minitf/ffn/lazy_topk_ffn.py`, which has your exercise in two lines, and
# `minitf/ffn/hourglass_ffn.py`. `minitf show spark_ffn` shows the threshold without sorting. Mixtures of
# experts are the next step of the same idea: choose whole blocks of neurons for each token
# (`mt.catalogue.find("*", kind="ffn")` lists them).
