"""Which record comes when: plans, samplers and read-ahead."""
