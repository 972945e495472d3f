"""The teacher: its network, its kept embeddings, its centres and classifier, and what it gives a batch in training."""
