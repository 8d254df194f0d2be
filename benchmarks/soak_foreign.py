"""A small job of somebody else's under torchrun: all-reduces over gloo for some seconds, then it ends."""

import sys
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
end = time.monotonic() + float(sys.argv[1])
running = torch.ones(1)
while running.item():
    # rank 0 says when it is over, so that nobody waits for one who has left
    running.fill_(float(time.monotonic() < end))
    dist.broadcast(running, 0)
    dist.all_reduce(torch.ones(1000))
    time.sleep(0.05)
dist.destroy_process_group()
