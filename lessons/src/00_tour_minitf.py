# %% [markdown]
# # Train a tiny language model and look inside
#
# **What you will do.** Train a transformer on *Moby-Dick*, letter by letter, in about a quarter of a
# minute. Watch it learn, let it write, and open it up: its parameters, its attention, its costs. Then
# exchange its parts by name.
#
# **What you will learn.** What a loss in nats means, and what to compare it with. What a model is made of.
# How text is drawn from it. How to read an attention map. Which part costs how much.
#
# **What you need.** Python and NumPy. No mathematics beyond the logarithm. The next lessons explain what
# happens underneath: `01_build_autograd` the gradients, `02_build_attention` the attention.

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf.decode import generate, probabilities
from minitf.testing import exercise

# The plain definitions: slower than kernels, but you can read each one.
mt.use("reference")
print("minitf", mt.__version__, "with the", mt.active(), "definitions")

# %% [markdown]
# ## 1. Text becomes numbers
# The whole novel ships with the library. We take the first 500,000 characters. Each different character
# gets a number, its *token*. The last tenth is kept apart: the model never learns from it.

# %%
novel = mt.tasks.load_moby()
tokenizer = mt.tasks.CharTokenizer.from_text(novel)
data = mt.train.TextData(tokenizer.encode(novel[:500_000]), context=64, validation=0.1)
print(f"{len(novel):,} characters, {tokenizer.vocab} of them different")
print(repr(tokenizer.characters))
print("'Call me' →", tokenizer.encode("Call me"))

# %% [markdown]
# The model sees up to 64 characters and answers, for each of them: which character comes next? Its answer
# is one probability for each of the 81 characters.

# %%
tokens, targets = data.batch(np.random.default_rng(0), 3)
for row, target in zip(tokens, targets):
    print(f"{tokenizer.decode(row[:32])!r:38} → {tokenizer.decode(target[31:32])!r}")

# %% [markdown]
# ## 2. What is a good answer?
# The **loss** is $-\ln p$, where $p$ is the probability that the model gave to the character that really
# came. Its unit is the nat. Sure and right: 0. Two rivals for comparison:
# - *uniform*: every character is equally likely. Its loss is $\ln 81$.
# - *unigram*: knows how often each character occurs, but reads nothing.

# %%
counts = np.bincount(data.train_ids, minlength=tokenizer.vocab) + 1
frequency = counts / counts.sum()
uniform = np.log(tokenizer.vocab)
unigram = -np.log(frequency)[data.validation_ids].mean()
common = np.argsort(-frequency)[:30]
plt.figure(figsize=(7, 2.2))
plt.bar([repr(tokenizer.characters[i])[1:-1].replace(" ", "␣") for i in common], frequency[common])
plt.title(f"uniform: {uniform:.2f} nats    unigram: {unigram:.2f} nats")
plt.ylabel("frequency")
plt.show()

# %% [markdown]
# **Exercise 1: nats to something you can picture.** The *perplexity* is the number of equally likely
# characters that would be as hard to guess. For a loss of $\ln 81$ nats it is 81. And in *bits*, the same
# loss is $\log_2 81$. Write both.


# %%
def perplexity(nats):
    """How many equally likely characters give this loss."""
    # BEGIN SOLUTION
    return np.exp(nats)
    # END SOLUTION


def bits(nats):
    """The same loss with the logarithm to base 2."""
    # BEGIN SOLUTION
    return nats / np.log(2)
    # END SOLUTION


# %% tags=["mistake"]
# Takes the logarithm to base 2, where the loss has the natural one.
def perplexity(nats):
    return 2**nats


# %% tags=["mistake"]
# Multiplies where it must divide.
def bits(nats):
    return nats * np.log(2)


# %%
@exercise("perplexity")
def check_perplexity():
    assert perplexity(uniform) is not None, "perplexity gave nothing: which function undoes the logarithm?"
    for n in (2, 81):
        assert abs(perplexity(np.log(n)) - n) <= 1e-9, (
            f"ln {n} nats is {n} characters, not {perplexity(np.log(n))}"
        )
    assert bits(uniform) is not None, "bits gave nothing: log2(x) is ln(x) divided by something"
    for n in (2, 81):
        assert abs(bits(np.log(n)) - np.log2(n)) <= 1e-9, (
            f"ln {n} nats is {np.log2(n):.3f} bits, not {bits(np.log(n))}"
        )
    print(
        f"unigram: as hard as {perplexity(unigram):.1f} equally likely characters, {bits(unigram):.2f} bits"
    )


