"""The image, made and run where no container engine is at hand."""
