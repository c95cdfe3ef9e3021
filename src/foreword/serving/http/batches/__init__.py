"""Files and batches over the API: kept on disk, run beside everybody else."""
