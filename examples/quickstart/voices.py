"""espeak-ng's language variants and voices, by the split of a corpus that they speak in."""

# Language variants are shared by all splits; the voices are not. Chosen once, before any tuning:
# a woman's, a man's and two further timbres for the test.
ACCENTS = ["en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029"]
# fmt: off
VOICES = {
    "test": ["f2", "m3", "belinda", "ed"],
    "valid": ["f4", "m7"],
    "train": [
        "f1", "f3", "f5", "m1", "m2", "m4", "m5", "m6", "m8", "adam", "Alex", "Andy", "Annie",
        "anika", "aunty", "benjamin", "boris", "caleb", "david", "edward", "Gene", "grandma",
        "grandpa", "ian", "iven", "john", "Lee", "linda", "max", "Michael", "Mike", "paul",
        "quincy", "rob", "robert", "shelby", "steph", "travis", "victor", "zac",
    ],
}
# fmt: on
