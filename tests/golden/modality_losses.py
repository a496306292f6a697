"""Records `modality_losses.safetensors`: losses between modalities and their gradients, in plain torch, on the CPU in f32.

Written from descriptions of the authors' programs, none of whose text is here: the alignment of MOS (arXiv 2512.03404;
its code at 98204db takes norms, its paper squares them), and the contrastive losses of the 2026 challenge's winners.

    python tests/golden/modality_losses.py          # torch 2.13.0, numpy 2.4.6, safetensors 0.7.0
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

HERE = Path(__file__).parent
TEMPERATURE = 0.07
# Identities 4, 2 and 7 have both modalities, 9 and 5 one; 5 has a single image.
LABELS = torch.tensor([4, 4, 2, 9, 2, 4, 7, 9, 7, 2, 5, 2])
SAR = torch.tensor([0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 0], dtype=torch.bool)


def alignment(features, squared):
    """Distance of the two modalities' means plus that of their biased variances, averaged over the identities with both."""
    features = F.normalize(features, dim=1)
    distances = []
    for identity in LABELS.unique():
        optical, radar = features[(LABELS == identity) & ~SAR], features[(LABELS == identity) & SAR]
        if len(optical) and len(radar):
            mean = optical.mean(0) - radar.mean(0)
            variance = optical.var(0, unbiased=False) - radar.var(0, unbiased=False)
            distances.append(mean.square().sum() + variance.square().sum() if squared else mean.norm() + variance.norm())
    return torch.stack(distances).mean()


def supervised_contrast(features):
    """Every other image of an identity is a positive of equal share, every other image is in the denominator."""
    features = F.normalize(features, dim=1)
    logits = (features @ features.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    logarithms = logits.log_softmax(1)
    losses = []
    for anchor in range(len(LABELS)):
        positives = [other for other in range(len(LABELS)) if other != anchor and LABELS[other] == LABELS[anchor]]
        if positives:
            losses.append(-logarithms[anchor, positives].mean())
    return torch.stack(losses).mean()


def cross_modal_contrast(features):
    """Optical by SAR and SAR by optical, of identities with both; the positives of a row share its mass."""
    features = F.normalize(features, dim=1)
    both = set(LABELS[SAR].tolist()) & set(LABELS[~SAR].tolist())
    rows = [[row for row in range(len(LABELS)) if SAR[row] == side and LABELS[row].item() in both] for side in (0, 1)]
    directions = []
    for anchors, others in (rows, rows[::-1]):
        logits = features[anchors] @ features[others].T / TEMPERATURE
        mass = (LABELS[anchors][:, None] == LABELS[others][None, :]).float()
        mass = mass / mass.sum(1, keepdim=True)
        directions.append(-(mass * logits.log_softmax(1)).sum(1).mean())
    return sum(directions) / 2


def main():
    torch.set_num_threads(1)
    features = torch.randn(len(LABELS), 16, generator=torch.Generator().manual_seed(251203404))
    # Images of an identity point alike, so that no logarithm is all noise.
    features += 1.5 * torch.randn(10, 16, generator=torch.Generator().manual_seed(7))[LABELS]
    recorded = {"feat": features, "label": LABELS, "is_sar": SAR.to(torch.int64)}
    for name, loss in [
        ("alignment", lambda features: alignment(features, squared=False)),
        ("alignment_squared", lambda features: alignment(features, squared=True)),
        ("supcon", supervised_contrast),
        ("info_nce", cross_modal_contrast),
    ]:
        leaf = features.clone().requires_grad_()
        value = loss(leaf)
        value.backward()
        recorded |= {f"loss.{name}": value.detach(), f"dloss.{name}": leaf.grad}
    arrays = {name: tensor.numpy() for name, tensor in recorded.items()}
    save_file(arrays, HERE / "modality_losses.safetensors")


if __name__ == "__main__":
    main()
