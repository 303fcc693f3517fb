"""One module per file format, each with ``read(path, label_field) -> Scan`` and ``write(source, target, classes,
confidence)``; :mod:`pointadapt.data.io` picks one, checks what comes back and turns errors into sentences."""