# %% [markdown]
# ## 3. A model is a config
# The config names the parts: sizes first, then the kind of attention, of feed-forward layer, of norm, of
# position. All of it is in the catalogue of the library.

# %%
config = mt.models.Config(
    vocab=tokenizer.vocab, context=64, dim=64, depth=2, heads=4,
    attention="softmax", ffn="swiglu", ffn_hidden=176, norm="rmsnorm", position="rope", block="pre",
)  # fmt: skip
model = mt.models.LanguageModel(config, seed=0)
print(f"{model.count_parameters():,} parameters")
for name, array in model.state_dict().items():
    if not name.startswith("blocks.1"):
        print(f"{name:26} {array.shape}")

# %% [markdown]
# Each block has a **mixer**, in which characters look at each other (`wq`, `wk`, `wv`, `wo`), and an
# **FFN**, in which each character thinks by itself (`wg`, `wu`, `wd`). The second block looks like the
# first. Where are the parameters?

# %%
shares = {}
for name, array in model.state_dict().items():
    part = next(p for p in ("embedding", "mixer", "ffn", "norm") if p in name)
    shares[part] = shares.get(part, 0) + array.size
plt.figure(figsize=(5, 1.8))
bars = plt.barh(list(shares), list(shares.values()))
plt.bar_label(bars, [f"{n:,}" for n in shares.values()], padding=4)
plt.xlim(0, 1.2 * max(shares.values()))
plt.xticks([])
plt.title("parameters")
plt.gca().invert_yaxis()
plt.show()

# %% [markdown]
# **Exercise 2: count without looking.** Write the number of parameters of one block as a formula of the
# width $D$ and the hidden width $F$. The mixer has four matrices $D \times D$, each with a bias. The FFN
# has two matrices $D \times F$ and one $F \times D$, each with a bias as long as its output. The two norms
# have $D$ numbers each.


# %%
def block_parameters(D, F):
    """The number of parameters of one block."""
    # BEGIN SOLUTION
    mixer = 4 * (D * D + D)
    ffn = 2 * (D * F + F) + (F * D + D)
    return mixer + ffn + 2 * D
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the biases.
def block_parameters(D, F):
    return 4 * D * D + 3 * D * F + 2 * D


# %% tags=["mistake"]
# Counts two matrices in the SwiGLU, which has three.
def block_parameters(D, F):
    return 4 * (D * D + D) + (D * F + F) + (F * D + D) + 2 * D


# %%
@exercise("block_parameters")
def check_block_parameters():
    for D, F in ((4, 8), (64, 176)):
        small = mt.models.Config(vocab=5, dim=D, depth=1, heads=2, ffn="swiglu", ffn_hidden=F)
        right = mt.models.LanguageModel(small).blocks[0].count_parameters()
        mine = block_parameters(D, F)
        assert mine is not None, "block_parameters gave nothing: return a number"
        assert mine == right, (
            f"a block with D = {D}, F = {F} has {right:,} parameters; your formula gives {mine:,}"
        )
    # BEGIN HIDDEN TESTS
    right, mine = 4 * (6 * 6 + 6) + 2 * (6 * 10 + 10) + 10 * 6 + 6 + 2 * 6, block_parameters(6, 10)
    assert mine == right, f"a block with D = 6, F = 10 has {right} parameters; your formula gives {mine}"
    # END HIDDEN TESTS


# %% [markdown]
# ## 4. Before training
# The parameters are random numbers. So the model cannot do better than uniform, and what it writes is
# noise.


# %%
def write(prompt, characters, **options):
    ids = generate(model, tokenizer.encode(prompt), characters, seed=0, **options)
    return prompt + tokenizer.decode(list(ids))


validation = data.validation_batches(batch=16, count=8)
before = mt.train.evaluate(model, validation)
print(f"loss {before:.3f} nats, uniform {uniform:.3f}")
print(repr(write("The whale", 80)))

# %% [markdown]
# ## 5. Train
# 500 steps. Each takes 8 random pieces of the text, asks for the loss, walks back for the gradients (that
# is lesson `01_build_autograd`), and moves all parameters a little downhill with AdamW. This is the longest
# cell of the lesson.


# %%
def report(event):
    if event["event"] == "eval":
        print(
            f"step {event['step']:4}   validation {event['val_loss']:.3f} nats, {event['val_bits']:.3f} bits"
        )


plan = mt.train.TrainConfig(
    steps=500, batch=8, lr=6e-3, eval_every=100, eval_batches=16, save_every=0, seed=0
)
with tempfile.TemporaryDirectory() as folder:
    history = mt.train.fit(model, data, plan, folder, on_event=report)

