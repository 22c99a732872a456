#!/usr/bin/env python3
"""A training step of a small Llama in PyTorch: the peer that bench_train runs in turn.

Forward, cross-entropy over every token, backward, clipping, AdamW. Random weights and tokens, sequences of 256, tied
head. With --steps=0 it does one step for every line of standard input and prints "WALL CPU", the seconds and CPU-seconds
of the step; otherwise it prints one line a step.

  bench_train --peer='python3 tests/bench/pytorch_train.py --model={model} --batch={batch} --dtype={dtype} --compile'

Fastest with a current PyTorch, --compile, LD_PRELOAD=libtcmalloc_minimal.so.4:libiomp5.so (Debian's libtcmalloc-minimal4,
PyPI's intel-openmp) and KMP_BLOCKTIME=1: threads that wait must not spin while bench_train has its turn. Run it once
before, so that what is compiled is in the cache.
"""
import argparse
import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # must be set before the library starts its threads

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

SEQUENCE = 256
VOCABULARY = 32000
SHAPES = {"15m": (288, 6, 6, 768), "110m": (768, 12, 12, 2048)}  # hidden, layers, heads, intermediate


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


class Block(nn.Module):
    def __init__(self, hidden, heads, intermediate):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RmsNorm(hidden), RmsNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def attend(self, q, k, v, mask):
        if hasattr(F, "scaled_dot_product_attention"):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + mask
        return scores.float().softmax(-1).to(v.dtype) @ v

    def forward(self, x, cos, sin, mask):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        x = x + self.out(self.attend(q, k, v, mask).transpose(1, 2).reshape(b, t, d))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, hidden, layers, heads, intermediate):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.blocks = nn.ModuleList([Block(hidden, heads, intermediate) for _ in range(layers)])
        self.norm = RmsNorm(hidden)
        self.head = nn.Linear(hidden, VOCABULARY, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        self.head.weight = self.embedding.weight
        dim = hidden // heads
        angles = torch.outer(torch.arange(SEQUENCE), 10000.0 ** (-torch.arange(0, dim, 2) / dim))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("mask", torch.full((SEQUENCE, SEQUENCE), float("-inf")).triu(1))

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.mask)
        return self.head(self.norm(x))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=SHAPES, default="15m")
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="bf16: autocast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile of forward and loss, with their backward")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = Llama(*SHAPES[args.model])
    fused = {"fused": True} if int(torch.__version__.split(".")[0]) >= 2 else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, **fused)
    ids = torch.randint(VOCABULARY, (args.batch, SEQUENCE + 1))

    def loss_of(inputs, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            logits = model(inputs)
        return F.cross_entropy(logits.float().reshape(-1, VOCABULARY), targets.reshape(-1))

    if args.compile:
        loss_of = torch.compile(loss_of)

    def step():
        wall, cpu = time.perf_counter(), time.process_time()
        loss_of(ids[:, :-1], ids[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - wall, time.process_time() - cpu

    if args.steps == 0:
        for _ in sys.stdin:
            print("%.6f %.6f" % step(), flush=True)
    for i in range(args.steps):
        wall, cpu = step()
        tokens = args.batch * SEQUENCE
        print(f"step {i}: {tokens / wall:.0f} tokens/s, {tokens / max(cpu, 1e-9):.0f} tokens/CPU-s", flush=True)


if __name__ == "__main__":
    main()
