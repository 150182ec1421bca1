"""Using a model: `pipeline` draws, edits and answers, by `painter` and `answers`; `loading` reads its parts."""
