"""Where code that a model wrote is run: a process that can do little and cannot last.

Read `sandbox` first: `run_python` and `run_tests` start a process, wait, kill what is left and read
its report; `isolation` says what guards this machine. Then `child`, the program of that process,
which gives up every right it can; then `harness`, which runs the code and its tests in there.

Public: `sandbox`. `child` and `harness` are never imported: the process reads them by path, with an
empty environment and the standard library alone. So this room imports nothing of `lib`.
"""
