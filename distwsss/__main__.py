"""`python -m distwsss` is `distwsss`; torchrun starts ranks this way."""

from distwsss.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
