"""Run by test_ranks.py in one process per rank: a plain loop, DDP around the head, live encoding of
a step's strings; rank 0 saves the weights.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.live.step import LiveEncoder

STRINGS = [
    "[*]CC[*]",
    "[*]CCO[*]",
    "[*]CC([*])C",
    "[*]c1ccc([*])[nH]1",
    "[*]NCC(=O)N1CCCC1C(=O)[*]",
]


def adapted(folder: str, dropout: float, **options: Any) -> LiveEncoder:
    """Return a live encoder whose adapters are not at their start, where B is zero."""
    lora = LoraConfig(r=4, dropout=dropout)
    live = LiveEncoder.from_strings(STRINGS, EncoderConfig(source=folder), lora, **options)
    with torch.no_grad():
        for parameter in live.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return live


def train(
    folder: str,
    steps: list[list[int]],
    sharding: str,
    dropout: float,
    rank: int = 0,
    num_ranks: int = 1,
) -> dict[str, torch.Tensor]:
    """Return the weights after one SGD step per list of string ids.

    The rows of a step are assigned to the ranks in turn.
    """
    torch.manual_seed(0)
    group = dist.group.WORLD if num_ranks > 1 else None
    live = adapted(folder, dropout, sharding=sharding, group=group)
    head: nn.Module = nn.Sequential(nn.Linear(live.width, 8), nn.Tanh(), nn.Linear(8, 1))
    weights = {
        **{f"encoder.{name}": p for name, p in live.encoder.named_parameters() if p.requires_grad},
        **dict(head.named_parameters()),
    }
    if group is not None:
        head = DistributedDataParallel(head)
    optimizer = torch.optim.SGD(weights.values(), lr=0.05)
    for ids in steps:
        rows = torch.arange(len(ids))[rank::num_ranks]
        string_id, target = torch.tensor(ids)[rows], torch.linspace(-1, 1, len(ids))[rows]
        optimizer.zero_grad()
        with live.step(string_id):
            for part in torch.arange(len(rows)).tensor_split(2):
                residual = head(live.vectors(string_id[part])).squeeze(1) - target[part]
                # DDP takes the mean over ranks
                (num_ranks * residual.square().sum() / len(ids)).backward()
        optimizer.step()
    return {name: weight.detach().clone() for name, weight in weights.items()}


def main() -> None:
    """Take encoder folder, output file and JSON cases: [name, steps, sharding, dropout] each."""
    folder, output, cases = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    results = {
        name: train(folder, steps, sharding, dropout, rank, num_ranks)
        for name, steps, sharding, dropout in cases
    }
    own = torch.cat([weight.flatten() for result in results.values() for weight in result.values()])
    first = own.clone()
    dist.broadcast(first, 0)
    assert torch.equal(own, first), "the ranks' weights have drifted apart"
    if rank == 0:
        torch.save(results, output)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    main()
