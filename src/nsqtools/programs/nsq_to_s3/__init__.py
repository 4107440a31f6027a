"""nsq_to_s3: archives of topics in a store. `options`, which load quickly, apart from the `run`."""
