"""`python -m geoprocessing_worker`."""


def main() -> int:
    """Run the command line; imported late, since the fork server's children import this module too."""
    from geoprocessing_worker.worker import main as run  # noqa: PLC0415

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
