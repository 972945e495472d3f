"""Bytes on the disk: RecordIO, InsightFace folders, verification sets, lists of pairs, trees of images."""
