"""An archive of a topic in files, the model of an output: `options`, and the `output` itself."""
