"""sisopt inside of other toolkits: a module for each, that imports it; see the page "Embedding in your toolkit"."""
