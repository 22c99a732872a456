#!/usr/bin/env python3
"""Training steps of Qwen2.5-shaped models in PyTorch on a GPU: the peer of bench_gpu's, in lines of the same table.

Forward, cross-entropy over every token, backward, clipping, AdamW (fused where there is one), sequences of 1024 random
tokens. 0.5B and 1.5B: 8 sequences, fp32 weights under bf16 autocast; 7B: 4 sequences, everything in bf16, which is less
memory than our bf16 masters with fp32 gradients take. Median of 5 steps after 2.

  pytorch_peer.py --product FLOPS_PER_SECOND [--compile] [--models 0.5B,1.5B,7B]
  pytorch_peer.py --device cpu --models tiny      whether the script works
"""
import argparse
import sys
import time

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as error:
    sys.exit(f"no PyTorch: {error}")

# hidden, layers, heads, KV heads, head dim, intermediate, vocabulary, tied head, sequences, positions
SHAPES = {
    "0.5B": (896, 24, 14, 2, 64, 4864, 151936, True, 8, 1024),
    "1.5B": (1536, 28, 12, 2, 128, 8960, 151936, True, 8, 1024),
    "7B": (3584, 28, 28, 4, 128, 18944, 152064, False, 4, 1024),
    "tiny": (64, 2, 4, 2, 16, 96, 100, True, 2, 16),
}


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.weight


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).to(x.dtype)


def attend(q, k, v):
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.full((q.shape[-2], q.shape[-2]), float("-inf"), device=q.device).triu(1)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + mask
    return scores.softmax(-1).to(v.dtype) @ v


class Block(nn.Module):
    def __init__(self, hidden, heads, kv_heads, dim, intermediate):
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.norm1, self.norm2 = RmsNorm(hidden), RmsNorm(hidden)
        self.qkv = nn.Linear(hidden, (heads + 2 * kv_heads) * dim)
        self.out = nn.Linear(heads * dim, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, self.heads + 2 * self.kv_heads, self.dim).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
        group = self.heads // self.kv_heads
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        x = x + self.out(attend(q, k, v).transpose(1, 2).reshape(b, t, self.heads * self.dim))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, hidden, layers, heads, kv_heads, dim, intermediate, vocabulary, tied, _, positions):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, kv_heads, dim, intermediate) for _ in range(layers))
        self.norm = RmsNorm(hidden)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        angles = torch.outer(torch.arange(positions), 1e6 ** (-torch.arange(0, dim, 2) / dim))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def seconds_of_a_step(shape, device, whole_bf16, compiled):
    hidden, layers, heads, _, dim, _, vocabulary, _, sequences, positions = shape
    torch.set_default_dtype(torch.bfloat16 if whole_bf16 else torch.float32)
    model = Model(*shape).to(device)
    torch.set_default_dtype(torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01,
                                  **({"fused": True} if device == "cuda" else {}))
    ids = torch.randint(vocabulary, (sequences, positions + 1), device=device)
    forward = torch.compile(model) if compiled else model

    def step():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=not whole_bf16):
            logits = forward(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)  # waits

    times = []
    for i in range(7):
        begin = time.perf_counter()
        loss = step()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - begin)
    assert loss == loss, "the loss is not a number"
    tokens = sequences * positions
    flops = tokens * (6 * parameters + layers * heads * dim * 7 * (positions + 1))
    return sorted(times)[len(times) // 2], flops, tokens


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--product", type=float, default=0, help="FLOP/s of a bf16 product, for the share")
    parser.add_argument("--models", default="0.5B,1.5B,7B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no PyTorch with a GPU")
    for name in args.models.split(","):
        label = f"{name} training step, PyTorch {torch.__version__.split('+')[0]}{' compiled' if args.compile else ''}"
        try:
            seconds, flops, tokens = seconds_of_a_step(SHAPES[name], args.device, name == "7B", args.compile)
        except RuntimeError as error:  # out of memory is one
            print(f"{label:<44} {str(error).splitlines()[0][:120]}", flush=True)
            continue
        share = f"{100 * flops / seconds / args.product:.0f}%" if args.product > 0 else ""
        print(f"{label:<44} {1e3 * seconds:10.3f} {'':>10} {flops / seconds / 1e12:10.1f} {share:>8}  "
              f"{tokens / seconds:.0f} tokens/s", flush=True)
        if args.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
