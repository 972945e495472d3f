"""Networks and classifiers of MXNet, read without MXNet."""
