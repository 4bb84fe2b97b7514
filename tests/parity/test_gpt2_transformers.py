"""GPT-2 beside the `transformers` implementation: random weights, saved by it, loaded by us.

In float64 only the order of additions differs, and the logits agree to rounding. In float32 our distance
from that may be twice that of `transformers`, plus a few roundings of the largest logit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minitf.models import load_gpt2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

CASES = [
    dict(vocab_size=101, n_positions=32, n_embd=48, n_layer=3, n_head=4),
    dict(vocab_size=57, n_positions=16, n_embd=24, n_layer=2, n_head=3, n_inner=40),
    dict(vocab_size=57, n_positions=16, n_embd=24, n_layer=2, n_head=2, activation_function="gelu"),
    dict(vocab_size=57, n_positions=16, n_embd=24, n_layer=1, n_head=1, activation_function="relu"),
    dict(vocab_size=57, n_positions=16, n_embd=24, n_layer=2, n_head=2, tie_word_embeddings=False),
]


def make(case: dict, folder: Path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(**case, bos_token_id=0, eos_token_id=0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    theirs.save_pretrained(folder)
    return theirs, load_gpt2(folder)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES)
def test_logits_and_streaming(case: dict, tmp_path: Path) -> None:
    theirs, ours = make(case, tmp_path)
    tokens = np.random.default_rng(1).integers(0, case["vocab_size"], (3, case["n_positions"]))
    with torch.no_grad():
        single = theirs(torch.tensor(tokens)).logits.numpy()
        exact = theirs.double()(torch.tensor(tokens)).logits.numpy()
    scale = np.max(np.abs(exact))
    allowed = 2 * np.max(np.abs(single - exact)) + 4 * np.finfo(np.float32).eps * scale
    error = np.max(np.abs(ours(tokens).data - exact))
    assert error <= allowed, f"{case}: float32 logits differ by {error:.2g}, allowed {allowed:.2g}"
    ours.to("float64")
    error = np.max(np.abs(ours(tokens).data - exact)) / scale
    assert error <= 1e-13, f"{case}: float64 logits differ by {error:.2g}, relative to the largest"

    first, state = ours.prefill(tokens[:, :5], ours.start(3))
    rows = [first.data]
    for n in range(5, case["n_positions"]):
        row, state = ours.step(tokens[:, n], state)
        rows.append(row.data[:, None])
    error = np.max(np.abs(np.concatenate(rows, axis=1) - exact)) / scale
    assert error <= 1e-13, f"{case}: the streamed logits differ by {error:.2g}, relative to the largest"


@pytest.mark.filterwarnings("default")
def test_loss_and_gradients(tmp_path: Path) -> None:
    case = CASES[0]
    theirs, ours = make(case, tmp_path)
    theirs, ours = theirs.double(), ours.to("float64")
    tokens = np.random.default_rng(2).integers(0, case["vocab_size"], (2, 32))
    # Not the loss that transformers computes from labels: that one falls back to float32.
    logits = theirs(torch.tensor(tokens)).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(tokens[:, 1:]).flatten())
    loss.backward()
    mine = ours.loss(tokens[:, :-1], tokens[:, 1:])
    mine.backward()
    assert abs(mine.item() - loss.item()) <= 1e-12, "the losses differ"
    block, other = ours.blocks[1], theirs.transformer.h[1]
    pairs = {
        "embedding": (ours.embedding.weight, theirs.transformer.wte.weight),
        "position": (ours.position.weight, theirs.transformer.wpe.weight),
        "wo": (block.mixer.wo.weight, other.attn.c_proj.weight),
        "w1": (block.ffn.w1.weight, other.mlp.c_fc.weight),
        "norm2": (block.norm2.bias, other.ln_2.bias),
        "final norm": (ours.norm.weight, theirs.transformer.ln_f.weight),
    }
    for name, (a, b) in pairs.items():
        error = np.max(np.abs(a.grad.data - b.grad.numpy())) / np.max(np.abs(b.grad.numpy()))
        assert error <= 1e-11, f"the gradients of {name} differ by {error:.2g}, relative to the largest"
    theirs_qkv = other.attn.c_attn.weight.grad.numpy()
    ours_qkv = np.concatenate(
        [w.weight.grad.data for w in (block.mixer.wq, block.mixer.wk, block.mixer.wv)], axis=1
    )
    error = np.max(np.abs(ours_qkv - theirs_qkv)) / np.max(np.abs(theirs_qkv))
    assert error <= 1e-11, f"the gradients of q, k, v differ by {error:.2g}, relative to the largest"


@pytest.mark.filterwarnings("default")
def test_greedy_generation(tmp_path: Path) -> None:
    from minitf.decode import generate

    theirs, ours = make(CASES[0], tmp_path)
    theirs, ours = theirs.double(), ours.to("float64")
    prompt = np.array([5, 17, 3])
    expected = theirs.generate(
        torch.tensor(prompt)[None], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 3:].tolist()
    assert list(generate(ours, prompt, 20, temperature=0.0)) == expected, (
        "greedy generation takes other tokens"
    )
