"""The repeated code of the notebooks. Import modules, not names: `from lib import run, stats`."""
