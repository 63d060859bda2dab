"""Writes one page that shows a run, or several side by side, for a browser; it needs no network.

    python -m launch.report RUN... --output=report.html
"""

from pathlib import Path

from launch import verb


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("report", __doc__)
    arguments.add_argument("runs", action=verb.Named, metavar="RUN", nargs="+", help="a run's folder, its --workdir")
    arguments.add_argument("--output", action=verb.Named, default="report.html", metavar="FILE",
                           help="the page; default: report.html")
    arguments.add_argument("--plan", action=verb.Named, metavar="FILE",
                           help="what `distmlp plan --json` printed: shown beside the runs")
    verb.add_checkpoint(arguments)
    given = arguments.parse_args(argv)

    from distmlp.results import files
    from distmlp.results.report import report

    output = Path(given.output)
    page = report([Path(run) for run in given.runs], given.checkpoint, given.plan and Path(given.plan))
    files.write(output, page.encode(errors="backslashreplace"))  # names of files may be no text
    print(f"{output}: {len(given.runs)} run{'s' if len(given.runs) > 1 else ''}", file=files.remarks(output))
    return 0


if __name__ == "__main__":
    verb.run(main)
