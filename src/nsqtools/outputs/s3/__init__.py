"""An archive of a topic in an object store.

With `--ack=spool` it is the archive of `outputs.file` in a local folder, the spool, whose finished files
go to a bucket (`destination`); what waits there is bounded (`spool`) and uploaded in the background, also
by later runs (`backlog`). With `--ack=upload` (`direct`) each delivery is an object, and nothing is done
before the store has confirmed it.
"""
