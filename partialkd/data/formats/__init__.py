"""Read and write files: RecordIO, InsightFace folders, verification sets, archives, lists, trees of images."""
