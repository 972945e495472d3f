"""Make the files of a data set: packing, archives, drawn faces, verification sets."""
