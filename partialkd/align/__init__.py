"""Photographs to aligned faces: detectors, landmark files, and the ArcFace template."""
