"""What a run did, for people: figures, plots, the HTML report, TensorBoard. Nothing here reads a run's folder."""
