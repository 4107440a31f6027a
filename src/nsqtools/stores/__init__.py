"""Object stores that speak S3: AWS, and the many that do as it does.

`options` says which store, `client` has `Store`: put and confirm, list and read in part. Below it
`connection` asks, `upload`, `body` and `threads` send, `objects` reads, `failures` says what went wrong,
`location` is where. `named` finds what a command line names, `check` tries everything once, for
`--check`. boto3 is loaded with the first request.
"""
