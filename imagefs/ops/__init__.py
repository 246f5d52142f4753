"""The verbs, without a terminal: capture, verify, restore, clone. They never print, prompt or exit."""
