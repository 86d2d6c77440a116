"""Claims work, hands it to the native core, and turns what the core reports into outcomes."""
