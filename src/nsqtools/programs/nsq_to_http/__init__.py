"""nsq_to_http: messages to HTTP endpoints. `options`, which load quickly, apart from the `run`."""
