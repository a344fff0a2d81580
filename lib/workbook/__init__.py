"""How a run is executed, judged and shown; notebooks see it through `lib.run`."""
