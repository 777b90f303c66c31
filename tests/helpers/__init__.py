"""What several test files share; a test file imports from no other."""
