"""Makes `gpt2_tiny/`: a random GPT-2 with 2 blocks, as `transformers` saves it, and the logits it gives,
in float32 (`logits`) and float64 (`exact`).

    python tests/models/data/make_gpt2_tiny.py

Needs torch and transformers; `versions.json` says which made the files that are here. The tests need neither.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent / "gpt2_tiny"

torch.manual_seed(0)
config = transformers.GPT2Config(
    vocab_size=23, n_positions=12, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
)
model = transformers.GPT2LMHeadModel(config).eval()
with torch.no_grad():
    for p in model.parameters():
        # Noise everywhere, so that no bias is zero and no gain is one.
        p.add_(0.3 * torch.randn_like(p))
model.save_pretrained(HERE)
(HERE / "generation_config.json").unlink(missing_ok=True)
tokens = torch.randint(0, 23, (3, 12))
with torch.no_grad():
    logits, exact = model(tokens).logits, model.double()(tokens).logits
np.savez(HERE / "expected.npz", tokens=tokens.numpy(), logits=logits.numpy(), exact=exact.numpy())
versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
(HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
