"""nsq_to_file: archives of topics in files. `options`, which load quickly, apart from the `run`."""
