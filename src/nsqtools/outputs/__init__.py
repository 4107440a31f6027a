"""Where messages go. To add an output, three things are written, and nothing here is changed.

1. A class with the methods of `contract.Output`: it says how it wants to be fed, takes messages, and
   answers for all or for each of them: done, again after a time, or refused for a reason. The pipeline
   does everything else: it consumes, holds and touches, FINs what is done, retries what is to come
   again, ends in order. Blocking calls go to a `workers.Strand`, which runs them one after the other
   on the threads that all outputs of a process share, and keeps the output's time.
2. Its options, a dataclass (see `file/options.py`).
3. A module in `programs/` that joins these with what every consuming tool shares
   (`pipeline.options.ConsumingOptions`, which wants a `program` and a `channel`), and hands a function
   from topic to output to `pipeline.run.Run`, within a `lifecycle.Lifecycle`. A module in `cli/` makes
   a `Program` of it, and `PROGRAMS` in `cli/main.py` names that.

`examples/output.py` is all of it in one file that runs; `file/` is the model to read: an archive of a
topic, in files.
"""
