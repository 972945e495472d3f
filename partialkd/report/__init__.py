"""What a person looks at: the audit of a data set."""
