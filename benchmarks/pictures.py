"""20,000 pictures of MNIST as PNG files in class folders: from the command to the end of three epochs, and the memory
of all its processes, against torchvision's ImageFolder with a DataLoader of as many workers in PyTorch.

    python benchmarks/pictures.py --data_dir=DIR
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import Contestant, Work, Worker

EPOCHS, BATCH = 3, 128


def write(data_dir: str, folder: Path, examples: int) -> None:
    """So many of MNIST's training images, as folder/<digit>/<number>.png."""
    import torchvision.datasets

    pictures = torchvision.datasets.MNIST(data_dir)
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for i in range(examples):
        picture, digit = pictures[i]
        picture.save(folder / str(digit) / f"{i}.png")


def train_torch(folder: str) -> None:
    """The same network on the same pictures in PyTorch, as its documentation has it."""
    import torch
    import torchvision
    from torchvision import transforms

    turned = transforms.Compose([transforms.Grayscale(), transforms.ToTensor(), transforms.Lambda(torch.flatten)])
    found = torchvision.datasets.ImageFolder(folder, turned)
    held = len(found) // 10
    parts = torch.utils.data.random_split(found, [len(found) - held, held])
    train, test = (torch.utils.data.DataLoader(part, BATCH, shuffle=i == 0, num_workers=_workers(),
                                               persistent_workers=True) for i, part in enumerate(parts))  # fmt: skip
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10)
    )
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(EPOCHS):
        for x, y in train:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
        print(f"test accuracy {correct / held:.2%}")


def _workers() -> int:
    return len(os.sched_getaffinity(0))


def command(work: Work) -> Contestant:
    """Contestant: per repetition one command; its seconds, and its processes' memory at most. work: command, folder."""
    yield {}
    while True:
        start, peak = time.monotonic(), 0
        with subprocess.Popen(work["command"], cwd=work["folder"], start_new_session=True, stdout=sys.stderr) as child:
            while child.poll() is None:
                peak = max(peak, _memory(child.pid))
                time.sleep(0.05)
        if child.returncode:
            raise SystemExit(f"{work['command']} failed")
        yield {"seconds": time.monotonic() - start, "megabytes": peak / 1e6}


def _memory(session: int) -> int:
    """Bytes of memory of a session's processes, shared pages divided among those that share them."""
    total = 0
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and os.getsid(int(folder.name)) == session:
                rollup = (folder / "smaps_rollup").read_text()
                total += 1024 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
        except (OSError, StopIteration):
            continue  # it has just ended
    return total


def main() -> None:
    args = harness.arguments(__doc__, repetitions=3, examples=20000, torch_folder="")
    if args.torch_folder:
        return train_torch(args.torch_folder)
    examples = 500 if args.quick else args.examples
    with tempfile.TemporaryDirectory() as name:
        write(args.data_dir, Path(name) / "pictures", examples)
        ours = [sys.executable, "-m", "launch.train", f"--dataset={name}/pictures", "--test_fraction=0.1", "--shuffle",
                "--input_scaling=unit", "--optimizer=adam", "--learning_rate=0.001", f"--num_epochs={EPOCHS}",
                f"--batch_size={BATCH}"]  # fmt: skip
        path = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        peer = [sys.executable, str(Path(__file__).resolve()), f"--torch_folder={name}/pictures"]
        workers = [
            Worker("distmlp", "pictures:command", {"command": ours, "folder": name}, path),
            Worker("PyTorch", "pictures:command", {"command": peer, "folder": name}, harness.openmp(args)),
        ]  # fmt: skip
        results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
    rows = [[name, harness.spread([row["seconds"] for row in measured]),
             harness.spread([row["megabytes"] for row in measured]),
             harness.spread(harness.ratios(results, name, "distmlp"))] for name, measured in results.items()]
    table = harness.table(["", "seconds", "MB of memory", "times distmlp's seconds"], rows)
    harness.report(args, f"{examples:,} pictures, {EPOCHS} epochs, {_workers()} workers", [table], results)


if __name__ == "__main__":
    main()
