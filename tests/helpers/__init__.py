"""What several test files share: ranks, cases, dense references, made-up files."""
