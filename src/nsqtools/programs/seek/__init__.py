"""`nsqtools seek`: move a channel of our nsqd back or forward in what the topic retains."""
