"""`nsqtools spool`: what waits in a spool of nsq_to_s3, and uploading it without consuming anything."""
