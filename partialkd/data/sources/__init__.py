"""Sources give labelled images by index: they are what a data set looks like to the rest of the program."""
