"""How commands speak, ours and fairseq's: progress, refusals, where a path was looked for. Neither
torch nor fairseq is imported here."""
