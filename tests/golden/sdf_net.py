"""Records `sdf_net.pth` and `sdf_net.safetensors`: SDF-Net (arXiv 2603.12588) in plain torch, on the CPU in f32.

Written from the description of the authors' program (cfrfree/SDF-Net at 0d93b95), none of whose text is here: a small
network with the names of its released checkpoints, its features, its losses and their gradients, and three steps of SGD.

    python tests/golden/sdf_net.py          # torch 2.13.0, numpy 2.4.6, safetensors 0.7.0
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
HEIGHT, WIDTH, PATCH, DIM, DEPTH, HEADS, CLASSES = 64, 32, 8, 16, 4, 2, 5
ROWS, COLUMNS = HEIGHT // PATCH, WIDTH // PATCH
STRUCTURE_BLOCK = 2  # Of 4; the authors read the sixth of 12.
RATE, MOMENTUM, DECAY = 0.02, 0.9, 1e-4
# Tensors with more numbers are recorded by a digest: sum, sum of |x|, L2 norm, 16 elements.
WHOLE_MAX = 600


def state_dict(generator):
    """Every tensor random and none trivial, also norms and statistics."""

    def normal(*shape, mean=0.0, std=0.02):
        return mean + std * torch.randn(*shape, generator=generator)

    state = {
        "base.cls_token": normal(1, 1, DIM, std=0.5),
        "base.pos_embed": normal(1, 2 + ROWS * COLUMNS, DIM, std=0.4),
        "base.cls_token_spe_rgb": normal(1, 1, DIM, std=0.5),
        "base.cls_token_spe_sar": normal(1, 1, DIM, std=0.5),
        "base.mie_embed": normal(2, 1, DIM, std=0.2),
    }
    for name in ("patch_embed", "patch_embed_SAR"):
        state[f"base.{name}.proj.weight"] = normal(DIM, 3, PATCH, PATCH, std=0.05)
        state[f"base.{name}.proj.bias"] = normal(DIM, std=0.1)
    widths = {"attn.qkv": (3 * DIM, DIM), "attn.proj": (DIM, DIM), "mlp.fc1": (4 * DIM, DIM), "mlp.fc2": (DIM, 4 * DIM)}
    for block in range(DEPTH):
        for norm in ("norm1", "norm2"):
            state[f"base.blocks.{block}.{norm}.weight"] = normal(DIM, mean=1.0, std=0.2)
            state[f"base.blocks.{block}.{norm}.bias"] = normal(DIM, std=0.1)
        for layer, (outputs, inputs) in widths.items():
            state[f"base.blocks.{block}.{layer}.weight"] = normal(outputs, inputs, std=inputs**-0.5)
            state[f"base.blocks.{block}.{layer}.bias"] = normal(outputs, std=0.1)
    state["base.norm.weight"] = normal(DIM, mean=1.0, std=0.2)
    state["base.norm.bias"] = normal(DIM, std=0.1)
    state["base.fc.weight"] = normal(10, DIM)
    state["base.fc.bias"] = normal(10)
    state["base.wh_embed.linear_layer.weight"] = normal(DIM, 3, std=0.3)
    state["base.wh_embed.linear_layer.bias"] = normal(DIM, std=0.1)
    # The first is TransOSS's, which the released checkpoints keep and the network does not use.
    for neck in ("bottleneck", "bottleneck_fuse"):
        state[f"{neck}.weight"] = normal(DIM, mean=1.0, std=0.2)
        state[f"{neck}.bias"] = normal(DIM, std=0.1)
        state[f"{neck}.running_mean"] = normal(DIM, std=0.3)
        state[f"{neck}.running_var"] = normal(DIM, std=0.3).abs() + 0.5
        state[f"{neck}.num_batches_tracked"] = torch.tensor(7)
    state["classifier.weight"] = normal(CLASSES, DIM, std=0.3)
    state["logit_scale"] = torch.tensor(2.6592)
    return state


def tokens(state, images, sar, sizes):
    """[shared class, specific class, patches, size]; the last has neither position nor modality."""
    count = len(images)
    convolved = [
        F.conv2d(images, state[f"base.{name}.proj.weight"], state[f"base.{name}.proj.bias"], stride=PATCH)
        for name in ("patch_embed", "patch_embed_SAR")
    ]
    of_modality = sar.view(count, 1, 1, 1)
    patches = torch.where(of_modality, convolved[1], convolved[0]).flatten(2).transpose(1, 2)
    shared = state["base.cls_token"].expand(count, 1, DIM)
    specific = torch.where(
        sar.view(count, 1, 1), state["base.cls_token_spe_sar"], state["base.cls_token_spe_rgb"]
    )
    modality = torch.where(sar.view(count, 1, 1), state["base.mie_embed"][1:], state["base.mie_embed"][:1])
    x = torch.cat([shared, specific, patches], 1) + state["base.pos_embed"] + 3.0 * modality
    size = F.linear(sizes, state["base.wh_embed.linear_layer.weight"], state["base.wh_embed.linear_layer.bias"])
    return torch.cat([x, size.unsqueeze(1)], 1)


def block(state, number, x):
    def get(name):
        return state[f"base.blocks.{number}.{name}"]

    def norm(name, x):
        return F.layer_norm(x, (DIM,), get(f"{name}.weight"), get(f"{name}.bias"), 1e-6)

    def linear(name, x):
        return F.linear(x, get(f"{name}.weight"), get(f"{name}.bias"))

    count, length, _ = x.shape
    qkv = linear("attn.qkv", norm("norm1", x)).view(count, length, 3, HEADS, DIM // HEADS)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) * (DIM // HEADS) ** -0.5).softmax(-1)
    x = x + linear("attn.proj", (weights @ value).transpose(1, 2).reshape(count, length, DIM))
    return x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x))))


def forward(state, images, sar, sizes):
    """Shared and specific class token after the last norm, and the patches after the block of the structure loss."""
    x = tokens(state, images, sar, sizes)
    for number in range(DEPTH):
        x = block(state, number, x)
        if number + 1 == STRUCTURE_BLOCK:
            patches = x[:, 2 : 2 + ROWS * COLUMNS]
    x = F.layer_norm(x, (DIM,), state["base.norm.weight"], state["base.norm.bias"], 1e-6)
    return x[:, 0], x[:, 1], patches


def neck(state, feature, training):
    mean, variance = state["bottleneck_fuse.running_mean"], state["bottleneck_fuse.running_var"]
    if training:
        mean, variance = feature.mean(0), feature.var(0, unbiased=False)
    normalised = (feature - mean) / torch.sqrt(variance + 1e-5)
    return normalised * state["bottleneck_fuse.weight"] + state["bottleneck_fuse.bias"]


def triplet(features, labels):
    """Soft margin, hardest positive and negative, raw features."""
    squares = (features**2).sum(1)
    distances = (squares[:, None] + squares[None, :] - 2 * features @ features.T).clamp(min=1e-12).sqrt()
    same = labels[:, None] == labels[None, :]
    positive = distances.masked_fill(~same, float("-inf")).max(1).values
    negative = distances.masked_fill(same, float("inf")).min(1).values
    return torch.log1p(torch.exp(positive - negative)).mean()


def orthogonality(shared, specific):
    return (F.normalize(shared, dim=1) * F.normalize(specific, dim=1)).sum(1).abs().mean()


def structure(patches, labels, sar):
    """Mean absolute forward differences along height and width, added, each sample standardised over its channels;
    the mean squared distance of an identity's two modalities."""
    grid = patches.reshape(len(patches), ROWS, COLUMNS, DIM)
    down = (grid[:, 1:] - grid[:, :-1]).abs().mean((1, 2))
    across = (grid[:, :, 1:] - grid[:, :, :-1]).abs().mean((1, 2))
    edges = down + across
    mean, variance = edges.mean(1, keepdim=True), edges.var(1, unbiased=False, keepdim=True)
    edges = (edges - mean) / torch.sqrt(variance + 1e-5)
    distances = []
    for identity in labels.unique():
        optical, radar = edges[(labels == identity) & ~sar], edges[(labels == identity) & sar]
        if len(optical) and len(radar):
            distances.append(((optical.mean(0) - radar.mean(0)) ** 2).mean())
    return torch.stack(distances).mean() if distances else torch.zeros(())


