"""Shares a run between processes: `torchrun --nproc-per-node N -m vla_training.cli fit RECIPE --shard`.

Each process holds a part of every parameter, its average and its moments (FSDP2), and reads its part of every batch.
The result does not depend on the number of processes, so a run can continue with another number.
"""

import gc
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True)
class World:
    """The processes of a run, and the device of this process."""

    device: torch.device
    rank: int = 0
    ranks: int = 1
    mesh: DeviceMesh | None = None  # None: parameters are whole

    @classmethod
    def join(cls, device: str) -> 'World':
        """Return the world of a process that torchrun started. Raises ValueError if torchrun did not start it."""
        if 'LOCAL_RANK' not in os.environ:
            raise ValueError(
                '--shard needs the processes that torchrun starts: '
                'torchrun --nproc-per-node N -m vla_training.cli fit RECIPE --shard'
            )
        kind = torch.device(device).type
        own = torch.device(kind, int(os.environ['LOCAL_RANK'])) if kind == 'cuda' else torch.device(kind)
        if kind == 'cuda':
            torch.cuda.set_device(own)
        dist.init_process_group('nccl' if kind == 'cuda' else 'gloo')
        mesh = init_device_mesh(kind, (dist.get_world_size(),))
        return cls(own, dist.get_rank(), dist.get_world_size(), mesh)

    def leave(self) -> None:
        """End the process group. Call it last, when no split tensor is needed any more."""
        if self.mesh is not None:
            self.wait()
            gc.collect()  # an object that holds the group at interpreter exit makes gloo's threads abort
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Return whether this process writes the files."""
        return self.rank == 0

    def shard(self, network: nn.Module, blocks: list[nn.Module], mixed: bool) -> None:
        """Split every parameter over the processes. Those of a block are gathered while it computes.

        mixed: compute in bf16 and sum gradients in fp32. The inputs of blocks are not cast, because the table of rotary
        embeddings must stay fp32.
        """
        if self.mesh is None:
            return
        half = torch.bfloat16 if mixed else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        fully_shard(network, mesh=self.mesh, mp_policy=policy)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place. Return it."""
        if self.mesh is not None:
            dist.all_reduce(values)
        return values

    def agree(self, value: bool) -> bool:
        """Return the first process's value. Clocks differ, and all processes must stop after the same step."""
        if self.mesh is None:
            return value
        shared = torch.tensor(float(value), device=self.device)
        dist.broadcast(shared, 0)
        return bool(shared)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.mesh is not None:
            self.sum(torch.zeros(1, device=self.device))


def whole(value: Tensor) -> Tensor:
    """Return a possibly split tensor in one piece. All processes must call it."""
    return value.full_tensor().detach() if isinstance(value, DTensor) else value.detach()


def local(value: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds. Writing to it writes to the tensor."""
    return value.to_local().detach() if isinstance(value, DTensor) else value.detach()


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, which every process has, into a tensor that may be split."""
    value = value.to(target.device)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def forget_gathered(network: nn.Module) -> None:
    """Free gathered parameters. Call it after writing to parameters: gathered copies are stale."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
