"""`nsqtools archive`: list, print, check, mend and rewrite archives; one module for each command.

The commands read and write through `nsqtools.archive` alone: no format is known here.
"""