# %%
picture = mt.viz.loss_curve(history.rows)
for name, nats in (("uniform", uniform), ("unigram", unigram)):
    picture.axes[0].axhline(nats, color="black", linestyle=":")
    picture.axes[0].text(plan.steps / 5, nats, name, va="bottom")
picture.set_size_inches(7, 3.5)
picture

# %% [markdown]
# It first learns which characters are frequent: the curve falls to the unigram line. Then it dives below,
# so it must have learned to *read*. But how far back?
#
# **Exercise 3: a rival that reads one character.** The *bigram* model gives $p(\text{next} \mid
# \text{last})$ by counting pairs in the training text. To have no zeros, add 1 to each of the 81 × 81
# counts. Return its mean loss on the validation text. Hint: `np.add.at(table, (first, second), 1)` counts
# pairs.


# %%
def bigram_loss(train_ids, validation_ids, vocab):
    """The mean of -ln p(next | last) over the pairs of neighbours in validation_ids, in nats."""
    # BEGIN SOLUTION
    table = np.ones((vocab, vocab))
    np.add.at(table, (train_ids[:-1], train_ids[1:]), 1)
    p = table / table.sum(axis=1, keepdims=True)
    return -np.log(p[validation_ids[:-1], validation_ids[1:]]).mean()
    # END SOLUTION


# %% tags=["mistake"]
# Divides by the columns: the probability of the last character given the next.
def bigram_loss(train_ids, validation_ids, vocab):
    table = np.ones((vocab, vocab))
    np.add.at(table, (train_ids[:-1], train_ids[1:]), 1)
    p = table / table.sum(axis=0, keepdims=True)
    return -np.log(p[validation_ids[:-1], validation_ids[1:]]).mean()


# %% tags=["mistake"]
# `table[i, j] += 1` counts a pair that comes several times only once.
def bigram_loss(train_ids, validation_ids, vocab):
    table = np.ones((vocab, vocab))
    table[train_ids[:-1], train_ids[1:]] += 1
    p = table / table.sum(axis=1, keepdims=True)
    return -np.log(p[validation_ids[:-1], validation_ids[1:]]).mean()


# %%
@exercise("bigram_loss")
def check_bigram_loss():
    # Trained on 0 1 0 1: the counts with 1 added are 0→0: 1, 0→1: 3, 1→0: 2, 1→1: 1.
    small = bigram_loss(np.array([0, 1, 0, 1]), np.array([0, 1, 1]), 2)
    assert small is not None, "bigram_loss gave nothing: return a number of nats"
    right = -(np.log(3 / 4) + np.log(1 / 3)) / 2
    assert abs(small - right) <= 1e-9, (
        f"for the text 0101 and the question 011: {right:.4f} nats, you have {small:.4f}"
    )
    found = bigram_loss(data.train_ids, data.validation_ids, tokenizer.vocab)
    print(
        f"uniform {uniform:.2f}, unigram {unigram:.2f}, bigram {found:.2f}, our model {history.val_loss:.2f}"
    )
    assert found > history.val_loss, "the model should beat the bigram: it reads up to 64 characters"


# %% [markdown]
# ## 6. Let it write
# To write, draw the next character from the probabilities, append it, and ask again. The **temperature**
# $T$ sharpens or flattens the probabilities: $p \propto e^{z/T}$, where $z$ are the model's raw scores, the
# *logits*.

# %%
for temperature in (0.0, 0.5, 1.0, 1.5):
    print(f"T = {temperature}: {write('The whale', 150, temperature=temperature)!r}\n")

# %% [markdown]
# At 0 it always takes the most likely character, and soon goes round in circles. At 1.5 it dreams. It
# writes words that do not exist, but they look like English, and like Melville's commas.

# %%
logits = model(tokenizer.encode("The great whal")[None])[0, -1].numpy()
best = np.argsort(-logits)[:8]
plt.figure(figsize=(6, 2.4))
for i, temperature in enumerate((0.5, 1.0, 2.0)):
    p = probabilities(logits, temperature)[best]
    plt.bar(np.arange(8) + 0.27 * (i - 1), p, 0.25, label=f"T = {temperature}")
plt.xticks(range(8), [repr(tokenizer.characters[i]) for i in best])
plt.title("what comes after 'The great whal'?")
plt.legend()
plt.show()

# %% [markdown]
# **Exercise 4: top-k.** A common remedy against dreaming: keep the $k$ most likely characters, set the
# others to zero, and rescale so that the sum is 1 again. Write it for one row of logits. (Where two are
# equally likely, the one with the lower number counts as the likelier.)


