"""What training changed inside a model.

    distance   how far the weights moved
    changes    of each weight matrix the length and the direction of its rows; of the residual
               stream its likeness (CKA) before and after; how early a verdict can be read

Shapes: T tokens of all rows, B rows of a batch, D hidden.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
from data import Batch, Pair, PromptFormat, Row  # noqa: E402
from tinyrm import ModernBERT  # noqa: E402


def rows_of(prompt_format: PromptFormat, pairs: list[Pair]) -> list[Row]:
    """The rows of all pairs, less those of pairs that are dropped."""
    rows = []
    for rows_of_pair in prompt_format.rows(pairs)[0]:
        if rows_of_pair is not None:
            rows.extend(rows_of_pair)
    return rows


def states(model: ModernBERT, batch: Batch) -> list[torch.Tensor]:
    """The residual stream of all tokens after each layer, each (T, D)."""
    collected = []

    def collect(module, inputs, output):
        collected.append(output)

    hooks = [layer.register_forward_hook(collect) for layer in model.model.layers]
    with torch.inference_mode():
        model(batch.tokens, batch.starts)
    for hook in hooks:
        hook.remove()
    return collected


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear CKA (arXiv 1905.00414) of two sets of hidden states of the same tokens, (T, D) each: 1
    if one is a turned and scaled copy of the other."""
    x = x.double() - x.double().mean(0)
    y = y.double() - y.double().mean(0)
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def distance(base: ModernBERT, model: ModernBERT) -> float:
    """How far the matrices of the layers moved, all of them as one vector: |W - W0| / |W0|."""
    before = base.model.layers.state_dict()
    moved, size = 0.0, 0.0
    for name, w in model.model.layers.state_dict().items():
        if w.ndim == 2:
            moved += (w.double() - before[name].double()).square().sum().item()
            size += before[name].double().square().sum().item()
    return (moved / size) ** 0.5


def changed_matrices(base: ModernBERT, model: ModernBERT) -> list[list]:
    """[name, mean relative change of the rows' length, mean 1 - cos of their direction] of each
    matrix of the layers and the head that changed: DoRA's magnitude and direction (section 3)."""
    before, found = base.state_dict(), []
    for name, w in model.state_dict().items():
        inside = ".layers." in name or name.endswith("head.dense.weight")
        if not inside or w.ndim != 2 or torch.equal(before[name], w):
            continue
        length_before, length = before[name].norm(dim=1), w.norm(dim=1)
        stretch = ((length - length_before).abs() / length_before).mean().item()
        turn = (1 - F.cosine_similarity(w, before[name])).mean().item()
        found.append([name, round(stretch, 5), round(turn, 5)])
    return found


def accuracy_by_depth(model: ModernBERT, prompt_format: PromptFormat, batch: Batch,
                      states_of_layers: list[torch.Tensor]) -> list[float]:
    """Accuracy of the head on the residual stream at the read position after each layer, each order
    by itself. Empty in context "single", where a row alone has no verdict."""
    if prompt_format.context == "single":
        return []
    words = torch.tensor(prompt_format.label_ids, device=batch.tokens.device)
    shares = []
    with torch.inference_mode():
        for x in states_of_layers:
            h = model.model.final_norm(x[batch.read_at])  # (B, D)
            verdicts = model.logits(h, words).argmax(1)  # (B,)
            shares.append((verdicts == batch.labels).double().mean().item())
    return [round(share, 4) for share in shares]


def changes(base: ModernBERT, model: ModernBERT, prompt_format: PromptFormat, pairs: list[Pair],
            device: torch.device | str = "cpu") -> dict:
    """What training changed, as small lists: "matrices" (see changed_matrices), "cka" of the
    residual stream after each layer before and after training, "depth" (see accuracy_by_depth), and
    how many "rows" the last two were measured on."""
    rows = rows_of(prompt_format, pairs)
    batch = data.pack(rows, device)
    before, after = states(base, batch), states(model, batch)
    return {
        "matrices": changed_matrices(base, model),
        "cka": [round(cka(x, y), 4) for x, y in zip(before, after, strict=True)],
        "depth": accuracy_by_depth(model, prompt_format, batch, after),
        "rows": len(rows),
    }
