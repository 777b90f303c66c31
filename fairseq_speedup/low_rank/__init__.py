"""Linear layers of low rank: two matrices in place of one."""