# %%
def top_k(logits, k):
    """Probabilities (V,) from logits (V,), zero beyond the k most likely."""
    # BEGIN SOLUTION
    keep = np.argsort(-logits, kind="stable")[:k]
    p = np.zeros(len(logits))
    p[keep] = np.exp(logits[keep] - logits.max())
    return p / p.sum()
    # END SOLUTION


# %% tags=["mistake"]
# Does not make the kept probabilities sum to one.
def top_k(logits, k):
    p = np.exp(logits - logits.max())
    p /= p.sum()
    p[np.argsort(-logits, kind="stable")[k:]] = 0
    return p


# %% tags=["mistake"]
# Keeps the least likely.
def top_k(logits, k):
    keep = np.argsort(logits, kind="stable")[:k]
    p = np.zeros(len(logits))
    p[keep] = np.exp(logits[keep] - logits.max())
    return p / p.sum()


# %%
@exercise("top_k")
def check_top_k():
    for name, z in (("[1, 3, 2]", np.array([1.0, 3.0, 2.0])), ("the model's", logits.astype(float))):
        for k in (1, 2, 3):
            mine, right = top_k(z, k), probabilities(z, top_k=k)
            assert mine is not None, "top_k gave nothing: return an array of probabilities"
            assert np.shape(mine) == z.shape, (
                f"one probability for each logit: shape {z.shape}, not {np.shape(mine)}"
            )
            kept = np.count_nonzero(mine)
            assert kept == k, f"{name} logits, k = {k}: {kept} probabilities are above zero"
            error = np.abs(mine - right).max()
            assert error <= 1e-12, f"{name} logits, k = {k}: differs from the library's by {error:.2g}"


# %% [markdown]
# ## 7. Look inside: attention
# In a mixer, each character decides how much to look at each earlier one. Rows look, columns are looked at.
# Two layers with four heads each: eight ways of looking.

# %%
sentence = "Call me Ishmael. Some"
maps = model.attention_maps(tokenizer.encode(sentence)[None])
picture = mt.viz.attention_map([layer[0] for layer in maps], tokens=sentence)
picture.set_size_inches(10, 5.5)
picture

# %% [markdown]
# Some heads look at a neighbour, some far back. A number says it better: how many characters back does a
# head look, on average, over the validation text?

# %%
maps = np.stack(model.attention_maps(validation[0][0])).mean(axis=1)  # (layers, heads, N, N)
back = np.arange(64)[:, None] - np.arange(64)
# The second half of the rows: they all have much to look back at.
distance = (maps * back)[:, :, 32:].sum(axis=-1).mean(axis=-1)
nearest = np.argmax(np.stack([np.diagonal(maps, -n, 2, 3).mean(-1) for n in range(8)]), axis=0)
for layer in range(2):
    for head in range(4):
        n = nearest[layer, head]
        print(
            f"layer {layer}, head {head}: {distance[layer, head]:4.1f} back on average, most often {n} back"
        )

# %% [markdown]
# The first thing the model does to a character is to look up its row in the **embedding**: 64 numbers.
# Characters that are used alike should get rows that point the same way. Here is the cosine between them.

# %%
letters = "aeiou bcdlmnrst AEIST .,;!"
rows = model.embedding.weight.numpy()[tokenizer.encode(letters.replace(" ", ""))]
rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
plt.figure(figsize=(5, 4.2))
plt.imshow(rows @ rows.T, cmap="RdBu_r", vmin=-1, vmax=1)
plt.xticks(range(len(rows)), letters.replace(" ", ""))
plt.yticks(range(len(rows)), letters.replace(" ", ""))
plt.colorbar(label="cosine")
plt.show()

# %% [markdown]
# ## 8. Exchange the parts
# Each part has a name, so a new model is one changed word. Five models, a short training each, on shorter
# pieces of text. The first is trained three times, with other random numbers: a difference that chance alone
# can make means nothing.

