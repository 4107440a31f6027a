"""`python -m nsqtools` is the console script `nsqtools`."""

from __future__ import annotations

from nsqtools.cli.main import main

if __name__ == "__main__":
    main()
