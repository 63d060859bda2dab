"""distmlp VERB ...: the same as python -m launch.VERB ..."""

import runpy
import signal
import sys

VERBS = {
    "train": "train a network, or go on with a run",
    "sweep": "train many networks: settings, seeds and folds, and choose the best",
    "pack": "make a data set of any size ready for training: tables, arrays, pictures",
    "plan": "what a run will do, on hardware that need not be here",
    "evaluate": "exact loss and accuracy of a run, and precision and recall of each class",
    "predict": "classes of pictures and of rows in files",
    "export": "a run's network for PyTorch, NumPy, ONNX or StableHLO",
    "report": "one page that shows one run or several",
    "configs": "the configs that come along: lists them, or copies them",
    "compare": "the first step at which two runs part",
    "verify": "whether the devices that are here keep what is promised",
}
_USAGE = "usage: distmlp VERB [arguments], distmlp VERB --help, or distmlp --version"


def main() -> None:
    """Runs the verb that the command line names, as `python -m` does."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C amid the imports, before launch/command.py: no traceback
    if verb in VERBS:
        del sys.argv[0]
        runpy.run_module(f"launch.{verb}", run_name="__main__", alter_sys=True)
    elif verb == "--version":
        from distmlp import machine

        print(f"distmlp {machine.version('distmlp')}")
    elif verb in ("", "-h", "-help", "--help", "help"):
        print("\n".join([_USAGE, "", *(f"  {name:<10} {text}" for name, text in VERBS.items())]))
    else:
        print(f"distmlp: error: {verb!r} is no verb: choose one of {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