# %%
changes = {
    "as above": {}, "as above, seed 1": {}, "as above, seed 2": {},
    "ffn='gelu'": dict(ffn="gelu", ffn_hidden=256), "kv_heads=1": dict(kv_heads=1),
    "position='learned'": dict(position="learned"), "position='none'": dict(position="none"),
}  # fmt: skip
pieces = mt.train.TextData(tokenizer.encode(novel[:500_000]), context=48)
others, results = {}, {}
for name, change in changes.items():
    seed = int(name[-1]) if "seed" in name else 0
    other = mt.models.LanguageModel(mt.models.Config(**{**config.to_dict(), **change}), seed=seed)
    short = mt.train.TrainConfig(steps=150, batch=8, lr=4e-3, eval_every=0, eval_batches=16, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        results[name] = mt.train.fit(other, pieces, short, folder).val_loss
    others[name] = other
    print(f"{name:20} {other.count_parameters():8,} parameters   validation loss {results[name]:.3f}")

# %%
seeds = [nats for name, nats in results.items() if name.startswith("as above")]
plt.figure(figsize=(6, 2.6))
plt.axvspan(min(seeds), max(seeds), alpha=0.2, label="what chance can do")
plt.plot(list(results.values()), list(results), "o")
plt.gca().invert_yaxis()
plt.xlabel(f"validation loss after {short.steps} steps (nats)")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 9. The catalogue
# What else is there? Every part has a card. `mt.catalogue["swiglu"].doc()` is its equation, `.source()` its
# code.

# %%
rows = ["| name | kind | year | streams | what it is |", "|---|---|---|---|---|"]
for row in mt.catalogue.table():
    rows.append("| {name} | {kind} | {year} | {streams} | {title} |".format(**row))
Markdown("\n".join(rows))

# %% [markdown]
# ## 10. What does it cost?
# `mt.profile` counts floating-point operations, bytes and memory of everything that runs inside it,
# exactly. Here is one training step, the way back included.

# %%
tokens, targets = data.batch(np.random.default_rng(0), plan.batch)
with mt.profile() as cost:
    model.loss(tokens, targets).backward()
top = cost.rows[:8]
plt.figure(figsize=(6, 2.4))
plt.barh([row.name for row in top], [row.flops / 1e6 for row in top])
plt.gca().invert_yaxis()
plt.xlabel("million floating-point operations in one step")
plt.show()
print(f"{cost.flops / 1e6:.0f} million operations, peak memory of results {cost.peak_bytes / 1e6:.0f} MB")

# %% [markdown]
# Nearly all of it is products of matrices. That is why they are what a kernel makes fast first, and why a
# rule of thumb can ignore everything else: 6 operations for each parameter and token, 2 there and 4 back.


# %%
def cache_bytes(model):
    """What the model keeps of 64 characters while it writes."""
    _, state = model.prefill(tokens[:1], model.start(1))
    return sum(layer.k.nbytes + layer.v.nbytes for layer in state.blocks)


base, chance = np.mean(seeds), max(seeds) - min(seeds)
gelu, one_head, learned, none = list(results.values())[-4:]
smaller = cache_bytes(others["as above"]) / cache_bytes(others["kv_heads=1"])
rows = [
    ("untrained, a model is as good as uniform", f"{before:.2f} against {uniform:.2f} nats"),
    (
        "a step costs 6 operations for each parameter and token (arXiv:2001.08361)",
        f"{cost.flops / model.count_parameters() / tokens.size:.1f}",
    ),
    (
        "SwiGLU is better than GELU with as many parameters (arXiv:2002.05202)",
        f"better by {gelu - base:+.2f} nats",
    ),
    (
        "one head of keys and values is nearly as good, with a smaller cache (arXiv:1911.02150)",
        f"worse by {one_head - base:+.2f} nats, the cache is {smaller:.0f} times smaller",
    ),
    (
        "without positions a causal model is nearly as good as with learned ones (arXiv:2203.16634)",
        f"worse by {none - learned:+.2f} nats",
    ),
    ("for comparison: the same model with three seeds", f"differs by {chance:.2f} nats"),
]
head = "## What the papers say, what we measured\n| the claim | measured here |\n|---|---|\n"
Markdown(head + "\n".join(f"| {claim} | {measured} |" for claim, measured in rows))

# %% [markdown]
# A short race, where the papers ran long ones. The numbers stand there as they came out, whatever the claim.
# A difference counts only if it is larger than what chance can do.
#
# ## On your own
# - How does the loss depend on the position in the window? Take the loss of each of the 64 positions apart.
# - Train with `context=8` and `context=64`. How much is reading further back worth?
# - Give each model of section 8 three seeds and 400 steps. Which differences remain?
# - Train on text in another language, or on your own. What changes in the embedding picture?
# - `mt.save(model, "folder")` keeps a model, `mt.load("folder")` brings it back. Let a friend guess its
#   training text.
#
# ## Where to go next
# Lesson `01_build_autograd` builds the machine that made this training possible, lesson
# `02_build_attention` the operation behind the maps. Or read `minitf/models/language.py`, which is the model
# of this lesson.