def losses(state, images, sar, sizes, labels):
    shared, specific, patches = forward(state, images, sar, sizes)
    fused = shared + specific
    scores = neck(state, fused, training=True) @ state["classifier.weight"].T
    terms = {
        "identity": F.cross_entropy(scores, labels),
        "triplet": triplet(fused, labels),
        "orthogonality": orthogonality(shared, specific),
        "structure": structure(patches, labels, sar),
    }
    weights = {"identity": 1.0, "triplet": 1.0, "orthogonality": 10.0, "structure": 1.0}
    return sum(weights[name] * term for name, term in terms.items()), terms, fused


def digest(values):
    flat = values.flatten().double()
    places = [place * len(flat) // 16 for place in range(16)]
    return torch.cat([torch.stack([flat.sum(), flat.abs().sum(), flat.norm()]), flat[places]])


def record(recorded, name, tensor):
    if tensor.numel() <= WHOLE_MAX:
        recorded[name] = tensor
    else:
        recorded[f"digest.{name}"] = digest(tensor)


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(260312588)
    state = state_dict(generator)
    torch.save(state, HERE / "sdf_net.pth")
    shared = load_file(HERE / "inputs.safetensors")
    images = torch.from_numpy(shared["images_q"].astype(np.float32) / 32)
    sar = torch.from_numpy(shared["cam"] == 1)
    sizes = torch.from_numpy(shared["img_wh"])
    labels = torch.from_numpy(load_file(HERE / "train_step.safetensors")["label"])
    recorded = {"label": labels}

    with torch.no_grad():
        tokens_of_two = forward(state, images, sar, sizes)
        fused = tokens_of_two[0] + tokens_of_two[1]
        recorded |= {"shared": tokens_of_two[0], "specific": tokens_of_two[1]}
        recorded |= {"feat_before": fused, "feat_after": neck(state, fused, training=False)}
        recorded["patches"] = tokens_of_two[2].contiguous()

    # Each loss of its own by what it reads.
    leaves = [tensor.clone().requires_grad_() for tensor in tokens_of_two]
    for name, loss, inputs in [
        ("orthogonality", orthogonality(leaves[0], leaves[1]), ("shared", "specific")),
        ("structure", structure(leaves[2], labels, sar), ("patches",)),
    ]:
        recorded[f"loss.{name}"] = loss
        of = {"shared": leaves[0], "specific": leaves[1], "patches": leaves[2]}
        for read, gradient in zip(inputs, torch.autograd.grad(loss, [of[read] for read in inputs])):
            recorded[f"dloss.{name}.{read}"] = gradient

    frozen = {"bottleneck_fuse.bias", "bottleneck_fuse.running_mean", "bottleneck_fuse.running_var"}
    used = [
        name for name, tensor in state.items()
        if tensor.dim() and name not in frozen and not name.startswith(("base.fc.", "bottleneck."))
    ]
    velocity = {}
    for step in (1, 2, 3):
        for name in used:
            state[name] = state[name].detach().requires_grad_()
        total, terms, _ = losses(state, images, sar, sizes, labels)
        recorded[f"step{step}.loss_total"] = total.detach()
        gradients = dict(zip(used, torch.autograd.grad(total, [state[name] for name in used])))
        if step == 1:
            recorded |= {f"step1.{name}": term.detach() for name, term in terms.items()}
            for name, gradient in gradients.items():
                record(recorded, f"grad.{name}", gradient)
        for name, gradient in gradients.items():
            rate = RATE * (2 if "bias" in name else 1)
            gradient = gradient + DECAY * state[name].detach()
            velocity[name] = gradient if step == 1 else MOMENTUM * velocity[name] + gradient
            state[name] = state[name].detach() - rate * velocity[name]
    arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in recorded.items()}
    save_file(arrays, HERE / "sdf_net.safetensors")


if __name__ == "__main__":
    main()
