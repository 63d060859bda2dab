"""PyTorch DistributedDataParallel, as its tutorial teaches, on tensors in memory: started by torchrun, it prints one
line a JSON object, the seconds of each epoch.

    torchrun --nproc-per-node=2 benchmarks/ddp.py --data_dir=data --epochs=3
"""

import argparse
import json
import time

import torch
import torch.distributed as dist
from peers import make_torch_model
from torch.nn.parallel import DistributedDataParallel
from torchvision.datasets import MNIST


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--batch_size", type=int, default=128, help="global")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mnist = MNIST(args.data_dir, train=True, download=True)
    # Every world-th example, as a DistributedSampler without shuffling deals them.
    images = mnist.data.reshape(len(mnist), -1)[rank::world].float()
    labels = mnist.targets[rank::world]
    torch.manual_seed(0)
    model = DistributedDataParallel(make_torch_model())
    loss_function, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.001)
    rows, seconds = args.batch_size // world, []
    for _ in range(args.epochs):
        dist.barrier()
        start = time.perf_counter()
        for x, y in zip(images.split(rows), labels.split(rows), strict=True):
            optimizer.zero_grad()
            loss_function(model(x), y).backward()
            optimizer.step()
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps({"seconds": seconds}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
